"""Start a child, listen to it, stop it when it hangs, and say how it died.

The parent blocks in one ``select`` with a deadline and does nothing else while the child measures. How a child ended is
told by its exit status, its signal, the kernel's count of OOM kills before and after, and the end of its own output.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from edgebench import cgroups
from edgebench.engine.messages import Job, Phase, Ready, Reply
from edgebench.engine.protocol import Attempt, Exit, Limits
from edgebench.host import Host
from edgebench.kerneltext import find_counts
from edgebench.records import Failure, Outcome

_TAIL_BYTES = 4000
_LONGEST_LINE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Ended:
    """What is left of a child."""

    attempt: Attempt
    outcome: Outcome
    failure: Failure | None
    started_ns: int
    ended_ns: int


class Child:
    """One running child process.

    Args:
        job: what it is to do.
        host: the live machine, for the clock and the count of OOM kills.
        limits: how long it may be silent.
    """

    def __init__(self, job: Job, host: Host, limits: Limits) -> None:
        self._host = host
        self.attempt = Attempt(limits=limits, heard_ns=host.monotonic_ns())
        self._started_ns = self.attempt.heard_ns
        self._oom_before = oom_kills(host)
        self._output = tempfile.TemporaryFile()
        reading, writing = os.pipe()
        self._replies: BinaryIO = os.fdopen(reading, "rb", buffering=0)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgebench.engine.worker", str(writing)],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        self.pid = self._process.pid
        self._order(msgspec.json.encode(job))

    def _order(self, line: bytes) -> None:
        stream = self._process.stdin
        if stream is None:
            raise RuntimeError("a child is always started with a pipe for its orders")
        try:
            stream.write(line + b"\n")
            stream.flush()
        except BrokenPipeError:
            return  # it is dead; its exit status says how

    def listen(self, on_message: Callable[[Reply], None]) -> Ended:
        """Hear the child out and return how it ended. Whatever interrupts the parent kills the child first."""
        try:
            self._hear_all(on_message)
            return self._end()
        finally:
            self.kill()
            self._replies.close()
            self._output.close()

    def _hear_all(self, on_message: Callable[[Reply], None]) -> None:
        decoder = msgspec.json.Decoder(Reply)
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            while True:
                now = self._host.monotonic_ns()
                if self.attempt.expire(now):
                    self.kill()
                    return
                if not selector.select((self.attempt.deadline_ns() - now) / 1e9):
                    continue
                data = self._replies.read(1 << 16)
                if not data or len(pending) > _LONGEST_LINE:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._take(decoder.decode(line), on_message)

    def _take(self, message: Reply, on_message: Callable[[Reply], None]) -> None:
        self.attempt.hear(message, self._host.monotonic_ns())
        if isinstance(message, (Ready, Phase)):
            on_message(message)
        if isinstance(message, Ready):
            self._order(b"go")

    def _end(self) -> Ended:
        status = self._wait()
        ended = Exit(
            status=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            oom_kills=oom_kills(self._host) - self._oom_before,
            stderr_tail=self._tail(),
        )
        outcome, failure = self.attempt.conclude(ended)
        return Ended(self.attempt, outcome, failure, self._started_ns, self._host.monotonic_ns())

    def _wait(self) -> int:
        """The exit status; a child that closed its pipe and does not exit is killed."""
        try:
            return self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def _tail(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - _TAIL_BYTES))
        return self._output.read().decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """Kill the child and whatever it started; a dead one is fine."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # what was still to be said reached nobody
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


def oom_kills(host: Host) -> int:
    """The kernel's OOM kills so far, in this machine and this control group; 0 where it does not count."""
    texts = [host.try_read(host.proc("vmstat"))]
    group = cgroups.find(host, "memory")
    if group is not None:
        name = "memory.oom_control" if group.version == 1 else "memory.events"
        texts.append(host.try_read(group.directories[0] / name))
    return sum(count or 0 for text in texts for count in find_counts(text or "", ("oom_kill",)))


def run_job(job: Job, host: Host, limits: Limits, on_message: Callable[[Reply], None] = lambda _message: None) -> Ended:
    """Start a child, hear it out, and return how it ended."""
    return Child(job, host, limits).listen(on_message)
