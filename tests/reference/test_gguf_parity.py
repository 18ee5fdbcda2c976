"""Our GGUF, run by llama.cpp, against the same checkpoint run by transformers.

Each architecture is a tiny checkpoint with random weights, saved by transformers itself: what is compared is every key,
every tensor and every id, not a model.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from edgebench.checkpoint.hf import HFWeights
from edgebench.export.gguf import export
from edgebench.export.token_ids import llama_token_ids

torch = pytest.importorskip("torch", reason="the judge: pip install torch transformers")
transformers = pytest.importorskip("transformers", reason="the judge: pip install torch transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from against_transformers import SHAPE, TOLERANCE, close, logits_of  # noqa: E402 - after what may skip

TEXT = (
    "The tiny model reads a tiny text: it's about 1234 words, they've said. Das Maß ist voll; déjà vu! Привет, мир. "
    "你好世界 "
    "def f(x):\n    return x + 1\n\n  two  spaces   three and words words words reading the model of the text again\n"
)
ROWS = 640
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(kind: str):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt-2", "smollm"))
    words = {"llama-bpe": LLAMA3_WORDS, "qwen2": QWEN_WORDS}.get(kind)
    first = pre_tokenizers.Digits(individual_digits=True) if kind == "smollm" else None
    first = pre_tokenizers.Split(Regex(words), "isolated") if words else first
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte]) if first else byte
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 40, special_tokens=names, initial_alphabet=byte.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    if kind == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))]
        )
    return tokenizer, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def sentencepiece_like(*, prefix: bool):
    """As transformers converts a sentencepiece BPE: every way to join two tokens into a third, best token first."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    space = "\u2581"
    words = (space + TEXT.replace(" ", space)).replace(space, f" {space}").split(" ")
    pieces = {word[:end] for word in words for end in range(2, len(word) + 1)} | {
        word[start:] for word in words for start in range(1, len(word) - 1)
    }
    pieces |= {space * count for count in (2, 3, 4)}
    letters = sorted({letter for letter in TEXT.replace(" ", space) if letter != "\n"} | {space})
    specials = ["<pad>", "</s>", "<s>", "<unk>", "<start_of_turn>"]
    count = ROWS - 30 - len(specials) - 256 - len(letters)
    chosen = sorted((piece for piece in pieces if "\n" not in piece), key=lambda piece: (len(piece), piece))[:count]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *chosen, *letters]
    at = {token: number for number, token in enumerate(tokens)}
    merges = [(t[:cut], t[cut:]) for t in chosen for cut in range(1, len(t)) if t[:cut] in at and t[cut:] in at]
    tokenizer = Tokenizer(models.BPE(at, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))  # noqa: S106 - a token of text
    spaces = normalizers.Replace(" ", space)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(space), spaces]) if prefix else spaces
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken(space * 2, normalized=False)])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def shape(**changes):
    return {**SHAPE, "vocab_size": ROWS, "initializer_range": 0.15, **changes}


def rope(kind: str = "default", theta: float = 10000.0, **scheme):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **scheme}}


def longrope():
    pairs = 8
    return rope(
        "longrope",
        short_factor=[1.0 + 0.05 * pair for pair in range(pairs)],
        long_factor=[1.5 + 0.5 * pair for pair in range(pairs)],
        original_max_position_embeddings=32,
    )


# llama.cpp looks GELU up in a table of f16 (ggml's GGML_GELU_FP16): that alone moves logits by 1e-3, where the same
# graph with SiLU agrees to 1e-5. So the judge's GELU is rounded likewise, and the unrounded one is only looked at.
GELU = {"initializer_range": 0.08}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CASES = {
    "llama": ("Llama", shape(tie_word_embeddings=False, **rope(theta=1e5)), "smollm"),
    "llama-biased": ("Llama", shape(attention_bias=True, mlp_bias=True, tie_word_embeddings=True), "gpt-2"),
    "llama-3-scaled": ("Llama", shape(tie_word_embeddings=True, **rope("llama3", 500000.0, **LLAMA3)), "llama-bpe"),
    "llama-linear": ("Llama", shape(tie_word_embeddings=True, **rope("linear", factor=4.0)), "spm-prefixed"),
    "qwen2": ("Qwen2", shape(tie_word_embeddings=True, **rope(theta=1e6)), "qwen2"),
    "qwen3": ("Qwen3", shape(head_dim=32, tie_word_embeddings=True, **rope(theta=1e6)), "qwen2"),
    "gemma3": (
        "Gemma3",
        shape(head_dim=32, num_hidden_layers=7, sliding_window=16, query_pre_attn_scalar=32, **GELU),
        "spm",
    ),
    "gemma3-other-period": (
        "Gemma3",
        shape(
            **GELU,
            head_dim=32,
            num_hidden_layers=4,
            sliding_window=16,
            query_pre_attn_scalar=32,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        ),
        "spm",
    ),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": ROWS, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_inner": 96,
            "bos_token_id": 1, "eos_token_id": 2, **GELU,
        },
        "gpt-2",
    ),
    "phi3": ("Phi3", shape(tie_word_embeddings=False, sliding_window=None, **rope()), "spm-prefixed"),
    "phi3-longrope": ("Phi3", shape(tie_word_embeddings=False, sliding_window=None, **longrope()), "spm-prefixed"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A folder saved by transformers, the model in it, and our GGUF of it."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    kind, settings, tokenizer_kind = CASES[request.param]
    config_class = getattr(transformers, f"{kind}{'TextConfig' if kind == 'Gemma3' else 'Config'}")
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{kind}{head}")(config_class(**settings)).eval().float()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim == 1:  # norms and biases start as ones and zeros, which would hide a mistake
                values.add_(torch.randn_like(values) * 0.1)
            assert torch.isfinite(values).all(), name
    folder = tmp_path_factory.mktemp(request.param) / "a model"
    model.save_pretrained(folder)
    if tokenizer_kind.startswith("spm"):
        tokenizer, names = sentencepiece_like(prefix=tokenizer_kind == "spm-prefixed")
    else:
        tokenizer, names = byte_level(tokenizer_kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    target = folder.parent / "model.gguf"
    checkpoint = HFWeights(folder)
    export(checkpoint, target, "f32")
    checkpoint.close()
    return request.param, model, tokenizer, target


class HalfGelu(torch.nn.Module):
    """GELU of a number rounded to f16, rounded to f16."""

    def forward(self, values):
        return torch.nn.functional.gelu(values.half().float(), approximate="tanh").half().float()


def judged(model, ids: list[int], *, half_gelu: bool = False) -> np.ndarray:
    blocks = [(block, name) for block in model.modules() for name in ("act", "act_fn") if hasattr(block, name)]
    exact = [getattr(block, name) for block, name in blocks]
    for (block, name), activation in zip(blocks, exact, strict=True):
        delattr(block, name)
        setattr(block, name, HalfGelu() if half_gelu else activation)
    logits = logits_of(model, ids)
    for (block, name), activation in zip(blocks, exact, strict=True):
        delattr(block, name)  # a function does not take the place of a module
        setattr(block, name, activation)
    return logits


def llama_logits(path: Path, ids: list[int], n_ctx: int) -> np.ndarray:
    import llama_cpp

    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_threads = n_ctx, n_ctx, n_ctx, 1
    settings.n_threads_batch, settings.type_k, settings.type_v, settings.flash_attn_type = 1, 0, 0, 0
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = token, at, 1, 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    rows = llama_cpp.llama_get_logits(context)
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits = np.array(np.ctypeslib.as_array(rows, shape=(len(ids), width)))
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits


def test_logits_are_those_of_transformers(case):
    name, model, _, path = case
    rng = np.random.default_rng(3)
    for tokens, n_ctx in ((24, 32), (60, 64)) if name == "phi3-longrope" else ((48, 64),):
        ids = [int(number) for number in rng.integers(0, ROWS, tokens)]
        gelu = name.startswith(("gemma3", "gpt2"))
        expected = judged(model, ids, half_gelu=gelu)
        found = llama_logits(path, ids, n_ctx)
        assert expected.std() > 0.1
        close(found, expected)
        assert np.abs(found - judged(model, ids)).max() <= (3 * TOLERANCE if gelu else TOLERANCE)


def strings() -> list[str]:
    """Every pair of these, so that what stands beside what is tested too."""
    parts = [
        "words", " a model", "\n", "\n\n\n", "  ", "   \t", "123", "45678", "it's", "DON'T", "déjà", "Привет",
        "你好", "日本語",
        "안녕", "مرحبا", "🎉", "👩‍👧", "<|im_end|>", "<s>", "x=1;", "::", "\u3000",
    ]  # fmt: skip
    return ["".join(pair) for pair in itertools.product(parts, repeat=2)]


def test_ids_are_those_of_the_tokenizer(case):
    _, _, tokenizer, path = case
    texts = strings()
    assert len(texts) >= 200
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    found = llama_token_ids(path, texts)
    assert [(t, e, f) for t, e, f in zip(texts, expected, found, strict=True) if e != f] == []
