"""A series cut into stretches of constant level.

The cut with the least sum of squared deviations plus a penalty for each further stretch: optimal partitioning (Jackson
et al. 2005) with a penalty of Yao's form (1988), larger than his because neighbours in one run resemble each other. The
noise is estimated from the differences of neighbours, which a slow change does not touch, and single outliers are drawn
in to three times the noise first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from edgebench import stats

SHORTEST_STRETCH = 3
"""Values; one or two are an outlier."""
_PENALTY = 6.0
_SMALLEST_NOISE = 0.002
_OUTLIER = 3.0
_MAD_TO_SIGMA = 1.4826
"""For a normal distribution: 1 / its third quartile."""


def stretches(rates: Sequence[float], per_block: int = 1) -> list[tuple[int, int]]:
    """Index ranges of constant speed, in order and without gaps; at least three windows each where there are so many.

    Optimal partitioning: O(n^2) for n <= 100 windows.

    Args:
        rates: of successive windows.
        per_block: windows that come from one block, and so share what is special about it.
    """
    n = len(rates)
    if n < 2 * SHORTEST_STRETCH:
        return [(0, n)]
    noise = max(_noise(rates), _noise_of_blocks(rates, per_block), _SMALLEST_NOISE * stats.median(rates))
    values = _without_outliers(rates, noise)
    cost = _deviation(values)
    penalty = _PENALTY * noise**2 * math.log(n)
    best, before = [-penalty] + [math.inf] * n, [0] * (n + 1)
    for end in range(SHORTEST_STRETCH, n + 1):
        for begin in range(end - SHORTEST_STRETCH + 1):
            total = best[begin] + cost(begin, end) + penalty
            if total < best[end]:
                best[end], before[end] = total, begin
    found, end = [], n
    while end > 0:
        found.append((before[end], end))
        end = before[end]
    return found[::-1]


def _noise(rates: Sequence[float]) -> float:
    """Standard deviation from the differences of neighbours, resistant to jumps."""
    jumps = [abs(b - a) for a, b in pairwise(rates)]
    return _MAD_TO_SIGMA * stats.median(jumps) / math.sqrt(2)


def _noise_of_blocks(rates: Sequence[float], per_block: int) -> float:
    """The same from the means of so many windows at a time, as if it were that of single ones."""
    size = min(per_block, len(rates) // (2 * SHORTEST_STRETCH))
    if size < 2:
        return 0.0
    means = [math.fsum(rates[i : i + size]) / size for i in range(0, len(rates) - size + 1, size)]
    return _noise(means) * math.sqrt(size)


def _without_outliers(rates: Sequence[float], noise: float) -> list[float]:
    """Each value at most three times the noise away from the median of its five neighbours."""
    drawn_in = []
    for index, rate in enumerate(rates):
        middle = stats.median(rates[max(0, index - 2) : index + 3])
        drawn_in.append(min(max(rate, middle - _OUTLIER * noise), middle + _OUTLIER * noise))
    return drawn_in


def _deviation(values: Sequence[float]) -> Callable[[int, int], float]:
    """Sum of squared deviations from the mean of any range, in constant time."""
    sums, squares = [0.0], [0.0]
    centre = stats.median(values)  # so that no precision is lost to a large level
    for value in values:
        sums.append(sums[-1] + value - centre)
        squares.append(squares[-1] + (value - centre) ** 2)

    def cost(begin: int, end: int) -> float:
        total = sums[end] - sums[begin]
        return squares[end] - squares[begin] - total * total / (end - begin)

    return cost
