"""The counters at the edge of a block: who used the machine between two edges?

Read outside the timed part, by the measuring process itself, so that the window is the block and not a sampler's grid.
``schedstat`` (kernel documentation, scheduler/sched-stats) tells in nanoseconds how long our threads were runnable and
waited for a core: the most direct evidence that somebody else had it.
"""

from __future__ import annotations

import resource
import time

from edgebench.host import Host
from edgebench.records import Edge
from edgebench.sensors import contention


class EdgeReader:
    """Reads an `Edge` of this process."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sensor = contention.detect(host, None)
        self._names = [c.name.partition(".")[2] for c in self._sensor.channels()] if self._sensor else []

    def read(self) -> Edge:
        """The counters now."""
        values = dict(zip(self._names, self._sensor.read(), strict=True)) if self._sensor else {}
        swapped_in = values.get("pswpin")
        return Edge(
            t_ns=self._host.monotonic_ns(),
            own_cpu_s=time.process_time(),
            run_delay_s=self._run_delay(),
            busy_s=values.get("busy"),
            steal_s=values.get("steal"),
            cpu_pressure_s=values.get("psi_cpu"),
            major_faults=resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
            swapped_in_pages=None if swapped_in is None else int(swapped_in),
        )

    def _run_delay(self) -> float | None:
        """Seconds that threads of this process spent waiting for a core; None where the kernel does not count."""
        waited = []
        for path in self._host.glob(self._host.proc("self/task"), "*/schedstat"):
            words = (self._host.try_read(path) or "").split()
            if len(words) == 3:
                waited.append(int(words[1]))
        return sum(waited) / 1e9 if waited else None
