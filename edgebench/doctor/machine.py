"""What this machine is: board, processor, memory, kernel, and the walls around this process."""

from __future__ import annotations

from edgebench import devices, provenance
from edgebench.device_profile import DeviceProfile
from edgebench.doctor.checks import Check, Section
from edgebench.host import Host
from edgebench.kerneltext import parse_sizes
from edgebench.records import Fact
from edgebench.topology import Topology, default_threads
from edgebench.units import format_bytes_mib


def examine_machine(host: Host, topology: Topology, profile: DeviceProfile) -> Section:
    """Facts about the machine; a fact that is unknown says why."""
    board = provenance.device_tree_model(host) or provenance.firmware_names(host)
    threads, why = default_threads(topology)
    checks = (
        _board(profile, board),
        *_gpus(host),
        _fact("cpu", topology.cpu_model),
        _cores(topology),
        Check(name="threads", state="ok", says=f"{threads} by default: {why}"),
        _memory(host),
        _fact("virtual", provenance.virtualization(host, topology.flags), warn_unless="none"),
        _fact("container", provenance.container(host)),
        _fact("kernel", provenance.kernel(host)),
    )
    return Section(title="This machine", checks=checks)


def _board(profile: DeviceProfile, board: str) -> Check:
    seen = f", which says {board!r}" if board else ""
    if profile.generic:
        says = f"no profile of its own{seen}; using {profile.id}"
        fix = "to give it one: edgebench devices draft, then add what its maker declares"
        return Check(name="device", state="ok", says=says, fix=fix if board else "")
    return Check(name="device", state="ok", says=f"{profile.title} ({profile.id}){seen}")


def _gpus(host: Host) -> list[Check]:
    names = devices.gpu_names(host)
    known = {profile.id for profile in devices.accelerators(host)}
    says = ", ".join(names) + (f" ({', '.join(sorted(known))})" if known else "")
    return [Check(name="gpu", state="ok", says=says)] if names else []


def _cores(topology: Topology) -> Check:
    physical = topology.physical_cores
    cores = f"{physical.value} physical" if physical.value is not None else f"physical: {physical.unknown_because}"
    says = f"{topology.logical} logical CPUs, {cores}: {topology.clusters}"
    if len(topology.allowed) < topology.logical:
        says += f"; this process may use {len(topology.allowed)}"
    if topology.quota_cpus is not None:
        says += f"; quota of {topology.quota_cpus:g} CPUs"
    return Check(name="cores", state="ok", says=says)


def _memory(host: Host) -> Check:
    sizes = parse_sizes(host.try_read(host.proc("meminfo")) or "")
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    if total is None:
        return Check(name="ram", state="missing", says="meminfo gives no total", fix="mount procfs here.")
    says = f"{format_bytes_mib(total)} MiB"
    says += f", {format_bytes_mib(available)} MiB available now" if available is not None else ""
    limit = provenance.memory_limit(host)
    if isinstance(limit.value, int):
        effective = min(total, limit.value)
        says += f"; the container may use {format_bytes_mib(effective)} MiB"
    else:
        says += f"; container: {limit.unknown_because}"
    return Check(name="ram", state="ok", says=says)


def _fact(name: str, fact: Fact, warn_unless: str | None = None) -> Check:
    if fact.value is None:
        return Check(name=name, state="missing", says=f"unknown: {fact.unknown_because}")
    if warn_unless is not None and fact.value != warn_unless:
        says = f"{fact.value}; others may take its CPU time, and clocks and temperatures may be hidden"
        return Check(name=name, state="warn", says=says, fix="measure on the machine itself if you can.")
    return Check(name=name, state="ok", says=str(fact.value))
