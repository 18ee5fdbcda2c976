from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgebench.analysis.findings import merge_findings, run_findings, trial_findings
from edgebench.records import (
    Block,
    Channel,
    Edge,
    Energy,
    Fact,
    Finding,
    Loaded,
    Provenance,
    Run,
    Series,
)
from edgebench.specs import Artifact, Protocol, Settings, TrialSpec, parse_workload

S = 1_000_000_000
BUILD = "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1 | OPENMP = 1 | REPACK = 1"
PROVENANCE = Provenance(
    utc="2026-11-02T10:00:00Z",
    edgebench="0.1",
    runtime_version=Fact(value="1"),
    runtime_build=Fact(value=BUILD),
    python="3.11",
    kernel=Fact(value="6.6"),
    machine="x86_64",
    cpu_model=Fact(value="a CPU"),
    cpu_flags=("ssse3", "avx", "avx2"),
    logical_cpus=4,
    physical_cores=Fact(value=2),
    governor=Fact(value="performance"),
    memory_bytes=Fact(value=2**31),
    memory_limit_bytes=Fact(unknown_because="no limit is set"),
    virtualization=Fact(value="none"),
    container=Fact(value="none"),
    device_profile="generic",
    command=("edgebench", "profile"),
)
TRIAL = TrialSpec(
    artifact=Artifact(model="m", precision="q4_0", format="gguf", path="m.gguf", bytes=1, sha256="00"),
    runtime="llamacpp",
    settings=Settings(threads=2, threads_batch=2),
    workloads=(parse_workload("pp512"), parse_workload("tg128")),
)


def edge(second: float, **changes: float | None) -> Edge:
    values: dict[str, Any] = {
        "own_cpu_s": 2 * second,
        "run_delay_s": 0.0,
        "busy_s": 2 * second,
        "steal_s": 0.0,
        "cpu_pressure_s": 0.0,
        "major_faults": 0,
        "swapped_in_pages": 0,
    }
    return Edge(t_ns=round(second * S), **{**values, **changes})


def block(second: float, workload: str = "tg128", index: int = 0, **end: float | None) -> Block:
    """One second of a workload, starting at ``second``."""
    return Block(
        workload=workload,
        index=index,
        tokens=128,
        start=edge(second),
        end=edge(second + 1, **end),
        t0_ns=round(second * S),
        t1_ns=round((second + 1) * S),
        step_ns=(S // 128,) * 128,
    )


def series(name: str, values: list[float | None], kind: str = "gauge", every_s: float = 1.0) -> Series:
    channel = Channel(name=name, unit="1", kind="counter" if kind == "counter" else "gauge")
    return Series(
        channel=channel, t_ns=tuple(round((i + 0.5) * every_s * S) for i in range(len(values))), values=tuple(values)
    )


def run(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "run_id": "r",
        "session_id": "s",
        "trial": TRIAL,
        "round": 0,
        "outcome": "ok",
        "started_ns": 0,
        "ended_ns": 4 * S,
        "blocks": (block(0), block(1, index=1), block(2, index=2)),
        "energy": Energy(energy_j=None, reason="no sensor"),
        "provenance": PROVENANCE,
    }
    return Run(**{"sampler_cost_s": 0.01, **values, **changes})


def with_provenance(**changes: Any) -> Run:
    return run(provenance=msgspec.structs.replace(PROVENANCE, **changes))


def with_settings(**changes: Any) -> Run:
    return run(trial=msgspec.structs.replace(TRIAL, settings=msgspec.structs.replace(TRIAL.settings, **changes)))


def loaded(context_trained: int) -> Loaded:
    return Loaded(
        load_s=1.0,
        parameters=1,
        weight_bytes=1,
        context_trained=context_trained,
        vocabulary=1,
        architecture="llama",
        description="",
    )


def with_notes(*notes: str) -> Run:
    return run(
        trial=msgspec.structs.replace(TRIAL, artifact=msgspec.structs.replace(TRIAL.artifact, quantizer_notes=notes))
    )


def environment(**variables: str) -> Run:
    return with_provenance(environment=variables)


FIRES = {
    "a competitor": (run(blocks=(block(0, busy_s=3.0),)), "contention", "suspect"),
    "a competitor of one block": (run(blocks=(block(0), block(1, index=1, busy_s=5.0))), "contention", "note"),
    "a falling clock": (run(series=(series("cpufreq.policy0", [3e9, 3e9, 2e9]),)), "frequency_drift", "suspect"),
    "Intel's counter": (
        run(series=(series("throttle.core_events", [5, 5, 7], "counter"),)),
        "throttled",
        "suspect",
    ),
    "the Pi's flags now": (run(series=(series("throttle.pi_bits", [0, 0x50005, 0]),)), "throttled", "suspect"),
    "a flag that becomes sticky": (run(series=(series("throttle.pi_bits", [0, 0, 0x40000]),)), "throttled", "suspect"),
    "a cooling device": (run(series=(series("throttle.cooling.Processor.0", [0, 3, 0]),)), "throttled", "suspect"),
    "flags since boot": (run(series=(series("throttle.pi_bits", [0x50000] * 3),)), "throttled_before", "note"),
    "pages from swap": (run(blocks=(block(0, swapped_in_pages=9),)), "swapped_in", "suspect"),
    "faults in decode": (run(blocks=(block(0, major_faults=3),)), "major_faults", "suspect"),
    "no sampler at all": (run(sampler_cost_s=None), "sampler_lost", "suspect"),
    "a lost sampler": (run(series=(series("contention.busy", [1.0] * 5, "counter", 0.1),)), "sampler_lost", "suspect"),
    "powersave": (with_provenance(governor=Fact(value="powersave")), "governor", "note"),
    "one policy of two": (with_provenance(governor=Fact(value="performance, schedutil")), "governor", "note"),
    "a battery": (run(series=(series("battery.discharging", [1, 1, 1]),)), "on_battery", "note"),
    "a pulled plug": (run(series=(series("battery.discharging", [0, 1, 1]),)), "on_battery", "suspect"),
    "a fallback": (with_notes("12 tensors are q5_0"), "quantization_fallback", "note"),
    "passive waiting": (environment(OMP_WAIT_POLICY="PASSIVE"), "omp_environment", "suspect"),
    "no spinning": (environment(GOMP_SPINCOUNT="0"), "omp_environment", "suspect"),
    "all threads on one core": (environment(OMP_PROC_BIND="master"), "omp_environment", "suspect"),
    "a limit of threads": (environment(OMP_THREAD_LIMIT="1"), "omp_environment", "suspect"),
    "another count of threads": (environment(OMP_NUM_THREADS="1"), "omp_environment", "note"),
    "more threads than CPUs": (with_settings(threads=8), "too_many_threads", "suspect"),
    "threads on siblings": (with_settings(threads=4), "too_many_threads", "note"),
    "more threads than pinned CPUs": (with_settings(cpus=(0,)), "too_many_threads", "suspect"),
    "a short trained context": (run(loaded=loaded(256)), "context_forced", "note"),
    "a build without AVX2": (
        with_provenance(runtime_build=Fact(value=BUILD.replace("AVX2 = 1 | ", ""))),
        "missing_simd",
        "suspect",
    ),
}
QUIET = {
    "nothing": run(),
    "a steady clock": run(series=(series("cpufreq.policy0", [3e9, 2.9e9, 2.8e9]),)),
    "an idle cluster": run(
        series=(series("cpufreq.policy0", [3e9, 3e9, 3e9]), series("cpufreq.policy4", [2e9, 1e9, 6e8]))
    ),
    "unreadable clocks": run(series=(series("cpufreq.policy0", [None, None, None]),)),
    "counters that stand still": run(series=(series("throttle.core_events", [5, 5, 5], "counter"),)),
    "a limit that was always set": run(series=(series("throttle.cooling.TCC_Offset.1", [3, 3, 3]),)),
    "a cooling device of the radio": run(series=(series("throttle.cooling.iwlwifi.1", [0, 3, 3]),)),
    "faults in prefill": run(blocks=(block(0, "pp512", major_faults=3),)),
    "an unknown swap counter": run(blocks=(block(0, swapped_in_pages=None),)),
    "an unknown governor": with_provenance(governor=Fact(unknown_because="no frequency driver")),
    "mains": run(series=(series("battery.discharging", [0, 0, None]),)),
    "active waiting": environment(OMP_WAIT_POLICY="active", OMP_NUM_THREADS="2", OMP_PROC_BIND="close"),
    "no OpenMP": with_provenance(
        environment={"OMP_WAIT_POLICY": "passive"}, runtime_build=Fact(value="ORT 1.20, Eigen pool")
    ),
    "unknown cores": run(
        provenance=msgspec.structs.replace(PROVENANCE, physical_cores=Fact(unknown_because="no topology"))
    ),
    "enough context": run(loaded=loaded(512)),
}


@pytest.mark.parametrize("name", FIRES)
def test_a_run_with_a_fault_says_so(name: str) -> None:
    doubtful, kind, severity = FIRES[name]
    (finding,) = [finding for finding in run_findings(doubtful) if finding.kind == kind]
    assert finding.severity == severity
    assert finding.evidence
    assert finding.says.endswith(".")
    assert finding.remedy.endswith(".")


@pytest.mark.parametrize("name", FIRES)
def test_one_fault_is_said_once_and_nothing_else(name: str) -> None:
    doubtful, kind, _ = FIRES[name]
    assert [finding.kind for finding in run_findings(doubtful)] == [kind]


@pytest.mark.parametrize("name", QUIET)
def test_a_run_without_that_fault_is_silent(name: str) -> None:
    assert run_findings(QUIET[name]) == ()


def test_under_voltage_asks_for_another_power_supply() -> None:
    (finding,) = run_findings(run(series=(series("throttle.pi_bits", [0, 0x1, 0]),)))
    assert "under-voltage" in finding.says
    assert "power supply" in finding.remedy


# --- the rounds of a trial --------------------------------------------------------------------------------------------


def rates(*values: float, name: str = "tg128") -> dict[str, list[list[float]]]:
    return {name: [[value, value, value] for value in values]}


STEADY = (250.0, 250.4, 249.8, 250.2, 250.1, 249.9, 250.3)


def test_steady_rounds_give_no_doubt() -> None:
    assert trial_findings(rates(*STEADY), Protocol()) == ()


@pytest.mark.parametrize(("n", "severity"), [(1, "suspect"), (2, "suspect"), (3, "note"), (5, "note")])
def test_fewer_rounds_than_asked_for_are_said(n: int, severity: str) -> None:
    found = [finding for finding in trial_findings(rates(*STEADY[:n]), Protocol()) if finding.kind == "too_few_rounds"]
    assert [(finding.severity, finding.evidence["rounds"]) for finding in found] == [(severity, n)]


def test_an_interval_wider_than_the_target_is_said_with_its_width() -> None:
    (finding,) = trial_findings(rates(250, 260, 240, 255, 245, 250, 258, 243), Protocol())
    assert (finding.kind, finding.severity) == ("wide_interval", "note")
    assert "the interval of tg128 is ±" in finding.says.lower()


def test_blocks_that_differ_inside_each_round_are_said_although_the_rounds_agree() -> None:
    restless = {"tg128": [[value, 0.8 * value, 0.99 * value] for value in STEADY]}
    (finding,) = trial_findings(restless, Protocol())
    assert (finding.kind, finding.severity) == ("wide_interval", "suspect")
    assert "blocks of one tg128 round differ by 20 %" in finding.says.lower()


def test_a_steady_fall_over_the_rounds_is_said() -> None:
    kinds = {finding.kind for finding in trial_findings(rates(*(250 - i for i in range(10))), Protocol())}
    assert "round_drift" in kinds


def test_a_significant_but_tiny_drift_is_not_worth_a_word() -> None:
    assert trial_findings(rates(*(250 - 0.1 * i for i in range(10))), Protocol()) == ()


# --- joining ----------------------------------------------------------------------------------------------------------


def a_finding(kind: Any, severity: Any, says: str = "It is so.") -> Finding:
    return Finding(kind=kind, severity=severity, says=says, remedy="Do that.", evidence={"x": 1})


def test_findings_of_several_rounds_become_one_that_counts_them() -> None:
    merged = merge_findings(
        [[a_finding("throttled", "note")], [a_finding("throttled", "suspect", "It is hot.")], [], [], [], []]
    )
    assert [(f.kind, f.severity, f.says) for f in merged] == [("throttled", "suspect", "It is hot (in 2 of 6 rounds).")]
    assert (merged[0].evidence["in_rounds"], merged[0].evidence["of_rounds"]) == (2, 6)


def test_what_holds_in_every_round_is_said_without_a_count() -> None:
    assert merge_findings([[a_finding("governor", "note")]] * 3)[0].says == "It is so."


def test_the_gravest_finding_comes_first() -> None:
    merged = merge_findings([[a_finding("governor", "note"), a_finding("throttled", "invalid")]])
    assert [finding.kind for finding in merged] == ["throttled", "governor"]
