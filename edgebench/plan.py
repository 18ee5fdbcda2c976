"""From a request to trials: find the artifacts, make the precisions, choose the threads.

What cannot be prepared (a damaged file, a precision that the quantizer refuses) becomes a rejected trial with its
failure, and the rest goes on. What is wrong with the request itself is a `UsageError` before anything runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as TypingProtocol

from msgspec.structs import replace

from edgebench import artifacts, derive
from edgebench.checkpoint.gguf import identify
from edgebench.checkpoint.hf_config import HFConfig
from edgebench.derive import Maker
from edgebench.engine.about import about
from edgebench.errors import CacheError, EdgebenchError, MissingDependency, UsageError
from edgebench.export.precisions import SHIPPED, check_precision, formats_of
from edgebench.host import Host
from edgebench.records import Fact, Failure
from edgebench.registry import load
from edgebench.runtimes.base import Runtime
from edgebench.selection import chosen_runtimes, on_device
from edgebench.specs import Artifact, Protocol, Settings, TrialSpec, Workload, parse_workload
from edgebench.topology import Topology, default_threads

_FEW = 3  # with more trials a round has one block of each: rounds tell more than blocks, and the budget is one
_FAKE_BITS = {"q4_0": 4.5, "q8_0": 8.5}


@dataclass(frozen=True)
class Request:
    """What the user asked for, names not yet checked."""

    models: Sequence[str]
    precisions: Sequence[str] = (SHIPPED, "q8_0", "q4_0")
    runtimes: Sequence[str] = ()
    device: str = "cpu"
    threads: int | None = None
    spinning: bool | None = None
    arena: bool | None = None
    pin: bool = False
    accuracy_level: int | None = None
    workloads: Sequence[str] = ("pp512", "tg128")
    blocks: int = 2
    protocol: Protocol = field(default_factory=Protocol)
    script: dict[str, float] = field(default_factory=dict)
    accept_license: bool = False
    force_context: bool = False


@dataclass(frozen=True)
class Rejected:
    """A trial that could not be prepared."""

    trial: TrialSpec
    failure: Failure


@dataclass(frozen=True)
class Prepared:
    """Trials ready to run, and those that are not."""

    trials: tuple[TrialSpec, ...]
    rejected: tuple[Rejected, ...]


class Teller(derive.Teller, TypingProtocol):
    """Told what preparation does."""

    def progress(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """A download or a hash."""
        ...

    def say(self, text: str) -> None:
        """Something that stays on the screen."""
        ...


# --- checking the request ---------------------------------------------------------------------------------------------


def check(request: Request) -> tuple[tuple[Runtime, ...], tuple[str, ...], tuple[Workload, ...]]:
    """Runtimes, precisions and workloads of a request.

    Raises:
        UsageError: for anything that no machine could do.
    """
    if request.threads is not None and request.threads < 1:
        raise UsageError(f"{request.threads} threads cannot compute anything.", "give --threads 1 or more.")
    runtimes = chosen_runtimes(request.runtimes)
    _check_settings(request, runtimes)
    precisions = tuple(dict.fromkeys(check_precision(name) for name in request.precisions))
    _check_formats(precisions, runtimes)
    workloads = tuple(dict.fromkeys(parse_workload(text) for text in request.workloads))
    if not (precisions and workloads and request.models):
        raise UsageError("Nothing was asked for.", "give at least one model, one precision and one workload.")
    if request.script:
        if [runtime.name for runtime in runtimes] != ["fake"]:
            raise UsageError("--script is for the fake runtime only.", "add --runtime fake, or leave --script out.")
        load("runtimes", "fake").check_script(request.script)
    return runtimes, precisions, workloads


_OPTIONS = {"spinning": "--[no-]spinning", "arena": "--[no-]arena", "pin": "--pin"}
_LEVELS = (0, 4)


def _check_settings(request: Request, runtimes: Sequence[Runtime]) -> None:
    """Every setting that was asked for must reach at least one runtime."""
    asked = {"spinning": request.spinning is not None, "arena": request.arena is not None, "pin": request.pin}
    named = ", ".join(runtime.name for runtime in runtimes)
    for name in (name for name, is_asked in asked.items() if is_asked):
        if not any(name in runtime.settings for runtime in runtimes):
            raise UsageError(
                f"{_OPTIONS[name]} is a setting of onnxruntime, not of {named}.", "add --runtime ort, or leave it out."
            )
    if request.accuracy_level is None:
        return
    if request.accuracy_level not in _LEVELS:
        raise UsageError(
            f"There is no accuracy level {request.accuracy_level} here.",
            "give 4 (matrices are multiplied with activations of 8 bits) or 0 (with floats).",
        )
    if not any("onnx" in runtime.formats for runtime in runtimes):
        raise UsageError(
            f"--accuracy-level is a property of ONNX graphs, which {named} does not run.",
            "add --runtime ort, or leave it out.",
        )


def _check_formats(precisions: Sequence[str], runtimes: Sequence[Runtime]) -> None:
    for precision in precisions:
        if not any(_format(precision, runtime) for runtime in runtimes):
            raise UsageError(
                f"{precision} is made for onnxruntime only, not for {', '.join(r.name for r in runtimes)}.",
                "add --runtime ort, or choose another precision.",
            )


def _format(precision: str, runtime: Runtime, source: Artifact | EdgebenchError | None = None) -> str | None:
    """The format in which this runtime gets this precision of a source; None where it cannot have it."""
    if runtime.name == "fake":
        return "fake"
    if isinstance(source, Artifact) and source.format == "onnx":
        return "onnx" if "onnx" in runtime.formats else None
    return next((form for form in formats_of(precision) if form in runtime.formats), None)


# --- threads ----------------------------------------------------------------------------------------------------------


def settings_for(request: Request, topology: Topology, runtime: Runtime, threads: int, threads_batch: int) -> Settings:
    """Settings of a runtime with these threads; on a machine with core classes they are kept on the fast ones.

    llama.cpp splits work evenly and waits for the slowest thread, so one slow core halves the speed
    (llama.cpp issue 7176). Where all cores are alike nothing is pinned, as in llama-bench. ``--pin`` goes further where
    the runtime can: each thread stays on a physical core of its own.

    Raises:
        UsageError: when more threads are to be pinned than there are performance cores.
    """
    cores = topology.physical_cores.value
    mixed = isinstance(cores, int) and len(topology.performance_cpus) < min(cores, len(topology.allowed))
    if runtime.one_pool:
        threads_batch = threads
    fits = max(threads, threads_batch) <= len(topology.performance_cpus)
    has = runtime.settings
    pin = request.pin and "pin" in has
    if pin and not (fits and hasattr(os, "sched_setaffinity")):
        raise UsageError(
            f"{threads} threads cannot be pinned to {len(topology.performance_cpus)} performance cores here.",
            "leave --pin out, or give fewer --threads." if fits is False else "leave --pin out on this system.",
        )
    return Settings(
        device=request.device,
        threads=threads,
        threads_batch=threads_batch,
        kv_type=runtime.kv_type(request.device),
        cpus=topology.performance_cpus if pin or (mixed and fits) else (),
        spinning=request.spinning is not False if "spinning" in has else None,
        arena=request.arena is not False if "arena" in has else None,
        pin=pin if "pin" in has else None,
    )


def thread_counts(topology: Topology) -> tuple[int, ...]:
    """Thread counts worth trying: powers of two, all but one, and all performance cores."""
    most, _ = default_threads(topology)
    powers = {1 << bit for bit in range(most.bit_length()) if 1 << bit <= most}
    return tuple(sorted(powers | {most} | ({most - 1} if most > 2 else set())))


# --- artifacts --------------------------------------------------------------------------------------------------------


class Preparer:
    """Makes the trials of a request."""

    def __init__(self, request: Request, host: Host, topology: Topology, teller: Teller) -> None:
        self._request, self._host, self._topology, self._teller = request, host, topology, teller
        self._runtimes, self._precisions, self._workloads = check(request)
        self._choose_by_device()
        self._trained: dict[str, int | None] = {}
        self._sources = self._obtain_all()
        for model, source in self._sources.items():
            if not any(_format(SHIPPED, runtime, source) for runtime in self._runtimes):
                raise UsageError(
                    f"{model} is an ONNX export, which {', '.join(r.name for r in self._runtimes)} cannot run.",
                    "add --runtime ort, or give the checkpoint it was made from.",
                )
        self._made: list[tuple[str, Runtime, str, Artifact | Failure]] = []

    @property
    def _halved(self) -> bool:
        """Whether the device computes in half precision only."""
        return any(r.kv_type(self._request.device) == "f16" for r in self._runtimes if "onnx" in r.formats)

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """The runtimes of the request."""
        return self._runtimes

    def _choose_by_device(self) -> None:
        able, left_out = on_device(
            self._request.device,
            self._runtimes,
            lambda name: about(name, self._host).devices,
            asked=bool(self._request.runtimes),
        )
        for reason in left_out:
            self._teller.say(f"left out: {reason}")
        if able != self._runtimes:
            self._runtimes = able
            _check_formats(self._precisions, able)

    def _obtain_all(self) -> dict[str, Artifact | EdgebenchError]:
        """The file of each model, or why there is none. A wrong request stops everything; a bad file does not."""
        found: dict[str, Artifact | EdgebenchError] = {}
        if {runtime.name for runtime in self._runtimes} == {"fake"}:
            return {model: _fake_artifact(model, SHIPPED) for model in self._request.models}
        for model in dict.fromkeys(self._request.models):
            try:
                artifact = artifacts.obtain(
                    model, accept_license=self._request.accept_license, progress=self._teller.progress
                )
                context, artifact = _context_of(artifact)
            except (UsageError, CacheError, MissingDependency):
                raise  # no other model would fare better
            except EdgebenchError as error:
                found[model] = error
                continue
            self._check_context(context, artifact)
            self._trained[artifact.sha256] = context
            found[model] = artifact
        return found

    def _check_context(self, trained: int | None, artifact: Artifact) -> None:
        needed = max(workload.n + workload.depth for workload in self._workloads)
        if trained is not None and needed > trained and not self._request.force_context:
            raise UsageError(
                f"The workloads need {needed} tokens of context; {artifact.model} was trained for {trained}.",
                "choose smaller workloads, or add --force-context to measure anyway.",
            )

    def keep_first_runtime(self) -> None:
        """Go on with the first runtime that can have the first precision of the first model."""
        source, precision = next(iter(self._sources.values())), self._precisions[0]
        self._runtimes = tuple(r for r in self._runtimes if _format(precision, r, source) is not None)[:1]

    def make(self, quantizer: Fact) -> None:
        """Make every precision of every model that is not there yet, in the format that each runtime needs.

        Args:
            quantizer: version of llama.cpp, part of the identity of what it makes.
        """
        threads, _ = default_threads(self._topology)
        maker = Maker(self._host, str(quantizer.value or "unknown llama.cpp"), threads, self._teller)
        self._made = [
            (model, runtime, precision, self._at_precision(maker, source, precision, form))
            for model, source in self._sources.items()
            for precision in ((SHIPPED,) if isinstance(source, EdgebenchError) else self._precisions)
            for runtime in self._runtimes
            if (form := _format(precision, runtime, source)) is not None
        ]

    def trials(self, settings: dict[str, Settings]) -> Prepared:
        """All trials: every model at every precision on every runtime, with the settings of that runtime."""
        trials: dict[str, TrialSpec] = {}
        rejected: list[Rejected] = []
        for model, runtime, precision, made in self._made:
            artifact = made if isinstance(made, Artifact) else self._placeholder(model, precision, runtime)
            trial = self._trial(artifact, runtime, settings[runtime.name])
            if isinstance(made, Failure):
                rejected.append(Rejected(trial, made))
            else:
                trials.setdefault(trial.trial_id, trial)
        return Prepared(tuple(trials.values()), tuple(rejected))

    def _placeholder(self, model: str, precision: str, runtime: Runtime) -> Artifact:
        """Stands in the record of a trial whose artifact could not be made: it has no bytes and no hash."""
        source = self._sources[model]
        if isinstance(source, Artifact):
            model, precision = source.model, source.precision if precision == SHIPPED else precision
        return Artifact(model=model, precision=precision, format=runtime.formats[0], path="", bytes=0, sha256="")

    def _trial(self, artifact: Artifact, runtime: Runtime, settings: Settings) -> TrialSpec:
        return TrialSpec(
            artifact=artifact,
            runtime=runtime.name,
            settings=settings,
            workloads=self._workloads,
            blocks=self._request.blocks if len(self._made) <= _FEW else 1,
            script=self._request.script,
        )

    def _at_precision(
        self, maker: Maker, source: Artifact | EdgebenchError, precision: str, form: str
    ) -> Artifact | Failure:
        if isinstance(source, EdgebenchError):
            return Failure(kind="bad-artifact", says=source.what, next_step=source.next_step, phase="prepare")
        if form == "fake":
            return source if precision == SHIPPED else _fake_artifact(source.model, precision)
        if form == "onnx":
            tokens = max(workload.context for workload in self._workloads)
            context = derive.needed_context(tokens, self._trained.get(source.sha256))
            kind = derive.Kind(context, self._request.accuracy_level, halved=self._halved)
            return maker.onnx(source, precision, kind)
        return maker.gguf(source, precision)


def _context_of(artifact: Artifact) -> tuple[int | None, Artifact]:
    """Tokens that a model was trained for, and the artifact with the precision that its own header tells."""
    if artifact.format == "gguf":
        artifact, header = identify(artifact)
        return header.context_length, artifact
    if artifact.format == "onnx":
        return derive.trained_context(artifact), artifact
    context = HFConfig(Path(artifact.path)).read(artifact.model).context
    return context, replace(artifact, precision=derive.folder_precision(artifact))


def _fake_artifact(model: str, precision: str) -> Artifact:
    return Artifact(
        model=model,
        precision=precision,
        format="fake",
        path="",
        bytes=round(1000 * _FAKE_BITS.get(precision, 16) / 8),
        sha256="0" * 64,
        origin="scripted",
    )
