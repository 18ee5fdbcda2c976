"""The windows of a run, and what one source says about each.

A window is what lies between the first and the last timed block of a workload in one run, as those follow each other
without a break; its tokens are those of its blocks. ``load``, ``idle`` (no model) and ``idle_loaded`` are windows, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgebench.analysis.energy_source import EnergySource
from edgebench.analysis.power_curve import Accuracy, Curve, frozen, make_curves
from edgebench.records import Run, Series

K = 2.0
"""Coverage factor: 95 % if normal."""
STEADY_S = 60.0
"""The shortest window of MLPerf Power."""
EDGE_LIMIT = 0.01
"""A window is long enough when an update at each edge is less than this share of it."""
LEAST_COVERED = 0.95
LEAST_UPDATES = 20
"""Of a gauge within a window: fewer cannot tell how much they differ."""

ACCURACY: dict[str, Accuracy] = {
    "rapl": Accuracy(gain=0.05, update_s=0.001),
    "nvml": Accuracy(gain=0.05),
    "ina3221": Accuracy(gain=0.02, update_s=0.005, resolution_w=0.04),
    "pmic": Accuracy(gain=0.10, update_s=0.025),
    "battery": Accuracy(gain=0.10, may_hold_s=10.0),
    "meter": Accuracy(gain=0.02),
    "hwmon": Accuracy(gain=0.05),
    "apple": Accuracy(gain=0.10),
}
UNKNOWN = Accuracy(gain=0.10)
_CALIBRATED = Accuracy(gain=0.03, update_s=0.025)
_PLUG = Accuracy(gain=0.02, offset_w=0.5, averaging_s=1.0)
_NETWORK = Accuracy(gain=0.02, averaging_s=1.0)
"""A meter with a web page shows the mean of about a second wherever it stands."""
_NETWORK_KINDS = frozenset({"shelly1", "shelly2", "tasmota", "homeassistant", "json"})
_MEAN_OF_1_S = Accuracy(gain=0.05, averaging_s=1.0)


def accuracy_of(source: EnergySource) -> Accuracy:
    """What is known about a source by the name of its sensor; of an unknown one, 10 %."""
    sensor, _, what = source.channels[0].partition(".")
    if source.scope == "wall_ac" and sensor in {"meter", "hwmon"}:
        return _PLUG
    if sensor == "pmic" and source.scope == "dc_input":
        return _CALIBRATED
    if sensor == "nvml" and source.method == "gauge" and "mean" in what:
        return _MEAN_OF_1_S  # NVML: a mean over 1 s since Ampere
    if sensor == "hwmon" and what.endswith("ppt"):
        return _MEAN_OF_1_S  # AMD's driver averages over a time that it does not tell
    if sensor == "meter" and source.method == "gauge" and what.partition(".")[0] in _NETWORK_KINDS:
        return _NETWORK
    return ACCURACY.get(sensor, UNKNOWN)


# --- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A span of the clock. ``busy_s`` is the part that was timed."""

    name: str
    start_ns: int
    end_ns: int
    tokens: int = 0
    blocks: int = 0
    busy_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length, s."""
        return (self.end_ns - self.start_ns) / 1e9


def workload_windows(run: Run) -> tuple[Window, ...]:
    """One for each workload of the run, in the order of time; blocks of a thread search have none."""
    windows: dict[str, Window] = {}
    if run.purpose != "measure":
        return ()
    for block in sorted(run.blocks, key=lambda block: block.t0_ns):
        before = windows.get(block.workload, Window(block.workload, block.t0_ns, block.t1_ns))
        windows[block.workload] = Window(
            block.workload,
            before.start_ns,
            block.t1_ns,
            before.tokens + block.tokens,
            before.blocks + 1,
            before.busy_s + block.seconds,
        )
    return tuple(window for window in windows.values() if window.end_ns > window.start_ns)


def phase_windows(run: Run) -> tuple[Window, ...]:
    """Loading and idling, from the marks: each lasts until the next mark."""
    named = ("load", "idle", "idle_loaded")
    return tuple(Window(a.name, a.t_ns, b.t_ns) for a, b in pairwise(run.marks) if a.name in named and b.t_ns > a.t_ns)


# --- one source -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A window as one source saw it; ``because`` says why it saw nothing of use."""

    window: Window
    joules: float = 0.0
    u_j: float = 0.0
    peak_w: float = 0.0
    n_updates: int = 0
    update_s: float = 0.0
    hole_s: float = 0.0
    because: str = ""


def integrate(series: Sequence[Series], windows: Sequence[Window], accuracy: Accuracy) -> list[Reading]:
    """Energy of each window by one source.

    Args:
        series: of all its channels, to be added up; all in J, or all in W.
        windows: spans of the same clock.
        accuracy: what is known about the source.
    """
    dead = [one.channel.name for one in series if frozen(one)]
    curves = make_curves([one for one in series if one.channel.name not in dead], accuracy)
    if not curves or (dead and series[0].channel.kind == "counter"):
        what = f"{', '.join(dead)} never changed" if dead else "it was read less than twice"
        return [Reading(window, because=what) for window in windows]
    return [_reading(curves, window, accuracy) for window in windows]


def _reading(curves: Sequence[Curve], window: Window, accuracy: Accuracy) -> Reading:
    shares = [curve.share(window.start_ns, window.end_ns) for curve in curves]
    joules, doubt = math.fsum(share.joules for share in shares), math.fsum(share.doubt_j for share in shares)
    update_s = max(curve.update_s for curve in curves)
    covered, updates = min(share.covered for share in shares), min(share.n_updates for share in shares)
    u_j = math.sqrt((accuracy.scale * joules) ** 2 + (accuracy.offset_w * window.seconds) ** 2 + doubt**2)
    because = ""
    if covered < LEAST_COVERED and any(share.stalled for share in shares):
        because = "it did not change while the machine was busy"
    elif covered < LEAST_COVERED:
        because = f"it was read during {100 * covered:.0f} % of the window only"
    elif joules <= 0 or (not updates and window.seconds > 10 * update_s):
        because = "it did not change while the machine was busy"
    elif K * u_j >= joules or (curves[0].method == "gauge" and updates < LEAST_UPDATES):
        because = f"the window of {window.seconds:.3g} s is too short for a source that updates every {update_s:.2g} s"
    return Reading(
        window=window,
        joules=joules,
        u_j=u_j,
        peak_w=math.fsum(share.peak_w for share in shares),
        n_updates=updates,
        update_s=update_s,
        hole_s=max(share.hole_s for share in shares),
        because=because,
    )


@dataclass(frozen=True)
class Baseline:
    """Mean power of an idle phase before and after, W, and its standard uncertainty."""

    watts: float
    u_w: float
    before_w: float | None
    after_w: float | None


def baseline(readings: Sequence[Reading], name: str) -> Baseline | None:
    """The idle power by the first and the last phase of this name; None where neither was measured.

    Two that differ leave open where between them the truth lay: half their difference is a bound (divided by sqrt(3)).
    """
    phases = [reading for reading in readings if reading.window.name == name and not reading.because]
    if not phases:
        return None
    powers = [reading.joules / reading.window.seconds for reading in phases]
    doubts = [reading.u_j / reading.window.seconds for reading in phases]
    watts = math.fsum(powers) / len(powers)
    spread = (max(powers) - min(powers)) / 2
    u_w = math.sqrt((math.fsum(doubts) / len(doubts)) ** 2 + spread**2 / 3)
    return Baseline(watts, u_w, powers[0], powers[-1] if len(powers) > 1 else None)


def net_of(reading: Reading, idle: Baseline | None) -> tuple[float, float] | None:
    """Energy above idle and its standard uncertainty, J; None without a baseline."""
    if idle is None:
        return None
    seconds = reading.window.seconds
    return reading.joules - idle.watts * seconds, math.hypot(reading.u_j, seconds * idle.u_w)


def too_short(reading: Reading) -> bool:
    """Whether a window is shorter than 60 s, or than an update at each edge may be 1 % of."""
    return reading.window.seconds < max(STEADY_S, 2 * reading.update_s / EDGE_LIMIT)


def channel_watts(run: Run) -> dict[str, float]:
    """Mean power of each channel of power or energy over the windows of a run's workloads, W.

    0 for a channel that stood still; a channel that was not read often enough to tell is left out.
    """
    windows, found = workload_windows(run), {}
    for series in run.series:
        if series.channel.unit not in {"J", "W"}:
            continue
        readings = integrate([series], windows, UNKNOWN)
        if any("change" in reading.because for reading in readings):
            found[series.channel.name] = 0.0
        elif readings and not any(reading.because for reading in readings):
            seconds = math.fsum(reading.window.seconds for reading in readings)
            found[series.channel.name] = math.fsum(reading.joules for reading in readings) / seconds
    return found
