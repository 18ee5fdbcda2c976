"""Power meters that the kernel shows as hwmon chips, and that are known: in W, or in J where they count energy.

A hwmon chip may measure anything, so only chips on a list are read, each with what it covers (kernel documentation,
hwmon/): the ACPI power meter (the machine's supply), Corsair's power supplies, the USB-C meter POWER-Z KM003C (voltage
and current of what is plugged through it), AMD's GPU driver (a card; of a processor with graphics the whole processor,
which RAPL counts as well), and rails that the device profile names by their label. hwmon numbers change between boots;
chips are found by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from edgebench.device_profile import DeviceProfile, Rail
from edgebench.host import Host
from edgebench.kerneltext import channel_part, natural, read_scaled
from edgebench.records import Channel
from edgebench.specs import Scope

Reader = Callable[[], float | None]
Source = tuple[float, Channel, Reader]
"""Useful period in s, channel, reader."""

_RAIL_CHIPS = frozenset({"ina3221", "ina3221x"})  # read by the sensor of that name


class MeterSensor:
    """Gauges ``hwmon.<chip>.<what>`` in W, counters in J."""

    name = "hwmon"

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self.period_s = min(period for period, _, _ in sources)

    def channels(self) -> Sequence[Channel]:
        """In the order of the chips."""
        return tuple(channel for _, channel, _ in self._sources)

    def read(self) -> Sequence[float | None]:
        """Values now; 0 W and negative power are missing values, because a part that runs takes some."""
        values = [read() for _, _, read in self._sources]
        return [value if value is not None and value > 0 else None for value in values]


def _chip(host: Host, chip: Path, name: str) -> Iterator[Source]:
    """The channels of one chip on the list."""
    if name == "power_meter" and host.try_read(chip / "power1_is_battery") != "1":
        file = chip / "power1_average"
        interval = read_scaled(host, chip / "power1_average_interval", 1e-3)
        channel = Channel(name="power", unit="W", kind="gauge", scope="wall_ac", update_s=interval or 1.0)
        yield 1.0, channel, _scaled(host, file, 1e-6)
    elif name == "corsairpsu":
        channel = Channel(name="power_total", unit="W", kind="gauge", scope="dc_input")
        yield 0.5, channel, _scaled(host, chip / "power1_input", 1e-6)
    elif name == "powerz":
        channel = Channel(name="vbus", unit="W", kind="gauge", scope="dc_input")
        yield 0.1, channel, _product(host, chip / "in0_input", chip / "curr1_input")
    elif name == "amdgpu":
        # Only processors with graphics have a northbridge voltage (kernel documentation, gpu/amdgpu/thermal).
        integrated = host.try_read(chip / "in1_label") == "vddnb"
        scope: Scope = "cpu_package" if integrated else "gpu_board"
        for power in [chip / file for file in ("power1_average", "power1_input") if (chip / file).exists()][:1]:
            yield 0.1, Channel(name="ppt", unit="W", kind="gauge", scope=scope), _scaled(host, power, 1e-6)


def _declared(host: Host, chip: Path, rails: Sequence[Rail]) -> Iterator[Source]:
    """Power and energy inputs of any other chip whose label is a rail of the profile."""
    told = {rail.label: rail for rail in rails}
    for label_file in sorted([*host.glob(chip, "power*_label"), *host.glob(chip, "energy*_label")], key=natural):
        rail = told.get(host.try_read(label_file) or "")
        if rail is None:
            continue
        stem = label_file.name.removesuffix("_label")
        counts = stem.startswith("energy")
        channel = Channel(
            name=channel_part(rail.label),
            unit="J" if counts else "W",
            kind="counter" if counts else "gauge",
            scope=rail.scope,
            part_of="" if rail.total else "the rails that the profile sums",
        )
        yield 0.1, channel, _scaled(host, chip / f"{stem}_input", 1e-6)


def _scaled(host: Host, path: Path, factor: float) -> Reader:
    return lambda: read_scaled(host, path, factor)


def _product(host: Host, millivolts: Path, milliamperes: Path) -> Reader:
    def read() -> float | None:
        volts, amperes = read_scaled(host, millivolts, 1e-3), read_scaled(host, milliamperes, 1e-3)
        return None if volts is None or amperes is None or volts < 0 else volts * amperes

    return read


def detect(host: Host, profile: DeviceProfile | None) -> MeterSensor | None:
    """The sensor where a chip on the list, or a rail of the profile, exists. A second chip of a name gets ``.2``."""
    rails = profile.power.rails if profile is not None and profile.power is not None else ()
    sources: dict[str, Source] = {}
    for chip in sorted(host.glob(host.sys("class/hwmon"), "hwmon*"), key=natural):
        name = host.try_read(chip / "name")
        if not name or name in _RAIL_CHIPS:
            continue
        for period, channel, read in (*_chip(host, chip, name), *_declared(host, chip, rails)):
            number, unique = 1, f"hwmon.{channel_part(name)}.{channel.name}"
            while unique in sources:
                number += 1
                unique = f"hwmon.{channel_part(name)}.{number}.{channel.name}"
            sources[unique] = (period, msgspec.structs.replace(channel, name=unique), read)
    return MeterSensor(list(sources.values())) if sources else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here; nothing needs to be done."""
    return "no power meter among the sensor chips (ACPI, corsairpsu, POWER-Z, amdgpu)", ""
