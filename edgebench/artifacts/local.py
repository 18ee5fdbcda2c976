"""A file that already lies on this machine, as an artifact."""

from __future__ import annotations

import os
from pathlib import Path

from edgebench.artifacts.cache import Progress, known_hash
from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Artifact

_MAGIC = b"GGUF"


def describe(path: Path, progress: Progress | None = None) -> Artifact:
    """Check that a file begins like a GGUF, and hash it. Its precision is ``shipped``: only its own header tells it.

    Raises:
        UsageError: when there is no readable, non-empty, regular file.
        ArtifactError: when it is not a GGUF file.
        CacheError: when the hash cannot be remembered.
    """
    try:
        path = Path(os.path.realpath(path, strict=True))  # Path.resolve raises RuntimeError for a loop of links
        _require_gguf(path)
        size, sha256 = path.stat().st_size, known_hash(path, progress)
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no file {path}.", "check the path, or see edgebench models list for ids."
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}.", "check the path and its rights."
        ) from error
    return Artifact(
        model=path.stem, precision="shipped", format="gguf", path=str(path), bytes=size, sha256=sha256, origin=str(path)
    )


def _require_gguf(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", "give the path of one .gguf file.")
    if not path.is_file():  # opening a pipe would wait for ever
        raise UsageError(f"{path} is not a regular file.", "give the path of one .gguf file.")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if not start:
        raise UsageError(f"{path} is empty.", "get it again, or give another file.")
    if start != _MAGIC:
        raise ArtifactError(
            f"{path} is not a GGUF file: it starts with {start!r}.", "convert the model to GGUF, or give another file."
        )
