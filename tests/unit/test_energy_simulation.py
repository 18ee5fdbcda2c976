"""Energy against a known truth: is the error below the stated uncertainty, for every kind of source?

Power is constant within cells of 20 ms, so the true energy of any window is exact. Each trial draws a shape of load, a
window, a rate of reading, and an error of the source's scale; readings are what such a source would have shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from edgebench.analysis.energy_windows import K, Reading, Window, _reading
from edgebench.analysis.power_curve import Accuracy, Curve, counter_curve, gauge_curve

F64 = npt.NDArray[np.float64]
CELL_S = 0.02
TOTAL_S = 80.0
CELLS = round(TOTAL_S / CELL_S)
TRIALS = 2000
COVERED = 0.95
START_NS = 10**15


# --- loads ------------------------------------------------------------------------------------------------------------


def step(t: F64, a: float, b: float, random: np.random.Generator) -> F64:
    """Idle outside the window, busy inside: what a block looks like."""
    return np.where((t >= a) & (t < b), random.uniform(4, 60), random.uniform(0.5, 4))


def ramp(t: F64, a: float, b: float, random: np.random.Generator) -> F64:
    return random.uniform(1, 10) + random.uniform(0, 1) * t


def sine(t: F64, a: float, b: float, random: np.random.Generator) -> F64:
    mean, period = random.uniform(3, 30), np.exp(random.uniform(np.log(0.1), np.log(20)))
    return mean * (1 + random.uniform(0, 0.9) * np.sin(2 * np.pi * (t / period + random.uniform())))


def duty(t: F64, a: float, b: float, random: np.random.Generator) -> F64:
    low, period = random.uniform(1, 5), np.exp(random.uniform(np.log(0.1), np.log(5)))
    on = (t / period + random.uniform()) % 1 < random.uniform(0.1, 0.9)
    return np.where(on & (t >= a) & (t < b), random.uniform(5, 30), low)


def spikes(t: F64, a: float, b: float, random: np.random.Generator) -> F64:
    """Bursts of 20 to 100 ms at random moments, shorter than most periods."""
    width, mean_gap = random.integers(2, 6), random.uniform(0.1, 1.0)
    begins = np.flatnonzero(random.random(CELLS) < CELL_S / mean_gap)
    power = np.full(CELLS, random.uniform(2, 10))
    for offset in range(width):
        power[np.minimum(begins + offset, CELLS - 1)] += random.uniform(2, 30)
    return power


SHAPES = (step, ramp, sine, duty, spikes)


# --- sources ----------------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """The true power, and what a source that is ``1 + gain`` too high sees of it."""

    power: F64
    gain: float

    def __post_init__(self) -> None:
        self.edges = np.arange(CELLS + 1) * CELL_S
        self.energy = np.concatenate(([0.0], np.cumsum(self.power) * CELL_S))

    def until(self, t: F64) -> F64:
        """True energy until then, J."""
        return np.interp(t, self.edges, self.energy)

    def level(self, t: F64) -> F64:
        """True power then, W."""
        return self.power[np.clip((t / CELL_S).astype(int), 0, CELLS - 1)]

    def mean(self, t: F64, over: float) -> F64:
        """Mean power over the time before, W."""
        return (self.until(t) - self.until(t - over)) / over


def moments(random: np.random.Generator, slowest_hz: float, fastest_hz: float) -> F64:
    """When the sampler reads: at a rate, shifted, with jitter."""
    period = 1 / np.exp(random.uniform(np.log(slowest_hz), np.log(fastest_hz)))
    t = np.arange(random.uniform(0, period), TOTAL_S - 0.2, period)
    return np.sort(t + random.uniform(-0.2, 0.2, len(t)) * period).clip(0, TOTAL_S)


def last_update(t: F64, period: float, random: np.random.Generator) -> F64:
    """The last moment at which a source of this update period renewed its value."""
    phase = random.uniform(0, period)
    return np.maximum(0, np.floor((t - phase) / period) * period + phase)


def counter(t: F64, joules: F64, step_j: float, wrap: float, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A counter of whole steps with a range that may end in the middle of the window."""
    steps = np.floor(joules / step_j)
    values = (steps + np.floor(random.uniform(0, wrap) / step_j)) % np.floor(wrap / step_j) * step_j
    made = counter_curve(START_NS, t, values[None, :], [np.floor(wrap / step_j) * step_j], accuracy)
    assert made is not None
    return made


def rapl(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    accuracy = Accuracy(gain=0.05, update_s=0.001)
    t = moments(random, 1, 50)
    seen = truth.until(last_update(t, 0.001, random)) * (1 + truth.gain)
    return counter(t, seen, 2**-14, 2000.0, accuracy, random), accuracy


def nvml_counter(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    accuracy = Accuracy(gain=0.05)
    t = moments(random, 5, 50)
    seen = truth.until(last_update(t, 0.1, random)) * (1 + truth.gain)
    return counter(t, seen, 1e-3, 1e12, accuracy, random), accuracy


def meter_counter(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    """A meter that counts in steps of 1 J and tells once a second."""
    accuracy = Accuracy(gain=0.02)
    t = moments(random, 2, 10)
    seen = truth.until(last_update(t, 1.0, random)) * (1 + truth.gain)
    return counter(t, seen, 1.0, 3e3, accuracy, random), accuracy


def rails(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    """A gauge without memory, in steps of 40 mW."""
    accuracy = Accuracy(gain=0.02, update_s=0.005, resolution_w=0.04)
    t = moments(random, 1, 50)
    seen = truth.level(t) * (1 + truth.gain)
    return gauge_curve(START_NS, t, np.round(seen / 0.04) * 0.04, accuracy), accuracy


def coarse(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    """A gauge in whole watts or tenths, of which nothing is known."""
    accuracy = Accuracy(gain=0.05)
    t = moments(random, 1, 50)
    digit = random.choice([0.1, 1.0])
    return gauge_curve(START_NS, t, np.round(truth.level(t) * (1 + truth.gain) / digit) * digit, accuracy), accuracy


def averaging(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    """A gauge that shows the mean of the last second, renewed every 100 ms."""
    accuracy = Accuracy(gain=0.05, averaging_s=1.0)
    t = moments(random, 2, 50)
    seen = truth.mean(last_update(t, 0.1, random), 1.0) * (1 + truth.gain)
    return gauge_curve(START_NS, t, np.round(seen, 3), accuracy), accuracy


def holding(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    """A gauge that holds what it saw at its last update, with 0.5 % of noise; nothing is known of it.

    Its updates have jitter: no method sees a periodic load through a gauge that always looks at the same phase of it.
    """
    accuracy = Accuracy(gain=0.10)
    t = moments(random, 5, 20)
    period = random.uniform(0.3, 1.2)
    renewed = np.cumsum(np.concatenate(([0.0], period * random.uniform(0.7, 1.3, round(2 * TOTAL_S / period)))))
    number = np.searchsorted(renewed, t, side="right") - 1
    updates = renewed[number]
    noise = 1 + 0.005 * random.standard_normal(len(renewed))[number]
    return gauge_curve(START_NS, t, np.round(truth.level(updates) * noise * (1 + truth.gain), 3), accuracy), accuracy


def plug(truth: Truth, random: np.random.Generator) -> tuple[Curve, Accuracy]:
    """A smart plug: the mean of about a second, in tenths of a watt, read about once a second, with an offset."""
    accuracy = Accuracy(gain=0.02, offset_w=0.5, averaging_s=1.0)
    t = moments(random, 1, 3)
    late = random.uniform(0, 0.3)
    seen = truth.mean(t - late, random.uniform(0.5, 1.5)) * (1 + truth.gain)
    return gauge_curve(START_NS, t, np.round(seen, 1), accuracy), accuracy


SOURCES = (rapl, nvml_counter, meter_counter, rails, coarse, averaging, holding, plug)
GAINS = {
    rapl: 0.05,
    nvml_counter: 0.05,
    meter_counter: 0.02,
    rails: 0.02,
    coarse: 0.05,
    averaging: 0.05,
    holding: 0.10,
    plug: 0.02,
}


# --- trials -----------------------------------------------------------------------------------------------------------

Make = Callable[[Truth, np.random.Generator], tuple[Curve, Accuracy]]


def trial(make: Make, shape: Callable[..., F64], gain: float, random: np.random.Generator) -> tuple[Reading, float]:
    """One window as the source saw it, and its true energy."""
    t = (np.arange(CELLS) + 0.5) * CELL_S
    seconds = np.exp(random.uniform(np.log(4), np.log(70)))
    a = random.uniform(4, TOTAL_S - 3 - seconds)
    b = a + seconds
    truth = Truth(shape(t, a, b, random), gain)
    curve, accuracy = make(truth, random)
    window = Window("tg128", START_NS + round(a * 1e9), START_NS + round(b * 1e9), 128, 1, seconds)
    true_j = float(np.diff(truth.until(np.array([a, b])))[0])
    return _reading([curve], window, accuracy), true_j


def coverage(make: Make, trials: int) -> tuple[float, float, float, float]:
    """Share of trials within the stated uncertainty; the same without the scale; and medians of both uncertainties.

    The errors of the scale are the quantiles of a normal distribution in random order.
    """
    random = np.random.default_rng(len(make.__name__))
    normal = NormalDist(0, GAINS[make])
    gains = random.permutation([normal.inv_cdf((i + 0.5) / trials) for i in range(trials)])
    within, within_bare, stated, bare, refused = [], [], [], [], 0
    for i, gain in enumerate(gains):
        while (made := trial(make, SHAPES[i % len(SHAPES)], float(gain), random))[0].because:
            refused += 1
        reading, true_j = made
        own = np.sqrt(max(0.0, reading.u_j**2 - (GAINS[make] * reading.joules) ** 2))
        within.append(abs(reading.joules - true_j) <= K * reading.u_j)
        within_bare.append(abs(reading.joules / (1 + gain) - true_j) <= K * own / (1 + gain))
        stated.append(K * reading.u_j / true_j)
        bare.append(K * own / true_j)
    assert refused < trials, "it must not refuse whatever is hard"
    return float(np.mean(within)), float(np.mean(within_bare)), float(np.median(stated)), float(np.median(bare))


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_the_error_is_below_the_stated_uncertainty(make: Make):
    within, within_bare, stated, bare = coverage(make, TRIALS)
    assert within >= COVERED
    assert within_bare >= COVERED, "what the readings leave open must cover without the help of the scale's error"
    assert bare < 0.12, "an uncertainty that covers everything says nothing"
    assert stated < 2.3 * GAINS[make] + bare
