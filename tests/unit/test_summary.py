from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench.analysis.summary import Estimate, round_values, summarize, summarize_session
from edgebench.records import (
    Block,
    Edge,
    Energy,
    EngineMemory,
    Fact,
    Failure,
    Loaded,
    MemoryPhase,
    MemoryUse,
    Provenance,
    Run,
)
from edgebench.specs import Artifact, Protocol, Settings, TrialSpec, parse_workload

TRIAL = TrialSpec(
    artifact=Artifact(model="m", precision="q4_0", format="gguf", path="m.gguf", bytes=1, sha256="00"),
    runtime="fake",
    settings=Settings(threads=2, threads_batch=2),
    workloads=(parse_workload("pp100"), parse_workload("tg10")),
)
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
NO_ENERGY = Energy(energy_j=None, reason="no sensor")


def edge(t_ns: int, busy_s: float) -> Edge:
    return Edge(
        t_ns=t_ns,
        own_cpu_s=0.0,
        run_delay_s=0.0,
        busy_s=busy_s,
        steal_s=0.0,
        cpu_pressure_s=0.0,
        major_faults=0,
        swapped_in_pages=0,
    )


def blocks(step_ms: float, disturbed: tuple[int, ...] = (), count: int = 3) -> tuple[Block, ...]:
    """``count`` blocks of each workload; the disturbed ones are twice as slow, and the edges show why."""
    made, now = [], 0
    for workload in TRIAL.workloads:
        for index in range(count):
            hit = index in disturbed
            step = round(step_ms * 1e6 * (2 if hit else 1))
            end = now + workload.n * step
            made.append(
                Block(
                    workload=workload.name,
                    index=index,
                    tokens=workload.n,
                    start=edge(now, 0.0),
                    end=edge(end, (end - now) / 1e9 if hit else 0.0),
                    t0_ns=now,
                    t1_ns=end,
                    step_ns=(step,) * workload.n,
                    ttft_ns=end - now + step if workload.kind == "pp" else None,
                )
            )
            now = end
    return tuple(made)


def run(number: int, step_ms: float = 10.0, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "run_id": f"r{number}",
        "session_id": "s",
        "trial": TRIAL,
        "round": number,
        "outcome": "ok",
        "started_ns": number,
        "ended_ns": number + 1,
        "blocks": blocks(step_ms),
        "energy": NO_ENERGY,
        "provenance": PROVENANCE,
    }
    return Run(**{"sampler_cost_s": 0.01, **values, **changes})


def failed(number: int, outcome: str, kind: str) -> Run:
    failure = Failure(kind=kind, says=f"It {outcome}.", next_step="Do that.", phase="load")
    return run(number, outcome=outcome, failure=failure, blocks=())


def kinds(runs: list[Run]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in summarize(runs, Protocol()).findings]


STEPS = (10.0, 10.01, 9.99, 10.02, 10.0, 9.98)
ROUNDS = [run(number, step) for number, step in enumerate(STEPS)]


def test_the_speed_is_the_median_over_rounds_with_an_interval() -> None:
    speed = summarize(ROUNDS, Protocol()).workloads["tg10"].tokens_per_s
    assert speed.value == pytest.approx(100, rel=1e-3)
    assert speed.n == 6
    assert speed.low is not None
    assert speed.high is not None
    assert 99.7 < speed.low < speed.value < speed.high < 100.3
    assert speed.half_width is not None
    assert 0 < speed.half_width < 0.003


def test_decode_has_latencies_between_tokens_and_prefill_a_time_to_the_first() -> None:
    workloads = summarize(ROUNDS, Protocol()).workloads
    decode, prefill = workloads["tg10"], workloads["pp100"]
    assert decode.itl_p50_s is not None
    assert decode.itl_p50_s.value == pytest.approx(0.010, rel=1e-3)
    assert decode.itl_p99_s is not None
    assert decode.ttft_s is None
    assert prefill.ttft_s is not None
    assert prefill.ttft_s.value == pytest.approx(1.01, rel=1e-3)
    assert prefill.itl_p50_s is None


def test_a_slow_token_shows_in_the_tail_and_not_in_the_median() -> None:
    slow = []
    for one in ROUNDS:
        changed = tuple(
            msgspec.structs.replace(block, step_ns=(50_000_000, *block.step_ns[1:])) if block.index == 0 else block
            for block in one.blocks
        )
        slow.append(msgspec.structs.replace(one, blocks=changed))
    decode = summarize(slow, Protocol()).workloads["tg10"]
    assert decode.itl_p50_s is not None
    assert decode.itl_p99_s is not None
    assert decode.itl_p50_s.value == pytest.approx(0.010, rel=1e-2)
    assert decode.itl_p99_s.value > 0.03


def test_disturbed_blocks_are_set_aside_and_counted() -> None:
    mixed = [run(number, 10.0, blocks=blocks(10.0, disturbed=(0,))) for number in range(6)]
    decode = summarize(mixed, Protocol()).workloads["tg10"]
    assert decode.tokens_per_s.value == pytest.approx(100)
    assert (decode.blocks, decode.blocks_disturbed) == (18, 6)
    assert ("contention", "note") in kinds(mixed)


def test_a_round_without_a_clean_block_does_not_count() -> None:
    mixed = [*ROUNDS, run(6, blocks=blocks(10.0, disturbed=(0, 1, 2)))]
    assert summarize(mixed, Protocol()).workloads["tg10"].tokens_per_s.n == 6


def test_all_blocks_are_used_when_too_few_are_clean_and_that_is_said() -> None:
    mixed = [run(number, blocks=blocks(10.0, disturbed=(0, 1))) for number in range(6)]
    decode = summarize(mixed, Protocol()).workloads["tg10"]
    assert decode.tokens_per_s.value == pytest.approx(50)
    assert ("contention", "suspect") in kinds(mixed)


def test_one_clean_round_of_two_is_not_enough() -> None:
    mixed = [run(0), run(1, blocks=blocks(10.0, disturbed=(0, 1, 2)))]
    assert ("contention", "suspect") in kinds(mixed)
    assert summarize(mixed, Protocol()).workloads["tg10"].tokens_per_s.n == 2


def test_the_only_round_may_set_its_disturbed_block_aside() -> None:
    assert ("contention", "note") in kinds([run(0, blocks=blocks(10.0, disturbed=(0,)))])


def test_one_round_has_no_interval_but_a_reason() -> None:
    speed = summarize([run(0)], Protocol()).workloads["tg10"].tokens_per_s
    assert (speed.low, speed.high, speed.half_width) == (None, None, None)
    assert speed.no_interval_because


def test_blocks_of_failed_rounds_are_not_used() -> None:
    died = msgspec.structs.replace(failed(6, "oom", "oom-killed"), blocks=blocks(99.0))
    summary = summarize([*ROUNDS, died], Protocol())
    assert summary.workloads["tg10"].tokens_per_s.n == 6
    assert (summary.rounds_ok, summary.rounds_failed, summary.outcome) == (6, 1, "ok")
    assert summary.failure is not None
    assert summary.failure.kind == "oom-killed"


def test_a_trial_without_a_good_round_has_the_outcome_of_its_last_failure() -> None:
    summary = summarize([failed(0, "timeout", "timeout"), failed(1, "oom", "oom-killed")], Protocol())
    assert (summary.outcome, summary.rounds_ok, summary.workloads) == ("oom", 0, {})
    assert summary.failure is not None
    assert summary.failure.kind == "oom-killed"
    assert summary.findings == ()


def test_the_search_for_threads_is_no_measurement() -> None:
    searching = run(9, 99.0, purpose="thread-search")
    assert summarize([*ROUNDS, searching], Protocol()) == summarize(ROUNDS, Protocol())
    assert summarize_session([searching], Protocol()) == ()
    with pytest.raises(ValueError, match="exactly one trial"):
        summarize([searching], Protocol())


def test_a_session_keeps_the_order_of_its_plan() -> None:
    other = msgspec.structs.replace(TRIAL, seed=1)
    runs = [run(0), run(10, trial=other), run(11, trial=other, round=1), run(1)]
    assert [summary.trial.seed for summary in summarize_session(runs, Protocol())] == [0, 1]
    with pytest.raises(ValueError, match="exactly one trial"):
        summarize(runs, Protocol())


def test_peaks_are_the_largest_of_all_rounds() -> None:
    def use(rss: int, weights: int, anon: int | None) -> MemoryUse:
        phase = MemoryPhase(phase="load", rss_peak=rss, anon=rss, file=None, swap=0)
        engine = EngineMemory(weights={"CPU": weights}, kv=1, compute=1, output=1)
        return MemoryUse(phases=(phase,), engine=engine, anon_peak=anon)

    summary = summarize([run(0, memory=use(5, 70, None)), run(1, memory=use(9, 60, 3))], Protocol())
    assert (summary.rss_peak, summary.memory.anon_peak, summary.memory.file_peak) == (9, 3, None)
    assert summary.memory.engine is not None
    assert summary.memory.engine.weights == {"CPU": 70}
    assert [(phase.phase, phase.rss_peak, phase.file) for phase in summary.memory.phases] == [("load", 9, None)]


def test_energy_is_the_median_over_rounds_of_one_source() -> None:
    def joules(j: float, scope: Any = "cpu_package") -> Energy:
        return Energy(energy_j=j, source="rapl", scope=scope, j_per_token={"tg10": j / 10})

    summary = summarize([run(i, energy=joules(j)) for i, j in enumerate((3.0, 1.0, 2.0))], Protocol())
    assert (summary.energy.energy_j, summary.energy.j_per_token) == (2.0, {"tg10": 0.2})
    mixed = summarize([run(0, energy=joules(1.0)), run(1, energy=joules(9.0, "wall_ac"))], Protocol())
    assert mixed.energy.energy_j is None
    assert "different sources" in mixed.energy.reason
    assert summarize([run(0)], Protocol()).energy.reason == "no sensor"


def test_load_time_and_what_was_loaded_come_along() -> None:
    def loaded(seconds: float) -> Loaded:
        return Loaded(
            load_s=seconds,
            parameters=8,
            weight_bytes=8,
            context_trained=4096,
            vocabulary=1,
            architecture="llama",
            description="",
        )

    summary = summarize([run(i, loaded=loaded(s)) for i, s in enumerate((1.0, 3.0, 2.0))], Protocol())
    assert summary.load_s is not None
    assert summary.load_s.value == 2.0
    assert summary.loaded == loaded(1.0)


def test_findings_of_rounds_are_counted_and_the_engine_s_own_are_kept() -> None:
    powersave = msgspec.structs.replace(PROVENANCE, governor=Fact(value="powersave"))
    runs = [run(i, step, provenance=powersave if i < 2 else PROVENANCE) for i, step in enumerate(STEPS)]
    (finding,) = summarize(runs, Protocol()).findings
    assert finding.says.endswith("(in 2 of 6 rounds).")
    kept = [msgspec.structs.replace(one, findings=(finding,)) for one in ROUNDS]
    assert kinds(kept) == [("governor", "note")]


def test_a_round_that_took_no_time_has_no_interval() -> None:
    empty = [msgspec.structs.replace(block, step_ns=(0,) * len(block.step_ns)) for block in blocks(10.0)]
    itl = summarize([run(i, blocks=tuple(empty)) for i in range(6)], Protocol()).workloads["tg10"].itl_p50_s
    assert itl is not None
    assert itl.low is None
    assert "no time" in itl.no_interval_because


def test_the_values_of_a_round_leave_disturbed_blocks_out_where_they_can() -> None:
    assert round_values(run(0, blocks=blocks(10.0, disturbed=(0,))))["tg10"] == pytest.approx(100)
    assert round_values(run(0, blocks=blocks(10.0, disturbed=(0, 1, 2))))["tg10"] == pytest.approx(50)
    assert round_values(run(0, blocks=())) == {}


def test_a_summary_survives_json() -> None:
    summary = summarize(ROUNDS, Protocol())
    assert msgspec.json.decode(msgspec.json.encode(summary), type=type(summary)) == summary


def test_the_half_width_is_the_larger_side() -> None:
    assert Estimate(value=100.0, low=99.0, high=105.0, n=6).half_width == pytest.approx(0.05)


@given(st.permutations([*ROUNDS, failed(6, "oom", "oom-killed"), run(7, blocks=blocks(10.0, disturbed=(1,)))]))
def test_the_order_of_the_runs_does_not_matter(runs: list[Run]) -> None:
    ordered = sorted(runs, key=lambda one: one.round)
    assert summarize(runs, Protocol()) == summarize(ordered, Protocol())
