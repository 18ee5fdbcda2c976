"""What can be measured here: each sensor is detected and read once, and energy says why it is absent."""

from __future__ import annotations

from edgebench import registry
from edgebench.doctor.checks import Check, Section
from edgebench.host import Host, Unavailable
from edgebench.provenance import virtualization
from edgebench.sensors.base import Sensor
from edgebench.specs import DeviceProfile
from edgebench.topology import Topology

_SHOWN = 6


def examine_sensors(host: Host, topology: Topology, profile: DeviceProfile) -> Section:
    """One check for each sensor, then one for energy."""
    checks, has_energy = [], False
    for name in registry.names("sensors"):
        module = registry.load("sensors", name)
        sensor = module.detect(host, profile)
        if sensor is None:
            explain = getattr(module, "absent", None)
            why, fix = explain(host) if explain is not None else (f"nothing here answers to {name}", "")
            checks.append(Check(name=name, state="missing", says=why, fix=fix))
            continue
        has_energy = has_energy or any(channel.unit in {"J", "W"} for channel in sensor.channels())
        checks.append(_reading(name, sensor))
    if not has_energy:
        checks.append(_no_energy(host, topology))
    return Section(title="What can be measured", checks=tuple(checks))


def _reading(name: str, sensor: Sensor) -> Check:
    """Channels that answer now. Those of a watched process are silent until one is watched: no fault of theirs."""
    channels, values = sensor.channels(), sensor.read()
    if hasattr(sensor, "watch"):
        answering = [channel.name for channel in channels]
    else:
        answering = [channel.name for channel, value in zip(channels, values, strict=True) if value is not None]
    silent = len(channels) - len(answering)
    if not answering:
        says = f"found, but none of its {silent} channels gives a value"
        return Check(name=name, state="warn", says=says, fix="try again as root: sudo edgebench doctor")
    shown = ", ".join(channel.removeprefix(f"{name}.") for channel in answering[:_SHOWN])
    more = f" and {len(answering) - _SHOWN} more" if len(answering) > _SHOWN else ""
    off = f"; {silent} switched off now" if silent else ""
    return Check(name=name, state="ok", says=f"{shown}{more} at {1 / sensor.period_s:g} Hz{off}")


def _no_energy(host: Host, topology: Topology) -> Check:
    """Energy is not read by this version; say what the machine would offer."""
    meter = "use a USB or wall meter; nothing is guessed in its place."
    there = _power_sources(host)
    if there:
        says = f"not measured: this machine has {' and '.join(there)}, but this version reads no energy sensor yet"
    elif virtualization(host, topology.flags).value not in {"none", None}:
        says = "not measurable: no powercap zone (RAPL) and no power rail is visible, because this is a virtual machine"
    else:
        says = "not measurable: no powercap zone (RAPL) and no power rail (INA3221, PMIC) is visible"
    return Check(name="energy", state="missing", says=says, fix=meter)


def _power_sources(host: Host) -> list[str]:
    """What on this machine could tell power or energy."""
    found = []
    if host.glob(host.sys("class/powercap"), "intel-rapl:*"):
        found.append("powercap zones (RAPL)")
    if host.glob(host.sys("bus/i2c/drivers"), "ina3221*/*"):
        found.append("INA3221 rails")
    try:
        if "current(" in host.run(["vcgencmd", "pmic_read_adc"]).stdout:
            found.append("PMIC rails (Raspberry Pi 5)")
    except Unavailable:
        pass  # no such tool: no such rails
    return found
