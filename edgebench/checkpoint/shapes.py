"""The tensors that a decoder of a given shape consists of, and how large each must be."""

from __future__ import annotations

from edgebench.checkpoint.architectures import Architecture
from edgebench.checkpoint.base import ModelConfig


def global_shapes(architecture: Architecture, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors outside the layers, under llama.cpp's names with suffix, in numpy's order of dimensions."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocabulary, config.hidden)}
    if "position_embd" in architecture.hf_global:
        shapes["position_embd.weight"] = (config.context, config.hidden)
    shapes["output_norm.weight"] = (config.hidden,)
    if architecture.norm == "layer":
        shapes["output_norm.bias"] = (config.hidden,)
    if not config.tied:
        shapes["output.weight"] = (config.vocabulary, config.hidden)
    return shapes


def layer_shapes(architecture: Architecture, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of one layer that must be there, without ``blk.N.``; optional biases are not among them."""
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    ffn = config.ffn
    linear = {
        "attn_q": (query, config.hidden),
        "attn_k": (key, config.hidden),
        "attn_v": (key, config.hidden),
        "attn_qkv": (query + 2 * key, config.hidden),
        "attn_output": (config.hidden, query),
        "ffn_gate": (ffn, config.hidden),
        "ffn_up": (2 * ffn if architecture.gated and len(architecture.gate_up) == 1 else ffn, config.hidden),
        "ffn_down": (config.hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name in architecture.hf_layer:
        if name in linear:
            shapes[f"{name}.weight"] = linear[name]
            if name in architecture.biased:
                shapes[f"{name}.bias"] = linear[name][:1]
        else:
            width = config.head_dim if name in ("attn_q_norm", "attn_k_norm") else config.hidden
            shapes[f"{name}.weight"] = (width,)
            if architecture.norm == "layer":
                shapes[f"{name}.bias"] = (width,)
    return shapes


def optional_shapes(architecture: Architecture, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Biases of a layer that may be there, without ``blk.N.``."""
    shapes = layer_shapes(architecture, config)
    return {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in architecture.optional_biases}
