"""What can be measured here: each sensor is detected and read once, and says why it is absent or silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from edgebench import registry
from edgebench.device_profile import DeviceProfile
from edgebench.doctor.checks import Check, Section
from edgebench.host import Host
from edgebench.records import Channel
from edgebench.sensors.base import Sensor

_SHOWN = 6


@dataclass(frozen=True)
class Sensed:
    """One member of the family ``sensors`` on this machine, and one reading of it."""

    name: str
    module: ModuleType
    sensor: Sensor | None
    channels: tuple[Channel, ...] = ()
    values: tuple[float | None, ...] = ()

    @property
    def answering(self) -> tuple[str, ...]:
        """Channels that give a value now."""
        return tuple(
            channel.name for channel, value in zip(self.channels, self.values, strict=True) if value is not None
        )

    def explain(self, host: Host, hook: str, otherwise: str, fix: str = "") -> tuple[str, str]:
        """Why there is no sensor (``absent``) or no value (``unreadable``), and the exact remedy, where it knows."""
        ask = getattr(self.module, hook, None)
        says, remedy = ask(host) if ask is not None else (otherwise, fix)
        return str(says), str(remedy)


def sense(host: Host, profile: DeviceProfile) -> tuple[Sensed, ...]:
    """Detect and read every sensor once."""
    found = []
    for name in registry.names("sensors"):
        module = registry.load("sensors", name)
        sensor: Sensor | None = module.detect(host, profile)
        if sensor is None:
            found.append(Sensed(name, module, None))
        else:
            found.append(Sensed(name, module, sensor, tuple(sensor.channels()), tuple(sensor.read())))
    return tuple(found)


def examine_sensors(host: Host, sensed: Sequence[Sensed]) -> Section:
    """One check for each sensor."""
    checks = []
    for one in sensed:
        if one.sensor is None:
            why, fix = one.explain(host, "absent", f"nothing here answers to {one.name}")
            checks.append(Check(name=one.name, state="missing", says=why, fix=fix))
        else:
            checks.append(_reading(host, one, one.sensor))
    return Section(title="What can be measured", checks=tuple(checks))


def _reading(host: Host, one: Sensed, sensor: Sensor) -> Check:
    """Channels that answer now. Those of a watched process are silent until one is watched: no fault of theirs."""
    watched = hasattr(sensor, "watch")
    answering = tuple(channel.name for channel in one.channels) if watched else one.answering
    silent = len(one.channels) - len(answering)
    if not answering:
        says = f"found, but none of its {silent} channels gives a value"
        why, fix = one.explain(host, "unreadable", "", "try again as root: sudo edgebench doctor")
        return Check(name=one.name, state="warn", says=f"{says}: {why}" if why else says, fix=fix)
    shown = ", ".join(name.removeprefix(f"{one.name}.") for name in answering[:_SHOWN])
    more = f" and {len(answering) - _SHOWN} more" if len(answering) > _SHOWN else ""
    off = f"; {silent} switched off now" if silent else ""
    return Check(name=one.name, state="ok", says=f"{shown}{more} at {1 / sensor.period_s:g} Hz{off}")
