"""From readings and the times of blocks to joules: per window, above idle, per token, each with its uncertainty.

**Uncertainty**, always expanded (k = 2). For a window ``u**2 = (g E)**2 + (o t)**2 + d**2``: ``g`` what the scale error
known of the kind of source makes of its reading (``Accuracy.scale``) and ``o`` its offset (``ACCURACY``; priors, not
calibrations), ``d`` what the readings themselves leave open (edges, updates, resolution: ``power_curve``). Of a trial,
the interval of the median of its rounds is added (``resources``).

**Net** is ``E - P t`` with the mean power P of the idle machine before and after, without the model:
``u_net**2 = u**2 + (t u_P)**2``. A net within its uncertainty of 0 is not a result.

**Per token**: energy of the window over its tokens. Where a kind of workload was measured at several lengths and one
depth, the slope of ``E = a + b n`` over them is the better figure: what every block costs besides goes into ``a``.

Joules of 0 are no measurement: a source that shows them over a busy window is broken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgebench.analysis.energy_source import EnergySource
from edgebench.analysis.energy_tokens import per_token
from edgebench.analysis.energy_windows import (
    Baseline,
    K,
    Reading,
    accuracy_of,
    baseline,
    integrate,
    net_of,
    phase_windows,
    too_short,
    workload_windows,
)
from edgebench.records import Energy, Finding, Run, Series, WindowEnergy

PAUSES = 0.02


@dataclass
class Measured:
    """A run as its primary source saw it; others beside it, to compare."""

    source: EnergySource
    readings: list[Reading]
    phases: list[Reading]
    idle: Baseline | None
    idle_loaded: Baseline | None
    others: list[tuple[EnergySource, list[Reading]]] = field(default_factory=list)


def measure(run: Run, source: EnergySource, others: Sequence[EnergySource] = ()) -> Measured:
    """Integrate every window of a run by its primary source and by the others.

    Args:
        run: with series, blocks and marks.
        source: its channels are in the series of the run.
        others: further sources, of any scope.
    """
    windows, phases = workload_windows(run), phase_windows(run)
    readings = integrate(_series(run, source), [*windows, *phases], accuracy_of(source))
    rest = readings[len(windows) :]
    return Measured(
        source=source,
        readings=readings[: len(windows)],
        phases=rest,
        idle=baseline(rest, "idle"),
        idle_loaded=baseline(rest, "idle_loaded"),
        others=[(other, integrate(_series(run, other), windows, accuracy_of(other))) for other in others],
    )


def _series(run: Run, source: EnergySource) -> list[Series]:
    wanted = set(source.channels)
    return [series for series in run.series if series.channel.name in wanted]


def to_record(measured: Measured, findings: Sequence[Finding] = ()) -> Energy:
    """The record of a run's energy. With one window missing there is no total, and the reason names it."""
    good = [reading for reading in measured.readings if not reading.because]
    missing = [f"{reading.window.name}: {reading.because}" for reading in measured.readings if reading.because]
    idle = measured.idle
    windows = tuple(_window(reading, idle) for reading in [*good, *(p for p in measured.phases if not p.because)])
    busy = windows[: len(good)]
    seconds = math.fsum(window.seconds for window in busy)
    whole = bool(good) and not missing
    reason = "" if whole else f"{named(measured.source)}: {'; '.join(missing) or 'no block was timed'}"
    update_s = max((reading.update_s for reading in good), default=0.0)
    return Energy(
        energy_j=math.fsum(window.gross_j for window in busy) if whole else None,
        reason=reason,
        source=named(measured.source),
        scope=measured.source.scope,
        method=measured.source.method,
        channels=measured.source.channels,
        update_hz=1 / update_s if update_s else None,
        n_updates=sum(window.n_updates for window in busy),
        # The error of the scale is common to all windows, so uncertainties add up and do not average out.
        uncertainty_j=math.fsum(window.uncertainty_j for window in busy) if whole else None,
        net_j=_total([window.net_j for window in busy]) if whole else None,
        net_uncertainty_j=_total([window.net_uncertainty_j for window in busy]) if whole else None,
        mean_w=math.fsum(window.gross_j for window in busy) / seconds if seconds else None,
        peak_w=max((window.peak_w for window in busy), default=None),
        idle_w=idle.watts if idle else None,
        idle_loaded_w=measured.idle_loaded.watts if measured.idle_loaded else None,
        windows=windows,
        j_per_token={window.name: window.gross_j / window.tokens for window in busy if window.tokens},
        tokens=per_token(measured.readings, idle, accuracy_of(measured.source).scale),
        others_j=_others(measured),
        flags=tuple(finding.kind for finding in findings),
    )


def named(source: EnergySource) -> str:
    """A source in words: its channels."""
    return " + ".join(source.channels)


def _others(measured: Measured) -> dict[str, float]:
    """Totals of the other sources that saw every window."""
    return {
        f"{named(other)} ({other.scope})": math.fsum(reading.joules for reading in readings)
        for other, readings in measured.others
        if readings and not any(reading.because for reading in readings)
    }


def _window(reading: Reading, idle: Baseline | None) -> WindowEnergy:
    window, net = reading.window, net_of(reading, idle) if reading.window.blocks else None
    resolved = net is not None and net[0] >= K * net[1]
    return WindowEnergy(
        name=window.name,
        seconds=window.seconds,
        gross_j=reading.joules,
        uncertainty_j=K * reading.u_j,
        mean_w=reading.joules / window.seconds,
        peak_w=reading.peak_w,
        n_updates=reading.n_updates,
        tokens=window.tokens,
        blocks=window.blocks,
        net_j=net[0] if net and resolved else None,
        net_uncertainty_j=K * net[1] if net else None,
        flags=_flags(reading, unresolved=net is not None and not resolved),
    )


def _flags(reading: Reading, *, unresolved: bool) -> tuple[str, ...]:
    window = reading.window
    return tuple(
        name
        for name, raised in (
            ("short_window", too_short(reading) and window.blocks > 0),
            ("gap", reading.hole_s > 0),
            ("net_not_resolvable", unresolved),
            ("pauses", window.blocks > 0 and window.busy_s < (1 - PAUSES) * window.seconds),
        )
        if raised
    )


def _total(values: Sequence[float | None]) -> float | None:
    """The sum, or None where one is not known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known and len(known) == len(values) else None
