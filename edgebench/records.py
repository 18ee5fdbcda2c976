"""What happened: immutable records with raw samples. Statistics are computed when a record is read, not stored instead.

A **run** is one *round* of a trial: one fresh process that loads the artifact, warms up and measures some blocks. The
rounds of a trial are its replications, so intervals come from runs.

Times are ``time.monotonic_ns()`` of the host on which the run was made; memory is in bytes; energy in joules.

SCHEMA history (newest first):
    1  2026-11  first version
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgebench import specs
from edgebench.specs import TrialSpec

SCHEMA = 1

Outcome = Literal["ok", "oom", "killed", "timeout", "failed"]
Origin = Literal["measured", "modelled", "declared", "imported"]
Scope = specs.Scope
FindingKind = Literal[
    "contention", "frequency_drift", "throttled", "swapped_in", "major_faults", "round_drift", "too_few_rounds",
    "wide_interval", "governor", "on_battery", "quantization_fallback", "missing_simd", "omp_environment",
    "too_many_threads", "context_forced", "sampler_lost", "wrong_engine_version",
    "captured_tree", "slowdown", "short_window", "gap", "baseline_unstable", "frozen_counter", "sources_disagree",
    "net_not_resolvable", "hot_start", "throttled_before", "meter_failed",
]  # fmt: skip
Severity = Literal["note", "suspect", "invalid"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything that happened."""


# --- doubts and failures ----------------------------------------------------------------------------------------------


class Finding(Record, frozen=True, kw_only=True):
    """A doubt as data. ``note``: worth knowing; ``suspect``: the number may be off; ``invalid``: do not use it."""

    kind: FindingKind
    severity: Severity
    says: str
    """One sentence with the evidence in it."""
    remedy: str
    evidence: dict[str, float | int | str] = {}


class Failure(Record, frozen=True, kw_only=True):
    """Why a run has no result: one sentence, the phase it died in, and the next step."""

    kind: str
    """``python-error``, ``native-abort``, ``illegal-instruction``, ``alloc-failed``, ``oom-killed``, ``sigkill``,
    ``timeout``, ``bad-artifact``, ``protocol``"""
    says: str
    next_step: str
    phase: str
    signal: int | None = None
    log_tail: str = ""


class Fact(Record, frozen=True, kw_only=True):
    """A value, or the reason why it is unknown: exactly one of the two."""

    value: str | int | float | None = None
    unknown_because: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) == (not self.unknown_because):
            raise ValueError("a Fact has either a value or a reason why it is unknown")


# --- samples ----------------------------------------------------------------------------------------------------------


class Channel(Record, frozen=True, kw_only=True):
    """One quantity a sensor reads. A gauge is a level (W, C, Hz, bytes), a counter only grows (J, s, events)."""

    name: str
    """``<sensor>.<what>``, e.g. ``thermal.x86_pkg_temp``"""
    unit: str
    kind: Literal["gauge", "counter"]
    origin: Origin = "measured"
    scope: Scope | None = None
    """Only for power and energy."""
    part_of: str = ""
    """Power and energy: the channel, or the rails, that count this one already; it is never added to a sum."""
    wrap: float | None = None
    """Counters: the value, in the channel's unit, at which it starts from 0 again; None: never, or not known."""
    update_s: float | None = None
    """How often the hardware renews the value, where that is documented; reading faster tells nothing new."""


class Series(Record, frozen=True, kw_only=True):
    """The readings of one channel: ``values[i]`` was read at ``t_ns[i]``; None where a reading failed."""

    channel: Channel
    t_ns: tuple[int, ...]
    values: tuple[float | None, ...]
    missing_because: str = ""
    """What the source said about the last reading that failed, where it says anything."""


class Mark(Record, frozen=True, kw_only=True):
    """A phase edge, stamped by the process that crossed it."""

    name: str
    t_ns: int


class Edge(Record, frozen=True, kw_only=True):
    """Cumulative counters read at the edge of a block, outside the timed part.

    The difference of two edges tells who else used the machine meanwhile. None where the kernel does not tell.
    """

    t_ns: int
    own_cpu_s: float
    """CPU time of the measuring process, all threads."""
    run_delay_s: float | None
    """Time its threads were runnable and waited for a core (``schedstat``)."""
    busy_s: float | None
    """CPU time used by everybody, summed over the logical CPUs."""
    steal_s: float | None
    """CPU time the hypervisor gave to other guests."""
    cpu_pressure_s: float | None
    """Pressure stall information, ``cpu some``."""
    major_faults: int
    swapped_in_pages: int | None


class Block(Record, frozen=True, kw_only=True):
    """One timed repetition of a workload.

    ``step_ns``: durations of the calls inside: one per token for decode, one per batch for prefill.
    """

    workload: str
    index: int
    tokens: int
    start: Edge
    end: Edge
    t0_ns: int
    t1_ns: int
    step_ns: tuple[int, ...]
    ttft_ns: int | None = None
    """Prefill only: prompt submitted until the first token is chosen greedily."""
    threads: int | None = None
    """Only in a thread search, where it differs from block to block."""

    @property
    def seconds(self) -> float:
        """Wall time of the timed part."""
        return (self.t1_ns - self.t0_ns) / 1e9

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the timed part, tokens/s."""
        return self.tokens / self.seconds


# --- memory and energy ------------------------------------------------------------------------------------------------


class EngineMemory(Record, frozen=True, kw_only=True):
    """The engine's account, in bytes; ``weights`` by buffer type (``CPU_Mapped``, ``CPU_REPACK``, ``prepacked``...).

    llama.cpp tells its buffers. onnxruntime tells Python nothing, so there it is measured from outside: ``prepacked``
    is the growth of anonymous memory while loading.
    """

    weights: dict[str, int]
    kv: int
    compute: int
    """Scratch memory. Of onnxruntime: anonymous memory at the end of the largest context, less what there was after
    loading and less ``kv``: its arena, the logits, and whatever else the process took meanwhile. Without an arena it is
    what the C library keeps of the memory that each call gave back to it."""
    output: int
    kv_growing: bool = False
    """Whether each step makes a new KV cache; ``kv`` then counts the old one and the new one, at full length."""

    @property
    def total(self) -> int:
        """Bytes of weights, KV cache, compute and output buffers."""
        return sum(self.weights.values()) + self.kv + self.compute + self.output


class MemoryPhase(Record, frozen=True, kw_only=True):
    """Memory of the measuring process in one phase, in bytes; None where the kernel does not tell."""

    phase: str
    rss_peak: int | None
    """VmHWM after a reset at the start of the phase."""
    anon: int | None
    """RssAnon at the end of the phase: cannot be dropped by the kernel."""
    file: int | None
    """RssFile at the end of the phase: mapped file pages, reclaimable."""
    swap: int | None
    pss: int | None = None
    """Proportional set size at the end of the phase."""


class MemoryUse(Record, frozen=True, kw_only=True):
    """Where the RAM went. Peaks over the whole run come from the sampler (10 Hz)."""

    phases: tuple[MemoryPhase, ...] = ()
    engine: EngineMemory | None = None
    anon_peak: int | None = None
    file_peak: int | None = None
    swap_peak: int | None = None
    system_used_peak: int | None = None
    """Largest fall of MemAvailable below its value at the start of the run."""
    cgroup_peak: int | None = None
    cgroup_note: str = ""


class WindowEnergy(Record, frozen=True, kw_only=True):
    """Energy of one window: the timed blocks of a workload from the first to the last, a load, or an idle phase."""

    name: str
    """A workload's name, ``load``, ``idle`` or ``idle_loaded``."""
    seconds: float
    gross_j: float
    uncertainty_j: float
    """Expanded (k = 2), without the spread between rounds."""
    mean_w: float
    peak_w: float
    """The largest that the source showed; it averages or misses shorter spikes."""
    n_updates: int
    tokens: int = 0
    blocks: int = 0
    net_j: float | None = None
    """Above the idle machine without the model. None: no baseline was measured."""
    net_uncertainty_j: float | None = None
    flags: tuple[str, ...] = ()
    """Kinds of findings about it, and ``pauses``: over 2 % of it lie between the blocks."""


class TokenEnergy(Record, frozen=True, kw_only=True):
    """Energy of a token, as told by one window or as the slope over several lengths."""

    j: float
    uncertainty_j: float
    wh_per_1000: float
    tokens_per_j: float
    how: str
    """``per block``, or ``slope over tg32, tg128``"""
    net_j: float | None = None
    net_uncertainty_j: float | None = None


class Energy(Record, frozen=True, kw_only=True):
    """Joules of a run. ``energy_j`` is measured or None with a reason; an estimate never lands in it."""

    energy_j: float | None
    """Of the windows of all workloads together; loading and idling are windows of their own."""
    reason: str = ""
    absent: tuple[str, ...] = ()
    """Where nothing measures energy: of each sensor that was looked for, why it is not here."""
    source: str = ""
    scope: Scope | None = None
    net_j: float | None = None
    uncertainty_j: float | None = None
    """Expanded (k = 2). Of a trial: with the spread of its rounds."""
    j_per_token: dict[str, float] = {}
    """By workload name."""
    estimate_low_j: float | None = None
    estimate_high_j: float | None = None
    estimate_model: str = ""
    method: Literal["", "counter", "gauge"] = ""
    channels: tuple[str, ...] = ()
    """Those whose sum it is."""
    update_hz: float | None = None
    """How often the source told something new."""
    n_updates: int = 0
    net_uncertainty_j: float | None = None
    mean_w: float | None = None
    peak_w: float | None = None
    idle_w: float | None = None
    """Mean of before and after, without the model."""
    idle_loaded_w: float | None = None
    windows: tuple[WindowEnergy, ...] = ()
    tokens: dict[str, TokenEnergy] = {}
    """By workload name, and ``prefill`` and ``decode`` where several lengths give a slope."""
    others_j: dict[str, float] = {}
    """What other sources said about the same windows, by source and scope: to compare, never to add."""
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.energy_j is None) == (not self.reason):
            raise ValueError("Energy has either joules or a reason why there are none")


class Cooldown(Record, frozen=True, kw_only=True):
    """The wait before a run, until the machine was as cool as when the session began."""

    waited_s: float
    target_c: float | None = None
    """None where a fixed time was asked for, or no temperature is known."""
    reached_c: float | None = None


# --- provenance -------------------------------------------------------------------------------------------------------


class Provenance(Record, frozen=True, kw_only=True):
    """Where, when and with what a run was made. ``unknown`` needs a reason (see `Fact`)."""

    utc: str
    edgebench: str
    runtime_version: Fact
    runtime_build: Fact
    """Build and SIMD flags as the engine reports them."""
    python: str
    kernel: Fact
    machine: str
    cpu_model: Fact
    cpu_flags: tuple[str, ...]
    logical_cpus: int
    physical_cores: Fact
    governor: Fact
    memory_bytes: Fact
    memory_limit_bytes: Fact
    """cgroup limit, if one is set."""
    virtualization: Fact
    container: Fact
    device_profile: str
    device: str = ""
    """The device in words: its profile's title, cores and memory."""
    captured: bool = False
    """Whether a captured tree stood in for the machine: nothing in the run is of that hardware."""
    command: tuple[str, ...]
    environment: dict[str, str] = {}
    """Only variables that change speed: OMP_*, GOMP_*, KMP_*, GGML_*, ORT_*."""


# --- runs -------------------------------------------------------------------------------------------------------------


class Loaded(Record, frozen=True, kw_only=True):
    """What the runtime said about the artifact once it was loaded."""

    load_s: float
    parameters: int
    weight_bytes: int
    """Bytes of all tensors; ``8 * weight_bytes / parameters`` is the real bits per weight."""
    context_trained: int
    vocabulary: int
    architecture: str
    description: str
    settings: tuple[str, ...] = ()
    """Names of the trial's settings that this runtime obeyed; the others say nothing about the run. Empty: not told."""
    placement: str = ""
    """On another device than the CPU: how much of the model really ran there, e.g. ``332 of 334 nodes on CUDA``."""

    @property
    def bits_per_weight(self) -> float:
        """Real bits per weight, from the tensors in the file."""
        return 8 * self.weight_bytes / self.parameters


class Run(Record, frozen=True, kw_only=True):
    """One round of one trial: immutable, with raw samples."""

    schema: int = SCHEMA
    run_id: str
    session_id: str
    trial: TrialSpec
    round: int
    purpose: Literal["measure", "thread-search"] = "measure"
    outcome: Outcome
    failure: Failure | None = None
    started_ns: int
    ended_ns: int
    loaded: Loaded | None = None
    blocks: tuple[Block, ...] = ()
    marks: tuple[Mark, ...] = ()
    series: tuple[Series, ...] = ()
    greedy: tuple[int, ...] = ()
    """Tokens chosen greedily after a fixed prompt: evidence that the artifact computes something."""
    memory: MemoryUse = MemoryUse()
    energy: Energy
    findings: tuple[Finding, ...] = ()
    provenance: Provenance
    sampler_cost_s: float | None = None
    """CPU seconds the sampler process used during the run."""
    cooldown: Cooldown | None = None
