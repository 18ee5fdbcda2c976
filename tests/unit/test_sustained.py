"""When and by how much a simulated device slows down, against what was simulated."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

from edgebench.analysis.stretches import stretches
from edgebench.analysis.summary import summarize
from edgebench.analysis.sustained import Sustained, best_sustained, sustained, sustained_finding
from edgebench.errors import UsageError
from edgebench.records import Block, Channel, Edge, Failure, Run, Series
from edgebench.report.sustained import plot, print_sustained
from edgebench.schedule import Schedule
from edgebench.specs import Plan, Protocol, TrialSpec, parse_workload
from edgebench.units import format_seconds

S = 1_000_000_000
GOLDEN = msgspec.json.decode((Path(__file__).parents[1] / "golden/run-schema-1.json").read_bytes(), type=Run)
TRIAL = GOLDEN.trial
TEN_MINUTES = replace(TRIAL, workloads=(parse_workload("sustained:10m"),))
Speed = Callable[[float], float]


def edge(second: float) -> Edge:
    return Edge(
        t_ns=round(second * S),
        own_cpu_s=2 * second,
        run_delay_s=0.0,
        busy_s=2 * second,
        steal_s=0.0,
        cpu_pressure_s=0.0,
        major_faults=0,
        swapped_in_pages=0,
    )


def series_of(
    name: str, values: list[float], kind: str = "gauge", unit: str | None = None, scope: str | None = None
) -> Series:
    """One reading a second."""
    unit = unit or {"thermal": "C", "cpufreq": "Hz"}.get(name.partition(".")[0], "1")
    channel = Channel(name=name, unit=unit, kind=kind, scope=scope)
    return Series(channel=channel, t_ns=tuple(i * S for i in range(len(values))), values=tuple(values))


def blocks(speed: Speed, seconds: float, noise: float = 0.0, seed: int = 0, name: str = "sustained:10m") -> list[Block]:
    """Blocks of 64 tokens at the speed of their moment; noise of each token, relative, and as much of each block."""
    rng = random.Random(seed)  # noqa: S311 - noise, not secrets
    made: list[Block] = []
    now = 0.0
    while now < seconds:
        slower = math.exp(rng.gauss(0, noise))
        steps = []
        begin = now
        for _ in range(64):
            step_s = slower * math.exp(rng.gauss(0, noise)) / speed(now)
            steps.append(round(step_s * S))
            now += step_s
        made.append(
            Block(
                workload=name,
                index=len(made),
                tokens=64,
                start=edge(begin),
                end=edge(now),
                t0_ns=round(begin * S),
                t1_ns=round(begin * S) + sum(steps),
                step_ns=tuple(steps),
            )
        )
        now += 0.002
    return made


def run(made: list[Block], trial: TrialSpec = TEN_MINUTES, **changes: object) -> Run:
    values = {"trial": trial, "round": 0, "series": (), "findings": (), "sampler_cost_s": 0.01, **changes}
    return replace(GOLDEN, blocks=tuple(made), started_ns=0, ended_ns=made[-1].t1_ns, **values)


def summary(speed: Speed, seconds: float = 600.0, noise: float = 0.0, seed: int = 0, **changes: object) -> Sustained:
    (found,) = sustained(run(blocks(speed, seconds, noise, seed), **changes))
    return found


def step(at_s: float, to: float, speed: float = 20.0) -> Speed:
    return lambda t: speed if t < at_s else speed * to


def ramp(from_s: float, until_s: float, to: float, speed: float = 20.0) -> Speed:
    return lambda t: speed * (1 - (1 - to) * min(1.0, max(0.0, (t - from_s) / (until_s - from_s))))


# --- against the truth


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("speed", [4.0, 20.0, 200.0])
def test_a_steady_device_is_steady(noise: float, speed: float):
    alarms = 0
    for seed in range(20 if noise else 1):
        found = summary(lambda _: speed, 120.0, noise, seed)
        alarms += found.slowdown is not None
        assert found.first_tokens_per_s == pytest.approx(speed, rel=0.002 + 2 * noise)
    assert alarms <= 1


def test_false_alarms_are_rare_whatever_the_noise_is_like():
    """Independent noise of 3 %, noise with a memory, and noise with bursts: rates as they would come from windows."""
    alarms = {"independent": 0, "with a memory": 0, "with bursts": 0}
    trials = 100
    for seed in range(trials):
        rng = random.Random(seed)  # noqa: S311 - noise, not secrets
        white = [rng.gauss(0, 0.03) for _ in range(100)]
        drifting = [0.0]
        for value in white[1:]:
            drifting.append(0.6 * drifting[-1] + 0.5 * value)
        bursts = [value / 3 - (0.3 if rng.random() < 0.03 else 0.0) for value in white]
        for name, noise in zip(alarms, (white, drifting, bursts), strict=True):
            rates = [100 * math.exp(value) for value in noise]
            cuts = stretches(rates)
            levels = [sorted(rates[a:b])[(b - a) // 2] for a, b in cuts]
            alarms[name] += any(level < 0.95 * levels[0] for level in levels[1:])
    assert all(count <= 0.03 * trials for count in alarms.values()), alarms


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("to", [0.9, 0.75, 0.4])
@pytest.mark.parametrize("at_s", [100.0, 250.0, 500.0])
def test_a_step_is_found_where_and_as_deep_as_it_is(at_s: float, to: float, noise: float):
    found = summary(step(at_s, to), 600.0, noise)
    assert found.slowdown is not None
    assert found.slowdown.t_s == pytest.approx(at_s, abs=12)
    assert found.drop == pytest.approx(1 - to, abs=0.01 + noise)
    assert found.drop_low <= 1 - to + 1e-3
    assert found.drop_high >= 1 - to - 1e-3
    assert not found.slowdown.seen


def test_the_interval_of_the_drop_covers_the_truth():
    covered = 0
    for seed in range(60):
        found = summary(step(150.0, 0.8), 300.0, 0.03, seed)
        covered += found.drop_low <= 0.2 <= found.drop_high
    assert covered >= 0.93 * 60


def test_a_slow_ramp_is_found_on_its_way_and_its_end_is_the_last_speed():
    found = summary(ramp(120.0, 400.0, 0.7), 600.0, 0.02)
    assert found.slowdown is not None
    crossing_s = 120 + 280 * (0.05 / 0.3)
    assert crossing_s - 40 <= found.slowdown.t_s <= crossing_s + 60
    assert found.drop == pytest.approx(0.3, abs=0.03)


def test_a_device_that_slows_within_the_first_minute_is_compared_with_before():
    found = summary(step(30.0, 0.6), 600.0, 0.01)
    assert found.slowdown is not None
    assert found.slowdown.t_s == pytest.approx(30, abs=12)
    assert found.drop == pytest.approx(0.4, abs=0.02)


def test_a_drop_below_the_limit_is_no_slowdown_but_is_measured():
    found = summary(step(300.0, 0.97), 600.0, 0.005)
    assert found.slowdown is None
    assert found.drop == pytest.approx(0.03, abs=0.005)


def test_a_device_that_recovers_is_told_with_its_last_speed():
    found = summary(lambda t: 12.0 if 200 < t < 300 else 20.0, 600.0, 0.01)
    assert found.slowdown is not None
    assert found.drop == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7])
def test_a_run_that_was_cut_short_has_what_it_has(count: int):
    made = blocks(lambda _: 20.0, 600.0)[:1]
    made = [replace(made[0], step_ns=made[0].step_ns[: 8 * count])]
    (found,) = sustained(run(made))
    assert found.first_tokens_per_s == pytest.approx(20, rel=0.01)
    assert found.slowdown is None
    assert (found.drop is None) == (count < 2)


def test_stretches_follow_each_other_without_a_gap():
    for seed in range(20):
        rng = random.Random(seed)  # noqa: S311 - noise, not secrets
        rates = [rng.uniform(50, 100) for _ in range(rng.randrange(1, 100))]
        cuts = stretches(rates)
        assert (cuts[0][0], cuts[-1][1]) == (0, len(rates))
        assert all(a[1] == b[0] for a, b in pairwise(cuts))


# --- what others did, and what sensors saw


def test_blocks_that_somebody_disturbed_are_no_slowdown():
    made = blocks(lambda t: 10.0 if 200 < t < 300 else 20.0, 600.0)
    made = [
        replace(block, end=replace(block.end, busy_s=block.end.busy_s + 5)) if 190e9 < block.t1_ns < 310e9 else block
        for block in made
    ]
    (found,) = sustained(run(made))
    assert found.slowdown is None
    assert 0 < found.blocks_disturbed < found.blocks / 2


def test_what_the_sensors_saw_stands_beside_the_speed():
    at = 300
    seconds = 600
    read = (
        series_of("thermal.cpu", [min(82.0, 45 + t / 5) for t in range(seconds)]),
        series_of("cpufreq.policy0", [2.4e9 if t < at else 1.5e9 for t in range(seconds)]),
        series_of("throttle.pi_bits", [float(0x50000) if t < at else float(0x5000A) for t in range(seconds)]),
        series_of("throttle.package_time", [0.0 if t < at else (t - at) / 2 for t in range(seconds)], "counter", "s"),
        series_of("meter.x.power", [7.0 if t < at else 5.0 for t in range(seconds)], "gauge", "W", "wall_ac"),
        series_of("rapl.package-0", [3.0 * t for t in range(seconds)], "counter", "J", "cpu_package"),
    )
    found = summary(step(at, 0.65), seconds, 0.01, series=read)
    assert found.slowdown is not None
    assert found.slowdown.temperature_c == pytest.approx(82, abs=1)
    assert found.slowdown.clock_before_hz == 2.4e9
    assert found.slowdown.clock_hz == 1.5e9
    assert found.slowdown.seen[0] == "clock 2.40 to 1.50 GHz"
    assert {"frequency capped", "soft temperature limit"} <= set(found.slowdown.seen)
    assert "under-voltage" not in found.slowdown.seen  # it was so before
    assert any(text.startswith("package_time +") for text in found.slowdown.seen)
    assert found.power_scope == "wall_ac"
    assert found.points[0].power_w == 7
    assert found.points[-1].power_w == 5
    finding = sustained_finding([found])
    assert finding is not None
    assert finding.kind == "slowdown"
    assert "at 82 C, clock 2.40 to 1.50 GHz" in finding.says
    assert "cooling" in finding.remedy


def test_power_of_a_counter_is_its_growth():
    read = (series_of("rapl.package-0", [3.0 * t for t in range(620)], "counter", "J", "cpu_package"),)
    found = summary(lambda _: 20.0, 600.0, series=read)
    assert found.points[50].power_w == pytest.approx(3.0)


# --- around it


@pytest.mark.parametrize(
    ("text", "name", "seconds"),
    [
        ("sustained:10m", "sustained:10m", 600),
        ("Sustained:90s", "sustained:90s", 90),
        ("sustained:1h", "sustained:60m", 3600),
        ("sustained:1500ms", "sustained:1.5s", 1.5),
    ],
)
def test_the_workload_is_named_by_its_time(text: str, name: str, seconds: float):
    workload = parse_workload(text)
    assert (workload.kind, workload.name, workload.seconds) == ("sustained", name, seconds)
    assert parse_workload(name) == workload


@pytest.mark.parametrize("text", ["sustained:", "sustained:10", "sustained:0s", "sustained:100ms", "sustained:2d"])
def test_a_time_that_makes_no_sense_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_workload(text)


def test_other_workloads_keep_the_identity_of_their_trials():
    assert TRIAL.trial_id == "cc032df0bf0657f0"


def test_the_summary_of_a_trial_has_it_apart_and_keeps_a_run_that_was_killed():
    made = blocks(step(100.0, 0.7), 300.0)
    killed = run(made, outcome="killed", failure=Failure(kind="sigkill", says="x", next_step="y", phase="z"))
    found = summarize([killed], Protocol())
    assert found.outcome == "killed"
    assert found.workloads == {}
    assert found.sustained[0].measured_s == pytest.approx(300, abs=5)
    assert "slowdown" in [finding.kind for finding in found.findings]
    assert "too_few_rounds" not in [finding.kind for finding in found.findings]


def test_of_several_runs_the_longest_counts():
    short, long = run(blocks(lambda _: 20.0, 60.0)), run(blocks(lambda _: 20.0, 300.0))
    (found,) = best_sustained([short, long])
    assert found.measured_s > 299


def test_it_is_done_once_and_again_where_it_was_stopped_by_its_user():
    plan = Plan(trials=(TEN_MINUTES,), protocol=Protocol())
    schedule = Schedule(plan)
    following = schedule.next(0)
    assert following is not None
    assert following.sustained
    made = blocks(lambda _: 20.0, 60.0)
    stopped = Failure(kind="interrupted", says="x", next_step="y", phase="z")
    schedule.take(run(made, outcome="killed", failure=stopped))
    schedule.take(run(made, outcome="killed", failure=stopped))
    assert schedule.next(0) == following
    schedule.take(run(made))
    assert schedule.next(0) is None
    assert schedule.stopped == {TEN_MINUTES.trial_id: "max-rounds"}


def test_beside_other_workloads_it_is_done_in_the_first_round_only():
    both = replace(TRIAL, workloads=(parse_workload("tg8"), parse_workload("sustained:10m")))
    plan = Plan(trials=(both,), protocol=Protocol(budget_s=900))
    schedule = Schedule(plan)
    decode = replace(blocks(lambda _: 20.0, 1.0, name="tg8")[0], index=0)
    schedule.take(run([decode, *blocks(lambda _: 20.0, 600.0)], both))
    following = schedule.next(620)
    assert following is not None  # the next round lasts seconds, not ten minutes
    assert not following.sustained


@pytest.mark.parametrize("plain", [True, False])
def test_the_plot_has_one_column_per_share_of_the_time_and_marks_the_moment(plain):
    found = summary(step(298.0, 0.5), 600.0, series=(series_of("thermal.cpu", [40.0 + t / 20 for t in range(600)]),))
    speed, heat, axis = plot(found, 50, plain=plain)
    low, high = ("_", "#@") if plain else ("▁", "█")
    name, course = speed.split()[:2]
    assert (name, len(course)) == ("tok/s", 50)
    assert set(course[:24]) <= set(high)
    assert set(course[26:]) == {low}
    assert heat.startswith("C      ")
    assert axis.index("^") == pytest.approx(len("tok/s  ") + 25, abs=1)
    assert axis.endswith(format_seconds(found.measured_s))
    assert plain == (speed + heat + axis).isascii()


def test_it_is_printed_even_where_nothing_else_was_measured():
    killed = run(blocks(step(100.0, 0.7), 300.0), outcome="killed", failure=None)
    console = Console(width=100, record=True, force_terminal=False)
    print_sustained(console, [summarize([killed], Protocol())])
    said = console.export_text()
    assert "slower by 30 %" in said
    assert "from 1" in said
