"""What to look at next: one sentence that follows from the summaries. Pure; it only chooses among what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgebench.analysis.summary import Estimate, TrialSummary
from edgebench.records import Finding
from edgebench.specs import TrialSpec
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
    gain = _what_is_gained(trials)
    return gain or f"every block and reading of this session: edgebench runs show {session_id}"


def _worst(trials: Sequence[TrialSummary]) -> Finding | None:
    found = [finding for trial in trials for finding in trial.findings if finding.severity != "note"]
    return min(found, key=lambda finding: _RANK[finding.severity], default=None)


class _Row(NamedTuple):
    """The decode speed of one trial."""

    speed: Estimate
    workload: str
    trial: TrialSpec

    @property
    def subject(self) -> tuple[str, str]:
        """Only rows of one model at one workload are compared."""
        return self.trial.artifact.model, self.workload

    @property
    def variant(self) -> str:
        """The precision, and what tells it from others of its name."""
        return self.trial.artifact.label


def _what_is_gained(trials: Sequence[TrialSummary]) -> str:
    """What the fastest row has over the largest precision, else over its own on the other engine; where it is clear."""
    rows = [
        _Row(summary.tokens_per_s, summary.workload, trial.trial)
        for trial in trials
        for summary in trial.workloads.values()
        if summary.workload.startswith("tg")
    ]
    if not rows:
        return ""
    fastest = max(rows, key=lambda row: row.speed.value)
    slower = [row for row in rows if row.subject == fastest.subject and _is_clearly_faster(fastest, row)]
    larger = [row for row in slower if row.trial.artifact.bytes > fastest.trial.artifact.bytes]
    others = [row for row in larger if row.variant != fastest.variant]
    if others:
        return _by_precision(fastest, max(others, key=lambda row: (row.trial.artifact.bytes, row.speed.value)))
    elsewhere = [row for row in slower if row.variant == fastest.variant and row.trial.runtime != fastest.trial.runtime]
    return _by_engine(fastest, elsewhere[0]) if elsewhere else ""


def _is_clearly_faster(a: _Row, b: _Row) -> bool:
    """Whether the intervals are known and apart."""
    return a.speed.low is not None and b.speed.high is not None and a.speed.low > b.speed.high


def _by_precision(fast: _Row, large: _Row) -> str:
    engines = {fast.trial.runtime, large.trial.runtime}
    names = [row.variant if len(engines) == 1 else f"{row.variant} on {row.trial.runtime}" for row in (fast, large)]
    share = format_percent(fast.trial.artifact.bytes / large.trial.artifact.bytes)
    return (
        f"{names[0]} decodes {fast.speed.value / large.speed.value:.2f}x as fast as {names[1]} from {share} of its "
        "bytes; accuracy is not measured here, so read some of its output before you choose it."
    )


def _by_engine(fast: _Row, slow: _Row) -> str:
    return (
        f"{fast.variant} decodes {fast.speed.value / slow.speed.value:.2f}x as fast on {fast.trial.runtime} as on "
        f"{slow.trial.runtime}; compare other precisions with --precision."
    )
