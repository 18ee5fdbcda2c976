"""A Hugging Face folder out of a GGUF: the same weights in float32, for exporters that start from such a folder.

The configuration is one that transformers 4 and 5 both understand. The tokenizer is a stand-in of the right size, for
exporters load and copy one, and token ids are given everywhere.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from experiment import say

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.errors import UsageError
from edgebench.specs import Artifact


def make_folder(source: Artifact, place: Path) -> Path:
    """The weights of a GGUF as fp32 safetensors with a configuration that transformers 4 and 5 both understand."""
    target = place / "hf"
    if target.is_dir():
        return target
    say(f"dequantising {source.model} into a Hugging Face folder")
    partly = place / "hf.partly"
    shutil.rmtree(partly, ignore_errors=True)
    partly.mkdir(parents=True)
    checkpoint = GGUFWeights(Path(source.path))
    try:
        (partly / "config.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(configuration(checkpoint)), indent=1)
        )
        write_tensors(checkpoint, partly / "model.safetensors")
        write_tokenizer(checkpoint.config.vocabulary, partly)
    finally:
        checkpoint.close()
    partly.rename(target)
    return target


def configuration(checkpoint: GGUFWeights) -> dict[str, Any]:
    """``config.json``, with the rotary parameters in the spelling before and since transformers 5.

    Raises:
        UsageError: for an architecture or a rotation that is not described here.
    """
    shape, keys = checkpoint.config, checkpoint.header.metadata
    rope = shape.rope
    if shape.architecture not in ("llama", "gemma3") or rope is None or rope.factors or rope.scale != 1:
        raise UsageError(f"{checkpoint.path} is {shape.architecture}, or scales its rotation.", "choose another model.")
    gemma = shape.architecture == "gemma3"
    spelled: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.base}
    described: dict[str, Any] = {
        "architectures": ["Gemma3ForCausalLM" if gemma else "LlamaForCausalLM"],
        "model_type": "gemma3_text" if gemma else "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "bos_token_id": keys.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": keys.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
        "dtype": "float32",
        "rope_theta": rope.base,
    }
    if not gemma:
        return described | {"hidden_act": "silu", "mlp_bias": False, "rope_parameters": spelled}
    local = shape.local_rope or rope
    return described | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": shape.head_dim,
        "sliding_window": shape.window,
        "layer_types": [f"{'sliding' if flag else 'full'}_attention" for flag in shape.local_layers],
        "rope_local_base_freq": local.base,
        "rope_parameters": {
            "full_attention": spelled,
            "sliding_attention": {"rope_type": "default", "rope_theta": local.base},
        },
    }


def their_name(checkpoint: GGUFWeights, name: str) -> str:
    """What Hugging Face calls a tensor."""
    arch = checkpoint.architecture
    inner = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(\w+)", name)
    if inner:
        return f"{arch.hf_prefixes[0]}{arch.hf_layers}.{inner[1]}.{arch.hf_layer[inner[2]]}.{inner[3]}"
    stem, suffix = name.rsplit(".", 1)
    return f"{arch.hf_head if stem == 'output' else arch.hf_prefixes[0] + arch.hf_global[stem]}.{suffix}"


def write_tensors(checkpoint: GGUFWeights, path: Path) -> None:
    """One safetensors file of float32: length of the header, header, tensors one after the other."""
    names = list(checkpoint.names())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + 4 * int(np.prod(checkpoint.shape(name)))
        entry = {"dtype": "F32", "shape": checkpoint.shape(name), "data_offsets": [start, end]}
        header[their_name(checkpoint, name)] = entry
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            values = checkpoint.tensor(name)
            if name.endswith("norm.weight"):
                values = values - np.float32(checkpoint.architecture.norm_offset)
            file.write(np.ascontiguousarray(values, np.float32).data.cast("B"))


def write_tokenizer(vocabulary: int, folder: Path) -> None:
    """A stand-in of the right size: the builders load and copy a tokenizer, and nobody tokenises."""
    words = {f"<{token}>": token for token in range(vocabulary)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<0>"}
    document = {"version": "1.0", "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_bytes(msgspec.json.encode(document))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<0>"}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(told))
