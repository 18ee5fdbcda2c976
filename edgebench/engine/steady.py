"""Before a window of energy: rest for a baseline, and warm up until the temperature has settled."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgebench.engine.messages import Phase, Reply
from edgebench.host import Host
from edgebench.sensors import thermal
from edgebench.specs import EnergyBlocks

SLOPE_LIMIT_C_PER_MIN = 1.0
LOOK_BACK_S = 30.0
SHORTEST_S = 10.0


def rest(say: Callable[[Reply], None], name: str, energy: EnergyBlocks | None) -> None:
    """An idle phase between two marks, ``name`` and ``rested``; nothing where energy is not asked for.

    Args:
        say: tells the parent.
        name: ``idle`` or ``idle_loaded``.
        energy: how long.
    """
    if energy is None:
        return
    say(Phase(name=name + "_settling", t_ns=time.monotonic_ns()))
    time.sleep(energy.settle_s)
    say(Phase(name=name, t_ns=time.monotonic_ns()))
    time.sleep(energy.idle_s)
    say(Phase(name="rested", t_ns=time.monotonic_ns()))


class Warmth:
    """Whether the machine is as warm as the load makes it.

    Args:
        host: the machine.
        energy: the longest warm-up.
        clock_s: now, in seconds.
    """

    def __init__(self, host: Host, energy: EnergyBlocks, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._sensor, self._clock_s = thermal.detect(host, None), clock_s
        self._longest_s, self._began_s = energy.warm_up_s, clock_s()
        self._seen: list[tuple[float, float]] = []

    @property
    def seconds(self) -> int:
        """Whole seconds of warming up so far."""
        return int(self._clock_s() - self._began_s)

    @property
    def longest(self) -> int:
        """The most that it may take, in whole seconds."""
        return int(self._longest_s)

    def settled(self) -> bool:
        """True once the hottest sensor changes by less than 1 C/min, or after the longest time.

        Where no temperature is known 10 s have to do.
        """
        now_s = self._clock_s()
        known = [value for value in (self._sensor.read() if self._sensor else ()) if value is not None]
        if known:
            self._seen.append((now_s, max(known)))
        since_s = now_s - self._began_s
        if since_s >= self._longest_s:
            return True
        earlier = [(t_s, degrees) for t_s, degrees in self._seen if now_s - t_s >= LOOK_BACK_S]
        if not known:
            return since_s >= min(SHORTEST_S, self._longest_s)
        if not earlier:
            return False
        t_s, degrees = earlier[-1]
        return abs(max(known) - degrees) / (now_s - t_s) * 60 < SLOPE_LIMIT_C_PER_MIN
