"""Do what a plan says: a child for each round, the sampler beside it, one record per run in the store.

A run is announced before its child starts, so that even a power cut leaves evidence, and is stored before the next one
starts. Ctrl-C or SIGTERM kills the child and leaves the announcement without a record: ``--resume`` repeats that run.
Of a run with a sustained workload, which may have lasted for an hour, what there is by then is recorded as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, Protocol

import msgspec

from edgebench.analysis.disturbance import disturbance
from edgebench.analysis.findings import run_findings
from edgebench.cooling import Cooling, cooling_finding
from edgebench.device_profile import DeviceProfile
from edgebench.engine.cgroup_peak import CgroupPeak
from edgebench.engine.child import Child, Ended
from edgebench.engine.messages import About, MeasureJob, Phase, Ready, Reply, ThreadSearchJob
from edgebench.engine.protocol import Limits
from edgebench.engine.sampler import Readings
from edgebench.engine.telemetry import Telemetry
from edgebench.errors import Terminated
from edgebench.host import Host
from edgebench.metering import EstimateRequest, Metering
from edgebench.plan import Rejected
from edgebench.provenance import collect
from edgebench.records import Energy, MemoryUse, Provenance, Run, Series
from edgebench.schedule import Next, Schedule, Why
from edgebench.specs import Plan, TrialSpec
from edgebench.stats import median
from edgebench.store import Store
from edgebench.topology import Topology

_WORTH_CHANGING = 1.03
"""Another thread count than the default must be this much faster, else the difference may be noise."""


class Listener(Protocol):
    """Told what happens; only ever called while no block is being timed."""

    def run_begins(self, trial: TrialSpec, round_: int, elapsed_s: float, budget_s: float) -> None:
        """A child starts."""
        ...

    def phase(self, name: str, index: int | None) -> None:
        """The child loads, warms up, or is about to time a block."""
        ...

    def run_ended(self, run: Run) -> None:
        """A run is recorded."""
        ...


@dataclass(frozen=True)
class Setting:
    """The machine a session runs on, and the request behind it."""

    host: Host
    topology: Topology
    profile: DeviceProfile
    command: tuple[str, ...]
    limits: Limits
    about: dict[str, About]
    """Version and build by runtime name."""
    estimate: EstimateRequest | None = None
    """Whether a range of energy may be estimated where none is measured."""


def now_utc() -> str:
    """The wall-clock time, for people; every measurement uses the monotonic clock."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def new_id() -> str:
    """A fresh id for a session or a run."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Measured:
    """New runs, why each trial stopped (by trial id), and the signal that interrupted the session, if one did."""

    runs: list[Run]
    stopped: dict[str, Why]
    interrupted_by: Literal["", "SIGINT", "SIGTERM"] = ""


class Session:
    """Runs children and turns what they leave into records.

    Args:
        setting: machine and request.
        session_id: of this session.
        listener: told what happens.
    """

    def __init__(self, setting: Setting, session_id: str, listener: Listener) -> None:
        self.session_id = session_id
        self._setting, self._listener = setting, listener
        self._telemetry = Telemetry(setting.host, setting.profile)
        self._cgroup = CgroupPeak(setting.host)
        self._cut: Run | None = None
        """A run with a sustained workload that was stopped in the middle."""
        self._metering = Metering(setting.host, setting.profile, setting.estimate)
        self._cooling = Cooling(setting.host, setting.profile)
        self._started_ns = setting.host.monotonic_ns()

    def close(self) -> None:
        """End the sampler."""
        self._telemetry.close()

    def elapsed_s(self) -> float:
        """Seconds since the session was made."""
        return (self._setting.host.monotonic_ns() - self._started_ns) / 1e9

    # --- all rounds of a plan

    def measure(self, plan: Plan, store: Store, done: Sequence[Run] = ()) -> Measured:
        """Measure until the schedule is empty or somebody interrupts; what was finished by then is kept."""
        schedule = Schedule(plan, done)
        runs: list[Run] = []
        self._started_ns = self._setting.host.monotonic_ns()  # the budget is for measuring, not for quantizing
        try:
            while (following := schedule.next(self.elapsed_s())) is not None:
                run = self._round(following, plan, store)
                schedule.take(run)
                runs.append(run)
                self._listener.run_ended(run)
        except KeyboardInterrupt:
            return Measured(self._with_cut(runs), schedule.stopped, interrupted_by="SIGINT")
        except Terminated:
            return Measured(self._with_cut(runs), schedule.stopped, interrupted_by="SIGTERM")
        return Measured(runs, schedule.stopped)

    def _round(self, following: Next, plan: Plan, store: Store) -> Run:
        """One announced, measured and recorded round."""
        trial, round_ = following.trial, following.round
        run_id = new_id()
        store.announce(run_id, self.session_id, trial.trial_id, round_, "measure", now_utc())
        protocol = plan.protocol
        cooldown = self._cooling.wait(protocol.cooldown)
        self._listener.run_begins(trial, round_, self.elapsed_s(), protocol.budget_s)
        job = MeasureJob(
            trial=trial,
            round=round_,
            budget_s=protocol.budget_s / len(plan.trials),
            energy=protocol.energy,
            sustained=following.sustained,
        )
        try:
            run = self._run(job, run_id, round_)
        except (KeyboardInterrupt, Terminated):
            if self._cut is not None:
                store.record(self._cut)
            raise
        hot = cooling_finding(cooldown)
        run = msgspec.structs.replace(run, cooldown=cooldown, findings=(*run.findings, *([hot] if hot else [])))
        store.record(run)
        return run

    def _with_cut(self, runs: list[Run]) -> list[Run]:
        return [*runs, self._cut] if self._cut is not None else runs

    def search_threads(self, trial: TrialSpec, counts: tuple[int, ...]) -> Run:
        """Time the trial's workloads at several thread counts, in one child."""
        self._listener.run_begins(trial, 0, self.elapsed_s(), 0.0)
        run = self._run(ThreadSearchJob(trial=trial, counts=counts), new_id(), 0)
        if run.outcome != "ok":
            self._listener.run_ended(run)  # else nobody would know why the default number of threads is used
        return run

    def reject(self, rejected: Rejected) -> Run:
        """The record of a trial that could not be prepared."""
        now = self._setting.host.monotonic_ns()
        return Run(
            run_id=new_id(),
            session_id=self.session_id,
            trial=rejected.trial,
            round=0,
            outcome="failed",
            failure=rejected.failure,
            started_ns=now,
            ended_ns=now,
            energy=Energy(energy_j=None, reason="nothing ran"),
            provenance=self._provenance(rejected.trial.runtime),
        )

    # --- one child

    def _run(self, job: MeasureJob | ThreadSearchJob, run_id: str, round_: int) -> Run:
        self._cgroup.reset()
        with closing(Child(job, self._setting.host, self._setting.limits)) as child:
            self._telemetry.watch(child.pid)
            try:
                ended = child.listen(self._hear)
            except (KeyboardInterrupt, Terminated):
                if any(block.workload.startswith("sustained:") for block in child.attempt.blocks):
                    self._cut = self._record(job, run_id, round_, child.abandoned(), self._telemetry.collect())
                raise
        readings = self._telemetry.collect()
        return self._record(job, run_id, round_, ended, readings)

    def _hear(self, message: Reply) -> None:
        if isinstance(message, Phase):
            self._listener.phase(message.name, None)
        elif isinstance(message, Ready):
            self._listener.phase(message.workload, message.index)

    def _record(
        self, job: MeasureJob | ThreadSearchJob, run_id: str, round_: int, ended: Ended, readings: Readings | None
    ) -> Run:
        trial = job.trial
        purpose: Literal["measure", "thread-search"] = "measure" if isinstance(job, MeasureJob) else "thread-search"
        attempt, finished = ended.attempt, ended.attempt.finished
        run = Run(
            run_id=run_id,
            session_id=self.session_id,
            trial=trial,
            round=round_,
            purpose=purpose,
            outcome=ended.outcome,
            failure=ended.failure,
            started_ns=ended.started_ns,
            ended_ns=ended.ended_ns,
            loaded=attempt.loaded,
            blocks=tuple(attempt.blocks),
            marks=tuple(attempt.marks),
            series=readings.series if readings else (),
            greedy=finished.greedy if finished else (),
            memory=self._memory(ended, readings),
            energy=Energy(energy_j=None, reason="not judged yet"),
            provenance=self._provenance(trial.runtime),
            sampler_cost_s=readings.cpu_s if readings else None,
        )
        energy, doubts = self._metering.judge(run, readings.channels if readings else None)
        return msgspec.structs.replace(run, energy=energy, findings=(*run_findings(run), *doubts))

    def _provenance(self, runtime: str) -> Provenance:
        about = self._setting.about[runtime]
        return collect(
            self._setting.host,
            self._setting.topology,
            self._setting.profile,
            self._setting.command,
            about.version,
            about.build,
        )

    def _memory(self, ended: Ended, readings: Readings | None) -> MemoryUse:
        series = {one.channel.name: one for one in readings.series} if readings else {}
        finished = ended.attempt.finished
        available = _present(series.get("memory.available"))
        return MemoryUse(
            phases=tuple(ended.attempt.memory),
            engine=finished.engine_memory if finished else None,
            anon_peak=_peak(series.get("memory.anon")),
            file_peak=_peak(series.get("memory.file")),
            swap_peak=_peak(series.get("memory.swap")),
            system_used_peak=round(available[0] - min(available)) if available else None,
            cgroup_peak=self._cgroup.read(_peak(series.get("memory.cgroup"))),
            cgroup_note=self._cgroup.note,
        )


def _present(series: Series | None) -> list[float]:
    return [value for value in series.values if value is not None] if series else []


def _peak(series: Series | None) -> int | None:
    values = _present(series)
    return round(max(values)) if values else None


# --- threads ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThreadChoice:
    """The thread counts to measure with, and the rates behind the choice (tokens/s by count, by workload kind)."""

    threads: int
    threads_batch: int
    rates: dict[str, dict[int, float]]


def choose_threads(run: Run, default: int) -> ThreadChoice:
    """The fastest count for decode and for prefill, by blocks that nobody disturbed. Pure.

    The default stays unless another is clearly faster, and where it has no undisturbed block of its own.
    """
    rates: dict[str, dict[int, list[float]]] = {"tg": {}, "pp": {}}
    logical = run.provenance.logical_cpus
    for block in run.blocks:
        if block.threads is not None and not disturbance(block, block.threads, logical).disturbed:
            rates[block.workload[:2]].setdefault(block.threads, []).append(block.tokens_per_s)
    medians = {kind: {count: median(values) for count, values in by.items()} for kind, by in rates.items()}
    return ThreadChoice(
        threads=_fastest(medians["tg"], default), threads_batch=_fastest(medians["pp"], default), rates=medians
    )


def _fastest(rates: dict[int, float], default: int) -> int:
    if default not in rates:
        return default
    best = max(rates, key=lambda count: rates[count])
    return best if rates[best] > _WORTH_CHANGING * rates[default] else default
