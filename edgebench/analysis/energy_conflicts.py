"""Sources of energy that contradict each other over the same windows.

Two that cover the same must agree within 5 % (the two of a battery within 10 %) and within their uncertainties. Where
both come from one sensor, as the counter and the power of an NVIDIA GPU do, the error of the scale is common to both
and excuses nothing: only what the readings leave open is allowed.

What lies inside must not take more than the whole. That is judged between any two sources, whichever gives the energy:
a contradiction that leaves the primary source out of it is a note.

The platform's counter (``psys``) is not taken where it says less than the processor inside it, by however little. That
is said as a note, too: it tells why a laptop's energy is that of the processor alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from edgebench.analysis.energy import Measured, named
from edgebench.analysis.energy_source import EnergySource
from edgebench.analysis.energy_windows import K, Reading, accuracy_of
from edgebench.records import Finding, Scope, Severity
from edgebench.units import format_rate

DISAGREE_LIMIT = 0.05
_BATTERY_LIMIT = 0.10

_CHIPS: frozenset[Scope] = frozenset({"cpu_package+dram", "cpu_package", "soc_compute"})
_BEHIND_THE_SUPPLY: frozenset[Scope] = _CHIPS | {"module", "board_rails", "psys", "gpu_board"}
_HOLDS: Mapping[Scope, frozenset[Scope]] = {
    "wall_ac": _BEHIND_THE_SUPPLY | {"dc_input"},
    "dc_input": _BEHIND_THE_SUPPLY,
    "module": frozenset({"soc_compute"}),
    "board_rails": frozenset({"soc_compute"}),
    "psys": _CHIPS,
    "cpu_package+dram": frozenset({"cpu_package"}),
}
"""What certainly lies inside. A GPU's board is beside the processor and may be beside the platform: not in them."""

_Seen = tuple[EnergySource, Sequence[Reading]]


@dataclass(frozen=True)
class _Conflict:
    """Two sources that contradict each other; ``excess`` is the difference in units of what is allowed."""

    severity: Severity
    excess: float
    says: str
    remedy: str
    joules: Mapping[str, float]


def conflict_finding(measured: Measured) -> Finding | None:
    """The gravest contradiction between the sources of a run; None where there is none."""
    seen: list[_Seen] = [(measured.source, measured.readings), *measured.others]
    found = [conflict for a, b in combinations(seen, 2) for conflict in _conflicts(a, b, measured.source)]
    if not found:
        return None
    worst = max(found, key=lambda conflict: (conflict.severity == "suspect", conflict.excess))
    return Finding(
        kind="sources_disagree",
        severity=worst.severity,
        says=worst.says,
        remedy=worst.remedy,
        evidence={**worst.joules},
    )


def _conflicts(a: _Seen, b: _Seen, primary: EnergySource) -> Iterator[_Conflict]:
    (first, _), (second, _) = a, b
    pairs = [pair for pair in zip(a[1], b[1], strict=True) if not any(reading.because for reading in pair)]
    if first.scope == second.scope:
        if primary in (first, second):
            yield from (conflict for one, other in pairs if (conflict := _apart(first, one, second, other)))
        return
    for whole, part, turned in ((first, second, False), (second, first, True)):
        if part.scope in _HOLDS.get(whole.scope, frozenset()):
            ordered = [(other, one) if turned else (one, other) for one, other in pairs]
            if whole.scope == "psys" and whole != primary:
                yield from _platform_below(whole, part, ordered)
                continue
            severity: Severity = "suspect" if primary in (whole, part) else "note"
            for outer, inner in ordered:
                if conflict := _too_large(whole, outer, part, inner, severity):
                    yield conflict


def _apart(mine: EnergySource, a: Reading, other: EnergySource, b: Reading) -> _Conflict | None:
    """Two of one scope that differ by more than is allowed."""
    sensor = _sensor(mine)
    one_sensor = sensor == _sensor(other)
    doubts = (_open_j(mine, a), _open_j(other, b)) if one_sensor else (a.u_j, b.u_j)
    limit = _BATTERY_LIMIT if one_sensor and sensor == "battery" else DISAGREE_LIMIT
    allowed = max(limit * max(a.joules, b.joules), K * math.hypot(*doubts))
    if abs(a.joules - b.joules) <= allowed:
        return None
    return _Conflict(
        "suspect",
        abs(a.joules - b.joules) / allowed,
        f"Of {a.window.name} {named(mine)} says {format_rate(a.joules)} J, {named(other)} {format_rate(b.joules)} J, "
        f"both of {mine.scope.replace('_', ' ')}.",
        "Measure longer windows; if it stays, compare both with a meter: one of them is wrong by the difference.",
        {named(mine): a.joules, named(other): b.joules},
    )


def _open_j(source: EnergySource, reading: Reading) -> float:
    """The standard uncertainty of a reading without that of its scale, J."""
    return math.sqrt(max(0.0, reading.u_j**2 - (accuracy_of(source).gain * reading.joules) ** 2))


def _too_large(
    whole: EnergySource, outer: Reading, part: EnergySource, inner: Reading, severity: Severity
) -> _Conflict | None:
    """A part that takes more than the whole, beyond doubt."""
    allowed = max(DISAGREE_LIMIT * max(outer.joules, inner.joules), K * math.hypot(outer.u_j, inner.u_j))
    if inner.joules - outer.joules <= allowed:
        return None
    remedy = "Trust the source of the widest scope, or compare both with a meter."
    if _sensor(whole) == "meter":
        remedy = "Look whether this machine hangs on that meter, with all of its power supplies, and whether W are W."
    return _Conflict(
        severity,
        (inner.joules - outer.joules) / allowed,
        f"Of {outer.window.name} {named(part)} says {format_rate(inner.joules)} J, more than all that "
        f"{named(whole)} covers, which says {format_rate(outer.joules)} J.",
        remedy,
        {named(whole): outer.joules, named(part): inner.joules},
    )


def _platform_below(
    whole: EnergySource, part: EnergySource, pairs: Sequence[tuple[Reading, Reading]]
) -> Iterator[_Conflict]:
    """A platform's counter that is not taken and says less than what is inside it, over all windows together."""
    outer, inner = math.fsum(one.joules for one, _ in pairs), math.fsum(other.joules for _, other in pairs)
    if inner > outer:
        yield _Conflict(
            "note",
            inner / outer,
            f"{named(whole)} says {format_rate(outer)} J where {named(part)}, which is inside it, says "
            f"{format_rate(inner)} J: the platform's counter is not used.",
            "Some machines count something else in it: compare with a meter, or with the battery while unplugged.",
            {named(whole): outer, named(part): inner},
        )


def _sensor(source: EnergySource) -> str:
    return source.channels[0].partition(".")[0]
