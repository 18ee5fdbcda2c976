"""Energy per token: of one window, and as the slope over several lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgebench.analysis.energy_windows import Baseline, K, Reading, net_of
from edgebench.records import TokenEnergy

# --- per token --------------------------------------------------------------------------------------------------------


def token_energy(j: float, uncertainty_j: float, how: str, net: tuple[float, float] | None = None) -> TokenEnergy:
    """The figures of one token.

    Args:
        j: J/token.
        uncertainty_j: expanded.
        how: where it comes from.
        net: J/token above idle and its expanded uncertainty.
    """
    resolved = net is not None and net[0] >= net[1]
    return TokenEnergy(
        j=j,
        uncertainty_j=uncertainty_j,
        wh_per_1000=j * 1000 / 3600,
        tokens_per_j=1 / j,
        how=how,
        net_j=net[0] if net and resolved else None,
        net_uncertainty_j=net[1] if net else None,
    )


def per_token(readings: Sequence[Reading], idle: Baseline | None, gain: float) -> dict[str, TokenEnergy]:
    """By workload, and as ``prefill`` or ``decode`` by the slope over several lengths.

    Args:
        readings: of the windows of workloads.
        idle: the baseline, if there is one.
        gain: standard uncertainty of the source's scale.
    """
    found: dict[str, TokenEnergy] = {}
    good = [reading for reading in readings if not reading.because and reading.window.tokens]
    for reading in good:
        tokens, net = reading.window.tokens, net_of(reading, idle)
        found[reading.window.name] = token_energy(
            reading.joules / tokens,
            K * reading.u_j / tokens,
            "per block",
            (net[0] / tokens, K * net[1] / tokens) if net else None,
        )
    kinds: dict[str, list[Reading]] = {}
    for reading in good:
        kinds.setdefault(_kind(reading.window.name), []).append(reading)
    for kind, group in kinds.items():
        slope = slope_of(group, gain)
        if slope is not None:
            names = ", ".join(reading.window.name for reading in group)
            found[kind] = token_energy(slope[0], K * slope[1], f"slope over {names}")
    return found


def _kind(workload: str) -> str:
    """``pp512@d128`` is of the kind ``prefill@d128``."""
    name, _, depth = workload.partition("@")
    return ("prefill" if name.startswith("pp") else "decode") + (f"@{depth}" if depth else "")


def slope_of(readings: Sequence[Reading], gain: float) -> tuple[float, float] | None:
    """J/token from the energies of blocks of several lengths, and its standard uncertainty.

    Least squares of ``E = a + b n``, each window weighted by what it leaves open itself; the error of the scale is
    common to all of them and multiplies the slope. None for less than two lengths, or a slope that is not positive.
    """
    points = [(r.window.tokens / r.window.blocks, r.joules / r.window.blocks, r) for r in readings]
    if len({n for n, _, _ in points}) < 2:
        return None
    own = [
        max(math.sqrt(max(0.0, r.u_j**2 - (gain * r.joules) ** 2)), 1e-6 * r.joules) / r.window.blocks
        for _, _, r in points
    ]
    weights = [1 / u**2 for u in own]
    total = math.fsum(weights)
    mean_n = math.fsum(w * n for w, (n, _, _) in zip(weights, points, strict=True)) / total
    mean_e = math.fsum(w * e for w, (_, e, _) in zip(weights, points, strict=True)) / total
    spread = math.fsum(w * (n - mean_n) ** 2 for w, (n, _, _) in zip(weights, points, strict=True))
    b = math.fsum(w * (n - mean_n) * (e - mean_e) for w, (n, e, _) in zip(weights, points, strict=True)) / spread
    left = math.fsum(w * (e - mean_e - b * (n - mean_n)) ** 2 for w, (n, e, _) in zip(weights, points, strict=True))
    scatter = max(1.0, left / (len(points) - 2)) if len(points) > 2 else 1.0
    return (b, math.sqrt(scatter / spread + (gain * b) ** 2)) if b > 0 else None
