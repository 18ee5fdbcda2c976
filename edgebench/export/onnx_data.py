"""The data file beside ONNX graphs: written once, front to back, and shared by every graph that names its places."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 4096  # a page: engines map the file, and copy what is not aligned


class Place(NamedTuple):
    """Where a tensor's bytes lie."""

    offset: int
    length: int


class DataFile:
    """External data in the making.

    Args:
        path: the file, made new.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file: IO[bytes] = path.open("xb")
        self._at = 0

    def write(self, array: npt.NDArray[Any]) -> Place:
        """Append an array's bytes at the next page.

        Raises:
            OSError: when the disk is full.
        """
        padding = -self._at % _ALIGNMENT
        self._file.write(bytes(padding))
        contiguous = np.ascontiguousarray(array)
        self._file.write(contiguous.data.cast("B") if contiguous.size else b"")
        place = Place(self._at + padding, contiguous.nbytes)
        self._at = place.offset + place.length
        return place

    def close(self) -> None:
        """Flush it to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
