"""From a checkpoint to a folder that onnxruntime runs at the speed of the hardware: no torch, no tracing.

    model.onnx       the graph for speed: logits of the last token
    scoring.onnx     the graph for scores: logits of every token
    weights.data     what both refer to, each tensor once
    tokenizer.gguf   the vocabulary, as llama.cpp reads it
    edgebench.json   what all this is, readable without onnx

Tensors are read, rounded and written one at a time, so memory stays near that of the largest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.base import Checkpoint, Rope
from edgebench.checkpoint.rotary import tables
from edgebench.errors import ArtifactError, UnknownNameError
from edgebench.export.blocks import BLOCK, Quantized, quantize, take_over
from edgebench.export.onnx_data import DataFile, Place
from edgebench.export.onnx_graph import DecoderGraph, Stored, Weights
from edgebench.export.onnx_limits import LONGEST_TABLE
from edgebench.manifest import OnnxManifest

PRECISIONS = ("fp32", "int8", "int4", "int4-mixed", "as-stored")
MODEL, SCORING, DATA = "model.onnx", "scoring.onnx", "weights.data"
TOKENIZER, MANIFEST = "tokenizer.gguf", "edgebench.json"
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
_EMBEDDING, _HEAD = "token_embd", "output"


def export(
    checkpoint: Checkpoint,
    folder: Path,
    precision: str,
    *,
    context: int | None = None,
    accuracy_level: int = 4,
    vocabulary: bytes = b"",
    first_token: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> OnnxManifest:
    """Write the graphs and their data into an existing empty folder.

    Args:
        checkpoint: where the weights come from.
        folder: where to.
        precision: one of ``PRECISIONS``. ``as-stored`` takes q8_0 and q4_0 blocks of a GGUF over bit by bit, and turns
            tensors of other block types into int8.
        context: tokens that the rotary tables cover; by default what the model was trained for, at most 8192.
        accuracy_level: MatMulNBits': 4 computes with int8 activations, 0 with floats.
        vocabulary: a GGUF without tensors, from which llama.cpp tokenizes; none is written when it is empty.
        first_token: the begin-of-sequence token if the model wants one.
        progress: tensors done, and of how many.

    Raises:
        UnknownNameError: for a precision that does not exist.
        ArtifactError: when the checkpoint cannot be exported.
        OSError: when the folder cannot be written.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision of an ONNX export", precision, PRECISIONS)
    config = checkpoint.config
    longest = context or min(config.context, LONGEST_TABLE)
    writer = _Writer(checkpoint, DataFile(folder / DATA), precision, progress)
    try:
        weights = writer.write_all(longest)
    finally:
        writer.data.close()
    for name, last_only in ((MODEL, True), (SCORING, False)):
        graph = DecoderGraph(
            checkpoint.architecture, config, weights, DATA, accuracy_level=accuracy_level, last_only=last_only
        )
        (folder / name).write_bytes(graph.build().SerializeToString())
    if vocabulary:
        (folder / TOKENIZER).write_bytes(vocabulary)
    manifest = writer.describe(
        precision=precision, table_context=longest, accuracy_level=accuracy_level, first_token=first_token
    )
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    return manifest


class _Writer:
    """Turns tensors into places in the data file."""

    def __init__(
        self, checkpoint: Checkpoint, data: DataFile, precision: str, progress: Callable[[int, int], None]
    ) -> None:
        self._checkpoint, self.data, self._precision, self._progress = checkpoint, data, precision, progress
        self._total, self._done = len(list(checkpoint.names())), 0
        self._not_finite: list[str] = []
        self._rounded: dict[str, int] = {}
        self.parameters, self.weight_bytes = 0, 0

    def write_all(self, longest: int) -> Weights:
        """Every tensor and table."""
        arch, config = self._checkpoint.architecture, self._checkpoint.config
        weights = Weights({}, {}, {})
        self._write_linear(weights, [_EMBEDDING], layer=None)
        if "position_embd.weight" in set(self._checkpoint.names()):
            values = self._read("position_embd.weight")
            weights.tables["position_embd"] = (self._place(values), values.shape)
        for layer in range(config.layers):
            prefix = f"blk.{layer}."
            for norm in arch.norms:
                if norm not in HEAD_NORMS:
                    self._write_norm(weights, prefix + norm)
            if arch.qk_norm:
                self._write_head_norms(weights, prefix)
            for parts in (arch.qkv, ("attn_output",), arch.gate_up, ("ffn_down",)):
                self._write_linear(weights, [prefix + part for part in parts], layer=layer)
        self._write_norm(weights, "output_norm")
        if not config.tied:
            self._write_linear(weights, [_HEAD], layer=None)
        for rope, suffix in ((config.rope, ""), (config.local_rope, "_local")):
            if rope is not None:
                self._write_tables(weights, rope, longest, suffix)
        return weights

    def _write_tables(self, weights: Weights, rope: Rope, longest: int, suffix: str) -> None:
        both = rope.original is not None and longest > rope.original  # else no context is long enough for the second
        for ending, long in ((suffix, False), *([(f"{suffix}_long", True)] if both else [])):
            for name, table in zip(("cos", "sin"), tables(rope, longest, long=long), strict=True):
                weights.tables[name + ending] = (self.data.write(table), table.shape)

    # --- one tensor

    def _read(self, name: str) -> npt.NDArray[np.float32]:
        values = self._checkpoint.tensor(name)
        # NaN spreads into both ends. isfinite() would make an array of a quarter of the tensor's size.
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            self._not_finite.append(name)
        self._tell(name)
        return values

    def _tell(self, name: str) -> None:
        self.parameters += int(np.prod(self._checkpoint.shape(name)))
        self._done += 1
        self._progress(self._done, self._total)

    def _place(self, values: npt.NDArray[np.float32]) -> Place:
        self.weight_bytes += values.nbytes
        return self.data.write(values.astype(np.float32, copy=False))

    def _write_norm(self, weights: Weights, name: str) -> None:
        for suffix in ("weight", "bias"):
            full = f"{name}.{suffix}"
            if self._checkpoint.has(full):
                values = self._read(full)
                weights.vectors[full] = (self._place(values), values.size)

    def _write_head_norms(self, weights: Weights, prefix: str) -> None:
        """The norms of q and k as one table with a row for each head, so that one node normalises all of them."""
        config = self._checkpoint.config
        rows = []
        for norm, heads in zip(HEAD_NORMS, (config.heads, config.kv_heads), strict=True):
            values = self._read(f"{prefix}{norm}.weight")
            self.weight_bytes += values.nbytes
            rows.append(np.broadcast_to(values, (heads, values.size)))
        table = np.concatenate(rows)
        weights.tables[f"{prefix}head_norms"] = (self.data.write(table), table.shape)

    def _write_linear(self, weights: Weights, tensors: Sequence[str], layer: int | None) -> None:
        """Rows of several tensors one after the other, as few matrices as their widths allow."""
        key = "+".join(tensors)
        parts = [self._matrix(f"{name}.weight", layer) for name in tensors]
        groups: list[list[Quantized | npt.NDArray[np.float32]]] = []
        for part in parts:
            if groups and _bits(groups[-1][0]) == _bits(part):
                groups[-1].append(part)
            else:
                groups.append([part])
        weights.matrices[key] = tuple(self._store(group) for group in groups)
        biases = [self._checkpoint.has(f"{name}.bias") for name in tensors]
        if any(biases):
            rows = [
                self._read(f"{name}.bias") if there else np.zeros(self._rows(name), np.float32)
                for name, there in zip(tensors, biases, strict=True)
            ]
            joined = np.concatenate(rows)
            weights.vectors[f"{key}.bias"] = (self._place(joined), joined.size)

    def _rows(self, name: str) -> int:
        return self._checkpoint.shape(f"{name}.weight")[0]

    def _store(self, group: list[Quantized | npt.NDArray[np.float32]]) -> Stored:
        first = group[0]
        if isinstance(first, Quantized):
            same = [part for part in group if isinstance(part, Quantized)]
            data = same[0].data if len(same) == 1 else np.concatenate([part.data for part in same])
            scales = same[0].scales if len(same) == 1 else np.concatenate([part.scales for part in same])
            self.weight_bytes += data.nbytes + scales.nbytes
            return Stored(first.bits, data.shape[0], first.columns, self.data.write(data), self.data.write(scales))
        plain = [part for part in group if not isinstance(part, Quantized)]
        joined = plain[0] if len(plain) == 1 else np.concatenate(plain)
        return Stored(32, joined.shape[0], joined.shape[1], self._place(joined), None)

    def _matrix(self, name: str, layer: int | None) -> Quantized | npt.NDArray[np.float32]:
        stored = self._checkpoint.blocks(name) if self._precision == "as-stored" else None
        if stored is not None:
            taken = take_over(stored)
            if taken is not None:
                self._tell(name)
                if not np.isfinite(taken.scales).all():
                    self._not_finite.append(name)
                return taken
            self._rounded[stored.type] = self._rounded.get(stored.type, 0) + 1
        values = self._read(name)
        bits = 8 if stored is not None else self._bits_of(name, layer)
        if bits == 32:
            return values
        if values.shape[1] % BLOCK:
            raise ArtifactError(
                f"{self._checkpoint.path}: the rows of {name} are {values.shape[1]} long, not whole blocks of {BLOCK}.",
                "export it at fp32.",
            )
        return quantize(values, bits)

    def _bits_of(self, name: str, layer: int | None) -> int:
        """The width of a tensor at this precision."""
        if self._precision in ("fp32", "as-stored"):
            return 32
        if self._precision == "int8":
            return 8
        if self._precision == "int4-mixed" and (layer is None or self._is_sensitive(name, layer)):
            return 8
        return 4

    def _is_sensitive(self, name: str, layer: int) -> bool:
        """The down projections of the first and last eighth of layers and of every third between, as llama.cpp does.

        Source: ``use_more_bits`` in llama.cpp's ``llama-quant.cpp``: residual outliers are largest there.
        """
        layers = self._checkpoint.config.layers
        outer = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        return name.endswith("ffn_down.weight") and outer

    def describe(
        self, *, precision: str, table_context: int, accuracy_level: int, first_token: int | None
    ) -> OnnxManifest:
        """What was written, in words and numbers."""
        config = self._checkpoint.config
        return OnnxManifest(
            model=config.name,
            precision=precision,
            architecture=config.architecture,
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocabulary,
            context=config.context,
            table_context=table_context,
            parameters=self.parameters,
            weight_bytes=self.weight_bytes,
            accuracy_level=accuracy_level,
            same_weights=self.is_exact,
            first_token=first_token,
            notes=self.notes(),
        )

    @property
    def is_exact(self) -> bool:
        """Whether nothing was rounded."""
        return not self._rounded and self._precision in ("fp32", "as-stored")

    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        notes = [f"{count} tensors of the type {kind} became int8" for kind, count in sorted(self._rounded.items())]
        if self._not_finite:
            more = f" and {len(self._not_finite) - 1} more" if len(self._not_finite) > 1 else ""
            notes.append(f"weights that are not finite numbers: {self._not_finite[0]}{more}")
        return tuple(notes)


def _bits(part: Quantized | npt.NDArray[np.float32]) -> int:
    return part.bits if isinstance(part, Quantized) else 32
