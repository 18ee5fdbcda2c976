"""Medians, intervals that cover, ratios, drift, and when to stop measuring.

**What is estimated.** The value of a trial is the median over rounds (a round = one fresh process), the value of a
round the median of its clean blocks. Noise on a shared machine is one-sided: somebody else can make a block slower,
nobody can make it faster. A mean follows the tail, a minimum follows luck; the median stays until half of the rounds
are hit.

**Intervals.** For n >= 6 rounds the 95 % interval lies between two order statistics: the number of rounds below the
true median is binomial(n, 1/2) whatever the distribution, so the coverage is known exactly (David and Nagaraja, *Order
Statistics*, 2003, section 7.1). Below 6 even the whole range misses too often: all rounds lie on one side of the median
with probability 2**(1 - n) (n = 5: 6.3 %, n = 2: half of the time). There the range is stretched on both sides by a
multiple k of itself, on the log scale because rates and times are positive. If rounds are uniform around the median the
stretched range misses with probability (2 (1 + k)) ** (1 - n); a density that falls away from the median gathers the
rounds nearer to it and misses less often. k is set for half of the allowed misses; the other half is spent on skew.

No rule that scales with its data covers more than 1 - 0.4**n where 40 % of the processes run at a second, slower level:
all n may be such (n = 2: 84 %, n = 3: 93.6 %). Hence ``too_few_rounds``. One round has no interval, never one of zero
width.

**Neighbouring rounds resemble each other** when a machine warms up or a neighbour comes and goes. `rounds_interval`
widens the interval by sqrt((1 + r) / (1 - r)), r being the rank autocorrelation of successive rounds; its known bias of
about -1/n, and as much again for its own noise, is added. Simulated with AR(1) rounds, n = 6 to 20: at a true
correlation of 0.2 the plain interval covers 92.2 % at worst, this one 95.6 %; at 0.3, 89.7 % and 94.6 %; at 0.5, 81.8 %
and 91.3 %. Independent rounds pay with an interval about 15 % wider.

**Why no bootstrap.** The percentile bootstrap of a median cannot leave the data it has. Rounds with one-sided spikes,
nominal 95 %, measured: it covers 75 % (n = 3), 87 % (n = 4), 88 % (n = 6), 89 % (n = 8). `rounds_interval` covers at
least 95.5 % at any n for that noise.

**Stopping.** Measuring until the interval looks narrow prefers the rounds at which it is narrow by chance. Checked at
every round, a plain 95 % interval covers 92.6 % in the worst case simulated (two levels 4 % apart, target 2 %). With
the target met at two consecutive rounds by `rounds_interval` it covers 96.0 %, and 94.8 % in the worst of 33 cases
(11 kinds of noise, targets of 1, 2 and 5 %). `should_stop` does that.

The figures are of 20,000 trials each; ``tests/unit/test_coverage_simulation.py`` repeats them with fewer.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from edgebench.specs import Protocol

Verdict = Literal["same", "faster", "slower", "cannot tell"]


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value with probability ``confidence`` (nominal)."""

    low: float
    high: float
    confidence: float

    def relative_half_width(self, value: float) -> float:
        """The larger side of the interval around ``value``, as a share of it."""
        return max(self.high - value, value - self.low) / value


# --- location ---------------------------------------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """The middle value; the mean of the two middle ones when their number is even.

    Raises:
        ValueError: when there are no values: an absent number is None with a reason, and the caller knows the reason.
    """
    return quantile(values, 0.5)


def quantile(values: Sequence[float], q: float) -> float:
    """Hyndman and Fan's type 7 (linear between order statistics), as numpy's default.

    Raises:
        ValueError: when there are no values, or ``q`` is not in [0, 1].
    """
    if not values or not 0 <= q <= 1:
        raise ValueError(f"quantile {q} of {len(values)} values is not defined")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    share = position - below
    if share == 0:
        return ordered[below]
    low, high = ordered[below], ordered[below + 1]
    # Never outside [low, high], whatever the rounding.
    return min(max(low + share * (high - low), low), high)


# --- intervals --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _rank(n: int, confidence: float) -> int:
    """Largest k for which order statistics k and n+1-k cover the median with ``confidence``; 0 when none do."""
    outside, k = 0.0, 0
    for below in range(n // 2):
        outside += math.comb(n, below) / 2 ** (n - 1)
        if 1 - outside < confidence:
            break
        k = below + 1
    return k


def _stretch(n: int, confidence: float) -> float:
    """By how many ranges (log scale) the range of ``n`` values is stretched on each side: see the module's text."""
    misses = (1 - confidence) / 2
    return float(max(0.0, misses ** (-1 / (n - 1)) / 2 - 1))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Interval of the median of the distribution that positive, independent ``values`` come from; order-free.

    Returns:
        None for fewer than two values.

    Raises:
        ValueError: for values that are not positive and finite, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    if not all(0 < value < math.inf for value in values):
        raise ValueError("rates and durations are positive and finite; a failed round has no value")
    n = len(values)
    if n < 2:
        return None
    ordered = sorted(values)
    k = _rank(n, confidence)
    if k:
        return Interval(ordered[k - 1], ordered[n - k], confidence)
    # exp(300) says "anything" as well as any larger number, and is still finite when it meets a rate.
    factor = math.exp(min(300.0, math.log(ordered[-1] / ordered[0]) * _stretch(n, confidence)))
    return Interval(ordered[0] / factor, ordered[-1] * factor, confidence)


def rounds_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """`median_interval`, widened as far as successive values resemble each other; ``values`` in order of measurement.

    Returns:
        None for fewer than two values.

    Raises:
        ValueError: as `median_interval`.
    """
    interval, n = median_interval(values, confidence), len(values)
    if interval is None or n < 6:  # too few to tell; the stretched range has slack instead
        return interval
    r = min(max(_rank_autocorrelation(values) + 2 / n, 0.0), 0.8)
    factor, middle = math.sqrt((1 + r) / (1 - r)), median(values)
    return Interval(middle * (interval.low / middle) ** factor, middle * (interval.high / middle) ** factor, confidence)


def _rank_autocorrelation(values: Sequence[float]) -> float:
    """Lag-one autocorrelation of the ranks (ties share theirs), about -1/n for independent values."""
    ordered = sorted(values)
    centre = (len(values) - 1) / 2
    ranks = [(bisect_left(ordered, x) + bisect_right(ordered, x) - 1) / 2 - centre for x in values]
    total = sum(rank * rank for rank in ranks)
    return sum(a * b for a, b in pairwise(ranks)) / total if total else 0.0


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """How many times ``a`` is as large as ``b``: exp of the median of the log ratios of paired rounds."""
    return math.exp(median([math.log(x / y) for x, y in zip(a, b, strict=True)]))


def ratio_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Interval of a/b from paired rounds in order of measurement: what slowed both members of a pair cancels.

    Order statistics do not mind the logarithm, so this is the interval of the median log ratio.

    Raises:
        ValueError: when they differ in length, or hold values that are not positive.
    """
    return rounds_interval([x / y for x, y in zip(a, b, strict=True)], confidence)


def verdict(interval: Interval | None, margin: float = 0.02) -> Verdict:
    """What the interval of a ratio of speeds a/b says about a.

    ``faster`` or ``slower`` when it excludes 1; ``same`` when it lies within ``margin`` of 1; else ``cannot tell``.
    """
    if interval is None:
        return "cannot tell"
    if interval.low > 1:
        return "faster"
    if interval.high < 1:
        return "slower"
    return "same" if interval.low >= 1 - margin and interval.high <= 1 + margin else "cannot tell"


# --- drift ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """A monotone trend across ordered rounds.

    ``change`` is relative, from the first round to the last, by the Theil-Sen slope of the logarithms; ``p_value`` is
    Mann and Kendall's, two-sided: the probability of so much order without any trend.
    """

    change: float
    p_value: float


def drift(values: Sequence[float]) -> Drift | None:
    """Trend of positive values in the order of measurement; None for fewer than four, which cannot be significant."""
    n = len(values)
    if n < 4:
        return None
    logs = [math.log(value) for value in values]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    slope = median([(logs[j] - logs[i]) / (j - i) for i, j in pairs])
    score = sum((logs[j] > logs[i]) - (logs[j] < logs[i]) for i, j in pairs)
    return Drift(math.expm1(slope * (n - 1)), _kendall_p(score, values))


def _kendall_p(score: int, values: Sequence[float]) -> float:
    """Two-sided p-value of Mann and Kendall's S: exact without ties up to n = 40, else normal with tie correction."""
    n, distinct = len(values), set(values)
    if len(distinct) == n and n <= 40:
        inversions = _inversions(n)
        # S = pairs - 2 * inversions, and its distribution is symmetric.
        furthest = (len(inversions) - 1 - abs(score)) // 2
        return float(min(1.0, 2 * sum(inversions[: furthest + 1]) / math.factorial(n)))
    ties = [list(values).count(value) for value in distinct]
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    if variance <= 0:
        return 1.0
    return math.erfc(max(0, abs(score) - 1) / math.sqrt(2 * variance))


@lru_cache(maxsize=64)
def _inversions(n: int) -> tuple[int, ...]:
    """How many permutations of n have 0, 1, 2... inversions (the Mahonian numbers)."""
    counts = [1]
    for size in range(2, n + 1):
        wider = [0] * (len(counts) + size - 1)
        for inversions, ways in enumerate(counts):
            for shift in range(size):
                wider[inversions + shift] += ways
        counts = wider
    return tuple(counts)


# --- stopping ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StopDecision:
    """Whether a trial has enough rounds, why, and its widest metric.

    ``half_width`` is relative; None while no interval exists. ``max-rounds`` means that the target was missed.
    """

    stop: bool
    reason: Literal["target", "max-rounds", "continue"]
    worst_metric: str
    half_width: float | None


def should_stop(values_by_metric: Mapping[str, Sequence[float]], protocol: Protocol) -> StopDecision:
    """Stop when every metric's interval met the target at this round *and* at the one before.

    One look that is narrow by chance is then not enough: see the module's text for what that is worth.

    Args:
        values_by_metric: values of the rounds so far, in their order, e.g. ``{"tg128": [250.1, 249.8]}``.
        protocol: its rounds, target and confidence.
    """
    rounds = max((len(values) for values in values_by_metric.values()), default=0)
    if not rounds:
        return StopDecision(stop=False, reason="continue", worst_metric="", half_width=None)
    now = {name: _half_width(values, protocol.confidence) for name, values in values_by_metric.items()}
    worst = max(now, key=lambda name: math.inf if now[name] is None else now[name] or 0.0)
    met = all(_met_twice(values, protocol) for values in values_by_metric.values())
    if met:
        return StopDecision(stop=True, reason="target", worst_metric=worst, half_width=now[worst])
    if rounds >= protocol.max_rounds:
        return StopDecision(stop=True, reason="max-rounds", worst_metric=worst, half_width=now[worst])
    return StopDecision(stop=False, reason="continue", worst_metric=worst, half_width=now[worst])


def _half_width(values: Sequence[float], confidence: float) -> float | None:
    """Relative half-width of the interval of the median, or None when there is none."""
    interval = rounds_interval(values, confidence)
    return None if interval is None else interval.relative_half_width(median(values))


def _met_twice(values: Sequence[float], protocol: Protocol) -> bool:
    """Whether the interval was narrow enough with all values and also without the last one."""
    if len(values) < protocol.min_rounds:
        return False
    looks = (_half_width(values, protocol.confidence), _half_width(values[:-1], protocol.confidence))
    return all(width is not None and width <= protocol.target_half_width for width in looks)
