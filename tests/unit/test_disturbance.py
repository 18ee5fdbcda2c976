from __future__ import annotations

import msgspec
import pytest

from edgebench.analysis.disturbance import disturbance
from edgebench.records import Block, Edge

ZERO = Edge(
    t_ns=0,
    own_cpu_s=0.0,
    run_delay_s=0.0,
    busy_s=0.0,
    steal_s=0.0,
    cpu_pressure_s=0.0,
    major_faults=0,
    swapped_in_pages=0,
)


def block(seconds: float = 0.5, own: float = 1.0, other: float = 0.0, **end: float | None) -> Block:
    """A block of two busy threads on two CPUs; ``other`` is CPU time that others used."""
    last = msgspec.structs.replace(ZERO, t_ns=round(seconds * 1e9), own_cpu_s=own, **{"busy_s": own + other, **end})
    return Block(
        workload="tg128", index=0, tokens=128, start=ZERO, end=last, t0_ns=0, t1_ns=last.t_ns, step_ns=(1,) * 128
    )


def test_a_quiet_block_is_clean() -> None:
    found = disturbance(block(other=0.0025, run_delay_s=0.004, cpu_pressure_s=0.003), threads=2, logical_cpus=2)
    assert (found.disturbed, found.says) == (False, "")
    assert found.other_cpu == pytest.approx(0.005)


def test_ticks_of_the_kernel_are_no_competitor() -> None:
    # busy is counted in steps of 10 ms per CPU: two steps on each of two CPUs may be rounding.
    assert not disturbance(block(other=0.04), threads=2, logical_cpus=2).disturbed


def test_a_competitor_on_our_core_for_part_of_the_block_is_seen() -> None:
    found = disturbance(block(own=0.9, other=0.1), threads=2, logical_cpus=2)
    assert found.disturbed
    assert found.other_cpu == pytest.approx(0.2)
    assert found.says == "other processes used 20 % of a core"


def test_a_process_on_a_free_core_counts_because_it_shares_the_memory() -> None:
    found = disturbance(block(seconds=2, own=4.0, other=0.2), threads=2, logical_cpus=8)
    assert found.disturbed


def test_a_short_wait_of_one_thread_is_seen_though_ticks_are_too_coarse() -> None:
    found = disturbance(block(own=0.97, other=0.03, run_delay_s=0.03), threads=2, logical_cpus=2)
    assert "our threads waited 3.0 % of the time" in found.says


def test_threads_without_a_cpu_of_their_own_wait_for_each_other_and_not_for_others() -> None:
    found = disturbance(block(run_delay_s=1.0, cpu_pressure_s=0.5), threads=4, logical_cpus=2)
    assert not found.disturbed
    assert found.run_delay == pytest.approx(0.5)


def test_time_taken_by_the_hypervisor_is_seen() -> None:
    found = disturbance(block(own=0.9, steal_s=0.1), threads=2, logical_cpus=2)
    assert found.says == "the hypervisor took 10 % of our CPUs"
    assert not disturbance(block(steal_s=0.01), threads=2, logical_cpus=2).disturbed


def test_pressure_alone_is_seen_where_no_other_counter_exists() -> None:
    found = disturbance(
        block(busy_s=None, run_delay_s=None, steal_s=None, cpu_pressure_s=0.05), threads=2, logical_cpus=2
    )
    assert "tasks waited for a CPU during 10 %" in found.says
    assert (found.other_cpu, found.run_delay, found.steal) == (None, None, None)


def test_a_slow_block_without_evidence_is_clean() -> None:
    assert not disturbance(block(seconds=5, own=10.0), threads=2, logical_cpus=2).disturbed


def test_where_the_kernel_tells_nothing_nothing_is_claimed() -> None:
    silent = block(busy_s=None, run_delay_s=None, steal_s=None, cpu_pressure_s=None)
    found = disturbance(silent, threads=2, logical_cpus=2)
    assert (found.disturbed, found.other_cpu, found.pressure) == (False, None, None)
