"""What is declared before anything runs: models, devices, settings, workloads, trials.

Frozen msgspec structs without behaviour beyond their own names and identities. Unknown fields are refused, so that a
misspelt key in a card is an error and not a silent default.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

import msgspec

from edgebench.errors import UsageError
from edgebench.units import parse_duration


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything declared: immutable, and an unknown field is an error."""


# --- models -----------------------------------------------------------------------------------------------------------


class Package(Spec, frozen=True, kw_only=True):
    """One distribution on the Python package index that carries model bytes.

    ``member`` is the path of the file inside the wheel.
    """

    name: str
    version: str
    member: str


class IndexSource(Spec, frozen=True, kw_only=True, tag="package-index", tag_field="kind"):
    """Model bytes shipped inside wheels: the members of ``packages``, joined in order, are the file."""

    packages: tuple[Package, ...]
    download_bytes: int
    """Size of all wheels together: for the progress bar and the check of free space."""


class HubSource(Spec, frozen=True, kw_only=True, tag="hub", tag_field="kind"):
    """A file on a model hub, at a pinned revision."""

    repo: str
    file: str
    revision: str


Source = IndexSource | HubSource


class Claim(Spec, frozen=True, kw_only=True):
    """A declared number or text and where it comes from. Without a source it must be marked unverified."""

    value: float | int | str
    source: str = ""
    unverified: bool = False


class CardFile(Spec, frozen=True, kw_only=True):
    """A runnable file that somebody published, identified by its hash."""

    precision: str
    """What the quantizer called the mixture, in lower case: ``q4_1``, ``q4_k_m``."""
    bytes: Annotated[int, msgspec.Meta(gt=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    source: Source


class ModelCard(Spec, frozen=True, kw_only=True):
    """``models/<id>.toml``: what is declared about a model. Every claim names its source."""

    id: str
    title: str
    architecture: str
    license: str
    license_url: str
    license_notice: str = ""
    """Terms that the user must accept before the first pull; empty when none."""
    files: tuple[CardFile, ...]
    """The first is the default file: what ``--precision shipped`` means."""
    distilled: bool
    teacher: str = ""
    claims: dict[str, Claim] = {}


Scope = Literal[
    "wall_ac", "dc_input", "module", "board_rails", "psys", "cpu_package", "cpu_package+dram", "soc_compute",
    "gpu_board", "component", "estimate",
]  # fmt: skip
"""What a figure of power or energy covers. ``component``: one rail or block, never the figure of a device."""


# --- trials -----------------------------------------------------------------------------------------------------------


class Workload(Spec, frozen=True, kw_only=True):
    """What is timed, in llama-bench's names.

    ``pp``: prefill of ``n`` random tokens. ``tg``: decode of ``n`` random tokens one at a time. Both start with
    ``depth`` tokens already in the KV cache. ``sustained``: decode of ``n`` tokens from an empty cache, over and over
    for ``seconds``, so that a device gets as hot as it will.
    """

    kind: Literal["pp", "tg", "sustained"]
    n: int
    depth: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """``pp512``, ``tg128``, ``tg128@d512``, ``sustained:10m``."""
        if self.kind == "sustained":
            whole = self.seconds % 60 == 0
            return f"sustained:{self.seconds / 60:g}m" if whole else f"sustained:{self.seconds:g}s"
        return f"{self.kind}{self.n}" + (f"@d{self.depth}" if self.depth else "")

    @property
    def context(self) -> int:
        """Tokens the KV cache must hold, rounded up to 256 as llama-bench does."""
        return -(-(self.n + self.depth) // 256) * 256


_WORKLOAD = re.compile(r"(?P<kind>pp|tg)(?P<n>[0-9]{1,7})(?:@d(?P<depth>[0-9]{1,7}))?")
_SUSTAINED = "sustained:"
_SUSTAINED_TOKENS = 64
"""Of a block: few enough that attention over those before costs nothing, enough that starting a block does not."""


def parse_workload(text: str) -> Workload:
    """Read ``pp512``, ``tg128``, ``tg128@d512`` or ``sustained:10m``.

    Raises:
        UsageError: when the text is none of these, or names zero tokens.
    """
    stripped = text.strip().lower()
    if stripped.startswith(_SUSTAINED):
        seconds = parse_duration(stripped.removeprefix(_SUSTAINED))
        if not 1 <= seconds <= 86400:
            raise UsageError(f"{text!r} lasts {seconds:g} s.", "give from 1 s to a day; 10m shows what most boards do.")
        return Workload(kind="sustained", n=_SUSTAINED_TOKENS, seconds=seconds)
    match = _WORKLOAD.fullmatch(stripped)
    if match is None or int(match["n"]) < 1:
        raise UsageError(
            f"{text!r} is not a workload.",
            "write pp<N> (prefill of N tokens) or tg<N> (decode of N tokens), with @d<DEPTH> for a filled KV cache: "
            "pp512, tg128, tg128@d512; or sustained:<TIME> (decode for so long): sustained:10m.",
        )
    return Workload(kind="pp" if match["kind"] == "pp" else "tg", n=int(match["n"]), depth=int(match["depth"] or 0))


KVType = Literal["f16", "f32", "q8_0"]


class Settings(Spec, frozen=True, kw_only=True):
    """What a runtime is told. Nothing is left to a library's default that changes the result."""

    device: str = "cpu"
    threads: int
    """Threads for decode."""
    threads_batch: int
    """Threads for prefill."""
    batch: int = 2048
    ubatch: int = 512
    kv_type: KVType = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    mmap: bool = True
    cpus: tuple[int, ...] = ()
    """Logical CPUs that the worker may use; empty leaves the scheduler alone."""
    spinning: bool | None = None
    """Whether idle threads wait busily for the next operator. None: the runtime has no such setting."""
    arena: bool | None = None
    """Whether the runtime keeps scratch memory itself, from call to call. None: the runtime has no such setting."""
    pin: bool | None = None
    """Whether each thread stays on one of ``cpus``. None: the runtime has no such setting."""


class Artifact(Spec, frozen=True, kw_only=True):
    """A runnable file at one precision. Its identity is ``sha256``; ``path`` is only where it lies today."""

    model: str
    precision: str
    format: str
    path: str
    bytes: int
    sha256: str
    derived_from: str = ""
    """sha256 of the file it was quantized or exported from; empty for a file used as published."""
    same_weights_as: str = ""
    """sha256 of the file of another format whose weights it holds bit for bit; empty where there is none."""
    origin: str = ""
    """Where the bytes came from: a package and version, a hub revision, or a local path."""
    variant: str = ""
    """What tells it from others of its precision: ``acc0`` (accuracy level 0), ``f16`` (computes in half precision)."""
    quantizer_notes: tuple[str, ...] = ()
    """What the quantizer said that a reader must know, e.g. tensors that fell back to another type."""

    @property
    def label(self) -> str:
        """Precision and variant: ``q4_0``, ``int4 acc0``."""
        return f"{self.precision} {self.variant}".rstrip()


class Calibration(Spec, frozen=True, kw_only=True):
    """A text on which the importance of weights is measured before they are rounded."""

    name: str
    text: str
    sha256: str


class TrialSpec(Spec, frozen=True, kw_only=True):
    """The unit of planning: artifact x runtime x settings x workloads. Runs in its own child process."""

    artifact: Artifact
    runtime: str
    settings: Settings
    workloads: tuple[Workload, ...]
    blocks: int = 3
    """Timed repetitions of each workload in one round."""
    seed: int = 0
    script: dict[str, float] = {}
    """Scripted step times for ``--runtime fake``; empty otherwise."""

    @property
    def trial_id(self) -> str:
        """Content hash of everything that can change the result; where the file lies cannot."""
        identity = msgspec.to_builtins(self)
        for volatile in ("path", "origin", "quantizer_notes", "variant"):
            del identity["artifact"][volatile]  # the hash tells variants apart
        for name in ("spinning", "arena", "pin"):
            if identity["settings"][name] is None:
                del identity["settings"][name]  # so a runtime without them has the identity that it had before them
        for workload in identity["workloads"]:
            if not workload["seconds"]:
                del workload["seconds"]  # likewise
        canonical = msgspec.json.encode(identity, order="deterministic")
        return hashlib.sha256(canonical).hexdigest()[:16]


class EnergyBlocks(Spec, frozen=True, kw_only=True):
    """Blocks long enough for energy: each workload is repeated for ``window_s`` without a break, in every round."""

    window_s: float = 60.0
    idle_s: float = 30.0
    """Idle phases before and after, without the model and with it."""
    settle_s: float = 5.0
    """Between what went before and an idle phase."""
    warm_up_s: float = 120.0
    """Longest warm-up before a window; shorter where the temperature settles or is not known."""

    def round_s(self, workloads: int) -> float:
        """How long a round lasts that warms up for a quarter of the longest time."""
        return 4 * (self.idle_s + self.settle_s) + workloads * (self.window_s + self.warm_up_s / 4)


class Protocol(Spec, frozen=True, kw_only=True):
    """How long a session measures, and when it may stop."""

    min_rounds: int = 6
    max_rounds: int = 30
    target_half_width: float = 0.02
    """Stop once every main metric's interval is this narrow, relative to its value."""
    confidence: float = 0.95
    budget_s: float = 90.0
    energy: EnergyBlocks | None = None
    cooldown: Literal["auto", "off"] | float = "off"
    """Before each round but the first: until the machine is as cool as at the start, or so many seconds."""


class Plan(Spec, frozen=True, kw_only=True):
    """Everything a session intends to do; stored with the session so that ``--resume`` can finish it."""

    trials: tuple[TrialSpec, ...]
    protocol: Protocol
