"""Who else used the machine during a block.

A block counts as disturbed only on evidence that is independent of its own speed: leaving out slow blocks *because*
they are slow would make every result too fast. The evidence is the difference of the two edges of the block:

- **other CPU**: CPU time used by everybody, less our own. Even on a core that we do not use it counts, because decode
  is bound by memory bandwidth, which all cores share. ``/proc/stat`` counts in ticks of 10 ms, so two ticks per CPU
  that we load (and one more CPU) are allowed; on top of that 5 % of one core. A quiet machine has about 0.5 %.
- **run delay**: time our threads were runnable and had no core. Known to the ns. Engines meet at a barrier after every
  matrix product, so *one* waiting thread stops all: 3 % of the wall time in total, plus 0.5 % per thread for the noise
  of any scheduler.
- **steal**: time the hypervisor gave our virtual CPUs to another guest: 1 % per CPU we use, and a tick.
- **pressure**: share of the time in which some task waited for a CPU (PSI): 5 %, as a task may wait without us.

With more threads than CPUs our own threads wait for each other, so run delay and pressure then prove nothing.
"""

from __future__ import annotations

from edgebench.records import Block, Record, Run
from edgebench.units import format_percent

TICK_S = 0.01
"""``USER_HZ`` is 100 on every Linux that edgebench supports."""
OTHER_CPU_LIMIT = 0.05
RUN_DELAY_LIMIT = 0.03
RUN_DELAY_NOISE_PER_THREAD = 0.005
STEAL_LIMIT = 0.01
PRESSURE_LIMIT = 0.05


class Disturbance(Record, frozen=True, kw_only=True):
    """What the edges of one block say; None where the kernel does not tell."""

    other_cpu: float | None
    """CPU time of other processes, as a share of one core: 1.0 is one whole core."""
    steal: float | None
    """Stolen time, as a share of the CPUs that the block used."""
    run_delay: float | None
    """Waiting for a core, as a share of the wall time, per thread."""
    pressure: float | None
    """Share of the wall time in which some task waited for a CPU."""
    disturbed: bool
    says: str
    """The evidence above its limit; empty when there is none."""


def disturbance(block: Block, threads: int, logical_cpus: int) -> Disturbance:
    """Judge one block by its edges.

    Args:
        block: with the cumulative counters at both edges.
        threads: threads of the engine in this kind of block.
        logical_cpus: CPUs that the engine may use.
    """
    start, end = block.start, block.end
    wall = (end.t_ns - start.t_ns) / 1e9
    used = max(1, min(threads, logical_cpus))
    busy = _difference(start.busy_s, end.busy_s)
    other_s = None if busy is None else max(0.0, busy - (end.own_cpu_s - start.own_cpu_s))
    steal_s = _difference(start.steal_s, end.steal_s)
    delay_s = _difference(start.run_delay_s, end.run_delay_s)
    pressure_s = _difference(start.cpu_pressure_s, end.cpu_pressure_s)
    if wall <= 0:
        return Disturbance(other_cpu=None, steal=None, run_delay=None, pressure=None, disturbed=False, says="")

    says = []
    loaded = min(logical_cpus, threads + 1)
    if other_s is not None and other_s > OTHER_CPU_LIMIT * wall + 2 * TICK_S * loaded:
        says.append(f"other processes used {format_percent(other_s / wall)} of a core")
    if steal_s is not None and steal_s > STEAL_LIMIT * wall * used + TICK_S:
        says.append(f"the hypervisor took {format_percent(steal_s / wall / used)} of our CPUs")
    if threads <= logical_cpus:
        allowed = (RUN_DELAY_LIMIT + RUN_DELAY_NOISE_PER_THREAD * threads) * wall
        if delay_s is not None and delay_s > allowed:
            says.append(f"our threads waited {format_percent(delay_s / wall / threads)} of the time for a core")
        if pressure_s is not None and pressure_s > PRESSURE_LIMIT * wall:
            says.append(f"tasks waited for a CPU during {format_percent(pressure_s / wall)} of the time")
    return Disturbance(
        other_cpu=_share(other_s, wall),
        steal=_share(steal_s, wall * used),
        run_delay=_share(delay_s, wall * max(1, threads)),
        pressure=_share(pressure_s, wall),
        disturbed=bool(says),
        says="; ".join(says),
    )


def _difference(start: float | None, end: float | None) -> float | None:
    """Growth of a counter, or None when either end is unknown."""
    return None if start is None or end is None else end - start


def _share(seconds: float | None, of: float) -> float | None:
    return None if seconds is None else seconds / of


def disturbed_blocks(run: Run) -> dict[tuple[str, int], str]:
    """The disturbed blocks of a run by (workload, index), each with what was seen."""
    settings = run.trial.settings
    cpus = len(settings.cpus) or run.provenance.logical_cpus
    seen = {}
    for block in run.blocks:
        threads = settings.threads_batch if block.workload.startswith("pp") else settings.threads
        found = disturbance(block, threads, cpus)
        if found.disturbed:
            seen[block.workload, block.index] = found.says
    return seen
