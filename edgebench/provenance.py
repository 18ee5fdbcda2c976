"""Where, when and with what a run was made: every fact, or the reason why it is not known.

Whether the machine is virtual matters because other guests steal time and clocks and temperatures are hidden; whether
it is a container, because limits then come from control groups. Neither has one reliable sign, so several are read:
the processor's hypervisor flag (x86), the vendor in the firmware tables, the device tree's hypervisor node; marker
files of container engines and names in the path of the control group.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import edgebench
from edgebench import cgroups
from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import natural, parse_sizes
from edgebench.records import Fact, Provenance
from edgebench.topology import Topology

_SPEED_VARIABLES = ("OMP_", "GOMP_", "KMP_", "GGML_", "ORT_")
_NOT_VIRTUAL = "none"

# sys_vendor and product_name of virtual machines; a vendor that also builds real machines needs its product name.
_VIRTUAL_VENDORS = {
    "qemu": "QEMU",
    "dummy-virt": "QEMU",
    "vmware": "VMware",
    "innotek": "VirtualBox",
    "xen": "Xen",
    "bochs": "Bochs",
    "parallels": "Parallels",
    "amazon ec2": "Amazon EC2",
    "google compute engine": "Google Compute Engine",
    "virtual machine": "Hyper-V",
    "kvm": "KVM",
    "droplet": "DigitalOcean",
}
_CONTAINER_WORDS = ("docker", "kubepods", "containerd", "libpod", "lxc", "podman", "garden", "nspawn")


def collect(
    host: Host,
    topology: Topology,
    device: DeviceProfile,
    command: Sequence[str],
    runtime_version: Fact,
    runtime_build: Fact,
    environment: Mapping[str, str] | None = None,
) -> Provenance:
    """The provenance of a run that starts now.

    Args:
        host: the machine.
        topology: its CPUs, read once per session.
        device: the profile that `edgebench.devices.detect` chose.
        command: the command line that asked for the run.
        runtime_version: as the runtime said, or why it is unknown.
        runtime_build: build and SIMD flags, or why they are unknown.
        environment: variables of the measuring process; None takes this process's.
    """
    return Provenance(
        utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        edgebench=edgebench.__version__,
        runtime_version=runtime_version,
        runtime_build=runtime_build,
        python=platform.python_version(),
        kernel=kernel(host),
        machine=host.machine(),
        cpu_model=topology.cpu_model,
        cpu_flags=topology.flags,
        logical_cpus=topology.logical,
        physical_cores=topology.physical_cores,
        governor=governor(host),
        memory_bytes=_fact(_memory(host), "meminfo gives no total"),
        memory_limit_bytes=memory_limit(host),
        virtualization=virtualization(host, topology.flags),
        container=container(host),
        device_profile=device.id,
        device=describe(host, device, topology),
        captured=not host.is_live,
        command=tuple(command),
        environment=speed_variables(os.environ if environment is None else environment),
    )


def describe(host: Host, device: DeviceProfile, topology: Topology) -> str:
    """A device in a line: ``Raspberry Pi 5 (raspberry-pi-5): 4 x Cortex-A76, 8.0 GiB``.

    Without a profile of its own it is named by its processor.
    """
    title = topology.cpu_model.value if device.generic and topology.cpu_model.value is not None else device.title
    total = _memory(host)
    memory = "" if total is None else f", {total / 2**30:.1f} GiB"
    return f"{title} ({device.id}): {topology.clusters}{memory}"


def _memory(host: Host) -> int | None:
    return parse_sizes(host.try_read(host.proc("meminfo")) or "").get("MemTotal")


def speed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how fast a runtime is; nothing else of the environment is ever recorded."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(_SPEED_VARIABLES)}


def kernel(host: Host) -> Fact:
    """Release of the kernel."""
    text = host.try_read(host.proc("sys/kernel/osrelease"))
    if text is None and host.is_live:
        text = platform.release()
    return _fact(text or None, "the kernel's release was not captured")


def governor(host: Host) -> Fact:
    """Frequency governors of all frequency domains: one name, or each with its domains when they differ."""
    names: dict[str, list[str]] = {}
    for policy in sorted(host.glob(host.sys("devices/system/cpu/cpufreq"), "policy*"), key=natural):
        name = host.try_read(policy / "scaling_governor")
        if name:
            names.setdefault(name, []).append(policy.name)
    if len(names) <= 1:
        return _fact(next(iter(names), None), "no frequency driver is loaded")
    return Fact(value="; ".join(f"{name} ({', '.join(policies)})" for name, policies in names.items()))


def memory_limit(host: Host) -> Fact:
    """Limit of the memory control group, in bytes."""
    if cgroups.find(host, "memory") is None:
        return Fact(unknown_because="no memory control group is visible")
    return _fact(cgroups.memory_limit(host), "no limit is set")


def virtualization(host: Host, flags: Sequence[str]) -> Fact:
    """``none``, or what kind of virtual machine this is."""
    firmware, model = firmware_names(host), device_tree_model(host)
    names = f"{firmware} {model or ''}".lower()
    vendor = next((name for word, name in _VIRTUAL_VENDORS.items() if word in names), None)
    node = host.try_read(host.sys("firmware/devicetree/base/hypervisor/compatible"))
    if vendor is not None or node:
        return _fact(vendor or (node or "").replace("\0", " "), "")
    if "hypervisor" in flags:
        return Fact(value="virtual machine (hypervisor flag of the CPU; the firmware names no vendor)")
    x86 = host.machine().lower() in {"x86_64", "amd64", "i686"} and flags  # there a hypervisor sets its flag
    if x86 or model or firmware:
        return Fact(value=_NOT_VIRTUAL)
    return Fact(unknown_because="neither the CPU's flags, the firmware nor a device tree tells")


def container(host: Host) -> Fact:
    """``none``, or the container engine."""
    if (host.root / ".dockerenv").exists():
        return Fact(value="docker")
    marker = host.root / "run" / ".containerenv"
    if marker.exists():
        engine = re.search(r'^engine="([^"]*)"', host.try_read(marker) or "", re.MULTILINE)
        return Fact(value=engine[1] if engine else "podman")
    groups = host.try_read(host.proc("self/cgroup"))
    if groups is None:
        return Fact(unknown_because="the control groups of the process are not visible")
    return Fact(value=next((word for word in _CONTAINER_WORDS if word in groups), _NOT_VIRTUAL))


def firmware_names(host: Host) -> str:
    """Vendor, product and board as the firmware tables of a PC name them; empty without such tables."""
    folder = host.sys("class/dmi/id")
    names = (host.try_read(folder / name) for name in ("sys_vendor", "product_name", "product_version", "board_name"))
    return " ".join(name for name in names if name)


def device_tree_model(host: Host) -> str | None:
    """The board's name in its device tree, None on machines without one."""
    return host.try_read(host.sys("firmware/devicetree/base/model")) or host.try_read(host.proc("device-tree/model"))


def _fact(value: str | int | None, reason: str) -> Fact:
    return Fact(unknown_because=reason) if value is None else Fact(value=value)
