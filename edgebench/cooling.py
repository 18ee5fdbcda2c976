"""Wait before a round until the machine is as cool as when the session began, or for a fixed time.

A board without a fan takes minutes to cool; a round that starts hot is throttled sooner and leaks more current.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.records import Cooldown, Finding
from edgebench.sensors import thermal

WITHIN_C = 3.0
LONGEST_S = 300.0
_LOOK_EVERY_S = 2.0

Rule = Literal["auto", "off"] | float


class Cooling:
    """The thermal gate of a session; the hottest sensor counts.

    Args:
        host: the machine.
        profile: of the device.
        sleep: waits so many seconds.
        clock_s: now, in seconds.
    """

    def __init__(
        self,
        host: Host,
        profile: DeviceProfile,
        sleep: Callable[[float], None] = time.sleep,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sensor = thermal.detect(host, profile)
        self._sleep, self._clock_s = sleep, clock_s
        self._started = False
        self._start_c: float | None = None

    def wait(self, rule: Rule) -> Cooldown | None:
        """Before a round: the first one sets the temperature to come back to. None where nothing was waited for.

        Args:
            rule: ``auto`` waits until at most 3 C above the start, at most five minutes; a number waits so many
                seconds; ``off`` does not wait.
        """
        if not self._started:
            self._started, self._start_c = True, self._now_c()
            return None
        if rule == "off":
            return None
        if isinstance(rule, float | int):
            self._sleep(rule)
            return Cooldown(waited_s=float(rule), reached_c=self._now_c())
        if self._start_c is None:
            return None
        began_s, target_c = self._clock_s(), self._start_c + WITHIN_C
        while (now_c := self._now_c()) is not None and now_c > target_c:
            if self._clock_s() - began_s >= LONGEST_S:
                break
            self._sleep(_LOOK_EVERY_S)
        return Cooldown(waited_s=self._clock_s() - began_s, target_c=target_c, reached_c=now_c)

    def _now_c(self) -> float | None:
        known = [value for value in (self._sensor.read() if self._sensor else ()) if value is not None]
        return max(known, default=None)


def cooling_finding(cooldown: Cooldown | None) -> Finding | None:
    """That a round began too hot, or None."""
    if cooldown is None or cooldown.target_c is None or cooldown.reached_c is None:
        return None
    if cooldown.reached_c <= cooldown.target_c:
        return None
    return Finding(
        kind="hot_start",
        severity="suspect",
        says=f"After {cooldown.waited_s:.0f} s of cooling down it was still {cooldown.reached_c:.0f} C, above the "
        f"{cooldown.target_c:.0f} C to which the session's start allows.",
        remedy="Improve the cooling, or give it more time: --cooldown 10m.",
        evidence={"reached_c": cooldown.reached_c, "target_c": cooldown.target_c},
    )
