"""A GGUF file as a checkpoint: its shape from the keys, its tensors mapped, dequantised by gguf-py one at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.architectures import Architecture, by_name
from edgebench.checkpoint.base import Blocks, ModelConfig, Rope
from edgebench.checkpoint.gguf import GGUFHeader, TensorInfo, read_header
from edgebench.checkpoint.ggml_types import GGML_TYPES
from edgebench.checkpoint.rotary import longrope_attention_factor
from edgebench.checkpoint.shapes import global_shapes, layer_shapes, optional_shapes
from edgebench.errors import ArtifactError

_PLAIN = {"f32": np.float32, "f16": np.float16}
_TYPE_IDS = {kind.name: number for number, kind in GGML_TYPES.items()}
_ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Not among the keys of the file: llama.cpp's gemma3 has these numbers in its code (src/models/gemma3.cpp).
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
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.config: ModelConfig = _Keys(self.header, path).config(self)
        self.first_token = self._first_token()
        self._check()

    def _check(self) -> None:
        """Every tensor that the architecture needs is there, in the right shape, and there is none that it ignores."""
        wanted = dict(global_shapes(self.architecture, self.config))
        allowed: dict[str, tuple[int, ...]] = {}
        for layer in range(self.config.layers):
            for name, shape in layer_shapes(self.architecture, self.config).items():
                wanted[f"blk.{layer}.{name}"] = shape
            for name, shape in optional_shapes(self.architecture, self.config).items():
                allowed[f"blk.{layer}.{name}"] = shape
        for name, shape in wanted.items():
            if name not in self._infos:
                raise self._damaged(f"lacks the tensor {name}")
        for name in self._infos:
            shape = wanted.get(name, allowed.get(name))
            if shape is None and name not in _ROTARY_TENSORS:
                raise self._damaged(f"has the tensor {name}, which {self.architecture.name} does not use")
            if shape is not None and self.shape(name) != shape:
                raise self._damaged(f"has the tensor {name} of shape {list(self.shape(name))}, not {list(shape)}")

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

    def _bytes(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        start = self.header.data_offset + info.offset
        rows = info.elements // info.shape[0]
        return np.frombuffer(self._map, np.uint8, info.bytes, start).reshape(rows, -1)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        info = self._info(name)
        stored = self._bytes(info)
        if info.type in _PLAIN:
            values = stored.view(_PLAIN[info.type]).astype(np.float32, copy=False)
        else:
            values = self._dequantised(stored, info)
        return self._halves(name, values.reshape(self.shape(name)))

    def _dequantised(self, stored: npt.NDArray[np.uint8], info: TensorInfo) -> npt.NDArray[np.float32]:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            return dequantize(stored, GGMLQuantizationType(_TYPE_IDS[info.type])).astype(np.float32, copy=False)
        except (NotImplementedError, ValueError) as error:
            raise ArtifactError(
                f"{self.path} stores {info.name} as {info.type}, which gguf-py cannot dequantise.",
                "start from a file of another type: f16, q8_0, q4_0, q4_k_m...",
            ) from error

    def blocks(self, name: str) -> Blocks | None:
        info = self._info(name)
        if info.type in _PLAIN or info.type == "bf16":
            return None
        return Blocks(type=info.type, data=self._halves(name, self._bytes(info)))

    def _halves(self, name: str, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:  # type: ignore[type-var]
        """Undo the interleaving of q and k rows that llama.cpp's converter applies to the llama architecture."""
        part = name.rsplit(".", 2)[-2]
        if self.architecture.rotary != "pairs" or part not in ("attn_q", "attn_k"):
            return rows
        heads = self.config.heads if part == "attn_q" else self.config.kv_heads
        split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)

    def vocabulary_file(self) -> bytes:
        """The same GGUF without its tensors: what llama.cpp needs to tokenise (``vocab_only``)."""
        head = self._map[:4] + self.header.version.to_bytes(4, "little") + bytes(8)  # no tensors
        return head + self._map[16 : self.header.keys_end]

    def close(self) -> None:
        try:
            self._map.close()
        except BufferError:  # arrays still show into it (those of a traceback, say) and keep it alive
            return


class _Keys:
    """The keys of a file, with errors that name what is missing."""

    def __init__(self, header: GGUFHeader, path: Path) -> None:
        self._header, self._path, self._arch = header, path, header.architecture

    def number(self, key: str, default: float | None = None) -> float:
        value = self._header.metadata.get(f"{self._arch}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ArtifactError(
                f"{self._path} has no usable {self._arch}.{key} ({value!r}).", "convert it again from the original weights."
            )
        return value

    def whole(self, key: str, default: float | None = None) -> int:
        return int(self.number(key, default))

    def config(self, weights: GGUFWeights) -> ModelConfig:
        hidden, heads = self.whole("embedding_length"), self.whole("attention.head_count")
        head_dim = self.whole("attention.key_length", hidden // heads)
        layers = self.whole("block_count")
        norm = "layer_norm_epsilon" if weights.architecture.norm == "layer" else "layer_norm_rms_epsilon"
        window = self._window(weights.architecture)
        vocabulary = self._header.vocabulary
        embedding = weights.shape("token_embd.weight")
        if vocabulary is not None and embedding[0] != vocabulary:
            raise ArtifactError(
                f"{self._path} has {vocabulary} words in its tokenizer and {embedding[0]} rows in its embedding.",
                "convert it again from the original weights.",
            )
        return ModelConfig(
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
            local_rope=Rope(base=_GEMMA3_LOCAL_BASE, dimensions=head_dim) if self._arch == "gemma3" else None,
            window=window,
            local_layers=self._local_layers(layers) if window else (),
        )

    def _window(self, architecture: Architecture) -> int | None:
        if architecture.name not in ("gemma3", "phi3"):
            return None
        value = self._header.metadata.get(f"{self._arch}.attention.sliding_window")
        return value if isinstance(value, int) and value > 0 else None

    def _local_layers(self, layers: int) -> tuple[bool, ...]:
        if self._arch == "gemma3":
            return tuple((layer + 1) % _GEMMA3_PATTERN != 0 for layer in range(layers))
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
        factors: tuple[float, ...] = ()
        if weights.has("rope_freqs.weight"):
            factors = tuple(float(x) for x in weights.tensor("rope_freqs.weight").ravel())
        attention_factor = 1.0
        if weights.has("rope_factors_long.weight"):
            original = self.whole("rope.scaling.original_context_length", self.whole("context_length"))
            stretched = self.whole("context_length") / original
            which = "long" if stretched > 1 else "short"
            factors = tuple(float(x) for x in weights.tensor(f"rope_factors_{which}.weight").ravel())
            attention_factor = self.number(
                "rope.scaling.attn_factor", longrope_attention_factor(stretched, original)
            )
        return Rope(base=base, dimensions=dimensions, scale=scale, factors=factors, attention_factor=attention_factor)
