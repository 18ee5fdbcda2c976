"""Whole sessions without a process: which trial runs next, and when it is over."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgebench.records import Block, Edge, Energy, Fact, Failure, Outcome, Provenance, Run
from edgebench.schedule import Next, Schedule
from edgebench.specs import Artifact, Plan, Protocol, Settings, TrialSpec, parse_workload

SECOND = 10**9
PROVENANCE = Provenance(
    utc="2026-11-02T10:00:00Z",
    edgebench="0.1",
    runtime_version=Fact(value="1"),
    runtime_build=Fact(value="fake"),
    python="3.11",
    kernel=Fact(value="6.6"),
    machine="x86_64",
    cpu_model=Fact(value="a CPU"),
    cpu_flags=(),
    logical_cpus=2,
    physical_cores=Fact(value=2),
    governor=Fact(value="performance"),
    memory_bytes=Fact(value=2**31),
    memory_limit_bytes=Fact(unknown_because="no limit is set"),
    virtualization=Fact(value="none"),
    container=Fact(value="none"),
    device_profile="generic",
    command=("edgebench",),
)


def noise(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - speeds, not secrets


def trial(name: str) -> TrialSpec:
    return TrialSpec(
        artifact=Artifact(model="m", precision=name, format="gguf", path="m.gguf", bytes=1, sha256=name),
        runtime="fake",
        settings=Settings(threads=1, threads_batch=1),
        workloads=(parse_workload("tg10"),),
    )


def plan(*names: str, **protocol: float) -> Plan:
    defaults = {"min_rounds": 3, "max_rounds": 8, "budget_s": 1000.0}
    return Plan(trials=tuple(trial(name) for name in names), protocol=Protocol(**{**defaults, **protocol}))


def edge(t_ns: int) -> Edge:
    return Edge(
        t_ns=t_ns,
        own_cpu_s=0.0,
        run_delay_s=None,
        busy_s=None,
        steal_s=None,
        cpu_pressure_s=None,
        major_faults=0,
        swapped_in_pages=None,
    )


def run(
    following: Next, outcome: Outcome = "ok", *, rate: float = 100.0, seconds: float = 1.0, purpose: str = "measure"
) -> Run:
    """What the next round came to: ``rate`` tokens/s, in ``seconds`` of wall time."""
    wall_ns = round(10 / rate * SECOND)
    block = Block(
        workload="tg10",
        index=0,
        tokens=10,
        start=edge(0),
        end=edge(wall_ns),
        t0_ns=0,
        t1_ns=wall_ns,
        step_ns=(wall_ns // 10,) * 10,
    )
    return Run(
        run_id=f"{following.trial.artifact.precision}-{following.round}",
        session_id="s",
        trial=following.trial,
        round=following.round,
        purpose=purpose,
        outcome=outcome,
        failure=None if outcome == "ok" else Failure(kind="x", says="x", next_step="x", phase="load"),
        started_ns=0,
        ended_ns=round(seconds * SECOND),
        blocks=(block,) if outcome == "ok" else (),
        energy=Energy(energy_j=None, reason="no sensor"),
        provenance=PROVENANCE,
    )


def whole_session(
    planned: Plan, what_happens: Callable[[Next], Run], done: list[Run] | None = None
) -> tuple[list[str], Schedule]:
    """The order in which rounds ran (``q8_0-0`` is the first round of q8_0), and the schedule at the end."""
    schedule, elapsed, order = Schedule(planned, done or []), 0.0, []
    while (following := schedule.next(elapsed)) is not None:
        assert following.trial.trial_id not in schedule.stopped
        finished = what_happens(following)
        order.append(finished.run_id)
        elapsed += (finished.ended_ns - finished.started_ns) / SECOND
        schedule.take(finished)
        assert len(order) < 1000
    return order, schedule


def reasons(schedule: Schedule, planned: Plan) -> dict[str, str]:
    return {
        one.artifact.precision: schedule.stopped[one.trial_id]
        for one in planned.trials
        if one.trial_id in schedule.stopped
    }


# --- order ------------------------------------------------------------------------------------------------------------


def test_every_other_round_runs_backwards():
    planned = plan("a", "b", "c", max_rounds=4, target_half_width=0.0)
    noisy = noise(1)
    order, _ = whole_session(planned, lambda n: run(n, rate=noisy.uniform(90, 110)))
    assert order == ["a-0", "b-0", "c-0", "c-1", "b-1", "a-1", "a-2", "b-2", "c-2", "c-3", "b-3", "a-3"]


def test_a_trial_that_left_does_not_disturb_the_order_of_the_others():
    planned = plan("a", "b", "c", max_rounds=3, target_half_width=0.0)
    noisy = noise(1)
    order, _ = whole_session(
        planned, lambda n: run(n, "failed" if n.trial.artifact.precision == "b" else "ok", rate=noisy.uniform(90, 110))
    )
    assert order == ["a-0", "b-0", "c-0", "c-1", "a-1", "a-2", "c-2"]


def test_rounds_are_counted_per_trial_from_zero():
    planned = plan("a", "b")
    order, _ = whole_session(planned, run)
    for name in "ab":
        assert [one for one in order if one.startswith(name)] == [f"{name}-{i}" for i in range(3)]


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_a_trial_with_a_narrow_interval_leaves_and_a_restless_one_stays():
    planned = plan("calm", "wild", max_rounds=8)
    noisy = noise(2)
    order, schedule = whole_session(
        planned, lambda n: run(n, rate=100.0 if n.trial.artifact.precision == "calm" else noisy.uniform(50, 150))
    )
    rounds = Counter(one.split("-")[0] for one in order)
    assert rounds["calm"] == 3
    assert rounds["wild"] == 8
    assert reasons(schedule, planned) == {"calm": "target", "wild": "max-rounds"}
    assert schedule.remaining() == 0


@pytest.mark.parametrize("outcome", ["failed", "oom", "timeout"])
def test_a_failure_that_a_repetition_would_not_change_is_not_repeated(outcome: Outcome):
    planned = plan("good", "bad")
    order, schedule = whole_session(planned, lambda n: run(n, outcome if n.trial.artifact.precision == "bad" else "ok"))
    assert Counter(one.split("-")[0] for one in order) == {"good": 3, "bad": 1}
    assert reasons(schedule, planned) == {"good": "target", "bad": "failed"}


def test_one_kill_is_forgiven():
    planned = plan("a")
    order, schedule = whole_session(planned, lambda n: run(n, "killed" if n.round == 1 else "ok"))
    assert order == ["a-0", "a-1", "a-2", "a-3"]
    assert reasons(schedule, planned) == {"a": "target"}


def test_a_second_kill_is_not():
    planned = plan("a")
    order, schedule = whole_session(planned, lambda n: run(n, "killed"))
    assert order == ["a-0", "a-1"]
    assert reasons(schedule, planned) == {"a": "failed"}


def test_rounds_without_any_value_do_not_go_on_for_ever():
    planned = plan("a")
    order, schedule = whole_session(
        planned,
        lambda following: replace(run(following), blocks=(), ended_ns=0),
    )
    assert len(order) <= 9
    assert reasons(schedule, planned) == {"a": "max-rounds"}


# --- budget -----------------------------------------------------------------------------------------------------------


def test_without_any_time_every_trial_still_has_its_first_round():
    planned = plan("a", "b", "c", budget_s=0.0)
    order, schedule = whole_session(planned, run)
    assert order == ["a-0", "b-0", "c-0"]
    assert set(reasons(schedule, planned).values()) == {"budget"}


def test_a_round_that_would_not_fit_is_not_begun():
    planned = plan("a", budget_s=10.0, max_rounds=99, min_rounds=99)
    order, schedule = whole_session(planned, lambda n: run(n, seconds=3.0))
    assert len(order) == 3
    assert reasons(schedule, planned) == {"a": "budget"}


def test_the_end_of_the_budget_does_not_hide_why_others_stopped():
    planned = plan("a", "b", budget_s=10.0, max_rounds=99, min_rounds=99)
    _, schedule = whole_session(
        planned, lambda n: run(n, "failed" if n.trial.artifact.precision == "a" else "ok", seconds=3.0)
    )
    assert reasons(schedule, planned) == {"a": "failed", "b": "budget"}


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_what_was_done_before_is_not_done_again():
    planned = plan("a", "b")
    noisy, again = noise(3), noise(3)
    whole, _ = whole_session(planned, lambda n: run(n, rate=noisy.uniform(99.9, 100.1)))
    for cut in range(len(whole) + 1):
        again.seed(3)
        schedule, done = Schedule(planned), []
        for _ in range(cut):
            following = schedule.next(0.0)
            assert following is not None
            done.append(run(following, rate=again.uniform(99.9, 100.1)))
            schedule.take(done[-1])
        rest, _ = whole_session(planned, lambda n: run(n, rate=again.uniform(99.9, 100.1)), done)
        assert [one.run_id for one in done] + rest == whole


def test_runs_of_other_plans_and_thread_searches_do_not_count():
    planned = plan("a")
    following = Next(planned.trials[0], 0)
    foreign = [run(Next(trial("elsewhere"), 0)), run(following, purpose="thread-search")]
    order, _ = whole_session(planned, run, foreign)
    assert order == ["a-0", "a-1", "a-2"]


def test_a_failed_trial_stays_failed_when_resumed():
    planned = plan("a", "b")
    order, schedule = whole_session(planned, run, [run(Next(planned.trials[0], 0), "oom")])
    assert {one.split("-")[0] for one in order} == {"b"}
    assert reasons(schedule, planned) == {"a": "failed", "b": "target"}


def test_a_finished_session_has_nothing_left():
    planned = plan("a")
    done = [run(Next(planned.trials[0], round_)) for round_ in range(3)]
    assert whole_session(planned, run, done)[0] == []


def test_a_plan_without_trials_is_over_at_once():
    assert Schedule(Plan(trials=(), protocol=Protocol())).next(0.0) is None


# --- any session ------------------------------------------------------------------------------------------------------

outcomes = st.sampled_from(["ok"] * 12 + ["killed", "failed", "oom", "timeout"])


@given(
    names=st.lists(st.sampled_from("abcd"), min_size=1, unique=True),
    protocol=st.fixed_dictionaries(
        {
            "min_rounds": st.integers(1, 5),
            "max_rounds": st.integers(1, 12),
            "target_half_width": st.floats(0.0, 0.5),
            "budget_s": st.floats(0.0, 200.0),
        }
    ),
    data=st.data(),
)
def test_every_session_ends_and_runs_no_trial_after_it_stopped(names: list[str], protocol: dict, data: st.DataObject):
    planned = plan(*names, **protocol)
    counts: Counter[str] = Counter()

    def what_happens(following: Next) -> Run:
        name = following.trial.artifact.precision
        assert following.round == counts[name]
        counts[name] += 1
        return run(
            following,
            data.draw(outcomes),
            rate=data.draw(st.floats(1.0, 1000.0)),
            seconds=data.draw(st.floats(0.0, 30.0)),
        )

    order, schedule = whole_session(planned, what_happens)
    assert set(counts) == set(names)
    assert len(set(order)) == len(order)
    assert set(schedule.stopped) == {one.trial_id for one in planned.trials}
    assert max(counts.values()) <= planned.protocol.max_rounds + 1
