"""What every sensor must do, on an empty machine, on a damaged one and on this one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edgebench import registry
from edgebench.device_profile import DeviceProfile, Match
from edgebench.host import Host

UNITS = {"W", "J", "C", "Hz", "bytes", "s", "events", "1"}
SENSORS = registry.names("sensors")

# Every file that a sensor looks for, so that one damaged tree reaches all of them.
EVERYTHING = {
    "proc/meminfo": "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n",
    "proc/stat": "cpu  100 0 50 900 3 1 2 4 0 0\n",
    "proc/vmstat": "pswpin 1\npswpout 2\npgmajfault 3\n",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=13826997\n",
    "proc/cpuinfo": "processor : 0\ncpu MHz : 2000.5\n\n",
    "proc/77/status": "Name:\tx\nVmRSS:\t 300 kB\nRssAnon:\t 100 kB\nRssFile:\t 200 kB\nVmSwap:\t 0 kB\n",
    "proc/77/stat": "77 (a (b) c) S 1 1 1 0 -1 4194304 10 0 0 0 200 100 0 0 20 0 1 0 5 0 0",
    "proc/self/cgroup": "4:memory:/\n",
    "proc/77/cgroup": "4:memory:/\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "4096\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "5\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_total_time_ms": "70\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "47500\n",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/uevent": "POWER_SUPPLY_STATUS=Discharging\nPOWER_SUPPLY_POWER_NOW=19195000\n"
    "POWER_SUPPLY_ENERGY_NOW=32940000\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "commands/cat watts.txt": "4.2 W\n",
    "commands/vcgencmd measure_clock arm": "frequency(48)=1500345728\n",
    "commands/powermetrics --samplers cpu_power,gpu_power -n 1 -i 500": "CPU Power: 947 mW\nCombined Power: 1100 mW\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "52649883221\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_input": "4960\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input": "960\n",
    "sys/class/hwmon/hwmon5/name": "powerz\n",
    "sys/class/hwmon/hwmon5/in0_input": "5090\n",
    "sys/class/hwmon/hwmon5/curr1_input": "1400\n",
    "sys/class/hwmon/hwmon6/name": "power_meter\n",
    "sys/class/hwmon/hwmon6/power1_average": "42000000\n",
    "commands/vcgencmd pmic_read_adc": " VDD_CORE_A current(7)=6.22421000A\n VDD_CORE_V volt(15)=0.86173300V\n",
    "commands/nvml": '[{"energy_mj": 5, "instant_mw": 11170, "temperature_c": 35, "memory_process_bytes": 7}]\n',
}
NAMED = DeviceProfile(id="named", title="a board with a meter", match=Match(), attached_meter="command:cat watts.txt")
"""A meter is there because somebody says so; everything else is found."""
NAMES_AND_TYPES = re.compile(r"(type|name|label|cgroup)$")


def tree(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


def detect(name, host):
    return registry.load("sensors", name).detect(host, NAMED if name == "meter" else None)


def watch(sensor, pid):
    if hasattr(sensor, "watch"):
        sensor.watch(pid)


HERE = {name: sensor for name in SENSORS if (sensor := detect(name, Host())) is not None}
"""The sensors of this machine: the memory and the kernel's counters everywhere, others where there is hardware."""


@pytest.mark.parametrize("name", SENSORS)
def test_an_empty_machine_has_no_such_sensor(name, tmp_path):
    assert registry.load("sensors", name).detect(Host(tmp_path), None) is None


@pytest.mark.parametrize("name", SENSORS)
def test_channels_are_unique_carry_the_sensors_name_and_a_known_unit(name, tmp_path):
    for host in (tree(tmp_path, EVERYTHING), Host()):
        sensor = detect(name, host)
        if sensor is None:
            continue
        channels = sensor.channels()
        assert sensor.name == name
        assert sensor.period_s > 0
        assert channels
        assert len({channel.name for channel in channels}) == len(channels)
        for channel in channels:
            assert channel.name.startswith(f"{name}.")
            assert channel.unit in UNITS
            assert (channel.scope is not None) == (channel.unit in {"W", "J"})


@pytest.mark.parametrize("name", SENSORS)
def test_a_reading_has_one_value_per_channel(name, tmp_path):
    for host, pid in ((tree(tmp_path, EVERYTHING), 77), (Host(), os.getpid())):
        sensor = detect(name, host)
        if sensor is not None:
            watch(sensor, pid)
            assert len(sensor.read()) == len(sensor.channels())


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "N/A",
        "-",
        "\0\0",
        "9" * 5000,
        "cpu x\nsome total=\n: kB",
        "\xff\xfe",
        "MemAvailable: " + "9" * 5000 + " kB",
        "pswpin " + "9" * 5000,
    ],
)
@pytest.mark.parametrize("name", SENSORS)
def test_a_damaged_file_is_a_missing_value_and_never_an_error(name, damage, tmp_path):
    host = tree(tmp_path, EVERYTHING)
    sensor = detect(name, host)
    assert sensor is not None, "give EVERYTHING the files that this sensor looks for"
    for file in EVERYTHING:
        if not NAMES_AND_TYPES.search(file):
            (tmp_path / file).write_bytes(damage.encode("latin-1"))
    watch(sensor, 77)
    values = sensor.read()
    assert len(values) == len(sensor.channels())
    assert all(value is None for value in values), values
    damaged = detect(name, host)  # and a machine that is damaged from the start
    if damaged is not None:
        watch(damaged, 77)
        assert all(value is None for value in damaged.read())
    for file in EVERYTHING:
        (tmp_path / file).write_bytes(damage.encode("latin-1"))
    detect(name, host)  # types and names damaged too: no exception


@pytest.mark.parametrize("name", SENSORS)
def test_files_that_vanish_after_detection_are_missing_values(name, tmp_path):
    sensor = detect(name, tree(tmp_path, EVERYTHING))
    assert sensor is not None, "give EVERYTHING the files that this sensor looks for"
    watch(sensor, 77)
    for file in EVERYTHING:
        (tmp_path / file).unlink()
    assert all(value is None for value in sensor.read())


@pytest.mark.parametrize("name", SENSORS)
def test_a_directory_in_the_place_of_a_file_is_a_missing_value(name, tmp_path):
    sensor = detect(name, tree(tmp_path, EVERYTHING))
    assert sensor is not None, "give EVERYTHING the files that this sensor looks for"
    watch(sensor, 77)
    for file in EVERYTHING:
        (tmp_path / file).unlink()
        (tmp_path / file).mkdir()
    assert all(value is None for value in sensor.read())


@pytest.mark.parametrize("name", HERE)
def test_counters_never_fall_on_this_machine(name):
    sensor = HERE[name]
    watch(sensor, os.getpid())
    readings = [sensor.read() for _ in range(20)]
    for index, channel in enumerate(sensor.channels()):
        values = [reading[index] for reading in readings if reading[index] is not None]
        if channel.kind == "counter":
            assert values == sorted(values), channel.name


@pytest.mark.parametrize("name", [name for name, sensor in HERE.items() if hasattr(sensor, "watch")])
def test_a_process_that_is_gone_gives_missing_values(name):
    sensor = HERE[name]
    sensor.watch(2**22 + 1)  # above the largest pid that Linux gives out
    assert any(value is None for value in sensor.read())
    sensor.watch(None)
    assert any(value is None for value in sensor.read())
