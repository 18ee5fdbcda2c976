"""Which trial runs next, and when to stop: pure, so that a whole session can be tried without one process.

Trials are interleaved in rounds, every other round backwards (ABBA), so that a slow drift of the machine falls on all
of them alike. A trial leaves the schedule when its intervals are narrow enough, or when it has failed in a way that a
repetition would not change. The budget ends the session before a round that would not fit, but never before every
trial had its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgebench.analysis.summary import round_values
from edgebench.records import Run
from edgebench.specs import Plan, TrialSpec
from edgebench.stats import should_stop

Why = Literal["target", "max-rounds", "budget", "failed"]

_KILLS_TOLERATED = 1


@dataclass(frozen=True)
class Next:
    """The next round of a trial."""

    trial: TrialSpec
    round: int
    sustained: bool = True
    """Whether its sustained workloads are still to be done: once is enough, they last long."""


class Schedule:
    """Decides from the plan and the runs so far.

    Args:
        plan: trials and protocol.
        done: runs of earlier, interrupted sessions of the same plan.
    """

    def __init__(self, plan: Plan, done: Sequence[Run] = ()) -> None:
        self._plan = plan
        self._runs: dict[str, list[Run]] = {trial.trial_id: [] for trial in plan.trials}
        self._durations: dict[str, float] = {}
        self.stopped: dict[str, Why] = {}
        """Why each trial that left the schedule did so."""
        for run in done:
            self.take(run)

    def take(self, run: Run) -> None:
        """Count a finished run."""
        trial_id = run.trial.trial_id
        if run.purpose != "measure" or trial_id not in self._runs:
            return
        if run.failure is not None and run.failure.kind == "interrupted":
            return  # whoever stopped the session did not judge the trial; the round is repeated
        runs = self._runs[trial_id]
        runs.append(run)
        lasting = {workload.name for workload in run.trial.workloads if workload.kind == "sustained"}
        once_s = sum(block.seconds for block in run.blocks if block.workload in lasting)
        self._durations[trial_id] = (run.ended_ns - run.started_ns) / 1e9 - once_s
        failures = [one for one in runs if one.outcome != "ok"]
        if any(one.outcome != "killed" for one in failures) or len(failures) > _KILLS_TOLERATED:
            self.stopped[trial_id] = "failed"
            return
        if all(workload.kind == "sustained" for workload in run.trial.workloads) and run.outcome == "ok":
            self.stopped[trial_id] = "max-rounds"
            return
        decision = should_stop(self._values(runs), self._plan.protocol)
        if decision.stop and decision.reason != "continue":
            self.stopped[trial_id] = decision.reason
        elif len(runs) >= self._plan.protocol.max_rounds + _KILLS_TOLERATED:
            self.stopped[trial_id] = "max-rounds"  # rounds that leave no value must not go on for ever

    def _values(self, runs: Sequence[Run]) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {}
        for run in runs:
            if run.outcome == "ok":
                for workload, value in round_values(run).items():
                    values.setdefault(workload, []).append(value)
        return values

    def next(self, elapsed_s: float) -> Next | None:
        """The next round, or None when the session is over.

        Args:
            elapsed_s: since the session began to measure.
        """
        waiting = [
            (len(self._runs[trial.trial_id]), position, trial)
            for position, trial in enumerate(self._plan.trials)
            if trial.trial_id not in self.stopped
        ]
        if not waiting:
            return None
        current = min(round_ for round_, _, _ in waiting)
        candidates = [(position, trial) for round_, position, trial in waiting if round_ == current]
        _, trial = candidates[0] if current % 2 == 0 else candidates[-1]
        if current and elapsed_s + self._durations[trial.trial_id] > self._plan.protocol.budget_s:
            for _, _, unfinished in waiting:
                if self._runs[unfinished.trial_id]:
                    self.stopped[unfinished.trial_id] = "budget"
            return self.next(elapsed_s)
        done = any(one.outcome == "ok" for one in self._runs[trial.trial_id])
        return Next(trial, current, sustained=not done)

    def remaining(self) -> int:
        """Trials that have not left the schedule."""
        return len(self._plan.trials) - len(self.stopped)
