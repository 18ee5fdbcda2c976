"""Doubts about the energy of a run, from what its sources and its idle phases said."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgebench.analysis.energy import Measured, named
from edgebench.analysis.energy_conflicts import conflict_finding
from edgebench.analysis.energy_windows import (
    EDGE_LIMIT,
    STEADY_S,
    Baseline,
    K,
    Reading,
    net_of,
    phase_windows,
    too_short,
)
from edgebench.records import Finding, Run, Severity
from edgebench.units import format_percent, format_rate, format_seconds

BASELINE_LIMIT = 0.05
IDLE_BUSY_LIMIT = 0.03


def energy_findings(run: Run, measured: Measured) -> tuple[Finding, ...]:
    """Everything that the energy of a run gives reason to doubt, at most one finding per kind."""
    found = (
        _frozen(measured),
        _gap(measured),
        _short(measured),
        _unstable(run, measured),
        conflict_finding(measured),
        _net(measured),
    )
    return tuple(finding for finding in found if finding is not None)


def _frozen(measured: Measured) -> Finding | None:
    hit = [reading for reading in measured.readings if "change" in reading.because]
    return frozen_finding([named(measured.source)], replaced=False) if hit else None


def frozen_finding(names: Sequence[str], *, replaced: bool) -> Finding | None:
    """That sources stood still while blocks were timed; None when there are none.

    Args:
        names: of channels.
        replaced: whether another source gives the energy.
    """
    if not names:
        return None
    stood = f"{', '.join(names)} stood still while blocks were timed"
    return Finding(
        kind="frozen_counter",
        severity="note" if replaced else "suspect",
        says=f"{stood}: " + ("another source is used." if replaced else "its joules are not shown."),
        remedy="Look whether another source works (edgebench doctor); some drivers stop counting after a sleep.",
        evidence={"channels": len(names)},
    )


def _gap(measured: Measured) -> Finding | None:
    lost = [reading for reading in measured.readings if "was read during" in reading.because]
    holed = [reading for reading in measured.readings if reading.hole_s > 0 and not reading.because]
    if not lost and not holed:
        return None
    longest = max(reading.hole_s for reading in [*lost, *holed])
    what = (
        f"{named(measured.source)} was not read for {format_seconds(longest)} while {_names([*lost, *holed])} was timed"
    )
    return Finding(
        kind="gap",
        severity="suspect",
        says=f"{what}; no energy is given for {_names(lost)}." if lost else f"{what}; its uncertainty says so.",
        remedy="Stop what delays the sampler (top), shorten the way to a network meter, and measure again.",
        evidence={"hole_s": longest},
    )


def _short(measured: Measured) -> Finding | None:
    short = [reading for reading in measured.readings if reading.update_s and too_short(reading)]
    if not short:
        return None
    worst = min(short, key=lambda reading: reading.window.seconds / reading.update_s)
    seconds, update_s = worst.window.seconds, worst.update_s
    coarse, wanted_s = seconds < 2 * update_s / EDGE_LIMIT, max(STEADY_S, 2 * update_s / EDGE_LIMIT)
    longer = f" {math.ceil(wanted_s)}s" if wanted_s > STEADY_S else ""
    severity: Severity = "suspect" if coarse else "note"
    says = f"{_names(short)} lasted {format_seconds(seconds)}"
    if coarse:
        says += f", {format_rate(seconds / update_s)} updates of {named(measured.source)}"
    return Finding(
        kind="short_window",
        severity=severity,
        says=f"{says}: a steady figure of energy takes {format_seconds(wanted_s)}.",
        remedy=f"Measure with `edgebench profile --energy{longer}`: so long for each workload, between idle phases.",
        evidence={"seconds": seconds, "update_s": update_s},
    )


def _unstable(run: Run, measured: Measured) -> Finding | None:
    parts, evidence = [], {}
    for name, idle in (("without", measured.idle), ("with", measured.idle_loaded)):
        change = _change(idle)
        if idle is not None and idle.after_w is not None and abs(change) > BASELINE_LIMIT:
            parts.append(
                f"the idle power {name} the model went from {format_rate(idle.before_w or 0)} to "
                f"{format_rate(idle.after_w)} W"
            )
            evidence[f"change_{name}_model"] = change
    busy = idle_busy(run)
    if busy is not None and busy > IDLE_BUSY_LIMIT:
        parts.append(f"{format_percent(busy)} of the CPU was busy in an idle phase")
        evidence["busy"] = busy
    if not parts:
        return None
    says = "; ".join(parts)
    return Finding(
        kind="baseline_unstable",
        severity="suspect",
        says=f"{says[0].upper()}{says[1:]}: energy above idle is uncertain.",
        remedy="Stop what runs in the background, fix fan and display brightness, let the machine settle.",
        evidence={**evidence},
    )


def _change(idle: Baseline | None) -> float:
    if idle is None or idle.before_w is None or idle.after_w is None or idle.before_w <= 0:
        return 0.0
    return idle.after_w / idle.before_w - 1


def idle_busy(run: Run) -> float | None:
    """Largest busy share of all CPUs in an idle phase; None where it is not known."""
    series = next((one for one in run.series if one.channel.name == "contention.busy"), None)
    if series is None:
        return None
    shares = []
    for window in phase_windows(run):
        inside = [
            (t_ns, value)
            for t_ns, value in zip(series.t_ns, series.values, strict=True)
            if value is not None and window.start_ns <= t_ns <= window.end_ns
        ]
        if window.name != "load" and len(inside) > 1 and inside[-1][0] > inside[0][0]:
            seconds = (inside[-1][0] - inside[0][0]) / 1e9
            shares.append((inside[-1][1] - inside[0][1]) / seconds / run.provenance.logical_cpus)
    return max(shares, default=None)


def _net(measured: Measured) -> Finding | None:
    lost = []
    for reading in measured.readings:
        net = None if reading.because else net_of(reading, measured.idle)
        if net is not None and net[0] < K * net[1]:
            lost.append((reading, net))
    if not lost:
        return None
    reading, (net_j, u_j) = lost[0]
    more = (
        f"{format_rate(abs(net_j))} J {'more' if net_j >= 0 else 'less'} than"
        if abs(net_j) > u_j / 100
        else "as much as"
    )
    return Finding(
        kind="net_not_resolvable",
        severity="note",
        says=f"{_names([one for one, _ in lost])} took {more} the idle machine, uncertain by {format_rate(K * u_j)} J: "
        "no energy above idle is given.",
        remedy="Measure longer windows, or with a more exact meter; the gross figures hold.",
        evidence={"window": reading.window.name, "net_j": net_j, "uncertainty_j": K * u_j},
    )


def _names(readings: Sequence[Reading]) -> str:
    return ", ".join(dict.fromkeys(reading.window.name for reading in readings))
