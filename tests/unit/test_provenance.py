"""Provenance: each fact, or the reason why it is unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgebench import provenance
from edgebench.cards import device_profile
from edgebench.host import Host
from edgebench.records import Fact, Provenance
from edgebench.topology import read_topology

TREES = Path(__file__).parents[1] / "trees"


def tree(root: Path, device: str, **changes: str | None) -> Host:
    """The tree of a device with some files changed, or removed by None."""
    files = json.loads((TREES / f"{device}.json").read_text()) | changes
    for name, text in files.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return Host(root)


def collect(host: Host, **environment: str) -> Provenance:
    facts = Fact(value="0.3.36"), Fact(unknown_because="it gave no answer")
    board = device_profile("raspberry-pi-5")
    return provenance.collect(host, read_topology(host), board, ["edgebench", "profile"], *facts, environment)


def test_a_raspberry_pi_5(tmp_path):
    found = collect(tree(tmp_path, "raspberry-pi-5"))
    assert found.machine == "aarch64"
    assert found.cpu_model == Fact(value="Cortex-A76")
    assert found.kernel == Fact(value="6.12.47+rpt-rpi-2712")
    assert found.governor == Fact(value="ondemand")
    assert found.memory_bytes == Fact(value=8245616 * 1024)
    assert found.memory_limit_bytes == Fact(unknown_because="no limit is set")
    assert found.virtualization == Fact(value="none")
    assert found.container == Fact(value="none")
    assert found.physical_cores == Fact(value=4)
    assert found.logical_cpus == 4
    assert (found.device_profile, found.captured) == ("raspberry-pi-5", True)
    assert found.device.startswith("Raspberry Pi 5 (raspberry-pi-5): 4 x Cortex-A76, ")
    assert found.command == ("edgebench", "profile")
    assert found.runtime_build.unknown_because == "it gave no answer"


def test_only_variables_that_change_speed_are_recorded(tmp_path):
    found = collect(tree(tmp_path, "raspberry-pi-5"), OMP_NUM_THREADS="2", SECRET_TOKEN="x", GGML_NO_X="1", HOME="/h")  # noqa: S106
    assert found.environment == {"GGML_NO_X": "1", "OMP_NUM_THREADS": "2"}


def test_governors_that_differ_are_all_named(tmp_path):
    changes = {"sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "performance\n"}
    found = collect(tree(tmp_path, "jetson-orin-nano", **changes))
    assert found.governor == Fact(value="schedutil (policy0); performance (policy4)")


@pytest.mark.parametrize(
    ("group", "limit"),
    [
        (
            {
                "proc/self/cgroup": "4:memory:/box\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1073741824\n",
            },
            Fact(value=2**30),
        ),
        (
            {
                "proc/self/cgroup": "0::/box\n",
                "sys/fs/cgroup/cgroup.controllers": "memory\n",
                "sys/fs/cgroup/box/memory.max": "536870912\n",
            },
            Fact(value=2**29),
        ),
        ({"proc/self/cgroup": None}, Fact(unknown_because="no memory control group is visible")),
    ],
    ids=["version 1", "version 2", "none"],
)
def test_the_memory_limit_of_a_container(group, limit, tmp_path):
    assert collect(tree(tmp_path, "laptop-i5-1340p", **group)).memory_limit_bytes == limit


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "none"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "QEMU"),
        ({"sys/class/dmi/id/sys_vendor": "Microsoft Corporation", "sys/class/dmi/id/product_name": "Surface"}, "none"),
        (
            {
                "sys/class/dmi/id/sys_vendor": "Microsoft Corporation",
                "sys/class/dmi/id/product_name": "Virtual Machine",
            },
            "Hyper-V",
        ),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2"}, "Amazon EC2"),
    ],
)
def test_the_vendor_in_the_firmware_tells_a_virtual_machine(changes, expected, tmp_path):
    assert collect(tree(tmp_path, "laptop-i5-1340p", **changes)).virtualization.value == expected


def test_the_hypervisor_flag_alone_tells_a_virtual_machine(tmp_path):
    host = Host(tmp_path)
    (tmp_path / "machine").write_text("x86_64")
    found = provenance.virtualization(host, ["fpu", "hypervisor"])
    assert "hypervisor flag" in str(found.value)
    assert provenance.virtualization(host, ["fpu"]) == Fact(value="none")


def test_a_board_with_a_hypervisor_node_is_a_virtual_machine(tmp_path):
    changes = {"sys/firmware/devicetree/base/hypervisor/compatible": "xen,xen-4.17\0xen,xen\0"}
    assert collect(tree(tmp_path, "raspberry-pi-5", **changes)).virtualization.value == "xen,xen-4.17 xen,xen"


def test_without_any_sign_virtualization_is_unknown_with_a_reason(tmp_path):
    (tmp_path / "machine").write_text("aarch64")
    assert provenance.virtualization(Host(tmp_path), []).unknown_because


def test_containers_are_told_by_their_marker_files_or_their_group(tmp_path):
    assert provenance.container(Host(tmp_path)).unknown_because
    changes = {"proc/self/cgroup": "0::/kubepods.slice/pod1\n"}
    assert provenance.container(tree(tmp_path / "a", "raspberry-pi-5", **changes)) == Fact(value="kubepods")
    podman = tree(tmp_path / "b", "raspberry-pi-5", **{"run/.containerenv": 'engine="podman-5.2"\nname="x"\n'})
    assert provenance.container(podman) == Fact(value="podman-5.2")
    docker = tree(tmp_path / "c", "raspberry-pi-5", **{".dockerenv": ""})
    assert provenance.container(docker) == Fact(value="docker")


def test_this_machine_has_a_whole_provenance():
    host = Host()
    facts = Fact(value="1"), Fact(value="2")
    found = provenance.collect(host, read_topology(host), device_profile("generic-x86-64"), ["x"], *facts)
    assert found.kernel.value
    assert not found.captured
    assert found.utc.endswith("+00:00")
