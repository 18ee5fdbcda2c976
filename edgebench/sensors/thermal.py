"""Temperatures in degrees Celsius: thermal zones by type, and the processor's own sensors by label.

A zone whose block is powered off answers EAGAIN or a value at or below -256 C (cv zones of a Jetson, uninitialised
zones): that is a missing reading, not a temperature. hwmon numbers change between boots, so chips are found by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import channel_part, natural, read_scaled
from edgebench.records import Channel

_CHIPS = frozenset({"coretemp", "k10temp", "zenpower"})
_SWITCHED_OFF_C = -256.0


class ThermalSensor:
    """Gauges ``thermal.<zone type>`` and ``thermal.<chip>.<label>`` in C."""

    name = "thermal"
    period_s = 1.0

    def __init__(self, host: Host, sources: dict[str, Path]) -> None:
        self._host = host
        self._sources = sources

    def channels(self) -> Sequence[Channel]:
        """Zones first, then chips."""
        return tuple(Channel(name=f"thermal.{name}", unit="C", kind="gauge") for name in self._sources)

    def read(self) -> Sequence[float | None]:
        """Temperatures now; None for a block that is switched off."""
        values = [read_scaled(self._host, path, 1e-3) for path in self._sources.values()]
        return [value if value is not None and value > _SWITCHED_OFF_C else None for value in values]


def _zones(host: Host) -> Iterator[tuple[str, Path]]:
    for zone in sorted(host.glob(host.sys("class/thermal"), "thermal_zone*"), key=natural):
        kind = host.try_read(zone / "type")
        if kind is not None and (zone / "temp").exists():
            yield channel_part(kind), zone / "temp"


def _chips(host: Host) -> Iterator[tuple[str, Path]]:
    for chip in sorted(host.glob(host.sys("class/hwmon"), "hwmon*"), key=natural):
        name = host.try_read(chip / "name")
        if name not in _CHIPS:
            continue
        for path in host.glob(chip, "temp*_input"):
            stem = path.name.removesuffix("_input")
            yield f"{name}.{channel_part(host.try_read(chip / f'{stem}_label') or stem)}", path


def detect(host: Host, profile: DeviceProfile | None) -> ThermalSensor | None:
    """The sensor where at least one zone or known chip exists. Equal names are numbered: ``acpitz``, ``acpitz.2``."""
    sources: dict[str, Path] = {}
    for name, path in (*_zones(host), *_chips(host)):
        number, unique = 1, name
        while unique in sources:
            number += 1
            unique = f"{name}.{number}"
        sources[unique] = path
    return ThermalSensor(host, sources) if sources else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    if host.glob(host.sys("class/hwmon"), "hwmon*"):
        return (
            "no thermal zone, and no known sensor of a processor",
            "load its driver: sudo modprobe coretemp (Intel) or k10temp (AMD).",
        )
    return "no thermal zone and no sensor chip is visible", "run on the machine itself; a guest sees no temperature."
