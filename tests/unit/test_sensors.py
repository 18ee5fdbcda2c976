"""What each environment sensor reads on machines of different kinds."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest

from edgebench.device_profile import DeviceProfile, Match
from edgebench.host import Host
from edgebench.sensors import battery, contention, cpufreq, memory, thermal, throttle
from edgebench.sensors.base import WaitsForAnswer

TREES = Path(__file__).parents[1] / "trees"


def tree(root: Path, device: str, **changes: str | None) -> Host:
    """The tree of a device with some files changed, or removed by None."""
    files = json.loads((TREES / f"{device}.json").read_text()) | changes
    for name, text in files.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return Host(root)


def readings(sensor) -> dict[str, float | None]:
    return dict(zip((channel.name for channel in sensor.channels()), sensor.read(), strict=True))


# --- memory


def test_the_parts_of_a_process_come_from_one_status_file(tmp_path):
    status = "Name:\tllama (x)\nVmRSS:\t  3000 kB\nRssAnon:\t  1000 kB\nRssFile:\t  2000 kB\nVmSwap:\t     8 kB\n"
    sensor = memory.detect(tree(tmp_path, "raspberry-pi-5", **{"proc/42/status": status}), None)
    assert sensor is not None
    sensor.watch(42)
    values = readings(sensor)
    assert values["memory.anon"] == 1000 * 1024
    assert values["memory.file"] == 2000 * 1024
    assert values["memory.swap"] == 8 * 1024
    assert values["memory.rss"] == values["memory.anon"] + values["memory.file"]
    assert values["memory.available"] == 7601234 * 1024


def test_memory_of_the_group_is_read_where_there_is_one(tmp_path):
    host = tree(tmp_path, "raspberry-pi-5", **{"proc/42/cgroup": "0::/user.slice/user-1000.slice/session-1.scope\n"})
    sensor = memory.detect(host, None)
    assert sensor is not None
    assert readings(sensor)["memory.cgroup"] == 204800000
    sensor.watch(42)
    assert readings(sensor)["memory.cgroup"] == 204800000


def test_without_a_memory_group_there_is_no_such_channel(tmp_path):
    sensor = memory.detect(tree(tmp_path, "laptop-i5-1340p"), None)
    assert sensor is not None
    assert "memory.cgroup" not in readings(sensor)


def test_own_memory_agrees_with_the_process_that_allocates():
    sensor = memory.detect(Host(), None)
    if sensor is None:
        pytest.skip("no procfs here")

    sensor.watch(os.getpid())
    # Pages of its own: the allocator could hand out memory that this process already holds.
    with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        before = readings(sensor)["memory.anon"]
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        grown = readings(sensor)["memory.anon"]
    assert before is not None
    assert grown is not None
    assert 30 << 20 < grown - before < 40 << 20


# --- contention


def test_busy_time_is_in_seconds_and_leaves_out_idle_guest_and_stolen_time(tmp_path):
    line = "cpu  100 20 50 900 30 1 2 40 7 3\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    host = tree(tmp_path, "laptop-i5-1340p", **{"proc/stat": line})
    values = readings(contention.ContentionSensor(host, ("cpu",), ticks_per_s=100))
    assert values["contention.busy"] == pytest.approx(1.73)
    assert values["contention.steal"] == pytest.approx(0.40)
    assert values["contention.psi_cpu"] == pytest.approx(13.826997)
    assert values["contention.pgmajfault"] == 1042


def test_pressure_channels_exist_only_where_the_kernel_has_them(tmp_path):
    sensor = contention.detect(tree(tmp_path, "raspberry-pi-5"), None)
    assert sensor is not None
    assert not [name for name in readings(sensor) if "psi" in name]


def test_own_cpu_time_survives_a_process_name_with_spaces_and_parentheses(tmp_path):
    stat = "42 (a) b (c)) R 1 1 1 0 -1 4194304 10 0 0 0 250 150 9 9 20 0 4 0 5 0 0"
    host = tree(tmp_path, "raspberry-pi-5", **{"proc/42/stat": stat})
    sensor = contention.ContentionSensor(host, (), ticks_per_s=100)
    assert readings(sensor)["contention.own_cpu"] is None
    sensor.watch(42)
    assert readings(sensor)["contention.own_cpu"] == pytest.approx(4.0)


# --- clock


def test_each_frequency_domain_has_a_channel_in_hz(tmp_path):
    sensor = cpufreq.detect(tree(tmp_path, "laptop-i5-1340p"), None)
    assert sensor is not None
    values = readings(sensor)
    assert list(values)[:3] == ["cpufreq.policy0", "cpufreq.policy1", "cpufreq.policy2"]
    assert values["cpufreq.policy10"] == 1.41e9


def test_without_a_driver_the_clock_of_cpuinfo_has_a_name_of_its_own(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\ncpu MHz : 2000.0\n\nprocessor: 1\ncpu MHz : 3000.0\n")
    sensor = cpufreq.detect(Host(tmp_path), None)
    assert sensor is not None
    assert readings(sensor) == {"cpufreq.cpuinfo": 2.5e9}


# --- temperature


def test_zones_of_equal_type_are_numbered_and_chips_carry_their_labels(tmp_path):
    sensor = thermal.detect(tree(tmp_path, "laptop-i5-1340p"), None)
    assert sensor is not None
    assert readings(sensor) == {
        "thermal.acpitz": pytest.approx(27.8),
        "thermal.acpitz.2": pytest.approx(29.8),
        "thermal.x86_pkg_temp": pytest.approx(51.0),
        "thermal.coretemp.Package_id_0": pytest.approx(51.0),
        "thermal.coretemp.Core_0": pytest.approx(49.0),
    }


def test_a_zone_that_is_switched_off_is_missing_and_not_256_degrees_of_frost(tmp_path):
    sensor = thermal.detect(tree(tmp_path, "jetson-orin-nano"), None)
    assert sensor is not None
    values = readings(sensor)
    assert values["thermal.cv0-thermal"] is None
    assert values["thermal.tj-thermal"] == pytest.approx(47.5)


# --- throttling


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x0, ()),
        (0x50000, ("under-voltage since boot", "throttled since boot")),
        (
            0x50005,
            ("under-voltage now", "throttled now", "under-voltage since boot", "throttled since boot"),
        ),
        (0xA, ("frequency capped now", "soft temperature limit now")),
    ],
)
def test_the_bits_of_a_raspberry_pi_in_words(bits, words):
    assert throttle.decode_pi_bits(bits) == words


def test_a_raspberry_pi_5_answers_through_the_firmwares_tool(tmp_path):
    sensor = throttle.detect(tree(tmp_path, "raspberry-pi-5"), None)
    assert sensor is not None
    assert readings(sensor) == {"throttle.pi_bits": 0x50000}  # and no fan among the cooling devices


def test_a_raspberry_pi_4_answers_through_the_kernels_copy_in_hexadecimal_without_prefix(tmp_path):
    changes = {
        "commands/vcgencmd get_throttled": None,
        "sys/devices/platform/soc/soc:firmware/get_throttled": "f5fff5\n",
    }
    sensor = throttle.detect(tree(tmp_path, "raspberry-pi-5", **changes), None)
    assert sensor is not None
    assert readings(sensor) == {"throttle.pi_bits": 0x50005}  # bits of no documented meaning are masked


def test_a_raspberry_pi_tells_its_real_clock_and_is_asked_beside_the_other_sensors(tmp_path):
    changes = {"commands/vcgencmd measure_clock arm": "frequency(48)=1500345728\n"}
    sensor = throttle.detect(tree(tmp_path, "raspberry-pi-5", **changes), None)
    assert isinstance(sensor, WaitsForAnswer)
    assert readings(sensor) == {"throttle.pi_bits": 0x50000, "throttle.pi_clock": 1500345728}
    assert not isinstance(throttle.detect(tree(tmp_path / "laptop", "laptop-i5-1340p"), None), WaitsForAnswer)


def test_a_profile_that_expects_the_flags_gets_the_channel_even_when_they_cannot_be_read(tmp_path):
    host = tree(tmp_path, "raspberry-pi-5", **{"commands/vcgencmd get_throttled": "error=1"})
    assert throttle.detect(host, None) is None
    sensor = throttle.detect(host, DeviceProfile(id="x", title="x", match=Match(), throttle="raspberry-pi"))
    assert sensor is not None
    assert readings(sensor) == {"throttle.pi_bits": None}


def test_intel_counts_each_core_and_each_package_once(tmp_path):
    sensor = throttle.detect(tree(tmp_path, "laptop-i5-1340p"), None)
    assert sensor is not None
    values = readings(sensor)
    assert values["throttle.core_events"] == 3  # both threads of one core show the same counter
    assert values["throttle.core_time"] == pytest.approx(0.040)
    assert values["throttle.package_events"] == 12
    assert values["throttle.package_time"] == pytest.approx(0.250)


def test_an_idle_power_clamp_is_state_zero(tmp_path):
    sensor = throttle.detect(tree(tmp_path, "laptop-i5-1340p"), None)
    assert sensor is not None
    assert readings(sensor)["throttle.cooling.intel_powerclamp.9"] == 0
    assert readings(sensor)["throttle.cooling.Processor.0"] == 0


# --- battery


@pytest.mark.parametrize(
    ("status", "online", "discharging"),
    [
        ("Discharging", "0", 1),
        ("Discharging", "1", 1),  # a charger that is too weak
        ("Charging", "1", 0),
        ("Not charging", "1", 0),
        ("Full", "1", 0),
        ("Unknown", "0", 1),
        ("Unknown", "1", 0),
        ("Unknown", "", None),
    ],
)
def test_whether_the_battery_feeds_the_machine(status, online, discharging, tmp_path):
    supply = "sys/class/power_supply"
    changes = {f"{supply}/BAT0/uevent": None, f"{supply}/BAT0/status": status, f"{supply}/AC/online": online}
    sensor = battery.detect(tree(tmp_path, "laptop-i5-1340p", **changes), None)
    assert sensor is not None
    values = readings(sensor)
    assert values["battery.discharging"] == discharging
    assert values["battery.ac_online"] == (int(online) if online else None)


def test_the_battery_of_a_mouse_is_not_the_machines(tmp_path):
    changes = {f"sys/class/power_supply/BAT0/{file}": None for file in ("type", "status")}
    assert battery.detect(tree(tmp_path, "laptop-i5-1340p", **changes), None) is None
