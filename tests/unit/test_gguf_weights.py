"""A GGUF as a checkpoint: shapes, storage types, and what is refused; files are written here byte by byte."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebench.checkpoint.architectures import ARCHITECTURES
from edgebench.checkpoint.base import ModelConfig, Rope
from edgebench.checkpoint.ggml_types import GGML_TYPES
from edgebench.checkpoint.gguf import read_header
from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.shapes import global_shapes, layer_shapes
from edgebench.errors import ArtifactError, EdgebenchError, UsageError

MOST_BYTES = 8 << 20
"""Memory that opening and reading a file of 20 kB may take, gguf-py's temporary arrays included."""
IDS = {kind.name: number for number, kind in GGML_TYPES.items()}
WIDTH, HEADS, KV_HEADS, INNER, WORDS, LAYERS = 32, 4, 2, 32, 8, 2


def keys(architecture: str) -> dict[str, Any]:
    epsilon = "layer_norm_epsilon" if ARCHITECTURES[architecture].norm == "layer" else "layer_norm_rms_epsilon"
    own = {
        "context_length": 64,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS if architecture == "gpt2" else KV_HEADS,
        f"attention.{epsilon}": 1e-5,
    }
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in own.items()}


def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """In numpy's order, tied."""
    described = ARCHITECTURES[architecture]
    config = ModelConfig(
        architecture=architecture,
        name="tiny",
        layers=LAYERS,
        hidden=WIDTH,
        heads=HEADS,
        kv_heads=HEADS if architecture == "gpt2" else KV_HEADS,
        head_dim=WIDTH // HEADS,
        ffn=INNER,
        vocabulary=WORDS,
        context=64,
        norm_eps=1e-5,
        tied=True,
        rope=Rope(base=1e4, dimensions=8),
    )
    layer = layer_shapes(described, config)
    inner = {f"blk.{index}.{name}": shape for index in range(LAYERS) for name, shape in layer.items()}
    return {**global_shapes(described, config), **inner}


class File:
    """A GGUF that a test may spoil before it is opened."""

    def __init__(self, path: Path, architecture: str = "llama") -> None:
        self.path, self.keys, self.shapes = path, keys(architecture), shapes(architecture)
        self.types = dict.fromkeys(self.shapes, "f32")
        self.content: dict[str, bytes] = {}

    def data(self, name: str) -> bytes:
        """The stored bytes of a tensor: random, with scales that are finite."""
        if name in self.content:
            return self.content[name]
        kind, shape = GGML_TYPES[IDS[self.types[name]]], self.shapes[name]
        count = int(np.prod(shape))
        random = np.random.default_rng(len(name))
        if kind.name == "f32":
            return random.normal(size=count).astype("<f4").tobytes()
        return (random.integers(0, 64, count // kind.block * kind.bytes)).astype(np.uint8).tobytes()

    def write(self, words: list[str] | None = None) -> Path:
        count = len(self.keys) + (words is not None)
        head, data = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(self.shapes), count)), bytearray()
        for key, value in self.keys.items():
            head += _text(key) + _value(value)
        if words is not None:
            head += _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(map(_text, words))
        for name, shape in self.shapes.items():
            head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
            head += struct.pack("<IQ", IDS[self.types[name]], len(data))
            data += self.data(name)
            data += bytes(-len(data) % 32)
        self.path.write_bytes(bytes(head) + bytes(-len(head) % 32) + bytes(data))
        return self.path

    def refused(self, *words: str) -> None:
        """It cannot be opened, the error says these words, and nothing of it stays mapped."""
        with pytest.raises(ArtifactError) as caught:
            GGUFWeights(self.path)
        for word in words:
            assert word in str(caught.value)
        assert str(self.path) in caught.value.what
        assert caught.value.next_step
        assert str(self.path) not in Path("/proc/self/maps").read_text()


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<Iq", 11, value)


@pytest.fixture
def file(tmp_path):
    return File(tmp_path / "tiny.gguf")


# --- what is fine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_file_of_each_architecture_is_read(tmp_path, architecture):
    file = File(tmp_path / "mit Leerzeichen 模型.gguf", architecture)
    weights = GGUFWeights(file.write())
    assert weights.config.architecture == architecture
    assert set(weights.names()) == set(file.shapes)
    for name, shape in file.shapes.items():
        assert weights.shape(name) == weights.tensor(name).shape == shape
        assert weights.tensor(name).dtype == np.float32
        assert weights.blocks(name) is None
    np.testing.assert_array_equal(
        weights.tensor("token_embd.weight").ravel(), np.frombuffer(file.data("token_embd.weight"), np.float32)
    )
    weights.close()
    weights.close()


def test_rows_of_q_and_k_come_in_halves(file):
    rows = np.repeat(np.arange(WIDTH, dtype=np.float32), WIDTH)
    file.content["blk.0.attn_q.weight"] = rows.tobytes()
    weights = GGUFWeights(file.write())
    assert weights.tensor("blk.0.attn_q.weight")[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    weights.close()


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4"])
def test_values_of_a_storage_type_are_those_of_gguf_py(file, kind, monkeypatch):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    monkeypatch.setattr("edgebench.checkpoint.gguf_weights._CHUNK_ELEMENTS", 3 * WIDTH)  # pieces of three rows
    name = "blk.0.ffn_up.weight"
    file.types[name] = kind
    weights = GGUFWeights(file.write())
    stored = np.frombuffer(file.data(name), np.uint8).reshape(INNER, -1)
    np.testing.assert_array_equal(weights.tensor(name), dequantize(stored, GGMLQuantizationType(IDS[kind])))
    blocks = weights.blocks(name)
    if kind in ("f16", "bf16"):
        assert blocks is None
    else:
        assert blocks is not None
        assert blocks.type == kind
        np.testing.assert_array_equal(blocks.data, stored)
    weights.close()


def test_a_tensor_outlives_the_file_that_it_came_from(file):
    weights = GGUFWeights(file.write())
    values = weights.tensor("token_embd.weight")
    weights.close()
    assert values.ravel().tolist() == np.frombuffer(file.data("token_embd.weight"), np.float32).tolist()


def test_the_vocabulary_alone_is_a_gguf_with_the_same_keys(file, tmp_path):
    weights = GGUFWeights(file.write(words=[f"w{n}" for n in range(WORDS)]))
    alone = weights.vocabulary_file()
    keys_end = weights.header.keys_end
    weights.close()
    assert alone[:4] == b"GGUF"
    assert struct.unpack_from("<Q", alone, 8) == (0,)
    assert alone[16:] == file.path.read_bytes()[16:keys_end]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["q1_0", "q2_0", "q8_1", "q8_k", "i8", "i64", "f64"])
def test_a_type_that_gguf_py_cannot_dequantise_is_refused_when_it_is_read(tmp_path, kind):
    file = File(tmp_path / "tiny.gguf")
    name, block = "blk.1.ffn_down.weight", GGML_TYPES[IDS[kind]].block
    if block > INNER:  # rows of whole blocks
        file.keys["llama.feed_forward_length"] = block
        for layer in range(LAYERS):
            for part, shape in (("gate", (block, WIDTH)), ("up", (block, WIDTH)), ("down", (WIDTH, block))):
                file.shapes[f"blk.{layer}.ffn_{part}.weight"] = shape
    file.types[name] = kind
    weights = GGUFWeights(file.write())
    with pytest.raises(ArtifactError, match=rf"stores {name} as {kind}, which gguf-py cannot dequantise"):
        weights.tensor(name)
    weights.close()


@pytest.mark.parametrize("words", [0, WORDS - 1, WORDS + 1])
def test_a_vocabulary_that_disagrees_with_the_embedding_is_refused(file, words):
    file.write(words=["w"] * words)
    file.refused(f"{words} words in its vocabulary and {WORDS} rows in its embedding")


NEEDED = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"]


@pytest.mark.parametrize("key", [*NEEDED, "attention.layer_norm_rms_epsilon"])
def test_a_missing_key_is_named(file, key):
    del file.keys[f"llama.{key}"]
    file.write()
    file.refused(f"lacks the key llama.{key}")


@pytest.mark.parametrize("value", [0, -1, "8", True, 2.5, 1 << 40, float("inf"), float("nan")])
@pytest.mark.parametrize("key", ["block_count", "attention.head_count_kv", "attention.key_length"])
def test_a_number_that_cannot_be_is_refused(file, key, value):
    file.keys[f"llama.{key}"] = value
    file.write()
    file.refused(f"has llama.{key} = {value!r}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"llama.attention.head_count_kv": 3}, "cannot share evenly"),
        ({"llama.attention.head_count": 64}, "llama.attention.key_length = 0"),
        ({"llama.attention.key_length": 7}, "rotates 7 channels of heads that are 7 wide"),
        ({"llama.rope.dimension_count": 16}, "rotates 16 channels of heads that are 8 wide"),
        ({"llama.rope.freq_base": -1.0}, "has llama.rope.freq_base = -1.0"),
        ({"llama.rope.scaling.type": "yarn"}, "stretches its context by 'yarn'"),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0},
            "has llama.rope.scaling.factor = 0.0",
        ),
        ({"llama.block_count": 3}, "lacks the tensor blk.2."),
        ({"llama.block_count": 1}, "has the tensor 'blk.1."),
        ({"llama.block_count": 1025}, "has llama.block_count = 1025"),
        ({"llama.feed_forward_length": 33}, "of shape [32, 32], not [33, 32]"),
        ({"general.architecture": "mamba"}, "is of the architecture 'mamba'"),
    ],
)
def test_keys_that_contradict_the_tensors_are_refused(file, change, words):
    file.keys |= change
    file.write()
    file.refused(words)


@pytest.mark.parametrize("name", sorted(shapes("llama")))
def test_a_missing_tensor_is_named(file, name):
    del file.shapes[name]
    file.write()
    file.refused(f"lacks the tensor {name}")


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(file):
    file.shapes["blk.0.ffn_up.weight"] = (INNER, WIDTH, 2)
    file.write()
    file.refused("blk.0.ffn_up.weight of shape [32, 32, 2], not [32, 32]")


def test_an_embedding_that_is_no_matrix_is_refused(file):
    file.shapes["token_embd.weight"] = (WORDS,)
    file.write()
    file.refused("token_embd.weight of shape [8], not [8, 32]")


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps.weight", "x", "blk.2.ffn_up.weight", "y" * 500])
def test_a_tensor_that_would_be_left_out_is_refused(file, name):
    file.shapes[name], file.types[name] = (INNER, WIDTH), "f32"
    file.write()
    file.refused(name[:60], "which llama does not use")


@pytest.mark.parametrize("factors", [[1.0] * 3, [1.0] * 5, [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, float("nan")]])
def test_rotary_factors_that_cannot_be_are_refused(file, factors):
    file.shapes["rope_freqs.weight"], file.types["rope_freqs.weight"] = (len(factors),), "f32"
    file.content["rope_freqs.weight"] = np.array(factors, "<f4").tobytes()
    file.write()
    file.refused("rotary")


def test_rotary_factors_that_are_no_floats_are_refused(file):
    file.shapes["rope_freqs.weight"], file.types["rope_freqs.weight"] = (4,), "i32"
    with pytest.raises(ArtifactError, match=r"stores rope_freqs\.weight as i32"):
        GGUFWeights(file.write())


def test_one_half_of_the_long_rope_factors_is_refused(tmp_path):
    file = File(tmp_path / "tiny.gguf", "phi3")
    file.keys |= {"phi3.rope.scaling.type": "longrope", "phi3.rope.scaling.original_context_length": 64}
    file.shapes["rope_factors_long.weight"], file.types["rope_factors_long.weight"] = (4,), "f32"
    file.write()
    file.refused("lacks the tensor rope_factors_short.weight")


def test_a_truncated_file_is_refused(file):
    content = file.write().read_bytes()
    for length in (3, 30, 400, len(content) - 33):
        file.path.write_bytes(content[:length])
        file.refused()


def test_a_file_that_changes_while_it_is_opened_is_refused(file, monkeypatch):
    header = read_header(file.write())
    monkeypatch.setattr("edgebench.checkpoint.gguf_weights.read_header", lambda _path: header)
    file.path.write_bytes(file.path.read_bytes()[:100])
    file.refused("was changed while it was opened")


def test_a_path_that_is_no_file_is_a_usage_error(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "missing.gguf", tmp_path, tmp_path / "pipe.gguf"):
        with pytest.raises(UsageError):
            GGUFWeights(path)


def test_a_tensor_that_is_not_there_is_an_error_of_ours(file):
    weights = GGUFWeights(file.write())
    for ask in (weights.tensor, weights.blocks, weights.shape, weights.type_of):
        with pytest.raises(ArtifactError, match=r"lacks the tensor blk\.7"):
            ask("blk.7.ffn_up.weight")
    weights.close()


# --- anything ---------------------------------------------------------------------------------------------------------


def read_everything(path: Path) -> None:
    """Open, and read all that can be read; whatever is wrong is one of our errors."""
    try:
        weights = GGUFWeights(path)
    except EdgebenchError:
        return
    for name in weights.names():
        with suppress(EdgebenchError):
            assert weights.tensor(name).shape == weights.shape(name)
            weights.blocks(name)
    weights.close()


def mixed(path: Path) -> bytes:
    file = File(path)
    kinds = ["q8_0", "q4_0", "q4_1", "f16", "iq4_nl", "q5_0", "bf16"]
    matrices = [name for name, shape in file.shapes.items() if len(shape) == 2]
    file.types |= {name: kinds[index % len(kinds)] for index, name in enumerate(matrices)}
    return file.write(words=[f"w{n}" for n in range(WORDS)]).read_bytes()


def test_no_mutation_does_more_than_be_refused(tmp_path):
    good, path = mixed(tmp_path / "good.gguf"), tmp_path / "tiny.gguf"
    read_everything(tmp_path / "good.gguf")  # gguf-py is imported, its tables are made
    head = len(good) - 20_000  # changes in the keys and the table are worth more than changes in the weights
    places = st.integers(0, max(head, 4000)) | st.integers(0, len(good) - 1)
    changes = st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), min_size=1, max_size=3)

    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(changes, st.none() | st.integers(0, len(good)))
    def holds(edits: list[tuple[int, bytes]], length: int | None) -> None:
        content = bytearray(good)
        for at, new in edits:
            content[at : at + len(new)] = new
        path.write_bytes(content[:length])
        assert peak_of(path) < MOST_BYTES

    holds()


NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 64) | st.floats(width=32) | st.text(max_size=5)
ROPE_KEYS = ["rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3", "gpt2"])
def test_no_keys_do_more_than_be_refused(tmp_path, architecture):
    own = [f"{architecture}.{key}" for key in (*ROPE_KEYS, "attention.key_length", "attention.sliding_window")]
    names = st.sampled_from([*keys(architecture), *own])

    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(names, NUMBERS | st.booleans() | st.just("linear"), max_size=3))
    def holds(changes: Mapping[str, Any]) -> None:
        file = File(tmp_path / "tiny.gguf", architecture)
        file.keys |= {"general.architecture": architecture, **changes}
        assert peak_of(file.write()) < MOST_BYTES

    holds()


def peak_of(path: Path) -> int:
    """Memory that reading everything takes, bytes."""
    tracemalloc.start()
    try:
        read_everything(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
