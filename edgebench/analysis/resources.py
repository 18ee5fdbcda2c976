"""Memory and energy of a trial from those of its rounds.

Peaks are largest values: a board that ran out once, ran out. Energy is the median over rounds, and only over rounds of
one scope and source: joules at the wall and joules of the processor are different quantities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgebench.records import Energy, MemoryPhase, MemoryUse
from edgebench.stats import median


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
    if reason:
        return Energy(energy_j=None, reason=reason, estimate_low_j=low, estimate_high_j=high, estimate_model=model)
    workloads = dict.fromkeys(name for energy in measured for name in energy.j_per_token)
    return Energy(
        energy_j=_median_of(energy.energy_j for energy in measured),
        source=measured[0].source,
        scope=measured[0].scope,
        net_j=_median_of(energy.net_j for energy in measured),
        uncertainty_j=_median_of(energy.uncertainty_j for energy in measured),
        j_per_token={
            name: median([energy.j_per_token[name] for energy in measured if name in energy.j_per_token])
            for name in workloads
        },
        estimate_low_j=low,
        estimate_high_j=high,
        estimate_model=model,
    )


def _median_of(values: Iterable[float | None]) -> float | None:
    """Median of the known values, or None when none is known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
