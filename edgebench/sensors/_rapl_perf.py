"""RAPL by the kernel's performance counters: the ``power`` PMU (kernel source, arch/x86/events/rapl.c).

Each event counts in units given by its ``.scale`` file (2**-32 J), for the whole system, on one logical CPU per package
or die (``cpumask``). The counter starts at 0 when it is opened.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import weakref
from collections.abc import Callable
from typing import Protocol

from edgebench.host import Host
from edgebench.kerneltext import parse_count, parse_cpu_list
from edgebench.records import Channel
from edgebench.specs import Scope

_SYSCALL = 298  # of 64-bit x86
_CLOSE_ON_EXEC = 1 << 3
_ATTRIBUTE_BYTES = 112  # PERF_ATTR_SIZE_VER5
_EVENT = re.compile(r"event=0x([0-9a-fA-F]{1,4})")
_COVERS: dict[str, tuple[str, Scope, bool]] = {
    "energy-psys": ("psys", "psys", False),
    "energy-pkg": ("package", "cpu_package", False),
    "energy-ram": ("dram", "cpu_package+dram", False),
    "energy-cores": ("core", "component", True),
    "energy-gpu": ("uncore", "component", True),
}
"""Name in our channels, scope, and whether it is inside the package."""


class Counter(Protocol):
    """An open performance counter."""

    def read(self) -> int | None:
        """Its raw value now, or None."""
        ...


Opener = Callable[[int, int, int], Counter | None]
"""(PMU type, event, logical CPU) -> the counter, or None where the kernel refuses."""


class _Opened:
    """A counter behind a file descriptor, closed with the object."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self) -> int | None:
        """The 64-bit value."""
        try:
            data = os.read(self._descriptor, 8)
        except OSError:
            return None
        return int(struct.unpack("=Q", data)[0]) if len(data) == 8 else None


def open_counter(kind: int, event: int, cpu: int) -> Counter | None:
    """Open one event for all processes on one CPU: perf_event_open(2)."""
    if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        return None
    head = struct.pack("=IIQ", kind, _ATTRIBUTE_BYTES, event)  # type, size of the attribute, config
    attribute = ctypes.create_string_buffer(head, _ATTRIBUTE_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    words = (ctypes.c_long(_SYSCALL), attribute, *map(ctypes.c_long, (-1, cpu, -1, _CLOSE_ON_EXEC)))
    descriptor = int(libc.syscall(*words))
    return _Opened(descriptor) if descriptor >= 0 else None


def sources(host: Host, opener: Opener | None = None) -> list[tuple[Channel, Callable[[], float | None]]]:
    """Channels that can be opened and answer now; empty where the PMU is missing or closed to this user.

    Args:
        host: the machine; below a captured tree nothing can be opened unless an opener is given.
        opener: what opens a counter.
    """
    if opener is None:
        if not host.is_live:
            return []
        opener = open_counter
    folder = host.sys("bus/event_source/devices/power")
    kind = parse_count(host.try_read(folder / "type") or "")
    cpus = sorted(parse_cpu_list(host.try_read(folder / "cpumask") or "") or ())
    found = []
    for name, (label, scope, inside) in _COVERS.items():
        event = _EVENT.fullmatch(host.try_read(folder / "events" / name) or "")
        scale = _scale(host.try_read(folder / "events" / f"{name}.scale") or "")
        unit = host.try_read(folder / "events" / f"{name}.unit")
        if kind is None or event is None or scale is None or unit != "Joules":
            continue
        for index, cpu in enumerate(cpus[:1] if label == "psys" else cpus):
            counter = opener(kind, int(event[1], 16), cpu)
            if counter is None or counter.read() is None:
                continue
            package = f"perf.package-{index}"
            full = {"psys": "perf.psys", "package": package}.get(label, f"{package}.{label}")
            channel = Channel(
                name=f"rapl.{full}",
                unit="J",
                kind="counter",
                scope=scope,
                part_of=f"rapl.{package}" if inside else "",
                update_s=1e-3,
            )
            found.append((channel, _reader(counter, scale)))
    return found


def _reader(counter: Counter, scale: float) -> Callable[[], float | None]:
    def read() -> float | None:
        value = counter.read()
        return None if value is None else value * scale

    return read


def _scale(text: str) -> float | None:
    """A positive decimal factor."""
    if not re.fullmatch(r"\d{1,3}\.\d{1,60}(e-?\d{1,3})?", text, re.ASCII):
        return None
    return float(text) or None
