"""What happens inside the child for one export: open the checkpoint, write, say how far it is."""

from __future__ import annotations

import time
from pathlib import Path

from edgebench.engine.measure import Parent
from edgebench.engine.messages import Advance, ExportJob, Finished, Phase
from edgebench.errors import CacheError
from edgebench.host import Host

_EVERY_S = 0.1


class _Teller:
    """Passes progress on, at most ten times a second and at the end."""

    def __init__(self, parent: Parent) -> None:
        self._parent, self._next_s = parent, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next_s or done == total:
            self._next_s = now + _EVERY_S
            self._parent.say(Advance(done=done, total=total))


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
    return _direct(job, parent)


def _direct(job: ExportJob, parent: Parent) -> Finished:
    from edgebench.checkpoint.gguf_weights import GGUFWeights
    from edgebench.checkpoint.hf import HFWeights
    from edgebench.export import onnx, onnx_half

    source = Path(job.source)
    checkpoint = HFWeights(source) if source.is_dir() else GGUFWeights(source)
    try:
        told = onnx.export(
            checkpoint,
            Path(job.target),
            job.precision,
            context=job.context,
            accuracy_level=job.accuracy_level,
            vocabulary=checkpoint.vocabulary_file() if isinstance(checkpoint, GGUFWeights) else b"",
            first_token=checkpoint.first_token if isinstance(checkpoint, GGUFWeights) else None,
            progress=_Teller(parent),
        )
        if job.halved:
            told = onnx_half.halve(Path(job.target), told)
    except OSError as error:
        raise CacheError(
            f"{job.target} cannot be written: {error.strerror or error}.", "free space, or choose another folder."
        ) from error
    finally:
        checkpoint.close()
    return Finished(notes=told.notes)
