"""What a sensor is: a named set of channels that can be read together.

Add a sensor by adding one file to this folder that defines ``detect(host, profile) -> Sensor | None``. Threads, rates,
windows and integration come from the sampler and from ``analysis``; a sensor only knows how to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from edgebench.records import Channel


class Sensor(Protocol):
    """Reads all its channels at once.

    ``period_s`` is the useful sampling period: reading faster tells nothing new.
    """

    name: str
    period_s: float

    def channels(self) -> Sequence[Channel]:
        """The quantities, in the order in which `read` returns them."""
        ...

    def read(self) -> Sequence[float | None]:
        """One value per channel now; None where a reading failed. Never raises for a missing file."""
        ...


class WatchesProcess(Protocol):
    """A sensor that follows one process and must be told which."""

    def watch(self, pid: int | None) -> None:
        """Follow this process from now on."""
        ...


@runtime_checkable
class WaitsForAnswer(Protocol):
    """A sensor whose `Sensor.read` waits for a network, a program or a cable.

    The sampler reads it in a thread of its own, one ``period_s`` after the other, so that it delays no other sensor.
    """

    taken_ns: int
    """When the last reading was taken, CLOCK_MONOTONIC: the sensor knows better than who waited for it."""
    trouble: str
    """Why the last missing value is missing; empty while none was."""
