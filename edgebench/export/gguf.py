"""From a Hugging Face folder to a GGUF, without torch.

Tensors are read, rounded and written one at a time, so memory stays near the largest of them in float32. The tokenizer
is verified before the first tensor is written. The file has another name until it is complete and on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.hf import HFWeights
from edgebench.checkpoint.tokenizer import Tokenizer, read_tokenizer
from edgebench.errors import ArtifactError, MissingDependency, UnknownNameError
from edgebench.export.gguf_keys import add_model, add_tokenizer, rotary_tensors
from edgebench.export.quantize import FILE_TYPES
from edgebench.export.token_ids import check

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

PRECISIONS = ("f32", "f16", "bf16", "q8_0")
_LARGEST_F16 = float(np.finfo(np.float16).max)
_CHUNK_ELEMENTS = 1 << 18
_ALWAYS_F32 = ("position_embd.weight",)  # as llama.cpp's converter: it is added, never multiplied


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader of the file must know."""

    notes: tuple[str, ...]
    parameters: int
    weight_bytes: int


def export(
    checkpoint: HFWeights,
    target: Path,
    precision: str,
    *,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Written:
    """Write one GGUF; an older file of that name is replaced at the very end.

    Args:
        checkpoint: the opened folder.
        target: the file to write.
        precision: one of ``PRECISIONS``. Vectors stay at f32, and so does the rest where its rows cannot be divided
            into blocks (f16 then).
        progress: tensors done, and of how many.

    Raises:
        UnknownNameError: for a precision that does not exist.
        ArtifactError: when the tokenizer or the model cannot be expressed in a GGUF, or a weight is too large for f16.
        MissingDependency: when gguf, tokenizers or llama-cpp-python is not installed.
        OSError: when the target cannot be written.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision of a GGUF export", precision, PRECISIONS)
    tokenizer = _tokenizer_of(checkpoint)
    vocabulary, unfinished = (target.with_name(f".{target.name}.{kind}") for kind in ("vocabulary", "unfinished"))
    try:
        _write_vocabulary(checkpoint, tokenizer, vocabulary)
        check(vocabulary, tokenizer, checkpoint.path)
        vocabulary.unlink()
        written = _Export(checkpoint, tokenizer, precision, progress).write(unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        for left in (vocabulary, unfinished):
            left.unlink(missing_ok=True)
    return written


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """A folder's tokenizer as an ONNX export carries it."""

    vocabulary: bytes
    """A GGUF without tensors; empty when llama.cpp cannot tokenize as the model's own tokenizer does."""
    first_token: int | None
    notes: tuple[str, ...]


def words(checkpoint: HFWeights, workplace: Path) -> Words:
    """The verified tokenizer of a folder. One that cannot be expressed is a note: a graph computes from token ids.

    Args:
        checkpoint: the opened folder.
        workplace: a folder for a small temporary file.

    Raises:
        MissingDependency: when gguf, tokenizers or llama-cpp-python is not installed.
        OSError: when the workplace cannot be written.
    """
    first_token = None
    path = workplace / ".vocabulary"
    try:
        tokenizer = _tokenizer_of(checkpoint)
        first_token = tokenizer.ids["bos"] if tokenizer.add_bos else None
        _write_vocabulary(checkpoint, tokenizer, path)
        check(path, tokenizer, checkpoint.path)
        return Words(vocabulary=path.read_bytes(), first_token=first_token, notes=tokenizer.notes)
    except ArtifactError as error:
        note = f"it has no tokenizer, so it can be profiled and not talked to: {error.what}"
        return Words(vocabulary=b"", first_token=first_token, notes=(note,))
    finally:
        path.unlink(missing_ok=True)


def _tokenizer_of(checkpoint: HFWeights) -> Tokenizer:
    return read_tokenizer(checkpoint.path, checkpoint.config.vocabulary, checkpoint.hf_config.raw)


def _writer(architecture: str) -> GGUFWriter:
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise MissingDependency(
            "The gguf package, which writes the file, is not installed.", "pip install gguf"
        ) from error
    return GGUFWriter(path=None, arch=architecture)


def model_name(name: str, tokenizer: Tokenizer) -> str:
    """``general.name``, by which llama.cpp decides whether special tokens swallow the spaces after them.

    It does so where the name contains ``phi-3`` or ``phi3`` (``llama-vocab.cpp``), and then wants certain tokens; so
    the name says that exactly where the tokenizer does it.
    """
    lowered = name.lower()
    strips = "phi-3" in lowered or "phi3" in lowered
    if strips and not tokenizer.strips_right:
        return lowered.replace("phi-3", "phi 3").replace("phi3", "phi 3")
    if tokenizer.strips_right and not strips and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(tokenizer.tokens):
        return f"phi-3 {name}"
    return name


def _write_vocabulary(checkpoint: HFWeights, tokenizer: Tokenizer, path: Path) -> None:
    """A GGUF without tensors: enough for llama.cpp to cut text into tokens (it reads no other keys for that)."""
    writer = _writer(checkpoint.architecture.name)
    try:
        writer.add_type("model")
        writer.add_name(model_name(checkpoint.config.name, tokenizer))
        add_tokenizer(writer, tokenizer)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


class _Export:
    """One file in the making."""

    def __init__(
        self, checkpoint: HFWeights, tokenizer: Tokenizer, precision: str, progress: Callable[[int, int], None]
    ) -> None:
        self._checkpoint, self._tokenizer, self._precision, self._progress = checkpoint, tokenizer, precision, progress
        self._writer = _writer(checkpoint.architecture.name)
        self._rotary = rotary_tensors(checkpoint)
        self._not_finite: list[str] = []
        self._not_in_blocks: list[str] = []
        self.parameters, self.weight_bytes = 0, 0

    def write(self, path: Path) -> Written:
        """Keys, tensor table, tensors."""
        writer, checkpoint = self._writer, self._checkpoint
        try:
            notes = add_model(writer, checkpoint, model_name(checkpoint.config.name, self._tokenizer))
            writer.add_file_type(FILE_TYPES[self._precision])
            writer.add_quantization_version(_quantization_version())
            add_tokenizer(writer, self._tokenizer)
            names = [*self._rotary, *checkpoint.names()]
            for name in names:
                self._announce(name)
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, data in enumerate(self._tensors(names), 1):
                writer.write_tensor_data(data)
                self._progress(done, len(names))
        finally:
            writer.close()
        return Written(
            notes=(*self._tokenizer.notes, *notes, *self._doubts()),
            parameters=self.parameters,
            weight_bytes=self.weight_bytes,
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._rotary[name].shape if name in self._rotary else self._checkpoint.shape(name)

    def _announce(self, name: str) -> None:
        """Enter a tensor into the table."""
        from gguf import GGML_QUANT_SIZES

        shape, kind = self._shape(name), self._type(name)
        count = int(np.prod(shape))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        size = count // block * block_bytes
        self.parameters += count
        self.weight_bytes += size
        self._writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)

    def _type(self, name: str) -> GGMLQuantizationType:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        shape = self._shape(name)
        if len(shape) == 1 or name in _ALWAYS_F32:
            return GGMLQuantizationType.F32
        kind = GGMLQuantizationType[self._precision.upper()]
        return kind if shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16

    def _tensors(self, names: list[str]) -> Iterator[npt.NDArray[np.generic]]:
        for name in names:
            values = self._rotary[name] if name in self._rotary else self._ordered(name)
            if not np.isfinite(values).all():
                self._not_finite.append(name)
            yield self._rounded(name, values)

    def _ordered(self, name: str) -> npt.NDArray[np.float32]:
        """The values with the rows of q and k as a GGUF of this architecture has them."""
        values = self._checkpoint.tensor(name)
        part = name.rsplit(".", 2)[-2]
        if self._checkpoint.architecture.rotary != "pairs" or part not in ("attn_q", "attn_k"):
            return values
        heads = self._checkpoint.config.heads if part == "attn_q" else self._checkpoint.config.kv_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)

    def _rounded(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        from gguf import GGMLQuantizationType

        kind = self._type(name)
        if kind is GGMLQuantizationType.F32:
            return np.ascontiguousarray(values, np.float32)
        if kind is GGMLQuantizationType.F16:
            if self._precision != "f16":
                self._not_in_blocks.append(name)
            self._check_range(name, values, _LARGEST_F16, "f16")
            with np.errstate(over="ignore"):  # what is infinite already
                return values.astype(np.float16)
        if kind is GGMLQuantizationType.Q8_0:
            self._check_range(name, values, 127 * _LARGEST_F16, "q8_0, whose scales are f16")
        return _in_blocks(values, kind)

    def _check_range(self, name: str, values: npt.NDArray[np.float32], limit: float, what: str) -> None:
        largest = float(max(np.fmax.reduce(values, axis=None), -np.fmin.reduce(values, axis=None)))
        if limit < largest < np.inf:
            raise ArtifactError(
                f"{self._checkpoint.path} has the weight {largest:g} in {name}, too large for {what}.",
                "export it at bf16 or f32.",
            )

    def _doubts(self) -> Iterator[str]:
        for names, what in (
            (self._not_finite, "weights that are not finite numbers"),
            (self._not_in_blocks, "rows are not whole blocks, so they are f16"),
        ):
            if names:
                yield f"{what}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def _in_blocks(values: npt.NDArray[np.float32], kind: GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """gguf-py's rounding, some rows at a time: it makes several temporaries of what it is given."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import quantize

    block, block_bytes = GGML_QUANT_SIZES[kind]
    rows, width = values.shape
    out = np.empty((rows, width // block * block_bytes), np.uint8)
    step = max(1, _CHUNK_ELEMENTS // width)
    for first in range(0, rows, step):
        out[first : first + step] = quantize(values[first : first + step], kind).view(np.uint8)
    return out


def _quantization_version() -> int:
    from gguf import GGML_QUANT_VERSION

    return GGML_QUANT_VERSION
