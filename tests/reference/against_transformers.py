"""Both sides of a comparison with transformers: tiny random checkpoints that it writes, its logits, and ours.

Imported after what may skip: it needs torch and transformers, of whichever version the environment has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from edgebench.export.onnx import SCORING
from edgebench.runtimes.ort import RUNTIME
from edgebench.specs import Artifact, Settings, TrialSpec

TOLERANCE = 1e-3
VOCABULARY = 288
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


# --- their side -------------------------------------------------------------------------------------------------------


def randomise(model: Any) -> None:
    """Every weight random, and large enough to be seen.

    Norm weights and biases are random too, and q and k are large: with transformers' own initialisation a forgotten
    bias, a norm in the wrong place, or a wrong rotation would change nothing that can be seen.
    """
    draw = torch.Generator().manual_seed(7)
    for name, values in model.named_parameters():
        noise = torch.randn(values.shape, generator=draw)
        if values.ndim == 1:
            is_norm = "norm" in name or "ln_" in name
            middle = 1.0 if is_norm and name.endswith("weight") and "gemma" not in model.config.model_type else 0.0
            noise = middle + 0.3 * noise
        elif any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
            noise = 0.3 * noise
        else:
            sharp = any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn"))
            fan_in = values.shape[0] if model.config.model_type == "gpt2" else values.shape[1]
            noise = (2.0 if sharp else 1.0) * noise / fan_in**0.5
        values.data.copy_(noise)


def write_checkpoint(model_type: str, folder: Path, **changes: Any) -> Any:
    """A random checkpoint in ``folder`` as transformers writes it, of ``SHAPE`` but for the changes; the model."""
    torch.manual_seed(0)
    shape = dict(SHAPE)
    if model_type == "gpt2":
        unknown = ("num_key_value_heads", "intermediate_size")
        shape = {GPT2_NAMES.get(key, key): value for key, value in shape.items() if key not in unknown}
    config = transformers.AutoConfig.for_model(model_type, **{**shape, **changes})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    randomise(model)
    model.save_pretrained(folder)
    return model


def logits_of(model: Any, tokens: Sequence[int]) -> np.ndarray:
    """What transformers expects after each token, [tokens, vocabulary]."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].float().numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) <= TOLERANCE


# --- our side ---------------------------------------------------------------------------------------------------------


def settings(ubatch: int = 512) -> Settings:
    return Settings(threads=2, threads_batch=2, ubatch=ubatch, kv_type="f32")


def open_model(folder: Path) -> Any:
    """An export, ours or somebody else's, on our runtime."""
    artifact = Artifact(model="m", precision="fp32", format="onnx", path=str(folder), bytes=1, sha256="0" * 64)
    trial = TrialSpec(artifact=artifact, runtime="ort", settings=settings(), workloads=())
    return RUNTIME.open(trial, lambda _line: None)


class Scoring:
    """The graph that gives the logits of every token, with a cache of ``capacity`` tokens."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self._session = onnxruntime.InferenceSession(folder / SCORING, providers=["CPUExecutionProvider"])
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._cache = {
            name: np.zeros([1, item.shape[1], capacity, item.shape[3]], np.float32)
            for name, item in self._inputs.items()
            if name.startswith("past")
        }
        self._past = 0

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens; their logits, [tokens, vocabulary]."""
        start, self._past = self._past, self._past + len(tokens)
        feeds = {
            "input_ids": np.array([tokens], np.int64),
            "seqlens_k": np.array([self._past - 1], np.int32),
            "total_sequence_length": np.array(self._past, np.int32),
            **self._cache,
        }
        if "position_ids" in self._inputs:
            feeds["position_ids"] = np.arange(start, self._past, dtype=np.int64)[None]
        logits, *present = self._session.run(None, feeds)
        self._cache = dict(zip(self._cache, present, strict=True))
        return logits[0]
