"""Memory and energy of a trial from those of its rounds.

Peaks are largest values: a board that ran out once, ran out. Energy is the median over rounds, and only over rounds of
one scope and source: joules at the wall and joules of the processor are different quantities.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgebench.analysis.energy_tokens import token_energy
from edgebench.records import Energy, MemoryPhase, MemoryUse, TokenEnergy
from edgebench.stats import median, rounds_interval


def largest(values: Iterable[int | None]) -> int | None:
    """The largest known value, or None when none is known."""
    return max((value for value in values if value is not None), default=None)


def rss_peak(uses: Sequence[MemoryUse]) -> int | None:
    """Largest resident set of any phase of any round, bytes."""
    return largest(phase.rss_peak for use in uses for phase in use.phases)


def merge_memory(uses: Sequence[MemoryUse]) -> MemoryUse:
    """Largest value of every field over the rounds; the engine's account is that of the round where it was largest."""
    names = dict.fromkeys(phase.phase for use in uses for phase in use.phases)
    engines = [use.engine for use in uses if use.engine is not None]
    return MemoryUse(
        phases=tuple(_merge_phase([p for use in uses for p in use.phases if p.phase == name]) for name in names),
        engine=max(engines, key=lambda engine: engine.total, default=None),
        anon_peak=largest(use.anon_peak for use in uses),
        file_peak=largest(use.file_peak for use in uses),
        swap_peak=largest(use.swap_peak for use in uses),
        system_used_peak=largest(use.system_used_peak for use in uses),
        cgroup_peak=largest(use.cgroup_peak for use in uses),
        cgroup_note=next((use.cgroup_note for use in uses if use.cgroup_note), ""),
    )


def _merge_phase(phases: Sequence[MemoryPhase]) -> MemoryPhase:
    return MemoryPhase(
        phase=phases[0].phase,
        rss_peak=largest(phase.rss_peak for phase in phases),
        anon=largest(phase.anon for phase in phases),
        file=largest(phase.file for phase in phases),
        swap=largest(phase.swap for phase in phases),
        pss=largest(phase.pss for phase in phases),
    )


def merge_energy(energies: Sequence[Energy]) -> Energy:
    """Median over the rounds that were measured, if all of them used the same source and scope; else None and why."""
    measured = [energy for energy in energies if energy.energy_j is not None]
    low = _median_of(energy.estimate_low_j for energy in energies)
    high = _median_of(energy.estimate_high_j for energy in energies)
    model = next((energy.estimate_model for energy in energies if energy.estimate_model), "")
    reason = ""
    if not measured:
        reason = next((energy.reason for energy in energies), "no round was measured")
    elif len({(energy.source, energy.scope) for energy in measured}) > 1:
        sources = sorted({f"{energy.source} ({energy.scope})" for energy in measured})
        reason = f"the rounds were measured by different sources: {', '.join(sources)}"
    partial = [energy for energy in energies if energy.tokens and energy.energy_j is None]
    if reason and (measured or len({(energy.source, energy.scope) for energy in partial}) != 1):
        absent = energies[0].absent if energies else ()
        return Energy(
            energy_j=None, reason=reason, absent=absent, estimate_low_j=low, estimate_high_j=high, estimate_model=model
        )
    told = measured or partial  # without a total some windows may have been measured all the same
    first = told[0]
    return Energy(
        energy_j=_median_of(energy.energy_j for energy in told),
        reason=reason,
        source=first.source,
        scope=first.scope,
        method=first.method,
        channels=first.channels,
        net_j=_median_of(energy.net_j for energy in told),
        uncertainty_j=_with_spread([(energy.energy_j, energy.uncertainty_j) for energy in told]),
        net_uncertainty_j=_with_spread([(energy.net_j, energy.net_uncertainty_j) for energy in told]),
        j_per_token={
            name: median([energy.j_per_token[name] for energy in told if name in energy.j_per_token])
            for name in dict.fromkeys(name for energy in told for name in energy.j_per_token)
        },
        tokens=_merge_tokens(told),
        update_hz=_median_of(energy.update_hz for energy in told),
        n_updates=sum(energy.n_updates for energy in told),
        mean_w=_median_of(energy.mean_w for energy in told),
        peak_w=max((energy.peak_w for energy in told if energy.peak_w is not None), default=None),
        idle_w=_median_of(energy.idle_w for energy in told),
        idle_loaded_w=_median_of(energy.idle_loaded_w for energy in told),
        others_j={
            name: median([energy.others_j[name] for energy in told if name in energy.others_j])
            for name in dict.fromkeys(name for energy in told for name in energy.others_j)
        },
        flags=tuple(dict.fromkeys(flag for energy in told for flag in energy.flags)),
        estimate_low_j=low,
        estimate_high_j=high,
        estimate_model=model,
    )


def _merge_tokens(energies: Sequence[Energy]) -> dict[str, TokenEnergy]:
    """By name, the median over the rounds; the spread of the rounds is added to the uncertainty."""
    merged: dict[str, TokenEnergy] = {}
    for name in dict.fromkeys(name for energy in energies for name in energy.tokens):
        found = [energy.tokens[name] for energy in energies if name in energy.tokens]
        nets = [(one.net_j, one.net_uncertainty_j) for one in found if one.net_j is not None]
        net, doubt = _median_of(j for j, _ in nets), _with_spread(nets)
        j = median([one.j for one in found])
        merged[name] = token_energy(
            j,
            _with_spread([(one.j, one.uncertainty_j) for one in found]) or 0.0,
            found[0].how,
            None if net is None or doubt is None or 2 * len(nets) < len(found) else (net, doubt),
        )
    return merged


def _with_spread(values: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Expanded uncertainty of the median of repetitions: what is common to them, and the interval of their median.

    Twice s / sqrt(n) would cover 80 % at n = 3 and 88 % at n = 10 where the spread is all there is.

    Args:
        values: of each repetition, the value and its own expanded uncertainty.
    """
    known = [(value, doubt) for value, doubt in values if value is not None and doubt is not None]
    if not known:
        return None
    middle, interval = median([value for value, _ in known]), rounds_interval([value for value, _ in known])
    spread = 0.0 if interval is None else max(interval.high - middle, middle - interval.low)
    return math.hypot(median([doubt for _, doubt in known]), spread)


def _median_of(values: Iterable[float | None]) -> float | None:
    """Median of the known values, or None when none is known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
