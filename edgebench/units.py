"""Where a number becomes text, and text a number: nowhere else.

Inside edgebench every quantity is SI (seconds, bytes, joules, tokens/s) and the unit is in the name. Shares are
fractions (0.012), shown as per cent (1.2 %). Three significant digits are shown: more than any interval here supports.
Memory is shown in MiB (2**20), files are often sold in MB (10**6): both are read, only MiB is written.
"""

from __future__ import annotations

import math
import re

from edgebench.errors import UsageError

MIB = 1024**2

_LONGEST_S = 366 * 86400.0
_LARGEST_BYTES = 2**60
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_DURATION = re.compile(rf"({_NUMBER})\s*(us|ms|s|min|m|h|d)\s*")
_AMOUNT = re.compile(rf"({_NUMBER})\s*([a-z]*)")


# --- numbers to text --------------------------------------------------------------------------------------------------


def _significant(value: float, digits: int) -> str:
    """``value`` with so many significant digits, never in exponent form; whole digits are never rounded away."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no measurement: what is absent is None and has a reason")
    if value == 0:
        return "0"
    # The exponent after rounding: 99.96 has three significant digits as 100, not as 100.0.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def format_bytes_mib(n: float) -> str:
    """Bytes as MiB without the unit, which belongs in the table's head: ``93.8``, ``4.00``, ``1624``."""
    return _significant(n / MIB, 3)


def format_seconds(s: float) -> str:
    """A duration: ``1.24 s``, ``12.3 ms``, ``45.0 us``; above two minutes ``3m05s``, above an hour ``1h02m``."""
    if abs(s) >= 3599.5:
        minutes = round(s / 60)
        return f"{minutes // 60}h{minutes % 60:02d}m"
    if abs(s) >= 119.5:
        whole = round(s)
        return f"{whole // 60}m{whole % 60:02d}s"
    # A value that rounds up to 1000 of the smaller unit is shown in the larger one.
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if s != 0 and abs(s) / scale < 999.5:
            return f"{_significant(s / scale, 3)} {unit}"
    return f"{_significant(s, 3)} s"


def format_rate(x: float) -> str:
    """A rate such as tokens/s with three significant digits: ``1234``, ``213``, ``21.3``, ``2.13``."""
    return _significant(x, 3)


def format_joules(x: float) -> str:
    """Energy over several magnitudes, without a unit: ``12.3``, ``0.0123``; below a thousandth ``4.56e-05``."""
    return f"{x:.2e}" if 0 < abs(x) < 1e-3 else _significant(x, 3)


def format_percent(share: float, digits: int = 2) -> str:
    """A fraction as per cent: 0.0123 is ``1.2 %``. Use ``digits=3`` for accuracies: ``98.7 %``."""
    return f"{_significant(share * 100, digits)} %"


def format_estimate(value: float, low: float | None, high: float | None, unit: str = "") -> str:
    """A value and its interval: ``213 ±1.2 %``. An interval with two different sides is shown by the larger one.

    Args:
        value: the estimate.
        low: lower end of its interval, or None when there is none; then the text says ``±?``.
        high: upper end, or None.
        unit: ``s`` and ``B`` are formatted as durations and MiB; any other unit follows the number; empty for a table
            whose head names it.
    """
    if unit == "s":
        shown = format_seconds(value)
    elif unit == "B":
        shown = f"{format_bytes_mib(value)} MiB"
    else:
        shown = f"{format_rate(value)} {unit}".rstrip()
    if low is None or high is None or value == 0:
        return f"{shown} ±?"
    return f"{shown} {format_half_width(max(high - value, value - low) / abs(value))}"


def format_half_width(share: float) -> str:
    """Half an interval relative to its value: ``±1.2 %``; beyond ``±>100 %`` it says nothing but "measure more"."""
    return "±>100 %" if share > 1 else f"±{format_percent(share)}"


# --- text to numbers --------------------------------------------------------------------------------------------------


def parse_duration(text: str) -> float:
    """Seconds from ``90s``, ``10m``, ``1h30m``, ``1.5 h``, ``250ms``; a bare number is refused: of what?

    Raises:
        UsageError: when the text is no duration, is zero, or is longer than a year.
    """
    rest, seconds, smallest = text.strip().lower(), 0.0, math.inf
    while rest:
        match = _DURATION.match(rest)
        # Units must fall from left to right: "30m1h" is more likely a slip than a wish.
        if match is None or _SECONDS[match[2]] >= smallest:
            seconds = math.nan
            break
        smallest = _SECONDS[match[2]]
        seconds += float(match[1]) * smallest
        rest = rest[match.end() :]
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(
            f"{text!r} is not a duration.",
            "write a positive number with a unit, at most a year: 90s, 10m, 1h30m, 250ms.",
        )
    return seconds


def parse_bytes(text: str) -> int:
    """Bytes from ``2GiB``, ``500MB``, ``1.5 GB``, ``4096``; ``2G`` is read as ``2GiB``.

    Raises:
        UsageError: when the text is no amount of memory, is less than one byte, or exceeds 1 EiB.
    """
    match = _AMOUNT.fullmatch(text.strip().lower())
    scale = _BYTES.get(match[2]) if match else None
    n = round(float(match[1]) * scale) if match and scale else 0
    if not 0 < n <= _LARGEST_BYTES:
        raise UsageError(
            f"{text!r} is not an amount of memory.",
            "write a positive number with a unit: 2GiB, 500MB, 1.5GB (GiB = 2**30 bytes, GB = 10**9 bytes).",
        )
    return n
