"""The direct road to ONNX against transformers: the same checkpoint, float32, logits within 1e-3 of each other.

Tiny random checkpoints for every architecture and variant. Norm weights and biases are random too, and q and k are
large: with transformers' own initialisation a forgotten bias, a norm in the wrong place, or a wrong rotation would
change nothing that can be seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytestmark = pytest.mark.slow

_HINT = "the judge is not installed: pip install torch==2.13.0 (first), then 'transformers>=5'"
torch = pytest.importorskip("torch", reason=_HINT)
transformers = pytest.importorskip("transformers", minversion="5", reason=_HINT)

from edgebench.checkpoint.architectures import ARCHITECTURES  # noqa: E402 - after what may skip
from edgebench.checkpoint.hf import HFWeights  # noqa: E402
from edgebench.export.onnx import DATA, MODEL, SCORING, export  # noqa: E402
from edgebench.runtimes.ort import RUNTIME  # noqa: E402
from edgebench.specs import Artifact, Settings, TrialSpec  # noqa: E402

TOLERANCE = 1e-3
TOKENS, PREFIX, CHUNK, WINDOW = 40, 23, 7, 9
"""A prompt several windows long, a prefix longer than the window, and chunks that fit neither."""
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


class Bare(HFWeights):
    """A folder without a tokenizer: logits need none."""

    first_token = None

    def vocabulary_file(self) -> bytes:
        return b""


@dataclass(frozen=True)
class Made:
    """An export, and what transformers says about the checkpoint that it was made from."""

    folder: Path
    capacity: int
    tokens: list[int]
    expected: np.ndarray
    """[tokens, vocabulary]"""
    judge: Callable[[Sequence[int]], np.ndarray]


def randomise(model: Any) -> None:
    """Every weight random, and large enough to be seen."""
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
            sharp = any(part in name for part in ("q_proj", "k_proj", "qkv", "c_attn"))
            fan_in = values.shape[0] if model.config.model_type == "gpt2" else values.shape[1]
            noise = (2.0 if sharp else 1.0) * noise / fan_in**0.5
        values.data.copy_(noise)


def make(case: Case, folder: Path) -> Any:
    """A checkpoint in ``folder`` as transformers writes it; the model."""
    torch.manual_seed(0)
    shape = dict(SHAPE)
    if case.model_type == "gpt2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"max_position_embeddings": "n_positions"}
        shape = {names.get(key, key): value for key, value in shape.items() if key != "num_key_value_heads"}
        del shape["intermediate_size"]
    config = transformers.AutoConfig.for_model(case.model_type, **{**shape, **case.changes})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


def judge_of(model: Any) -> Callable[[Sequence[int]], np.ndarray]:
    def judge(tokens: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([list(tokens)])).logits[0].float().numpy()

    return judge


def random_tokens(count: int, seed: int = 3) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCABULARY, count)]


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case = CASES[request.param]
    source, folder = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the judge's own
        judge = judge_of(make(case, source))
        tokens = random_tokens(case.tokens)
        expected = judge(tokens)
    assert np.abs(expected).max() > 0.5, "such logits show nothing"
    weights = Bare(source)
    export(weights, folder, "fp32", context=case.context)
    weights.close()
    return Made(folder, case.capacity, tokens, expected, judge)


# --- our side ---------------------------------------------------------------------------------------------------------


def settings(ubatch: int) -> Settings:
    return Settings(threads=2, threads_batch=2, ubatch=ubatch, kv_type="f32")


@pytest.fixture
def opened() -> Iterator[Callable[[Path, int], Any]]:
    """Opens a context of the runtime; closed afterwards."""
    models = []

    def opening(made: Made, ubatch: int = 512) -> Any:
        folder, n_ctx = made.folder, made.capacity
        artifact = Artifact(model="m", precision="fp32", format="onnx", path=str(folder), bytes=1, sha256="0" * 64)
        trial = TrialSpec(artifact=artifact, runtime="ort", settings=settings(ubatch), workloads=())
        models.append(RUNTIME.open(trial, lambda _line: None))
        return models[-1].context(n_ctx, settings(ubatch))

    yield opening
    for model in models:
        model.close()


class Scoring:
    """The graph that gives the logits of every token, with a cache that grows by what is run."""

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


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) <= TOLERANCE


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
    close(context.logits(), made.judge(prefix + other)[-1])
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
