"""Energy as a function of time, from the readings of one source.

A window's energy is the difference of the curve at its two edges, so that windows side by side add up exactly.

**A counter** tells something new only when its value changes, and the change happened after the reading before it: the
curve runs straight between the middles of those spans. It integrates in hardware, so nothing is lost in between; only
the edges are uncertain, each by the power there times the time between two updates (edges uniform: divided by
sqrt(12)), and by half the span in which an update was seen (divided by sqrt(3)).

**A gauge** is integrated by trapezoids between its readings. Of a level that holds from update to update, or is a mean
over some time, the readings are late: by half the update period and half the averaging time, and are moved back by
that. What happens between two updates is not seen. If P' and P are readings a time h apart, the squares
(h (P' - P))**2 / 2 add up to the expectation of the square of ``E_h - E_2h``, the difference of the integral over all
and over every second reading, for readings that scatter at random; the sum of many squares is the steadier estimate of
the two. It also bounds a step between two readings, which a trapezoid misses by h (P' - P) / 2 at most. How late the
readings are is known to an update (they may be means since the last one) and half the averaging time only. That shifts
both edges alike, so it costs the difference of the power at the two times that delay: nothing for a block, but all the
error there is for a slow rise.

Nothing here knows the error of the source's own scale: see `Accuracy` and ``edgebench.analysis.energy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgebench.records import Series

F64 = npt.NDArray[np.float64]

HOLE = 3.0
"""Readings more than so many periods apart leave a hole."""
_STALL, _STALL_S = 10, 2.0
_STUDENT = 1.5
"""Student's t at 95 % for n degrees of freedom, over 1.96, is about 1 + 1.5 / n (n = 2: 2.2, 5: 1.3, 10: 1.14)."""
_COARSEST_W = 1.0


@dataclass(frozen=True)
class Accuracy:
    """What is known about a kind of source beforehand (standard uncertainties; a calibration may override them)."""

    gain: float
    """Of its scale: 0.05 is 5 %."""
    offset_w: float = 0.0
    update_s: float | None = None
    """The longest time between two updates. None: told by the readings alone."""
    averaging_s: float = 0.0
    """A gauge that shows the mean over this time."""
    resolution_w: float = 0.0
    """Of a gauge; 0: told by its readings."""
    may_hold_s: float = 1.0
    """For how long a gauge may hold what it saw, where its readings change too seldom to tell."""

    @property
    def scale(self) -> float:
        """Standard uncertainty of the true energy that is due to ``gain``, relative to what the source says.

        A source that is ``1 + g`` too high saw ``1 / (1 + g) = 1 - g + g**2 - g**3 ...`` of its energy, with g normal
        of standard deviation ``gain``: the variance is ``gain**2 + 8 gain**4`` up to the fourth order.
        """
        return self.gain * float(np.sqrt(1 + 8 * self.gain**2))


@dataclass(frozen=True)
class Share:
    """What a window took. ``doubt_j`` is a standard uncertainty without that of the source's scale and offset."""

    joules: float
    doubt_j: float
    peak_w: float
    n_updates: int
    covered: float
    """Share of the window in which the source was read."""
    hole_s: float
    """Time of the window that lies in holes."""
    stalled: bool
    """Whether what is not covered was read, but never changed."""


@dataclass(frozen=True)
class Curve:
    """Energy over time through knots.

    Args:
        start_ns: the clock at time 0 of ``x``.
        x: times of the knots, s, ascending, shape [n], n >= 2.
        f: energy until then, J, shape [n].
        w: power at the knots, W: a gauge. None: a counter, straight between the knots.
        half_s: half the span in which the update of a knot was seen, s, shape [n].
        update_s: usual time between two updates.
        unseen_s: for how long a gauge may not tell what happens.
        late_s: averaging time of a gauge plus the time for which it holds: what smears its edges.
        resolution_w: of a gauge.
        holes: whether nothing is known between knot i and i + 1, shape [n - 1].
        level_w: lowest and highest power in all readings.
        read: times of the first and the last reading, s.
    """

    start_ns: int
    x: F64
    f: F64
    w: F64 | None
    half_s: F64
    update_s: float
    unseen_s: float
    late_s: float
    resolution_w: float
    holes: npt.NDArray[np.bool_]
    level_w: tuple[float, float]
    read: tuple[float, float]

    @property
    def method(self) -> Literal["counter", "gauge"]:
        """How the energy was integrated."""
        return "counter" if self.w is None else "gauge"

    def _interval(self, t: float) -> int:
        """Index of the interval that holds a time; the first or last for a time outside."""
        return int(min(max(np.searchsorted(self.x, t, side="right") - 1, 0), len(self.x) - 2))

    def at(self, t: float) -> float:
        """Energy until ``t`` (s from ``start_ns``), J; outside the knots the last known power goes on."""
        i = self._interval(t)
        x, step, since = self.x, self.x[i + 1] - self.x[i], t - self.x[i]
        if self.w is None:
            return float(self.f[i] + (self.f[i + 1] - self.f[i]) / step * since)
        if t < x[0]:
            return float(self.f[0] + self.w[0] * since)
        if t > x[-1]:
            return float(self.f[-1] + self.w[-1] * (t - x[-1]))
        return float(self.f[i] + since * (self.w[i] + (self.w[i + 1] - self.w[i]) / step * since / 2))

    def share(self, start_ns: int, end_ns: int) -> Share:
        """What the source says about a window."""
        a, b = (start_ns - self.start_ns) / 1e9, (end_ns - self.start_ns) / 1e9
        i, j = self._interval(a), self._interval(b)
        hole_s = self._holes_s(a, b, i, j)
        slack = 1.5 * self.update_s
        outside = max(0.0, self.x[0] - slack - a) + max(0.0, b - self.x[-1] - slack)
        unread = max(0.0, self.read[0] - slack - a) + max(0.0, b - self.read[1] - slack)
        variance = self._counter_doubt(a, b, i, j) if self.w is None else self._gauge_doubt(a, b, i, j, self.w)
        variance += (self.level_w[1] * hole_s) ** 2 / 3
        return Share(
            joules=self.at(b) - self.at(a),
            doubt_j=float(np.sqrt(variance)),
            peak_w=self._peak(a, b, i, j),
            n_updates=self._updates(a, b),
            covered=max(0.0, 1 - (outside + hole_s) / (b - a)),
            hole_s=hole_s,
            stalled=self.w is None and outside > 2 * unread,
        )

    def _holes_s(self, a: float, b: float, i: int, j: int) -> float:
        if not self.holes[i : j + 1].any():
            return 0.0
        low, high = np.maximum(self.x[i : j + 1], a), np.minimum(self.x[i + 1 : j + 2], b)
        return float(np.clip(high - low, 0, None)[self.holes[i : j + 1]].sum())

    def _updates(self, a: float, b: float) -> int:
        """Times within the window at which the source told something new; for a gauge that holds, as many as can be."""
        if (
            self.w is not None
            and len(self.x) > 1
            and self.update_s > 1.5 * (self.x[-1] - self.x[0]) / (len(self.x) - 1)
        ):
            return int((b - a) / self.update_s)
        return int(np.count_nonzero((self.x >= a) & (self.x <= b)))

    def _outside(self, t: float) -> float:
        """How far a time lies outside the knots, s."""
        return float(max(0.0, self.x[0] - t, t - self.x[-1]))

    def _peak(self, a: float, b: float, i: int, j: int) -> float:
        if self.w is not None:
            inside = self.w[i : j + 2][(self.x[i : j + 2] >= a) & (self.x[i : j + 2] <= b)]
            return float(inside.max()) if len(inside) else (self.at(b) - self.at(a)) / (b - a)
        first, last = (i + 1, j) if j - i > 1 else (i, j + 1)  # intervals that lie inside whole, where there are any
        return float((np.diff(self.f[first : last + 1]) / np.diff(self.x[first : last + 1])).max())

    def _counter_doubt(self, a: float, b: float, i: int, j: int) -> float:
        """Variance of a counter's window from its two edges, J**2."""
        variance = 0.0
        for t, k in ((a, i), (b, j)):
            low, high = max(0, k - 1), min(len(self.x) - 1, k + 2)
            x = self.x[low : high + 1]
            power = float((np.diff(self.f[low : high + 1]) / np.diff(x)).max())
            gap = float(self.x[k + 1] - self.x[k])
            half = float(max(self.half_s[k], self.half_s[k + 1]))
            variance += power**2 * (gap**2 / 12 + half**2 / 3 + self._outside(t) ** 2)
        return variance

    def _gauge_doubt(self, a: float, b: float, i: int, j: int, w: F64) -> float:
        """Variance of a gauge's window: what lies between its updates, its edges, its resolution, J**2."""
        times = np.maximum(np.diff(self.x), self.unseen_s)
        squares = (np.diff(w) * times) ** 2 / 2
        here = squares[i : j + 1]
        # A few updates tell little of how much updates differ: the whole run tells more, Student's t the rest.
        n = max(1.0, (b - a) / self.unseen_s)
        variance = max(float(here.sum()), float(squares.mean()) * len(here)) * (1 + _STUDENT / n) ** 2
        for t in (a, b):
            if self.late_s:
                low, high = np.searchsorted(self.x, (t - 2 * self.late_s, t + 2 * self.late_s))
                near = w[max(0, low - 1) : high + 1]
                variance += float((near.max() - near.min()) * self.late_s) ** 2 / 12
            variance += (self.level_w[1] * self._outside(t)) ** 2 / 3
        at_a, at_b = np.interp((a, b), self.x, w)
        variance += float((at_b - at_a) * (2 * self.update_s + self.late_s)) ** 2 / 12
        return variance + (self.resolution_w * (b - a)) ** 2 / 12


# --- from readings ----------------------------------------------------------------------------------------------------


def make_curves(series: Sequence[Series], accuracy: Accuracy) -> list[Curve]:
    """The curves of channels whose energies add up: one where they were read together, else one each.

    Args:
        series: of one source, either all counters in J or all gauges in W; a failed reading is left out.
        accuracy: what is known about the source.

    Returns:
        No curve for channels that told nothing, or only once: see `frozen`.
    """
    together: dict[tuple[int, ...], list[Series]] = {}
    for one in series:
        together.setdefault(one.t_ns, []).append(one)
    curves = [_curve(t_ns, group, accuracy) for t_ns, group in together.items()]
    return [curve for curve in curves if curve is not None]


def frozen(series: Series) -> bool:
    """Whether a counter, or a gauge at 0 W, never told anything else: it is broken, or counts something else."""
    values = {value for value in series.values if value is not None}
    return len(values) == 1 and (series.channel.kind == "counter" or values <= {0.0})


def _curve(t_ns: tuple[int, ...], group: Sequence[Series], accuracy: Accuracy) -> Curve | None:
    columns = np.array([[np.nan if v is None else v for v in one.values] for one in group], dtype=np.float64)
    known = ~np.isnan(columns).any(axis=0)
    if int(known.sum()) < 2:
        return None
    stamps = np.array(t_ns, dtype=np.int64)[known]
    start_ns = int(stamps[0])
    t = (stamps - start_ns) / 1e9
    values = columns[:, known]
    if group[0].channel.kind == "counter":
        return counter_curve(start_ns, t, values, [one.channel.wrap for one in group], accuracy)
    return gauge_curve(start_ns, t, values.sum(axis=0), accuracy)


def counter_curve(
    start_ns: int, t: F64, values: F64, wraps: Sequence[float | None], accuracy: Accuracy
) -> Curve | None:
    """Of counters read together.

    Args:
        start_ns: the clock at time 0.
        t: times of the readings, s, shape [n].
        values: J, shape [channels, n].
        wraps: range of each counter, J; None for one that never starts again.
        accuracy: of the source.

    Returns:
        None when it changed less than twice.
    """
    between = np.diff(t)
    grown, broken = np.zeros_like(between), np.zeros(len(between), dtype=bool)
    for column, wrap in zip(values, wraps, strict=True):
        added, lost = _growth(np.diff(column), between, wrap)
        grown += added
        broken |= lost
    changed = np.flatnonzero((grown > 0) | broken)
    if len(changed) < 2:
        return None
    after, before = t[changed + 1], t[changed]
    earliest = before if accuracy.update_s is None else np.maximum(before, after - accuracy.update_s)
    x, f = (earliest + after) / 2, np.cumsum(grown)[changed]
    steps = np.diff(x)
    power = np.diff(f) / steps
    return Curve(
        start_ns=start_ns,
        x=x,
        f=f,
        w=None,
        half_s=(after - earliest) / 2,
        update_s=float(np.median(steps)),
        unseen_s=0.0,
        late_s=0.0,
        resolution_w=0.0,
        # A counter that stands still for long either counts on unseen or has stopped: nobody can tell.
        holes=broken[changed][1:] | (steps > max(_STALL * float(np.median(steps)), _STALL_S)),
        level_w=(float(power.min()), float(power.max())),
        read=(float(t[0]), float(t[-1])),
    )


def _growth(differences: F64, between: F64, wrap: float | None) -> tuple[F64, npt.NDArray[np.bool_]]:
    """What a counter grew by between its readings, and where that is not known (and taken as the usual power).

    A fall is the end of its range only if what it then grew by is not absurd; otherwise it was reset. Between readings
    that are further apart than it takes to run through half its range, a whole round would not be seen.
    """
    fell = differences < 0
    usual = differences[~fell & (differences > 0)]
    rates = usual / between[~fell & (differences > 0)]
    highest = 4 * float(np.quantile(rates, 0.9)) if len(rates) else np.inf
    if wrap is None:
        grown, lost = differences.copy(), fell
    else:
        grown = np.where(fell, differences + wrap, differences)
        # A counter that lags lets several updates fall into one reading: one more period of the readings is allowed.
        allowed = np.minimum(highest * (between + float(np.median(between))), wrap / 2)
        lost = fell & ((grown < 0) | (grown > allowed))
        if len(rates):
            lost |= between * float(np.quantile(rates, 0.9)) > wrap / 2
    if lost.any():
        grown[lost] = between[lost] * (float(np.median(rates)) if len(rates) else 0.0)
    return grown, lost


def gauge_curve(start_ns: int, t: F64, w: F64, accuracy: Accuracy) -> Curve:
    """Of a gauge, or of gauges read together and already added up.

    Args:
        start_ns: the clock at time 0.
        t: times of the readings, s, shape [n], n >= 2.
        w: W, shape [n].
        accuracy: of the source.
    """
    steps = np.diff(t)
    period = float(np.median(steps))
    told = _update_period(t, w) if accuracy.update_s is None else accuracy.update_s
    update = max(period, told or 0.0)
    held = update if update > 1.5 * period else 0.0
    may_hold_s = accuracy.may_hold_s if told is None else 0.0
    f = np.concatenate(([0.0], np.cumsum((w[1:] + w[:-1]) / 2 * steps)))
    return Curve(
        start_ns=start_ns,
        x=t - (accuracy.averaging_s + held) / 2,
        f=f,
        w=w,
        half_s=np.zeros_like(t),
        update_s=update,
        unseen_s=max(update, may_hold_s),
        late_s=max(accuracy.averaging_s + held, may_hold_s),
        resolution_w=accuracy.resolution_w or _resolution(w),
        holes=steps > HOLE * max(period, held),
        level_w=(float(w.min()), float(w.max())),
        read=(float(t[0]), float(t[-1])),
    )


def _update_period(t: F64, w: F64) -> float | None:
    """How often a gauge tells something new: the shorter times between its changes, as a constant power hides some.

    None where there are too few changes to tell.
    """
    between = np.diff(t[1:][np.diff(w) != 0])
    if len(between) < 7:
        return None
    return float(np.mean(between[between < 2 * np.quantile(between, 0.1)]))


def _resolution(w: F64) -> float:
    """The step of a gauge, W: the smallest difference it showed; of one or two values, their last decimal place."""
    levels = np.unique(w)
    if len(levels) > 2:
        return float(min(np.diff(levels).min(), np.ptp(levels)))
    step = _COARSEST_W
    while step > 1e-6 and np.abs(levels / step - np.round(levels / step)).max() > 1e-6:
        step /= 10
    return step
