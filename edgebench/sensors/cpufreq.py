"""Clock of each frequency domain, in Hz.

``scaling_cur_freq`` is what the driver last knew: measured by hardware counters on recent x86 (kernel documentation,
admin-guide/pm/cpufreq), the *requested* clock on many ARM boards, where firmware may run slower than asked (the
throttle sensor tells). Where no frequency driver is loaded, x86 still prints a clock in ``cpuinfo``; in a virtual
machine that is often the constant nominal clock, so its channel has a name of its own and nobody mistakes it for the
real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import cpuinfo_blocks, natural, read_scaled
from edgebench.records import Channel


class PolicySensor:
    """Gauges ``cpufreq.policy<N>`` in Hz, one per frequency domain."""

    name = "cpufreq"
    period_s = 0.5

    def __init__(self, host: Host, policies: Sequence[Path]) -> None:
        self._host = host
        self._policies = tuple(policies)

    def channels(self) -> Sequence[Channel]:
        """One gauge per policy, in numeric order."""
        return tuple(Channel(name=f"cpufreq.{policy.name}", unit="Hz", kind="gauge") for policy in self._policies)

    def read(self) -> Sequence[float | None]:
        """Clocks now."""
        return [read_scaled(self._host, policy / "scaling_cur_freq", 1e3) for policy in self._policies]


class CpuinfoSensor:
    """Gauge ``cpufreq.cpuinfo`` in Hz: mean over the logical CPUs of what ``cpuinfo`` prints."""

    name = "cpufreq"
    period_s = 0.5

    def __init__(self, host: Host) -> None:
        self._host = host

    def channels(self) -> Sequence[Channel]:
        """One gauge."""
        return (Channel(name="cpufreq.cpuinfo", unit="Hz", kind="gauge"),)

    def read(self) -> Sequence[float | None]:
        """The mean clock now."""
        return [_mean_clock(self._host)]


def _mean_clock(host: Host) -> float | None:
    """Mean of the ``cpu MHz`` lines in Hz, or None when there is none or one is no number."""
    blocks = cpuinfo_blocks(host.try_read(host.proc("cpuinfo")) or "")
    clocks = [block["cpu MHz"] for block in blocks if "cpu MHz" in block]
    if not clocks or not all(clock.replace(".", "", 1).isdecimal() for clock in clocks):
        return None
    return sum(map(float, clocks)) / len(clocks) * 1e6


def detect(host: Host, profile: DeviceProfile | None) -> PolicySensor | CpuinfoSensor | None:
    """The policies of the frequency driver, else the clock in ``cpuinfo``, else nothing."""
    policies = [path.parent for path in host.glob(host.sys("devices/system/cpu/cpufreq"), "policy*/scaling_cur_freq")]
    if policies:
        return PolicySensor(host, sorted(policies, key=natural))
    return CpuinfoSensor(host) if _mean_clock(host) is not None else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    return "no frequency driver is loaded and cpuinfo prints no clock", "run on the machine itself, not in a guest."
