"""What a user is told to do next: only what the intervals allow, of one model, with both engines named."""

from __future__ import annotations

import msgspec
import pytest

from edgebench.analysis.next_step import next_step
from edgebench.analysis.summary import Estimate, TrialSummary, WorkloadSummary
from edgebench.records import Energy, Failure, MemoryUse
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload

STORED = "every block and reading of this session: edgebench runs show s1"


def row(
    precision: str,
    size: int,
    speed: tuple[float, float, float],
    *,
    runtime: str = "llamacpp",
    model: str = "m",
    workload: str = "tg128",
) -> TrialSummary:
    """A trial that went well: ``speed`` is the low end, the value and the high end, tokens/s."""
    form = "onnx" if runtime == "ort" else "gguf"
    artifact = Artifact(model=model, precision=precision, format=form, path="", bytes=size, sha256=f"{size:064}")
    settings = Settings(threads=1, threads_batch=1)
    trial = TrialSpec(artifact=artifact, runtime=runtime, settings=settings, workloads=(parse_workload(workload),))
    low, value, high = speed
    estimate = Estimate(value=value, low=low, high=high, n=6)
    return TrialSummary(
        trial=trial,
        rounds_ok=6,
        rounds_failed=0,
        outcome="ok",
        failure=None,
        load_s=None,
        loaded=None,
        workloads={workload: WorkloadSummary(workload=workload, tokens_per_s=estimate, blocks=6, blocks_disturbed=0)},
        memory=MemoryUse(),
        rss_peak=None,
        energy=Energy(energy_j=None, reason="no sensor"),
        findings=(),
    )


SLOW, FAST, NEARLY = (90.0, 100.0, 110.0), (140.0, 150.0, 160.0), (105.0, 120.0, 135.0)


def test_a_smaller_precision_that_is_clearly_faster_is_named_with_its_price():
    said = next_step([row("q8_0", 200, SLOW), row("q4_0", 100, FAST)], "s1")
    assert said.startswith("q4_0 decodes 1.50x as fast as q8_0 from 50 % of its bytes; accuracy is not measured here")


def test_engines_are_named_where_they_differ():
    said = next_step([row("q8_0", 200, SLOW, runtime="ort"), row("q4_0", 100, FAST)], "s1")
    assert said.startswith("q4_0 on llamacpp decodes 1.50x as fast as q8_0 on ort from 50 %")


def test_one_precision_on_two_engines_is_no_choice_of_precision():
    said = next_step([row("q4_0", 110, SLOW, runtime="ort"), row("q4_0", 100, FAST)], "s1")
    assert said == "q4_0 decodes 1.50x as fast on llamacpp as on ort; compare other precisions with --precision."


def test_the_largest_precision_is_the_measure_and_not_the_other_engine():
    rows = [row("q4_0", 110, SLOW, runtime="ort"), row("q8_0", 200, SLOW), row("q4_0", 100, FAST)]
    assert "as fast as q8_0 from 50 %" in next_step(rows, "s1")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(row("q8_0", 200, NEARLY), id="intervals that touch"),
        pytest.param(row("q8_0", 200, SLOW, model="another"), id="another model"),
        pytest.param(row("q8_0", 200, SLOW, workload="tg128@d2048"), id="another workload"),
        pytest.param(row("q8_0", 50, SLOW), id="larger and faster"),
    ],
)
def test_what_does_not_follow_is_not_said(other):
    fast = row("q4_0", 100, (130.0, 150.0, 170.0))
    assert next_step([other, fast], "s1") == STORED


def test_without_an_interval_nothing_is_compared():
    fast = row("q4_0", 100, FAST)
    once = Estimate(value=150.0, low=None, high=None, n=1, no_interval_because="one round shows no spread")
    alone = msgspec.structs.replace(fast.workloads["tg128"], tokens_per_s=once)
    fast = msgspec.structs.replace(fast, workloads={"tg128": alone})
    assert next_step([row("q8_0", 200, SLOW), fast], "s1") == STORED


def test_a_failure_comes_first():
    failure = Failure(kind="oom-killed", says="killed", next_step="choose a smaller precision.", phase="load")
    failed = msgspec.structs.replace(row("q8_0", 200, SLOW), outcome="oom", failure=failure)
    assert next_step([failed, row("q4_0", 100, FAST)], "s1") == "choose a smaller precision."
