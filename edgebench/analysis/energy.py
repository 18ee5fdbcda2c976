"""From readings and the times of blocks to joules: per window, above idle, per token, each with its uncertainty.

A window is what lies between the first and the last timed block of a workload in one run, as those follow each other
without a break; its tokens are those of its blocks. ``load``, ``idle`` (no model) and ``idle_loaded`` are windows, too.

**Uncertainty**, always expanded (k = 2). For a window ``u**2 = (g E)**2 + (o t)**2 + d**2``: ``g`` the scale error
known of the kind of source and ``o`` its offset (`ACCURACY`; priors, not calibrations), ``d`` what the readings
themselves leave open (edges, updates, resolution: ``power_curve``). Of a trial, the spread of its rounds is added as
``(s / sqrt(n))**2`` (``resources``).

**Net** is ``E - P t`` with the mean power P of the idle machine before and after, without the model:
``u_net**2 = u**2 + (t u_P)**2``. A net within its uncertainty of 0 is not a result.

**Per token**: energy of the window over its tokens. Where a kind of workload was measured at several lengths and one
depth, the slope of ``E = a + b n`` over them is the better figure: what every block costs besides goes into ``a``.

Joules of 0 are no measurement: a source that shows them over a busy window is broken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgebench.analysis.energy_source import EnergySource
from edgebench.analysis.power_curve import Accuracy, Curve, frozen, make_curves
from edgebench.records import Energy, Finding, Run, Scope, Series, TokenEnergy, WindowEnergy

K = 2.0
"""Coverage factor: 95 % if normal."""
STEADY_S = 60.0
"""The shortest window of MLPerf Power."""
EDGE_LIMIT = 0.01
"""A window is long enough when an update at each edge is less than this share of it."""
LEAST_COVERED = 0.95
PAUSES = 0.02

ACCURACY: dict[str, Accuracy] = {
    "rapl": Accuracy(gain=0.05, update_s=0.001),
    "nvml": Accuracy(gain=0.05),
    "ina3221": Accuracy(gain=0.02, update_s=0.005, resolution_w=0.04),
    "pmic": Accuracy(gain=0.10, update_s=0.025),
    "battery": Accuracy(gain=0.10),
    "meter": Accuracy(gain=0.02),
    "hwmon": Accuracy(gain=0.05),
    "apple": Accuracy(gain=0.10),
}
_UNKNOWN = Accuracy(gain=0.10)
_PLUG = Accuracy(gain=0.02, offset_w=0.5, averaging_s=1.0)


def accuracy_of(source: EnergySource) -> Accuracy:
    """What is known about a source by the name of its sensor; of an unknown one, 10 %."""
    sensor, _, what = source.channels[0].partition(".")
    if sensor == "meter" and source.scope == "wall_ac":
        return _PLUG
    if sensor == "nvml" and source.method == "gauge" and "instant" not in what:
        return Accuracy(gain=0.05, averaging_s=1.0)  # NVML: a mean over 1 s since Ampere
    return ACCURACY.get(sensor, _UNKNOWN)


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
    pairs = zip(run.marks, run.marks[1:], strict=False)
    return tuple(Window(a.name, a.t_ns, b.t_ns) for a, b in pairs if a.name in named and b.t_ns > a.t_ns)


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
    u_j = math.sqrt((accuracy.gain * joules) ** 2 + (accuracy.offset_w * window.seconds) ** 2 + doubt**2)
    because = ""
    if covered < LEAST_COVERED:
        because = f"it was read during {100 * covered:.0f} % of the window only"
    elif joules <= 0 or (not updates and window.seconds > 10 * update_s):
        because = "it did not change while the machine was busy"
    elif K * u_j >= joules:
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


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """A run as its primary source saw it; others beside it, to compare."""

    source: EnergySource
    readings: list[Reading]
    phases: list[Reading]
    idle: Baseline | None
    idle_loaded: Baseline | None
    others: list[tuple[EnergySource, list[Reading]]] = field(default_factory=list)


def measure(run: Run, source: EnergySource, others: Sequence[EnergySource] = ()) -> Measured:
    """Integrate every window of a run by its primary source and by the others.

    Args:
        run: with series, blocks and marks.
        source: its channels are in the series of the run.
        others: further sources, of any scope.
    """
    windows, phases = workload_windows(run), phase_windows(run)
    readings = integrate(_series(run, source), [*windows, *phases], accuracy_of(source))
    rest = readings[len(windows) :]
    return Measured(
        source=source,
        readings=readings[: len(windows)],
        phases=rest,
        idle=baseline(rest, "idle"),
        idle_loaded=baseline(rest, "idle_loaded"),
        others=[(other, integrate(_series(run, other), windows, accuracy_of(other))) for other in others],
    )


def _series(run: Run, source: EnergySource) -> list[Series]:
    wanted = set(source.channels)
    return [series for series in run.series if series.channel.name in wanted]


def to_record(measured: Measured, findings: Sequence[Finding] = ()) -> Energy:
    """The record of a run's energy. With one window missing there is no total, and the reason names it."""
    good = [reading for reading in measured.readings if not reading.because]
    missing = [f"{reading.window.name}: {reading.because}" for reading in measured.readings if reading.because]
    idle = measured.idle
    windows = tuple(_window(reading, idle) for reading in [*good, *(p for p in measured.phases if not p.because)])
    busy = windows[: len(good)]
    seconds = math.fsum(window.seconds for window in busy)
    whole = bool(good) and not missing
    reason = "" if whole else f"{named(measured.source)}: {'; '.join(missing) or 'no block was timed'}"
    update_s = max((reading.update_s for reading in good), default=0.0)
    return Energy(
        energy_j=math.fsum(window.gross_j for window in busy) if whole else None,
        reason=reason,
        source=named(measured.source),
        scope=measured.source.scope,
        method=measured.source.method,
        channels=measured.source.channels,
        update_hz=1 / update_s if update_s else None,
        n_updates=sum(window.n_updates for window in busy),
        # The error of the scale is common to all windows, so uncertainties add up and do not average out.
        uncertainty_j=math.fsum(window.uncertainty_j for window in busy) if whole else None,
        net_j=_total([window.net_j for window in busy]) if whole else None,
        net_uncertainty_j=_total([window.net_uncertainty_j for window in busy]) if whole else None,
        mean_w=math.fsum(window.gross_j for window in busy) / seconds if seconds else None,
        peak_w=max((window.peak_w for window in busy), default=None),
        idle_w=idle.watts if idle else None,
        idle_loaded_w=measured.idle_loaded.watts if measured.idle_loaded else None,
        windows=windows,
        j_per_token={window.name: window.gross_j / window.tokens for window in busy if window.tokens},
        tokens=per_token(measured),
        others_j=_others(measured),
        flags=tuple(finding.kind for finding in findings),
    )


def named(source: EnergySource) -> str:
    """A source in words: its channels."""
    return " + ".join(source.channels)


def _others(measured: Measured) -> dict[str, float]:
    """Totals of the other sources that saw every window."""
    return {
        f"{named(other)} ({other.scope})": math.fsum(reading.joules for reading in readings)
        for other, readings in measured.others
        if readings and not any(reading.because for reading in readings)
    }


def net_of(reading: Reading, idle: Baseline | None) -> tuple[float, float] | None:
    """Energy above idle and its standard uncertainty, J; None without a baseline."""
    if idle is None:
        return None
    seconds = reading.window.seconds
    return reading.joules - idle.watts * seconds, math.hypot(reading.u_j, seconds * idle.u_w)


def _window(reading: Reading, idle: Baseline | None) -> WindowEnergy:
    window, net = reading.window, net_of(reading, idle) if reading.window.blocks else None
    resolved = net is not None and net[0] >= K * net[1]
    return WindowEnergy(
        name=window.name,
        seconds=window.seconds,
        gross_j=reading.joules,
        uncertainty_j=K * reading.u_j,
        mean_w=reading.joules / window.seconds,
        peak_w=reading.peak_w,
        n_updates=reading.n_updates,
        tokens=window.tokens,
        blocks=window.blocks,
        net_j=net[0] if net and resolved else None,
        net_uncertainty_j=K * net[1] if net else None,
        flags=_flags(reading, unresolved=net is not None and not resolved),
    )


def _flags(reading: Reading, *, unresolved: bool) -> tuple[str, ...]:
    window = reading.window
    return tuple(
        name
        for name, raised in (
            ("short_window", too_short(reading) and window.blocks > 0),
            ("gap", reading.hole_s > 0),
            ("net_not_resolvable", unresolved),
            ("pauses", window.blocks > 0 and window.busy_s < (1 - PAUSES) * window.seconds),
        )
        if raised
    )


def too_short(reading: Reading) -> bool:
    """Whether a window is shorter than 60 s, or than an update at each edge may be 1 % of."""
    return reading.window.seconds < max(STEADY_S, 2 * reading.update_s / EDGE_LIMIT)


def _total(values: Sequence[float | None]) -> float | None:
    """The sum, or None where one is not known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known and len(known) == len(values) else None


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


def per_token(measured: Measured) -> dict[str, TokenEnergy]:
    """By workload, and by the slope over several lengths."""
    found: dict[str, TokenEnergy] = {}
    good = [reading for reading in measured.readings if not reading.because and reading.window.tokens]
    for reading in good:
        tokens, net = reading.window.tokens, net_of(reading, measured.idle)
        found[reading.window.name] = token_energy(
            reading.joules / tokens,
            K * reading.u_j / tokens,
            "per block",
            (net[0] / tokens, K * net[1] / tokens) if net else None,
        )
    gain = accuracy_of(measured.source).gain
    kinds: dict[str, list[Reading]] = {}
    for reading in good:
        kinds.setdefault(_kind(reading.window.name), []).append(reading)
    for kind, readings in kinds.items():
        slope = slope_of(readings, gain)
        if slope is not None:
            names = ", ".join(reading.window.name for reading in readings)
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


def scope_words(scope: Scope | None) -> str:
    """``cpu_package+dram`` as a reader says it."""
    return (scope or "scope unknown").replace("_", " ")
