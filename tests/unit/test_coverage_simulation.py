"""Do 95 % intervals hold the true median 95 times in a hundred? Measured, for the noise of real machines.

The simulated intervals come from a vectorised twin of ``edgebench.stats``; the first tests show that the twin and the
original agree, so that the others judge the original. Seeds are fixed: a failure is a change, never bad luck. A cell
passes at 94 %: with 6,000 trials the standard error is 0.3 %, so a true 95 % passes and a true 93 % does not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebench import stats
from edgebench.specs import Protocol

Array = NDArray[np.float64]
TRIALS = 6000
FLOOR = 0.94
SIZES = (2, 3, 4, 5, 6, 8, 12, 20)
PROTOCOL = Protocol()


# --- the machines -----------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """A process that makes round values, and the true median of the first n rounds."""

    draw: Callable[[np.random.Generator, tuple[int, int]], Array]
    truth: Callable[[int], float]


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Array:
    return np.exp(sigma * rng.standard_normal(shape))


def _skewed(sigma: float) -> Machine:
    """Lognormal: the median is 1."""
    return Machine(lambda rng, shape: 250 * _noise(rng, shape, sigma), lambda _: 250.0)


def _spiky(scale: float) -> Machine:
    """Every second round is slowed by an exponential spike: speed only ever falls."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        hit = rng.random(shape) < 0.5
        return 250 / (1 + scale * hit * rng.exponential(size=shape) + 0.003 * np.abs(rng.standard_normal(shape)))

    return Machine(draw, _empirical(draw))


def _two_levels(share: float, lower: float) -> Machine:
    """A share of the processes runs at full speed, the others at a lower level (memory layout, placement)."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        return 250 * np.where(rng.random(shape) < share, 1.0, lower) * _noise(rng, shape, 0.01)

    return Machine(draw, _empirical(draw))


def _drifting(per_round: float, sigma: float) -> Machine:
    """A linear trend and noise; the truth is the median over the window that was measured."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        return 250 * (1 + per_round * np.arange(shape[1])) * _noise(rng, shape, sigma)

    return Machine(draw, lambda n: 250 * (1 + per_round * (n - 1) / 2))


def _correlated(rho: float, sigma: float) -> Machine:
    """Successive rounds resemble each other: AR(1)."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        shocks = rng.standard_normal(shape)
        level = shocks.copy()
        for i in range(1, shape[1]):
            level[:, i] = rho * level[:, i - 1] + np.sqrt(1 - rho**2) * shocks[:, i]
        return 250 * np.exp(sigma * level)

    return Machine(draw, lambda _: 250.0)


def _empirical(draw: Callable[[np.random.Generator, tuple[int, int]], Array]) -> Callable[[int], float]:
    known: list[float] = []

    def truth(n: int) -> float:
        if not known:
            known.append(float(np.median(draw(np.random.default_rng(7), (400_000, 1)))))
        return known[0]

    return truth


MACHINES = {
    "quiet": _skewed(0.01),
    "noisy": _skewed(0.03),
    "very skewed": _skewed(0.30),
    "spikes of 5 %": _spiky(0.05),
    "spikes of 30 %": _spiky(0.30),
    "two levels, 80/20": _two_levels(0.8, 0.9),
    "two levels, 60/40": _two_levels(0.6, 0.9),
    "two levels, 60/40, near": _two_levels(0.6, 0.96),
    "slow drift": _drifting(-0.001, 0.01),
    "fast drift": _drifting(-0.01, 0.01),
    "correlated": _correlated(0.2, 0.02),
}


# --- the twin ---------------------------------------------------------------------------------------------------------


def _intervals(values: Array, confidence: float = 0.95) -> tuple[Array, Array, Array]:
    """(low, median, high) of `stats.rounds_interval` for each row."""
    n = values.shape[1]
    ordered = np.sort(values, axis=1)
    middle = np.median(ordered, axis=1)
    k = stats._rank(n, confidence)
    if k:
        low, high = ordered[:, k - 1], ordered[:, n - k]
    else:
        factor = np.exp(np.log(ordered[:, -1] / ordered[:, 0]) * stats._stretch(n, confidence))
        low, high = ordered[:, 0] / factor, ordered[:, -1] * factor
    if n >= 6:
        ranks = values.argsort(axis=1).argsort(axis=1) - (n - 1) / 2
        r = (ranks[:, 1:] * ranks[:, :-1]).sum(axis=1) / (ranks**2).sum(axis=1) + 2 / n
        r = np.clip(r, 0, 0.8)
        factor = np.sqrt((1 + r) / (1 - r))
        low, high = middle * (low / middle) ** factor, middle * (high / middle) ** factor
    return low, middle, high


def _adaptive(values: Array, protocol: Protocol) -> tuple[NDArray[np.int64], Array, Array]:
    """(rounds, low, high) where `stats.should_stop` stops each row."""
    trials = len(values)
    rounds = np.zeros(trials, dtype=np.int64)
    lows, highs = np.zeros(trials), np.zeros(trials)
    before = np.zeros(trials, dtype=bool)
    for n in range(protocol.min_rounds - 1, protocol.max_rounds + 1):
        low, middle, high = _intervals(values[:, :n], protocol.confidence)
        met = np.maximum(high - middle, middle - low) / middle <= protocol.target_half_width
        last = n == protocol.max_rounds
        stops = (rounds == 0) & ((met & before & (n >= protocol.min_rounds)) | last)
        rounds[stops], lows[stops], highs[stops] = n, low[stops], high[stops]
        before = met
    return rounds, lows, highs


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 12, 20])
def test_the_twin_computes_the_same_intervals(n: int) -> None:
    values = _noise(_rng(f"twin {n}"), (50, n), 0.1)
    low, middle, high = _intervals(values)
    for i, row in enumerate(values.tolist()):
        interval = stats.rounds_interval(row)
        assert interval is not None
        assert (interval.low, stats.median(row), interval.high) == pytest.approx((low[i], middle[i], high[i]), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_the_twin_stops_at_the_same_round(sigma: float) -> None:
    values = _noise(_rng(f"stop {sigma}"), (25, PROTOCOL.max_rounds), sigma)
    rounds, _, _ = _adaptive(values, PROTOCOL)
    for i, row in enumerate(values.tolist()):
        n = next(n for n in range(1, 31) if stats.should_stop({"tg128": row[:n]}, PROTOCOL).stop)
        assert n == rounds[i]


# --- coverage ---------------------------------------------------------------------------------------------------------


def _floor(name: str, n: int) -> float:
    """No scale-free rule can see a second level of which it holds no round: all n are slow with probability 0.4**n."""
    return min(FLOOR, 1 - 0.4**n - 0.02) if "60/40" in name and n < 4 else FLOOR


@pytest.mark.parametrize("name", MACHINES)
def test_intervals_of_a_fixed_number_of_rounds_cover(name: str) -> None:
    machine = MACHINES[name]
    covered = {}
    for n in SIZES:
        low, _, high = _intervals(machine.draw(_rng(f"{name} {n}"), (TRIALS, n)))
        covered[n] = float(np.mean((low <= machine.truth(n)) & (machine.truth(n) <= high)))
    assert {n: share for n, share in covered.items() if share < _floor(name, n)} == {}


@pytest.mark.parametrize("target", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("name", MACHINES)
def test_intervals_cover_when_the_rounds_stop_as_soon_as_they_look_good(name: str, target: float) -> None:
    protocol = Protocol(target_half_width=target)
    machine = MACHINES[name]
    values = machine.draw(_rng(f"{name} adaptive"), (TRIALS, protocol.max_rounds))
    rounds, low, high = _adaptive(values, protocol)
    truth = np.array([machine.truth(n) for n in range(protocol.max_rounds + 1)])[rounds]
    assert np.mean((low <= truth) & (truth <= high)) >= FLOOR


def test_stopping_at_the_first_narrow_interval_would_not_cover() -> None:
    """Why `should_stop` asks twice and widens: the plain order-statistic interval, checked at every round."""
    machine = MACHINES["two levels, 60/40, near"]
    values = machine.draw(_rng("peeking"), (TRIALS, 30))
    open_, covered = np.ones(TRIALS, dtype=bool), np.zeros(TRIALS, dtype=bool)
    for n in range(6, 31):
        ordered, k = np.sort(values[:, :n], axis=1), stats._rank(n, 0.95)
        low, middle, high = ordered[:, k - 1], np.median(ordered, axis=1), ordered[:, n - k]
        narrow = np.maximum(high - middle, middle - low) / middle <= 0.02
        stops = open_ & (narrow | (n == 30))
        covered[stops] = ((low <= machine.truth(n)) & (machine.truth(n) <= high))[stops]
        open_ &= ~stops
    assert np.mean(covered) < 0.935


@pytest.mark.parametrize(("n", "at_most"), [(3, 0.80), (4, 0.90), (6, 0.90), (8, 0.91)])
def test_a_percentile_bootstrap_would_not_cover(n: int, at_most: float) -> None:
    """Why the intervals are no bootstrap intervals."""
    rng, machine = _rng(f"bootstrap {n}"), MACHINES["spikes of 30 %"]
    values = machine.draw(rng, (TRIALS // 3, n))
    resampled = np.take_along_axis(values[:, None, :], rng.integers(0, n, (len(values), 400, n)), axis=2)
    low, high = np.quantile(np.median(resampled, axis=2), [0.025, 0.975], axis=1)
    assert np.mean((low <= machine.truth(n)) & (machine.truth(n) <= high)) <= at_most


# --- comparisons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 6, 8, 12, 20])
@pytest.mark.parametrize("name", ["quiet", "very skewed", "spikes of 30 %", "two levels, 60/40", "correlated"])
def test_two_equal_artifacts_are_told_apart_in_at_most_five_per_cent(name: str, n: int) -> None:
    machine = MACHINES[name]
    rng = _rng(f"A/A {name} {n}")
    low, _, high = _intervals(machine.draw(rng, (TRIALS, n)) / machine.draw(rng, (TRIALS, n)))
    assert np.mean((low > 1) | (high < 1)) <= 0.055


def test_a_difference_of_five_per_cent_is_seen_with_eight_quiet_rounds() -> None:
    rng = _rng("power")
    a, b = 1.05 * _noise(rng, (1000, 8), 0.01), _noise(rng, (1000, 8), 0.01)
    verdicts = [stats.verdict(stats.ratio_interval(x, y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert verdicts.count("faster") >= 0.8 * len(verdicts)
    assert verdicts.count("slower") == 0


def test_drift_is_claimed_without_cause_in_at_most_five_per_cent() -> None:
    values = _noise(_rng("no drift"), (1500, 8), 0.02).tolist()
    found = [stats.drift(row) for row in values]
    assert np.mean([drift is not None and drift.p_value < 0.05 for drift in found]) <= 0.055
