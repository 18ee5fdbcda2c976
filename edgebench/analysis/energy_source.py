"""Which channels are the energy of this machine (a stand-in with the agreed interface)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgebench.records import Channel, Scope


@dataclass(frozen=True)
class EnergySource:
    """The channels whose sum is the energy, and why these."""

    channels: tuple[str, ...]
    scope: Scope
    method: Literal["counter", "gauge"]
    why: str


def choose(channels: Sequence[Channel]) -> EnergySource | None:
    """The first channel of energy, else the first of power; None when there is neither."""
    for unit, method in (("J", "counter"), ("W", "gauge")):
        for channel in channels:
            if channel.unit == unit and channel.scope is not None:
                kind: Literal["counter", "gauge"] = "counter" if method == "counter" else "gauge"
                return EnergySource((channel.name,), channel.scope, kind, "the only one")
    return None
