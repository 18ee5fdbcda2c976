"""The importance matrix against one that torch computes: forward hooks on every matrix of tiny random models."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest

from edgebench.checkpoint.hf import HFWeights
from edgebench.export.gguf import export
from edgebench.export.imatrix import compute
from edgebench.specs import Calibration

torch = pytest.importorskip("torch", reason="the judge: pip install torch transformers")
transformers = pytest.importorskip("transformers", reason="the judge: pip install torch transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SENTENCE = "the tiny model reads a small text about 1234 words that nobody has written before it was needed here"
TEXT = "\n".join(" ".join(random.Random(line).choices(SENTENCE.split(), k=11)) + "." for line in range(120))  # noqa: S311 - text
CALIBRATION = Calibration(name="made.txt", text=TEXT, sha256=hashlib.sha256(TEXT.encode()).hexdigest())
ROWS = 320
SHAPE = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CASES = {
    "llama": ("Llama", {**SHAPE, "max_position_embeddings": 1024, "tie_word_embeddings": False}, 512, True),
    "llama-short": ("Llama", {**SHAPE, "max_position_embeddings": 192, "tie_word_embeddings": True}, 192, False),
    "gpt2": (
        "GPT2",
        {"vocab_size": ROWS, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 600, "initializer_range": 0.08},
        512,
        False,
    ),
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def save_tokenizer(folder, *, first: bool):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=byte.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": first}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tokenizer


@pytest.mark.parametrize("case", CASES)
def test_every_importance_is_what_torch_sees(tmp_path, case):
    kind, config, chunk, first = CASES[case]
    torch.manual_seed(7)
    model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**config)
    ).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer = save_tokenizer(folder, first=first)
    source = HFWeights(folder)
    export(source, tmp_path / "model.gguf", "f32")
    source.close()

    told: list[tuple[int, int]] = []
    matrix = compute(
        str(tmp_path / "model.gguf"), CALIBRATION, 2, lambda _line: None, lambda done, of: told.append((done, of))
    )

    sums: dict[str, np.ndarray] = {}

    def collect(name):
        def hook(_module, inputs):
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + (rows**2).sum(0).numpy()

        return hook

    for path, module in model.named_modules():
        parts = path.split(".")
        if ".".join(parts[-2:]) in NAMES:
            module.register_forward_pre_hook(collect(f"blk.{parts[-3]}.{NAMES['.'.join(parts[-2:])]}.weight"))
    ids = ([1] if first else []) + tokenizer.encode(TEXT).ids
    chunks = [ids[at : at + chunk] for at in range(0, len(ids) - chunk + 1, chunk)]
    assert len(chunks) >= 2
    with torch.no_grad():
        for part in chunks:
            model(torch.tensor([[1, *part[1:]] if first else part]))
    count = chunk * len(chunks)
    assert (matrix.chunk, matrix.chunks, matrix.tokens) == (chunk, len(chunks), count)
    assert told == [(done, len(chunks)) for done in range(1, len(chunks) + 1)]
    assert set(matrix.values) == set(sums)
    assert matrix.missing == ()
    for name, wanted in sums.items():
        np.testing.assert_allclose(matrix.values[name], wanted / count, rtol=2e-3, err_msg=name)
