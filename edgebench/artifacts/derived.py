"""Files made from others: the same weights at another precision, found again by parent, precision and maker.

Their place is a function of the parent's sha256, the precision and the maker (the quantizer and its version), so that
two sessions share one file, and a newer quantizer makes a new one instead of silently reusing the old bits.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgebench.artifacts.cache import cache_dir, cache_errors, content_hash, find, place, size_of
from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Artifact

_SAFE = re.compile(r"[^A-Za-z0-9._+-]+")


def derived_path(parent_sha256: str, precision: str, maker: str, form: str = "gguf") -> Path:
    """Where the artifact of this precision by this maker lies, whether or not it exists.

    Args:
        parent_sha256: of the file it is made from.
        precision: ``q4_k_m``...
        maker: the program and version that makes it, e.g. ``llama-cpp-python 0.3.36``.
        form: ``gguf``, a file, or ``onnx``, a folder.

    Raises:
        UsageError: when the precision or the maker is no name.
    """
    names = [_SAFE.sub("-", name).strip("-.") for name in (maker, precision)]
    if not all(names):
        raise UsageError(f"{precision!r} by {maker!r} is no name for a file.", "give a precision and a maker.")
    return cache_dir() / "derived" / parent_sha256 / names[0] / f"{names[1]}.{form}"


def find_derived(parent: Artifact, precision: str, maker: str, form: str = "gguf") -> Artifact | None:
    """The derived artifact if it has been made before.

    Raises:
        ArtifactError: when it is damaged; it is removed.
        CacheError: when the cache cannot be read.
    """
    return find(derived_path(parent.sha256, precision, maker, form), verify=False)


def adopt_derived(
    parent: Artifact,
    precision: str,
    maker: str,
    temporary: Path,
    notes: tuple[str, ...] = (),
    *,
    form: str = "gguf",
    same_weights: bool = False,
    variant: str = "",
) -> Artifact:
    """Take over a finished file or folder: hash it, and give it its place atomically.

    Args:
        parent: what it was made from.
        precision: of the new file.
        maker: the program and version that made it.
        temporary: the finished file or folder, below `work_file`; it is moved away.
        notes: what the quantizer or exporter said that a reader must know.
        form: ``gguf``, a file, or ``onnx``, a folder.
        same_weights: whether it holds the parent's weights bit for bit.
        variant: what tells it from others of its precision.

    Raises:
        ArtifactError: when the file is empty or missing.
        CacheError: when the cache cannot be written.
    """
    if not temporary.exists() or size_of(temporary) == 0:
        raise ArtifactError(f"{maker} left no {precision} file of {parent.model}.", "see what it said; try it again.")
    with cache_errors(temporary):
        sha256, size = content_hash(temporary), size_of(temporary)
    artifact = Artifact(
        model=parent.model,
        precision=precision,
        format=form,
        path=str(temporary),
        bytes=size,
        sha256=sha256,
        derived_from=parent.sha256,
        same_weights_as=parent.sha256 if same_weights else "",
        origin=f"{maker} from {parent.origin}" if parent.origin else maker,
        variant=variant,
        quantizer_notes=notes,
    )
    return place(temporary, derived_path(parent.sha256, precision, maker, form), artifact)
