"""Whether the machine runs on its battery, where firmware often lowers the power limit and so the speed.

A battery that says ``Discharging`` feeds the machine even with a charger plugged in (a charger that is too weak). Where
the status is ``Unknown``, the charger decides. Batteries of mice and headsets (scope ``Device``) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgebench.host import Host
from edgebench.kerneltext import read_scaled
from edgebench.records import Channel
from edgebench.specs import DeviceProfile

_STATES = frozenset({"Charging", "Not charging", "Full"})


class BatterySensor:
    """Gauges ``battery.discharging`` and, with a charger port, ``battery.ac_online``: 1 or 0."""

    name = "battery"
    period_s = 5.0

    def __init__(self, host: Host, batteries: Sequence[Path], chargers: Sequence[Path]) -> None:
        self._host = host
        self._batteries = tuple(batteries)
        self._chargers = tuple(chargers)

    def channels(self) -> Sequence[Channel]:
        """Discharging, then the charger where there is one."""
        names = ["discharging", *(["ac_online"] if self._chargers else [])]
        return tuple(Channel(name=f"battery.{name}", unit="1", kind="gauge") for name in names)

    def read(self) -> Sequence[float | None]:
        """State now; None where the firmware does not tell."""
        online = self._ac_online()
        return [self._discharging(online), *([online] if self._chargers else [])]

    def _ac_online(self) -> float | None:
        values = [read_scaled(self._host, charger / "online") for charger in self._chargers]
        if any(value for value in values if value is not None):
            return 1.0
        return 0.0 if values and None not in values else None

    def _discharging(self, online: float | None) -> float | None:
        states = [self._host.try_read(battery / "status") for battery in self._batteries]
        if "Discharging" in states:
            return 1.0
        if all(state in _STATES for state in states):
            return 0.0
        return None if online is None else 1.0 - online


def detect(host: Host, profile: DeviceProfile | None) -> BatterySensor | None:
    """The sensor where at least one battery of the machine itself exists."""
    supplies: dict[str, list[Path]] = {}
    for supply in host.glob(host.sys("class/power_supply"), "*"):
        if host.try_read(supply / "scope") != "Device":
            supplies.setdefault(host.try_read(supply / "type") or "", []).append(supply)
    batteries = supplies.get("Battery", [])
    chargers = [*supplies.get("Mains", []), *supplies.get("USB", [])]
    return BatterySensor(host, batteries, chargers) if batteries else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here; nothing needs to be done."""
    return "there is no battery", ""
