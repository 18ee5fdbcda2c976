"""The sampler process: reads every sensor at its own rate while a child is measured.

A process and not a thread, because an engine that holds the interpreter lock delays a thread's samples by 100 ms and a
process's by 10 (measured). ``python -m edgebench.engine.sampler ROOT`` takes one JSON order a line on standard input
and answers on standard output. Between orders it sleeps until the next sensor is due.
"""

from __future__ import annotations

import array
import contextlib
import os
import random
import select
import sys
import time
from typing import BinaryIO, Literal

import msgspec

from edgebench.host import Host
from edgebench.records import Channel, Series
from edgebench.registry import load, names
from edgebench.sensors.base import Sensor
from edgebench.specs import DeviceProfile

_CHUNK = 4096


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """``watch``: follow a process and forget earlier readings. ``collect``: send the readings. ``quit``: end."""

    do: Literal["watch", "collect", "quit"]
    pid: int | None = None


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``collect``; ``cpu_s`` is what sampling itself cost since ``watch``."""

    series: tuple[Series, ...]
    cpu_s: float
    channels: tuple[Channel, ...] = ()
    """All that was looked at, whether it ever gave a value or not."""


class Track:
    """The readings of one sensor, in buffers that grow by doubling so that a reading allocates nothing."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.channels = tuple(sensor.channels())
        self.due_ns = 0
        self._period_ns = round(sensor.period_s * 1e9)
        self._jitter = any(channel.unit == "W" for channel in self.channels)
        self.clear()

    def clear(self) -> None:
        """Forget all readings and read again at once."""
        self._count = 0
        self._t_ns = array.array("q", bytes(8 * _CHUNK))
        self._values = [array.array("d", bytes(8 * _CHUNK)) for _ in self.channels]
        self.due_ns = 0

    def read(self) -> None:
        """One reading, stamped in the middle of it; missing values are NaN here and None outside."""
        before = time.monotonic_ns()
        values = self.sensor.read()
        after = time.monotonic_ns()
        if self._count == len(self._t_ns):
            self._t_ns.extend(self._t_ns)
            for column in self._values:
                column.extend(column)
        self._t_ns[self._count] = (before + after) // 2
        for buffer, value in zip(self._values, values, strict=True):
            buffer[self._count] = float("nan") if value is None else value
        self._count += 1
        # Power is read at moments with jitter: a load whose period is a multiple of ours would always show one phase.
        period_ns = round(self._period_ns * random.uniform(0.8, 1.2)) if self._jitter else self._period_ns  # noqa: S311 - no secret
        self.due_ns = max(self.due_ns + period_ns, after)

    def series(self) -> tuple[Series, ...]:
        """The readings of every channel that ever had one."""
        t_ns = tuple(self._t_ns[: self._count])
        result = []
        for channel, buffer in zip(self.channels, self._values, strict=True):
            values = tuple(None if value != value else value for value in buffer[: self._count])  # noqa: PLR0124 - NaN
            if any(value is not None for value in values):
                result.append(Series(channel=channel, t_ns=t_ns, values=values))
        return tuple(result)


def detect_sensors(host: Host, profile: DeviceProfile | None) -> list[Sensor]:
    """Every sensor that finds its source on this host."""
    found = (load("sensors", name).detect(host, profile) for name in names("sensors"))
    return [sensor for sensor in found if sensor is not None]


def _watch(tracks: list[Track], pid: int | None) -> None:
    for track in tracks:
        if hasattr(track.sensor, "watch"):
            track.sensor.watch(pid)
        track.clear()


def _serve(tracks: list[Track], orders: BinaryIO) -> None:
    decoder, encoder = msgspec.json.Decoder(Order), msgspec.json.Encoder()
    sampling = False
    cpu_before = 0.0
    while True:
        now = time.monotonic_ns()
        due = min((track.due_ns for track in tracks), default=now + 10**9)
        wait_s = max(0.0, (due - now) / 1e9) if sampling else None
        if select.select([orders], [], [], wait_s)[0]:
            line = orders.readline()
            if not line:
                return
            order = decoder.decode(line)
            if order.do == "quit":
                return
            if order.do == "watch":
                _watch(tracks, order.pid)
                sampling, cpu_before = True, time.process_time()
            else:
                sampling = False
                for track in tracks:
                    track.read()  # so that the last block does not end after the last reading
                cost = time.process_time() - cpu_before
                series = tuple(series for track in tracks for series in track.series())
                channels = tuple(channel for track in tracks for channel in track.channels)
                answer = Readings(series=series, cpu_s=cost, channels=channels)
                sys.stdout.buffer.write(encoder.encode(answer) + b"\n")
                sys.stdout.buffer.flush()
        if sampling:
            now = time.monotonic_ns()
            for track in tracks:
                if track.due_ns <= now:
                    track.read()


def main() -> None:
    """Serve until standard input closes; the first line is the device profile or null."""
    host = Host(sys.argv[1])
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders:  # unbuffered, so that select sees all
        profile = msgspec.json.decode(orders.readline(), type=DeviceProfile | None)
        with contextlib.suppress(PermissionError):  # an ordinary user samples at ordinary priority
            os.nice(-5)
        _serve([Track(sensor) for sensor in detect_sensors(host, profile)], orders)


if __name__ == "__main__":
    main()
