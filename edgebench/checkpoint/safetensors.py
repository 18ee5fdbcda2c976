"""A safetensors file, mapped and read without trusting it.

Layout (the format's own description): u64 little-endian length of the header, the header as JSON (name -> dtype, shape,
data_offsets), then the data, which the tensors cover without a hole. Every length is compared with the file before it
is used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.mapped_file import MappedFile
from edgebench.errors import ArtifactError
from edgebench.specs import Spec

_LONGEST_HEADER = 100_000_000  # the limit of the reference implementation
_HIGHEST_RANK = 8
_CHUNK_ELEMENTS = 1 << 22  # what is converted at once: memory beyond the result is a few times 16 MiB
_READ = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_TYPES_OF_WIDTH = {
    8: "F64 I64 U64 C64",
    4: "F32 I32 U32",
    2: "F16 BF16 I16 U16",
    1: "I8 U8 BOOL F8_E4M3 F8_E5M2 F8_E8M0",
}
_WIDTHS = {name: width for width, names in _TYPES_OF_WIDTH.items() for name in names.split()}
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class Entry(Spec, frozen=True, kw_only=True):
    """One tensor of the header. ``data_offsets`` count from the end of the header."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class SafetensorsFile:
    """One mapped file.

    Raises:
        UsageError: when it cannot be opened.
        ArtifactError: when it is truncated, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            self._start, self.entries = self._read_header()
            self._check_places()
        except ArtifactError:
            self.close()
            raise

    def _read_header(self) -> tuple[int, dict[str, Entry]]:
        """Where the data begins, and the tensors by name."""
        size = self._file.size
        if size < 8:
            raise self._damaged(f"holds {size} bytes, which is no safetensors file")
        length = int.from_bytes(self._file.view(0, 8).tobytes(), "little")
        if length > min(_LONGEST_HEADER, size - 8):
            raise self._damaged(f"claims a header of {length} bytes in a file of {size}")
        try:
            raw = msgspec.json.decode(self._file.view(8, length).tobytes(), type=dict[str, msgspec.Raw])
            raw.pop("__metadata__", None)
            return 8 + length, {name: msgspec.json.decode(entry, type=Entry) for name, entry in raw.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._damaged(f"has a header that is not what the format says ({error})") from error

    def _check_places(self) -> None:
        """Tensors lie one behind the other, from the first byte of the data to the last."""
        data_bytes, at = self._file.size - self._start, 0
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1].data_offsets):
            begin, end = entry.data_offsets
            if begin > end:
                raise self._damaged(f"has the tensor {name} from {begin} back to {end}")
            if end > data_bytes:
                raise self._damaged(
                    f"is truncated: the tensor {name} should lie at {begin} to {end} of {data_bytes} bytes"
                )
            if begin != at:
                wrong = "inside another one" if begin < at else "behind a hole"
                raise self._damaged(f"has the tensor {name} {wrong}: it begins at {begin}, not {at}")
            self._check_size(name, entry)
            at = end
        if at != data_bytes:
            raise self._damaged(f"has {data_bytes - at} bytes at its end that belong to no tensor")

    def _check_size(self, name: str, entry: Entry) -> None:
        begin, end = entry.data_offsets
        if len(entry.shape) > _HIGHEST_RANK or 0 in entry.shape:
            raise self._damaged(f"has the tensor {name} of shape {list(entry.shape)[: _HIGHEST_RANK + 1]}")
        width = _WIDTHS.get(entry.dtype)
        if width is not None and width * entry.elements != end - begin:
            raise self._damaged(
                f"gives the tensor {name} {end - begin} bytes; its shape needs {width * entry.elements}"
            )

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}.", "get it again; its size and hash should be those of its source.")

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """The values as float32, in their shape. F32 is mapped, anything else is converted in pieces.

        Raises:
            ArtifactError: when they are stored as no floating-point type of 16 bits or more.
        """
        entry = self.entries[name]
        if entry.dtype not in _READ:
            raise ArtifactError(
                f"{self.path} stores {name} as {entry.dtype}; the exporters read {', '.join(_READ)}.",
                "get the weights in bfloat16 or float32.",
            )
        form = np.dtype(_READ[entry.dtype])
        first_byte = self._start + entry.data_offsets[0]
        if entry.dtype == "F32":
            mapped: npt.NDArray[np.float32] = self._file.view(first_byte, 4 * entry.elements).view(np.float32)
            return mapped.reshape(entry.shape)
        values = np.empty(entry.elements, np.float32)
        for first in range(0, entry.elements, _CHUNK_ELEMENTS):
            count = min(_CHUNK_ELEMENTS, entry.elements - first)
            stored = self._file.view(first_byte + first * form.itemsize, count * form.itemsize).view(form)
            if entry.dtype == "BF16":  # the upper half of a float32
                values[first : first + count] = (stored.astype(np.uint32) << 16).view(np.float32)
            else:
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by the exporter
                    values[first : first + count] = stored
        return values.reshape(entry.shape)

    def close(self) -> None:
        """Unmap it. Twice is fine; arrays that still look into it keep it alive."""
        self._file.close()
