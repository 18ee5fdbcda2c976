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
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from edgebench import cgroups
from edgebench.engine.messages import Advance, Job, Phase, Piece, Ready, Reply
from edgebench.engine.protocol import Attempt, Exit, Limits
from edgebench.errors import HostError
from edgebench.host import Host
from edgebench.kerneltext import find_counts
from edgebench.records import Failure, Outcome

_TAIL_BYTES = 4000
_EXIT_S = 30.0
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
        self._output = _output_file()
        self._process, self._replies = _start(self._output)
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
            self.close()

    def _hear_all(self, on_message: Callable[[Reply], None]) -> None:
        decoder = msgspec.json.Decoder(Reply)
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            while data := self._next_bytes(selector):
                *lines, pending = (pending + data).split(b"\n")
                try:
                    for line in lines:
                        self._take(decoder.decode(line), on_message)
                except msgspec.DecodeError as error:
                    self.attempt.nonsense = str(error)
                if len(pending) > _LONGEST_LINE:
                    self.attempt.nonsense = f"a line of more than {_LONGEST_LINE} bytes"
                if self.attempt.nonsense:
                    self.kill()
                    return

    def _next_bytes(self, selector: selectors.BaseSelector) -> bytes:
        """What the child says next; nothing when it closed its pipe, or was killed because it was silent too long."""
        while not self.attempt.expire(now := self._host.monotonic_ns()):
            if selector.select((self.attempt.deadline_ns() - now) / 1e9):
                return self._replies.read(1 << 16)
        self.kill()
        return b""

    def _take(self, message: Reply, on_message: Callable[[Reply], None]) -> None:
        self.attempt.hear(message, self._host.monotonic_ns())
        if isinstance(message, (Ready, Phase, Advance, Piece)):
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

    def abandoned(self) -> Ended:
        """What is left when whoever started the session stops it in the middle."""
        self.close()
        failure = Failure(
            kind="interrupted",
            says=f"the session was stopped in phase {self.attempt.phase!r}",
            next_step="finish it: edgebench profile --resume",
            phase=self.attempt.phase,
        )
        return Ended(self.attempt, "killed", failure, self._started_ns, self._host.monotonic_ns())

    def _wait(self) -> int:
        """The exit status; a child that closed its pipe and does not exit is killed."""
        if not _exits_within(self._process, _EXIT_S):
            self.attempt.silent_s = _EXIT_S
            self.kill()
        return self._process.wait()

    def _tail(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - _TAIL_BYTES))
        return self._output.read().decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Kill the child if it lives, and let go of its pipes. Twice is fine."""
        self.kill()
        self._replies.close()
        self._output.close()

    def kill(self) -> None:
        """Kill the child and whatever it started; a dead one is fine."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):  # what was still to be said reaches nobody
                self._process.stdin.close()
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):  # it ended this very moment (macOS: not permitted)
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


def _output_file() -> BinaryIO:
    """Where the child's own output goes: an unnamed file on disk, since a native engine may say much."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise HostError(
            f"No temporary file can be made: {error.strerror or error}.",
            "free space in the folder for temporary files, or set TMPDIR to one that you may write.",
        ) from error


def _start(output: BinaryIO) -> tuple[subprocess.Popen[bytes], BinaryIO]:
    """The process and the end of the pipe on which it replies."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgebench.engine.worker", str(writing)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(reading)
        output.close()
        raise HostError(
            f"No child process can be started: {error.strerror or error}.",
            "end other programs, or raise the limit on processes and memory (ulimit -u, ulimit -v).",
        ) from error
    finally:
        os.close(writing)
    return process, os.fdopen(reading, "rb", buffering=0)


def _exits_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends in time; where the kernel tells the end (Linux 5.3), nothing asks again and again."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            return bool(selector.select(seconds))
    finally:
        os.close(descriptor)


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
