"""Energy as text: per token with its uncertainty and scope, power, the idle machine, estimates apart."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from edgebench.analysis.summary import TrialSummary
from edgebench.records import Energy, TokenEnergy
from edgebench.units import format_half_width, format_joules, format_rate


def token_cell(energy: Energy) -> str:
    """J/token of decode for a table, of prefill where nothing was decoded: ``0.123 ±5.1 %``; empty if not measured."""
    names = [*energy.tokens]
    chosen = next((name for name in names if name.startswith("decode")), None)
    chosen = chosen or next((name for name in names if name.startswith("tg")), None) or next(iter(names), None)
    return token_text(energy.tokens[chosen]) if chosen else ""


def token_text(token: TokenEnergy) -> str:
    """``0.123 ±5.1 %``."""
    return f"{format_joules(token.j)} {format_half_width(token.uncertainty_j / token.j)}"


def print_energy(console: Console, trials: Sequence[TrialSummary]) -> None:
    """Below the table: what the source is, a line for each trial, and why something was not measured."""
    several = len({trial.trial.runtime for trial in trials}) > 1
    told = [trial for trial in trials if trial.energy.tokens]
    for source in dict.fromkeys(source_text(trial.energy) for trial in told):
        _line(console, f"energy: {source}")
        for trial in told:
            if source_text(trial.energy) == source:
                name = trial.trial.artifact.label + (f" {trial.trial.runtime}" if several else "")
                _line(console, f"  {name}: {'; '.join(energy_parts(trial.energy))}")
    for reason in sorted({missing_text(trial.energy) for trial in trials if trial.energy.energy_j is None}):
        _line(console, f"energy: not measured: {reason}" if not told else f"energy: no total: {reason}")
    for trial in trials:
        text = estimate_text(trial.energy)
        if text:
            _line(console, f"energy of {trial.trial.artifact.label}: {text}")


def missing_text(energy: Energy) -> str:
    """Why there are no joules; what was looked for in vain is the doctor's to tell."""
    return (
        f"{energy.reason} (`edgebench doctor` lists every source and how to get one)"
        if energy.absent
        else energy.reason
    )


def source_text(energy: Energy) -> str:
    """``cpu package, by rapl.package-0 (counter, 10 updates/s)``."""
    rate = "" if energy.update_hz is None else f", {format_rate(energy.update_hz)} updates/s"
    scope = (energy.scope or "scope unknown").replace("_", " ")
    return f"{scope}, by {energy.source} ({energy.method or 'method unknown'}{rate})"


def energy_parts(energy: Energy) -> list[str]:
    """Each workload and slope, then power."""
    parts = [f"{name} {_token(token)}" for name, token in energy.tokens.items()]
    if energy.mean_w is not None:
        peak = "" if energy.peak_w is None else f", peak {format_rate(energy.peak_w)} W"
        parts.append(f"mean {format_rate(energy.mean_w)} W{peak}")
    if energy.idle_w is not None:
        loaded = (
            "" if energy.idle_loaded_w is None else f", {format_rate(energy.idle_loaded_w)} W with the model loaded"
        )
        parts.append(f"idle {format_rate(energy.idle_w)} W{loaded}")
    return parts


def _token(token: TokenEnergy) -> str:
    net = ""
    if token.net_j is not None and token.net_uncertainty_j is not None:
        share = format_half_width(token.net_uncertainty_j / token.net_j)
        net = f", {format_joules(token.net_j)} {share} above idle"
    more = f"{format_joules(token.wh_per_1000)} Wh per 1000 tokens, {format_rate(token.tokens_per_j)} tokens/J"
    slope = f"; {token.how}" if token.how.startswith("slope") else ""
    return f"{token_text(token)} J/token ({more}{net}{slope})"


def estimate_text(energy: Energy) -> str:
    """``~9.1 to ~17 J (est., device_profile_v1:...)``; empty without an estimate."""
    if energy.estimate_low_j is None or energy.estimate_high_j is None:
        return ""
    low, high = format_rate(energy.estimate_low_j), format_rate(energy.estimate_high_j)
    return f"~{low} to ~{high} J (est., {energy.estimate_model}); not comparable with measured energy"


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
