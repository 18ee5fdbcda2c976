"""A safetensors file, mapped and read without trusting it.

Layout (the format's own description): u64 little-endian length of the header, the header as JSON (name -> dtype, shape,
data_offsets), then the data. Every length is compared with the file before it is used.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Spec

_LONGEST_HEADER = 100_000_000  # the limit of the reference implementation
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Entry(Spec, frozen=True, kw_only=True):
    """One tensor of the header. ``data_offsets`` count from the end of the header."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


class SafetensorsFile:
    """One mapped file.

    Raises:
        UsageError: when it cannot be opened.
        ArtifactError: when it is truncated, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size < 8:
                    raise self._damaged(f"holds {size} bytes, which is no safetensors file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.", "check the path and its rights.") from error
        length = int.from_bytes(self._map[:8], "little")
        if length > min(_LONGEST_HEADER, size - 8):
            raise self._damaged(f"claims a header of {length} bytes in a file of {size}")
        self._start = 8 + length
        self.entries = self._read_header(self._map[8 : self._start])
        for name, entry in self.entries.items():
            self._check(name, entry, size - self._start)

    def _read_header(self, text: bytes) -> dict[str, Entry]:
        try:
            raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            raw.pop("__metadata__", None)
            return {name: msgspec.json.decode(entry, type=Entry) for name, entry in raw.items()}
        except msgspec.DecodeError as error:
            raise self._damaged(f"has a header that is not what the format says ({error})") from error

    def _check(self, name: str, entry: Entry, data_bytes: int) -> None:
        begin, end = entry.data_offsets
        if not begin <= end <= data_bytes:
            raise self._damaged(f"is truncated: the tensor {name} should lie at {begin} to {end} of {data_bytes} bytes")
        width = _WIDTHS.get(entry.dtype)
        if width is not None:
            wanted = width
            for dimension in entry.shape:
                wanted *= dimension
            if wanted != end - begin:
                raise self._damaged(f"gives the tensor {name} {end - begin} bytes; its shape needs {wanted}")

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}.", "get it again; its size and hash should be those of its source.")

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """The values as float32, in their shape.

        Raises:
            ArtifactError: when they are stored as no floating-point type.
        """
        entry = self.entries[name]
        begin, end = entry.data_offsets
        count = (end - begin) // _WIDTHS.get(entry.dtype, 1)
        at = self._start + begin
        if entry.dtype == "F32":
            values = np.frombuffer(self._map, "<f4", count, at)
        elif entry.dtype == "BF16":
            wide = np.frombuffer(self._map, "<u2", count, at).astype(np.uint32)
            wide <<= 16
            values = wide.view(np.float32)
        elif entry.dtype in ("F16", "F64"):
            values = np.frombuffer(self._map, "<f2" if entry.dtype == "F16" else "<f8", count, at).astype(np.float32)
        else:
            raise ArtifactError(
                f"{self.path} stores {name} as {entry.dtype}; the exporters read F32, F16, BF16 and F64.",
                "get the weights in bfloat16 or float32.",
            )
        return values.reshape(entry.shape)

    def close(self) -> None:
        """Unmap it; arrays that still show into it keep it alive."""
        try:
            self._map.close()
        except BufferError:
            return
