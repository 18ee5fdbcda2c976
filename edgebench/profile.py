"""The main job from end to end: prepare artifacts, find the best thread counts, measure in rounds, summarise.

Deciding and doing only; what the user sees is made by ``report`` and the CLI from the `Result`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edgebench import __version__, bench, devices
from edgebench.analysis.next_step import next_step
from edgebench.analysis.summary import TrialSummary, summarize_session
from edgebench.engine.about import about
from edgebench.engine.protocol import Limits
from edgebench.errors import UsageError
from edgebench.host import Host
from edgebench.metering import EstimateRequest, check_source
from edgebench.plan import Preparer, Request, Teller, settings_for, thread_counts
from edgebench.provenance import describe
from edgebench.records import SCHEMA, Fact, Run
from edgebench.registry import load
from edgebench.schedule import Why
from edgebench.specs import Plan, Settings, parse_workload
from edgebench.store import Session, Store
from edgebench.topology import default_threads, read_topology
from edgebench.units import format_seconds

_SEARCH_WORKLOADS = (parse_workload("tg32"), parse_workload("pp128"))


class Listener(bench.Listener, Teller, Protocol):
    """Told about preparation and measuring."""


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to measure."""

    store: str | None = None
    command: tuple[str, ...] = ()
    limits: Limits = Limits()
    meter: str = ""
    """A power meter outside the machine (see ``sensors/meter.py``); empty: the profile's, or the environment's."""
    estimate: EstimateRequest | None = None
    root: Path = Path("/")
    """A captured tree that stands in for the machine, to try what edgebench makes of its sensors; or ``/``."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a session as one document."""

    schema: int = SCHEMA
    edgebench: str = __version__
    session_id: str
    device_profile: str
    device: str
    """In words: title, cores, memory."""
    plan: Plan
    thread_choice: dict[str, dict[str, dict[int, float]]]
    """By runtime and workload kind: tokens/s by thread count."""
    trials: tuple[TrialSummary, ...]
    stopped: dict[str, Why]
    """By trial id: why it was not measured further."""
    interrupted_by: Literal["", "SIGINT", "SIGTERM"]
    measured_s: float
    next_step: str
    runs: tuple[Run, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all trials measured, 3 none, 4 some; 130 and 143 when it was interrupted."""
        if self.interrupted_by:
            return 130 if self.interrupted_by == "SIGINT" else 143
        measured = [trial.outcome == "ok" for trial in self.trials]
        if not any(measured):
            return 3
        return 0 if all(measured) else 4


class Profiler:
    """One profiling session on this machine."""

    def __init__(self, options: Options, listener: Listener) -> None:
        self._options, self._listener = options, listener
        self._host = Host(options.root)
        self._topology = read_topology(self._host)
        self._profile = devices.detect(self._host, self._topology)
        if options.meter:
            self._profile = msgspec.structs.replace(self._profile, attached_meter=options.meter)
        meter = load("sensors", "meter")
        if named := meter.named(self._profile):
            meter.parse_meter(named)  # a slip is told now, not by a sampler that dies of it

    def _setting(self, runtimes: tuple[str, ...]) -> bench.Setting:
        return bench.Setting(
            host=self._host,
            topology=self._topology,
            profile=self._profile,
            command=self._options.command,
            limits=self._options.limits,
            about={name: about(name, self._host) for name in runtimes},
            estimate=self._options.estimate,
        )

    # --- a new session

    def run(self, request: Request) -> Outcome:
        """Prepare, search threads, measure.

        Raises:
            EdgebenchError: when the request, the cache or the store is wrong; what was measured is stored.
        """
        if request.protocol.energy is not None and self._options.estimate is None:
            check_source(self._host, self._profile)
        if not self._host.is_live and set(request.runtimes) != {"fake"}:
            raise UsageError(
                f"{self._options.root} is a captured tree: no engine can be measured on that machine from here.",
                "add --runtime fake, or leave --root out.",
            )
        preparer = Preparer(request, self._host, self._topology, self._listener)
        with Store.open(self._options.store) as store:
            setting = self._setting(tuple(runtime.name for runtime in preparer.runtimes))
            session = bench.Session(setting, bench.new_id(), self._listener)
            try:
                return self._measure_new(request, preparer, setting, session, store)
            finally:
                session.close()

    def _measure_new(
        self, request: Request, preparer: Preparer, setting: bench.Setting, session: bench.Session, store: Store
    ) -> Outcome:
        only_fake = set(setting.about) == {"fake"}
        preparer.make(Fact(value="none") if only_fake else about("llamacpp", self._host).version)
        settings, searches, choices = self._threads(request, preparer, session)
        prepared = preparer.trials(settings)
        plan = Plan(trials=prepared.trials, protocol=request.protocol)
        store.begin_session(
            Session(
                session_id=session.session_id,
                created_utc=bench.now_utc(),
                command=self._options.command,
                plan=plan,
                device_profile=self._profile.id,
            )
        )
        early = [*searches, *(session.reject(rejected) for rejected in prepared.rejected)]
        for run in early:
            store.record(run)
        self._announce(plan)
        return self._measure(session, plan, store, early, choices)

    def _announce(self, plan: Plan) -> None:
        """How long a session of energy takes, before it begins."""
        protocol = plan.protocol
        if protocol.energy is None or not plan.trials:
            return
        round_s, trials, rounds = (
            protocol.energy.round_s(len(plan.trials[0].workloads)),
            len(plan.trials),
            protocol.min_rounds,
        )
        total_s = min(trials * rounds * round_s, max(protocol.budget_s, trials * round_s))
        self._listener.say(
            f"energy: trials: {trials}, rounds of each: {rounds}, a round: about {format_seconds(round_s)}, "
            f"{format_seconds(total_s)} in all; --budget ends it earlier, with fewer rounds"
        )

    def _threads(
        self, request: Request, preparer: Preparer, session: bench.Session
    ) -> tuple[dict[str, Settings], list[Run], dict[str, dict[str, dict[int, float]]]]:
        """Settings by runtime; a search decides unless the user did or there is nothing to choose."""
        default, _ = default_threads(self._topology)
        asked = request.threads or default
        runtimes = {runtime.name: runtime for runtime in preparer.runtimes}
        settings = {
            name: settings_for(request, self._topology, runtime, asked, asked) for name, runtime in runtimes.items()
        }
        counts = thread_counts(self._topology)
        runs: list[Run] = []
        choices: dict[str, dict[str, dict[int, float]]] = {}
        if request.threads is not None or len(counts) == 1:
            return settings, runs, choices
        first = {trial.runtime: trial for trial in reversed(preparer.trials(settings).trials)}
        for name, trial in first.items():
            self._listener.step(f"finding the best thread counts for {name}")
            run = session.search_threads(msgspec.structs.replace(trial, workloads=_SEARCH_WORKLOADS), counts)
            runs.append(run)
            if run.outcome == "ok":
                choice = bench.choose_threads(run, default)
                choices[name] = choice.rates
                settings[name] = settings_for(
                    request, self._topology, runtimes[name], choice.threads, choice.threads_batch
                )
        return settings, runs, choices

    # --- an interrupted one

    def resume(self, which: str) -> Outcome:
        """Finish a session: rounds that have a record are not repeated.

        Args:
            which: ``last`` or the beginning of a session id.

        Raises:
            UsageError: when there is nothing to finish.
        """
        with Store.open(self._options.store) as store:
            found = store.latest_unfinished_session() if which == "last" else store.session(which)
            if found is None:
                raise UsageError("No session was interrupted.", "start one: edgebench profile")
            done = list(store.runs(session_id=found.session_id))
            _check_files(found.plan)
            runtimes = tuple(dict.fromkeys(trial.runtime for trial in found.plan.trials))
            session = bench.Session(self._setting(runtimes), found.session_id, self._listener)
            self._listener.say(f"resuming session {found.session_id}: {len(done)} runs are there already")
            try:
                return self._measure(session, found.plan, store, done, {})
            finally:
                session.close()

    def _measure(
        self,
        session: bench.Session,
        plan: Plan,
        store: Store,
        early: list[Run],
        choices: dict[str, dict[str, dict[int, float]]],
    ) -> Outcome:
        measured = session.measure(plan, store, early)
        every = [*early, *measured.runs]
        trials = summarize_session(every, plan.protocol)
        outcome = Outcome(
            session_id=session.session_id,
            device_profile=self._profile.id,
            device=describe(self._host, self._profile, self._topology),
            plan=plan,
            thread_choice=choices,
            trials=trials,
            stopped=measured.stopped,
            interrupted_by=measured.interrupted_by,
            measured_s=session.elapsed_s(),
            next_step=f"finish it: edgebench profile --resume {session.session_id}"
            if measured.interrupted_by
            else next_step(trials, session.session_id),
            runs=tuple(every),
        )
        if not measured.interrupted_by:
            store.end_session(session.session_id, outcome.exit_code, bench.now_utc())
        return outcome


def _check_files(plan: Plan) -> None:
    """A resumed plan needs its files where they were."""
    for trial in plan.trials:
        path = trial.artifact.path
        if path and not Path(path).exists():  # an ONNX artifact is a folder
            raise UsageError(
                f"The artifact {trial.artifact.model} {trial.artifact.precision} is gone: {path}.",
                "run the profile again from the start: edgebench profile",
            )
