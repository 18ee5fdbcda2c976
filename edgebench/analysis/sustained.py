"""What happens to the speed of a device that works for minutes: when it slows down, by how much, and what is seen then.

The blocks of a sustained run are the same work over and over, so a change of their speed is the machine's. Their
tokens are counted in windows of a hundredth of the run; blocks that somebody else disturbed are left out. The series of
rates is cut into stretches of constant speed (see ``stretches``).

- **at first**: the median of the first minute (of a quarter of a shorter run), or of the first stretch where that ends
  earlier;
- **slowdown**: the first stretch that is 5 % slower than that;
- **drop**: the last stretch against the first speed, with an interval from the far ends of both medians' intervals.

Pure: a run in, a summary out. What was not read is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgebench import stats
from edgebench.analysis.disturbance import disturbed_blocks
from edgebench.analysis.energy_source import EnergySource, choose
from edgebench.analysis.stretches import SHORTEST_STRETCH, stretches
from edgebench.analysis.throttling import slowed_by
from edgebench.records import Block, Finding, Record, Run, Series
from edgebench.units import format_percent, format_rate, format_seconds

SLOWDOWN = 0.05
CLOCK_FELL = 0.05
_WINDOWS = 100
_FEWEST_TOKENS = 8
_FIRST_S = 60.0


class Point(Record, frozen=True, kw_only=True):
    """One window of the run: its middle since the first token, the speed, and what the sensors read meanwhile."""

    t_s: float
    tokens_per_s: float
    temperature_c: float | None = None
    """The hottest zone."""
    clock_hz: float | None = None
    """The fastest frequency domain, which is the busy one."""
    power_w: float | None = None


class Stretch(Record, frozen=True, kw_only=True):
    """A stretch of constant speed."""

    start_s: float
    end_s: float
    tokens_per_s: float


class Slowdown(Record, frozen=True, kw_only=True):
    """The moment from which the device was slower, and what was seen then."""

    t_s: float
    temperature_c: float | None
    clock_hz: float | None
    clock_before_hz: float | None
    seen: tuple[str, ...]
    """Evidence that something held the processor back; empty when there is none."""


class Sustained(Record, frozen=True, kw_only=True):
    """What a sustained run came to."""

    workload: str
    asked_s: float
    measured_s: float
    """From the first token to the last: less than asked for where something ended the run."""
    first_tokens_per_s: float
    last_tokens_per_s: float
    drop: float | None
    """How much slower the end is than the beginning, as a share (negative: faster); None for too short a run."""
    drop_low: float | None
    drop_high: float | None
    slowdown: Slowdown | None
    blocks: int
    blocks_disturbed: int
    stretches: tuple[Stretch, ...]
    points: tuple[Point, ...]
    power_scope: str = ""


def best_sustained(runs: Sequence[Run]) -> tuple[Sustained, ...]:
    """One summary per sustained workload of a trial: of the run that went on longest."""
    longest: dict[str, Sustained] = {}
    for run in runs:
        for one in sustained(run):
            if one.workload not in longest or one.measured_s > longest[one.workload].measured_s:
                longest[one.workload] = one
    return tuple(longest.values())


def sustained(run: Run) -> tuple[Sustained, ...]:
    """The summaries of a run's sustained workloads, also where it ended early."""
    disturbed = disturbed_blocks(run)
    found = []
    for workload in run.trial.workloads:
        blocks = sorted((b for b in run.blocks if b.workload == workload.name), key=lambda block: block.t0_ns)
        if workload.kind != "sustained" or not blocks:
            continue
        clean = [block for block in blocks if (block.workload, block.index) not in disturbed]
        used = clean if 2 * len(clean) >= len(blocks) else blocks
        found.append(_summary(workload.name, workload.seconds, used, run, len(blocks) - len(clean)))
    return tuple(found)


def _summary(name: str, asked_s: float, blocks: Sequence[Block], run: Run, disturbed: int) -> Sustained:
    start_ns, end_ns = blocks[0].t0_ns, blocks[-1].t1_ns
    measured_s = (end_ns - start_ns) / 1e9
    windows = speed_windows(blocks, measured_s / _WINDOWS)
    read = _Readings(run)
    points = [_point(begin_ns, stop_ns, rate, start_ns, read) for begin_ns, stop_ns, rate in windows]
    rates = [point.tokens_per_s for point in points]
    cuts = stretches(rates, round(len(windows) / len(blocks)))
    first = _first_rates(points, cuts, measured_s)
    last = rates[cuts[-1][0] :]
    drop, low, high = _drop(first, last)
    return Sustained(
        workload=name,
        asked_s=asked_s,
        measured_s=measured_s,
        first_tokens_per_s=stats.median(first),
        last_tokens_per_s=stats.median(last),
        drop=drop,
        drop_low=low,
        drop_high=high,
        slowdown=_slowdown(points, cuts, first, read, start_ns),
        blocks=sum(block.workload == name for block in run.blocks),
        blocks_disturbed=disturbed,
        stretches=tuple(
            Stretch(start_s=points[a].t_s, end_s=points[b - 1].t_s, tokens_per_s=stats.median(rates[a:b]))
            for a, b in cuts
        ),
        points=tuple(points),
        power_scope=read.power_scope,
    )


# --- speed over time --------------------------------------------------------------------------------------------------


def speed_windows(blocks: Sequence[Block], window_s: float) -> list[tuple[int, int, float]]:
    """(begin, end, tokens/s) of windows of at least ``window_s`` and 8 tokens; time between blocks is left out.

    Args:
        blocks: in order of time, one duration per token.
        window_s: length of a window in time spent decoding.
    """
    windows: list[tuple[int, int, float]] = []
    begin_ns, spent_ns, tokens = blocks[0].t0_ns, 0, 0
    for block in blocks:
        now_ns = block.t0_ns
        for step_ns in block.step_ns:
            if tokens == 0:
                begin_ns = now_ns
            now_ns, spent_ns, tokens = now_ns + step_ns, spent_ns + step_ns, tokens + 1
            if tokens >= _FEWEST_TOKENS and spent_ns >= window_s * 1e9:
                windows.append((begin_ns, now_ns, tokens / spent_ns * 1e9))
                spent_ns, tokens = 0, 0
    if not windows:  # a single short block: still a speed
        windows.append((blocks[0].t0_ns, blocks[-1].t1_ns, tokens / max(1, spent_ns) * 1e9))
    return windows


# --- first against last -----------------------------------------------------------------------------------------------


def _first_rates(points: Sequence[Point], cuts: Sequence[tuple[int, int]], measured_s: float) -> list[float]:
    """Rates of the first minute, or of the first stretch where that ends earlier."""
    until_s = min(_FIRST_S, measured_s / 4)
    early = [point.tokens_per_s for point in points[: cuts[0][1]] if point.t_s <= until_s]
    return early if len(early) >= SHORTEST_STRETCH else [p.tokens_per_s for p in points[:SHORTEST_STRETCH]]


def _drop(first: Sequence[float], last: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """1 - last / first with an interval; None where there is none."""
    if len(last) < 2 or len(first) < 2:
        return None, None, None
    before, after = stats.rounds_interval(first), stats.rounds_interval(last)
    drop = 1 - stats.median(last) / stats.median(first)
    if before is None or after is None:
        return drop, None, None
    return drop, 1 - after.high / before.low, 1 - after.low / before.high


def _slowdown(
    points: Sequence[Point], cuts: Sequence[tuple[int, int]], first: Sequence[float], read: _Readings, start_ns: int
) -> Slowdown | None:
    limit = (1 - SLOWDOWN) * stats.median(first)
    slow = next((cut for cut in cuts[1:] if stats.median([p.tokens_per_s for p in points[slice(*cut)]]) < limit), None)
    if slow is None:
        return None
    begin, end = slow
    inside = points[begin:end]
    clock_before = _median(point.clock_hz for point in points[:begin])
    clock = _median(point.clock_hz for point in inside)
    seen = []
    if clock is not None and clock_before is not None and clock < (1 - CLOCK_FELL) * clock_before:
        seen.append(f"clock {clock_before / 1e9:.2f} to {clock / 1e9:.2f} GHz")
    onset_s = inside[0].t_s
    seen += read.throttling(start_ns + round(onset_s * 1e9))
    return Slowdown(
        t_s=onset_s,
        temperature_c=_median(point.temperature_c for point in inside[:SHORTEST_STRETCH]),
        clock_hz=clock,
        clock_before_hz=clock_before,
        seen=tuple(seen),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stats.median(known) if known else None


# --- what the sensors read meanwhile ----------------------------------------------------------------------------------


class _Readings:
    """The series that belong beside a speed."""

    def __init__(self, run: Run) -> None:
        series, self._device = run.series, run.trial.settings.device
        self._series, self._end_ns = series, max((block.t1_ns for block in run.blocks), default=0)
        self._hot = [one for one in series if one.channel.unit == "C"]
        real = [one for one in series if one.channel.name == "throttle.pi_clock" and any(one.values)]
        self._clocks = real or [one for one in series if one.channel.name.startswith("cpufreq.")]
        by_name = {one.channel.name: one for one in series if any(value is not None for value in one.values)}
        chosen = choose([one.channel for one in by_name.values()], set(by_name), device=self._device)
        self._power = [by_name[name] for name in chosen.channels] if isinstance(chosen, EnergySource) else []
        self.power_scope = chosen.scope if isinstance(chosen, EnergySource) else ""

    def temperature(self, begin_ns: int, end_ns: int) -> float | None:
        """The hottest zone, C."""
        return max(_means(self._hot, begin_ns, end_ns), default=None)

    def clock(self, begin_ns: int, end_ns: int) -> float | None:
        """The fastest domain, Hz."""
        return max(_means(self._clocks, begin_ns, end_ns), default=None)

    def power(self, begin_ns: int, end_ns: int) -> float | None:
        """Mean power of the primary source, W; None where one of its channels was not read."""
        values = [_watts(one, begin_ns, end_ns) for one in self._power]
        known = [value for value in values if value is not None]
        return math.fsum(known) if known and len(known) == len(values) else None

    def throttling(self, from_ns: int) -> list[str]:
        """What held the processor back from then on, in words."""
        return [one.says for one in slowed_by(self._series, from_ns, self._end_ns, device=self._device)]


def _watts(series: Series, begin_ns: int, end_ns: int) -> float | None:
    """Of a gauge the mean of its readings, of a counter its growth over the time."""
    if series.channel.kind == "gauge":
        return next(iter(_means([series], begin_ns, end_ns)), None)
    a, b = _value_at(series, begin_ns), _value_at(series, end_ns)
    return None if a is None or b is None or b < a else (b - a) / (end_ns - begin_ns) * 1e9


def _point(begin_ns: int, end_ns: int, rate: float, start_ns: int, read: _Readings) -> Point:
    return Point(
        t_s=((begin_ns + end_ns) / 2 - start_ns) / 1e9,
        tokens_per_s=rate,
        temperature_c=read.temperature(begin_ns, end_ns),
        clock_hz=read.clock(begin_ns, end_ns),
        power_w=read.power(begin_ns, end_ns),
    )


def _means(series: Sequence[Series], begin_ns: int, end_ns: int) -> list[float]:
    """Of each series the mean in the window, or the last value before it where none falls inside."""
    means = []
    for one in series:
        first, after = _index(one.t_ns, begin_ns), _index(one.t_ns, end_ns + 1)
        inside = [value for value in one.values[first:after] if value is not None]
        if not inside and first:
            inside = [value for value in one.values[first - 1 : first] if value is not None]
        if inside:
            means.append(math.fsum(inside) / len(inside))
    return means


def _value_at(series: Series, t_ns: int) -> float | None:
    """A counter between two readings, by a straight line."""
    after = _index(series.t_ns, t_ns)
    if after in (0, len(series.t_ns)):
        return None
    t0, t1, a, b = series.t_ns[after - 1], series.t_ns[after], series.values[after - 1], series.values[after]
    return None if a is None or b is None else a + (b - a) * (t_ns - t0) / max(1, t1 - t0)


def _index(t_ns: Sequence[int], moment_ns: int) -> int:
    """Index of the first stamp that is not before the moment."""
    low, high = 0, len(t_ns)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if t_ns[middle] < moment_ns else (low, middle)
    return low


# --- in words ---------------------------------------------------------------------------------------------------------


def sustained_finding(found: Sequence[Sustained]) -> Finding | None:
    """The finding for the first workload that slowed down; None when none did."""
    slowed = next((one for one in found if one.slowdown is not None), None)
    if slowed is None or slowed.slowdown is None:
        return None
    evidence: dict[str, float | int | str] = {"from_s": slowed.slowdown.t_s}
    if slowed.drop is not None:
        evidence["drop"] = slowed.drop
    if slowed.slowdown.temperature_c is not None:
        evidence["temperature_c"] = slowed.slowdown.temperature_c
    return Finding(
        kind="slowdown",
        severity="suspect",
        says=f"{slowed.workload}: {in_words(slowed)}.",
        remedy=_remedy(slowed, slowed.slowdown),
        evidence=evidence,
    )


def _remedy(one: Sustained, slowdown: Slowdown) -> str:
    if 2 * one.blocks_disturbed > one.blocks:
        return "Stop what else runs (`top` shows it) and measure again: it may be that which slowed the device down."
    if slowdown.seen and all("power limit" in seen for seen in slowdown.seen):
        return "That is the GPU's power limit (`nvidia-smi -q -d POWER`): name it beside the figures."
    if slowdown.seen:
        return "Improve the cooling (heat sink, fan, case) and measure again; for a long load count on the last speed."
    return "Look at the temperature and the power supply: no sensor here says why it slowed down."


def in_words(one: Sustained) -> str:
    """When and by how much it slowed down, in one phrase."""
    first, last = format_rate(one.first_tokens_per_s), format_rate(one.last_tokens_per_s)
    if one.slowdown is None:
        return f"no slowdown in {format_seconds(one.measured_s)}: {first} tok/s at first, {last} at the end"
    seen = [] if one.slowdown.temperature_c is None else [f"at {one.slowdown.temperature_c:.0f} C"]
    seen += one.slowdown.seen
    when = f"from {format_seconds(one.slowdown.t_s)} on" + (f" ({', '.join(seen)})" if seen else "")
    by = ""
    if one.drop is not None and one.drop > 0:
        by = f" by {format_percent(one.drop)}"
        if one.drop_low is not None and one.drop_high is not None:
            by += f" ({one.drop_low * 100:.0f} to {one.drop_high * 100:.0f} %)"
    return f"slower{by} {when}: {first} tok/s at first, {last} at the end"
