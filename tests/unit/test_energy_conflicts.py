"""Sources that contradict each other: told whichever of them gives the energy, and only beyond their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from edgebench.analysis.energy import measure
from edgebench.analysis.energy_conflicts import conflict_finding
from edgebench.analysis.energy_findings import energy_findings
from edgebench.analysis.energy_source import EnergySource
from edgebench.records import Finding, Scope, Series
from tests.unit.test_energy import busy_power, run, series, source

LOAD = busy_power()
"""7 W while blocks are timed (2 * 60 s), else 2 W."""


def joules(name: str, factor: float, scope: Scope) -> Series:
    """A counter of the same load, read ten times a second."""
    total, levels = 0.0, {}
    for i in range(2401):
        levels[i] = total
        total += factor * LOAD(i / 10) / 10
    return series(name, lambda t: levels[round(10 * t)], seconds=240, scope=scope, counter=True)


def watts(name: str, factor: float, scope: Scope, *, noise: float = 0.01, hz: float = 10.0) -> Series:
    wave = lambda t: factor * LOAD(t) * (1 + noise * math.sin(37.7 * t))  # noqa: E731 - a curve
    return series(name, wave, seconds=240, scope=scope, hz=hz)


def of(one: Series) -> EnergySource:
    assert one.channel.scope is not None
    return source(one.channel.name, scope=one.channel.scope, method=one.channel.kind)


def judged(primary: Series, *others: Series) -> Finding | None:
    made = run(primary, *others)
    measured = measure(made, of(primary), [of(other) for other in others])
    found = conflict_finding(measured)
    told = [finding for finding in energy_findings(made, measured) if finding.kind == "sources_disagree"]
    assert told == ([found] if found else [])
    return found


# --- of one scope -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("primary", ["counter", "gauge"])
@pytest.mark.parametrize(
    ("factor", "conflict"), [(1.03, False), (0.97, False), (1.08, True), (0.92, True), (1.9, True)]
)
def test_the_counter_and_the_power_of_a_gpu_are_compared_whichever_is_primary(
    primary: str,
    factor: float,
    conflict: bool,  # noqa: FBT001 - a parameter
):
    pair = [joules("nvml.gpu0.energy", 1.0, "gpu_board"), watts("nvml.gpu0.power", factor, "gpu_board")]
    found = judged(*(pair if primary == "counter" else reversed(pair)))
    assert (found is not None) is conflict
    if found:
        assert found.severity == "suspect"
        assert "both of gpu board" in found.says
        assert found.evidence["nvml.gpu0.energy"] == pytest.approx(420, rel=0.01)
        assert found.evidence["nvml.gpu0.power"] == pytest.approx(420 * factor, rel=0.02)


def test_what_few_readings_leave_open_excuses_a_difference():
    counter = joules("nvml.gpu0.energy", 1.0, "gpu_board")
    assert judged(counter, watts("nvml.gpu0.power", 1.08, "gpu_board")) is not None
    assert judged(counter, watts("nvml.gpu0.power", 1.08, "gpu_board", noise=0.9, hz=0.7)) is None


def test_the_scale_errors_of_two_instruments_excuse_a_difference():
    meter = watts("meter.usb.power", 1.0, "dc_input")
    assert judged(meter, watts("hwmon.psu.power", 1.08, "dc_input")) is None
    assert judged(meter, watts("hwmon.psu.power", 1.2, "dc_input")) is not None


def test_a_batterys_coarse_energy_is_allowed_ten_percent():
    power = watts("battery.power", 1.0, "dc_input")
    assert judged(power, joules("battery.drawn", 1.08, "dc_input")) is None
    assert judged(power, joules("battery.drawn", 1.15, "dc_input")) is not None


def test_two_others_of_one_scope_are_not_the_matter_of_a_run_on_the_cpu():
    gpu = [joules("nvml.gpu0.energy", 0.1, "gpu_board"), watts("nvml.gpu0.power", 0.2, "gpu_board")]
    assert judged(joules("rapl.package-0", 1.0, "cpu_package"), *gpu) is None


# --- one inside the other ---------------------------------------------------------------------------------------------

Maker = Callable[[str, float, Scope], Series]


@pytest.mark.parametrize(
    ("part", "make", "scope"),
    [
        ("rapl.package-0", joules, "cpu_package"),
        ("rapl.psys", joules, "psys"),
        ("nvml.gpu0.energy", joules, "gpu_board"),
        ("ina3221.VDD_IN", watts, "module"),
    ],
)
def test_a_meter_that_says_less_than_a_part_is_doubted(part: str, make: Any, scope: Scope):
    for meter in ("wall_ac", "dc_input"):
        whole = watts("meter.x.power", 1.0, meter)
        found = judged(whole, make(part, 1.5, scope))
        assert found is not None
        assert found.severity == "suspect"
        assert f"{part} says 630 J, more than all that meter.x.power covers, which says 4" in found.says
        assert "hangs on that meter" in found.remedy
        assert judged(make(part, 1.5, scope), whole) is not None
        assert judged(whole, make(part, 0.6, scope)) is None


def test_a_gpu_is_beside_the_processor_and_not_inside_it():
    gpu, processor = joules("nvml.gpu0.energy", 5.0, "gpu_board"), joules("rapl.package-0", 1.0, "cpu_package+dram")
    assert judged(gpu, processor) is None
    assert judged(processor, gpu) is None
    assert judged(joules("rapl.psys", 1.0, "psys"), gpu) is None


@pytest.mark.parametrize(("factor", "said"), [(0.4, True), (0.98, True), (1.02, False), (1.5, False)])
def test_a_platform_counter_below_its_processor_is_a_note(factor: float, said: bool):  # noqa: FBT001 - a parameter
    found = judged(joules("rapl.package-0", 1.0, "cpu_package"), joules("rapl.psys", factor, "psys"))
    assert (found is not None) is said
    if found:
        assert found.severity == "note"
        assert "the platform's counter is not used" in found.says


def test_a_platform_counter_that_is_the_energy_all_the_same_is_doubted():
    found = judged(joules("rapl.psys", 1.0, "psys"), joules("rapl.package-0", 1.5, "cpu_package"))
    assert found is not None
    assert found.severity == "suspect"


def test_a_contradiction_among_the_others_is_a_note_and_one_with_the_primary_goes_before_it():
    meter, psys = watts("meter.x.power", 3.0, "wall_ac"), joules("rapl.psys", 0.5, "psys")
    package = joules("rapl.package-0", 1.0, "cpu_package")
    found = judged(meter, psys, package)
    assert found is not None
    assert (found.severity, [*found.evidence]) == ("note", ["rapl.psys", "rapl.package-0"])
    below = judged(meter, watts("meter.usb.power", 0.5, "dc_input"), package)
    assert below is not None
    assert (below.severity, [*below.evidence]) == ("note", ["meter.usb.power", "rapl.package-0"])
    both = judged(meter, psys, package, watts("meter.y.power", 3.6, "wall_ac"))
    assert both is not None
    assert (both.severity, [*both.evidence]) == ("suspect", ["meter.x.power", "meter.y.power"])


def test_of_several_contradictions_the_largest_is_told():
    meter, near, far = (
        watts(f"meter.{name}.power", factor, "wall_ac") for name, factor in zip("abc", (1, 1.3, 2), strict=True)
    )
    for others in ((near, far), (far, near)):
        found = judged(meter, *others)
        assert found is not None
        assert [*found.evidence] == ["meter.a.power", "meter.c.power"]
