"""Supply rails of NVIDIA Jetson boards in W: the INA3221 monitors, and the INA238 of the AGX Thor.

hwmon gives each rail's voltage (mV) and current (mA); the older iio driver (JetPack 4) gives power (mW). Numbers of
chips and of channels change between boots and boards: a rail is found by its label. Unused inputs are labelled ``NC``,
and the last one is a sum of *shunt voltages*, no rail.

Rails are nested: VDD_IN is the module's whole input and contains VDD_CPU_GPU_CV and VDD_SOC. Which rails add up to the
module differs from board to board, so it comes from the device profile, or else from the sets known below; where
neither knows the rails, none is a total, and nothing is summed. Everything is measured at the module: carrier board,
fan and converter losses are outside (VIN of the Thor is on the carrier: the whole board).

Registers are read over I2C, some 0.55 ms each, and the shunt's step is 8 mA (Orin NX and Nano) to 20 mA (AGX Orin): a
rail may honestly read 0 W, the total of a running board may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from edgebench.device_profile import DeviceProfile, Rail
from edgebench.host import Host
from edgebench.kerneltext import channel_part, natural, read_scaled
from edgebench.records import Channel

Reader = Callable[[], float | None]

_CLOSED = "bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/*_input"
_NO_RAILS = frozenset({"NC", "sum of shunt voltages"})
_TOTALS: tuple[frozenset[str], ...] = (
    frozenset({"VDD_IN"}),  # Xavier NX, Orin Nano, Orin NX; TX2
    frozenset({"POM_5V_IN"}),  # Nano
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),  # AGX Orin: VIN_SYS_5V0 feeds I/O and memory, not the rest
    frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),  # AGX Xavier
)
"""Sets of rails that add up to the module."""


class RailSensor:
    """Gauges ``ina3221.<label>`` in W, one per rail."""

    name = "ina3221"
    period_s = 0.1

    def __init__(self, rails: Sequence[tuple[Channel, Reader]]) -> None:
        self._rails = tuple(rails)

    def channels(self) -> Sequence[Channel]:
        """One gauge per rail, by label."""
        return tuple(channel for channel, _ in self._rails)

    def read(self) -> Sequence[float | None]:
        """Power now. A total of 0 W and a negative current are missing values."""
        values = [read() for _, read in self._rails]
        return [
            value if value is not None and (value > 0 or (value == 0 and channel.part_of)) else None
            for (channel, _), value in zip(self._rails, values, strict=True)
        ]


def _hwmon_rails(host: Host) -> Iterator[tuple[str, Reader]]:
    """INA3221 by the mainline driver: ``inN_label``, ``inN_input``, ``currN_input``."""
    chips = host.glob(host.sys("bus/i2c/drivers"), "ina3221/*/hwmon/hwmon*") or [
        chip
        for chip in host.glob(host.sys("class/hwmon"), "hwmon*")
        if host.try_read(chip / "name") in {"ina3221", "ina3221x"}
    ]
    for chip in chips:
        for label_file in sorted(host.glob(chip, "in*_label"), key=natural):
            number = label_file.name.removeprefix("in").removesuffix("_label")
            label = host.try_read(label_file)
            if label and number.isdecimal():
                yield label, _product(host, chip / f"in{number}_input", chip / f"curr{number}_input")


def _iio_rails(host: Host) -> Iterator[tuple[str, Reader]]:
    """INA3221 by NVIDIA's older driver: ``rail_name_K``, ``in_powerK_input`` or voltage and current."""
    for chip in host.glob(host.sys("bus/i2c/drivers"), "ina3221x/*/iio:device*"):
        for label_file in sorted(host.glob(chip, "rail_name_*"), key=natural):
            number = label_file.name.removeprefix("rail_name_")
            label = host.try_read(label_file)
            if not label or not number.isdecimal():
                continue
            power = chip / f"in_power{number}_input"
            if power.exists():
                yield label, _scaled(host, power, 1e-3)
            else:
                yield label, _product(host, chip / f"in_voltage{number}_input", chip / f"in_current{number}_input")


def _thor_rails(host: Host) -> Iterator[tuple[str, Reader]]:
    """INA238 at the input of a Jetson's carrier board: ``power1_input`` in uW (jetson_stats pull request 900)."""
    model = host.try_read(host.sys("firmware/devicetree/base/model")) or ""
    if "Jetson" not in model:
        return  # elsewhere the chip may measure anything
    for chip in host.glob(host.sys("class/hwmon"), "hwmon*"):
        if host.try_read(chip / "name") == "ina238":
            yield "VIN", _scaled(host, chip / "power1_input", 1e-6)


def _scaled(host: Host, path: Path, factor: float) -> Reader:
    return lambda: read_scaled(host, path, factor)


def _product(host: Host, millivolts: Path, milliamperes: Path) -> Reader:
    def read() -> float | None:
        volts, amperes = read_scaled(host, millivolts, 1e-3), read_scaled(host, milliamperes, 1e-3)
        return None if volts is None or amperes is None or volts < 0 else volts * amperes

    return read


def _rails(host: Host) -> dict[str, Reader]:
    """Every rail once."""
    rails: dict[str, Reader] = {}
    for label, read in (*_thor_rails(host), *_hwmon_rails(host), *_iio_rails(host)):
        if label not in _NO_RAILS:
            rails.setdefault(label, read)
    return rails


def _declared(profile: DeviceProfile | None, labels: Sequence[str]) -> Mapping[str, Rail]:
    """What the profile says about these rails, else what is known about such a set of rails, else nothing."""
    if profile is not None and profile.power is not None:
        told = {rail.label: rail for rail in profile.power.rails}
        totals = [rail for rail in told.values() if rail.total]
        if totals and all(rail.label in labels for rail in totals):
            return told
    if "VIN" in labels:
        return {"VIN": Rail(label="VIN", scope="dc_input", total=True)}
    for total in _TOTALS:
        if total <= set(labels):
            return {label: Rail(label=label, scope="module", total=True) for label in total}
    return {}


def detect(host: Host, profile: DeviceProfile | None) -> RailSensor | None:
    """The sensor where at least one labelled rail exists."""
    rails = _rails(host)
    declared = _declared(profile, list(rails))
    totals = "+".join(f"ina3221.{channel_part(rail.label)}" for rail in declared.values() if rail.total)
    found = []
    for label, read in rails.items():
        rail = declared.get(label, Rail(label=label, scope="component"))
        name = f"ina3221.{channel_part(label)}"
        part_of = "" if rail.total else totals or "rails that no profile adds up"
        found.append((Channel(name=name, unit="W", kind="gauge", scope=rail.scope, part_of=part_of), read))
    return RailSensor(found) if found else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    if "Jetson" in (host.try_read(host.sys("firmware/devicetree/base/model")) or ""):
        return "no INA3221 is visible on this Jetson", "on the board itself: sudo modprobe ina3221"
    return "this board has no INA3221", ""


def unreadable(host: Host) -> tuple[str, str]:
    """Why rails that were found give no value, and the exact remedy."""
    return (
        "the rails are there, but closed to this user or without a value now",
        f"sudo chmod a+r {Host().sys(_CLOSED)}",
    )
