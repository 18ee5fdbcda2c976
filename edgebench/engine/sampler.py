"""The sampler process: reads every sensor at its own rate while a child is measured.

A process and not a thread, because an engine that holds the interpreter lock delays a thread's samples by 100 ms and a
process's by 10 (measured). ``python -m edgebench.engine.sampler ROOT`` takes one JSON order a line on standard input
and answers on standard output. Between orders it sleeps until the next sensor is due.

A sensor that waits for an answer (a meter on a network, a program) has a thread of its own here: it waits in the
operating system, and the others keep their rates.
"""

from __future__ import annotations

import array
import contextlib
import os
import random
import select
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO, Literal

import msgspec

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.records import Channel, Series
from edgebench.registry import load, names
from edgebench.sensors.base import Sensor, WaitsForAnswer

_CHUNK = 4096
_NEVER_NS = 2**62
_LONGEST_SLEEP_S = 3600.0


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
        self._tells_power = any(channel.unit == "W" for channel in self.channels)
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
        self._keep((before + after) // 2, values)
        self.due_ns = max(self.due_ns + round(self._period_ns * self._jitter()), after)

    def _jitter(self) -> float:
        """Power is read with jitter: a load whose period is a multiple of ours would always show one phase."""
        return random.uniform(0.8, 1.2) if self._tells_power else 1.0  # noqa: S311 - no secret

    def _keep(self, t_ns: int, values: Sequence[float | None]) -> None:
        if self._count == len(self._t_ns):
            self._t_ns.extend(self._t_ns)
            for column in self._values:
                column.extend(column)
        self._t_ns[self._count] = t_ns
        for buffer, value in zip(self._values, values, strict=True):
            buffer[self._count] = float("nan") if value is None else value
        self._count += 1

    def series(self) -> tuple[Series, ...]:
        """The readings of every channel that had one, or that can say why it had none."""
        t_ns = tuple(self._t_ns[: self._count])
        trouble = self._trouble()
        result = []
        for channel, buffer in zip(self.channels, self._values, strict=True):
            values = tuple(None if value != value else value for value in buffer[: self._count])  # noqa: PLR0124 - NaN
            because = trouble if None in values or not values else ""
            if because or any(value is not None for value in values):
                result.append(Series(channel=channel, t_ns=t_ns, values=values, missing_because=because))
        return tuple(result)

    def _trouble(self) -> str:
        return ""


class WaitingTrack(Track):
    """A track that a thread of its own fills; the first `clear` starts it, and what comes after is kept.

    The thread reads on between runs: a stream that nobody empties would hand out old lines later.
    """

    def __init__(self, sensor: Sensor) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._since_ns = 0
        super().__init__(sensor)

    def clear(self) -> None:
        """Forget all readings; those taken from now on count, also when they were asked for earlier."""
        with self._lock:
            super().clear()
            self._since_ns = time.monotonic_ns()
        self.due_ns = _NEVER_NS

    def start(self) -> None:
        """Read in the background from now on; twice is fine."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._read_for_ever, name=self.sensor.name, daemon=True)
            self._thread.start()

    def _read_for_ever(self) -> None:
        while True:
            before = time.monotonic()
            self._read_once()
            rest_s = self.sensor.period_s * self._jitter() - (time.monotonic() - before)
            if rest_s > 0:
                time.sleep(rest_s)

    def read(self) -> None:
        """Nothing: its thread reads."""

    def _read_once(self) -> None:
        """One reading, stamped by the sensor."""
        values = self.sensor.read()
        taken_ns = self.sensor.taken_ns if isinstance(self.sensor, WaitsForAnswer) else time.monotonic_ns()
        with self._lock:
            if taken_ns >= self._since_ns:
                self._keep(taken_ns, values)

    def series(self) -> tuple[Series, ...]:
        """The readings so far; a request that is under way counts as not asked."""
        with self._lock:
            return super().series()

    def _trouble(self) -> str:
        return self.sensor.trouble if isinstance(self.sensor, WaitsForAnswer) else ""


def _track(sensor: Sensor) -> Track:
    return WaitingTrack(sensor) if isinstance(sensor, WaitsForAnswer) else Track(sensor)


def detect_sensors(host: Host, profile: DeviceProfile | None) -> list[Sensor]:
    """Every sensor that finds its source on this host."""
    found = (load("sensors", name).detect(host, profile) for name in names("sensors"))
    return [sensor for sensor in found if sensor is not None]


def _watch(tracks: list[Track], pid: int | None) -> None:
    for track in tracks:
        if hasattr(track.sensor, "watch"):
            track.sensor.watch(pid)
        track.clear()
        if isinstance(track, WaitingTrack):
            track.start()


def _serve(tracks: list[Track], orders: BinaryIO) -> None:
    decoder, encoder = msgspec.json.Decoder(Order), msgspec.json.Encoder()
    sampling = False
    cpu_before = 0.0
    while True:
        now = time.monotonic_ns()
        due = min((track.due_ns for track in tracks), default=now + 10**9)
        wait_s = min(max(0.0, (due - now) / 1e9), _LONGEST_SLEEP_S) if sampling else None
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
        _serve([_track(sensor) for sensor in detect_sensors(host, profile)], orders)


if __name__ == "__main__":
    main()
