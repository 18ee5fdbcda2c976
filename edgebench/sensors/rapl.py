"""Energy counters of x86 processors (RAPL) in J: powercap zones, else the kernel's ``power`` performance counters.

Zones form a tree (kernel documentation, power/powercap): ``psys`` is the platform, ``package-N`` one processor with its
``core`` and ``uncore`` inside; ``dram`` is shown inside the package but its energy is *not* part of it. So a core is
``part_of`` its package and is never added to it, while package and dram add up.

Three traps. The ``intel-rapl-mmio`` zones show the same package by another road: equal names count once. AMD parts with
several dies show one zone per die, all *mirroring one counter* (``package-0-die-0``, ``-die-1``): a zone whose value
lies between two readings of another, taken around it, is that other one again; two independent counters of 65 kJ meet
within the millijoules of three readings by no chance that matters. And the value starts again at
``max_energy_range_uj``: 10 minutes at 105 W on AMD; the channel says so (``wrap``).

Since 2020 only root reads ``energy_uj`` (CVE-2020-8694: the values leak secrets of other programs). perf's counters
need ``perf_event_paranoid`` at 0 or below, or CAP_PERFMON; they have 64 bits, so the kernel takes care of the wrap. The
hardware renews both about once a millisecond.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import channel_part, natural, read_scaled
from edgebench.records import Channel
from edgebench.sensors import _rapl_perf
from edgebench.specs import Scope

_ZONE = re.compile(r"intel-rapl(?P<mmio>-mmio)?:(?P<top>\d{1,4})(?::(?P<sub>\d{1,4}))?")
_PACKAGE = re.compile(r"package-(\d{1,4})(?:-die-\d{1,4})?")
_UPDATE_S = 1e-3

Reader = Callable[[], float | None]


class RaplSensor:
    """Counters ``rapl.package-0``, ``.psys``, ``.package-0.core``, ``.package-0.dram``... or ``rapl.perf.*``, in J."""

    name = "rapl"
    period_s = 0.1  # one reading costs some 10 us a zone; what happens between two readings is in the counter

    def __init__(self, sources: Sequence[tuple[Channel, Reader]]) -> None:
        self._sources = tuple(sources)

    def channels(self) -> Sequence[Channel]:
        """Each zone once: platform and packages, then their parts."""
        return tuple(channel for channel, _ in self._sources)

    def read(self) -> Sequence[float | None]:
        """Joules since an unknown start; None where a zone is not readable."""
        return [read() for _, read in self._sources]


@dataclass(frozen=True)
class _Zone:
    folder: Path
    label: str
    """``package-0``, ``psys``, ``package-0.core``"""
    parent: str = ""

    def joules(self, host: Host) -> float | None:
        """The counter now; None when it is unreadable or beyond its own range."""
        value = read_scaled(host, self.folder / "energy_uj", 1e-6)
        return value if value is not None and 0 <= value < 1.9e13 else None  # 64 bits of microjoules

    def wrap(self, host: Host) -> float | None:
        """Joules at which it starts again."""
        value = read_scaled(host, self.folder / "max_energy_range_uj", 1e-6)
        return value if value is not None and value > 0 else None


def _zones(host: Host) -> list[_Zone]:
    """Every zone once, processors' own registers (msr) before their copies in memory (mmio)."""
    found: list[tuple[bool, tuple[str, int], str, _Zone]] = []
    tops: dict[str, str] = {}
    for folder in sorted(host.glob(host.sys("class/powercap"), "intel-rapl*:*"), key=natural):
        match, name = _ZONE.fullmatch(folder.name), host.try_read(folder / "name")
        if match is None or not name:
            continue
        top = f"{match['mmio'] or ''}:{match['top']}"
        label = channel_part(name)
        if match["sub"] is None:
            tops[top] = label
        found.append((match["mmio"] is not None, natural(folder), top if match["sub"] else "", _Zone(folder, label)))
    zones: dict[str, _Zone] = {}
    for _, _, top, zone in sorted(found, key=lambda entry: entry[:2]):
        parent = tops.get(top, "") if top else ""
        if top and not parent:
            continue  # a part of nothing that can be named
        label = f"{parent}.{zone.label}" if parent else zone.label
        zones.setdefault(label, replace(zone, label=label, parent=parent))
    return _without_mirrors(host, list(zones.values()))


def _without_mirrors(host: Host, zones: Iterable[_Zone]) -> list[_Zone]:
    """Leave out dies that show the counter of another die of their package, and what is inside them."""
    kept: list[_Zone] = []
    dropped: set[str] = set()
    for zone in zones:
        package = _PACKAGE.fullmatch(zone.label)
        rivals = (other for other in kept if package and _package(other) == package[1])
        if any(_same_counter(host, other, zone) for other in rivals):
            dropped.add(zone.label)
        else:
            kept.append(zone)
    return [zone for zone in kept if zone.parent not in dropped]


def _package(zone: _Zone) -> str:
    match = _PACKAGE.fullmatch(zone.label)
    return match[1] if match else ""


def _same_counter(host: Host, one: _Zone, other: _Zone) -> bool:
    """Whether the other's value lies between two readings of the first; tried again, because one may wrap between."""
    for _ in range(2):
        before, between, after = one.joules(host), other.joules(host), one.joules(host)
        if before is not None and between is not None and after is not None and before <= between <= after:
            return True
    return False


def _scope(zone: _Zone) -> tuple[Scope, str]:
    """What a zone covers, and the channel that already counts it."""
    name = zone.label.rpartition(".")[2]
    if name == "dram":
        return "cpu_package+dram", ""
    if zone.parent:
        return "component", f"rapl.{zone.parent}"
    if name == "psys":
        return "psys", ""
    return ("cpu_package", "") if _PACKAGE.fullmatch(zone.label) else ("component", "")


def _from_powercap(host: Host) -> Iterator[tuple[Channel, Reader]]:
    for zone in sorted(_zones(host), key=lambda zone: bool(zone.parent)):
        scope, part_of = _scope(zone)
        channel = Channel(
            name=f"rapl.{zone.label}",
            unit="J",
            kind="counter",
            scope=scope,
            part_of=part_of,
            wrap=zone.wrap(host),
            update_s=_UPDATE_S,
        )
        yield channel, _reader(host, zone, channel.wrap)


def _reader(host: Host, zone: _Zone, wrap: float | None) -> Reader:
    """A value beyond the range that the zone itself states is garbage."""
    largest = math.inf if wrap is None else wrap

    def read() -> float | None:
        value = zone.joules(host)
        return value if value is not None and value <= largest else None

    return read


def detect(host: Host, profile: DeviceProfile | None) -> RaplSensor | None:
    """Powercap's zones where one of them is readable, else perf's counters, else the zones that cannot be read."""
    sources = list(_from_powercap(host))
    if all(read() is None for _, read in sources):
        counted = _rapl_perf.sources(host)
        if counted:
            return RaplSensor(counted)
    return RaplSensor(sources) if sources else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    if host.machine().lower() not in {"x86_64", "amd64", "i686"}:
        return "this is no x86 processor", ""
    if host.sys("class/powercap").is_dir():
        return "no powercap zone", "load the driver: sudo modprobe intel_rapl_msr (also for AMD)."
    return "no powercap: a guest or a container sees no RAPL counter", "run on the machine itself, or use a meter."


def unreadable(host: Host) -> tuple[str, str]:
    """Why zones that were found give no value, and the exact remedy with its price."""
    return (
        "energy_uj is for root alone since CVE-2020-8694, and perf's counters are closed as well",
        (
            "give the counters to a group of their own (its members can watch other programs through their energy): "
            "sudo groupadd rapl; sudo usermod -aG rapl $USER; a udev rule with "
            'SUBSYSTEM=="powercap", ACTION=="add", '
            "RUN+=\"/bin/sh -c 'cd %S%p; chgrp rapl energy_uj; chmod g+r energy_uj'\"; then reboot. "
            "Or until the next boot, with the same price: sudo sysctl kernel.perf_event_paranoid=0"
        ),
    )
