"""A sentencepiece ``tokenizer.model``, read without the package and without trusting the file.

It is a protocol buffer (``sentencepiece_model.proto``): a sequence of fields, each a varint key (number * 8 + wire
type) and a value. Every length is compared with the bytes that are left before anything is made from it; unknown fields
are skipped, as the format asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Spec

_LARGEST_FILE = 1 << 28
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of ModelProto
_TEXT, _SCORE, _TYPE = 1, 2, 3  # of SentencePiece
_MODEL_TYPE, _IDS = 3, {40: "unk", 41: "bos", 42: "eos", 43: "pad"}  # of TrainerSpec
_DUMMY_PREFIX, _EXTRA_WHITESPACE = 3, 4  # of NormalizerSpec
_BPE = 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of a piece; llama.cpp took the numbers over as its token types."""


class Piece(Spec, frozen=True, kw_only=True):
    """One token."""

    text: str
    score: float = 0.0
    type: int = NORMAL


class SentencePieceModel(Spec, frozen=True, kw_only=True):
    """What llama.cpp needs of the file. Ids that the trainer switched off (-1) are absent from ``ids``."""

    pieces: tuple[Piece, ...]
    ids: dict[str, int]
    is_bpe: bool
    dummy_prefix: bool
    """Whether a space is put before the text."""
    removes_whitespace: bool
    """Whether runs of spaces become one and the ends are stripped."""


def read_model(path: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model``.

    Raises:
        UsageError: when it cannot be opened.
        ArtifactError: when it is damaged, or not a sentencepiece model.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise _damaged(path, f"is larger than {_LARGEST_FILE} bytes")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "check the path and its rights.") from error
    try:
        return _model(data)
    except (ValueError, struct.error) as error:
        raise _damaged(path, f"is no sentencepiece model ({error})") from error


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path} {what}.", "get it again; its size and hash should be those of its source.")


def _model(data: memoryview) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int] = {_MODEL_TYPE: 1, 40: 0, 41: 1, 42: 2, 43: -1}  # the defaults of the format
    normalizer: dict[int, int] = {_DUMMY_PREFIX: 1, _EXTRA_WHITESPACE: 1}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_bytes(value)))
        elif number in (_TRAINER, _NORMALIZER):
            kept = trainer if number == _TRAINER else normalizer
            kept |= {inner: _whole(setting) for inner, setting in _fields(_bytes(value)) if inner in kept}
    if not pieces:
        raise ValueError("it holds no pieces")
    ids = {role: trainer[field] for field, role in _IDS.items()}
    return SentencePieceModel(
        pieces=tuple(pieces),
        ids={role: number for role, number in ids.items() if 0 <= number < len(pieces)},
        is_bpe=trainer[_MODEL_TYPE] == _BPE,
        dummy_prefix=bool(normalizer[_DUMMY_PREFIX]),
        removes_whitespace=bool(normalizer[_EXTRA_WHITESPACE]),
    )


def _piece(data: memoryview) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == _TEXT:
            text = bytes(_bytes(value)).decode("utf-8")
        elif number == _SCORE:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == _TYPE:
            kind = _whole(value)
    return Piece(text=text, score=score, type=kind)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an int for a varint, the bytes otherwise.

    Raises:
        ValueError: when the bytes end inside a field, or are none.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if length > end - at:
            raise ValueError(f"a field of {length} bytes where {end - at} are left")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes should be")  # noqa: TRY004 - what is wrong is the file
    return value


def _whole(value: int | memoryview) -> int:
    """A varint as the int32 that it stands for: negative numbers take 64 bits."""
    if not isinstance(value, int):
        raise ValueError("bytes where a number should be")  # noqa: TRY004 - what is wrong is the file
    return value - (1 << 64) if value >> 63 else value
