"""The state of one attempt, as a pure machine: messages, exit and clock in; deadlines, outcome and failure out.

It opens nothing and waits for nothing, so every way a child can end is tested without a process.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field

from edgebench.engine.messages import (
    About,
    Failed,
    Finished,
    Measured,
    Opened,
    Phase,
    Ready,
    Reply,
    Timed,
)
from edgebench.records import Block, Failure, Loaded, Mark, MemoryPhase, Outcome

_NAMED = frozenset(signal.Signals)
_TOLD_TO_STOP = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU})
_BEFORE_BLOCKS = frozenset({"start", "load", "quantize", "export"})
_LONGEST_REST_S = 120.0
_SMALLER = "choose a smaller precision or context, or free memory (see edgebench doctor)."
_ALLOCATION = re.compile(r"bad_alloc|(failed|unable) to allocate|cannot allocate memory|out of memory", re.IGNORECASE)
"""What engines and the C++ library say when an allocation fails; they abort or crash right after."""
_LONGEST_QUOTE = 200
_FOLDERS = re.compile(r"\S*/(?=[^/\s]+:[0-9]+:)")


@dataclass(frozen=True)
class Limits:
    """How long a child may be silent, in seconds, before it counts as hanging: while it prepares, and in a workload."""

    load_s: float = 600.0
    block_s: float = 900.0


@dataclass(frozen=True)
class Exit:
    """How a child ended, as its parent saw it."""

    status: int | None = None
    signal: int | None = None
    oom_kills: int = 0
    """Growth of the kernel's count of OOM kills while the child ran."""
    stderr_tail: str = ""


@dataclass
class Attempt:
    """Collects what a child says and judges how it ended."""

    limits: Limits
    heard_ns: int
    phase: str = "start"
    silent_s: float | None = None
    """How long it was silent when it was stopped for that."""
    nonsense: str = ""
    """What was wrong with something it said that is no message."""
    about: About | None = None
    loaded: Loaded | None = None
    failed: Failed | None = None
    finished: Finished | None = None
    marks: list[Mark] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    memory: list[MemoryPhase] = field(default_factory=list)

    def hear(self, message: Reply, now_ns: int) -> None:
        """Take one message."""
        self.heard_ns = now_ns
        if isinstance(message, Phase):
            self.phase = message.name
            self.marks.append(Mark(name=message.name, t_ns=message.t_ns))
        elif isinstance(message, Ready):
            self.phase = message.workload
        elif isinstance(message, About):
            self.about = message
        elif isinstance(message, Opened):
            self.loaded = message.loaded
        elif isinstance(message, Timed):
            self.blocks.append(message.block)
        elif isinstance(message, Measured):
            self.memory.append(message.phase)
        elif isinstance(message, Failed):
            self.failed = message
        elif isinstance(message, Finished):
            self.finished = message

    def _allowed_s(self) -> float:
        if self.phase.startswith("idle"):
            return max(self.limits.load_s, _LONGEST_REST_S)
        return self.limits.load_s if self.phase in _BEFORE_BLOCKS else self.limits.block_s

    def deadline_ns(self) -> int:
        """When silence becomes a time-out."""
        return self.heard_ns + round(self._allowed_s() * 1e9)

    def expire(self, now_ns: int) -> bool:
        """Whether the child is to be killed for its silence; remembered for the verdict."""
        if self.silent_s is None and now_ns >= self.deadline_ns():
            self.silent_s = self._allowed_s()
        return self.silent_s is not None

    def conclude(self, end: Exit) -> tuple[Outcome, Failure | None]:
        """The outcome and, unless it is ``ok``, the failure. The order of the rules is the order of evidence."""
        if self.silent_s is not None:
            return "timeout", self._failure(
                "timeout",
                f"no sign of life for {self.silent_s:g} s in phase {self.phase!r}, so it was stopped",
                "raise --timeout if the device is that slow, else report the model and the engine's version.",
                end,
            )
        if self.nonsense:
            return "failed", self._failure(
                "protocol",
                f"it said something that is no message in phase {self.phase!r} ({self.nonsense}), so it was stopped",
                "report it with the end of its log in the record (edgebench runs show).",
                end,
            )
        if self.finished is not None and end.status == 0:
            return "ok", None
        if self.failed is not None:
            outcome: Outcome = "oom" if self.failed.kind == "alloc-failed" else "failed"
            return outcome, Failure(
                kind=self.failed.kind,
                says=self.failed.says,
                next_step=self.failed.next_step,
                phase=self.phase,
                log_tail=self.failed.detail or end.stderr_tail,
            )
        if end.signal is not None:
            return self._signalled(end, end.signal)
        return "failed", self._failure(
            "protocol",
            f"the process ended with status {end.status} in phase {self.phase!r} without saying why",
            "see the end of its log in the record (edgebench runs show).",
            end,
        )

    def _signalled(self, end: Exit, number: int) -> tuple[Outcome, Failure]:
        name = signal.Signals(number).name if number in _NAMED else f"signal {number}"
        where = f"in phase {self.phase!r}"
        if number == signal.SIGKILL and end.oom_kills > 0:
            return "oom", self._failure(
                "oom-killed", f"the kernel killed it {where} because memory ran out", _SMALLER, end
            )
        if number == signal.SIGKILL:
            return "killed", self._failure(
                "sigkill",
                f"it was killed (SIGKILL) {where}, not by the kernel's OOM killer",
                "look for earlyoom, systemd-oomd or a person; a cgroup limit of a container may hide its own count.",
                end,
            )
        if number in _TOLD_TO_STOP:
            return "killed", self._failure(
                name.lower(),
                f"it was told to stop ({name}) {where}",
                "find out who sent the signal (a person, a service manager, a limit), then measure again.",
                end,
            )
        if number == signal.SIGILL:
            return "failed", self._failure(
                "illegal-instruction",
                f"it met an instruction that this CPU lacks (SIGILL) {where}",
                "rebuild the runtime on this machine: "
                "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python",
                end,
            )
        if _ALLOCATION.search(end.stderr_tail):
            return "oom", self._failure(
                "alloc-failed", f"memory could not be allocated {where}, and the engine crashed ({name})", _SMALLER, end
            )
        return "failed", self._failure(
            "native-abort",
            f"the engine crashed ({name}) {where}{_last_words(end.stderr_tail)}",
            "the file may be damaged or unsupported: pull it again, or try another version of the engine.",
            end,
        )

    def _failure(self, kind: str, says: str, next_step: str, end: Exit) -> Failure:
        return Failure(
            kind=kind, says=says, next_step=next_step, phase=self.phase, signal=end.signal, log_tail=end.stderr_tail
        )


def _last_words(log: str) -> str:
    """The last line that a process wrote before it crashed, without the folder of a source file: an assertion."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f": {_FOLDERS.sub('', lines[-1])[:_LONGEST_QUOTE]}" if lines else ""
