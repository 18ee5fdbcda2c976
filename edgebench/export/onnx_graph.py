"""The fused graph of a decoder, written node by node: no tracing, no torch.

One attention node a layer (GroupQueryAttention, with the rotation inside), one matrix node for q, k and v together and
one for gate and up, and the residual sum inside the normalisation. On a small model a node costs as much as its memory
traffic, so fewer nodes are faster. Operators: onnxruntime ``docs/ContribOperators.md``.

Inputs: ``input_ids`` int64 [1, S]; ``seqlens_k`` int32 [1], tokens in the cache after this call minus one;
``total_sequence_length`` int32 [], tokens in the cache after this call; ``position_ids`` int64 [1, S] where positions
are learned; ``past_key_values.N.key`` and ``.value`` float32 [1, kv_heads, capacity, head_dim].
Outputs: ``logits`` float32 [1, 1, vocabulary] (the last token's) or [1, S, vocabulary]; ``present.N.key``/``.value``.
Past and present of a layer may be the same buffer: new keys are then written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgebench.checkpoint.architectures import Architecture
from edgebench.checkpoint.base import ModelConfig
from edgebench.export.blocks import BLOCK
from edgebench.export.onnx_data import Place

OPSET = 20
IR_VERSION = 10
_CONTRIB = "com.microsoft"


class Stored(NamedTuple):
    """A matrix that lies in the data file. ``bits`` is 32 for plain floats; then there are no scales."""

    bits: int
    rows: int
    columns: int
    data: Place
    scales: Place | None


class Weights(NamedTuple):
    """Everything the graph refers to, by llama.cpp's names."""

    matrices: dict[str, tuple[Stored, ...]]
    """A list where rows of one linear layer are stored at different widths."""
    vectors: dict[str, tuple[Place, int]]
    """Norm weights and biases: place and length."""
    tables: dict[str, tuple[Place, tuple[int, ...]]]
    """``cos``, ``sin``, the same with ``_local`` and with ``_long``, ``position_embd``, ``blk.N.head_norms``."""


class DecoderGraph:
    """Builds one entry point over weights that are already in the data file.

    Args:
        architecture: what it is made of.
        config: its shape.
        weights: where everything lies.
        data_name: the name of the data file, beside the graph.
        accuracy_level: MatMulNBits: 4 quantizes activations to int8, 0 computes in float.
        last_only: logits of the last token only.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        weights: Weights,
        data_name: str,
        *,
        accuracy_level: int,
        last_only: bool,
    ) -> None:
        self._arch, self._config, self._weights = architecture, config, weights
        self._data_name, self._level, self._last_only = data_name, accuracy_level, last_only
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    # --- the pieces of a graph

    def _node(
        self, kind: str, inputs: Sequence[str], name: str, outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> str:
        """Add a node; the name of its first output."""
        names = [name, *(f"{name}:{n}" for n in range(1, outputs))] if isinstance(outputs, int) else list(outputs)
        domain = attributes.pop("domain", "")
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0]

    def _external(self, name: str, kind: int, dims: Sequence[int], place: Place) -> str:
        if name not in self._initializers:
            tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", self._data_name), ("offset", place.offset), ("length", place.length)):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        if name not in self._initializers:
            self._initializers[name] = onnx.numpy_helper.from_array(values, name)
        return name

    def _vector(self, name: str) -> str:
        place, length = self._weights.vectors[name]
        return self._external(name, TensorProto.FLOAT, [length], place)

    def _table(self, name: str) -> str:
        place, dims = self._weights.tables[name]
        return self._external(name, TensorProto.FLOAT, dims, place)

    # --- layers

    def _linear(self, x: str, tensors: Sequence[str], name: str) -> str:
        """``x`` times the rows of these tensors, one after the other, plus their biases."""
        matrices = self._weights.matrices["+".join(tensors)]
        names = [name] if len(matrices) == 1 else [f"{name}.{n}" for n in range(len(matrices))]
        bias = "+".join(tensors) + ".bias"
        added = self._vector(bias) if bias in self._weights.vectors else ""
        if added and len(matrices) == 1 and matrices[0].bits < 32:
            return self._product(x, matrices[0], name, added)
        parts = [self._product(x, stored, part) for stored, part in zip(matrices, names, strict=True)]
        y = parts[0] if len(parts) == 1 else self._node("Concat", parts, f"{name}.rows", axis=-1)
        return self._node("Add", [y, added], f"{name}.biased") if added else y

    def _product(self, x: str, stored: Stored, name: str, bias: str = "") -> str:
        """``x`` times one matrix; ``bias`` is added where the matrix is quantized, by the same node."""
        if stored.bits == 32:
            weight = self._external(f"{name}.weight", TensorProto.FLOAT, [stored.rows, stored.columns], stored.data)
            return self._node("FusedMatMul", [x, weight], name, domain=_CONTRIB, transB=1)
        blocks = -(-stored.columns // BLOCK)
        data = self._external(
            f"{name}.weight", TensorProto.UINT8, [stored.rows, blocks, BLOCK * stored.bits // 8], stored.data
        )
        if stored.scales is None:
            raise ValueError(f"{name}: quantized without scales")
        scales = self._external(f"{name}.scales", TensorProto.FLOAT, [stored.rows, blocks], stored.scales)
        shape = {"K": stored.columns, "N": stored.rows, "bits": stored.bits, "block_size": BLOCK}
        inputs = [x, data, scales, *(["", "", bias] if bias else [])]  # between them: zero points and group indices
        return self._node("MatMulNBits", inputs, name, domain=_CONTRIB, accuracy_level=self._level, **shape)

    def _norm(self, x: str, weight: str, name: str) -> str:
        scale = self._vector(f"{weight}.weight")
        if self._arch.norm == "rms":
            return self._rms(x, scale, name)
        inputs = [x, scale, self._vector(f"{weight}.bias")]
        return self._node("LayerNormalization", inputs, name, epsilon=self._config.norm_eps)

    def _rms(self, x: str, scale: str, name: str) -> str:
        # Registered by onnxruntime in the default domain, under this name only (SimplifiedLayerNormFusion).
        eps = self._config.norm_eps
        return self._node("SimplifiedLayerNormalization", [x, scale], name, epsilon=eps, axis=-1, stash_type=1)

    def _add_and_norm(self, x: str, residual: str, weight: str, name: str) -> tuple[str, str]:
        """(normalised sum, sum)."""
        inputs = [x, residual, self._vector(f"{weight}.weight")]
        kind = "SkipSimplifiedLayerNormalization"
        if self._arch.norm == "layer":
            inputs.append(self._vector(f"{weight}.bias"))
            kind = "SkipLayerNormalization"
        outputs = [name, "", "", f"{name}.sum"] if weight != "output_norm" else [name]
        normed = self._node(kind, inputs, name, outputs, domain=_CONTRIB, epsilon=self._config.norm_eps)
        return normed, outputs[-1]

    def _embed(self) -> str:
        stored = self._weights.matrices["token_embd"][0]
        if stored.bits == 32:
            dims = [stored.rows, stored.columns]
            table = self._external("embedding", TensorProto.FLOAT, dims, stored.data)
            x = self._node("Gather", [table, "input_ids"], "embed")
        else:
            x = self._embed_blocks(stored)
        if self._arch.scaled_embedding:
            scale = self._constant("embedding.scale", np.array(self._config.hidden**0.5, np.float32))
            x = self._node("Mul", [x, scale], "embed.scaled")
        if "position_embd" in self._weights.tables:
            where = self._node("Gather", [self._table("position_embd"), "position_ids"], "positions")
            x = self._node("Add", [x, where], "embed.placed")
        return x

    def _embed_blocks(self, stored: Stored) -> str:
        if stored.scales is None:
            raise ValueError("embedding: quantized without scales")
        data = self._external(
            "embedding", TensorProto.UINT8, [stored.rows, stored.columns * stored.bits // 8], stored.data
        )
        blocks = stored.columns // BLOCK
        scales = self._external("embedding.scales", TensorProto.FLOAT, [stored.rows, blocks], stored.scales)
        how = {"bits": stored.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return self._node("GatherBlockQuantized", [data, "input_ids", scales], "embed", domain=_CONTRIB, **how)

    def _attention(self, x: str, layer: int) -> str:
        arch, config, name = self._arch, self._config, f"layer{layer}.attention"
        tensors = [f"blk.{layer}.{part}" for part in arch.qkv]
        projected = self._linear(x, tensors, f"layer{layer}.qkv")
        inputs = self._normed_heads(projected, layer)
        inputs += [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        inputs += ["seqlens_k", "total_sequence_length"]
        attributes: dict[str, Any] = {"num_heads": config.heads, "kv_num_heads": config.kv_heads}
        if config.rope is not None:
            local = "_local" if config.is_local(layer) and config.local_rope is not None else ""
            inputs += [self._rotation(f"cos{local}"), self._rotation(f"sin{local}")]
            attributes |= {"do_rotary": 1, "rotary_interleaved": 0}
        if config.is_local(layer) and config.window is not None:
            attributes["local_window_size"] = config.window
        if config.attention_scale is not None:
            attributes["scale"] = config.attention_scale
        outputs = [name, f"present.{layer}.key", f"present.{layer}.value"]
        return self._node("GroupQueryAttention", inputs, name, outputs, domain=_CONTRIB, **attributes)

    def _rotation(self, name: str) -> str:
        """The rotary table of this name; with LongRoPE the one for the capacity of the cache, chosen once a call.

        The capacity decides, not the tokens so far, so that no key is rotated by other factors than the next (as
        llama.cpp does).
        """
        rope, chosen = self._config.rope, f"{name}.chosen"
        if rope is None or rope.original is None or f"{name}_long" not in self._weights.tables:
            return self._table(name)
        made = {output for node in self._nodes for output in node.output}
        if "capacity.is_long" not in made:
            capacity = self._node("Shape", ["past_key_values.0.key"], "capacity", start=2, end=3)
            original = self._constant("capacity.original", np.array([rope.original], np.int64))
            self._node("Greater", [capacity, original], "capacity.is_long")
        if chosen not in made:
            self._node("Where", ["capacity.is_long", self._table(f"{name}_long"), self._table(name)], chosen)
        return chosen

    def _normed_heads(self, projected: str, layer: int) -> list[str]:
        """Query, key and value inputs of the attention: packed as they are, or split where heads are normalised."""
        if not self._arch.qk_norm:
            return [projected, "", ""]
        config, name = self._config, f"layer{layer}"
        heads = config.heads + config.kv_heads
        widths = np.array([heads * config.head_dim, config.kv_heads * config.head_dim], np.int64)
        parts = [f"{name}.qk", f"{name}.v"]
        self._node("Split", [projected, self._constant("qkv.widths", widths)], f"{name}.split", parts, axis=-1)
        apart = self._constant("heads.apart", np.array([0, 0, heads, config.head_dim], np.int64))
        flat = self._constant("heads.flat", np.array([0, 0, -1], np.int64))
        x = self._node("Reshape", [parts[0], apart], f"{name}.qk.heads")
        # One scale for all heads, then one for each: onnxruntime before 1.24 takes no scale of two dimensions.
        x = self._rms(x, self._constant("heads.ones", np.ones(config.head_dim, np.float32)), f"{name}.qk.unit")
        x = self._node("Mul", [x, self._table(f"blk.{layer}.head_norms")], f"{name}.qk.norm")
        x = self._node("Reshape", [x, flat], f"{name}.qk.flat")
        return [self._node("Concat", [x, parts[1]], f"{name}.qkv.normed", axis=-1), "", ""]

    def _mlp(self, x: str, layer: int) -> str:
        arch, name = self._arch, f"layer{layer}"
        up = self._linear(x, [f"blk.{layer}.{part}" for part in arch.gate_up], f"{name}.up")
        activate: Callable[[str, str], str] = self._silu if arch.activation == "silu" else self._gelu
        if arch.gated:
            self._node("Split", [up], f"{name}.halves", [f"{name}.gate", f"{name}.value"], axis=-1, num_outputs=2)
            y = self._node("Mul", [activate(f"{name}.gate", f"{name}.act"), f"{name}.value"], f"{name}.gated")
        else:
            y = activate(up, f"{name}.act")
        return self._linear(y, [f"blk.{layer}.ffn_down"], f"{name}.down")

    def _silu(self, x: str, name: str) -> str:
        return self._node("QuickGelu", [x], name, domain=_CONTRIB, alpha=1.0)

    def _gelu(self, x: str, name: str) -> str:
        return self._node("FastGelu", [x], name, domain=_CONTRIB)

    def _last(self, x: str, name: str) -> str:
        """The last token only, [1, 1, width]."""
        return self._node("Gather", [x, self._constant("last", np.array([-1], np.int64))], name, axis=1)

    # --- the whole

    def build(self) -> onnx.ModelProto:
        """The model."""
        config, post = self._config, self._arch.post_norms
        residual = self._embed()
        x = self._norm(residual, "blk.0.attn_norm", "layer0.attn_norm")
        for layer in range(config.layers):
            attended = self._attention(x, layer)
            if self._last_only and layer == config.layers - 1:
                # Only its keys and values need the other tokens: what follows is computed for the last one.
                attended, residual = self._last(attended, "last.attention"), self._last(residual, "last.residual")
            x = self._linear(attended, [f"blk.{layer}.attn_output"], f"layer{layer}.out")
            if post:
                x = self._norm(x, f"blk.{layer}.post_attention_norm", f"layer{layer}.attn_post")
            x, residual = self._add_and_norm(x, residual, f"blk.{layer}.ffn_norm", f"layer{layer}.ffn_norm")
            x = self._mlp(x, layer)
            if post:
                x = self._norm(x, f"blk.{layer}.post_ffw_norm", f"layer{layer}.ffn_post")
            is_last = layer == config.layers - 1
            following = "output_norm" if is_last else f"blk.{layer + 1}.attn_norm"
            name = "final_norm" if is_last else f"layer{layer + 1}.attn_norm"
            x, residual = self._add_and_norm(x, residual, following, name)
        self._head(x)
        return self._model()

    def _head(self, x: str) -> None:
        head = self._linear(x, ["token_embd" if self._config.tied else "output"], "head")
        cap = self._config.final_softcap
        if cap is not None:
            limit = self._constant("softcap", np.array(cap, np.float32))
            inside = self._node("Tanh", [self._node("Div", [head, limit], "head.scaled")], "head.bounded")
            head = self._node("Mul", [inside, limit], "head.capped")
        self._nodes[-1].output[0] = "logits"

    def _model(self) -> onnx.ModelProto:
        config, tensor = self._config, helper.make_tensor_value_info
        cache: list[str | int | None] = [1, config.kv_heads, "capacity", config.head_dim]
        inputs = [tensor("input_ids", TensorProto.INT64, [1, "S"]), tensor("seqlens_k", TensorProto.INT32, [1])]
        inputs.append(tensor("total_sequence_length", TensorProto.INT32, []))
        if "position_embd" in self._weights.tables:
            inputs.append(tensor("position_ids", TensorProto.INT64, [1, "S"]))
        outputs = [tensor("logits", TensorProto.FLOAT, [1, 1 if self._last_only else "S", config.vocabulary])]
        for layer in range(config.layers):
            for part in ("key", "value"):
                inputs.append(tensor(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, cache))
                outputs.append(tensor(f"present.{layer}.{part}", TensorProto.FLOAT, cache))
        graph = helper.make_graph(
            self._nodes, config.name or "decoder", inputs, outputs, initializer=list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgebench")
