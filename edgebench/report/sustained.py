"""A sustained run as text: one sentence, and speed, temperature, clock and power over time as lines of a small plot."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from edgebench.analysis.summary import TrialSummary
from edgebench.analysis.sustained import Sustained, in_words
from edgebench.units import format_rate, format_seconds

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-=+*#@"
_WIDEST = 72


def print_sustained(console: Console, trials: Sequence[TrialSummary]) -> None:
    """Every sustained run of the session."""
    for trial in trials:
        for one in trial.sustained:
            artifact = trial.trial.artifact
            title = f"{one.workload}: {artifact.model} {artifact.label} on {trial.trial.runtime}"
            console.print(Text(title, style="bold"))
            console.print(f"  {in_words(one)}", highlight=False, markup=False, soft_wrap=True)
            for line in plot(one, min(_WIDEST, console.width - 30), plain=not _draws_blocks(console)):
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
            if one.blocks_disturbed:
                used = "left out" if 2 * one.blocks_disturbed <= one.blocks else "too many to leave out"
                says = f"  {one.blocks_disturbed} of {one.blocks} blocks shared the machine with something else: {used}"
                console.print(says, highlight=False, markup=False, soft_wrap=True)


def _draws_blocks(console: Console) -> bool:
    """Whether the terminal can show more than ASCII."""
    return console.encoding.lower().startswith("utf")


def plot(one: Sustained, width: int, *, plain: bool) -> list[str]:
    """One line per quantity: its name, its lowest and highest value, and its course; then the axis of time."""
    rows: list[tuple[str, list[float | None]]] = [
        ("tok/s", [point.tokens_per_s for point in one.points]),
        ("C", [point.temperature_c for point in one.points]),
        ("GHz", [None if point.clock_hz is None else point.clock_hz / 1e9 for point in one.points]),
        (f"W {one.power_scope}".strip(), [point.power_w for point in one.points]),
    ]
    shown = [(name, values) for name, values in rows if any(value is not None for value in values)]
    columns = max(1, min(width, len(one.points)))
    names = max(len(name) for name, _ in shown)
    lines = []
    for name, values in shown:
        known = [value for value in values if value is not None]
        low, high = format_rate(min(known)), format_rate(max(known))
        scale = low if low == high else f"{low} to {high}"
        lines.append(f"{name:<{names}}  {_course(values, columns, _ASCII if plain else _BLOCKS)}  {scale}")
    end = format_seconds(one.measured_s)
    mark = _column(one, columns)
    axis = "0" if mark is None or mark == 0 else "0" + " " * (mark - 1) + "^"
    lines.append(f"{'':<{names}}  {axis:<{max(0, columns - len(end))}}{end}")
    return lines


def _column(one: Sustained, columns: int) -> int | None:
    """Where the slowdown begins."""
    if one.slowdown is None or one.measured_s <= 0:
        return None
    return min(columns - 1, int(one.slowdown.t_s / one.measured_s * columns))


def _course(values: Sequence[float | None], columns: int, levels: str) -> str:
    """The means of ``columns`` equal parts, from the lowest to the highest level; a blank where nothing was read."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    course = ""
    for column in range(columns):
        part = values[column * len(values) // columns : (column + 1) * len(values) // columns]
        read = [value for value in part if value is not None]
        if not read:
            course += " "
            continue
        share = (sum(read) / len(read) - low) / (high - low) if high > low else 1.0
        course += levels[min(len(levels) - 1, int(share * len(levels)))]
    return course
