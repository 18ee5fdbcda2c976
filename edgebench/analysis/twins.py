"""Which rows hold the same weights: their difference is the runtime's, and nothing else's."""

from __future__ import annotations

from collections.abc import Sequence

from edgebench.analysis.summary import TrialSummary


def twins(trials: Sequence[TrialSummary]) -> tuple[tuple[TrialSummary, TrialSummary], ...]:
    """Pairs of measured trials whose artifacts hold the same values bit for bit in two formats, (parent, twin)."""
    measured = [trial for trial in trials if trial.outcome == "ok"]
    parents = {trial.trial.artifact.sha256: trial for trial in measured}
    return tuple(
        (parents[same], trial) for trial in measured if (same := trial.trial.artifact.same_weights_as) in parents
    )
