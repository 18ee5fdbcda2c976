"""A table of costs: figures that must not exceed their targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import experiment
import msgspec

from edgebench.stats import Interval

Unit = Literal["%", "MB", "s", "us", ""]
SCALE = {"%": 100.0, "MB": 1e-6, "s": 1.0, "us": 1e6, "": 1.0}


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table, in SI units; the interval is absent where one number is all there is."""

    what: str
    figure: float
    low: float | None = None
    high: float | None = None
    target: float | None
    """None: for information."""
    unit: Unit
    verdict: experiment.Verdict
    note: str = ""


def judge(
    what: str, figure: float, target: float | None, unit: Unit, interval: Interval | None = None, note: str = ""
) -> Cost:
    """A figure that must not exceed its target, if it has one."""
    # Where there is one number and no interval, the number decides.
    verdict = experiment.judge(figure, interval or Interval(figure, figure, 1.0), high=target)
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Cost(what=what, figure=figure, low=low, high=high, target=target, unit=unit, verdict=verdict, note=note)


def print_table(costs: Sequence[Cost]) -> None:
    """What, figure, interval, target, verdict."""
    width = max(len(cost.what) for cost in costs)
    print(f"\n{'what':{width}}     figure  {'interval':17}   target  verdict")
    for cost in costs:
        scale = SCALE[cost.unit]
        interval = "-"
        if cost.low is not None and cost.high is not None:
            interval = f"{cost.low * scale:.3g} to {cost.high * scale:.3g}"
        figure = f"{cost.figure * scale:.4g} {cost.unit}"
        target = "-" if cost.target is None else f"{cost.target * scale:.4g} {cost.unit}"
        print(f"{cost.what:{width}}  {figure:>9}  {interval:17} {target:>8}  {cost.verdict:4}  {cost.note}".rstrip())


def conclude(question: str, costs: Sequence[Cost], samples: dict[str, object], file: Path | None) -> int:
    """Print the table and the last line; the exit status."""
    print_table(costs)
    met = all(cost.verdict != "MISS" for cost in costs)
    summary = {"question": question, "costs": costs, "nothing_missed": met}
    return experiment.conclude(summary, samples, file, met=met)
