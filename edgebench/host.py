"""The only door to the machine: procfs, sysfs, the device tree, subprocesses, the monotonic clock.

Everything is read below ``root``, so that a captured tree of a board stands in for the board itself: globs, symbolic
links, missing and unreadable files then behave as they do there. No other module names a file below these trees.
"""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """A source that cannot be read here, with the reason. Expected, never an error of its own."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source, self.reason = source, reason


@dataclass(frozen=True)
class CommandResult:
    """Exit status and output of a finished command."""

    status: int
    stdout: str
    stderr: str


_REASONS = {
    errno.ENOENT: "does not exist here",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENODEV: "the device is gone",
    errno.ENODATA: "has no data now",
    errno.EAGAIN: "is switched off now",
    errno.ESRCH: "the process is gone",
}


REFUSED = "refused"
"""File of a captured tree that lists what could not be read on the machine itself: ``EACCES sys/class/...``."""


def _refusals(listing: Path) -> dict[Path, str]:
    """Files of a captured tree that are there but gave no text, with the reason."""
    refused = {}
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    for line in lines:
        name, _, path = line.partition(" ")
        reason = _REASONS.get(getattr(errno, name, 0))
        if path and reason is not None:
            refused[listing.parent / path] = reason
    return refused


class Host:
    """A machine seen through files below ``root``.

    Args:
        root: ``/`` for this machine, or a captured tree.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = Path(root)
        self.is_live = self.root == Path("/")
        self._refused = {} if self.is_live else _refusals(self.root / REFUSED)

    # --- files

    def proc(self, path: str) -> Path:
        """Path below procfs."""
        return self.root / "proc" / path

    def sys(self, path: str) -> Path:
        """Path below sysfs."""
        return self.root / "sys" / path

    def read(self, path: Path) -> str:
        """The text of a small kernel file, stripped.

        Raises:
            Unavailable: with the reason (missing, permission, switched off...).
        """
        if path in self._refused:
            raise Unavailable(self._shown(path), self._refused[path])
        try:
            return path.read_bytes().decode("utf-8", "replace").strip("\0\n\r\t ")
        except OSError as error:
            raise Unavailable(
                self._shown(path), _REASONS.get(error.errno or 0, error.strerror or "unreadable")
            ) from error

    def read_int(self, path: Path) -> int:
        """The text of a kernel file as an integer.

        Raises:
            Unavailable: when it cannot be read or holds no integer.
        """
        text = self.read(path)
        try:
            return int(text)
        except ValueError:
            raise Unavailable(self._shown(path), f"holds {text[:40]!r}, not a whole number") from None

    def try_read(self, path: Path) -> str | None:
        """`read`, or None when the file is unavailable and the caller does not need the reason."""
        try:
            return self.read(path)
        except Unavailable:
            return None

    def glob(self, base: Path, pattern: str) -> list[Path]:
        """Sorted matches of ``pattern`` below ``base``; empty when nothing is there."""
        return sorted(base.glob(pattern))

    def write(self, path: Path, text: str) -> None:
        """Write a control file (``clear_refs``, ``oom_score_adj``).

        Raises:
            Unavailable: when the kernel refuses.
        """
        try:
            path.write_text(text)
        except OSError as error:
            raise Unavailable(
                self._shown(path), _REASONS.get(error.errno or 0, error.strerror or "unwritable")
            ) from error

    def _shown(self, path: Path) -> str:
        """The path as it would be on the device itself."""
        try:
            return "/" + str(path.relative_to(self.root))
        except ValueError:
            return str(path)

    # --- commands and clock

    def run(self, argv: Sequence[str], timeout_s: float = 5.0) -> CommandResult:
        """Run a program of the host. Below a captured tree the recorded output is used: ``<root>/commands/<argv>``.

        Raises:
            Unavailable: when the program is missing, hangs, or its output was not recorded.
        """
        if not self.is_live:
            name = " ".join(argv).replace("/", "_")
            return CommandResult(0, self.read(self.root / "commands" / name), "")
        try:
            done = subprocess.run(
                argv, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s, check=False
            )
        except FileNotFoundError:
            raise Unavailable(argv[0], "is not installed") from None
        except subprocess.TimeoutExpired:
            raise Unavailable(argv[0], f"gave no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise Unavailable(argv[0], error.strerror or "cannot be started") from error
        return CommandResult(done.returncode, done.stdout, done.stderr)

    @staticmethod
    def monotonic_ns() -> int:
        """CLOCK_MONOTONIC in ns: one clock for every process of the machine."""
        return time.monotonic_ns()

    def machine(self) -> str:
        """``uname -m``; a captured tree records it in ``machine``."""
        if self.is_live:
            return platform.machine()
        return self.try_read(self.root / "machine") or "unknown"
