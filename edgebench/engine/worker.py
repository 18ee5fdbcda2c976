"""The child process: does one job with one runtime imported, and tells its parent what happened.

``python -m edgebench.engine.worker`` reads a job from standard input and writes messages to the pipe it was started
with; standard output and standard error belong to the native engine. It raises its own ``oom_score_adj`` so that the
kernel kills it and not the session, and dies with its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from typing import BinaryIO

import msgspec

from edgebench.engine import export, generate, measure
from edgebench.engine.messages import (
    About,
    AboutJob,
    ExportJob,
    Failed,
    Finished,
    GenerateJob,
    Job,
    Phase,
    QuantizeJob,
    Reply,
    ThreadSearchJob,
)
from edgebench.errors import EdgebenchError
from edgebench.host import Host, Unavailable
from edgebench.records import Fact
from edgebench.registry import load
from edgebench.runtimes.base import Runtime

_PR_SET_PDEATHSIG = 1


class Channel:
    """The two ends of the pipe to the parent."""

    def __init__(self, orders: BinaryIO, replies: BinaryIO) -> None:
        self._orders, self._replies = orders, replies
        self._encoder = msgspec.json.Encoder()

    def job(self) -> Job:
        """The first line."""
        job: Job = msgspec.json.decode(self._orders.readline(), type=Job)
        return job

    def say(self, message: Reply) -> None:
        """Write one message."""
        self._replies.write(self._encoder.encode(message) + b"\n")
        self._replies.flush()

    @staticmethod
    def note(text: str) -> None:
        """Keep what the engine says: the end of it goes into the record of a failure, however the child dies."""
        sys.stderr.write(text + "\n")

    def wait_for_go(self) -> None:
        """Block until the parent has finished drawing. A parent that is gone ends the child."""
        if not self._orders.readline():
            raise SystemExit(1)


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux only; elsewhere the closed pipe ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _offer_to_the_oom_killer(host: Host) -> None:
    try:
        host.write(host.proc("self/oom_score_adj"), "1000")
    except Unavailable:
        # A read-only procfs: the kernel's own choice stands, and the outcome is classified either way.
        return


def _about(runtime: Runtime) -> About:
    if not runtime.installed():
        missing = Fact(unknown_because=f"not installed: pip install {runtime.package}")
        return About(version=missing, build=missing)
    return About(version=runtime.version(), build=runtime.build(), devices=runtime.usable_devices())


def _do(job: Job, channel: Channel, host: Host) -> Finished:
    if isinstance(job, AboutJob):
        channel.say(_about(load("runtimes", job.runtime).RUNTIME))
        return Finished()
    if isinstance(job, QuantizeJob):
        channel.say(Phase(name="quantize", t_ns=host.monotonic_ns()))
        return export.quantize_file(job, channel)
    if isinstance(job, ExportJob):
        return export.do(job, channel, host)
    runtime: Runtime = load("runtimes", job.trial.runtime).RUNTIME
    channel.say(_about(runtime))
    if job.trial.settings.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.trial.settings.cpus)
    if isinstance(job, GenerateJob):
        return generate.generate(job, runtime, channel)
    if isinstance(job, ThreadSearchJob):
        return measure.search_threads(job, runtime, channel, host)
    return measure.measure(job, runtime, channel, host)


def _failure(error: Exception) -> Failed:
    if isinstance(error, MemoryError):
        return Failed(
            kind="alloc-failed",
            says=str(error) or "memory could not be allocated",
            next_step="choose a smaller precision or context, or free memory (see edgebench doctor).",
        )
    if isinstance(error, EdgebenchError):
        return Failed(kind="bad-artifact", says=error.what, next_step=error.next_step)
    return Failed(
        kind="python-error",
        says=f"{type(error).__name__}: {error}",
        next_step="see the traceback in the record (edgebench runs show); it is worth a bug report.",
        detail="".join(traceback.format_exception(error)),
    )


def main() -> None:
    """Do the job on standard input; messages go to the descriptor given as the only argument."""
    _die_with_parent()
    host = Host()
    _offer_to_the_oom_killer(host)
    with os.fdopen(int(sys.argv[1]), "wb") as replies:
        channel = Channel(sys.stdin.buffer, replies)
        try:
            channel.say(_do(channel.job(), channel, host))
        except Exception as error:  # noqa: BLE001 - the worker's boundary: everything becomes a record
            channel.say(_failure(error))
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
