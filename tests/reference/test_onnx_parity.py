"""The direct road to ONNX against transformers: the same checkpoint, float32, logits within 1e-3 of each other.

Tiny random checkpoints for every architecture and variant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

_HINT = "the judge is not installed: pip install torch==2.13.0 (first), then 'transformers>=5'"
torch = pytest.importorskip("torch", reason=_HINT)
transformers = pytest.importorskip("transformers", minversion="5", reason=_HINT)

from against_transformers import (  # noqa: E402 - after what may skip
    VOCABULARY,
    Scoring,
    close,
    logits_of,
    open_model,
    settings,
    write_checkpoint,
)

from edgebench.checkpoint.architectures import ARCHITECTURES  # noqa: E402
from edgebench.checkpoint.hf import HFWeights  # noqa: E402
from edgebench.export.onnx import DATA, MODEL, SCORING, export  # noqa: E402

TOKENS, PREFIX, CHUNK, WINDOW = 40, 23, 7, 9
"""A prompt several windows long, a prefix longer than the window, and chunks that fit neither."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHORT, LONG = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0], [1.0, 1.5, 2.5, 4.0, 7.0, 11.0, 16.0, 24.0]


@dataclass(frozen=True)
class Case:
    """A checkpoint to make, and how it is used.

    ``changes`` is what differs from ``SHAPE``; ``context`` is what the tables are made for, ``capacity`` the cache's.
    """

    model_type: str
    changes: dict[str, Any]
    context: int | None = None
    tokens: int = TOKENS
    capacity: int = 64


def longrope(**more: Any) -> dict[str, Any]:
    scheme = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG}
    return {
        "rope_parameters": {**scheme, "original_max_position_embeddings": 32, **more},
        "original_max_position_embeddings": 32,
    }


CASES = {
    "llama": Case("llama", {}),
    "llama-tied": Case("llama", {"tie_word_embeddings": True}),
    "llama-biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-all-heads": Case("llama", {"num_key_value_heads": 4}),
    "llama-wide-heads": Case("llama", {"head_dim": 32}),
    "llama-3-rope": Case("llama", {"rope_parameters": LLAMA3}),
    "llama-linear-rope": Case(
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
    ),
    "qwen2": Case("qwen2", {}),
    "qwen2-tied": Case("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": Case(
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_hidden_layers": 3}
    ),
    "qwen3": Case("qwen3", {"head_dim": 32}),
    "qwen3-biases-tied": Case("qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma3": Case(
        "gemma3_text",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma3-plain": Case("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 6}),
    "gemma3-capped-untied": Case(
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gpt2": Case("gpt2", {}),
    "gpt2-untied": Case("gpt2", {"tie_word_embeddings": False, "n_inner": 160}),
    "gpt2-unscaled": Case("gpt2", {"scale_attn_weights": False}),
    "phi3": Case("phi3", {}),
    "phi3-window-tied": Case("phi3", {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "phi3-partial": Case(
        "phi3",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "phi3-long-within": Case("phi3", longrope(), context=32, tokens=32, capacity=32),
    "phi3-long-by-default": Case("phi3", longrope(), tokens=32, capacity=32),
    "phi3-long-beyond": Case("phi3", longrope()),
    "phi3-long-partial": Case(
        "phi3",
        {"num_attention_heads": 2, "num_key_value_heads": 1, **longrope(partial_rotary_factor=0.5)},
    ),
    "phi3-long-own-factor": Case("phi3", longrope(attention_factor=1.25)),
}


@dataclass(frozen=True)
class Made:
    """An export, and what transformers says about the checkpoint that it was made from."""

    folder: Path
    capacity: int
    tokens: list[int]
    expected: np.ndarray
    """[tokens, vocabulary]"""
    model: Any


def random_tokens(count: int, seed: int = 3) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCABULARY, count)]


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case = CASES[request.param]
    source, folder = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the judge's own
        model = write_checkpoint(case.model_type, source, **case.changes)
        tokens = random_tokens(case.tokens)
        expected = logits_of(model, tokens)
    assert np.abs(expected).max() > 0.5, "such logits show nothing"
    weights = HFWeights(source)
    export(weights, folder, "fp32", context=case.context)
    weights.close()
    return Made(folder, case.capacity, tokens, expected, model)


@pytest.fixture
def opened() -> Iterator[Callable[[Path, int], Any]]:
    """Opens a context of the runtime; closed afterwards."""
    models = []

    def opening(made: Made, ubatch: int = 512) -> Any:
        models.append(open_model(made.folder))
        return models[-1].context(made.capacity, settings(ubatch))

    yield opening
    for model in models:
        model.close()


# --- what must be equal -----------------------------------------------------------------------------------------------


def test_every_architecture_has_a_case():
    types = {case.model_type for case in CASES.values()}
    assert not [entry.name for entry in ARCHITECTURES.values() if not types & set(entry.model_types)]


def test_every_token_of_a_prompt_has_the_logits_of_transformers(made):
    close(Scoring(made.folder, made.capacity)(made.tokens), made.expected)


def test_a_prompt_in_chunks_has_them_too(made):
    score = Scoring(made.folder, made.capacity)
    parts = [score(made.tokens[first : first + CHUNK]) for first in range(0, len(made.tokens), CHUNK)]
    close(np.concatenate(parts), made.expected)


def test_the_runtime_gives_the_logits_of_the_last_token(made, opened):
    context = opened(made)
    context.prefill(made.tokens)
    close(context.logits(), made.expected[-1])


def test_the_runtime_in_chunks_gives_the_same(made, opened):
    context = opened(made, CHUNK)
    context.prefill(made.tokens)
    close(context.logits(), made.expected[-1])


def test_decoding_token_by_token_gives_the_logits_of_transformers(made, opened):
    context = opened(made)
    for token, expected in zip(made.tokens, made.expected, strict=True):
        context.time_decode([token])
        close(context.logits(), expected)


def test_two_continuations_of_a_saved_prefix_give_the_logits_of_transformers(made, opened):
    prefix, rest = made.tokens[:PREFIX], made.tokens[PREFIX:]
    other = random_tokens(len(rest), seed=11)
    context = opened(made)
    context.prefill(prefix)
    state = context.save()
    context.prefill(other)
    close(context.logits(), logits_of(made.model, prefix + other)[-1])
    context.clear()
    context.prefill(random_tokens(PREFIX, seed=12))  # over the prefix
    context.restore(state)
    for token, expected in zip(rest, made.expected[PREFIX:], strict=True):
        context.time_decode([token])
        close(context.logits(), expected)


def test_a_cleared_cache_has_forgotten_everything(made, opened):
    context = opened(made)
    context.prefill(random_tokens(len(made.tokens), seed=5))
    context.clear()
    context.prefill(made.tokens)
    close(context.logits(), made.expected[-1])


def test_both_graphs_are_there_and_share_the_data(made):
    assert {path.name for path in made.folder.iterdir()} >= {MODEL, SCORING, DATA}
    assert (made.folder / MODEL).stat().st_size + (made.folder / SCORING).stat().st_size < 100_000
