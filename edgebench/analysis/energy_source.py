"""Which channels are *the* energy of a run, and why the others are not.

Sources that cover different things are never added and never ranked together. One source is chosen, the best that this
machine can read: a meter at the wall or at the DC input sees everything; a board's own total rail nearly everything;
the platform counter of a laptop is next, where it is believable; then the processor with its memory, the processor
alone, and last the battery, which is slow. Where the model ran on a GPU, the processor's counters miss what matters
and the GPU's board is taken; where it ran on the CPU, the GPU's board is not.

Within a source everything of one scope is added (two processors, three rails), except what is part of another channel
(``part_of``), and except meters and batteries, of which one is taken. ``dram`` adds to the processors. A sum of which
one summand is unreadable would be too low, so there is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgebench.records import Channel, Record, Scope

Method = Literal["counter", "gauge"]

_WHOLE: frozenset[Scope] = frozenset({"wall_ac", "dc_input"})
"""One meter sees all of the machine: two of them are never added."""
_ALL_OF_IT: tuple[Scope, ...] = ("wall_ac", "dc_input", "module", "board_rails")
_ORDER_CPU: tuple[Scope, ...] = (*_ALL_OF_IT, "psys", "cpu_package+dram", "cpu_package", "soc_compute")
_ORDER_GPU: tuple[Scope, ...] = (*_ALL_OF_IT, "gpu_board")
_GPU_DEVICES = frozenset({"cuda", "tensorrt"})
_COVERS: Mapping[Scope, str] = {
    "wall_ac": "the whole machine at the wall",
    "dc_input": "everything behind the power supply",
    "module": "the module, without its carrier board",
    "board_rails": "the board's measured rails, without converters and USB ports",
    "psys": "the platform, as the processor counts it",
    "cpu_package+dram": "the processor and its memory",
    "cpu_package": "the processor without its memory",
    "soc_compute": "the computing parts of the chip",
    "gpu_board": "the GPU's board",
    "component": "one part",
    "estimate": "an estimate",
}


class OtherSource(Record, frozen=True, kw_only=True):
    """Channels that were not taken, and why. Readable ones can check the primary source."""

    channels: tuple[str, ...]
    scope: Scope
    method: Method
    readable: bool
    why: str


class EnergySource(Record, frozen=True, kw_only=True):
    """The channels whose sum is the energy of the run."""

    channels: tuple[str, ...]
    scope: Scope
    method: Method
    why: str
    others: tuple[OtherSource, ...] = ()


class NoEnergySource(Record, frozen=True, kw_only=True):
    """Why nothing here can tell the energy of the run."""

    why: str
    others: tuple[OtherSource, ...] = ()


@dataclass(frozen=True)
class _Source:
    """Channels that together make one figure."""

    sensor: str
    scope: Scope
    method: Method
    channels: tuple[str, ...]
    readable: bool

    @property
    def covers(self) -> str:
        """In words."""
        return _COVERS[self.scope]


def choose(
    channels: Sequence[Channel],
    readable: Collection[str],
    *,
    device: str = "cpu",
    watts: Mapping[str, float] | None = None,
    failed: Mapping[str, str] | None = None,
) -> EnergySource | NoEnergySource:
    """The primary energy source.

    Args:
        channels: every channel of every sensor; those of other units are ignored.
        readable: names of the channels that give values.
        device: where the model runs, as in `Settings.device`.
        watts: mean power of each channel in some common window, where known: an implausible source is not taken.
        failed: channels that are not believed although they may have given values, each with how they failed.
    """
    power = [channel for channel in channels if channel.unit in {"J", "W"} and channel.scope is not None]
    sources, parts = _sources(power, readable), _parts(power, readable)
    on_gpu, laptop = device in _GPU_DEVICES, any(channel.name.startswith("battery.") for channel in channels)
    doubts = {
        source: _failure(source, failed or {}) or _doubt(source, sources, watts or {}, on_gpu=on_gpu, laptop=laptop)
        for source in sources
    }
    fit = sorted((source for source in sources if not doubts[source]), key=lambda source: _rank(source, on_gpu=on_gpu))
    if not fit:
        others = tuple(_other(source, doubts[source]) for source in sources)
        return NoEnergySource(why=_why_none(sources, parts, doubts), others=(*others, *parts))
    first, rest = fit[0], fit[1:]
    others = (
        *(_other(source, _why_not(source, first)) for source in rest),
        *(_other(source, doubts[source]) for source in sources if doubts[source]),
        *parts,
    )
    why = f"covers {first.covers}; the best source that can be read here"
    return EnergySource(channels=first.channels, scope=first.scope, method=first.method, why=why, others=others)


def _sources(power: Iterable[Channel], readable: Collection[str]) -> list[_Source]:
    """Sums of channels of one sensor, one scope and one kind."""
    groups: dict[tuple[str, Scope, Method, str], list[Channel]] = {}
    for channel in power:
        if channel.part_of or channel.scope in {None, "component"}:
            continue
        sensor = channel.name.partition(".")[0]
        alone = channel.name if channel.scope in _WHOLE else ""
        groups.setdefault((sensor, channel.scope or "estimate", channel.kind, alone), []).append(channel)
    for (sensor, scope, kind, _), members in groups.items():
        if scope == "cpu_package+dram":
            members[:0] = groups.get((sensor, "cpu_package", kind, ""), [])
    return [
        _Source(sensor, scope, kind, names := tuple(m.name for m in members), set(names) <= set(readable))
        for (sensor, scope, kind, _), members in groups.items()
    ]


def _parts(power: Iterable[Channel], readable: Collection[str]) -> tuple[OtherSource, ...]:
    """Channels that other channels contain, or that are no figure of a device."""
    found = []
    for channel in power:
        scope = channel.scope or "estimate"
        if channel.part_of or scope == "component":
            why = f"is part of {channel.part_of}" if channel.part_of else "covers one part only"
            known, names = channel.name in readable, (channel.name,)
            found.append(OtherSource(channels=names, scope=scope, method=channel.kind, readable=known, why=why))
    return tuple(found)


def _failure(source: _Source, failed: Mapping[str, str]) -> str:
    return "; ".join(failed[name] for name in source.channels if name in failed)


def _doubt(
    source: _Source, sources: Sequence[_Source], watts: Mapping[str, float], *, on_gpu: bool, laptop: bool
) -> str:
    """Why a source cannot be the energy of this run; empty when it can."""
    mean = _mean(source, watts)
    reasons = {
        "is an estimate and no measurement": source.scope == "estimate",
        "gives no value": not source.readable and len(source.channels) == 1,
        "is a sum of which a part gives no value": not source.readable,
        f"covers {source.covers}, and the model ran on a GPU": on_gpu and source.scope not in _ORDER_GPU,
        "covers the GPU's board only, and the model ran on the CPU": not on_gpu and source.scope == "gpu_board",
        "did not move while the machine ran": mean is not None and mean <= 0,
        "is the platform's counter, which is wired up on laptops only": source.scope == "psys" and not laptop,
    }
    for reason, holds in reasons.items():
        if holds:
            return reason
    return _doubt_of_platform(mean, sources, watts) if source.scope == "psys" else ""


def _doubt_of_platform(mean: float | None, sources: Sequence[_Source], watts: Mapping[str, float]) -> str:
    """Why the platform's counter is not believed: some machines count something else in it."""
    for package in sources:
        inside = _mean(package, watts) if package.scope == "cpu_package" else None
        if mean is not None and inside is not None and mean < inside:
            return f"says {mean:.1f} W where the processor inside it takes {inside:.1f} W"
    return ""


def _mean(source: _Source, watts: Mapping[str, float]) -> float | None:
    known = [watts[name] for name in source.channels if name in watts]
    return sum(known) if len(known) == len(source.channels) else None


def _rank(source: _Source, *, on_gpu: bool) -> tuple[int, int, int, str]:
    """Smaller is better. The battery comes last, and its power before its coarse energy."""
    battery = source.sensor == "battery"
    order = _ORDER_GPU if on_gpu else _ORDER_CPU
    prefers_counter = (source.method == "counter") != battery
    own = {"meter": 0, "nvml": 0, "hwmon": 1}.get(source.sensor, 2)
    return (len(order) if battery else order.index(source.scope)), own, not prefers_counter, source.channels[0]


def _why_not(source: _Source, first: _Source) -> str:
    """Why a source that could be used comes after the first."""
    if source.sensor == "battery" and source.scope != first.scope:
        return "is renewed too seldom for anything but long windows: a check of the primary source"
    if source.scope == first.scope:
        same = "counts the same" if source.method != first.method else "covers the same"
        return f"{same} as the primary source: a check of it"
    return f"covers {source.covers}, which is less or less directly measured"


def _other(source: _Source, why: str) -> OtherSource:
    return OtherSource(
        channels=source.channels, scope=source.scope, method=source.method, readable=source.readable, why=why
    )


def _why_none(sources: Sequence[_Source], parts: Sequence[OtherSource], doubts: Mapping[_Source, str]) -> str:
    """One sentence."""
    if sources:
        return "; ".join(f"{'+'.join(source.channels)} {doubts[source]}" for source in sources)
    if parts:
        names = ", ".join(name for part in parts for name in part.channels)
        return f"only parts of the machine are measured ({names}), and nothing says which of them add up"
    return "this machine has no sensor of power or energy"
