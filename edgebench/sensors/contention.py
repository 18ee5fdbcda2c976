"""Who else used the machine: cumulative CPU time, steal, pressure, paging.

``busy`` is the CPU time that anybody got (user + nice + system + irq + softirq, summed over the logical CPUs; time of
guests is already inside user). Busy minus the watched process's own CPU time is what others took. ``steal`` is what the
hypervisor gave to other virtual machines: it is not in busy, but it is missing from us. Pressure ``some`` totals are
the wall time in which at least one task waited for the resource (kernel documentation, accounting/psi). Page-ins from
swap and major faults mean that memory, not the processor, set the speed.

All are counters, so that a window is a difference of two readings and no spike between two readings is lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import find_counts, parse_count
from edgebench.records import Channel

_PRESSURES = ("cpu", "memory", "io")
_EVENTS = ("pswpin", "pswpout", "pgmajfault")
_TOTAL = re.compile(r"^some .*\btotal=(\d{1,20})\s*$", re.MULTILINE)


class ContentionSensor:
    """Counters ``contention.busy``, ``.steal``, ``.psi_*``, ``.own_cpu`` (s) and ``.pswpin`` and friends (events)."""

    name = "contention"
    period_s = 0.1

    def __init__(self, host: Host, pressures: tuple[str, ...], ticks_per_s: int) -> None:
        self._host = host
        self._pressures = pressures
        self._tick_s = 1 / ticks_per_s
        self._pid: int | None = None

    def channels(self) -> Sequence[Channel]:
        """CPU time, pressure where the kernel was built with it, own CPU time, paging events."""
        seconds = ("busy", "steal", *(f"psi_{what}" for what in self._pressures), "own_cpu")
        units = [*((name, "s") for name in seconds), *((name, "events") for name in _EVENTS)]
        return tuple(Channel(name=f"contention.{name}", unit=unit, kind="counter") for name, unit in units)

    def watch(self, pid: int | None) -> None:
        """Follow the CPU time of this process (all its threads)."""
        self._pid = pid

    def read(self) -> Sequence[float | None]:
        """Cumulative values since boot; the process's own since its start."""
        values = [*self._cpu_time()]
        values.extend(self._pressure(what) for what in self._pressures)
        values.append(self._own_cpu())
        values.extend(find_counts(self._host.try_read(self._host.proc("vmstat")) or "", _EVENTS))
        return values

    def _cpu_time(self) -> tuple[float | None, float | None]:
        """(busy, steal) in seconds from the first line of ``stat``."""
        words = (self._host.try_read(self._host.proc("stat")) or "").partition("\n")[0].split()
        ticks = [tick for word in words[1:9] if (tick := parse_count(word)) is not None]
        if len(ticks) != 8 or words[0] != "cpu":
            return None, None
        user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
        return (user + nice + system + irq + softirq) * self._tick_s, steal * self._tick_s

    def _pressure(self, what: str) -> float | None:
        """Seconds in which at least one task waited for ``what``."""
        match = _TOTAL.search(self._host.try_read(self._host.proc(f"pressure/{what}")) or "")
        return int(match[1]) * 1e-6 if match else None

    def _own_cpu(self) -> float | None:
        """User plus system time of the watched process, whose name may itself hold spaces and parentheses."""
        if self._pid is None:
            return None
        text = self._host.try_read(self._host.proc(f"{self._pid}/stat")) or ""
        words = text.rpartition(")")[2].split()[11:13]  # fields 14, 15 of proc_pid_stat(5); the name ends field 2
        times = [time for word in words if (time := parse_count(word)) is not None]
        return sum(times) * self._tick_s if len(times) == 2 else None


def detect(host: Host, profile: DeviceProfile | None) -> ContentionSensor | None:
    """The sensor where the kernel publishes ``stat``; pressure channels only where pressure files are readable."""
    if host.try_read(host.proc("stat")) is None:
        return None
    pressures = tuple(what for what in _PRESSURES if host.try_read(host.proc(f"pressure/{what}")) is not None)
    return ContentionSensor(host, pressures, os.sysconf("SC_CLK_TCK"))


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    return "the kernel shows no CPU times", "mount procfs in this container."
