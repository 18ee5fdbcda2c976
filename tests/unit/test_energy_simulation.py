"""Energy against a known truth: is the error below the stated uncertainty, for every kind of source?

Power is constant within cells of 20 ms, so the true energy of any window is exact. Each trial draws a shape of load, a
window, a rate of reading, and an error of the source's scale and offset; readings are what such a source would have
shown. What is known of a source beforehand is what edgebench itself takes for it, by the name of its channel.

The fast suite runs a part of the trials with the threshold lowered by what chance may do to so few; the slow tests run
2000 of each source, with seeds of their own, against 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from edgebench.analysis.energy_source import EnergySource
from edgebench.analysis.energy_windows import K, Reading, Window, _reading, accuracy_of
from edgebench.analysis.power_curve import Accuracy, Curve, counter_curve, gauge_curve

F64 = npt.NDArray[np.float64]
CELL_S = 0.02
TOTAL_S = 80.0
CELLS = round(TOTAL_S / CELL_S)
TRIALS, FEW = 2000, 120
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
    begins = np.flatnonzero(random.random(CELLS) < (t[1] - t[0]) / mean_gap)
    power = np.full(CELLS, random.uniform(2, 10))
    for offset in range(width):
        power[np.minimum(begins + offset, CELLS - 1)] += random.uniform(2, 30)
    return power


SHAPES = (step, ramp, sine, duty, spikes)


# --- sources ----------------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """The true power in ``CELLS`` cells, and what a source that is ``1 + gain`` and an offset too high sees of it.

    Args:
        power: W, shape [CELLS].
        cell_s: length of a cell.
        gain: relative error of the source's scale.
        offset_w: what it shows at 0 W.
    """

    power: F64
    cell_s: float
    gain: float
    offset_w: float

    def __post_init__(self) -> None:
        self.edges = np.arange(CELLS + 1) * self.cell_s
        self.energy = np.concatenate(([0.0], np.cumsum(self.power) * self.cell_s))

    @property
    def seconds(self) -> float:
        """From the first to the last cell."""
        return float(self.edges[-1])

    def until(self, t: F64) -> F64:
        """True energy until then, J."""
        return np.interp(t, self.edges, self.energy)

    def counted(self, t: F64) -> F64:
        """Energy until then as the source sees it, J."""
        return self.until(t) * (1 + self.gain) + self.offset_w * t

    def level(self, t: F64) -> F64:
        """Power then as the source sees it, W."""
        return self.power[np.clip((t / self.cell_s).astype(int), 0, CELLS - 1)] * (1 + self.gain) + self.offset_w

    def mean(self, t: F64, over: F64 | float) -> F64:
        """Mean power over the time before as the source sees it, W."""
        return (self.until(t) - self.until(t - over)) / over * (1 + self.gain) + self.offset_w


def moments(truth: Truth, random: np.random.Generator, slowest_hz: float, fastest_hz: float) -> F64:
    """When the sampler reads: at some rate, each time a fifth sooner or later."""
    period = 1 / np.exp(random.uniform(np.log(slowest_hz), np.log(fastest_hz)))
    t = np.cumsum(random.uniform(0.8, 1.2, int(truth.seconds / period) + 9) * period) - random.uniform(0, period)
    return t[(t > 0) & (t < truth.seconds - 0.2)]


def last_update(t: F64, period: float, random: np.random.Generator) -> F64:
    """The last moment at which a source of this update period renewed its value."""
    phase = random.uniform(0, period)
    return np.maximum(0, np.floor((t - phase) / period) * period + phase)


def unsteady_updates(truth: Truth, t: F64, period: float, random: np.random.Generator) -> tuple[F64, F64]:
    """The last renewal of a source whose updates have jitter, and the one before that, s."""
    between = period * random.uniform(0.7, 1.3, round(2 * truth.seconds / period) + 9)
    renewed = np.cumsum(np.concatenate(([-2 * period], between)))
    number = np.maximum(np.searchsorted(renewed, t, side="right") - 1, 1)
    return renewed[number], renewed[number - 1]


def rounded(values: F64, step: float) -> F64:
    return np.round(values / step) * step


def counter(
    t: F64,
    joules: Sequence[F64],
    step_j: float,
    wraps: Sequence[float | None],
    accuracy: Accuracy,
    random: np.random.Generator,
) -> Curve:
    """Counters of whole steps with ranges that may end in the middle of the window."""
    shown, ranges = [], []
    for one, wrap in zip(joules, wraps, strict=True):
        steps = np.floor(one / step_j) + np.floor(random.uniform(0, wrap or 1e5) / step_j)
        whole = None if wrap is None else np.floor(wrap / step_j)
        shown.append((steps if whole is None else steps % whole) * step_j)
        ranges.append(None if whole is None else float(whole * step_j))
    made = counter_curve(START_NS, t, np.array(shown), ranges, accuracy)
    assert made is not None
    return made


def rapl_package(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    t = moments(truth, random, 1, 50)
    return counter(t, [truth.counted(last_update(t, 0.001, random))], 2**-14, [2000.0], accuracy, random)


def rapl_sum(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """Processor and memory of a server, whose ranges end at different moments."""
    t = moments(truth, random, 1, 50)
    seen, share = truth.counted(last_update(t, 0.001, random)), random.uniform(0.1, 0.4)
    return counter(t, [seen * (1 - share), seen * share], 2**-16, [2000.0, 700.0], accuracy, random)


def perf_counter(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """The kernel's own count, which never starts again."""
    t = moments(truth, random, 1, 50)
    return counter(t, [truth.counted(last_update(t, 0.001, random))], 2**-32, [None], accuracy, random)


def nvml_counter(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    t = moments(truth, random, 5, 50)
    return counter(t, [truth.counted(last_update(t, 0.1, random))], 1e-3, [1e12], accuracy, random)


def nvml_instant(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """Looks for 25 ms of every 100 ms (arXiv 2312.02741)."""
    t = moments(truth, random, 5, 50)
    updates, _ = unsteady_updates(truth, t, 0.1, random)
    return gauge_curve(START_NS, t, rounded(truth.mean(updates, 0.025), 1e-3), accuracy)


def nvml_mean(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """The mean of the last second, renewed every 100 ms."""
    t = moments(truth, random, 2, 50)
    return gauge_curve(START_NS, t, rounded(truth.mean(last_update(t, 0.1, random), 1.0), 1e-3), accuracy)


def rails(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A gauge without memory, in steps of 40 mW."""
    t = moments(truth, random, 1, 50)
    return gauge_curve(START_NS, t, rounded(truth.level(t), 0.04), accuracy)


def pmic_rails(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """What the firmware sees while it answers, which takes 23 ms."""
    t = moments(truth, random, 4, 10)
    return gauge_curve(START_NS, t, rounded(truth.mean(t + 0.0115, 0.023), 1e-4), accuracy)


def battery_power(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """Renewed every 1 to 10 s: what it was then, or its mean since the last time."""
    t = moments(truth, random, 1, 1)
    now, before = unsteady_updates(truth, t, np.exp(random.uniform(0, np.log(10))), random)
    seen = truth.level(now) if random.random() < 0.5 else truth.mean(now, now - before)
    return gauge_curve(START_NS, t, rounded(seen, 1e-3), accuracy)


def battery_drawn(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """In steps of 10 mWh, renewed every 1 to 10 s."""
    t = moments(truth, random, 1, 1)
    now, _ = unsteady_updates(truth, t, np.exp(random.uniform(0, np.log(10))), random)
    return counter(t, [truth.counted(now)], 36.0, [None], accuracy, random)


def hwmon_supply(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A gauge in coarse steps, of which nothing is known."""
    t = moments(truth, random, 1, 50)
    return gauge_curve(START_NS, t, rounded(truth.level(t), random.choice([0.1, 0.5, 1.0])), accuracy)


def hwmon_average(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A driver's average power over a time that it does not tell."""
    t = moments(truth, random, 5, 20)
    return gauge_curve(START_NS, t, rounded(truth.mean(t, np.exp(random.uniform(np.log(0.001), 0))), 1e-3), accuracy)


def held(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A gauge that holds what it saw at its last update, with 0.5 % of noise; nothing is known of it.

    Its updates have jitter: no method sees a periodic load through a gauge that always looks at the same phase of it.
    """
    t = moments(truth, random, 5, 20)
    updates, _ = unsteady_updates(truth, t, random.uniform(0.3, 1.2), random)
    noise = 1 + 0.005 * random.standard_normal(len(t))[np.searchsorted(t, updates).clip(0, len(t) - 1)]
    return gauge_curve(START_NS, t, rounded(truth.level(updates) * noise, 1e-3), accuracy)


def plug(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A smart plug: the mean of about a second, in tenths of a watt, read about once a second, late."""
    t = moments(truth, random, 1, 3)
    late = random.uniform(0, 0.3)
    return gauge_curve(START_NS, t, rounded(truth.mean(t - late, random.uniform(0.5, 1.5)), 0.1), accuracy)


def plug_counter(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A meter that counts in steps of 1 J and tells once a second."""
    t = moments(truth, random, 2, 10)
    return counter(t, [truth.counted(last_update(t, 1.0, random))], 1.0, [3e3], accuracy, random)


def usb_meter(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A cable on which lines come in, each the mean since the one before."""
    t = moments(truth, random, 2, 50)
    return gauge_curve(START_NS, t[1:], rounded(truth.mean(t, np.diff(t, prepend=0.0)), 1e-4)[1:], accuracy)


def apple_counter(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    t = moments(truth, random, 5, 20)
    update = np.exp(random.uniform(np.log(0.001), np.log(0.2)))
    return counter(t, [truth.counted(last_update(t, update, random))], 1e-3, [None], accuracy, random)


def powermetrics(truth: Truth, accuracy: Accuracy, random: np.random.Generator) -> Curve:
    """A program that looks for 0.5 s, again and again; stamped in the middle."""
    t = moments(truth, random, 1.2, 1.8)
    return gauge_curve(START_NS, t, rounded(truth.mean(t + 0.25, 0.5), 1e-3), accuracy)


@dataclass(frozen=True)
class Kind:
    """A source: the channel that edgebench knows it by, and how it sees the truth.

    Args:
        channel: its name.
        scope: what it covers.
        make: from truth to what is made of its readings.
        stretch: windows and records so many times as long as usual.
    """

    channel: str
    scope: str
    make: Callable[[Truth, Accuracy, np.random.Generator], Curve]
    stretch: float = 1.0

    @property
    def accuracy(self) -> Accuracy:
        """What edgebench takes for known."""
        method = "counter" if self.channel.endswith(("energy", "drawn", "counts")) else "gauge"
        return accuracy_of(EnergySource(channels=(self.channel,), scope=self.scope, method=method, why=""))


KINDS = (
    Kind("rapl.psys", "psys", rapl_package),
    Kind("rapl.package-0", "cpu_package+dram", rapl_sum),
    Kind("rapl.psys", "psys", perf_counter),
    Kind("nvml.gpu0.energy", "gpu_board", nvml_counter),
    Kind("nvml.gpu0.power", "gpu_board", nvml_instant),
    Kind("nvml.gpu0.power_mean_1s", "gpu_board", nvml_mean),
    Kind("ina3221.VDD_IN", "module", rails),
    Kind("pmic.board", "board_rails", pmic_rails),
    Kind("pmic.input", "dc_input", pmic_rails),
    Kind("battery.power", "dc_input", battery_power, stretch=10),
    Kind("battery.drawn", "dc_input", battery_drawn, stretch=10),
    Kind("hwmon.corsairpsu.power_total", "dc_input", hwmon_supply),
    Kind("hwmon.amdgpu.ppt", "gpu_board", hwmon_average),
    Kind("hwmon.power_meter.power", "wall_ac", plug),
    Kind("unknown.power", "dc_input", held),
    Kind("meter.shelly2.power", "wall_ac", plug),
    Kind("meter.shelly2.power", "dc_input", plug),
    Kind("meter.json.energy", "wall_ac", plug_counter),
    Kind("meter.lines.power", "dc_input", usb_meter),
    Kind("apple.counts", "soc_compute", apple_counter),
    Kind("apple.soc", "soc_compute", powermetrics),
)


# --- trials -----------------------------------------------------------------------------------------------------------


def trial(kind: Kind, shape: Callable[..., F64], gain: float, random: np.random.Generator) -> tuple[Reading, float]:
    """One window as the source saw it, and its true energy."""
    cell_s, total_s, accuracy = CELL_S * kind.stretch, TOTAL_S * kind.stretch, kind.accuracy
    t = (np.arange(CELLS) + 0.5) * cell_s
    seconds = kind.stretch * np.exp(random.uniform(np.log(4), np.log(70)))
    a = random.uniform(4 * kind.stretch, total_s - 3 * kind.stretch - seconds)
    b = a + seconds
    power = shape(t, a, b, random)
    # No offset below 0 W: a meter that would show less is no meter of this load.
    offset_w = max(accuracy.offset_w * random.standard_normal(), -0.9 * float(power.min()))
    truth = Truth(power, cell_s, gain, offset_w)
    curve = kind.make(truth, accuracy, random)
    window = Window("tg128", START_NS + round(a * 1e9), START_NS + round(b * 1e9), 128, 1, seconds)
    true_j = float(np.diff(truth.until(np.array([a, b])))[0])
    return _reading([curve], window, accuracy), true_j


@dataclass(frozen=True)
class Coverage:
    """Share of trials within the stated uncertainty; the same without the scale's; and medians of both, relative."""

    within: float
    within_bare: float
    stated: float
    bare: float


def coverage(kind: Kind, trials: int, seed: int) -> Coverage:
    """Of as many windows that were not refused. The errors of the scale are the quantiles of a normal distribution."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    scale, normal = kind.accuracy.scale, NormalDist(0, kind.accuracy.gain)
    gains = random.permutation([normal.inv_cdf((i + 0.5) / trials) for i in range(trials)])
    within, within_bare, stated, bare, refused = [], [], [], [], 0
    for i, gain in enumerate(gains):
        while (made := trial(kind, SHAPES[i % len(SHAPES)], float(gain), random))[0].because:
            refused += 1
        reading, true_j = made
        own = np.sqrt(max(0.0, reading.u_j**2 - (scale * reading.joules) ** 2))
        within.append(abs(reading.joules - true_j) <= K * reading.u_j)
        within_bare.append(abs(reading.joules / (1 + gain) - true_j) <= K * own / (1 + gain))
        stated.append(K * reading.u_j / true_j)
        bare.append(K * own / true_j)
    assert refused < trials, "it must not refuse whatever is hard"
    return Coverage(
        float(np.mean(within)), float(np.mean(within_bare)), float(np.median(stated)), float(np.median(bare))
    )


def must_hold(kind: Kind, found: Coverage, least: float) -> None:
    unsure_w = kind.accuracy.offset_w
    assert found.within >= least
    assert found.within_bare >= least, "what the readings leave open must cover without the help of the scale's error"
    assert found.bare < 0.12 + unsure_w / 10, "an uncertainty that covers everything says nothing"
    assert found.stated < 2.3 * kind.accuracy.gain + found.bare


def named(kind: Kind) -> str:
    return f"{kind.make.__name__}-{kind.channel}-{kind.scope}"


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_the_error_is_hardly_ever_above_the_stated_uncertainty(kind: Kind):
    by_chance = 2.33 * (COVERED * (1 - COVERED) / FEW) ** 0.5  # 1 in 100
    must_hold(kind, coverage(kind, FEW, 1), COVERED - by_chance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_the_error_is_below_the_stated_uncertainty(kind: Kind):
    must_hold(kind, coverage(kind, TRIALS, 20261124), COVERED)
