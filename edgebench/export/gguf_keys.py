"""What a GGUF says about a model besides its tensors: the keys of each architecture, in llama.cpp's names.

Sources: llama.cpp's ``src/llama-arch.cpp`` for the names, and ``src/models/*.cpp`` for what each architecture reads.
What llama.cpp would compute differently from the original is an error where it is wrong for every text, and a note
where it is wrong for long ones only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.hf import HFWeights
from edgebench.checkpoint.rotary import longrope_attention_factor
from edgebench.checkpoint.tokenizer import Tokenizer
from edgebench.errors import ArtifactError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_GEMMA3_PATTERN, _GEMMA3_LOCAL_BASE = 6, 10000.0  # what llama.cpp assumes when a file does not say
_IGNORES_WINDOW = ("phi3", "qwen2", "qwen3")


def add_model(writer: GGUFWriter, checkpoint: HFWeights, name: str) -> list[str]:
    """The keys of the model's shape; returns what a reader must know.

    Raises:
        ArtifactError: when llama.cpp would compute something else.
    """
    config, arch = checkpoint.config, checkpoint.architecture
    writer.add_type("model")
    writer.add_name(name)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.vocabulary)
    add_eps = writer.add_layer_norm_eps if arch.norm == "layer" else writer.add_layer_norm_rms_eps
    add_eps(config.norm_eps)
    if config.rope is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.rope.dimensions)
        writer.add_rope_freq_base(config.rope.base)
        _add_scaling(writer, checkpoint)
    _check_attention(checkpoint)
    return _add_window(writer, checkpoint)


def _refuse(checkpoint: HFWeights, what: str) -> ArtifactError:
    return ArtifactError(
        f"{checkpoint.path} {what}, which llama.cpp's {checkpoint.architecture.name} does not compute.",
        "export it to ONNX instead.",
    )


def _check_attention(checkpoint: HFWeights) -> None:
    config, name = checkpoint.config, checkpoint.architecture.name
    if config.final_softcap is not None:
        raise _refuse(checkpoint, "caps its logits")
    if config.attention_scale is not None:
        # Gemma 3 27B alone, which llama.cpp recognises by its number of layers (src/models/gemma3.cpp).
        known = config.layers == 62 and abs(config.attention_scale - (config.hidden / config.heads) ** -0.5) < 1e-9
        if not known:
            raise _refuse(checkpoint, f"multiplies attention scores by {config.attention_scale:g}")
    if name in ("phi3", "gpt2") and config.head_dim * config.heads != config.hidden:
        raise _refuse(checkpoint, f"has heads of {config.head_dim} that do not make up its width")


# --- rotary


def _add_scaling(writer: GGUFWriter, checkpoint: HFWeights) -> None:
    from gguf import RopeScalingType

    rope = checkpoint.config.rope
    if rope is None:
        return
    if rope.scale != 1.0:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.scale)
    longrope = _longrope(checkpoint)
    if longrope is not None:
        if checkpoint.architecture.name != "phi3":
            raise _refuse(checkpoint, "stretches its context by LongRoPE")
        original = longrope[2]
        stretched = checkpoint.config.context / original
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        declared = _scheme(checkpoint).get("attention_factor")
        factor = longrope_attention_factor(stretched, original) if declared is None else float(declared)
        writer.add_rope_scaling_attn_factors(factor)
    elif rope.attention_factor != 1.0:
        raise _refuse(checkpoint, f"multiplies its rotation by {rope.attention_factor:g}")
    elif rope.factors and checkpoint.architecture.name != "llama":
        raise _refuse(checkpoint, "divides its rotary frequencies one by one")


def rotary_tensors(checkpoint: HFWeights) -> dict[str, npt.NDArray[np.float32]]:
    """Divisors of the rotary frequencies, shape [dimensions / 2] each; empty where there are none."""
    longrope = _longrope(checkpoint)
    if longrope is not None:
        long, short, _ = longrope
        return {
            "rope_factors_long.weight": np.asarray(long, np.float32),
            "rope_factors_short.weight": np.asarray(short, np.float32),
        }
    rope = checkpoint.config.rope
    if rope is not None and rope.factors:
        return {"rope_freqs.weight": np.asarray(rope.factors, np.float32)}
    return {}


def _scheme(checkpoint: HFWeights) -> dict[str, Any]:
    raw = checkpoint.hf_config.raw
    scheme = raw.get("rope_parameters") or raw.get("rope_scaling")
    return scheme if isinstance(scheme, dict) else {}


def _longrope(checkpoint: HFWeights) -> tuple[list[float], list[float], int] | None:
    """Long and short factors, and the context that the model had before it was stretched. The reader checked them."""
    scheme = _scheme(checkpoint)
    if scheme.get("rope_type", scheme.get("type")) not in ("longrope", "su"):
        return None
    pairs = checkpoint.config.rope.dimensions // 2 if checkpoint.config.rope else 0
    long, short = scheme.get("long_factor"), scheme.get("short_factor")
    if not isinstance(long, list) or not isinstance(short, list) or {len(long), len(short)} != {pairs}:
        raise ArtifactError(
            f"{checkpoint.path} has no long_factor and short_factor of {pairs} numbers.", "get config.json again."
        )
    raw = checkpoint.hf_config.raw
    original = scheme.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
    return long, short, int(original or checkpoint.config.context)


# --- sliding window


def _add_window(writer: GGUFWriter, checkpoint: HFWeights) -> list[str]:
    config, name = checkpoint.config, checkpoint.architecture.name
    if config.window is None:
        return []
    if name in _IGNORES_WINDOW:
        if config.window >= config.context:
            return []
        return [f"llama.cpp ignores the sliding window of {config.window} tokens: longer texts come out differently"]
    writer.add_sliding_window(config.window)
    if all(config.is_local(layer) == ((layer + 1) % _GEMMA3_PATTERN != 0) for layer in range(config.layers)):
        period = _GEMMA3_PATTERN
    else:
        period = next((layer + 1 for layer in range(config.layers) if not config.is_local(layer)), 0)
        if any(config.is_local(layer) == (period > 0 and (layer + 1) % period == 0) for layer in range(config.layers)):
            raise _refuse(checkpoint, "has layers with full attention at irregular places")
        writer.add_sliding_window_pattern(period)
    if config.local_rope is not None and config.local_rope.base != _GEMMA3_LOCAL_BASE:
        writer.add_rope_freq_base_swa(config.local_rope.base)
    return []


# --- tokenizer


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """The keys of the tokenizer."""
    writer.add_tokenizer_model(tokenizer.family)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(tokenizer.types)
    if tokenizer.merges:
        writer.add_token_merges(tokenizer.merges)
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for role, number in tokenizer.ids.items():
        add[role](number)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    writer.add_add_space_prefix(tokenizer.add_space_prefix)
    if tokenizer.chat_templates:
        writer.add_chat_template(
            [{"name": name, "template": template} for name, template in tokenizer.chat_templates.items()]
        )
