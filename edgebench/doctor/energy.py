"""Which source the energy of a run would come from, which others there are, and why they are not it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgebench.analysis.energy_source import EnergySource, NoEnergySource, OtherSource, choose
from edgebench.device_profile import DeviceProfile
from edgebench.doctor.checks import Check, Section
from edgebench.doctor.sensing import Sensed
from edgebench.host import Host
from edgebench.provenance import virtualization
from edgebench.topology import Topology

_METER = "use a USB or wall meter; nothing is guessed in its place."
_SHOWN = 4


def examine_energy(host: Host, topology: Topology, profile: DeviceProfile, sensed: Sequence[Sensed]) -> Section:
    """The primary source first, then every other one with the reason why it comes later or cannot be used."""
    channels = [channel for one in sensed for channel in one.channels]
    readable = {name for one in sensed for name in one.answering}
    chosen = choose(channels, readable)
    checks = [_primary(host, topology, profile, chosen, "energy")]
    if any(channel.scope == "gpu_board" for channel in channels):
        checks.append(_primary(host, topology, profile, choose(channels, readable, device="cuda"), "energy, on a GPU"))
    checks.extend(_others(chosen.others))
    return Section(title="Where energy comes from", checks=tuple(checks))


def _primary(
    host: Host, topology: Topology, profile: DeviceProfile, chosen: EnergySource | NoEnergySource, name: str
) -> Check:
    if isinstance(chosen, EnergySource):
        says = f"{' + '.join(chosen.channels)} ({chosen.scope}, {chosen.method}): {chosen.why}"
        return Check(name=name, state="ok", says=says)
    why = chosen.why
    if not chosen.others and virtualization(host, topology.flags).value not in {"none", None}:
        why += ", because it is a virtual machine"
    meter = profile.power.meter if profile.power is not None else ""
    return Check(name=name, state="missing", says=f"not measurable: {why}", fix=f"use {meter}." if meter else _METER)


def _others(others: Sequence[OtherSource]) -> Iterator[Check]:
    """Whole sources one by one; parts of others in one line for each reason."""
    parts: dict[tuple[str, bool], list[str]] = {}
    for other in others:
        if other.scope == "component":
            parts.setdefault((other.why, other.readable), []).extend(other.channels)
            continue
        alone = len(other.channels) == 1
        sensor = other.channels[0].partition(".")[0]
        says = f"{'' if alone else _listed(other.channels) + ': '}{other.scope}, {other.method}: {other.why}"
        says += "" if other.readable else f"; see {sensor} above"
        name = other.channels[0] if alone else f"{sensor} {other.scope}"
        yield Check(name=name, state="ok" if other.readable else "missing", says=says)
    for number, ((why, readable), names) in enumerate(parts.items(), 1):
        silent = "" if readable else "; gives no value now"
        name = "parts" if number == 1 else f"parts {number}"
        says = f"{_listed(names)}: never added, each {why}{silent}"
        yield Check(name=name, state="ok" if readable else "missing", says=says)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
