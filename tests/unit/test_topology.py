"""Topologies of machines that differ in kind, each as a tree of the files that the kernel shows there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench.errors import HostError
from edgebench.host import Host
from edgebench.topology import default_threads, read_topology


def tree(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


def arm_cpuinfo(parts: list[int]) -> str:
    blocks = [
        f"processor\t: {cpu}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part:#x}\nCPU revision\t: 1\n"
        for cpu, part in enumerate(parts)
    ]
    return "\n".join(blocks)


def cpu_files(cpu: int, siblings: str, **values: str) -> dict[str, str]:
    base = f"sys/devices/system/cpu/cpu{cpu}"
    places = {"max_freq": "cpufreq/cpuinfo_max_freq", "capacity": "cpu_capacity"}
    return {f"{base}/topology/core_cpus_list": siblings} | {f"{base}/{places[k]}": v for k, v in values.items()}


def raspberry_pi_5() -> dict[str, str]:
    files = {
        "proc/cpuinfo": arm_cpuinfo([0xD0B] * 4) + "\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
        "sys/devices/system/cpu/online": "0-3\n",
    }
    for cpu in range(4):
        files |= cpu_files(cpu, f"{cpu}\n", max_freq="2400000\n")
        base = f"sys/devices/system/cpu/cpu{cpu}/cache"
        for index, (level, kind, size) in enumerate(
            [(1, "Data", "64K"), (2, "Unified", "512K"), (3, "Unified", "2048K")]
        ):
            values = {"level": level, "type": kind, "size": size}
            files |= {f"{base}/index{index}/{key}": f"{value}\n" for key, value in values.items()}
    return files


def rk3588() -> dict[str, str]:
    files = {
        "proc/cpuinfo": arm_cpuinfo([0xD05] * 4 + [0xD0B] * 4),
        "sys/devices/system/cpu/online": "0-7\n",
    }
    clocks = ["1800000"] * 4 + ["2352000", "2352000", "2304000", "2304000"]  # two big clusters, binned differently
    for cpu, clock in enumerate(clocks):
        files |= cpu_files(cpu, f"{cpu}\n", max_freq=clock, capacity="530" if cpu < 4 else "1024")
    return files


def hybrid_laptop(*, clocks: bool = True) -> dict[str, str]:
    """i5-1340P: CPUs 0-7 are 4 performance cores with two threads, 8-15 are efficiency cores."""
    text = "\n".join(
        f"processor\t: {cpu}\nmodel name\t: 13th Gen Intel(R) Core(TM) i5-1340P\nflags\t\t: fpu avx2 fma avx_vnni\n"
        for cpu in range(16)
    )
    files = {
        "proc/cpuinfo": text,
        "sys/devices/system/cpu/online": "0-15\n",
        "sys/devices/cpu_core/cpus": "0-7\n",
        "sys/devices/cpu_atom/cpus": "8-15\n",
    }
    for cpu in range(16):
        siblings = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n" if cpu < 8 else f"{cpu}\n"
        clock = {"max_freq": "4600000\n" if cpu < 8 else "3400000\n"} if clocks else {}
        files |= cpu_files(cpu, siblings, **clock)
    return files


def small_vm() -> dict[str, str]:
    files = {
        "proc/cpuinfo": "\n".join(
            f"processor\t: {cpu}\nmodel name\t: AMD EPYC\nphysical id\t: 0\ncore id\t\t: {cpu}\n"
            "flags\t\t: fpu avx2 avx512f hypervisor\n"
            for cpu in range(2)
        ),
        "sys/devices/system/cpu/online": "0-1\n",
    }
    for cpu in range(2):
        files |= cpu_files(cpu, f"{cpu}\n", capacity="1024\n")  # Linux 6.18 shows it on x86 as well
    return files


def test_a_raspberry_pi_5_has_four_equal_cores(tmp_path):
    topology = read_topology(tree(tmp_path, raspberry_pi_5()))
    assert topology.performance_cpus == (0, 1, 2, 3)
    assert topology.clusters == "4 x Cortex-A76"
    assert topology.cpu_model.value == "Cortex-A76"
    assert topology.llc_bytes == 2 * 2**20
    assert topology.flags == ("asimd", "asimddp", "asimdhp", "fp")
    assert not topology.smt
    assert default_threads(topology)[0] == 4


def test_an_rk3588_uses_its_four_big_cores_although_their_clocks_differ_a_little(tmp_path):
    topology = read_topology(tree(tmp_path, rk3588()))
    assert topology.performance_cpus == (4, 5, 6, 7)
    assert topology.clusters == "4 x Cortex-A76 + 4 x Cortex-A55"
    assert topology.class_basis == "cpu_capacity"
    assert topology.physical_cores.value == 8
    threads, reason = default_threads(topology)
    assert threads == 4
    assert "Cortex-A55" in reason


def test_without_capacities_the_highest_clock_tells_the_cores_apart(tmp_path):
    files = {name: text for name, text in rk3588().items() if not name.endswith("cpu_capacity")}
    topology = read_topology(tree(tmp_path, files))
    assert topology.performance_cpus == (4, 5, 6, 7)
    assert topology.class_basis == "highest clock"


def test_a_hybrid_laptop_uses_one_thread_per_performance_core(tmp_path):
    topology = read_topology(tree(tmp_path, hybrid_laptop()))
    assert topology.performance_cpus == (0, 2, 4, 6)
    assert topology.physical_cores.value == 12
    assert topology.logical == 16
    assert topology.smt
    assert topology.clusters == "4 performance cores (8 threads) + 8 efficiency cores"
    assert default_threads(topology)[0] == 4


def test_a_hybrid_laptop_without_a_frequency_driver_is_told_apart_by_its_counters(tmp_path):
    topology = read_topology(tree(tmp_path, hybrid_laptop(clocks=False)))
    assert topology.performance_cpus == (0, 2, 4, 6)
    assert "cpu_atom" in topology.class_basis


def test_a_process_kept_on_efficiency_cores_uses_those(tmp_path):
    topology = read_topology(tree(tmp_path, hybrid_laptop()), allowed={8, 9, 10})
    assert topology.performance_cpus == (8, 9, 10)
    threads, reason = default_threads(topology)
    assert threads == 3
    assert "3 CPUs out of 16" in reason


def test_the_second_thread_of_a_core_is_used_when_only_that_one_is_allowed(tmp_path):
    assert read_topology(tree(tmp_path, hybrid_laptop()), allowed={1, 3}).performance_cpus == (1, 3)


def test_a_small_vm_without_a_frequency_driver_has_equal_cores(tmp_path):
    topology = read_topology(tree(tmp_path, small_vm()))
    assert topology.performance_cpus == (0, 1)
    assert topology.clusters == "2 equal cores"
    assert topology.llc_bytes is None
    assert default_threads(topology) == (2, "one per physical performance core (2 equal cores)")


def test_a_missing_topology_folder_falls_back_to_the_core_ids_of_cpuinfo(tmp_path):
    files = {name: text for name, text in small_vm().items() if "topology" not in name}
    assert read_topology(tree(tmp_path, files)).physical_cores.value == 2


def test_unknown_cores_are_unknown_with_a_reason(tmp_path):
    topology = read_topology(tree(tmp_path, {"sys/devices/system/cpu/online": "0-2,5\n"}))
    assert topology.logical == 4
    assert topology.physical_cores.value is None
    assert "share a core" in topology.physical_cores.unknown_because
    assert topology.cpu_model.unknown_because
    assert topology.performance_cpus == (0, 1, 2, 5)


def test_an_offline_cpu_is_no_core(tmp_path):
    files = raspberry_pi_5() | {"sys/devices/system/cpu/online": "0-2\n"}
    assert read_topology(tree(tmp_path, files)).performance_cpus == (0, 1, 2)


@pytest.mark.parametrize(
    "quota",
    [
        {
            "proc/self/cgroup": "0::/box/inner\n",
            "sys/fs/cgroup/cgroup.controllers": "cpuset cpu memory\n",
            "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n",
        },
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["version 2, limit on the parent", "version 1, group seen from inside the container"],
)
def test_a_container_quota_of_one_and_a_half_cpus_limits_the_threads_to_one(quota, tmp_path):
    topology = read_topology(tree(tmp_path, raspberry_pi_5() | quota))
    threads, reason = default_threads(topology)
    assert topology.quota_cpus == 1.5
    assert threads == 1
    assert reason == "the container's quota of 1.5 CPUs limits 4 cores to 1"


def test_a_quota_below_one_cpu_still_gives_one_thread(tmp_path):
    quota = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu\n",
        "sys/fs/cgroup/cpu.max": "50000 100000\n",
    }
    assert default_threads(read_topology(tree(tmp_path, raspberry_pi_5() | quota)))[0] == 1


def test_a_cpuset_of_a_captured_container_limits_the_cpus(tmp_path):
    group = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset\n",
        "sys/fs/cgroup/cpuset.cpus.effective": "1-2\n",
    }
    assert read_topology(tree(tmp_path, raspberry_pi_5() | group)).allowed == (1, 2)


def test_a_tree_that_names_no_cpu_is_an_error_with_a_next_step(tmp_path):
    with pytest.raises(HostError, match="how many CPUs") as raised:
        read_topology(Host(tmp_path))
    assert "capture" in raised.value.next_step


def test_allowed_cpus_that_do_not_exist_are_an_error(tmp_path):
    with pytest.raises(HostError, match=r"\[9\]"):
        read_topology(tree(tmp_path, raspberry_pi_5()), allowed={9})


def test_this_machine_has_a_topology_and_a_default():
    topology = read_topology(Host())
    threads, reason = default_threads(topology)
    assert 1 <= threads <= len(topology.allowed) <= topology.logical
    assert reason
