"""A process that takes the machine's time at random, and a log of when it did.

Each state lasts 0.2 to 3 s, exponential, 1 s on average before clipping. ``spin`` computes wherever the scheduler puts
it, ``pinned`` computes on one CPU, ``memory`` copies a buffer larger than the caches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiment import HOST, running

# A program of its own, so that the noise imports nothing and dies with us even when we are killed.
HOG = """
import os, random, sys, time
kind, seed, cpus = sys.argv[1], int(sys.argv[2]), sys.argv[3]
draw, parent = random.Random(seed), os.getppid()
if kind == "pinned":
    os.sched_setaffinity(0, {draw.choice([int(cpu) for cpu in cpus.split(",")])})
source, target = bytearray(1 << 26), bytearray(1 << 26)
def work():
    if kind == "memory":
        target[:] = source
    else:
        for _ in range(10000): pass
def length_s():
    return min(3.0, max(0.2, draw.expovariate(1.0)))
while os.getppid() == parent:
    time.sleep(length_s())
    end = time.monotonic_ns() + int(length_s() * 1e9)
    print("on", time.monotonic_ns(), flush=True)
    while time.monotonic_ns() < end:
        work()
    print("off", time.monotonic_ns(), flush=True)
"""
HOGS = ("spin", "pinned", "memory")


@contextmanager
def competing(kind: str, seed: int, log: Path) -> Iterator[None]:
    """The noise; for an empty kind there is none."""
    if not kind:
        log.write_bytes(b"")
        yield
        return
    cpus = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
    with log.open("wb") as output, running([sys.executable, "-c", HOG, kind, str(seed), cpus], stdout=output):
        yield


def noisy_times(log: Path) -> list[tuple[int, int]]:
    """When the competing process worked (monotonic ns). It was killed in its last spell, which ends now."""
    stamps = [(word, int(t_ns)) for word, t_ns in (line.split() for line in log.read_text().splitlines())]
    ends = [t_ns for word, t_ns in stamps if word == "off"]
    starts = [t_ns for word, t_ns in stamps if word == "on"]
    return list(zip(starts, [*ends, HOST.monotonic_ns()], strict=False))
