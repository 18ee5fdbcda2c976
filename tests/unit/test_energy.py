"""Energy of windows: exact where it can be, and honest where it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgebench.analysis.energy import Measured, measure, to_record
from edgebench.analysis.energy_estimate import estimate
from edgebench.analysis.energy_findings import energy_findings
from edgebench.analysis.energy_source import EnergySource
from edgebench.analysis.energy_tokens import slope_of
from edgebench.analysis.energy_windows import K, Reading, Window, accuracy_of, integrate, workload_windows
from edgebench.analysis.power_curve import Accuracy, Curve, make_curves
from edgebench.device_profile import DeviceProfile, Match, PowerDraw
from edgebench.records import Block, Channel, Edge, Energy, Fact, Mark, Provenance, Run, Scope, Series
from edgebench.sensors import _meter_http, meter
from edgebench.specs import Artifact, Claim, Settings, TrialSpec, parse_workload

SECOND = 10**9
START = 5 * 10**12
EXACT = Accuracy(gain=0.0)


def series(
    name: str,
    level: Callable[[float], float | None],
    *,
    hz: float = 10.0,
    seconds: float = 100.0,
    scope: Scope = "dc_input",
    counter: bool = False,
    **channel: Any,
) -> Series:
    """Readings of a channel: ``level(t)`` is W, or J of a counter."""
    moments = [i / hz for i in range(round(seconds * hz) + 1)]
    kind, unit = ("counter", "J") if counter else ("gauge", "W")
    return Series(
        channel=Channel(name=name, unit=unit, kind=kind, scope=scope, **channel),
        t_ns=tuple(START + round(t * SECOND) for t in moments),
        values=tuple(level(t) for t in moments),
    )


def steady(watts: float) -> Callable[[float], float]:
    return lambda _t: watts


def window(start_s: float, end_s: float, tokens: int = 100, name: str = "tg100", blocks: int = 1) -> Window:
    return Window(name, START + round(start_s * SECOND), START + round(end_s * SECOND), tokens, blocks, end_s - start_s)


def source(*channels: str, scope: Scope = "dc_input", method: Any = "gauge") -> EnergySource:
    return EnergySource(channels=channels, scope=scope, method=method, why="the only one")


# --- one source -------------------------------------------------------------------------------------------------------


def test_constant_power_is_power_times_time():
    [reading] = integrate([series("meter.dc", steady(5.0))], [window(10, 70)], EXACT)
    assert reading.joules == pytest.approx(300.0)
    assert not reading.because
    [reading] = integrate([series("rapl.p", lambda t: 5.0 * t, counter=True)], [window(10.03, 70.07)], EXACT)
    assert reading.joules == pytest.approx(5 * 60.04)


def test_channels_of_one_source_are_added():
    both = [series("ina3221.a", steady(2.0)), series("ina3221.b", steady(3.0))]
    assert integrate(both, [window(10, 70)], EXACT)[0].joules == pytest.approx(300.0)
    apart = [both[0], series("ina3221.b", steady(3.0), hz=7.0)]
    assert integrate(apart, [window(10, 70)], EXACT)[0].joules == pytest.approx(300.0)


@pytest.mark.parametrize("wrap", [None, 100.0, 123.456])
def test_a_counter_that_starts_again_loses_nothing(wrap):
    level = (lambda t: 7.0 * t + 1) if wrap is None else (lambda t: (7.0 * t + 1) % wrap)
    [reading] = integrate([series("rapl.p", level, counter=True, wrap=wrap)], [window(1, 99)], EXACT)
    assert reading.joules == pytest.approx(7 * 98)
    assert not reading.hole_s


def test_a_counter_that_was_reset_leaves_a_hole_and_not_a_negative_energy():
    level = lambda t: 7.0 * t if t < 50 else 7.0 * (t - 50)  # noqa: E731 - a curve
    for wrap in (None, 1e6):
        [reading] = integrate([series("nvml.e", level, counter=True, wrap=wrap)], [window(1, 99)], EXACT)
        assert reading.hole_s == pytest.approx(0.1)
        assert reading.joules == pytest.approx(7 * 98, rel=0.01)


def test_a_counter_that_may_have_gone_round_unseen_is_not_believed():
    [reading] = integrate(
        [series("rapl.p", lambda t: (50.0 * t) % 60, counter=True, hz=1.0, wrap=60.0)], [window(1, 99)], EXACT
    )
    assert reading.because


def test_missing_readings_are_bridged_where_short_and_refused_where_long():
    short = series("meter.dc", lambda t: None if 30 <= t < 31 else 5.0)
    [reading] = integrate([short], [window(10, 70)], EXACT)
    assert (reading.joules, reading.because) == (pytest.approx(300.0), "")
    assert reading.hole_s == pytest.approx(1.1)
    long = series("meter.dc", lambda t: None if 30 <= t < 36 else 5.0)
    assert "was read during 90 %" in integrate([long], [window(10, 70)], EXACT)[0].because


def test_readings_that_end_early_are_refused():
    assert "was read during" in integrate([series("m.x", steady(5.0), seconds=50)], [window(10, 70)], EXACT)[0].because


def test_zero_is_no_measurement():
    for one in (
        series("apple.cpu", steady(42.0), counter=True),
        series("nvml.power", steady(0.0)),
        series("apple.cpu", lambda t: min(5.0 * t, 100.0), counter=True),
    ):
        [reading] = integrate([one], [window(25, 85)], EXACT)
        assert "change" in reading.because


def test_a_slow_source_refuses_a_short_window():
    [reading] = integrate([series("battery.power", lambda t: 5.0 + int(t / 10) % 2, hz=2)], [window(50, 53)], EXACT)
    assert "too short for a source that updates every 10 s" in reading.because


def test_of_a_gauge_twenty_updates_are_the_least():
    twice_a_second = series("meter.dc", lambda t: 5.0 + 0.01 * (round(2 * t) % 3), hz=2)
    few, enough = integrate([twice_a_second], [window(10, 19), window(10, 21)], EXACT)
    assert "too short" in few.because
    assert not enough.because


def test_a_source_that_was_read_once_says_so():
    one = series("meter.dc", lambda t: 5.0 if t == 0 else None)
    assert integrate([one], [window(10, 70)], EXACT)[0].because


READINGS = st.lists(st.floats(0.5, 60), min_size=60, max_size=60)


@pytest.mark.parametrize("kind", ["counter", "gauge"])
@given(levels=READINGS, cuts=st.lists(st.floats(0, 59), min_size=3, max_size=9, unique=True))
def test_energy_is_conserved_however_a_window_is_split(kind: str, levels: list[float], cuts: list[float]):
    total = [math.fsum(levels[:i]) % 500.0 for i in range(60)]
    values, counts = (total, True) if kind == "counter" else (levels, False)
    one = series("x.y", lambda t: values[int(t)], hz=1, seconds=59, counter=counts, wrap=500.0 if counts else None)
    curves: Sequence[Curve] = make_curves([one], EXACT)
    edges = sorted({START + round(t * SECOND) for t in cuts})
    if not curves or len(edges) < 3:
        return
    parts = [curves[0].share(*part).joules for part in pairwise(edges)]
    assert math.fsum(parts) == pytest.approx(curves[0].share(edges[0], edges[-1]).joules, abs=1e-6)
    assert min(parts) >= -1e-9


@given(st.floats(0.01, 500), st.floats(1, 40))
def test_energy_grows_with_its_unit(scale: float, power: float):
    wave = lambda t: power * (2 + math.sin(t))  # noqa: E731 - a curve
    [plain] = integrate([series("x.y", wave)], [window(10, 90)], EXACT)
    [scaled] = integrate([series("x.y", lambda t: scale * wave(t))], [window(10, 90)], EXACT)
    assert scaled.joules == pytest.approx(scale * plain.joules)


# --- per token --------------------------------------------------------------------------------------------------------


def reading(n: int, joules_per_block: float, blocks: int = 10, u: float = 0.01) -> Reading:
    joules = joules_per_block * blocks
    return Reading(window(0, 60, tokens=n * blocks, name=f"tg{n}", blocks=blocks), joules, u * joules, 9.0, 600, 0.1)


def test_the_slope_over_lengths_leaves_out_what_every_block_costs():
    readings = [reading(n, 3.0 + 0.25 * n) for n in (32, 128, 256)]
    slope = slope_of(readings, gain=0.0)
    assert slope is not None
    assert slope[0] == pytest.approx(0.25)
    assert slope[0] < readings[0].joules / readings[0].window.tokens
    common = slope_of([replace_u(one, 0.05) for one in readings], gain=0.05)
    assert common is not None
    assert common[1] >= 0.05 * 0.25


def replace_u(one: Reading, u: float) -> Reading:
    return Reading(one.window, one.joules, u * one.joules, one.peak_w, one.n_updates, one.update_s)


def test_one_length_has_no_slope_and_a_falling_energy_neither():
    assert slope_of([reading(32, 5.0), reading(32, 5.1)], 0.0) is None
    assert slope_of([reading(32, 5.0), reading(128, 4.0)], 0.0) is None


# --- a run ------------------------------------------------------------------------------------------------------------

TRIAL = TrialSpec(
    artifact=Artifact(model="m", precision="q4_0", format="fake", path="", bytes=1, sha256="00"),
    runtime="fake",
    settings=Settings(threads=2, threads_batch=2),
    workloads=(parse_workload("pp100"), parse_workload("tg100")),
)
PROVENANCE = Provenance(
    utc="2026-11-02T10:00:00Z", edgebench="0.1", runtime_version=Fact(value="1"), runtime_build=Fact(value="fake"),
    python="3.11", kernel=Fact(value="6.6"), machine="x86_64", cpu_model=Fact(value="a CPU"), cpu_flags=(),
    logical_cpus=2, physical_cores=Fact(value=2), governor=Fact(value="performance"), memory_bytes=Fact(value=2**31),
    memory_limit_bytes=Fact(unknown_because="no limit is set"), virtualization=Fact(value="none"),
    container=Fact(value="none"), device_profile="generic", command=("edgebench",),
)  # fmt: skip


def edge(t_ns: int, busy_s: float | None) -> Edge:
    return Edge(
        t_ns=t_ns, own_cpu_s=0.0, run_delay_s=None, busy_s=busy_s, steal_s=None, cpu_pressure_s=None,
        major_faults=0, swapped_in_pages=None,
    )  # fmt: skip


def block(name: str, index: int, start_s: float, end_s: float, busy: float | None = None) -> Block:
    t0, t1 = START + round(start_s * SECOND), START + round(end_s * SECOND)
    return Block(
        workload=name, index=index, tokens=100, start=edge(t0, None if busy is None else 0.0),
        end=edge(t1, None if busy is None else busy * 2 * (end_s - start_s)), t0_ns=t0, t1_ns=t1, step_ns=(t1 - t0,),
    )  # fmt: skip


def run(*readings: Series, **changes: Any) -> Run:
    """Idle 10 to 40 s, pp100 from 50 to 110 s in two blocks, tg100 from 120 to 180 s, idle again from 200 to 230 s."""
    marks = [("idle", 10), ("rested", 40), ("load", 41), ("pp100", 49), ("tg100", 115), ("idle", 200), ("rested", 230)]
    values: dict[str, Any] = {
        "run_id": "r", "session_id": "s", "trial": TRIAL, "round": 0, "outcome": "ok",
        "started_ns": START, "ended_ns": START + 240 * SECOND, "energy": Energy(energy_j=None, reason="later"),
        "blocks": (block("pp100", 0, 50, 80, 0.5), block("pp100", 1, 80, 110, 0.5), block("tg100", 0, 120, 180, 0.5)),
        "marks": tuple(Mark(name=name, t_ns=START + t * SECOND) for name, t in marks),
        "series": readings, "provenance": PROVENANCE,
    }  # fmt: skip
    return Run(**{**values, **changes})


def busy_power(idle: float = 2.0, idle_after: float = 2.0, load: float = 7.0) -> Callable[[float], float]:
    return lambda t: load if 50 <= t < 110 or 120 <= t < 180 else idle if t < 120 else idle_after


def judged(made: Run, primary: EnergySource, others: Sequence[EnergySource] = ()) -> tuple[Energy, list[str]]:
    measured: Measured = measure(made, primary, others)
    found = energy_findings(made, measured)
    return to_record(measured, found), [finding.kind for finding in found]


def test_a_run_has_energy_above_idle_per_window_and_per_token():
    energy, kinds = judged(run(series("ina3221.vdd", busy_power(), seconds=240)), source("ina3221.vdd"))
    assert energy.energy_j == pytest.approx(840, rel=0.01)
    assert energy.net_j == pytest.approx(600, rel=0.02)
    assert energy.idle_w == pytest.approx(2.0, rel=0.01)
    assert energy.j_per_token["pp100"] == pytest.approx(2.1, rel=0.01)
    assert energy.tokens["tg100"].wh_per_1000 == pytest.approx(4.2 / 3.6, rel=0.01)
    assert energy.tokens["tg100"].net_j == pytest.approx(3.0, rel=0.02)
    assert [window.name for window in energy.windows] == ["pp100", "tg100", "idle", "load", "idle"]
    assert energy.uncertainty_j is not None
    assert 0.04 * 840 < energy.uncertainty_j < 0.06 * 840
    assert energy.net_uncertainty_j is not None
    assert energy.net_uncertainty_j > 1.01 * energy.uncertainty_j, "the idle power is not known exactly"
    assert (energy.mean_w, energy.peak_w) == (pytest.approx(7.0, rel=0.01), 7.0)
    assert (energy.method, energy.update_hz) == ("gauge", pytest.approx(10))
    assert kinds == []


def test_short_blocks_are_flagged():
    made = run(
        series("rapl.p", lambda t: 7.0 * t, counter=True, seconds=240), blocks=(block("tg100", 0, 50, 53),), marks=()
    )
    energy, kinds = judged(made, source("rapl.p", method="counter", scope="cpu_package"))
    assert energy.energy_j == pytest.approx(21, rel=0.02)
    assert kinds == ["short_window"]
    assert energy.flags == ("short_window",)
    assert energy.windows[0].flags == ("short_window",)


def test_a_baseline_that_moves_is_flagged():
    made = run(series("ina3221.vdd", busy_power(2.0, 2.4), seconds=240))
    energy, kinds = judged(made, source("ina3221.vdd"))
    assert kinds == ["baseline_unstable"]
    assert energy.idle_w == pytest.approx(2.2, rel=0.01)


def test_an_idle_phase_in_which_the_cpu_was_busy_is_flagged():
    contention = Series(
        channel=Channel(name="contention.busy", unit="s", kind="counter"),
        t_ns=tuple(START + t * SECOND for t in range(240)),
        values=tuple(0.2 * t for t in range(240)),
    )
    _, kinds = judged(run(series("ina3221.vdd", busy_power(), seconds=240), contention), source("ina3221.vdd"))
    assert kinds == ["baseline_unstable"]


def test_net_within_its_uncertainty_is_not_given():
    made = run(series("pmic.board", busy_power(load=2.2), seconds=240))
    energy, kinds = judged(made, source("pmic.board", scope="board_rails"))
    assert kinds == ["net_not_resolvable"]
    assert energy.net_j is None
    assert energy.energy_j == pytest.approx(2.2 * 120, rel=0.02)


def test_a_frozen_counter_gives_no_joules():
    made = run(series("rapl.p", lambda t: min(7.0 * t, 300.0), counter=True, seconds=240))
    energy, kinds = judged(made, source("rapl.p", method="counter", scope="cpu_package"))
    assert energy.energy_j is None
    assert "rapl.p" in energy.reason
    assert "frozen_counter" in kinds


def test_one_window_missing_leaves_the_other():
    made = run(series("ina3221.vdd", lambda t: 7.0 if t < 115 else None, seconds=240))
    energy, kinds = judged(made, source("ina3221.vdd"))
    assert energy.energy_j is None
    assert [*energy.tokens] == ["pp100"]
    assert "tg100" in energy.reason
    assert "gap" in kinds


@pytest.mark.parametrize(
    ("scope", "factor", "conflict"),
    [
        ("dc_input", 1.02, False),
        ("dc_input", 1.1, True),
        ("wall_ac", 1.3, False),
        ("wall_ac", 0.6, True),
        ("psys", 0.7, False),
        ("psys", 1.5, True),
    ],
)
def test_sources_are_compared_by_what_they_cover(scope: Scope, factor: float, conflict: bool):  # noqa: FBT001 - a parameter
    power = busy_power()
    made = run(
        series("meter.dc", power, seconds=240),
        series("meter.other", lambda t: factor * power(t), seconds=240, scope=scope),
    )
    energy, kinds = judged(made, source("meter.dc"), [source("meter.other", scope=scope)])
    assert ("sources_disagree" in kinds) is conflict
    assert energy.others_j == {f"meter.other ({scope})": pytest.approx(840 * factor, rel=0.01)}


def test_a_thread_search_and_a_failed_run_have_no_windows():
    assert workload_windows(run(purpose="thread-search")) == ()
    assert workload_windows(run(blocks=())) == ()


# --- an estimate ------------------------------------------------------------------------------------------------------

BOARD = DeviceProfile(
    id="board",
    title="A board",
    match=Match(),
    power_draw=PowerDraw(
        idle_w=Claim(value=2.0, unverified=True),
        full_w=Claim(value=6.0, unverified=True),
        scope="dc_input",
        meter="a USB meter",
        load="stress",
    ),
)


def test_an_estimate_is_a_range_around_the_busy_share():
    found = estimate(run(), BOARD, None)
    assert found.low_j == pytest.approx(0.7 * 4.0 * 120)
    assert found.high_j == pytest.approx(1.3 * 4.0 * 120)
    assert found.model == "device_profile_v1:board"


@pytest.mark.parametrize("where", ["virtualization", "container"])
def test_an_estimate_is_refused_where_the_machine_is_hidden_unless_its_watts_are_stated(where: str):
    hidden = run(provenance=replace(PROVENANCE, **{where: Fact(value="docker")}))
    found = estimate(hidden, BOARD, None)
    assert found.low_j is None
    assert "--watts" in found.because
    stated = estimate(hidden, BOARD, (10.0, 20.0))
    assert stated.low_j == pytest.approx(0.7 * 15.0 * 120)


def test_of_the_makers_limit_only_a_wide_range_is_given():
    limited = replace(BOARD, power_draw=None, power_limit_w=Claim(value=10, unverified=True))
    found = estimate(run(), limited, None)
    assert (found.low_j, found.high_j) == (pytest.approx(2.0 * 120), pytest.approx(10.0 * 120))
    assert estimate(run(), replace(BOARD, power_draw=None), None).because


def test_the_coverage_factor_is_two():
    [one] = integrate([series("ina3221.x", steady(5.123457))], [window(10, 70)], Accuracy(gain=0.1))
    assert K * one.u_j == pytest.approx(0.2 * math.sqrt(1 + 8 * 0.1**2) * 5.123457 * 60)


def test_the_network_meters_of_the_sensor_are_those_whose_readings_are_means():
    def late(name: str, scope: Scope) -> float:
        return accuracy_of(EnergySource(channels=(name,), scope=scope, method="gauge", why="")).averaging_s

    assert {kind for kind in meter.KINDS if late(f"meter.{kind}.power", "dc_input")} == set(_meter_http.KINDS)
    assert all(late(f"meter.{kind}.power", "wall_ac") for kind in meter.KINDS)
