"""Whether the machine runs on its battery, and what it takes from it: W, and J drawn.

A battery that says ``Discharging`` feeds the machine even with a charger plugged in (a charger that is too weak).
Where the status is ``Unknown``, the charger decides. Batteries of mice and headsets (scope ``Device``) are left out.

Power and energy cover the whole machine, screen included, and exist only while *every* battery is discharging and no
charger is online; at any other time they are missing values. Firmware reports power, or current and voltage; and the
energy left, or the charge left (kernel documentation, power/power_supply_class: uW, uA, uV, uWh, uAh). One reading of
``uevent`` gives a set that belongs together. It is renewed every 1 to 60 s, depending on the firmware, and energy
comes in steps of typically 10 mWh (36 J), so a battery is a source for minutes. Some drivers count a discharge as
negative.

Firmware lies: a current of 0 while discharging, 0.4 W for a running laptop. Outside 0.5 to 500 W there is no value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import read_scaled
from edgebench.records import Channel

_STATES = frozenset({"Charging", "Not charging", "Full"})
_LEAST_W, _MOST_W = 0.5, 500.0
_J_PER_UWH = 3.6e-3
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_POWER_KEYS = (("POWER_NOW",), ("CURRENT_NOW", "VOLTAGE_NOW"))
_ENERGY_KEYS = (("ENERGY_NOW",), ("CHARGE_NOW", "VOLTAGE_NOW"))

Properties = Mapping[str, str]


class BatterySensor:
    """Gauges ``battery.discharging`` and, with a charger port, ``battery.ac_online``: 1 or 0.

    Where the firmware tells them: gauge ``battery.power`` in W and counter ``battery.drawn`` in J.
    """

    name = "battery"

    def __init__(self, host: Host, batteries: Sequence[Path], chargers: Sequence[Path]) -> None:
        self._host = host
        self._batteries = tuple(batteries)
        self._chargers = tuple(chargers)
        told = [_properties(host, battery) for battery in batteries]
        self._has_power = all(_has(properties, _POWER_KEYS) for properties in told)
        self._has_energy = all(_has(properties, _ENERGY_KEYS) for properties in told)
        self.period_s = 1.0 if self._has_power or self._has_energy else 5.0
        self._drawn = _Drawn()

    def channels(self) -> Sequence[Channel]:
        """Discharging, the charger where there is one, then power and energy where the firmware tells them."""
        names = ["discharging", *(["ac_online"] if self._chargers else [])]
        channels = [Channel(name=f"battery.{name}", unit="1", kind="gauge") for name in names]
        if self._has_power:
            channels.append(Channel(name="battery.power", unit="W", kind="gauge", scope="dc_input"))
        if self._has_energy:
            channels.append(Channel(name="battery.drawn", unit="J", kind="counter", scope="dc_input"))
        return tuple(channels)

    def read(self) -> Sequence[float | None]:
        """State now; None where the firmware does not tell, and power and energy only while it is the one source."""
        told = [_properties(self._host, battery) for battery in self._batteries]
        online = self._ac_online()
        values = [_discharging(told, online), *([online] if self._chargers else [])]
        alone = all(properties.get("STATUS") == "Discharging" for properties in told) and online == (
            0.0 if self._chargers else None
        )
        if self._has_power:
            values.append(_plausible(_sum([_power_w(properties) for properties in told])) if alone else None)
        if self._has_energy:
            values.append(self._drawn.next(told if alone else ()))
        return values

    def _ac_online(self) -> float | None:
        values = [read_scaled(self._host, charger / "online") for charger in self._chargers]
        if any(value for value in values if value is not None):
            return 1.0
        return 0.0 if values and None not in values else None


class _Drawn:
    """Joules taken from all batteries since the first reading, added up from step to step.

    A charge becomes energy by the voltage in the middle of the step. After a reading without a value the count starts
    again at 0: what was drawn meanwhile is unknown, and a counter that falls says so.
    """

    def __init__(self) -> None:
        self._joules = 0.0
        self._before: list[tuple[float, float]] | None = None

    def next(self, told: Sequence[Properties]) -> float | None:
        """The count now, or None when a battery does not tell, or holds more than before."""
        now = [level for properties in told if (level := _level(properties)) is not None]
        if not told or len(now) != len(told):
            self._before, self._joules = None, 0.0
            return None
        before, self._before = self._before, now
        if before is not None:
            steps = [
                (old - new) * (old_factor + new_factor) / 2
                for (old, old_factor), (new, new_factor) in zip(before, now, strict=True)
            ]
            if min(steps) < 0:
                self._joules = 0.0
                return None
            self._joules += sum(steps)
        return self._joules


def _properties(host: Host, battery: Path) -> Properties:
    """``uevent`` without its prefix; where it has no status, the file of that name."""
    pairs = (line.partition("=") for line in (host.try_read(battery / "uevent") or "").splitlines())
    told = {key.removeprefix("POWER_SUPPLY_"): value.strip() for key, _, value in pairs}
    status = told.get("STATUS") or host.try_read(battery / "status")
    return told | ({"STATUS": status} if status else {})


def _has(properties: Properties, alternatives: Sequence[Sequence[str]]) -> bool:
    return any(all(key in properties for key in keys) for keys in alternatives)


def _number(properties: Properties, key: str) -> float | None:
    text = properties.get(key, "")
    return float(text) if _INTEGER.fullmatch(text) else None


def _power_w(properties: Properties) -> float | None:
    """Power of one battery; the sign of a discharge differs between drivers."""
    power = _number(properties, "POWER_NOW")
    if power is not None:
        return abs(power) * 1e-6
    amperes, volts = _number(properties, "CURRENT_NOW"), _number(properties, "VOLTAGE_NOW")
    return None if amperes is None or volts is None or volts <= 0 else abs(amperes) * volts * 1e-12


def _level(properties: Properties) -> tuple[float, float] | None:
    """What is left, and how many joules one unit of it is now."""
    energy = _number(properties, "ENERGY_NOW")
    if energy is not None:
        return (energy, _J_PER_UWH) if energy > 0 else None
    charge, volts = _number(properties, "CHARGE_NOW"), _number(properties, "VOLTAGE_NOW")
    if charge is None or volts is None or charge <= 0 or volts <= 0:
        return None
    return charge, _J_PER_UWH * volts * 1e-6


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _plausible(watts: float | None) -> float | None:
    return watts if watts is not None and _LEAST_W <= watts <= _MOST_W else None


def _discharging(told: Sequence[Properties], online: float | None) -> float | None:
    states = [properties.get("STATUS") for properties in told]
    if "Discharging" in states:
        return 1.0
    if all(state in _STATES for state in states):
        return 0.0
    return None if online is None else 1.0 - online


def detect(host: Host, profile: DeviceProfile | None) -> BatterySensor | None:
    """The sensor where at least one battery of the machine itself exists. A slot without a battery is none."""
    supplies: dict[str, list[Path]] = {}
    for supply in host.glob(host.sys("class/power_supply"), "*"):
        if host.try_read(supply / "scope") != "Device" and host.try_read(supply / "present") != "0":
            supplies.setdefault(host.try_read(supply / "type") or "", []).append(supply)
    batteries = supplies.get("Battery", [])
    chargers = [*supplies.get("Mains", []), *supplies.get("USB", [])]
    return BatterySensor(host, batteries, chargers) if batteries else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here; nothing needs to be done."""
    return "there is no battery", ""


def unreadable(host: Host) -> tuple[str, str]:
    """When power and energy have no value although the battery is there."""
    return (
        "power and energy are told only while the battery alone feeds the machine",
        "unplug the charger and wait 60 s.",
    )
