"""A position in a GGUF file that never leaves it: the primitive values of the format, each checked before it is read.

The file is mapped, not read: only what is looked at comes into memory. Lengths come from the file and are compared with
what is left of it before anything is made from them; two budgets (strings walked, text kept) bound the whole reading.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from edgebench.errors import ArtifactError

_MAX_NAME_BYTES = 1 << 16  # a key is at most 65535 bytes by the format
_MAX_WALK = 1 << 24  # string elements in all arrays together: 64 times the largest vocabulary in use
_KEPT_TOTAL = 1 << 24
_SHOWN = 80

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
STRING, ARRAY = 8, 9
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}


class Cursor:
    """A position in the file that refuses to leave it."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0
        self.walk_left, self.keep_left = _MAX_WALK, _KEPT_TOTAL

    def damaged(self, what: str) -> ArtifactError:
        """The error to raise: what is wrong, and where in which file."""
        return damaged(self.path, f"{what} (at byte {self.at} of {self.size})")

    def need(self, count: int, what: str) -> None:
        """Refuse to go on unless ``count`` more bytes are there."""
        if count > self.size - self.at:
            raise self.damaged(f"ends inside {what}: {count} bytes wanted, {self.size - self.at} left")

    def number(self, form: struct.Struct, what: str) -> int | float | bool:
        """A single value of any fixed size."""
        self.need(form.size, what)
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value  # type: ignore[no-any-return]  # struct's values are Any

    def u32(self, what: str) -> int:
        """An unsigned 32-bit integer."""
        return int(self.number(_U32, what))

    def u64(self, what: str) -> int:
        """An unsigned 64-bit integer."""
        return int(self.number(_U64, what))

    def text(self, what: str, longest: int) -> str | None:
        """A string, or None when it is longer than ``longest``; the cursor is behind it in both cases."""
        length = self.u64(f"the length of {what}")
        self.need(length, what)
        start, self.at = self.at, self.at + length
        if length > longest:
            return None
        self.keep_left -= length
        if self.keep_left < 0:
            raise self.damaged(f"holds over {_KEPT_TOTAL >> 20} MiB of metadata text")
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            self.at = start
            raise self.damaged(f"has {what} that is not UTF-8") from error

    def required_text(self, what: str) -> str:
        """A name: neither empty nor longer than the format allows."""
        value = self.text(what, _MAX_NAME_BYTES)
        if not value:
            raise self.damaged(f"has {what} that is {'empty' if value == '' else 'too long'}")
        return value

    def skip_array(self, what: str) -> int:
        """Walk over an array; its number of elements."""
        kind, count = self.u32(f"the type of {what}"), self.u64(f"the length of {what}")
        if kind == STRING:
            self.skip_strings(count, what)
        elif kind in SCALARS:
            self.need(count * SCALARS[kind].size, what)
            self.at += count * SCALARS[kind].size
        else:
            raise self.damaged(f"has {what} as an array of the unknown type {kind}")
        return count

    def skip_strings(self, count: int, what: str) -> None:
        """Walk over strings without making any."""
        self.need(count * _U64.size, what)
        self.walk_left -= count
        if self.walk_left < 0:
            raise self.damaged(f"has {count} strings in {what}, more than any vocabulary")
        # One tight loop on locals: a vocabulary has a quarter of a million words.
        data, at, last, length_at = self.data, self.at, self.size - _U64.size, _U64.unpack_from
        for _ in range(count):
            if at > last:
                break
            at += _U64.size + length_at(data, at)[0]
        else:
            if at <= self.size:
                self.at = at
                return
        raise self.damaged(f"ends inside the strings of {what}")


def shown(name: str) -> str:
    """A name from the file as it appears in a sentence: quoted, and not longer than a line."""
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def damaged(path: Path, what: str) -> ArtifactError:
    """An error about the whole file, with the next step."""
    return ArtifactError(
        f"{path} {what}.",
        "get the file again (edgebench models pull), or compare its size and hash with the publisher's.",
    )
