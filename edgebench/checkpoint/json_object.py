"""A small JSON file that must hold one object, read without trusting its size, its encoding or its depth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from edgebench.errors import ArtifactError, UsageError

_LONGEST = 1 << 26  # an index of 100,000 tensors takes a tenth of it


def read_object(path: Path, next_step: str) -> dict[str, Any]:
    """The object in this file.

    Args:
        path: the file.
        next_step: what to do when it cannot be opened.

    Raises:
        UsageError: when it cannot be opened.
        ArtifactError: when it is no JSON object, or longer than 64 MiB.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a regular file.", next_step)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LONGEST:
                raise ArtifactError(f"{path} is longer than {_LONGEST >> 20} MiB.", "get it again.")
            text = file.read(size)  # without a number it would be read however long it has become
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", next_step) from error
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a JSON object: {error}.", "get it again.") from error
