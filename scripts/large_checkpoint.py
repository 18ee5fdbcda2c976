"""A Hugging Face folder as large as a real model, with random weights: a llama of Llama 3.2 3B's shape, or less deep.

bfloat16 in safetensors shards of at most 2 GB, and a byte-level tokenizer without merges: all that an export reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HIDDEN, KEY, INNER, WORDS = 3072, 1024, 8192, 128_256
"""Llama 3.2 3B: 24 heads of 128, 8 of them for keys and values, 28 layers, tied."""
SHARD_BYTES = 2_000_000_000
CHUNK = 1 << 22
"""Weights that are made at once."""


def config(layers: int) -> dict[str, object]:
    """``config.json``."""
    return {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": INNER,
        "vocab_size": WORDS,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def tokenizer() -> dict[str, object]:
    """``tokenizer.json``: GPT-2's letters for the 256 bytes, then words that no text reaches: there are no merges."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))  # the bytes that do not print, in their order
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    words = [*letters, *(f"word{number}" for number in range(256, WORDS))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {word: number for number, word in enumerate(words)}, "merges": []},
    }


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Its tensors under Hugging Face's names."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEY, HIDDEN),
        "self_attn.v_proj": (KEY, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for index in range(layers):
        found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return found


def elements(shape: tuple[int, ...]) -> int:
    """Number of weights."""
    return int(np.prod(shape, dtype=np.int64))


def shards(tensors: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names of the tensors of each file."""
    own: list[str] = []
    for name in tensors:
        if own and 2 * sum(elements(tensors[one]) for one in [*own, name]) > SHARD_BYTES:
            yield own
            own = []
        own.append(name)
    yield own


def write(folder: Path, layers: int) -> None:
    """The folder; its weights are normal, as wide as those of a trained model."""
    folder.mkdir()
    tensors, random = shapes(layers), np.random.default_rng(0)
    where: dict[str, str] = {}
    (folder / "config.json").write_text(json.dumps(config(layers)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    for number, names in enumerate(shards(tensors), 1):
        file, header, at = f"model-{number:05}.safetensors", {}, 0
        for name in names:
            end = at + 2 * elements(tensors[name])
            header[name] = {"dtype": "BF16", "shape": tensors[name], "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for first in range(0, at // 2, CHUNK):
                values = random.standard_normal(min(CHUNK, at // 2 - first), np.float32) * np.float32(0.02)
                out.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
