"""What held a processor back: told while blocks were timed, by the part that the model ran on, in honest words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from edgebench.analysis.throttling import slowed_by, throttle_findings
from edgebench.records import Block, Channel, Edge, Energy, Fact, Finding, Provenance, Run, Series
from edgebench.sensors import nvml
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload
from edgebench.throttle_bits import NVML_REASONS, NVML_SLOWED

SECOND = 10**9
TRIAL = TrialSpec(
    artifact=Artifact(model="m", precision="q4_0", format="fake", path="", bytes=1, sha256="00"),
    runtime="fake",
    settings=Settings(threads=2, threads_batch=2),
    workloads=(parse_workload("tg100"),),
)
PROVENANCE = Provenance(
    utc="2026-11-02T10:00:00Z", edgebench="0.1", runtime_version=Fact(value="1"), runtime_build=Fact(value="fake"),
    python="3.11", kernel=Fact(value="6.6"), machine="aarch64", cpu_model=Fact(value="a CPU"), cpu_flags=(),
    logical_cpus=4, physical_cores=Fact(value=4), governor=Fact(value="performance"), memory_bytes=Fact(value=2**31),
    memory_limit_bytes=Fact(unknown_because="no limit is set"), virtualization=Fact(value="none"),
    container=Fact(value="none"), device_profile="generic", command=("edgebench",),
)  # fmt: skip


def edge(t_s: float) -> Edge:
    return Edge(
        t_ns=round(t_s * SECOND), own_cpu_s=0.0, run_delay_s=None, busy_s=None, steal_s=None, cpu_pressure_s=None,
        major_faults=0, swapped_in_pages=None,
    )  # fmt: skip


def block(start_s: float, end_s: float) -> Block:
    t0, t1 = round(start_s * SECOND), round(end_s * SECOND)
    return Block(
        workload="tg100", index=round(start_s), tokens=100, start=edge(start_s), end=edge(end_s), t0_ns=t0, t1_ns=t1,
        step_ns=(t1 - t0,),
    )  # fmt: skip


def series(name: str, level: Callable[[float], float | None], *, kind: Any = "gauge", unit: str = "1") -> Series:
    """Once a second from 0.5 to 29.5 s; blocks are timed from 10 to 20 s."""
    moments = [i + 0.5 for i in range(30)]
    return Series(
        channel=Channel(name=name, unit=unit, kind=kind),
        t_ns=tuple(round(t * SECOND) for t in moments),
        values=tuple(level(t) for t in moments),
    )


def during(value: float, other: float = 0.0, since: float = 10, until: float = 20) -> Callable[[float], float]:
    return lambda t: value if since <= t < until else other


def judged(*readings: Series, device: str = "cpu", blocks: Sequence[Block] = (block(10, 15), block(15, 20))):
    trial = replace(TRIAL, settings=replace(TRIAL.settings, device=device))
    made = Run(
        run_id="r", session_id="s", trial=trial, round=0, outcome="ok", started_ns=0, ended_ns=30 * SECOND,
        blocks=tuple(blocks), series=readings, energy=Energy(energy_j=None, reason="later"), provenance=PROVENANCE,
    )  # fmt: skip
    return {finding.kind: finding for finding in throttle_findings(made)}


def reasons(level: Callable[[float], float], gpu: int = 0) -> Series:
    return series(f"nvml.gpu{gpu}.clocks_event_reasons", level)


# --- when -------------------------------------------------------------------------------------------------------------

SOURCES: dict[str, tuple[str, float, str]] = {
    "the Pi's flags": ("throttle.pi_bits", 0x4, "cpu"),
    "a cooling device": ("throttle.cooling.Processor.0", 2, "cpu"),
    "a governor's cooling device": ("throttle.cooling.cpufreq-cpu0.0", 2, "cpu"),
    "a GPU": ("nvml.gpu0.clocks_event_reasons", 1 << 6, "cuda"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_only_what_happens_while_blocks_are_timed_counts(name: str):
    channel, level, device = SOURCES[name]
    assert "throttled" in judged(series(channel, during(level)), device=device)
    for edges in ({"until": 10}, {"since": 20, "until": 30}):
        when: dict[str, float] = {"since": 1, **edges}
        assert judged(series(channel, during(level, **when)), device=device) == {}
    assert judged(series(channel, during(level)), device=device, blocks=()) == {}


def test_counters_count_what_grew_between_the_first_and_the_last_block():
    def grows(since: float, until: float) -> Series:
        level = lambda t: 7 + max(0.0, min(t, until) - since)  # noqa: E731 - a curve
        return series("throttle.package_time", level, kind="counter", unit="s")

    assert judged(grows(0.5, 8)) == judged(grows(22, 29)) == {}
    assert "package_time +3.50 s" in judged(grows(16, 19.5))["throttled"].says


def test_missing_readings_claim_nothing():
    assert judged(series("throttle.pi_bits", lambda _t: None), reasons(lambda _t: 0), device="cuda") == {}


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


def test_a_power_limit_alone_is_told_with_its_share_and_is_no_fault():
    finding = judged(reasons(lambda t: 4 if 10 <= t < 19 else 0), device="cuda")["throttled"]
    assert finding.severity == "note"
    assert "gpu0: power limit in 90 % of the readings" in finding.says
    assert "normal" in finding.remedy
    assert finding.evidence == {"nvml.gpu0.clocks_event_reasons": "gpu0: power limit in 90 % of the readings"}


@pytest.mark.parametrize("bit", [bit for bit in NVML_SLOWED if bit != 2])
def test_any_other_brake_of_a_gpu_makes_its_figures_suspect(bit: int):
    finding = judged(reasons(lambda t: 4 | (1 << bit if t > 18 else 0)), device="tensorrt")["throttled"]
    assert finding.severity == "suspect"
    assert f"{NVML_REASONS[bit]} in 20 % of the readings" in finding.says
    assert "power limit in 100 %" in finding.says
    assert finding.says.startswith("The GPU was")


@pytest.mark.parametrize("bit", [0, 1, 4, 8])
def test_reasons_that_slow_nothing_down_are_passed_over(bit: int):
    assert judged(reasons(lambda _t: 1 << bit), device="cuda") == {}


def test_a_hot_gpu_says_nothing_about_a_run_on_the_cpu():
    hot = (reasons(lambda _t: 1 << 6), series("throttle.cooling.gpu-throttle-alert.1", during(1)))
    assert judged(*hot) == {}
    assert judged(*hot, device="cuda")["throttled"].severity == "suspect"


def test_of_several_gpus_the_one_that_holds_the_model_is_judged():
    other = (reasons(lambda _t: 0), reasons(lambda _t: 1 << 6, gpu=1))
    assert "gpu1" in judged(*other, device="cuda")["throttled"].says
    assert judged(*other, series("nvml.gpu0.memory_process", lambda _t: 1e9), device="cuda") == {}


def test_the_channel_is_the_one_that_the_sensor_makes():
    class Answers:
        def count(self) -> int:
            return 1

        def ask(self, _gpu: int, question: str, _pid: int | None = None) -> float | None:
            return {"energy_mj": 1e6, "reasons": 64.0}.get(question)

    sensor = nvml.from_answers(Answers())
    assert sensor is not None
    [channel] = [one for one in sensor.channels() if one.name.endswith("reasons")]
    told = Series(channel=channel, t_ns=(SECOND,), values=(64.0,))
    assert [one.says for one in slowed_by([told], 0, 2 * SECOND, device="cuda")] == [
        "gpu0: hardware temperature limit in 100 % of the readings"
    ]


def test_both_processors_are_named():
    finding = judged(
        reasons(lambda _t: 1 << 5), series("throttle.cooling.cpu-throttle-alert.0", during(1)), device="cuda"
    )["throttled"]
    assert finding.says.startswith("The processor and GPU were")


# --- boards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "level", "says"),
    [
        ("cpu-throttle-alert.3", during(1), "cpu-throttle-alert.3 from state 0 to 1"),
        ("hot-surface-alert.5", during(1), "hot-surface-alert.5 from state 0 to 1"),
        ("cpufreq-cpu0.0", lambda _t: 2, "cpufreq-cpu0.0 in state 2"),
        ("soc0-throttle-alert.4", lambda _t: 1, "soc0-throttle-alert.4 in state 1"),
        ("cv0-throttle-alert.6", during(1), None),
        ("devfreq-17000000.gpu.2", during(1), None),
        ("TCC_Offset.1", lambda _t: 3, None),
        ("iwlwifi.1", during(3), None),
        ("Processor.0", lambda _t: 3, None),
    ],
)
def test_cooling_devices_count_where_they_hold_back_what_is_measured(
    kind: str, level: Callable[[float], float], says: str | None
):
    found = judged(series(f"throttle.cooling.{kind}", level)).get("throttled")
    assert (found is None) == (says is None)
    assert found is None or says in found.says


# --- the Raspberry Pi -------------------------------------------------------------------------------------------------


def before_of(*readings: Series) -> Finding:
    return judged(*readings)["throttled_before"]


def test_flags_since_boot_are_a_note_of_their_own():
    finding = before_of(series("throttle.pi_bits", lambda _t: 0x50000))
    assert finding.severity == "note"
    assert finding.says == "The firmware says under-voltage and throttled since boot, but not while blocks were timed."
    assert "power supply" in finding.remedy
    assert "cooling" in before_of(series("throttle.pi_bits", lambda _t: 0x80000)).remedy


def test_a_flag_that_was_set_while_loading_is_a_flag_of_before():
    loading = series("throttle.pi_bits", lambda t: 0 if t < 3 else 0x4000F if t < 8 else 0x40000)
    assert [*judged(loading)] == ["throttled_before"]


def test_a_flag_that_returns_is_no_flag_of_before():
    returned = judged(series("throttle.pi_bits", during(0x50004, 0x50000)))
    assert "(throttled)" in returned["throttled"].says
    assert returned["throttled_before"].says.startswith("The firmware says under-voltage since boot")


def test_a_flag_that_became_sticky_between_two_readings_was_set_meanwhile():
    found = judged(series("throttle.pi_bits", lambda t: 0x10000 if t > 19 else 0))
    assert [*found] == ["throttled"]
    assert "under-voltage" in found["throttled"].says
    assert "power supply" in found["throttled"].remedy
