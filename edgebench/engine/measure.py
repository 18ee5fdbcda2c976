"""What happens inside the child for one round: load, warm up, timed blocks, memory at the end of each phase.

The order of the workloads alternates between rounds (ABBA), each block starts from a cleared KV cache, and whatever is
not a timed call (reading counters, talking to the parent) lies outside the block.

Sustained workloads come last, since they leave the machine hot. Their blocks are told one by one like all others, so
that whatever ends the child leaves those before.
"""

from __future__ import annotations

import random
import time
from itertools import count
from typing import Protocol

import numpy as np

from edgebench.engine.edges import EdgeReader
from edgebench.engine.memory import MemoryReader
from edgebench.engine.messages import (
    Advance,
    Finished,
    Measured,
    MeasureJob,
    Opened,
    Phase,
    Ready,
    Reply,
    ThreadSearchJob,
    Timed,
)
from edgebench.engine.steady import Warmth, rest
from edgebench.errors import ArtifactError
from edgebench.host import Host
from edgebench.records import Block
from edgebench.runtimes.base import Context, Model, Runtime
from edgebench.specs import TrialSpec, Workload

_GREEDY_TOKENS = 8


class Parent(Protocol):
    """The worker's channel, as far as measuring needs it."""

    def say(self, message: Reply) -> None:
        """Send a message."""
        ...

    def note(self, text: str) -> None:
        """Keep what the engine says."""
        ...

    def wait_for_go(self) -> None:
        """Wait until the parent is idle."""
        ...


class Bench:
    """A loaded model and the readers around it."""

    def __init__(self, model: Model, trial: TrialSpec, parent: Parent, host: Host) -> None:
        self.model, self.trial, self.parent, self.host = model, trial, parent, host
        self.edges, self.memory = EdgeReader(host), MemoryReader(host)
        self._random = random.Random(trial.seed)  # noqa: S311 - token ids, not secrets

    def tokens(self, n: int) -> list[int]:
        """Random token ids, the first one the model's begin-of-sequence token if it wants one, as llama-bench does."""
        ids = [self._random.randrange(self.model.loaded.vocabulary) for _ in range(n)]
        if n and self.model.first_token is not None:
            ids[0] = self.model.first_token
        return ids

    def block(self, context: Context, workload: Workload, index: int, name: str, threads: int | None = None) -> Block:
        """One timed block; the context is already at its depth."""
        tokens = self.tokens(workload.n)
        self.parent.say(Ready(workload=name, index=index))
        self.parent.wait_for_go()
        start = self.edges.read()
        ttft: int | None = None
        if workload.kind == "pp":
            t0, t1, steps, ttft = context.time_prefill(tokens)
        else:
            t0, t1, steps = context.time_decode(tokens)
        end = self.edges.read()
        return Block(
            workload=name,
            index=index,
            tokens=workload.n,
            start=start,
            end=end,
            t0_ns=t0,
            t1_ns=t1,
            step_ns=steps,
            ttft_ns=ttft,
            threads=threads,
        )

    def warm_up(self, context: Context, workload: Workload) -> object | None:
        """A full prompt for prefill, a few tokens for decode; returns the filled cache where there is a depth."""
        context.clear()
        if workload.depth:
            context.prefill(self.tokens(workload.depth))
            filled = context.save()
        else:
            filled = None
        context.prefill(self.tokens(workload.n)) if workload.kind == "pp" else context.time_decode(self.tokens(4))
        return filled

    @staticmethod
    def refill(context: Context, filled: object | None) -> None:
        """The cache as a block finds it: empty, or filled to its depth."""
        context.clear()
        if filled is not None:
            context.restore(filled)

    def warm_through(self, context: Context, workload: Workload, filled: object | None, warmth: Warmth) -> None:
        """Repeat the workload untimed until the temperature has settled."""
        while not warmth.settled():
            self.refill(context, filled)
            tokens = self.tokens(workload.n)
            context.time_prefill(tokens) if workload.kind == "pp" else context.time_decode(tokens)
            self.parent.say(Advance(done=warmth.seconds, total=warmth.longest, unit="s"))

    def greedy(self, context: Context) -> tuple[int, ...]:
        """Tokens chosen greedily after a fixed prompt.

        Raises:
            ArtifactError: when the logits are not finite: the artifact or the build is broken.
        """
        context.clear()
        tokens = list(range(min(16, self.model.loaded.vocabulary)))
        chosen: list[int] = []
        for _ in range(_GREEDY_TOKENS):
            context.prefill(tokens)
            logits = context.logits()
            if not np.isfinite(logits).all():
                artifact = self.trial.artifact
                raise ArtifactError(
                    f"{artifact.path or artifact.model}: the model's logits are not finite numbers.",
                    "make or pull the artifact again; if it persists, the engine's build is broken on this CPU.",
                )
            tokens = [int(logits.argmax())]
            chosen += tokens
        return tuple(chosen)


def _open(job: MeasureJob | ThreadSearchJob, runtime: Runtime, parent: Parent, host: Host) -> Bench:
    memory = MemoryReader(host)
    parent.say(Phase(name="load", t_ns=time.monotonic_ns()))
    memory.begin()
    model = runtime.open(job.trial, parent.note)
    parent.say(Opened(loaded=model.loaded))
    parent.say(Measured(phase=memory.end("load")))
    return Bench(model, job.trial, parent, host)


def measure(job: MeasureJob, runtime: Runtime, parent: Parent, host: Host) -> Finished:
    """One round of a trial."""
    rest(parent.say, "idle", job.energy)
    bench = _open(job, runtime, parent, host)
    rest(parent.say, "idle_loaded", job.energy)
    ordered = job.trial.workloads if job.round % 2 == 0 else job.trial.workloads[::-1]
    brief = [workload for workload in ordered if workload.kind != "sustained"]
    lasting = [workload for workload in ordered if workload.kind == "sustained" and job.sustained]
    spent = 0.0
    greedy: tuple[int, ...] = ()
    for workload in (*brief, *lasting):
        parent.say(Phase(name=workload.name, t_ns=time.monotonic_ns()))
        bench.memory.begin()
        context = bench.model.context(workload.context, job.trial.settings)
        greedy = greedy or bench.greedy(context)
        filled = bench.warm_up(context, workload)
        if workload.kind == "sustained":
            _sustain(bench, context, workload)
        else:
            spent = _blocks(job, bench, context, workload, filled, spent)
        parent.say(Measured(phase=bench.memory.end(workload.name)))
        context.close()
    parent.say(Phase(name="end", t_ns=time.monotonic_ns()))
    account = bench.model.memory()
    rest(parent.say, "idle_loaded", job.energy)
    bench.model.close()
    rest(parent.say, "idle", job.energy)
    return Finished(engine_memory=account, greedy=greedy)


def _blocks(
    job: MeasureJob, bench: Bench, context: Context, workload: Workload, filled: object | None, spent: float
) -> float:
    """The timed blocks of one workload: some within the budget, or as many as fill a window of energy.

    Args:
        job: says how many.
        bench: times and tells them.
        context: warmed up.
        workload: what is timed.
        filled: the saved cache where there is a depth.
        spent: time in blocks so far, s.

    Returns:
        Time in blocks after them, s.
    """
    window = 0.0
    if job.energy is not None:
        bench.warm_through(context, workload, filled, Warmth(bench.host, job.energy))
    for index in count():
        full = index >= job.trial.blocks or spent > job.budget_s
        if index and (full if job.energy is None else window >= job.energy.window_s):
            break
        bench.refill(context, filled)
        block = bench.block(context, workload, index, workload.name)
        spent, window = spent + block.seconds, window + block.seconds
        bench.parent.say(Timed(block=block))
    return spent


def _sustain(bench: Bench, context: Context, workload: Workload) -> None:
    """Block after block until the time is over; each is the same work, so that a change is the machine's."""
    end_ns = time.monotonic_ns() + round(workload.seconds * 1e9)
    index = 0
    while time.monotonic_ns() < end_ns:
        context.clear()
        bench.parent.say(Timed(block=bench.block(context, workload, index, workload.name)))
        index += 1


def search_threads(job: ThreadSearchJob, runtime: Runtime, parent: Parent, host: Host) -> Finished:
    """Time each workload at each thread count, forwards then backwards, without reloading."""
    bench = _open(job, runtime, parent, host)
    for workload in job.trial.workloads:
        parent.say(Phase(name=workload.name, t_ns=time.monotonic_ns()))
        context = bench.model.context(workload.context, job.trial.settings)
        bench.warm_up(context, workload)
        for index in range(job.repeats):
            for threads in job.counts if index % 2 == 0 else job.counts[::-1]:
                context.set_threads(threads, threads)
                context.clear()
                context.time_decode(bench.tokens(2))
                context.clear()
                parent.say(Timed(block=bench.block(context, workload, index, workload.name, threads)))
        context.close()
    parent.say(Phase(name="end", t_ns=time.monotonic_ns()))
    bench.model.close()
    return Finished()
