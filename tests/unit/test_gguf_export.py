"""GGUFs written from Hugging Face folders: bit-equal tensors, what llama.cpp makes of them, and bad luck."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgebench.checkpoint import tokenizer as tokenizer_module
from edgebench.checkpoint.architectures import ARCHITECTURES
from edgebench.checkpoint.gguf import read_header
from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.hf import HFWeights
from edgebench.checkpoint.tokenizer import read_tokenizer
from edgebench.errors import ArtifactError, UnknownNameError
from edgebench.export.gguf import export, model_name
from edgebench.export.token_ids import llama_token_ids

ROWS = 320
SHAPE = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
}  # fmt: skip
CONFIGS = {
    "llama": {"model_type": "llama", **SHAPE, "rope_scaling": LLAMA3},
    "qwen2": {"model_type": "qwen2", **SHAPE, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SHAPE, "head_dim": 32},
    "gemma3": {
        "model_type": "gemma3_text", **SHAPE, "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention"], "rope_local_base_freq": 5000.0,
    },
    "phi3": {"model_type": "phi3", **SHAPE, "rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
    "gpt2": {
        "model_type": "gpt2", "vocab_size": ROWS, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128,
        "layer_norm_epsilon": 1e-5,
    },
}  # fmt: skip


def stored_tensors(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers stores them, written down here and not derived from what is tested."""
    if config["model_type"] == "gpt2":
        width, inner = 64, 256
        layer = {
            "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width), "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width), "attn.c_proj.bias": (width,),
            "mlp.c_fc.weight": (width, inner), "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, width), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        outer = {
            "wte.weight": (ROWS, width),
            "wpe.weight": (128, width),
            "ln_f.weight": (width,),
            "ln_f.bias": (width,),
        }
        layers = {f"h.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
        return {f"transformer.{name}": shape for name, shape in (outer | layers).items()}
    width, inner, head = 64, 96, config.get("head_dim", 16)
    query, key = 4 * head, 2 * head
    layer = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    layer |= {"self_attn.o_proj.weight": (width, query), "mlp.down_proj.weight": (width, inner)}
    if config["model_type"] == "phi3":
        layer |= {"self_attn.qkv_proj.weight": (query + 2 * key, width), "mlp.gate_up_proj.weight": (2 * inner, width)}
    else:
        layer |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
        layer |= {
            f"self_attn.{name}_proj.weight": (size, width) for name, size in (("q", query), ("k", key), ("v", key))
        }
    if config["model_type"] in ("qwen2", "llama"):
        layer |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", query), ("k", key), ("v", key))}
    if config["model_type"] in ("qwen3", "gemma3_text"):
        layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    if config["model_type"] == "gemma3_text":
        layer |= {"pre_feedforward_layernorm.weight": (width,), "post_feedforward_layernorm.weight": (width,)}
    outer = {"embed_tokens.weight": (ROWS, width), "norm.weight": (width,)}
    layers = {f"layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    tensors = {f"model.{name}": shape for name, shape in (outer | layers).items()}
    if not (config.get("tie_word_embeddings") or config["model_type"] == "gemma3_text"):
        tensors["lm_head.weight"] = (ROWS, width)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values.tobytes() for values in tensors.values()))


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=byte.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the model reads the text, 1234 12 times"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}', encoding="utf-8")


def make_folder(folder: Path, config: dict, *, spread: float = 0.1, **changed: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rng = np.random.default_rng(5)
    tensors = {
        name: (rng.standard_normal(shape) * spread).astype(np.float32) for name, shape in stored_tensors(config).items()
    }
    write_safetensors(folder / "model.safetensors", tensors | changed)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "ein Mödell", CONFIGS["llama"])


def test_every_architecture_is_tested():
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_gguf_holds_the_same_bits(tmp_path, architecture):
    source = HFWeights(make_folder(tmp_path / "model", CONFIGS[architecture]))
    seen: list[tuple[int, int]] = []
    told = export(source, tmp_path / "model.gguf", "f32", progress=lambda done, of: seen.append((done, of)))
    target = GGUFWeights(tmp_path / "model.gguf")
    assert set(target.names()) == set(source.names())
    for name in source.names():
        assert np.array_equal(source.tensor(name), target.tensor(name)), name
    for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocabulary", "context", "tied"):
        assert getattr(target.config, key) == getattr(source.config, key), key
    for key in ("window", "local_layers"):
        assert getattr(target.config, key) == getattr(source.config, key), key
    for mine, theirs in (
        (source.config.rope, target.config.rope),
        (source.config.local_rope, target.config.local_rope),
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert (mine.base, mine.dimensions) == (theirs.base, theirs.dimensions)
            assert np.allclose(mine.factors, theirs.factors, rtol=1e-6)
            assert mine.attention_factor == pytest.approx(theirs.attention_factor)
    assert told.parameters == target.header.parameters
    assert told.weight_bytes == target.header.weight_bytes
    assert seen[-1] == (len(seen), len(seen))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]
    source.close()
    target.close()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_llama_cpp_runs_it(tmp_path, architecture):
    """In a child: llama.cpp ends the process when an assertion of its fails."""
    source = HFWeights(make_folder(tmp_path / "model", CONFIGS[architecture]))
    export(source, tmp_path / "model.gguf", "f32")
    source.close()
    code = """
        import ctypes, sys
        import llama_cpp, numpy as np
        quiet = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(quiet, None)
        model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = 32, 1, 1
        context = llama_cpp.llama_init_from_model(model, params)
        ids = (llama_cpp.llama_token * 5)(1, 2, 3, 4, 5)
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, 5)) == 0
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(int(sys.argv[2]),))
        print(bool(np.isfinite(row).all()), row.std() > 0)
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "model.gguf"), str(ROWS)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize(("precision", "error"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127)])
def test_matrices_are_rounded_and_vectors_are_not(tmp_path, folder, precision, error):
    source = HFWeights(folder)
    export(source, tmp_path / "model.gguf", precision)
    target = GGUFWeights(tmp_path / "model.gguf")
    assert read_header(tmp_path / "model.gguf").file_type == precision
    for name in source.names():
        exact, rounded = source.tensor(name), target.tensor(name)
        if exact.ndim == 1:
            assert np.array_equal(exact, rounded), name
        else:
            assert target.type_of(name) == precision
            assert not np.array_equal(exact, rounded)
            assert np.abs(exact - rounded).max() <= error * np.abs(exact).max(), name
    source.close()
    target.close()


def test_what_cannot_be_divided_into_blocks_becomes_f16(tmp_path):
    config = {**CONFIGS["qwen2"], "intermediate_size": 80}  # rows of ffn_down are not whole blocks of 32
    short = {
        name: np.ones(tuple(80 if size == 96 else size for size in shape), np.float32)
        for name, shape in stored_tensors(config).items()
        if "mlp" in name
    }
    source = HFWeights(make_folder(tmp_path / "model", config, **short))
    told = export(source, tmp_path / "model.gguf", "q8_0")
    target = GGUFWeights(tmp_path / "model.gguf")
    assert target.type_of("blk.0.ffn_down.weight") == "f16"
    assert target.type_of("blk.0.ffn_up.weight") == "q8_0"
    assert any("blk.0.ffn_down.weight and 1 more" in note for note in told.notes)
    source.close()
    target.close()


def test_weights_that_are_no_numbers_are_told(tmp_path):
    broken = np.ones(64, np.float32)
    broken[3] = np.nan
    source = HFWeights(make_folder(tmp_path / "model", CONFIGS["llama"], **{"model.norm.weight": broken}))
    assert "not finite numbers: output_norm.weight" in export(source, tmp_path / "model.gguf", "q8_0").notes[-1]
    source.close()


def test_a_weight_too_large_for_f16_is_refused(tmp_path):
    large = np.full((ROWS, 64), 1e5, np.float32)
    source = HFWeights(make_folder(tmp_path / "model", CONFIGS["llama"], **{"lm_head.weight": large}))
    with pytest.raises(ArtifactError, match=r"output\.weight, too large for f16"):
        export(source, tmp_path / "model.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    export(source, tmp_path / "model.gguf", "bf16")
    source.close()


def test_ids_that_differ_are_refused_and_the_piece_is_named(tmp_path, monkeypatch):
    source = HFWeights(make_folder(tmp_path / "model", CONFIGS["llama"]))  # it learnt the tokens 12 and 1234
    monkeypatch.setattr(tokenizer_module, "recognise", lambda *_args, **_options: "smollm")
    with pytest.raises(ArtifactError, match="would cut '0 1 12 123"):
        export(source, tmp_path / "model.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    source.close()


def sentencepiece_bytes(words: str) -> bytes:
    """A ``tokenizer.model`` of the pieces of these words, shorter ones first; lengths stay below 128, one byte each."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))

    letters = sorted(set(words))
    parts = sorted(
        {words[a:b] for a in range(len(words) - 3) for b in (a + 2, a + 3)}, key=lambda part: (len(part), part)
    )
    out = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
    out += b"".join(piece(f"<0x{byte:02X}>", 0, 6) for byte in range(256))
    out += b"".join(piece(part, -rank, 1) for rank, part in enumerate([*parts, *letters], 1))
    return out + field(2, bytes([3 << 3, 2])) + field(3, bytes([3 << 3, 1, 4 << 3, 0]))


def test_a_sentencepiece_model_alone_is_enough_and_is_verified(tmp_path):
    folder = make_folder(tmp_path / "model", CONFIGS["llama"])
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes("\u2581the\u2581text"))
    source = HFWeights(folder)
    export(source, tmp_path / "model.gguf", "f32")
    source.close()
    (ids,) = llama_token_ids(tmp_path / "model.gguf", ["the text!"], add_special=True)
    tokens = read_tokenizer(folder, ROWS, {}).tokens
    assert ids[0] == 1
    assert "".join(tokens[number] for number in ids[1:]) == "\u2581the\u2581text<0x21>"
    assert len(ids) < len("\u2581the\u2581text!")


def test_an_unknown_precision_is_refused(tmp_path, folder):
    source = HFWeights(folder)
    with pytest.raises(UnknownNameError, match="q4_0"):
        export(source, tmp_path / "model.gguf", "q4_0")
    source.close()


def test_attention_that_llama_cpp_does_not_compute_is_refused(tmp_path):
    config = {**CONFIGS["gemma3"], "query_pre_attn_scalar": 64}
    source = HFWeights(make_folder(tmp_path / "model", config))
    with pytest.raises(ArtifactError, match="multiplies attention scores"):
        export(source, tmp_path / "model.gguf", "f32")
    source.close()


def test_a_window_that_llama_cpp_ignores_is_told(tmp_path):
    source = HFWeights(make_folder(tmp_path / "model", {**CONFIGS["phi3"], "sliding_window": 32}))
    assert "sliding window of 32" in " ".join(export(source, tmp_path / "model.gguf", "f32").notes)
    source.close()


@pytest.mark.parametrize("name", ["tiny-Phi-3-test", "phi3"])
def test_a_name_does_not_switch_stripping_on(tmp_path, folder, name):
    tokenizer = read_tokenizer(folder, ROWS, {})
    assert "phi-3" not in model_name(name, tokenizer)
    assert "phi3" not in model_name(name, tokenizer)


def test_a_full_disk_leaves_nothing(tmp_path, folder):
    """In a child whose files may not exceed 100 kB: what is there before stays, what is unfinished goes."""
    target = tmp_path / "out" / "model.gguf"
    target.parent.mkdir()
    target.write_bytes(b"an older file")
    code = """
        import resource, signal, sys
        from pathlib import Path
        from edgebench.checkpoint.hf import HFWeights
        from edgebench.export.gguf import export
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            export(HFWeights(Path(sys.argv[1])), Path(sys.argv[2]), "f32")
        except OSError as error:
            print("refused", error)
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(folder), str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.startswith("refused"), done.stderr
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    assert target.read_bytes() == b"an older file"


@pytest.mark.parametrize("precision", ["f32", "q8_0"])
def test_memory_stays_near_the_largest_tensor(tmp_path, precision):
    config = {**CONFIGS["llama"], "intermediate_size": 32768}
    shapes = {
        name: tuple(32768 if size == 96 else size for size in shape) for name, shape in stored_tensors(config).items()
    }
    big = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items() if "mlp" in name}
    largest = max(values.nbytes for values in big.values())
    source = HFWeights(make_folder(tmp_path / "model", config, **big))
    del big
    export(source, tmp_path / "first.gguf", precision)  # imports and caches
    tracemalloc.start()
    export(source, tmp_path / "model.gguf", precision)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 1.3 * largest + 2_000_000
    source.close()
