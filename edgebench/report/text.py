"""The result of a session as text for a terminal: a table, the findings with their remedies, the next step.

Only lays out what ``analysis`` decided. On a narrow terminal the table becomes one block of lines per trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgebench.analysis.findings import gravest_first
from edgebench.analysis.summary import Estimate, TrialSummary
from edgebench.analysis.twins import twins
from edgebench.records import EngineMemory, Finding
from edgebench.report.energy import print_energy, token_cell
from edgebench.report.sustained import print_sustained
from edgebench.specs import Settings
from edgebench.units import format_bytes_mib, format_estimate, format_rate, format_seconds

_WIDE = 120
_STYLE = {"invalid": "bold red", "suspect": "yellow", "note": "dim"}


def print_result(console: Console, trials: Sequence[TrialSummary]) -> None:
    """Everything about the trials that could be measured: the table, the doubts, and why something is missing."""
    measured = [trial for trial in trials if trial.outcome == "ok"]
    print_sustained(console, trials)
    if not measured:
        return
    print_trials(console, measured)
    _print_settings(console, measured)
    _print_twins(console, measured)
    print_findings(console, measured)
    print_energy(console, measured)


def print_trials(console: Console, trials: Sequence[TrialSummary]) -> None:
    """The table of a session, or one block per trial where it does not fit."""
    several = len({trial.trial.runtime for trial in trials}) > 1
    energetic = any(trial.energy.tokens for trial in trials)
    rows = [_Row(trial, name_runtime=several, with_energy=energetic) for trial in trials]
    if console.width >= _WIDE:
        console.print(_table(rows))
        return
    for row in rows:
        console.print(Text(row.title, style="bold"))
        for name, value in row.cells().items():
            if value:
                console.print(f"  {name:<12} {value}", highlight=False, markup=False, soft_wrap=True)


def _print_settings(console: Console, trials: Sequence[TrialSummary]) -> None:
    """Settings that are not the usual ones, and of which runtime; what really ran on another device than the CPU."""
    said: dict[str, None] = {}
    for summary in trials:
        trial, loaded = summary.trial, summary.loaded
        said |= {f"{trial.runtime}: {text}": None for text in unusual_settings(trial.settings)}
        if loaded is not None and loaded.placement:
            said[f"{trial.artifact.label} on {trial.runtime}: {loaded.placement}"] = None
    for line in said:
        console.print(line, highlight=False, markup=False)


def unusual_settings(settings: Settings) -> list[str]:
    """Settings of this trial that a reader would not expect, in words."""
    return [
        text
        for text, told in (
            ("idle threads do not spin", settings.spinning is False),
            ("no arena: scratch memory goes back to the C library after each call", settings.arena is False),
            (f"each thread stays on one of the CPUs {', '.join(map(str, settings.cpus))}", settings.pin is True),
        )
        if told
    ]


def _print_twins(console: Console, trials: Sequence[TrialSummary]) -> None:
    pairs = twins(trials)
    if pairs:
        names = ", ".join(dict.fromkeys(parent.trial.artifact.precision for parent, _ in pairs))
        runtimes = " and ".join(dict.fromkeys(one.trial.runtime for pair in pairs for one in pair))
        console.print(f"the same weights, bit for bit, on {runtimes}: {names}", highlight=False, markup=False)


def print_findings(console: Console, trials: Sequence[TrialSummary]) -> None:
    """Each kind of finding once per severity: the evidence of the first trial, and the names of the others."""
    several = len({trial.trial.runtime for trial in trials}) > 1
    for finding, concerned in _distinct(trials, name_runtime=several):
        others = f" (likewise {', '.join(concerned[1:])})" if len(concerned) > 1 else ""
        where = "" if len(concerned) == len(trials) and not others else f"{concerned[0]}{others}: "
        line = Text(f"{finding.severity}: {finding.kind}: ", style=_STYLE[finding.severity])
        line.append(where + finding.says, style="default")
        console.print(line)
        console.print(Text(f"  -> {finding.remedy}", style="dim"))


def _distinct(trials: Sequence[TrialSummary], *, name_runtime: bool) -> list[tuple[Finding, list[str]]]:
    found: dict[tuple[str, str], tuple[Finding, list[str]]] = {}
    for trial in trials:
        for finding in trial.findings:
            entry = found.setdefault((finding.kind, finding.severity), (finding, []))
            label = trial.trial.artifact.label + (f" {trial.trial.runtime}" if name_runtime else "")
            if label not in entry[1]:
                entry[1].append(label)
    order = {"invalid": 0, "suspect": 1, "note": 2}
    return sorted(found.values(), key=lambda entry: order[entry[0].severity])


class _Row:
    """The cells of one trial as text."""

    def __init__(self, trial: TrialSummary, *, name_runtime: bool, with_energy: bool) -> None:
        self._trial, self._name_runtime, self._with_energy = trial, name_runtime, with_energy
        artifact = trial.trial.artifact
        self.title = f"{artifact.model} {artifact.label} on {trial.trial.runtime}"

    def cells(self) -> dict[str, str]:
        """Column name to text; an unmeasured cell is empty."""
        trial, artifact = self._trial, self._trial.trial.artifact
        settings = trial.trial.settings
        threads = f"{settings.threads}"
        if settings.threads != settings.threads_batch:
            threads = f"{settings.threads} / {settings.threads_batch}"
        cells = {
            "precision": artifact.label,
            **({"runtime": trial.trial.runtime} if self._name_runtime else {}),
            "bpw": f"{trial.loaded.bits_per_weight:.2f}" if trial.loaded else "",
            "file MiB": format_bytes_mib(artifact.bytes) if artifact.bytes else "",
            "threads": threads,
            "load": format_seconds(trial.load_s.value) if trial.load_s else "",
        }
        if trial.outcome != "ok":
            reason = trial.failure.says if trial.failure else "no reason given"
            return {**cells, "result": f"{trial.outcome}: {reason}"}
        for name, summary in trial.workloads.items():
            cells[f"{name} tok/s"] = rate_text(summary.tokens_per_s)
        for name, summary in trial.workloads.items():
            if summary.ttft_s is not None:
                cells["TTFT " + name.removeprefix("pp")] = format_seconds(summary.ttft_s.value)
                break
        cells["ITL p95"] = _first(summary.itl_p95_s for summary in trial.workloads.values())
        cells["peak RAM MiB"] = _memory(trial)
        if self._with_energy:
            cells["J/token"] = token_cell(trial.energy)
        worst = gravest_first(trial.findings)
        cells["finding"] = worst[0].severity if worst else ""
        return cells


def rate_text(estimate: Estimate) -> str:
    """``213 ±1.2 %``, or ``213 (n=1)`` where there is no interval."""
    if estimate.low is None:
        return f"{format_rate(estimate.value)} (n={estimate.n})"
    return format_estimate(estimate.value, estimate.low, estimate.high)


def _first(estimates: Iterable[Estimate | None]) -> str:
    return next((format_seconds(one.value) for one in estimates if one is not None), "")


def _memory(trial: TrialSummary) -> str:
    """Peak resident memory, and the engine's account: weights + KV + compute."""
    peak = format_bytes_mib(trial.rss_peak) if trial.rss_peak is not None else "?"
    engine = trial.memory.engine
    return peak if engine is None else f"{peak} ({engine_text(engine)})"


def engine_text(engine: EngineMemory) -> str:
    """``weights+KV+buffers`` in MiB."""
    parts = (sum(engine.weights.values()), engine.kv, engine.compute + engine.output)
    return "+".join(f"{part / 2**20:.0f}" for part in parts)


def _table(rows: Sequence[_Row]) -> Table:
    cells = [row.cells() for row in rows]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name in ("precision", "runtime", "finding", "result") else "right")
    for row in cells:
        table.add_row(*(Text(row.get(name, "")) for name in columns))
    return table


def print_threads(console: Console, rates: dict[str, dict[int, float]], runtime: str, chosen: tuple[int, int]) -> None:
    """What the thread search saw, and what it chose."""
    parts = []
    for kind, name in (("tg", "decode"), ("pp", "prefill")):
        seen = ", ".join(f"{count}: {format_rate(rate)}" for count, rate in sorted(rates.get(kind, {}).items()))
        if seen:
            parts.append(f"{name} {chosen[0] if kind == 'tg' else chosen[1]} (tok/s at {seen})")
    if parts:
        console.print(f"threads for {runtime}: " + "; ".join(parts), highlight=False, markup=False)
