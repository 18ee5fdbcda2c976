"""Which source is the energy of a run."""

from __future__ import annotations

import pytest

from edgebench.analysis.energy_source import EnergySource, NoEnergySource, choose
from edgebench.records import Channel


def joules(name: str, scope: str, part_of: str = "") -> Channel:
    return Channel(name=name, unit="J", kind="counter", scope=scope, part_of=part_of)


def watts(name: str, scope: str, part_of: str = "") -> Channel:
    return Channel(name=name, unit="W", kind="gauge", scope=scope, part_of=part_of)


LAPTOP = (
    joules("rapl.package-0", "cpu_package"),
    joules("rapl.psys", "psys"),
    joules("rapl.package-0.core", "component", "rapl.package-0"),
    Channel(name="battery.discharging", unit="1", kind="gauge"),
    watts("battery.power", "dc_input"),
    joules("battery.drawn", "dc_input"),
)
GPU = (joules("nvml.gpu0.energy", "gpu_board"), watts("nvml.gpu0.power", "gpu_board"))


def chosen(channels, unreadable=(), **options) -> EnergySource:
    readable = {channel.name for channel in channels} - set(unreadable)
    source = choose(channels, readable, **options)
    assert isinstance(source, EnergySource), source
    return source


def why_not(source, name) -> str:
    return next(other.why for other in source.others if name in other.channels)


def test_a_meter_goes_before_everything_and_one_is_taken_of_two():
    meters = (watts("meter.usb", "dc_input"), watts("meter.wall", "wall_ac"), watts("meter.wall2", "wall_ac"))
    source = chosen((*LAPTOP, *meters))
    assert source.channels == ("meter.wall",)
    assert "check" in why_not(source, "meter.wall2")


def test_a_meter_goes_before_a_power_supply_of_the_same_scope():
    source = chosen((watts("hwmon.corsairpsu.power_total", "dc_input"), watts("meter.usb", "dc_input")))
    assert source.channels == ("meter.usb",)


def test_on_a_laptop_the_platform_goes_before_the_processor_and_the_battery_comes_last():
    assert chosen(LAPTOP).channels == ("rapl.psys",)
    assert chosen(LAPTOP, ["rapl.psys"]).channels == ("rapl.package-0",)
    last = chosen(LAPTOP, ["rapl.psys", "rapl.package-0"])
    assert (last.channels, last.method) == (("battery.power",), "gauge")
    assert chosen(LAPTOP, ["rapl.psys", "rapl.package-0", "battery.power"]).channels == ("battery.drawn",)


def test_a_platform_counter_below_its_processor_or_at_rest_is_not_believed():
    source = chosen(LAPTOP, watts={"rapl.psys": 6.0, "rapl.package-0": 15.0})
    assert source.channels == ("rapl.package-0",)
    assert "15.0 W" in why_not(source, "rapl.psys")
    assert chosen(LAPTOP, watts={"rapl.psys": 0.0, "rapl.package-0": 15.0}).channels == ("rapl.package-0",)
    assert chosen(LAPTOP, watts={"rapl.psys": 21.0, "rapl.package-0": 15.0}).channels == ("rapl.psys",)


def test_a_desktops_platform_counter_is_not_believed():
    source = chosen(LAPTOP[:3])
    assert source.channels == ("rapl.package-0",)
    assert "laptops" in why_not(source, "rapl.psys")


def test_parts_are_never_added_and_an_unreadable_summand_spoils_the_sum():
    server = tuple(
        channel
        for n in (0, 1)
        for channel in (
            joules(f"rapl.package-{n}", "cpu_package"),
            joules(f"rapl.package-{n}.dram", "cpu_package+dram"),
        )
    )
    assert len(chosen(server).channels) == 4
    without = chosen(server, ["rapl.package-1.dram"])
    assert without.channels == ("rapl.package-0", "rapl.package-1")
    assert without.scope == "cpu_package"
    assert isinstance(choose(server, {"rapl.package-0", "rapl.package-0.dram"}), NoEnergySource)


def test_a_rail_inside_another_is_not_added_even_where_a_profile_gives_it_the_same_scope():
    rails = (watts("ina3221.VDD_IN", "module"), watts("ina3221.VDD_SOC", "module", "ina3221.VDD_IN"))
    source = chosen(rails)
    assert source.channels == ("ina3221.VDD_IN",)
    assert "part of ina3221.VDD_IN" in why_not(source, "ina3221.VDD_SOC")


def test_a_core_alone_is_not_the_processor():
    none = choose(LAPTOP[:3], {"rapl.package-0.core"})
    assert isinstance(none, NoEnergySource)
    assert "rapl.package-0 gives no value" in none.why


def test_a_model_on_the_gpu_is_measured_on_the_gpu_by_its_counter_first():
    source = chosen((*LAPTOP, *GPU, watts("hwmon.amdgpu.ppt", "gpu_board")), device="cuda")
    assert source.channels == ("nvml.gpu0.energy",)
    assert "a check of it" in why_not(source, "nvml.gpu0.power")
    assert "ran on a GPU" in why_not(source, "rapl.package-0")
    assert chosen(GPU, ["nvml.gpu0.energy"], device="cuda").channels == ("nvml.gpu0.power",)


def test_a_model_on_the_cpu_is_not_measured_on_the_gpu():
    none = choose(GPU, {channel.name for channel in GPU})
    assert isinstance(none, NoEnergySource)
    assert "ran on the CPU" in none.why


def test_on_a_jetson_the_module_answers_for_both_devices():
    rails = (watts("ina3221.VDD_IN", "module"), watts("ina3221.VDD_SOC", "component", "ina3221.VDD_IN"))
    for device in ("cpu", "cuda"):
        assert chosen(rails, device=device).channels == ("ina3221.VDD_IN",)


def test_a_calibrated_pi_goes_before_the_sum_of_its_rails():
    source = chosen((watts("pmic.board", "board_rails"), watts("pmic.input", "dc_input")))
    assert source.channels == ("pmic.input",)


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        ((), "no sensor"),
        ((watts("ina3221.NEW", "component", "rails that no profile adds up"),), "only parts"),
        ((watts("guess.tdp", "estimate"),), "estimate"),
    ],
)
def test_where_nothing_can_tell_there_is_a_reason(channels, says):
    none = choose(channels, {channel.name for channel in channels})
    assert isinstance(none, NoEnergySource)
    assert says in none.why
