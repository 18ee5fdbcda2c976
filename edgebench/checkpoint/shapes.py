"""The tensors that a decoder of a given shape consists of, how large each must be, and what of it does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from edgebench.checkpoint.architectures import Architecture
from edgebench.checkpoint.base import ModelConfig, Rope

_LARGEST = 1e30  # of a rotary parameter: float32 ends at 3e38


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


class Misfit(NamedTuple):
    """A tensor that does not fit: not ``found``, not ``wanted``, or of another shape."""

    name: str
    found: tuple[int, ...] | None
    wanted: tuple[int, ...] | None


def find_misfit(architecture: Architecture, config: ModelConfig, found: Mapping[str, tuple[int, ...]]) -> Misfit | None:
    """The first tensor that is missing, of the wrong shape, or not used by the architecture; None when all fit.

    Args:
        architecture: what the checkpoint is made of.
        config: its shape.
        found: the shape of each tensor in numpy's order, under llama.cpp's names with suffix.
    """
    fitting: set[str] = set()
    for name, wanted, needed in _expected(architecture, config):
        shape = found.get(name)
        if shape is None and not needed:
            continue
        if shape != wanted:
            return Misfit(name, shape, wanted)
        fitting.add(name)
    return next((Misfit(name, shape, None) for name, shape in found.items() if name not in fitting), None)


def _expected(architecture: Architecture, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name, shape, and whether it must be there."""
    yield from ((name, shape, True) for name, shape in global_shapes(architecture, config).items())
    needed, optional = layer_shapes(architecture, config), optional_shapes(architecture, config)
    for layer in range(config.layers):
        yield from ((f"blk.{layer}.{name}", shape, True) for name, shape in needed.items())
        yield from ((f"blk.{layer}.{name}", shape, False) for name, shape in optional.items())


def find_contradiction(config: ModelConfig) -> str | None:
    """What in a shape cannot be, as the end of a sentence; None when nothing is wrong with it."""
    if config.heads % config.kv_heads:
        return f"has {config.heads} attention heads, which {config.kv_heads} key-value heads cannot share evenly"
    for rope in (config.rope, config.local_rope):
        wrong = None if rope is None else _contradiction_of(rope, config.head_dim)
        if wrong is not None:
            return wrong
    return None


def _contradiction_of(rope: Rope, head_dim: int) -> str | None:
    if rope.dimensions % 2 or not 0 < rope.dimensions <= head_dim:
        return f"rotates {rope.dimensions} channels of heads that are {head_dim} wide"
    for factors in (rope.factors, rope.long_factors):
        if factors and len(factors) != rope.dimensions // 2:
            return f"has {len(factors)} rotary factors for {rope.dimensions // 2} pairs of channels"
    numbers = (rope.base, rope.scale, rope.attention_factor, *rope.factors, *rope.long_factors)
    wrong = next((number for number in numbers if not 0 < number < _LARGEST), None)  # NaN is neither
    return None if wrong is None else f"has the rotary parameter {wrong!r}, not a positive number of any use"
