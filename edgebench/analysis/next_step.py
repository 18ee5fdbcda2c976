"""What to look at next: one sentence that follows from the summaries. Pure; it only chooses among what is known."""

from __future__ import annotations

from collections.abc import Sequence

from edgebench.analysis.summary import TrialSummary
from edgebench.records import Finding
from edgebench.units import format_percent

_RANK = {"invalid": 0, "suspect": 1, "note": 2}


def next_step(trials: Sequence[TrialSummary], session_id: str) -> str:
    """The most useful next thing to do after a session."""
    failed = next((trial.failure for trial in trials if trial.failure is not None and trial.outcome != "ok"), None)
    if failed is not None:
        return failed.next_step
    serious = _worst(trials)
    if serious is not None:
        return serious.remedy
    gain = _fastest_against_largest(trials)
    return gain or f"every block and reading of this session: edgebench runs show {session_id}"


def _worst(trials: Sequence[TrialSummary]) -> Finding | None:
    found = [finding for trial in trials for finding in trial.findings if finding.severity != "note"]
    return min(found, key=lambda finding: _RANK[finding.severity], default=None)


def _fastest_against_largest(trials: Sequence[TrialSummary]) -> str:
    """Where a smaller precision pays, and that its quality is not known yet."""
    rates = [
        (summary.tokens_per_s.value, trial)
        for trial in trials
        for summary in trial.workloads.values()
        if summary.workload.startswith("tg")
    ]
    if len({trial.trial.trial_id for _, trial in rates}) < 2:
        return ""
    rate, fastest = max(rates, key=lambda pair: pair[0])
    reference_rate, largest = max(rates, key=lambda pair: pair[1].trial.artifact.bytes)
    if fastest is largest:
        return ""
    return (
        f"{fastest.trial.artifact.precision} decodes {rate / reference_rate:.2f}x as fast as "
        f"{largest.trial.artifact.precision} from {format_percent(_size_ratio(fastest, largest))} of its bytes; "
        "accuracy is not measured here, so read some of its output before you choose it."
    )


def _size_ratio(a: TrialSummary, b: TrialSummary) -> float:
    return a.trial.artifact.bytes / b.trial.artifact.bytes
