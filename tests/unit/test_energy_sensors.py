"""What each sensor of power and energy reads, and what it refuses to believe."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from edgebench.cards import read_device_profile
from edgebench.device_profile import DeviceProfile, Match, PowerHints, Rail
from edgebench.host import Host
from edgebench.sensors import _nvml_library, _rapl_perf, battery, hwmon, ina3221, nvml, pmic, rapl

TREES = Path(__file__).parents[1] / "trees"
ZONES = "sys/class/powercap"
BAT = "sys/class/power_supply/BAT0"


def tree(root: Path, device: str = "", **changes: str | None) -> Host:
    """The tree of a device with some files changed, or removed by None."""
    files = json.loads((TREES / f"{device}.json").read_text()) if device else {}
    for name, text in (files | changes).items():
        path = root / name
        if text is None:
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


def readings(sensor) -> dict[str, float | None]:
    assert sensor is not None
    return dict(zip((channel.name for channel in sensor.channels()), sensor.read(), strict=True))


def channels(sensor):
    assert sensor is not None
    return {channel.name: channel for channel in sensor.channels()}


def profile(**power) -> DeviceProfile:
    return DeviceProfile(id="x", title="x", match=Match(), power=PowerHints(**power))


class Moving(Host):
    """A machine whose counters move with every reading: ``steps`` in uJ by zone, all zones of one step together."""

    def __init__(self, root: Path, mirrored: set[str]) -> None:
        super().__init__(root)
        self._mirrored, self._reads = mirrored, 0

    def read_int(self, path: Path) -> int:
        if path.name != "energy_uj":
            return super().read_int(path)
        self._reads += 1
        own = 0 if path.parent.name in self._mirrored else super().read_int(path)
        return 41_000_000_000 + own + 61 * self._reads


# --- what a profile declares


def test_a_profile_declares_rails_and_a_calibration_in_one_table(tmp_path):
    (tmp_path / "x.toml").write_text(
        'id = "x"\ntitle = "x"\n[match]\n[power]\n'
        'rails = [{label="VDD_IN", scope="module", total=true}]\ncalibration = [1.1451, 0.5879]\n'
    )
    power = read_device_profile(tmp_path / "x.toml").power
    assert power.rails == (Rail(label="VDD_IN", scope="module", total=True),)
    assert power.calibration == (1.1451, 0.5879)


# --- RAPL


def test_parts_are_told_from_totals_and_a_copy_of_a_package_counts_once(tmp_path):
    found = channels(rapl.detect(tree(tmp_path, "laptop-i5-1340p"), None))
    assert list(found) == ["rapl.package-0", "rapl.psys", "rapl.package-0.core", "rapl.package-0.uncore"]
    assert found["rapl.package-0.core"].part_of == "rapl.package-0"
    assert found["rapl.package-0.core"].scope == "component"
    assert found["rapl.package-0"].wrap == pytest.approx(262143.328850)
    assert found["rapl.psys"].scope == "psys"


def test_memory_is_beside_the_package_and_not_inside_it(tmp_path):
    found = channels(rapl.detect(tree(tmp_path, "server-xeon-two-sockets"), None))
    assert found["rapl.package-1.dram"].part_of == ""
    assert found["rapl.package-1.dram"].wrap == pytest.approx(65712.999613)


def test_dies_that_mirror_one_moving_counter_are_one(tmp_path):
    tree(tmp_path, "desktop-threadripper-mirrored-dies")
    host = Moving(tmp_path, {"intel-rapl:0", "intel-rapl:1"})
    assert list(channels(rapl.detect(host, None))) == ["rapl.package-0-die-0", "rapl.package-0-die-0.core"]


def test_dies_with_counters_of_their_own_are_two(tmp_path):
    other = {f"{ZONES}/intel-rapl:1/energy_uj": "52233890122\n"}
    found = channels(rapl.detect(tree(tmp_path, "desktop-threadripper-mirrored-dies", **other), None))
    assert [name for name in found if not name.endswith(".core")] == ["rapl.package-0-die-0", "rapl.package-0-die-1"]


def test_two_sockets_with_the_same_value_are_two(tmp_path):
    same = {f"{ZONES}/intel-rapl:1/energy_uj": "91233890122\n"}
    found = channels(rapl.detect(tree(tmp_path, "server-xeon-two-sockets", **same), None))
    assert {"rapl.package-0", "rapl.package-1"} <= set(found)


def test_a_value_beyond_the_range_of_the_zone_is_none(tmp_path):
    host = tree(tmp_path, "desktop-i5-13500", **{f"{ZONES}/intel-rapl:0/energy_uj": "262143328851\n"})
    assert readings(rapl.detect(host, None))["rapl.package-0"] is None


def test_without_a_range_there_is_a_counter_that_does_not_say_where_it_wraps(tmp_path):
    host = tree(tmp_path, "desktop-i5-13500", **{f"{ZONES}/intel-rapl:0/max_energy_range_uj": None})
    sensor = rapl.detect(host, None)
    assert channels(sensor)["rapl.package-0"].wrap is None
    assert readings(sensor)["rapl.package-0"] == pytest.approx(65997.277274)


class FakePerf:
    """Counters of the ``power`` PMU: what was opened, and one raw value for all."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.raw: int | None = 1 << 32
        self.opened: list[tuple[int, int, int]] = []
        self._refuses = refuses

    def __call__(self, kind: int, event: int, cpu: int) -> FakePerf | None:
        self.opened.append((kind, event, cpu))
        return None if self._refuses else self

    def read(self) -> int | None:
        return self.raw


def test_perfs_counters_are_scaled_and_never_wrap(tmp_path):
    perf = FakePerf()
    found = _rapl_perf.sources(tree(tmp_path, "desktop-i5-13500"), perf)
    assert perf.opened == [(25, 2, 0), (25, 1, 0)]
    assert {channel.name: read() for channel, read in found} == {
        "rapl.perf.package-0": 1.0,
        "rapl.perf.package-0.core": 1.0,
    }
    assert [channel.wrap for channel, _ in found] == [None, None]
    assert found[1][0].part_of == "rapl.perf.package-0"
    perf.raw = None
    assert [read() for _, read in found] == [None, None]


def test_perf_is_the_second_road_where_powercap_is_closed(tmp_path, monkeypatch):
    host = tree(
        tmp_path, "desktop-i5-13500", **{f"{ZONES}/intel-rapl:0{sub}/energy_uj": None for sub in ("", ":0", ":1")}
    )
    assert set(readings(rapl.detect(host, None)).values()) == {None}
    host.is_live = True
    monkeypatch.setattr(_rapl_perf, "open_counter", FakePerf())
    assert readings(rapl.detect(host, None))["rapl.perf.package-0"] == 1.0
    monkeypatch.setattr(_rapl_perf, "open_counter", FakePerf(refuses=True))
    assert set(readings(rapl.detect(host, None)).values()) == {None}
    why, fix = rapl.unreadable(host)
    assert "CVE-2020-8694" in why
    assert "chgrp rapl energy_uj" in fix


@pytest.mark.parametrize("file", ["type", "events/energy-pkg", "events/energy-pkg.scale", "events/energy-pkg.unit"])
def test_a_pmu_with_a_damaged_description_is_not_opened_by_guesswork(file, tmp_path):
    perf = FakePerf()
    host = tree(tmp_path, "desktop-i5-13500", **{f"sys/bus/event_source/devices/power/{file}": "N/A\n"})
    assert "rapl.perf.package-0" not in {channel.name for channel, _ in _rapl_perf.sources(host, perf)}


def test_the_kernel_refuses_a_counter_that_does_not_exist():
    assert _rapl_perf.open_counter(0xFFFF, 0, 0) is None


# --- NVML


class FakeNvml:
    """GPUs that answer from tables; a question that is missing is refused."""

    def __init__(self, *gpus: dict[str, float | None]) -> None:
        self.gpus = gpus

    def count(self) -> int:
        return len(self.gpus)

    def ask(self, gpu: int, question: str, pid: int | None = None) -> float | None:
        return None if "process" in question and pid is None else self.gpus[gpu].get(question)


def test_a_gpu_tells_energy_and_instant_power_and_not_the_mean_beside_it():
    sensor = nvml.from_answers(
        FakeNvml({"energy_mj": 5e6, "instant_mw": 12730.0, "average_mw": 12810.0, "reasons": 4.0})
    )
    assert readings(sensor) == {
        "nvml.gpu0.energy": 5000.0,
        "nvml.gpu0.power": 12.73,
        "nvml.gpu0.clocks_event_reasons": 4.0,
        "nvml.gpu0.memory_process": None,
    }
    assert channels(sensor)["nvml.gpu0.energy"].scope == "gpu_board"


def test_without_instant_power_the_mean_is_a_channel_that_says_so():
    sensor = nvml.from_answers(FakeNvml({"average_mw": 12810.0}))
    assert channels(sensor)["nvml.gpu0.power_mean_1s"].update_s == 1.0


def test_a_gpu_asked_too_fast_answers_zero_which_is_no_power():
    fake = FakeNvml({"energy_mj": 5e6, "instant_mw": 12730.0})
    sensor = nvml.from_answers(fake)
    fake.gpus = ({"energy_mj": 0.0, "instant_mw": 0.0},)
    assert set(readings(sensor).values()) == {None}


@pytest.mark.parametrize("answers", [{}, {"temperature_c": 50.0, "reasons": 1.0}])
def test_a_jetson_whose_library_refuses_power_has_no_such_sensor(answers, tmp_path):
    assert nvml.from_answers(FakeNvml(answers)) is None
    assert nvml.detect(tree(tmp_path, "jetson-orin-nano"), None) is None


def fake_pynvml(**changes) -> ModuleType:
    """The parts of nvidia-ml-py that are used; every question is refused unless it is changed."""
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def refused(*_: object):
        raise NVMLError("Not Supported")

    names = ("TotalEnergyConsumption", "PowerUsage", "Temperature", "MemoryInfo", "FieldValues")
    module.__dict__.update({f"nvmlDeviceGet{name}": refused for name in names})
    module.__dict__.update(
        NVMLError=NVMLError,
        NVML_SUCCESS=0,
        NVML_FI_DEV_POWER_INSTANT=186,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0x20,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [SimpleNamespace(pid=7, usedGpuMemory=100)],
    )
    module.__dict__.update(changes)
    return module


def field(status: int, value: int):
    return lambda _handle, _fields: [SimpleNamespace(nvmlReturn=status, value=SimpleNamespace(uiVal=value))]


def test_the_library_is_asked_question_by_question(monkeypatch):
    module = fake_pynvml(nvmlDeviceGetFieldValues=field(0, 11170), nvmlDeviceGetPowerUsage=lambda _: 11000)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    library = _nvml_library.Library()
    answers = {question: library.ask(0, question, 7) for question in nvml._QUESTIONS}
    assert answers == {
        "energy_mj": None,
        "instant_mw": 11170,
        "average_mw": 11000,
        "reasons": 0x20,
        "temperature_c": None,
        "memory_used_bytes": None,
        "memory_process_bytes": 100,
    }
    assert library.ask(0, "memory_process_bytes", 8) is None
    module.nvmlDeviceGetFieldValues = field(3, 0)  # NVML_ERROR_NOT_SUPPORTED inside a successful call
    assert library.ask(0, "instant_mw") is None


def test_without_a_driver_or_the_package_there_is_no_sensor(monkeypatch):
    def lost():
        raise module.NVMLError("Driver Not Loaded")

    module = fake_pynvml()
    module.nvmlInit = lost
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert nvml.detect(Host(), None) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.detect(Host(), None) is None


# --- Jetson


def test_unused_inputs_and_the_sum_of_shunt_voltages_are_no_rails(tmp_path):
    found = channels(ina3221.detect(tree(tmp_path, "jetson-agx-orin"), None))
    assert list(found) == [
        f"ina3221.{name}" for name in ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    ]
    assert found["ina3221.VDDQ_VDD2_1V8AO"].part_of
    assert found["ina3221.VDD_CPU_CV"].part_of == ""


def test_a_part_may_honestly_take_nothing_but_the_board_may_not(tmp_path):
    power = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input"
    sensor = ina3221.detect(tree(tmp_path, "jetson-nano"), None)
    assert readings(sensor) == {
        "ina3221.POM_5V_IN": 0.933,
        "ina3221.POM_5V_GPU": 0.0,
        "ina3221.POM_5V_CPU": 0.084,
    }
    (tmp_path / power).write_text("0\n")
    assert readings(sensor)["ina3221.POM_5V_IN"] is None


def test_the_old_driver_without_a_power_file_gives_volts_and_amperes(tmp_path):
    power = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input"
    sensor = ina3221.detect(tree(tmp_path, "jetson-nano", **{power: None}), None)
    assert readings(sensor)["ina3221.POM_5V_IN"] == pytest.approx(5.072 * 0.184)


def test_a_negative_current_is_a_missing_value(tmp_path):
    current = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"
    sensor = ina3221.detect(tree(tmp_path, "jetson-orin-nano", **{current: "-8\n"}), None)
    assert readings(sensor)["ina3221.VDD_IN"] is None


def test_rails_that_nobody_declared_are_parts_and_never_summed(tmp_path):
    label = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label"
    host = tree(tmp_path, "jetson-orin-nano", **{label: "VDD_NEW\n"})
    assert all(channel.part_of for channel in channels(ina3221.detect(host, None)).values())
    told = profile(rails=(Rail(label="VDD_NEW", scope="module", total=True),))
    declared = channels(ina3221.detect(host, told))
    assert (declared["ina3221.VDD_NEW"].scope, declared["ina3221.VDD_NEW"].part_of) == ("module", "")
    assert declared["ina3221.VDD_SOC"].part_of == "ina3221.VDD_NEW"


def test_a_profile_whose_rails_are_not_here_does_not_hide_what_is_known(tmp_path):
    told = profile(rails=(Rail(label="VDD_ELSEWHERE", scope="module", total=True),))
    found = channels(ina3221.detect(tree(tmp_path, "jetson-orin-nano"), told))
    assert found["ina3221.VDD_IN"].part_of == ""


def test_the_chip_of_a_thor_means_nothing_on_another_machine(tmp_path):
    model = "sys/firmware/devicetree/base/model"
    host = tree(tmp_path, "jetson-agx-thor", **{model: "Some Board\0"})
    assert "ina3221.VIN" not in channels(ina3221.detect(host, None))


# --- Raspberry Pi 5


def test_rails_are_paired_by_name_and_voltages_alone_are_left_out(tmp_path):
    values = readings(pmic.detect(tree(tmp_path, "raspberry-pi-5"), None))
    assert values["pmic.VDD_CORE"] == pytest.approx(5.3636, abs=1e-4)
    assert values["pmic.DDR_VDD2"] + values["pmic.DDR_VDDQ"] == pytest.approx(0.2892, abs=1e-4)
    assert values["pmic.board"] == pytest.approx(7.2398, abs=1e-4)
    assert len(values) == 13


def test_the_mailbox_separates_lines_by_zeros():
    assert pmic.parse_rails("X_A current(0)=2.5A\0X_V volt(1)=2.0V\0\0") == {"X": 5.0}


def test_a_calibration_makes_the_input_a_channel_of_its_own(tmp_path):
    sensor = pmic.detect(tree(tmp_path, "raspberry-pi-5"), profile(calibration=(1.1451, 0.5879)))
    assert channels(sensor)["pmic.input"].scope == "dc_input"
    assert readings(sensor)["pmic.input"] == pytest.approx(8.88, abs=0.005)


def test_an_answer_that_lacks_a_rail_has_no_sum(tmp_path):
    sensor = pmic.detect(tree(tmp_path, "raspberry-pi-5"), profile(calibration=(1.0, 0.5)))
    text = (tmp_path / "commands/vcgencmd pmic_read_adc").read_text()
    (tmp_path / "commands/vcgencmd pmic_read_adc").write_text(text.replace("HDMI_V", "HDMI_X"))
    values = readings(sensor)
    assert (values["pmic.board"], values["pmic.input"], values["pmic.HDMI"]) == (None, None, None)
    assert values["pmic.VDD_CORE"] is not None


def test_the_mailboxs_message_and_its_answer():
    message = pmic.request("pmic_read_adc")
    assert struct.unpack_from("=6I", message) == (len(message), 0, 0x00030080, 1024, 0, 0)
    assert message[24:38] == b"pmic_read_adc\0"
    assert message[-4:] == bytes(4)
    assert len(message) == 24 + 1024 + 4
    assert pmic._REQUEST in {0xC0086400, 0xC0046400}
    message[24:32] = b"X_A cur\0"
    assert pmic.answer(bytes(message)).startswith("X_A cur\0")
    assert pmic.answer(bytes(message[:20]) + struct.pack("=I", 1) + bytes(message[24:])) is None
    unknown = pmic.request('error=1 error_msg="Command not registered"')
    assert pmic.answer(bytes(unknown)) is None


def test_the_mailbox_is_asked_before_the_tool_and_the_second_device_after_the_first(tmp_path, monkeypatch):
    tree(tmp_path, "raspberry-pi-5", **{"dev/vcio": "x"})
    asked = []

    def ioctl(descriptor, number, message, mutate):
        asked.append(number)
        message[24 : 24 + 43] = b" X_A current(0)=2.5A\n X_V volt(1)=2.0V\n".ljust(43, b"\0")

    monkeypatch.setattr(pmic.fcntl, "ioctl", ioctl)
    host = Host(tmp_path)
    host.is_live = True
    assert readings(pmic.detect(host, None)) == {"pmic.board": 5.0, "pmic.X": 5.0}
    assert asked

    def refused(*_: object):
        raise OSError(25, "not a tty")

    monkeypatch.setattr(pmic.fcntl, "ioctl", refused)
    assert pmic.Mailbox(host)() is None


# --- hwmon


def test_only_known_chips_are_read(tmp_path):
    chips = {
        "hwmon0": {"name": "nvme", "power1_input": "5000000"},
        "hwmon1": {"name": "power_meter", "power1_average": "42000000", "power1_average_interval": "1000"},
        "hwmon2": {"name": "corsairpsu", "power1_input": "81000000"},
        "hwmon3": {"name": "powerz", "in0_input": "5090", "curr1_input": "1400"},
        "hwmon10": {"name": "powerz", "in0_input": "5000", "curr1_input": "-20"},
    }
    files = {
        f"sys/class/hwmon/{chip}/{file}": text for chip, entries in chips.items() for file, text in entries.items()
    }
    sensor = hwmon.detect(tree(tmp_path, **files), None)
    assert readings(sensor) == {
        "hwmon.power_meter.power": 42.0,
        "hwmon.corsairpsu.power_total": 81.0,
        "hwmon.powerz.vbus": pytest.approx(7.126),
        "hwmon.powerz.2.vbus": None,
    }
    assert {channel.scope for channel in sensor.channels()} == {"wall_ac", "dc_input"}
    assert sensor.period_s == 0.1


def test_amds_processor_with_graphics_is_a_processor_and_its_card_is_a_card(tmp_path):
    host = tree(tmp_path, "desktop-ryzen-two-gpus")
    assert channels(hwmon.detect(host, None))["hwmon.amdgpu.ppt"].scope == "gpu_board"
    (tmp_path / "sys/class/hwmon/hwmon3/in1_label").write_text("vddnb\n")
    assert channels(hwmon.detect(host, None))["hwmon.amdgpu.ppt"].scope == "cpu_package"


def test_a_power_meter_that_is_a_battery_is_left_out(tmp_path):
    files = {"name": "power_meter", "power1_average": "42000000", "power1_is_battery": "1"}
    host = tree(tmp_path, **{f"sys/class/hwmon/hwmon1/{file}": text for file, text in files.items()})
    assert hwmon.detect(host, None) is None


def test_a_profile_can_name_the_rails_of_an_unknown_chip(tmp_path):
    files = {"name": "scmi_sensors", "energy1_label": "BOARD", "energy1_input": "5000000", "power1_label": "x"}
    host = tree(tmp_path, **{f"sys/class/hwmon/hwmon1/{file}": text for file, text in files.items()})
    assert hwmon.detect(host, None) is None
    sensor = hwmon.detect(host, profile(rails=(Rail(label="BOARD", scope="module", total=True),)))
    assert readings(sensor) == {"hwmon.scmi_sensors.BOARD": 5.0}
    assert channels(sensor)["hwmon.scmi_sensors.BOARD"].kind == "counter"


# --- battery


def uevent(**properties: int | str) -> dict[str, str]:
    lines = {"STATUS": "Discharging", **properties}
    return {f"{BAT}/uevent": "".join(f"POWER_SUPPLY_{key}={value}\n" for key, value in lines.items())}


@pytest.mark.parametrize(
    ("properties", "watts"),
    [
        ({"POWER_NOW": 19195000}, 19.195),
        ({"POWER_NOW": -19195000}, 19.195),
        ({"CURRENT_NOW": -1500000, "VOLTAGE_NOW": 12000000}, 18.0),
        ({"CURRENT_NOW": 0, "VOLTAGE_NOW": 10653000}, None),
        ({"CURRENT_NOW": -8613, "VOLTAGE_NOW": 4000000}, None),
        ({"POWER_NOW": 380000}, None),
        ({"POWER_NOW": "N/A"}, None),
        ({"POWER_NOW": 19195000, "STATUS": "Not charging"}, None),
    ],
)
def test_power_of_a_discharging_battery(properties, watts, tmp_path):
    values = readings(battery.detect(tree(tmp_path, "laptop-i5-1340p", **uevent(**properties)), None))
    assert values["battery.power"] == (None if watts is None else pytest.approx(watts))


@pytest.mark.parametrize("online", ["1", "", "N/A"])
def test_with_a_charger_or_without_knowing_there_is_no_power(online, tmp_path):
    changes = {"sys/class/power_supply/AC/online": online}
    values = readings(battery.detect(tree(tmp_path, "laptop-i5-1340p", **changes), None))
    assert values["battery.power"] is None
    assert values["battery.drawn"] is None


def test_two_batteries_must_both_discharge(tmp_path):
    second = {"type": "Battery", "uevent": "POWER_SUPPLY_STATUS=Discharging\nPOWER_SUPPLY_POWER_NOW=1000000\n"}
    changes = {f"sys/class/power_supply/BAT1/{file}": text for file, text in second.items()}
    host = tree(tmp_path, "laptop-i5-1340p", **changes)
    sensor = battery.detect(host, None)
    assert readings(sensor)["battery.power"] == pytest.approx(20.195)
    assert "battery.drawn" not in readings(sensor)  # the second does not tell what is left in it
    (tmp_path / "sys/class/power_supply/BAT1/uevent").write_text("POWER_SUPPLY_STATUS=Full\nPOWER_SUPPLY_POWER_NOW=0\n")
    assert readings(sensor)["battery.power"] is None


def drawn(root: Path, sensor, **properties: int | str) -> float | None:
    tree(root, **uevent(**properties))
    return readings(sensor)["battery.drawn"]


def test_energy_drawn_grows_as_the_battery_empties_and_starts_again_after_a_gap(tmp_path):
    sensor = battery.detect(tree(tmp_path, "laptop-i5-1340p"), None)
    assert drawn(tmp_path, sensor, ENERGY_NOW=32940000) == 0
    assert drawn(tmp_path, sensor, ENERGY_NOW=32930000) == pytest.approx(36.0)
    assert drawn(tmp_path, sensor, ENERGY_NOW=32930000) == pytest.approx(36.0)
    assert drawn(tmp_path, sensor, ENERGY_NOW=33000000) is None  # fuller than before: the gauge was corrected
    assert drawn(tmp_path, sensor, ENERGY_NOW=32990000) == pytest.approx(36.0)
    assert drawn(tmp_path, sensor, ENERGY_NOW=32980000, STATUS="Charging") is None
    assert drawn(tmp_path, sensor, ENERGY_NOW=32970000) == 0


def test_a_charge_becomes_energy_by_the_voltage(tmp_path):
    host = tree(tmp_path, "laptop-i5-1340p", **uevent(CHARGE_NOW=1740000, VOLTAGE_NOW=11000000))
    sensor = battery.detect(host, None)
    assert drawn(tmp_path, sensor, CHARGE_NOW=1740000, VOLTAGE_NOW=11000000) == 0
    joules = drawn(tmp_path, sensor, CHARGE_NOW=1730000, VOLTAGE_NOW=10000000)
    assert joules == pytest.approx(0.010 * 3600 * 10.5)
    assert drawn(tmp_path, sensor, CHARGE_NOW=1730000, VOLTAGE_NOW=0) is None
