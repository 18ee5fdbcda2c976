"""Meters on this machine: a program that prints watts, a serial cable, a chip with a kernel driver."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgebench.errors import UsageError
from edgebench.host import Host, Unavailable
from edgebench.kerneltext import read_scaled

KINDS = ("command", "lines", "serial", "hwmon")

_TIMEOUT_S = 2.0
_LATEST_S = 1.0
_LONGEST_LINE = 4096
_FACTORS = {"": 1.0, "w": 1.0, "watt": 1.0, "watts": 1.0, "mw": 1e-3, "kw": 1e3}
_LINE = re.compile(r"([-+]?[0-9]{1,12}(?:\.[0-9]{0,12})?(?:e[-+]?[0-9]{1,3})?)\s*([a-z]*)", re.IGNORECASE)
_SERIAL = re.compile(r"(?P<path>[^@]+)(?:@(?P<baud>[0-9]{2,7}))?")
_USUAL_BAUD = 115200


def check(kind: str, target: str) -> None:
    """Refuse what cannot be such a meter.

    Raises:
        UsageError: with the form that it should have.
    """
    if kind in ("command", "lines"):
        try:
            argv = shlex.split(target)
        except ValueError as error:
            raise UsageError(f"{target!r} is no command: {error}.", "close every quotation mark.") from None
        if not argv:
            raise UsageError(f"{kind}: names no program.", f"write for example '{kind}:cat watts.txt'.")
    elif kind == "serial":
        match = _SERIAL.fullmatch(target)
        if match is None or _speed(int(match["baud"] or _USUAL_BAUD)) is None:
            raise UsageError(f"{target!r} is no serial meter.", "write serial:/dev/ttyACM0@115200, with a usual speed.")


def source(host: Host, kind: str, target: str) -> CommandSource | LineSource | HwmonSource:
    """The source of a meter that `check` let pass."""
    if kind == "command":
        return CommandSource(host, target)
    if kind == "hwmon":
        return HwmonSource(host, target)
    return LineSource(host, kind, target)


def watts(text: str) -> float | None:
    """The watts in the last line of a text: ``4.2``, ``4.2 W``, ``4200 mW``; None when it says anything else."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    match = _LINE.fullmatch(lines[-1]) if lines and len(lines[-1]) <= _LONGEST_LINE else None
    if match is None or match[2].lower() not in _FACTORS:
        return None
    value = float(match[1]) * _FACTORS[match[2].lower()]
    return value if abs(value) < float("inf") else None


class _Watts:
    """What the sources here have in common: they tell power only."""

    names: Sequence[Literal["power", "energy"]] = ("power",)
    taken_ns = 0


class CommandSource(_Watts):
    """Runs a program for each reading."""

    period_s = 0.5

    def __init__(self, host: Host, command: str) -> None:
        self._host, self._argv = host, shlex.split(command)

    def read(self) -> list[float]:
        """Run it once.

        Raises:
            Unavailable: with the reason.
        """
        before = time.monotonic_ns()
        done = self._host.run(self._argv, timeout_s=_TIMEOUT_S)
        after = time.monotonic_ns()
        self.taken_ns = (before + after) // 2
        value = watts(done.stdout)
        if done.status != 0:
            last = (done.stderr.strip().splitlines() or ["nothing"])[-1][:100]
            raise Unavailable(self._argv[0], f"ended with status {done.status} and said: {last}")
        if value is None:
            raise Unavailable(self._argv[0], f"printed {done.stdout.strip()[-40:]!r}, which is no number of watts")
        if after - before > _LATEST_S * 1e9:
            raise Unavailable(self._argv[0], f"took {(after - before) / 1e9:.1f} s, too long to say when it measured")
        return [value]


class HwmonSource(_Watts):
    """Reads a chip by name: its power, or its first voltage times its first current (kernel documentation, hwmon)."""

    period_s = 0.1

    def __init__(self, host: Host, chip: str) -> None:
        self._host, self._chip = host, chip

    def _folder(self) -> Path:
        for folder in self._host.glob(self._host.sys("class/hwmon"), "hwmon*"):
            if self._host.try_read(folder / "name") == self._chip:
                return folder  # looked for each time: it is a cable, and its number changes when it is plugged in again
        raise Unavailable(f"hwmon {self._chip}", "is not plugged in, or its driver is not loaded")

    def read(self) -> list[float]:
        """Watts now.

        Raises:
            Unavailable: with the reason.
        """
        folder = self._folder()
        self.taken_ns = time.monotonic_ns()
        power = read_scaled(self._host, folder / "power1_input", 1e-6)
        if power is None:
            volts = read_scaled(self._host, folder / "in1_input", 1e-3)
            if volts is None:
                volts = read_scaled(self._host, folder / "in0_input", 1e-3)
            amperes = read_scaled(self._host, folder / "curr1_input", 1e-3)
            if volts is None or amperes is None:
                raise Unavailable(f"hwmon {self._chip}", "gives neither a power nor a voltage and a current")
            power = volts * abs(amperes)  # the sign tells which way round the meter is plugged in
        return [power]


class LineSource(_Watts):
    """Waits for the next line of a program or of a serial cable; of several that wait, the newest counts."""

    period_s = 0.0

    def __init__(self, host: Host, kind: str, target: str) -> None:
        self._host, self._kind, self._target = host, kind, target
        self._process: subprocess.Popen[bytes] | None = None
        self._fd: int | None = None
        self._pending = b""

    def read(self) -> list[float]:
        """The next line.

        Raises:
            Unavailable: when none comes, when it is no number, or when the source ended.
        """
        fd = self._open() if self._fd is None else self._fd
        deadline = time.monotonic() + _TIMEOUT_S
        while b"\n" not in self._pending:
            rest_s = deadline - time.monotonic()
            if rest_s <= 0 or not select.select([fd], [], [], rest_s)[0]:
                raise self._no(f"said nothing for {_TIMEOUT_S:g} s")
            try:
                data = os.read(fd, 1 << 16)
            except OSError as error:
                self.close()
                raise self._no(error.strerror or "cannot be read") from error
            if not data:
                self.close()
                raise self._no("ended")
            self._pending = (self._pending + data)[-(1 << 17) :]
        self.taken_ns = time.monotonic_ns()
        whole, _, self._pending = self._pending.rpartition(b"\n")
        text = whole.rpartition(b"\n")[2].decode("utf-8", "replace")
        value = watts(text)
        if value is None:
            raise self._no(f"said {text[:40]!r}, which is no number of watts")
        return [value]

    def _no(self, reason: str) -> Unavailable:
        return Unavailable(self._target.split()[0], reason)

    def _open(self) -> int:
        if not self._host.is_live:
            raise self._no("speaks only on the machine itself, not in a captured tree")
        try:
            if self._kind == "serial":
                self._fd = _open_serial(self._target)
                return self._fd
            self._process = subprocess.Popen(
                shlex.split(self._target),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError as error:
            raise self._no(error.strerror or "cannot be opened") from error
        if self._process.stdout is None:
            raise RuntimeError("the program is always started with a pipe")
        self._fd = self._process.stdout.fileno()
        return self._fd

    def close(self) -> None:
        """Let go of it; it is opened again at the next reading. Twice is fine."""
        fd, process = self._fd, self._process
        self._fd, self._process, self._pending = None, None, b""
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        elif fd is not None:
            with contextlib.suppress(OSError):  # it was pulled out
                os.close(fd)


def _speed(baud: int) -> int | None:
    """The system's constant for a speed; None where it has none."""
    if sys.platform == "win32":
        return None
    import termios  # noqa: PLC0415 - not on every system

    constant: int | None = getattr(termios, f"B{baud}", None)
    return constant


def _open_serial(target: str) -> int:
    """The cable in raw mode, eight bits, at the speed asked for."""
    import termios  # noqa: PLC0415 - not on every system
    import tty  # noqa: PLC0415 - same

    match = _SERIAL.fullmatch(target)
    if match is None:
        raise RuntimeError("check() has let a wrong target pass")
    fd = os.open(match["path"], os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        tty.setraw(fd)
        attributes = termios.tcgetattr(fd)
        attributes[4] = attributes[5] = _speed(int(match["baud"] or _USUAL_BAUD))
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
        termios.tcflush(fd, termios.TCIFLUSH)  # lines of before this run
    except termios.error as error:
        os.close(fd)
        raise OSError(error.args[0], f"is no serial line ({error.args[1]})") from error
    return fd
