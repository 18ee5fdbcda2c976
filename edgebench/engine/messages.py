"""What parent and child say to each other: one JSON document a line, nothing else crosses the pipe.

The child announces each timed block with `Ready` and waits for a line ``go``; whatever the parent has to do (draw
progress, write) happens before that line, so that nothing of ours runs beside a timed block.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgebench.records import Block, EngineMemory, Fact, Loaded, MemoryPhase
from edgebench.specs import Calibration, EnergyBlocks, TrialSpec


class Message(msgspec.Struct, frozen=True, tag_field="say"):
    """Base of all messages."""


# --- parent to child: the job is the first line, then one ``go`` for each `Ready`


class MeasureJob(Message, frozen=True, kw_only=True, tag="measure"):
    """One round of a trial."""

    trial: TrialSpec
    round: int
    budget_s: float
    """After this much time in blocks each workload stops at its first block."""
    prompt: tuple[int, ...] = ()
    sustained: bool = True
    """Whether to do the sustained workloads too: they last long, and once is enough."""
    energy: EnergyBlocks | None = None
    """Fill a window with each workload instead, whatever the budget, between idle phases."""


class ThreadSearchJob(Message, frozen=True, kw_only=True, tag="thread-search"):
    """Time short workloads at several thread counts in one process, in ABBA order."""

    trial: TrialSpec
    counts: tuple[int, ...]
    repeats: int = 2


class QuantizeJob(Message, frozen=True, kw_only=True, tag="quantize"):
    """Make a GGUF of another precision."""

    source: str
    target: str
    precision: str
    threads: int
    calibration: Calibration | None = None
    """Round by the importance of the weights on this text."""


class ExportJob(Message, frozen=True, kw_only=True, tag="export"):
    """Make an artifact of another format from a checkpoint: a GGUF file or a Hugging Face folder."""

    source: str
    target: str
    """An empty folder for ``onnx``, a file for ``gguf``."""
    to: Literal["onnx", "gguf"]
    """``gguf``: from a Hugging Face folder only."""
    precision: str
    context: int | None = None
    accuracy_level: int = 4
    halved: bool = False
    """Whether to turn the export into one that computes in half precision."""
    exporter: Literal["direct", "optimum"] = "direct"
    """``optimum``: the reference exporter, from a Hugging Face folder, fp32 only."""


class GenerateJob(Message, frozen=True, kw_only=True, tag="generate"):
    """Continue a prompt greedily."""

    trial: TrialSpec
    prompt: str
    system: str = ""
    chat: bool = False
    """Put the prompt into the model's chat template."""
    max_tokens: int = 128


class AboutJob(Message, frozen=True, kw_only=True, tag="about"):
    """Say which version and build a runtime is."""

    runtime: str


Job = MeasureJob | ThreadSearchJob | QuantizeJob | ExportJob | GenerateJob | AboutJob


# --- child to parent


class Phase(Message, frozen=True, kw_only=True, tag="phase"):
    """A phase begins: ``load``, a workload's name, ``end``."""

    name: str
    t_ns: int


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """A timed block is about to start; the child waits for ``go``."""

    workload: str
    index: int


class About(Message, frozen=True, kw_only=True, tag="about"):
    """Version and build of the runtime."""

    version: Fact
    build: Fact
    devices: tuple[str, ...] = ()
    """Compute devices that this build can use here."""


class Opened(Message, frozen=True, kw_only=True, tag="opened"):
    """The artifact is loaded."""

    loaded: Loaded


class Timed(Message, frozen=True, kw_only=True, tag="timed"):
    """A block is done."""

    block: Block


class Measured(Message, frozen=True, kw_only=True, tag="memory"):
    """Memory at the end of a phase."""

    phase: MemoryPhase


class Advance(Message, frozen=True, kw_only=True, tag="advance"):
    """How far a long step is."""

    done: int
    total: int
    unit: str = "tensors"


class Piece(Message, frozen=True, kw_only=True, tag="piece"):
    """Generated text, as it comes."""

    text: str


class Finished(Message, frozen=True, kw_only=True, tag="finished"):
    """All is done; the child exits with status 0."""

    engine_memory: EngineMemory | None = None
    greedy: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    generated: tuple[int, ...] = ()
    """Tokens that a generation chose."""
    prompt_tokens: int = 0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    """From the first token to the last."""


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The child met an error that Python could catch; it exits with status 1."""

    kind: Literal["python-error", "bad-artifact", "alloc-failed", "engine-error"]
    says: str
    next_step: str
    detail: str = ""


Reply = Phase | Ready | About | Opened | Timed | Measured | Advance | Piece | Finished | Failed
