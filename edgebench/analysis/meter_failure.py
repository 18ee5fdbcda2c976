"""Whether an external meter did what it was attached for.

A meter was named by a person: where it fails, that has to be said, even if another source gives the energy. One that
leaves more than 20 % of its readings out is not believed in the others either: what it fails under is the load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgebench.analysis.energy_windows import workload_windows
from edgebench.records import Channel, Finding, Run, Series
from edgebench.units import format_percent

MISSING_LIMIT = 0.20
_FEWEST = 5
"""Readings while blocks were timed; of fewer the whole run tells more."""


def failed_meters(run: Run, channels: Iterable[Channel]) -> dict[str, str]:
    """The channels of meters that failed, each with how, and with the last words of the meter.

    Args:
        run: with its blocks and readings.
        channels: all that the sampler looked at.
    """
    by_name = {one.channel.name: one for one in run.series}
    failed = {}
    for channel in channels:
        if not channel.name.startswith("meter.") or channel.unit not in {"W", "J"}:
            continue
        series = by_name.get(channel.name)
        share = 1.0 if series is None else _missing(run, series)
        if share > MISSING_LIMIT:
            words = series.missing_because if series is not None else ""
            said = f": {words.rstrip('.')}" if words else ""
            much = "no reading at all" if share == 1 else f"no value in {format_percent(share)} of its readings"
            failed[channel.name] = f"gave {much}{said}"
    return failed


def _missing(run: Run, series: Series) -> float:
    """Share of readings without a value while blocks were timed; 1 where there was no reading."""
    windows = workload_windows(run)
    start_ns, end_ns = min(window.start_ns for window in windows), max(window.end_ns for window in windows)
    timed = [value for t_ns, value in zip(series.t_ns, series.values, strict=True) if start_ns <= t_ns <= end_ns]
    values = timed if len(timed) >= _FEWEST else series.values
    return sum(value is None for value in values) / len(values) if values else 1.0


def meter_finding(failed: Mapping[str, str], *, replaced: bool) -> Finding | None:
    """That meters failed; None when none did.

    Args:
        failed: channels, each with how it failed.
        replaced: whether another source is used.
    """
    if not failed:
        return None
    said = "; ".join(f"{name} {how}" for name, how in failed.items())
    return Finding(
        kind="meter_failed",
        severity="suspect",
        says=f"{said}. " + ("Another source is used." if replaced else "No other source is there to take its place."),
        remedy="Look whether the meter is switched on and can be reached from here, and measure again.",
        evidence={**failed},
    )
