"""A GGUF file as a checkpoint: its shape from the keys, its tensors mapped, dequantised by gguf-py one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.architectures import Architecture, by_name
from edgebench.checkpoint.base import MOST_LAYERS, Blocks, ModelConfig, Rope
from edgebench.checkpoint.cursor import shown
from edgebench.checkpoint.ggml_types import GGML_TYPES
from edgebench.checkpoint.gguf import MAGIC, GGUFHeader, TensorInfo, read_header
from edgebench.checkpoint.mapped_file import MappedFile
from edgebench.checkpoint.rotary import longrope_attention_factor
from edgebench.checkpoint.shapes import find_contradiction, find_misfit
from edgebench.errors import ArtifactError, EdgebenchError

_PLAIN = ("f32", "f16", "bf16")
_LARGEST = 1 << 31  # of any number among the keys: no dimension comes near, and what is made from it stays finite
_CHUNK_ELEMENTS = 1 << 20  # dequantised at once: gguf-py makes several temporary arrays of this length
_Item = TypeVar("_Item", bound=np.generic)
_TYPE_IDS = {kind.name: number for number, kind in GGML_TYPES.items()}
_ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# What llama.cpp's gemma3 assumes where the keys are absent, as they usually are (src/models/gemma3.cpp).
_GEMMA3_PATTERN, _GEMMA3_LOCAL_BASE = 6, 10000.0


class GGUFWeights:
    """An opened GGUF.

    Raises:
        UsageError: when the file cannot be opened.
        ArtifactError: when it is damaged, of an unknown architecture, or its tensors do not fit its keys.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: GGUFHeader = read_header(path)
        self.architecture: Architecture = by_name(self.header.architecture, str(path))
        self._infos = {tensor.name: tensor for tensor in self.header.tensors}
        self._file = MappedFile(path)
        try:
            if self._file.size != self.header.file_bytes:
                raise self._damaged("was changed while it was opened")
            self.config: ModelConfig = _Keys(self.header, path).config(self)
            self.first_token = self._first_token()
            self._check()
        except EdgebenchError:
            self.close()
            raise

    def _check(self) -> None:
        """Every tensor that the architecture needs is there, in the right shape, and there is none that it ignores."""
        misfit = find_misfit(self.architecture, self.config, {name: self.shape(name) for name in self.names()})
        if misfit is None:
            return
        if misfit.found is None:
            raise self._damaged(f"lacks the tensor {misfit.name}")
        if misfit.wanted is None:
            raise self._damaged(f"has the tensor {shown(misfit.name)}, which {self.architecture.name} does not use")
        raise self._damaged(f"has the tensor {misfit.name} of shape {list(misfit.found)}, not {list(misfit.wanted)}")

    def _first_token(self) -> int | None:
        """As llama.cpp decides: the key if there is one, else only sentencepiece vocabularies want it."""
        keys = self.header.metadata
        wanted = keys.get("tokenizer.ggml.add_bos_token", keys.get("tokenizer.ggml.model") == "llama")
        token = keys.get("tokenizer.ggml.bos_token_id")
        return token if wanted and isinstance(token, int) else None

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}.", "get it again, or convert it from the original weights.")

    def names(self) -> Iterator[str]:
        return (name for name in self._infos if name not in _ROTARY_TENSORS)

    def has(self, name: str) -> bool:
        return name in self._infos

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape[::-1]

    def type_of(self, name: str) -> str:
        return self._info(name).type

    def _info(self, name: str) -> TensorInfo:
        if name not in self._infos:
            raise self._damaged(f"lacks the tensor {name}")
        return self._infos[name]

    def _rows(self, info: TensorInfo, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Stored rows ``first`` to ``last``, as bytes: [rows, bytes per row]."""
        row_bytes = info.bytes * info.shape[0] // info.elements
        start = self.header.data_offset + info.offset + first * row_bytes
        return self._file.view(start, (last - first) * row_bytes).reshape(last - first, row_bytes)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        info = self._info(name)
        width = info.shape[0]
        rows = info.elements // width
        if info.type == "f32":
            values: npt.NDArray[np.float32] = self._rows(info, 0, rows).view(np.float32)
        else:
            # In pieces: gguf-py keeps all its intermediate results, and what it has read stays in memory as well.
            values, step = np.empty((rows, width), np.float32), max(1, _CHUNK_ELEMENTS // width)
            for first in range(0, rows, step):
                last = min(first + step, rows)
                values[first:last] = self._dequantised(self._rows(info, first, last), info)
        return self._halves(name, values.reshape(self.shape(name)))

    def _dequantised(self, stored: npt.NDArray[np.uint8], info: TensorInfo) -> npt.NDArray[np.float32]:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by the exporter
                values: npt.NDArray[np.float32] = dequantize(stored, GGMLQuantizationType(_TYPE_IDS[info.type]))
        except (NotImplementedError, ValueError) as error:
            raise ArtifactError(
                f"{self.path} stores {info.name} as {info.type}, which gguf-py cannot dequantise.",
                "start from a file of another type: f16, q8_0, q4_0, q4_k_m...",
            ) from error
        return values

    def blocks(self, name: str) -> Blocks | None:
        info = self._info(name)
        if info.type in _PLAIN:
            return None
        return Blocks(info.type, self._halves(name, self._rows(info, 0, info.elements // info.shape[0])))

    def _halves(self, name: str, rows: npt.NDArray[_Item]) -> npt.NDArray[_Item]:
        """Undo the interleaving of q and k rows that llama.cpp's converter applies to the llama architecture."""
        part = name.rsplit(".", 2)[-2]
        if self.architecture.rotary != "pairs" or part not in ("attn_q", "attn_k"):
            return rows
        heads = self.config.heads if part == "attn_q" else self.config.kv_heads
        split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)

    def vocabulary_file(self) -> bytes:
        """The same GGUF without its tensors: what llama.cpp needs to tokenise (``vocab_only``)."""
        head = MAGIC + self.header.version.to_bytes(4, "little") + bytes(8)  # no tensors
        return head + self._file.view(len(head), self.header.keys_end - len(head)).tobytes()

    def close(self) -> None:
        self._file.close()


class _Keys:
    """The keys of a file, with errors that name what is missing."""

    def __init__(self, header: GGUFHeader, path: Path) -> None:
        self._header, self._path, self._arch = header, path, header.architecture

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._header.metadata.get(f"{self._arch}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _LARGEST:
            raise self._unusable(key, value)
        return value

    def whole(self, key: str, default: int | None = None, most: int = _LARGEST) -> int:
        """A positive whole number."""
        value = self.number(key, default)
        if value != int(value) or value > most:
            raise self._unusable(key, value)
        return int(value)

    def _unusable(self, key: str, value: object) -> ArtifactError:
        name = f"{self._arch}.{key}"
        what = f"lacks the key {name}" if value is None else f"has {name} = {value!r}"
        return self._damaged(what)

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self._path} {what}.", "convert it again from the original weights.")

    def config(self, weights: GGUFWeights) -> ModelConfig:
        """The shape that the keys, and the tensors that say what no key does, describe."""
        hidden, heads = self.whole("embedding_length"), self.whole("attention.head_count")
        head_dim = self.whole("attention.key_length", hidden // heads)
        layers = self.whole("block_count", most=MOST_LAYERS)
        norm = "layer_norm_epsilon" if weights.architecture.norm == "layer" else "layer_norm_rms_epsilon"
        window = self._window(weights.architecture)
        vocabulary = self._header.vocabulary
        embedding = weights.shape("token_embd.weight")
        if vocabulary is not None and embedding[0] != vocabulary:
            raise self._damaged(f"has {vocabulary} words in its vocabulary and {embedding[0]} rows in its embedding")
        config = ModelConfig(
            architecture=self._arch,
            name=self._header.name or self._path.stem,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=self.whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn=self.whole("feed_forward_length"),
            vocabulary=embedding[0],
            context=self.whole("context_length"),
            norm_eps=self.number(f"attention.{norm}"),
            tied=not weights.has("output.weight"),
            rope=None if weights.architecture.rotary == "none" else self._rope(weights, head_dim),
            local_rope=self._local_rope(head_dim) if self._arch == "gemma3" else None,
            window=window,
            local_layers=self._local_layers(layers) if window else (),
        )
        wrong = find_contradiction(config)
        if wrong is not None:
            raise self._damaged(wrong)
        return config

    def _window(self, architecture: Architecture) -> int | None:
        if architecture.name not in ("gemma3", "phi3"):
            return None
        value = self._header.metadata.get(f"{self._arch}.attention.sliding_window")
        return value if isinstance(value, int) and value > 0 else None

    def _local_rope(self, head_dim: int) -> Rope:
        return Rope(base=self.number("rope.freq_base_swa", _GEMMA3_LOCAL_BASE), dimensions=head_dim)

    def _local_layers(self, layers: int) -> tuple[bool, ...]:
        if self._arch == "gemma3":
            key = "attention.sliding_window_pattern"
            if f"{self._arch}.{key}" in self._header.arrays:
                raise ArtifactError(
                    f"{self._path} says layer by layer where its sliding window is, which this reader does not know.",
                    "start from the Hugging Face folder instead.",
                )
            period = self.whole(key, _GEMMA3_PATTERN)
            return tuple((layer + 1) % period != 0 for layer in range(layers))
        return (True,) * layers

    def _rope(self, weights: GGUFWeights, head_dim: int) -> Rope:
        dimensions = self.whole("rope.dimension_count", head_dim)
        base = self.number("rope.freq_base", 10000.0)
        kind = self._header.metadata.get(f"{self._arch}.rope.scaling.type", "none")
        scale = self.number("rope.scaling.factor", 1.0) if kind == "linear" else 1.0
        if kind not in ("none", "linear", "longrope"):
            raise ArtifactError(
                f"{self._path} stretches its context by {kind!r}, which the direct exporter does not know.",
                "use the GGUF with llama.cpp, or the optimum road.",
            )
        plain = Rope(base=base, dimensions=dimensions, scale=scale)
        return self._stretched(plain, weights)

    def _stretched(self, plain: Rope, weights: GGUFWeights) -> Rope:
        """With the factors that the file stores as tensors."""
        changes: dict[str, Any] = {}
        if weights.has("rope_freqs.weight"):
            changes["factors"] = _numbers(weights, "rope_freqs")
        elif weights.has("rope_factors_long.weight"):
            context = self.whole("context_length")
            original = self.whole("rope.scaling.original_context_length", context)
            if original < 2:
                raise self._unusable("rope.scaling.original_context_length", original)
            usual = longrope_attention_factor(context / original, original)
            changes = {
                "factors": _numbers(weights, "rope_factors_short"),
                "long_factors": _numbers(weights, "rope_factors_long"),
                "original": original,
                "attention_factor": self.number("rope.scaling.attn_factor", usual),
            }
        rope: Rope = msgspec.structs.replace(plain, **changes)
        return rope


def _numbers(weights: GGUFWeights, name: str) -> tuple[float, ...]:
    return tuple(float(x) for x in weights.tensor(f"{name}.weight").ravel())
