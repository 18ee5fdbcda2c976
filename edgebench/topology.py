"""Which CPUs there are, which are fast, and how many threads a runtime should use.

Decode splits every matrix statically over the threads and waits for the slowest at each operation, so a slow core slows
all of them and two threads on one core share its arithmetic: the right default is one thread per *physical performance*
core. Cores are told apart by, in this order,

1. ``cpu_capacity``: the scheduler's own relative capacity (ARM device trees; recent hybrid x86),
2. ``cpuinfo_max_freq``: the highest clock,
3. the CPU lists of the ``cpu_core`` and ``cpu_atom`` performance counters (hybrid x86).

Values within 10 % of the highest are one class: cores of a kind differ a little in their highest clock.

A container may run on fewer CPUs than it sees: the affinity mask and cpuset say which, the quota (``cpu.max``) how much
time. Threads beyond the quota are stopped in the middle of their period, so the quota rounded down limits the threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgebench import cgroups
from edgebench.errors import HostError
from edgebench.host import Host
from edgebench.kerneltext import cpuinfo_blocks, natural, parse_cpu_list, parse_size, read_scaled
from edgebench.records import Fact

_SAME_CLASS = 0.9

# Main ID register part numbers of ARM Ltd. (implementer 0x41); Linux arch/arm64/include/asm/cputype.h.
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD83: "Neoverse-V3AE",
}


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The CPUs of a machine as this process may use them."""

    online: tuple[int, ...]
    """Logical CPUs that are switched on."""
    allowed: tuple[int, ...]
    """Those of them that this process may run on (affinity mask and cpuset)."""
    quota_cpus: float | None
    """CPU time per wall time that the container may use, None without a quota."""
    physical_cores: Fact
    """Of the whole machine, allowed or not."""
    performance_cpus: tuple[int, ...]
    """One allowed logical CPU per physical core of the fastest class."""
    class_basis: str
    """What told the classes apart, or why there is only one."""
    clusters: str
    """Core classes in words, fastest first: ``4 x Cortex-A76 + 4 x Cortex-A55``."""
    smt: bool
    """Whether any core runs two threads or more."""
    cpu_model: Fact
    flags: tuple[str, ...]
    """Instruction set flags in the kernel's names, sorted."""
    llc_bytes: int | None
    """Last-level cache seen by the first performance core; None when the kernel does not tell."""

    @property
    def logical(self) -> int:
        """Number of logical CPUs that are switched on."""
        return len(self.online)


def read_topology(host: Host, allowed: set[int] | None = None) -> Topology:
    """Read the topology of a machine.

    Args:
        host: the machine or a captured tree.
        allowed: CPUs that this process may use; None takes the affinity mask (this machine) or the cpuset (a captured
            tree, whose affinity mask is not known).

    Raises:
        HostError: when the machine does not even tell how many CPUs it has.
    """
    blocks = cpuinfo_blocks(host.try_read(host.proc("cpuinfo")) or "")
    online = _online(host, blocks)
    usable = _allowed(host, online, allowed)
    cores, known = _cores(host, online, blocks)
    classes, basis = _classes(host, usable)
    fast = set(classes[0])
    performance = [next(cpu for cpu in sorted(core) if cpu in fast) for core in cores if fast & core]
    return Topology(
        online=online,
        allowed=usable,
        quota_cpus=cgroups.cpu_quota(host),
        physical_cores=known,
        performance_cpus=tuple(sorted(performance)),
        class_basis=basis,
        clusters=_describe(classes, cores, _part_names(blocks)),
        smt=any(len(core) > 1 for core in cores),
        cpu_model=_cpu_model(blocks),
        flags=_flags(blocks),
        llc_bytes=_last_level_cache(host, min(performance)),
    )


def default_threads(topology: Topology) -> tuple[int, str]:
    """Threads that a runtime should use here, and why in one phrase."""
    cores = len(topology.performance_cpus)
    why = f"one per physical performance core ({topology.clusters})"
    if topology.quota_cpus is not None and topology.quota_cpus < cores:
        threads = max(1, math.floor(topology.quota_cpus))
        return threads, f"the container's quota of {topology.quota_cpus:g} CPUs limits {cores} cores to {threads}"
    if len(topology.allowed) < len(topology.online):
        why += f", of the {len(topology.allowed)} CPUs out of {len(topology.online)} that this process may use"
    return cores, why


# --- which CPUs -------------------------------------------------------------------------------------------------------


def _online(host: Host, blocks: list[dict[str, str]]) -> tuple[int, ...]:
    listed = parse_cpu_list(host.try_read(host.sys("devices/system/cpu/online")) or "")
    if not listed:
        listed = frozenset(int(b["processor"]) for b in blocks if b.get("processor", "").isdecimal())
    if not listed and host.is_live:
        listed = frozenset(range(os.cpu_count() or 0))  # a system without these files, e.g. macOS
    if not listed:
        raise HostError(
            f"The tree {host.root} does not tell how many CPUs the machine has.",
            "capture cpuinfo and the list of online CPUs of the machine as well.",
        )
    return tuple(sorted(listed))


def _allowed(host: Host, online: tuple[int, ...], allowed: set[int] | None) -> tuple[int, ...]:
    if allowed is None and host.is_live and hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)  # the kernel has already applied the cpuset to the mask
    elif allowed is None and (cpuset := cgroups.cpuset(host)):
        allowed = set(cpuset)
    usable = set(online) if allowed is None else set(online) & allowed
    if not usable:
        raise HostError(
            f"None of the allowed CPUs {sorted(allowed or ())} is online (online: {list(online)}).",
            "give CPUs that exist, or run without a CPU restriction.",
        )
    return tuple(sorted(usable))


def _cores(host: Host, online: tuple[int, ...], blocks: list[dict[str, str]]) -> tuple[list[frozenset[int]], Fact]:
    """Logical CPUs grouped by physical core, and the number of cores if it is really known."""
    groups: dict[frozenset[int], None] = {}
    for cpu in online:
        folder = host.sys(f"devices/system/cpu/cpu{cpu}/topology")
        text = host.try_read(folder / "core_cpus_list") or host.try_read(folder / "thread_siblings_list")
        siblings = parse_cpu_list(text) if text else None
        if not siblings or cpu not in siblings:
            break
        groups[siblings & frozenset(online)] = None
    else:
        return list(groups), Fact(value=len(groups))
    by_id: dict[tuple[str, str], set[int]] = {}
    for block in blocks:
        if block.get("processor", "").isdecimal() and "core id" in block and int(block["processor"]) in online:
            by_id.setdefault((block.get("physical id", ""), block["core id"]), set()).add(int(block["processor"]))
    if sum(map(len, by_id.values())) == len(online):
        return [frozenset(group) for group in by_id.values()], Fact(value=len(by_id))
    reason = "the kernel does not tell which logical CPUs share a core; each is taken for a core"
    return [frozenset({cpu}) for cpu in online], Fact(unknown_because=reason)


# --- how fast ---------------------------------------------------------------------------------------------------------


def _classes(host: Host, cpus: tuple[int, ...]) -> tuple[list[list[int]], str]:
    """CPUs by class, fastest first, and what told them apart."""
    for name, file in (("cpu_capacity", "cpu_capacity"), ("highest clock", "cpufreq/cpuinfo_max_freq")):
        read = {cpu: read_scaled(host, host.sys(f"devices/system/cpu/cpu{cpu}/{file}")) for cpu in cpus}
        values = {cpu: value for cpu, value in read.items() if value is not None and value > 0}
        classes = _by_value(values) if len(values) == len(cpus) else []
        if len(classes) > 1:
            return classes, name
    core = _counter_cpus(host, "cpu_core") & frozenset(cpus)
    atom = _counter_cpus(host, "cpu_atom") & frozenset(cpus)
    if core and atom and core | atom == frozenset(cpus):
        return [sorted(core), sorted(atom)], "performance counters cpu_core and cpu_atom"
    return [list(cpus)], "no difference between the cores is known"


def _by_value(values: dict[int, float]) -> list[list[int]]:
    classes: list[list[int]] = []
    highest = math.inf
    for cpu in sorted(values, key=lambda cpu: (-values[cpu], cpu)):
        if not classes or values[cpu] < _SAME_CLASS * highest:
            classes.append([])
            highest = values[cpu]
        classes[-1].append(cpu)
    return [sorted(group) for group in classes]


def _counter_cpus(host: Host, name: str) -> frozenset[int]:
    return parse_cpu_list(host.try_read(host.sys(f"devices/{name}/cpus")) or "") or frozenset()


# --- in words ---------------------------------------------------------------------------------------------------------


def _part_names(blocks: list[dict[str, str]]) -> dict[int, str]:
    """Core names of ARM processors by logical CPU."""
    names = {}
    for block in blocks:
        if not block.get("processor", "").isdecimal() or block.get("CPU implementer") != "0x41":
            continue
        try:
            part = int(block.get("CPU part", ""), 16)
        except ValueError:
            continue
        names[int(block["processor"])] = _ARM_PARTS.get(part, f"ARM part {part:#x}")
    return names


def _describe(classes: list[list[int]], cores: Iterable[frozenset[int]], names: dict[int, str]) -> str:
    kinds = ("performance", "efficiency") if len(classes) == 2 else tuple(f"class {n}" for n in "123456789")
    parts = []
    for index, group in enumerate(classes):
        inside = [core & set(group) for core in cores if core & set(group)]
        kind = "/".join(sorted({names[cpu] for cpu in group if cpu in names}))
        if kind:
            text = f"{len(inside)} x {kind}"
        elif len(classes) == 1:
            text = f"{len(inside)} equal cores" if len(inside) > 1 else "1 core"
        else:
            text = f"{len(inside)} {kinds[min(index, len(kinds) - 1)]} cores"
        threads = sum(map(len, inside))
        parts.append(text + (f" ({threads} threads)" if threads > len(inside) else ""))
    return " + ".join(parts)


def _cpu_model(blocks: list[dict[str, str]]) -> Fact:
    for key in ("model name", "uarch", "cpu model"):
        for block in blocks:
            name = block.get(key, "")
            if name and not name.startswith("ARMv"):  # 32-bit ARM prints its architecture there
                return Fact(value=name)
    names = dict.fromkeys(_part_names(blocks).values()) or [b["Hardware"] for b in blocks if b.get("Hardware")]
    return Fact(value=" + ".join(names)) if names else Fact(unknown_because="cpuinfo names no model")


def _flags(blocks: list[dict[str, str]]) -> tuple[str, ...]:
    text = next((block[key] for block in blocks for key in ("flags", "Features") if key in block), "")
    return tuple(sorted(set(text.split())))


def _last_level_cache(host: Host, cpu: int) -> int | None:
    best: tuple[int, int] | None = None
    for index in sorted(host.glob(host.sys(f"devices/system/cpu/cpu{cpu}/cache"), "index*"), key=natural):
        if host.try_read(index / "type") not in {"Unified", "Data"}:
            continue
        level, size = _cache(host, index)
        if level is not None and size is not None and (best is None or level > best[0]):
            best = (level, size)
    return best[1] if best else None


def _cache(host: Host, index: Path) -> tuple[int | None, int | None]:
    level = read_scaled(host, index / "level")
    return None if level is None else int(level), parse_size(host.try_read(index / "size") or "")
