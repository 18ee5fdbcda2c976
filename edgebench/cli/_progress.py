"""Progress of a session: one live line on a terminal, plain lines elsewhere, nothing when quiet.

It is drawn only when told to, from calls that happen while no block is being timed; there is no refresh thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgebench.stats import median
from edgebench.units import format_bytes_mib, format_rate, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from edgebench.records import Run
    from edgebench.specs import TrialSpec

_PLAIN_EVERY_S = 2.0
_FEW = 4


class Progress:
    """Implements the listeners of preparation and of the session.

    Args:
        console: of standard error.
        quiet: say nothing at all.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._live = console.is_terminal and not quiet
        self._line = ""
        self._next_plain_s = 0.0

    def _show(self, text: str) -> None:
        """Overwrite the live line; on a dumb output live lines are left out."""
        if self._live:
            width = max(20, self._console.width - 1)
            self._console.file.write("\r\x1b[2K" + text[:width])
            self._console.file.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self.clear()
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def clear(self) -> None:
        """Remove the live line."""
        if self._live:
            self._console.file.write("\r\x1b[2K")
            self._console.file.flush()

    # --- preparation

    def progress(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """A download or a hash."""
        done = format_bytes_mib(done_bytes)
        text = f"{what}: {done} MiB"
        if total_bytes:
            share = min(1.0, done_bytes / total_bytes)
            bar = "#" * round(24 * share)
            text = f"{what} [{bar:<24}] {done} of {format_bytes_mib(total_bytes)} MiB"
        if self._live:
            self._show(text)
        elif time.monotonic() >= self._next_plain_s or done_bytes == total_bytes:
            self._next_plain_s = time.monotonic() + _PLAIN_EVERY_S
            self.say(text)

    def share(self, what: str, done: int, total: int) -> None:
        """How far a step is; only drawn on a terminal."""
        self._show(f"{what} [{'#' * round(24 * done / max(1, total)):<24}] {done} of {total}")

    def step(self, text: str) -> None:
        """A step that takes a moment."""
        if self._live:
            self._show(text + " ...")
        else:
            self.say(text)

    # --- session

    def run_begins(self, trial: TrialSpec, round_: int, elapsed_s: float, budget_s: float) -> None:
        """A child starts."""
        budget = f" of {budget_s:.0f}" if budget_s else ""
        name = f"{trial.artifact.precision} on {trial.runtime}"
        self._line = f"[{elapsed_s:3.0f}{budget} s] round {round_ + 1}: {name}"
        self._show(self._line)

    def phase(self, name: str, index: int | None) -> None:
        """The child loads, warms up, or is about to time a block."""
        self._show(f"{self._line}: {name}" + ("" if index is None else f" #{index + 1}"))

    def run_ended(self, run: Run) -> None:
        """A run is recorded."""
        trial = run.trial
        label = f"round {run.round + 1} {trial.artifact.precision} {trial.runtime}"
        if run.outcome != "ok":
            self.say(f"{label}: {run.outcome}: {run.failure.says if run.failure else 'no reason given'}")
        elif not self._live:
            rates: dict[str, list[float]] = {}
            for block in run.blocks:
                rates.setdefault(block.workload, []).append(block.tokens_per_s)
            shown = ", ".join(f"{name} {_rates(values)} tok/s" for name, values in rates.items())
            self.say(f"{label}: {shown} in {format_seconds((run.ended_ns - run.started_ns) / 1e9)}")


def _rates(values: list[float]) -> str:
    """A few one by one; of many, the median."""
    if len(values) <= _FEW:
        return "/".join(map(format_rate, values))
    return f"{format_rate(median(values))} (median of {len(values)} blocks)"
