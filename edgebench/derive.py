"""Make the files that trials need from what a model was published as, each once.

GGUF precisions are made by llama.cpp's own quantizer. Of a Hugging Face folder it needs a GGUF first, which is made
once at the folder's own precision. ONNX folders are exported from GGUFs block by block, so that both runtimes hold the
same weights; precisions that only ONNX has are exported from what was published. What is made lies in the cache under
the hash of its parent and the name of its maker.
"""

from __future__ import annotations

import shlex
import shutil
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from edgebench import artifacts
from edgebench.artifacts.local import FOREIGN
from edgebench.checkpoint.gguf import identify, read_header
from edgebench.checkpoint.hf import HFWeights
from edgebench.checkpoint.onnx_file import graph_of, read_beside, read_onnx
from edgebench.engine.about import about
from edgebench.engine.child import run_job
from edgebench.engine.messages import Advance, ExportJob, Finished, QuantizeJob, Reply
from edgebench.engine.protocol import Limits
from edgebench.errors import ArtifactError, EdgebenchError
from edgebench.export import gguf, optimum
from edgebench.export.imatrix import COLLECTOR
from edgebench.export.onnx_limits import LONGEST_TABLE
from edgebench.export.precisions import NEEDS_IMATRIX, ONNX_ONLY, SHIPPED
from edgebench.host import Host
from edgebench.manifest import OnnxManifest
from edgebench.records import Failure
from edgebench.specs import Artifact, Calibration

_LIMITS = Limits(load_s=3600.0)
EXPORTER = "edgebench-onnx-2"
"""Maker of ONNX folders, part of their place: counted up when the same input gives other bytes."""
CONVERTER = "edgebench-gguf-1"
"""Maker of GGUFs from Hugging Face folders, likewise. It is part of their identity because the keys that it writes
decide how llama.cpp computes and cuts text: a file of an older version must not pass for one of this."""


def needed_context(tokens: int, trained: int | None) -> int | None:
    """What to ask of an ONNX export for this many tokens: nothing where it holds them without being asked."""
    return tokens if tokens > min(trained or LONGEST_TABLE, LONGEST_TABLE) else None


class Teller(Protocol):
    """Told what is being made, and how far it is."""

    def step(self, text: str) -> None:
        """A step that takes a moment."""
        ...

    def share(self, what: str, done: int, total: int) -> None:
        """How far a step is."""
        ...


def obtain_source(reference: str, *, accept_license: bool, progress: artifacts.Progress) -> Artifact:
    """The file or folder that a model was published as, identified by its own header.

    Raises:
        EdgebenchError: as `edgebench.artifacts.obtain`, and when the header is damaged.
    """
    artifact = artifacts.obtain(reference, accept_license=accept_license, progress=progress)
    return identify(artifact)[0] if artifact.format == "gguf" else artifact


def folder_precision(folder: Artifact) -> str:
    """What a Hugging Face folder stores its matrices at: ``bf16``, ``f16`` or ``f32``.

    Raises:
        EdgebenchError: when it is damaged or of an unknown architecture.
    """
    with closing(HFWeights(Path(folder.path))) as weights:
        return weights.precision


def quantizer_version(host: Host) -> str:
    """Name and version of llama.cpp, part of the identity of what it makes."""
    return str(about("llamacpp", host).version.value or "unknown llama.cpp")


def measured_bits(artifact: Artifact) -> float:
    """Real bits per weight, from the tensors of the artifact.

    Raises:
        ArtifactError: when it is damaged.
    """
    if artifact.precision == FOREIGN:
        path = graph_of(Path(artifact.path))
        if path is None:
            raise ArtifactError(f"{artifact.path} holds no ONNX graph.", "export the model again.")
        parameters, size = read_onnx(path).sizes()
        return 8 * size / parameters
    if artifact.format == "onnx":
        manifest = read_manifest(artifact)
        return 8 * manifest.weight_bytes / manifest.parameters
    return read_header(artifact.path).bits_per_weight


def trained_context(artifact: Artifact) -> int:
    """Tokens that the model of an ONNX folder, ours or foreign, was trained for.

    Raises:
        ArtifactError: when nothing in the folder tells.
    """
    if artifact.precision == FOREIGN:
        return read_beside(Path(artifact.path)).context
    return read_manifest(artifact).context


def read_manifest(artifact: Artifact) -> OnnxManifest:
    """What an ONNX export says about itself.

    Raises:
        ArtifactError: when it is missing or damaged.
    """
    return _manifest_in(Path(artifact.path))


def _manifest_in(folder: Path) -> OnnxManifest:
    path = folder / "edgebench.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=OnnxManifest)
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.", "export the model again.") from error


class Kind(NamedTuple):
    """Which ONNX export of a precision; each kind has a place of its own."""

    context: int | None = None
    """Tokens that it must hold, beyond what it does by itself."""
    accuracy_level: int | None = None
    """MatMulNBits': 4 multiplies with activations of 8 bits, 0 with floats; None takes 4."""
    halved: bool = False
    """Whether it computes in half precision, as some devices need."""

    @property
    def variant(self) -> str:
        """``acc0``, ``f16``, ``acc0 f16`` or nothing."""
        return " ".join([*(["acc0"] if self.accuracy_level == 0 else []), *(["f16"] if self.halved else [])])

    @property
    def maker(self) -> str:
        """Name of the exporter with all that changes its output."""
        context = [] if self.context is None else [f"ctx{self.context}"]
        return "-".join([EXPORTER, *context, *self.variant.split()])


class Maker:
    """Makes artifacts in child processes.

    Args:
        host: this machine.
        quantizer: name and version of the engine that quantizes GGUFs.
        threads: that it may use.
        teller: told what is being made.
    """

    def __init__(self, host: Host, quantizer: str, threads: int, teller: Teller) -> None:
        self._host, self._quantizer, self._threads, self._teller = host, quantizer, threads, teller

    def gguf(self, source: Artifact, precision: str, calibration: Calibration | None = None) -> Artifact | Failure:
        """The GGUF of this precision; ``calibration``: a text, by whose importance matrix weights are rounded."""
        if source.format == "onnx":
            return _one_way(source)
        if source.format == "hf":
            return self._from_folder(source, precision, calibration)
        if precision in (SHIPPED, source.precision) and calibration is None:
            return source
        return self._quantize(source, precision, calibration)

    def _quantize(self, source: Artifact, precision: str, calibration: Calibration | None) -> Artifact | Failure:
        if precision in NEEDS_IMATRIX and calibration is None:
            return _needs_imatrix(source, precision)
        maker = self._quantizer
        if calibration is not None:  # with the file and the vocabulary in it, this decides every value of the matrix
            maker = f"{maker} {COLLECTOR} {calibration.sha256}"
        existing = artifacts.find_derived(source, precision, maker)
        if existing is not None:
            return existing
        target = artifacts.work_file(".gguf")
        job = QuantizeJob(
            source=source.path,
            target=str(target),
            precision=precision,
            threads=self._threads,
            calibration=calibration,
        )
        done = self._run(job, f"making {precision} of {source.model}")
        if isinstance(done, Failure):
            return done
        return artifacts.adopt_derived(source, precision, maker, target, (*source.quantizer_notes, *done.notes))

    def _from_folder(self, folder: Artifact, precision: str, calibration: Calibration | None) -> Artifact | Failure:
        """Directly where nothing is gained by llama.cpp's quantizer, else by it from the GGUF that rounds nothing."""
        if precision in NEEDS_IMATRIX and calibration is None:
            return _needs_imatrix(folder, precision)
        try:
            own = folder_precision(folder)
        except EdgebenchError as error:
            return _refused(error.what, error.next_step)
        if precision == SHIPPED:
            precision = own
        if precision in gguf.PRECISIONS:
            return self._convert(folder, precision)
        whole = self._convert(folder, own)
        return whole if isinstance(whole, Failure) else self._quantize(whole, precision, calibration)

    def _convert(self, folder: Artifact, precision: str) -> Artifact | Failure:
        existing = artifacts.find_derived(folder, precision, CONVERTER)
        if existing is not None:
            return existing
        target = artifacts.work_file(".gguf")
        job = ExportJob(source=folder.path, target=str(target), to="gguf", precision=precision)
        done = self._run(job, f"converting {folder.model} to a GGUF at {precision}")
        if isinstance(done, Failure):
            return done
        return artifacts.adopt_derived(folder, precision, CONVERTER, target, done.notes)

    def _run(self, job: ExportJob | QuantizeJob, what: str) -> Finished | Failure:
        """Let a child do it, and tell how far it is; nothing is left of what was not finished."""
        self._teller.step(what)

        def hear(message: Reply) -> None:
            if isinstance(message, Advance):
                self._teller.share(f"{what}, {message.unit}", message.done, message.total)

        ended = run_job(job, self._host, _LIMITS, hear)
        if ended.failure is not None or ended.attempt.finished is None:
            shutil.rmtree(Path(job.target).parent, ignore_errors=True)  # the target, and what stands half written by it
            return ended.failure or _silent("exporter" if isinstance(job, ExportJob) else "quantizer")
        return ended.attempt.finished

    def onnx(self, source: Artifact, precision: str, kind: Kind) -> Artifact | Failure:
        """The ONNX folder of this precision and kind."""
        if source.format == "onnx":
            return _as_it_is(source, precision, kind)
        if precision == "fp32":
            if kind.halved:
                return _not_half(precision)
            kind = kind._replace(accuracy_level=None)  # no matrix of it is in blocks
        parent = source if precision in ONNX_ONLY else self.gguf(source, precision)
        if isinstance(parent, Failure):
            return parent
        name = precision if precision != SHIPPED else parent.precision
        existing = artifacts.find_derived(parent, name, kind.maker, "onnx")
        if existing is not None:
            return existing
        target = artifacts.work_file(".onnx")
        target.mkdir()
        job = ExportJob(
            source=parent.path,
            target=str(target),
            to="onnx",
            precision=precision if precision in ONNX_ONLY else "as-stored",
            context=kind.context,
            accuracy_level=4 if kind.accuracy_level is None else kind.accuracy_level,
            halved=kind.halved,
        )
        done = self._run(job, f"exporting {name} of {source.model} to ONNX")
        if isinstance(done, Failure):
            return done
        notes = (*parent.quantizer_notes, *done.notes)
        exact = _manifest_in(target).same_weights
        return artifacts.adopt_derived(
            parent, name, kind.maker, target, notes, form="onnx", same_weights=exact, variant=kind.variant
        )

    def reference(self, source: Artifact) -> Artifact | Failure:
        """The fp32 graph that optimum traces from a Hugging Face folder; its precision is ``foreign``.

        Raises:
            MissingDependency: when optimum is not installed.
            UsageError: when the source is no such folder.
        """
        maker = optimum.version()
        optimum.check_source(Path(source.path))
        existing = artifacts.find_derived(source, FOREIGN, maker, "onnx")
        if existing is not None:
            return existing
        target = artifacts.work_file(".onnx")
        target.mkdir()
        job = ExportJob(source=source.path, target=str(target), to="onnx", precision="fp32", exporter="optimum")
        done = self._run(job, f"exporting {source.model} with optimum, which takes a while")
        if isinstance(done, Failure):
            return done
        return artifacts.adopt_derived(source, FOREIGN, maker, target, done.notes, form="onnx")


def _refused(says: str, next_step: str) -> Failure:
    """The artifact or the request for it is at fault."""
    return Failure(kind="bad-artifact", says=says, next_step=next_step, phase="prepare")


def _needs_imatrix(source: Artifact, precision: str) -> Failure:
    path = shlex.quote(source.path)
    return _refused(
        f"{precision} of {source.model} cannot be made without an importance matrix",
        f"edgebench export {path} --to gguf --precision {precision} --imatrix TEXT -o FILE.gguf",
    )


def _as_it_is(source: Artifact, precision: str, kind: Kind) -> Artifact | Failure:
    """An export that lies there already, if it is what was asked for."""
    if precision not in (SHIPPED, source.precision):
        return _one_way(source)
    return source if _is_of(source, kind) else _another_kind(source, kind)


def _is_of(source: Artifact, kind: Kind) -> bool:
    """Whether an export that lies there already is what was asked for."""
    if source.precision == FOREIGN:
        return not kind.variant
    manifest = read_manifest(source)
    level_fits = kind.accuracy_level in (None, manifest.accuracy_level)
    return level_fits and manifest.activations == ("f16" if kind.halved else "f32")


def _another_kind(source: Artifact, kind: Kind) -> Failure:
    wanted = kind.variant or "for this device"
    return _refused(
        f"{source.path} is another kind of export than was asked for ({wanted})",
        "give the checkpoint it was made from, or leave the option out.",
    )


def _not_half(precision: str) -> Failure:
    return _refused(
        f"{precision} would be half precision on this device",
        "choose q8_0, q4_0 or another precision in blocks, or --device cpu.",
    )


def _one_way(source: Artifact) -> Failure:
    return _refused(
        f"{source.path} is an ONNX export, and nothing else can be made of it",
        "give the checkpoint it was made from: a GGUF or a Hugging Face folder.",
    )


def _silent(who: str) -> Failure:
    return Failure(kind="protocol", says=f"the {who} gave no answer", next_step="try again.", phase="prepare")
