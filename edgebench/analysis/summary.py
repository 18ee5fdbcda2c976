"""From the runs of a trial to its numbers: each an estimate with an interval and the rounds behind it.

A round is one fresh process and the unit of replication. Its value is the median of its clean blocks (for latencies: a
quantile of the steps of its clean blocks); the trial's value is the median over rounds with the interval of
``edgebench.stats``. Blocks that somebody else disturbed are set aside, on the evidence of their edges only. Where too
few clean blocks are left, all are used and the trial says so with a ``contention`` finding.

Pure: the same runs in any order give the same summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edgebench import stats
from edgebench.analysis.disturbance import disturbed_blocks
from edgebench.analysis.findings import (
    contention_finding,
    gravest_first,
    merge_findings,
    run_findings,
    trial_findings,
)
from edgebench.analysis.resources import merge_energy, merge_memory, rss_peak
from edgebench.analysis.sustained import Sustained, best_sustained, sustained_finding
from edgebench.records import Block, Energy, Failure, Finding, Loaded, MemoryUse, Outcome, Record, Run
from edgebench.specs import Protocol, TrialSpec, Workload


class Estimate(Record, frozen=True, kw_only=True):
    """The median over rounds and its interval; without an interval, why there is none."""

    value: float
    low: float | None
    high: float | None
    n: int
    """Rounds behind it."""
    no_interval_because: str = ""

    @property
    def half_width(self) -> float | None:
        """The larger side of the interval, relative to the value."""
        if self.low is None or self.high is None:
            return None
        return max(self.high - self.value, self.value - self.low) / self.value


class WorkloadSummary(Record, frozen=True, kw_only=True):
    """What one workload of a trial came to."""

    workload: str
    tokens_per_s: Estimate
    itl_p50_s: Estimate | None = None
    """Inter-token latency: decode only."""
    itl_p95_s: Estimate | None = None
    itl_p99_s: Estimate | None = None
    ttft_s: Estimate | None = None
    """Time to first token: prefill only."""
    blocks: int
    blocks_disturbed: int


class TrialSummary(Record, frozen=True, kw_only=True):
    """What a trial came to, computed from its runs when it is asked for and never stored instead of them."""

    trial: TrialSpec
    rounds_ok: int
    rounds_failed: int
    outcome: Outcome
    """``ok`` if any round was, else that of the last failure."""
    failure: Failure | None
    """Of the last round that failed, even when others did not."""
    load_s: Estimate | None
    loaded: Loaded | None
    workloads: dict[str, WorkloadSummary]
    sustained: tuple[Sustained, ...] = ()
    """Speed over time, of each sustained workload."""
    memory: MemoryUse
    rss_peak: int | None
    energy: Energy
    findings: tuple[Finding, ...]


def summarize_session(runs: Sequence[Run], protocol: Protocol) -> tuple[TrialSummary, ...]:
    """One summary per trial that was measured, in the order in which the trials first appear."""
    trials: dict[str, list[Run]] = {}
    for run in runs:
        if run.purpose == "measure":
            trials.setdefault(run.trial.trial_id, []).append(run)
    return tuple(summarize(group, protocol) for group in trials.values())


def summarize(runs: Sequence[Run], protocol: Protocol) -> TrialSummary:
    """Summarise the runs of one trial. Runs of a thread search are left out: they chose the settings.

    Raises:
        ValueError: when no run is a measurement, or they belong to more than one trial.
    """
    rounds = sorted(
        (run for run in runs if run.purpose == "measure"), key=lambda run: (run.round, run.started_ns, run.run_id)
    )
    if len({run.trial.trial_id for run in rounds}) != 1:
        raise ValueError("summarize takes the measured runs of exactly one trial")
    good = [run for run in rounds if run.outcome == "ok"]
    bad = [run for run in rounds if run.outcome != "ok" and not (good and _interrupted(run))]
    workloads, values, findings = _workloads(good, protocol)
    lasting = best_sustained(rounds)
    slowdown = sustained_finding(lasting)
    return TrialSummary(
        trial=rounds[0].trial,
        rounds_ok=len(good),
        rounds_failed=len(bad),
        outcome="ok" if good else bad[-1].outcome,
        failure=bad[-1].failure if bad else None,
        load_s=_estimate([run.loaded.load_s for run in good if run.loaded], protocol),
        loaded=next((run.loaded for run in [*good, *bad] if run.loaded), None),
        workloads=workloads,
        sustained=lasting,
        memory=merge_memory([run.memory for run in good or bad]),
        rss_peak=rss_peak([run.memory for run in good or bad]),
        energy=merge_energy([run.energy for run in good or bad]),
        findings=gravest_first(
            [
                *findings,
                *([slowdown] if slowdown else []),
                *(trial_findings(values, protocol) if values else ()),
                *merge_findings([_beside_contention(run) for run in rounds]),
            ]
        ),
    )


def _interrupted(run: Run) -> bool:
    """Stopped by whoever started the session: no failure of the trial, and ``--resume`` repeats it."""
    return run.failure is not None and run.failure.kind == "interrupted"


def _beside_contention(run: Run) -> list[Finding]:
    """What was said about one run; contention is judged over all rounds instead."""
    return [finding for finding in (*run.findings, *run_findings(run)) if finding.kind != "contention"]


def round_values(run: Run) -> dict[str, float]:
    """Tokens/s of each workload of one round, for the decision whether to measure another.

    The median of the clean blocks, or of all blocks where none is clean.
    """
    values, disturbed = {}, disturbed_blocks(run)
    for workload in (one for one in run.trial.workloads if one.kind != "sustained"):
        blocks = [block for block in run.blocks if block.workload == workload.name]
        clean = [block for block in blocks if (block.workload, block.index) not in disturbed]
        if blocks:
            values[workload.name] = stats.median([block.tokens_per_s for block in clean or blocks])
    return values


# --- workloads --------------------------------------------------------------------------------------------------------


def _workloads(
    rounds: Sequence[Run], protocol: Protocol
) -> tuple[dict[str, WorkloadSummary], dict[str, list[list[float]]], list[Finding]]:
    """Summaries by workload name, the rates behind them (per round, per block), and findings about the choice."""
    summaries: dict[str, WorkloadSummary] = {}
    values: dict[str, list[list[float]]] = {}
    disturbed = {run.run_id: disturbed_blocks(run) for run in rounds}
    counts: dict[str, tuple[int, int, bool]] = {}
    for workload in rounds[0].trial.workloads if rounds else ():
        if workload.kind == "sustained":
            continue  # its speed changes with time: no median describes it
        every = [(run, [block for block in run.blocks if block.workload == workload.name]) for run in rounds]
        clean = [
            [block for block in blocks if (block.workload, block.index) not in disturbed[run.run_id]]
            for run, blocks in every
        ]
        of = sum(len(blocks) for _, blocks in every)
        set_aside = of - sum(map(len, clean))
        enough = _enough(clean, [blocks for _, blocks in every])
        chosen = [blocks for blocks in (clean if enough else [blocks for _, blocks in every]) if blocks]
        if not chosen:
            continue
        counts[workload.name] = (set_aside, of, enough)
        values[workload.name] = [[block.tokens_per_s for block in blocks] for blocks in chosen]
        summaries[workload.name] = _summary(workload, chosen, protocol, of, set_aside)
    evidence = [says for run in rounds for says in disturbed[run.run_id].values()]
    found = contention_finding(counts, evidence)
    return summaries, values, [found] if found else []


def _enough(clean: Sequence[Sequence[Block]], every: Sequence[Sequence[Block]]) -> bool:
    """At least half of the blocks are clean, and at least two rounds (or the only one) have a clean block."""
    rounds_needed = min(2, sum(map(bool, every)))
    return 2 * sum(map(len, clean)) >= sum(map(len, every)) and sum(map(bool, clean)) >= rounds_needed


def _summary(
    workload: Workload, rounds: Sequence[Sequence[Block]], protocol: Protocol, blocks: int, disturbed: int
) -> WorkloadSummary:
    """Estimates of one workload from the blocks chosen for it, by round."""

    def over_rounds(value: Callable[[Sequence[Block]], float | None]) -> Estimate | None:
        return _estimate([found for group in rounds if (found := value(group)) is not None], protocol)

    rate = over_rounds(lambda group: stats.median([block.tokens_per_s for block in group]))
    if rate is None:
        raise ValueError(f"{workload.name} has no blocks")
    decode = workload.kind == "tg"
    return WorkloadSummary(
        workload=workload.name,
        tokens_per_s=rate,
        itl_p50_s=over_rounds(lambda group: _step_quantile(group, 0.50)) if decode else None,
        itl_p95_s=over_rounds(lambda group: _step_quantile(group, 0.95)) if decode else None,
        itl_p99_s=over_rounds(lambda group: _step_quantile(group, 0.99)) if decode else None,
        ttft_s=None if decode else over_rounds(_first_token),
        blocks=blocks,
        blocks_disturbed=disturbed,
    )


def _step_quantile(blocks: Iterable[Block], q: float) -> float | None:
    """A quantile of the durations of all steps, s."""
    steps = [step for block in blocks for step in block.step_ns]
    return stats.quantile(steps, q) / 1e9 if steps else None


def _first_token(blocks: Iterable[Block]) -> float | None:
    """Median time to first token, s."""
    times = [block.ttft_ns for block in blocks if block.ttft_ns is not None]
    return stats.median(times) / 1e9 if times else None


def _estimate(values: Sequence[float], protocol: Protocol) -> Estimate | None:
    """The median over rounds and its interval; None when no round has a value."""
    if not values:
        return None
    value, n = stats.median(values), len(values)
    if min(values) <= 0:
        return Estimate(value=value, low=None, high=None, n=n, no_interval_because="a round lasted no time at all")
    interval = stats.rounds_interval(values, protocol.confidence)
    if interval is None:
        return Estimate(value=value, low=None, high=None, n=n, no_interval_because="one round shows no spread")
    return Estimate(value=value, low=interval.low, high=interval.high, n=n)
