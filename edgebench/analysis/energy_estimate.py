"""A range of energy where nothing measures it: from how busy the processors were, never beside a measurement.

Between the watts of the idle and of the fully loaded machine, in proportion to the busy share of all CPUs, +-30 %:
decode waits for memory, so that "busy" processors may draw less than the full load did. Where only the maker's limit
is known, the range runs from a fifth of it to all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgebench.analysis.energy_windows import workload_windows
from edgebench.device_profile import DeviceProfile
from edgebench.records import Run

SPREAD = 0.3
OF_LIMIT = (0.2, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A range in J and the model behind it; or why there is none."""

    low_j: float | None = None
    high_j: float | None = None
    model: str = ""
    because: str = ""


def estimate(run: Run, profile: DeviceProfile, stated_w: tuple[float, float] | None) -> Estimate:
    """Energy of the windows of a run's workloads.

    Args:
        run: its blocks tell how busy the CPUs were.
        profile: of the device; its watts count only where the machine is neither virtual nor a container.
        stated_w: watts of the idle and of the loaded machine, as the user says.
    """
    hidden = _hidden(run)
    if stated_w is None and hidden:
        because = f"no estimate: this is {hidden}, which says nothing about the machine's power (state it: --watts)"
        return Estimate(because=because)
    seconds = math.fsum(window.seconds for window in workload_windows(run))
    if not seconds:
        return Estimate(because="no estimate: no block was timed")
    draw, limit = profile.power_draw, profile.power_limit_w
    idle_full = stated_w or ((_number(draw.idle_w.value), _number(draw.full_w.value)) if draw else None)
    if idle_full is not None:
        share = _busy(run)
        if share is None:
            return Estimate(because="no estimate: how busy the CPUs were is not known")
        middle = (idle_full[0] + (idle_full[1] - idle_full[0]) * share) * seconds
        model = "stated_watts_v1" if stated_w else f"device_profile_v1:{profile.id}"
        return Estimate(low_j=(1 - SPREAD) * middle, high_j=(1 + SPREAD) * middle, model=model)
    if limit is not None:
        watts = _number(limit.value)
        model = f"power_limit_v1:{profile.id}"
        return Estimate(low_j=OF_LIMIT[0] * watts * seconds, high_j=OF_LIMIT[1] * watts * seconds, model=model)
    return Estimate(because=f"no estimate: the profile {profile.id} declares no watts (state them: --watts)")


def _hidden(run: Run) -> str:
    """``a virtual machine (KVM)`` or ``a container (docker)``; empty on the machine itself."""
    where = run.provenance
    for what, fact in (("a virtual machine", where.virtualization), ("a container", where.container)):
        if fact.value not in (None, "none"):
            name = str(fact.value)
            return what if name.startswith("virtual machine") else f"{what} ({name})"
    return ""


def _busy(run: Run) -> float | None:
    """Busy share of all CPUs while blocks were timed, 0 to 1."""
    busy_s, wall_s = 0.0, 0.0
    for block in run.blocks:
        if block.start.busy_s is not None and block.end.busy_s is not None:
            busy_s += block.end.busy_s - block.start.busy_s
            wall_s += (block.end.t_ns - block.start.t_ns) / 1e9
    return min(1.0, max(0.0, busy_s / wall_s / run.provenance.logical_cpus)) if wall_s > 0 else None


def _number(value: float | str) -> float:
    return float(value)
