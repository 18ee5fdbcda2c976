"""The header of a GGUF file, read without an engine and without trusting the file.

Layout (ggml ``docs/gguf.md``; all little endian): magic ``GGUF``, u32 version, u64 tensor count, u64 key count; then
the keys (name, type, value), then the tensor table (name, dimensions, type, offset), then padding to
``general.alignment``, then the tensors. A string is a u64 length and UTF-8 bytes; an array is a u32 type, a u64 count
and its elements.

The file may be truncated, damaged or hostile. Every count, length and offset is compared with the bytes that are left
*before* anything is made from it; arrays (a vocabulary of 262k words) are walked, never kept; and the totals of walked
elements and kept text are capped, so that reading always ends soon and in little memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgebench.checkpoint.cursor import ARRAY, SCALARS, STRING, Cursor, damaged, shown
from edgebench.checkpoint.ggml_types import FILE_TYPES, GGML_TYPES
from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Artifact

MAGIC = b"GGUF"
Scalar = int | float | bool | str

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_LONGEST_KEPT = 1 << 16  # a longer text (an embedded tokenizer.json) is walked over, not kept


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the tensor table. ``shape`` is in ggml's order: the first dimension is contiguous in memory."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    """Bytes from the start of the tensor data."""
    bytes: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        product = 1
        for dimension in self.shape:
            product *= dimension
        return product


class GGUFHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF file says about itself. Absent keys are None."""

    version: int
    architecture: str
    name: str | None
    file_type: str | None
    """What the quantizer called the mixture, in lower case: ``q4_k_m``."""
    context_length: int | None
    embedding_length: int | None
    block_count: int | None
    head_count: int | None
    """Attention heads; None also when the file gives one number per layer."""
    head_count_kv: int | None
    key_length: int | None
    """Width of one attention head's key, ``embedding_length / head_count`` unless the file says otherwise."""
    value_length: int | None
    vocabulary: int | None
    metadata: dict[str, Scalar]
    """All single values but texts over 64 KiB."""
    arrays: dict[str, int]
    """Number of elements of each array; the elements themselves are not kept."""
    tensors: tuple[TensorInfo, ...]
    keys_end: int
    """Byte after the last key, where the tensor table begins."""
    data_offset: int
    file_bytes: int

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Real bits per weight: ``8 * weight_bytes / parameters``."""
        return 8 * self.weight_bytes / self.parameters


def read_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Raises:
        UsageError: when the file cannot be opened.
        ArtifactError: when it is no GGUF, truncated, damaged, or of a kind that no engine here can run.
    """
    where = Path(path)
    if where.exists() and not where.is_file():  # opening a pipe would wait for ever
        raise UsageError(f"{where} is not a regular file.", "give the path of one .gguf file.")
    try:
        with where.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(MAGIC):
                raise damaged(where, f"holds {size} bytes, which is no GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(where, data, size))
    except OSError as error:
        raise UsageError(
            f"{where} cannot be read: {error.strerror}.", "give the path of a readable .gguf file."
        ) from error


def identify(artifact: Artifact) -> tuple[Artifact, GGUFHeader]:
    """Check an artifact's header, and name its precision from it when only the file itself knows.

    A file given by path or from a hub has the precision ``shipped`` until its header has been read.

    Raises:
        UsageError: when the file cannot be opened.
        ArtifactError: when the file is damaged.
    """
    header = read_header(artifact.path)
    if artifact.precision == "shipped" and header.file_type is not None:
        artifact = msgspec.structs.replace(artifact, precision=header.file_type)
    return artifact, header


def _parse(cursor: Cursor) -> GGUFHeader:
    version = _read_preamble(cursor)
    tensor_count = cursor.u64("the tensor count")
    key_count = cursor.u64("the key count")
    # The shortest key: length, 1 byte, type, 1 byte. The shortest tensor: length, 1 byte, rank, one size, type, offset.
    for count, shortest, most, what in (
        (key_count, 8 + 1 + 4 + 1, _MAX_KEYS, "keys"),
        (tensor_count, 8 + 1 + 4 + 8 + 4 + 8, _MAX_TENSORS, "tensors"),
    ):
        if count > most or count * shortest > cursor.size - cursor.at:
            raise cursor.damaged(f"claims {count} {what}, more than fit into it")
    metadata, arrays = _read_metadata(cursor, key_count)
    keys_end = cursor.at
    _refuse_parts(cursor, metadata)
    alignment = _alignment(cursor, metadata)
    tensors = tuple(_read_tensor(cursor, index, alignment) for index in range(tensor_count))
    data_offset = -(-cursor.at // alignment) * alignment
    _check_tensors(cursor, tensors, data_offset)
    return _header(cursor, version, metadata, arrays, tensors, keys_end, data_offset)


def _read_preamble(cursor: Cursor) -> int:
    start = cursor.data[:4]
    if start != MAGIC:
        raise damaged(cursor.path, f"is not a GGUF file: it starts with {start!r}")
    cursor.at = len(MAGIC)
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        raise cursor.damaged("is a big-endian GGUF file, which this machine's engines do not read")
    raise cursor.damaged(f"has the GGUF version {version}; versions 2 and 3 are known")


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Scalar], dict[str, int]]:
    metadata: dict[str, Scalar] = {}
    arrays: dict[str, int] = {}
    for index in range(count):
        key = cursor.required_text(f"the name of key {index}")
        if key in metadata or key in arrays:
            raise cursor.damaged(f"has the key {shown(key)} twice")
        kind = cursor.u32(f"the type of {shown(key)}")
        if kind == ARRAY:
            arrays[key] = cursor.skip_array(shown(key))
        elif kind == STRING:
            text = cursor.text(shown(key), _LONGEST_KEPT)
            if text is not None:
                metadata[key] = text
        elif kind in SCALARS:
            metadata[key] = cursor.number(SCALARS[kind], shown(key))
        else:
            raise cursor.damaged(f"has the key {shown(key)} of the unknown type {kind}")
    return metadata, arrays


def _alignment(cursor: Cursor, metadata: Mapping[str, Scalar]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.damaged(f"has general.alignment = {alignment!r}, which is no power of two from 8 to 2^20")
    return alignment


def _refuse_parts(cursor: Cursor, metadata: Mapping[str, Scalar]) -> None:
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ArtifactError(
            f"{cursor.path} is one of {parts} parts of a model.",
            "join them with llama-gguf-split --merge: edgebench identifies a model by the hash of one file.",
        )


def _read_tensor(cursor: Cursor, index: int, alignment: int) -> TensorInfo:
    name = cursor.required_text(f"the name of tensor {index}")
    rank = cursor.u32(f"the rank of {shown(name)}")
    if not 1 <= rank <= _MAX_DIMENSIONS:
        raise cursor.damaged(f"has the tensor {shown(name)} of rank {rank}, not 1 to {_MAX_DIMENSIONS}")
    shape = tuple(cursor.u64(f"the shape of {shown(name)}") for _ in range(rank))
    kind = GGML_TYPES.get(number := cursor.u32(f"the type of {shown(name)}"))
    if kind is None:
        raise cursor.damaged(f"has the tensor {shown(name)} of the unknown type {number}")
    offset = cursor.u64(f"the offset of {shown(name)}")
    if 0 in shape or shape[0] % kind.block:
        raise cursor.damaged(f"has the tensor {shown(name)} of shape {list(shape)}, not whole blocks of {kind.block}")
    if offset % alignment:
        raise cursor.damaged(f"has the tensor {shown(name)} at the offset {offset}, not a multiple of {alignment}")
    blocks = shape[0] // kind.block
    for dimension in shape[1:]:
        blocks *= dimension
    return TensorInfo(name=name, shape=shape, type=kind.name, offset=offset, bytes=blocks * kind.bytes)


def _check_tensors(cursor: Cursor, tensors: tuple[TensorInfo, ...], data_offset: int) -> None:
    if not tensors:
        raise damaged(cursor.path, "holds no tensors: it is a vocabulary, not a model")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise cursor.damaged("has two tensors of the same name")
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise cursor.damaged(f"has the tensor {shown(tensor.name)} inside the tensor {shown(before)}")
        end, before = tensor.offset + tensor.bytes, tensor.name
    missing = data_offset + end - cursor.size
    if missing > 0:
        raise damaged(
            cursor.path, f"is truncated: {missing} bytes are missing at its end, inside the tensor {shown(before)}"
        )


def _header(
    cursor: Cursor,
    version: int,
    metadata: dict[str, Scalar],
    arrays: dict[str, int],
    tensors: tuple[TensorInfo, ...],
    keys_end: int,
    data_offset: int,
) -> GGUFHeader:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise damaged(cursor.path, "does not say its general.architecture")
    name = metadata.get("general.name")

    def count(key: str) -> int | None:
        value = metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def own(key: str) -> int | None:
        return count(f"{architecture}.{key}")

    file_type = count("general.file_type")
    width, heads = own("embedding_length"), own("attention.head_count")
    head_width = width // heads if width is not None and heads else None
    key_length, value_length = own("attention.key_length"), own("attention.value_length")
    return GGUFHeader(
        version=version,
        architecture=architecture,
        name=name if isinstance(name, str) else None,
        file_type=None if file_type is None else FILE_TYPES.get(file_type),
        context_length=own("context_length"),
        embedding_length=width,
        block_count=own("block_count"),
        head_count=heads,
        head_count_kv=_kv_heads(
            own("attention.head_count_kv"), heads, f"{architecture}.attention.head_count_kv" in arrays
        ),
        key_length=head_width if key_length is None else key_length,
        value_length=head_width if value_length is None else value_length,
        vocabulary=arrays.get("tokenizer.ggml.tokens", own("vocab_size")),
        metadata=metadata,
        arrays=arrays,
        tensors=tensors,
        keys_end=keys_end,
        data_offset=data_offset,
        file_bytes=cursor.size,
    )


def _kv_heads(declared: int | None, heads: int | None, per_layer: bool) -> int | None:  # noqa: FBT001 - a fact, not a mode
    """Without the key every attention head has its own key and value (``docs/gguf.md``)."""
    if declared is not None or per_layer:
        return declared
    return heads
