"""The direct road to ONNX on real models against transformers, both starting from the same GGUF.

transformers reads the GGUF by code of its own (names, order of the rows of q and k, offsets of norms, rotary
parameters), so a mistake in our reader cannot hide on both sides.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

_HINT = "the judge is not installed: pip install torch==2.13.0 (first), then 'transformers>=5' accelerate"
torch = pytest.importorskip("torch", reason=_HINT)
transformers = pytest.importorskip("transformers", minversion="5", reason=_HINT)
pytest.importorskip("accelerate", reason=_HINT)

from against_transformers import Scoring, close, logits_of, open_model, settings  # noqa: E402 - after what may skip

from edgebench.artifacts import obtain  # noqa: E402
from edgebench.checkpoint.gguf_weights import GGUFWeights  # noqa: E402
from edgebench.checkpoint.hf import HFWeights  # noqa: E402
from edgebench.errors import EdgebenchError  # noqa: E402
from edgebench.export.onnx import export  # noqa: E402

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
TOKENS, PREFIX, GREEDY, PROMPT = 560, 540, 64, 40
"""Gemma's window is 512 tokens: text and prefix are longer."""


@dataclass(frozen=True)
class Real:
    """A model in three forms, and what transformers says."""

    gguf: GGUFWeights
    hf: HFWeights
    onnx: Path
    tokens: list[int]
    expected: np.ndarray
    judge: Any

    def context(self, capacity: int = TOKENS) -> Any:
        """A fresh context of the runtime."""
        return open_model(self.onnx).context(capacity, settings(ubatch=128))


def file_of(model: str) -> Path:
    try:
        return Path(obtain(model).path)
    except EdgebenchError as error:
        pytest.skip(f"{error.what} Read its terms, then: edgebench models pull {model} --accept-license")


def tokens_of(path: Path) -> list[int]:
    import llama_cpp

    vocabulary = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize(TEXT.read_bytes()[:8000])[:TOKENS]
    vocabulary.close()
    assert len(tokens) == TOKENS
    return tokens


def dequantized(path: Path) -> Any:
    """The model as transformers reads it, without the mark that it once was quantized: such a one cannot be saved."""
    auto = transformers.AutoModelForCausalLM
    read = auto.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    plain = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    plain.load_state_dict(read.state_dict())
    return plain


@pytest.fixture(scope="module", params=MODELS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Real:
    path = file_of(request.param)
    folder, onnx = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("onnx")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the judge's own
        judge = dequantized(path)
        judge.save_pretrained(folder)
        tokens = tokens_of(path)
        expected = logits_of(judge, tokens)
    gguf = GGUFWeights(path)
    export(gguf, onnx, "fp32")
    return Real(gguf, HFWeights(folder), onnx, tokens, expected, judge)


def test_the_judge_itself_understands_the_text(real):
    ahead = real.expected[:-1].astype(np.float64)
    top = ahead.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(ahead, np.array(real.tokens[1:])[:, None], axis=-1)
    nats = (np.log(np.exp(ahead - top).sum(axis=-1)) + top[:, 0] - chosen[:, 0]).mean()
    assert nats < 3


def test_the_folder_that_transformers_writes_holds_the_same_tensors_as_the_gguf(real):
    assert set(real.hf.names()) == set(real.gguf.names())
    for name in real.gguf.names():
        ours, theirs = real.gguf.tensor(name), real.hf.tensor(name)
        if name.endswith("norm.weight") and real.gguf.architecture.norm_offset:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # one was subtracted and added again
        else:
            assert np.array_equal(ours, theirs), name


def test_both_readers_describe_the_same_decoder(real):
    ours, theirs = real.gguf.config, real.hf.config
    for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocabulary", "context", "tied"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert (ours.rope, ours.local_rope) == (theirs.rope, theirs.local_rope)
    assert ours.window == theirs.window
    assert (ours.local_layers, ours.attention_scale) == (theirs.local_layers, theirs.attention_scale)
    assert ours.norm_eps == pytest.approx(theirs.norm_eps)


def test_every_token_of_a_long_text_has_the_logits_of_transformers(real):
    close(Scoring(real.onnx, TOKENS)(real.tokens), real.expected)


def test_decoding_after_a_prefix_gives_the_logits_of_transformers(real):
    context = real.context()
    context.prefill(real.tokens[:PREFIX])
    close(context.logits(), real.expected[PREFIX - 1])
    state = context.save()
    context.clear()
    context.prefill(real.tokens[PREFIX:])  # over the prefix
    context.restore(state)
    for token, expected in zip(real.tokens[PREFIX:], real.expected[PREFIX:], strict=True):
        context.time_decode([token])
        close(context.logits(), expected)


def greedy(context: Any, prompt: Sequence[int], count: int) -> list[int]:
    context.prefill(prompt)
    tokens = []
    for _ in range(count):
        tokens.append(int(context.logits().argmax()))
        context.time_decode(tokens[-1:])
    return tokens


def test_the_greedy_tokens_are_those_of_transformers(real):
    prompt = real.tokens[:PROMPT]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = real.judge.generate(
            torch.tensor([prompt]), max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False, eos_token_id=None
        )
    assert greedy(real.context(), prompt, GREEDY) == found[0, PROMPT:].tolist()
