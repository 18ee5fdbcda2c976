"""What held the processor or the GPU back while blocks were timed, as the machine itself says it.

The span that counts lies between the first and the last block: loading and resting may be as hot as they like.

- **Counters** (Intel) and the **sticky flags** of the Raspberry Pi are compared across the span, from the last reading
  before it to the first one after it; the Pi's other flags and everything below by the readings inside.
- **Cooling devices** count when their state rises above that of the run's first reading. Those that only the kernel's
  thermal governor sets (``cpufreq-*``, ``devfreq-*``) and Jetson's alerts (``*-alert``) count whenever they are above
  0: a board that was hot before the round began is held back all the same. Others may rest in a state above 0
  (``TCC_Offset``). Fans slow nothing down.
- **NVIDIA's reasons** are told as the share of readings in which they were given.

What slows a GPU says nothing about a run on the CPU: there it is no finding at all. A power limit alone is a note, not
``suspect``: at full load it is how laptops and many boards work, and the figures hold for that limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgebench.records import Finding, Run, Series
from edgebench.throttle_bits import NVML_POWER_LIMIT, NVML_REASONS, NVML_SLOWED, PI_BITS, PI_SINCE_BOOT
from edgebench.units import format_percent, format_seconds

_GPU_DEVICES = frozenset({"cuda", "tensorrt", "webgpu"})
_COOLS_THE_CPU = ("cpu", "processor", "powerclamp", "soc", "hot-surface-alert")
_COOLS_THE_GPU = ("gpu",)
_KERNEL_SETS_IT = ("cpufreq-", "devfreq-", "thermal-cpufreq-", "thermal-devfreq-")
_PI = "throttle.pi_bits"
_REASONS = ".clocks_event_reasons"

Reading = tuple[int, float]
Cause = Literal["heat", "supply", "power limit"]


@dataclass(frozen=True)
class Slowed:
    """One thing that held a processor back: the channel that told it, and what it told, in words."""

    channel: str
    says: str
    cause: Cause = "heat"
    on_gpu: bool = False


def slowed_by(series: Iterable[Series], start_ns: int, end_ns: int, *, device: str = "cpu") -> list[Slowed]:
    """Everything that held the processor back in a span of time, and the GPU where the model ran on one.

    Args:
        series: of a run; those that tell nothing about this are passed over.
        start_ns: of the span, on the clock of the readings.
        end_ns: of the span.
        device: where the model ran, as in the trial's settings.
    """
    found: list[Slowed] = []
    on_gpu, all_of_it = device in _GPU_DEVICES, list(series)
    for one in all_of_it:
        name, readings = one.channel.name, _readings(one)
        if not readings:
            continue
        if name == _PI:
            found += _pi_flags(readings, start_ns, end_ns)
        elif name.startswith("throttle.cooling."):
            found += _cooling(name, readings, start_ns, end_ns, on_gpu=on_gpu)
        elif name.startswith("throttle.") and one.channel.kind == "counter":
            found += _counted(one, readings, start_ns, end_ns)
    if on_gpu:
        for one in _working_gpus(all_of_it):
            found += _reasons(one, start_ns, end_ns)
    return found


def throttle_findings(run: Run) -> tuple[Finding, ...]:
    """``throttled`` for what happened while blocks were timed, ``throttled_before`` for the Pi's older flags."""
    if not run.blocks:
        return ()
    start_ns, end_ns = min(block.t0_ns for block in run.blocks), max(block.t1_ns for block in run.blocks)
    found = slowed_by(run.series, start_ns, end_ns, device=run.trial.settings.device)
    findings = (_throttled(found), _throttled_before(run, start_ns, found))
    return tuple(finding for finding in findings if finding is not None)


# --- the findings -----------------------------------------------------------------------------------------------------


def _throttled(found: Sequence[Slowed]) -> Finding | None:
    if not found:
        return None
    causes = {one.cause for one in found}
    said = "; ".join(one.says for one in found)
    who = " and ".join(
        name for name, on_gpu in (("processor", False), ("GPU", True)) if any(one.on_gpu == on_gpu for one in found)
    )
    if causes == {"power limit"}:
        says = f"Its power limit held the GPU's clock down while blocks were timed ({said})."
    else:
        says = f"The {who} {'were' if ' ' in who else 'was'} slowed down while blocks were timed ({said})."
    evidence: dict[str, float | int | str] = {}
    for one in found:
        before = evidence.get(one.channel)
        evidence[one.channel] = f"{before}, {one.says}" if before else one.says
    return Finding(
        kind="throttled",
        severity="note" if causes == {"power limit"} else "suspect",
        says=says,
        remedy=_remedy(causes),
        evidence=evidence,
    )


def _remedy(causes: set[Cause]) -> str:
    if "supply" in causes:
        return "Use the board's own power supply and a short cable, then measure again."
    if "heat" in causes:
        return "Improve the cooling or wait until the machine is cool, then measure again."
    return (
        "Nothing is wrong: at full load this is normal, above all in a laptop. Name the limit beside the figures "
        "(`nvidia-smi -q -d POWER` shows it)."
    )


def _throttled_before(run: Run, start_ns: int, found: Sequence[Slowed]) -> Finding | None:
    """The Pi's flags that were set since boot and not while blocks were timed."""
    readings = next((_readings(one) for one in run.series if one.channel.name == _PI), [])
    if not readings:
        return None
    now = {one.says for one in found if one.channel == _PI}
    since_boot = int(_last_before(readings, start_ns)[1]) >> PI_SINCE_BOOT
    old = [text for bit, text in PI_BITS.items() if since_boot >> bit & 1 and text not in now]
    if not old:
        return None
    listed = " and ".join(filter(None, (", ".join(old[:-1]), old[-1])))
    what = "Use the board's own power supply and a short cable" if PI_BITS[0] in old else "Improve the cooling"
    return Finding(
        kind="throttled_before",
        severity="note",
        says=f"The firmware says {listed} since boot, but not while blocks were timed.",
        remedy=f"{what}: it may happen again under a longer load. Only a reboot clears these flags.",
        evidence={_PI: ", ".join(old)},
    )


# --- what each source says --------------------------------------------------------------------------------------------


def _readings(series: Series) -> list[Reading]:
    return [(t_ns, value) for t_ns, value in zip(series.t_ns, series.values, strict=True) if value is not None]


def _last_before(readings: Sequence[Reading], t_ns: int) -> Reading:
    """The last reading until a time, or the first of all where there is none so early."""
    return next((one for one in reversed(readings) if one[0] <= t_ns), readings[0])


def _first_after(readings: Sequence[Reading], t_ns: int) -> Reading:
    """The first reading from a time on, or the last of all where there is none so late."""
    return next((one for one in readings if one[0] >= t_ns), readings[-1])


def _inside(readings: Sequence[Reading], start_ns: int, end_ns: int) -> list[float]:
    return [value for t_ns, value in readings if start_ns <= t_ns <= end_ns]


def _pi_flags(readings: Sequence[Reading], start_ns: int, end_ns: int) -> list[Slowed]:
    """Flags that were set in the span, or became sticky in it."""
    before, after = int(_last_before(readings, start_ns)[1]), int(_first_after(readings, end_ns)[1])
    flags = (after & ~before) >> PI_SINCE_BOOT
    for value in _inside(readings, start_ns, end_ns):
        flags |= int(value) | (int(value) & ~before) >> PI_SINCE_BOOT
    return [Slowed(_PI, text, "supply" if bit == 0 else "heat") for bit, text in PI_BITS.items() if flags >> bit & 1]


def _cooling(
    channel: str, readings: Sequence[Reading], start_ns: int, end_ns: int, *, on_gpu: bool
) -> Iterable[Slowed]:
    name = channel.removeprefix("throttle.cooling.")
    kind = name.lower()
    cools_gpu = any(word in kind for word in _COOLS_THE_GPU)
    if not (on_gpu if cools_gpu else any(word in kind for word in _COOLS_THE_CPU)):
        return
    highest = max(_inside(readings, start_ns, end_ns), default=0.0)
    rest = readings[0][1]
    if highest > rest:
        yield Slowed(channel, f"{name} from state {rest:g} to {highest:g}", on_gpu=cools_gpu)
    elif highest > 0 and (kind.startswith(_KERNEL_SETS_IT) or "-alert" in kind):
        yield Slowed(channel, f"{name} in state {highest:g}", on_gpu=cools_gpu)


def _counted(series: Series, readings: Sequence[Reading], start_ns: int, end_ns: int) -> Iterable[Slowed]:
    grown = _first_after(readings, end_ns)[1] - _last_before(readings, start_ns)[1]
    if grown > 0:
        amount = format_seconds(grown) if series.channel.unit == "s" else f"{grown:g}"
        yield Slowed(series.channel.name, f"{series.channel.name.removeprefix('throttle.')} +{amount}")


def _working_gpus(series: Sequence[Series]) -> list[Series]:
    """The reasons of those GPUs that hold memory of the measured process; of all where that is not known."""
    told = [one for one in series if one.channel.name.endswith(_REASONS)]
    held = {
        one.channel.name.removesuffix(".memory_process")
        for one in series
        if one.channel.name.endswith(".memory_process") and any(one.values)
    }
    return [one for one in told if one.channel.name.removesuffix(_REASONS) in held] if held else told


def _reasons(series: Series, start_ns: int, end_ns: int) -> Iterable[Slowed]:
    """Why an NVIDIA GPU was slower than it could be, and in which share of the readings."""
    values = _inside(_readings(series), start_ns, end_ns)
    gpu = series.channel.name.removesuffix(_REASONS).rpartition(".")[2]
    for bit in NVML_SLOWED:
        hit = sum(int(value) >> bit & 1 for value in values)
        if hit:
            cause: Cause = "power limit" if bit == NVML_POWER_LIMIT else "heat"
            share = format_percent(hit / len(values))
            says = f"{gpu}: {NVML_REASONS[bit]} in {share} of the readings"
            yield Slowed(series.channel.name, says, cause, on_gpu=True)
