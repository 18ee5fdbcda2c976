"""On every captured machine: the right channels of power and energy, the right source, and never an exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgebench import registry
from edgebench.analysis.energy_source import EnergySource, choose
from edgebench.host import Host, Unavailable

TREES = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parents[1] / "trees").glob("*.json")}
SENSORS = registry.names("sensors")

# For each machine: what is read (W, or J of the counter), and the channels that are its energy.
MACHINES = {
    "macbook-air-m1": ({"apple.soc": 1.1}, ("apple.soc",), "soc_compute", "gauge"),
    "mac-newer-system": ({"apple.soc": 2.32}, ("apple.soc",), "soc_compute", "gauge"),
    "raspberry-pi-5": ({"pmic.board": 7.2398}, ("pmic.board",), "board_rails", "gauge"),
    "jetson-orin-nano": ({"ina3221.VDD_IN": 4.7616}, ("ina3221.VDD_IN",), "module", "gauge"),
    "jetson-agx-orin": (
        {"ina3221.VDD_GPU_SOC": 5.1468, "ina3221.VDD_CPU_CV": 3.2789, "ina3221.VIN_SYS_5V0": 5.4996},
        ("ina3221.VDD_GPU_SOC", "ina3221.VDD_CPU_CV", "ina3221.VIN_SYS_5V0"),
        "module",
        "gauge",
    ),
    "jetson-nano": ({"ina3221.POM_5V_IN": 0.933}, ("ina3221.POM_5V_IN",), "module", "gauge"),
    "jetson-agx-thor": ({"ina3221.VIN": 34.12}, ("ina3221.VIN",), "dc_input", "gauge"),
    "laptop-i5-1340p": (
        {"rapl.psys": 117870.082, "rapl.package-0": 52649.883, "battery.power": 19.195},
        ("rapl.psys",),
        "psys",
        "counter",
    ),
    "laptop-charging": ({"rapl.package-0": 52649.883}, ("rapl.package-0",), "cpu_package", "counter"),
    "desktop-i5-13500": ({"rapl.package-0": 65997.277}, ("rapl.package-0",), "cpu_package", "counter"),
    "desktop-threadripper-mirrored-dies": (
        {"rapl.package-0-die-0": 41233.890},
        ("rapl.package-0-die-0",),
        "cpu_package",
        "counter",
    ),
    "desktop-ryzen-two-gpus": (
        {"rapl.package-0": 64930.874, "hwmon.amdgpu.ppt": 85.043, "nvml.gpu0.power": 12.73},
        ("rapl.package-0",),
        "cpu_package",
        "counter",
    ),
    "server-xeon-two-sockets": (
        {"rapl.package-1": 99011.668, "rapl.package-1.dram": 11567.223},
        ("rapl.package-0", "rapl.package-1", "rapl.package-0.dram", "rapl.package-1.dram"),
        "cpu_package+dram",
        "counter",
    ),
}
DAMAGE = ["", "N/A", "nan", "-5000", "9" * 5000, "\0", "1.5e400", 'error=1 error_msg="Command not registered"']
LABELS = ("name", "label", "type", "model", "_name_0", "_name_1", "_name_2", "cpumask", "scale", "unit", "machine")


def written(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


def detected(host):
    found = (registry.load("sensors", name).detect(host, None) for name in SENSORS)
    return [sensor for sensor in found if sensor is not None]


def channels_of(sensors):
    return [channel for sensor in sensors for channel in sensor.channels()]


def values_of(sensors) -> dict[str, float | None]:
    return {
        channel.name: value
        for sensor in sensors
        for channel, value in zip(sensor.channels(), sensor.read(), strict=True)
    }


def is_power(channel) -> bool:
    return channel.unit in {"W", "J"}


class Faulty(Host):
    """Measured values below power's folders fail with one reason; names and labels stay readable, as on a device."""

    def __init__(self, root: Path, reason: str, measured: set[str]) -> None:
        super().__init__(root)
        self._reason, self._measured = reason, measured

    def read(self, path: Path) -> str:
        if str(path.relative_to(self.root)) in self._measured:
            raise Unavailable(str(path), self._reason)
        return super().read(path)


def measured_files(name: str) -> set[str]:
    """Files of a tree that hold values, not names."""
    folders = ("powercap", "hwmon", "iio:device", "power_supply", "commands/")
    return {file for file in TREES[name] if any(f in file for f in folders) and not file.endswith(LABELS)}


def test_every_tree_is_tested():
    assert set(TREES) == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_the_right_values_and_the_right_primary_source(name, tmp_path):
    read, primary, scope, method = MACHINES[name]
    sensors = detected(written(tmp_path, TREES[name]))
    values = values_of(sensors)
    assert {key: values[key] for key in read} == pytest.approx(read, rel=1e-4)
    source = choose(channels_of(sensors), {key for key, value in values.items() if value is not None})
    assert isinstance(source, EnergySource), source
    assert set(source.channels) == set(primary)
    assert (source.scope, source.method) == (scope, method)


@pytest.mark.parametrize("name", MACHINES)
def test_every_channel_of_power_is_the_primary_source_or_has_a_reason(name, tmp_path):
    sensors = detected(written(tmp_path, TREES[name]))
    source = choose(channels_of(sensors), {key for key, value in values_of(sensors).items() if value is not None})
    told = {channel for other in source.others for channel in other.channels} | set(source.channels)
    assert told == {channel.name for channel in channels_of(sensors) if is_power(channel)}
    assert all(other.why for other in source.others)


@pytest.mark.parametrize("name", MACHINES)
def test_power_is_positive_and_counters_say_where_they_wrap(name, tmp_path):
    sensors = detected(written(tmp_path, TREES[name]))
    values = values_of(sensors)
    for channel in filter(is_power, channels_of(sensors)):
        assert channel.scope is not None
        assert channel.kind == ("counter" if channel.unit == "J" else "gauge")
        value = values[channel.name]
        assert value is None or value > 0 or channel.part_of or channel.name == "battery.drawn"
        if channel.wrap is not None and value is not None:
            assert value < channel.wrap
        if channel.name.startswith("rapl."):
            assert channel.wrap


@pytest.mark.parametrize(
    "reason", ["permission denied", "does not exist here", "has no data now", "is switched off now"]
)
@pytest.mark.parametrize("name", MACHINES)
def test_values_that_cannot_be_read_are_missing_and_there_is_no_source(name, reason, tmp_path):
    written(tmp_path, TREES[name])
    sensors = detected(Faulty(tmp_path, reason, measured_files(name)))
    values = values_of(sensors)
    power = [channel for channel in channels_of(sensors) if is_power(channel)]
    assert all(values[channel.name] is None for channel in power), values
    source = choose(channels_of(sensors), {key for key, value in values.items() if value is not None})
    assert not isinstance(source, EnergySource)
    assert source.why


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", MACHINES)
def test_damage_during_a_run_is_a_missing_value_and_never_zero_watts(name, damage, tmp_path):
    sensors = detected(written(tmp_path, TREES[name]))
    values_of(sensors)
    for file in measured_files(name):
        (tmp_path / file).write_text(damage)
    for key, value in values_of(sensors).items():
        power = next(channel for channel in channels_of(sensors) if channel.name == key)
        assert not is_power(power) or value is None, (key, value)


@pytest.mark.parametrize("name", MACHINES)
def test_files_that_vanish_during_a_run_are_missing_values(name, tmp_path):
    sensors = detected(written(tmp_path, TREES[name]))
    for file in measured_files(name):
        (tmp_path / file).unlink()
    power = {channel.name for channel in channels_of(sensors) if is_power(channel)}
    assert all(value is None for key, value in values_of(sensors).items() if key in power)
