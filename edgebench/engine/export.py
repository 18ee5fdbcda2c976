"""What happens inside the child for one export or quantization: open, write, say how far it is."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from edgebench.engine.measure import Parent
from edgebench.engine.messages import Advance, ExportJob, Finished, Phase, QuantizeJob
from edgebench.errors import CacheError
from edgebench.host import Host

_EVERY_S = 0.1


class _Teller:
    """Passes progress on, at most ten times a second and at the end."""

    def __init__(self, parent: Parent) -> None:
        self._parent, self._next_s = parent, 0.0

    def __call__(self, done: int, total: int, unit: str = "tensors") -> None:
        now = time.monotonic()
        if now >= self._next_s or done == total:
            self._next_s = now + _EVERY_S
            self._parent.say(Advance(done=done, total=total, unit=unit))


def do(job: ExportJob, parent: Parent, host: Host) -> Finished:
    """Export; the child has imported nothing heavy before.

    Raises:
        EdgebenchError: when the checkpoint is damaged or cannot be exported.
        CacheError: when the target cannot be written.
    """
    parent.say(Phase(name="export", t_ns=host.monotonic_ns()))
    if job.exporter == "optimum":
        from edgebench.export import optimum

        return Finished(notes=optimum.export(Path(job.source), Path(job.target)))
    try:
        return Finished(notes=_to_gguf(job, parent) if job.to == "gguf" else _to_onnx(job, parent))
    except OSError as error:
        raise CacheError(
            f"{job.target} cannot be written: {error.strerror or error}.", "free space, or choose another folder."
        ) from error


def quantize_file(job: QuantizeJob, parent: Parent) -> Finished:
    """Make a GGUF of another precision.

    Raises:
        EdgebenchError: when the source or the text cannot be used, or the target cannot be written.
    """
    from edgebench.export.quantize import quantize

    return Finished(
        notes=quantize(
            job.source,
            job.target,
            job.precision,
            job.threads,
            parent.note,
            calibration=job.calibration,
            tell=_Teller(parent),
        )
    )


def _to_gguf(job: ExportJob, parent: Parent) -> tuple[str, ...]:
    from edgebench.checkpoint.hf import HFWeights
    from edgebench.export import gguf

    with closing(HFWeights(Path(job.source))) as checkpoint:
        return gguf.export(checkpoint, Path(job.target), job.precision, progress=_Teller(parent)).notes


def _to_onnx(job: ExportJob, parent: Parent) -> tuple[str, ...]:
    from edgebench.checkpoint.gguf_weights import GGUFWeights
    from edgebench.checkpoint.hf import HFWeights
    from edgebench.export import gguf, onnx, onnx_half

    source, folder = Path(job.source), Path(job.target)
    with closing(HFWeights(source) if source.is_dir() else GGUFWeights(source)) as checkpoint:
        if isinstance(checkpoint, HFWeights):
            words = gguf.words(checkpoint, folder)
        else:
            words = gguf.Words(vocabulary=checkpoint.vocabulary_file(), first_token=checkpoint.first_token, notes=())
        told = onnx.export(
            checkpoint,
            folder,
            job.precision,
            context=job.context,
            accuracy_level=job.accuracy_level,
            vocabulary=words.vocabulary,
            first_token=words.first_token,
            progress=_Teller(parent),
        )
        if job.halved:
            told = onnx_half.halve(folder, told)
    return (*words.notes, *told.notes)
