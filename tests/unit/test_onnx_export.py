"""The direct road to ONNX on tiny checkpoints written here: what lies in the data file is what the GGUF holds."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
from gguf import GGMLQuantizationType as Type

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.hf import HFWeights
from edgebench.errors import ArtifactError, UnknownNameError
from edgebench.export.blocks import BLOCK, Quantized, dequantize
from edgebench.export.onnx import DATA, MODEL, SCORING, export

WIDTH, HEADS, KV_HEADS, INNER, VOCABULARY, LAYERS = 64, 4, 2, 96, 128, 2
HEAD = WIDTH // HEADS
Tensors = dict[str, np.ndarray]
LINEAR = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KV_HEADS * HEAD, WIDTH),
    "attn_v": (KV_HEADS * HEAD, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}
QUANTIZED = {
    "token_embd": Type.Q8_0,
    "attn_q": Type.Q4_0,
    "attn_k": Type.Q8_0,
    "attn_v": Type.Q4_0,
    "attn_output": Type.Q4_0,
    "ffn_gate": Type.Q4_0,
    "ffn_up": Type.Q4_0,
    "ffn_down": Type.Q8_0,
}
NODES = {
    "llama": ["MatMulNBits"] * 4 + ["GroupQueryAttention", "QuickGelu", "Mul", "Split"] + ["Skip"] * 2,
    "qwen2": ["MatMulNBits"] * 4 + ["GroupQueryAttention", "QuickGelu", "Mul", "Split"] + ["Skip"] * 2,
    "qwen3": ["MatMulNBits"] * 4
    + ["GroupQueryAttention", "QuickGelu", "Mul", "Split"]
    + ["Skip"] * 2
    + ["Split", "Reshape", "SimplifiedLayerNormalization", "Mul", "Reshape", "Concat"],
}
"""Of one layer: a node costs as much as its memory traffic, so one more must be a decision."""


def random_tensors(architecture: str = "llama", *, tied: bool = True, seed: int = 0) -> Tensors:
    """Weights under llama.cpp's names."""
    random = np.random.default_rng(seed)

    def draw(shape: Sequence[int], scale: float, middle: float = 0.0) -> np.ndarray:
        return (middle + scale * random.normal(size=shape)).astype(np.float32)

    tensors = {"token_embd.weight": draw((VOCABULARY, WIDTH), 0.5), "output_norm.weight": draw((WIDTH,), 0.2, 1.0)}
    if not tied:
        tensors["output.weight"] = draw((VOCABULARY, WIDTH), 0.2)
    for layer in range(LAYERS):
        for name, shape in LINEAR.items():
            tensors[f"blk.{layer}.{name}.weight"] = draw(shape, 1.5 / shape[1] ** 0.5)
            if architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                tensors[f"blk.{layer}.{name}.bias"] = draw(shape[:1], 0.5)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = draw((WIDTH,), 0.2, 1.0)
        if architecture == "qwen3":
            for name in ("attn_q_norm", "attn_k_norm"):
                tensors[f"blk.{layer}.{name}.weight"] = draw((HEAD,), 0.2, 1.0)
    return tensors


def write_gguf(
    path: Path, tensors: Tensors, architecture: str = "llama", types: Mapping[str, Type] | None = None
) -> Path:
    """A GGUF by gguf-py; ``types`` by the middle of a tensor's name, float32 for all others."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    for name, values in tensors.items():
        kind = (types or {}).get(name.split(".")[-2])
        if kind is None or values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Exported:
    """A folder that was exported, read back with the onnx package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.graphs = {name: onnx.load(folder / name, load_external_data=False).graph for name in (MODEL, SCORING)}
        self._data = np.fromfile(folder / DATA, np.uint8)

    def places(self, graph: str) -> dict[str, tuple[str, int, int]]:
        """Initializer in the data file -> (file, offset, length)."""
        found = {}
        for tensor in self.graphs[graph].initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                where = {entry.key: entry.value for entry in tensor.external_data}
                found[tensor.name] = where["location"], int(where["offset"]), int(where["length"])
        return found

    def array(self, graph: str, name: str) -> np.ndarray:
        _, offset, length = self.places(graph)[name]
        (tensor,) = (item for item in self.graphs[graph].initializer if item.name == name)
        kind = np.uint8 if tensor.data_type == onnx.TensorProto.UINT8 else np.float32
        return self._data[offset : offset + length].view(kind).reshape(tuple(tensor.dims))

    def matrices(self, graph: str = MODEL) -> dict[str, np.ndarray]:
        """Node -> the dequantised rows that it multiplies with."""
        found = {}
        for node in self.graphs[graph].node:
            if node.op_type == "MatMulNBits":
                how = {item.name: item.i for item in node.attribute}
                data, scales = (self.array(graph, name) for name in node.input[1:3])
                found[node.name] = dequantize(Quantized(how["bits"], how["K"], data, scales))
            elif node.op_type == "FusedMatMul":
                found[node.name] = self.array(graph, node.input[1])
        return found

    def logits(self, graph: str, tokens: Sequence[int]) -> np.ndarray:
        session = onnxruntime.InferenceSession(self.folder / graph, providers=["CPUExecutionProvider"])
        feeds: dict[str, Any] = {
            item.name: np.zeros((1, KV_HEADS, 32, HEAD), np.float32)
            for item in session.get_inputs()
            if item.name.startswith("past")
        }
        feeds |= {"input_ids": np.array([tokens], np.int64), "seqlens_k": np.array([len(tokens) - 1], np.int32)}
        return session.run(["logits"], feeds | {"total_sequence_length": np.array(len(tokens), np.int32)})[0][0]


@pytest.fixture
def exported(tmp_path):
    """Exports a GGUF that is written for it; what was exported, and what the exporter said."""

    def exporting(
        tensors: Tensors, precision: str, *, architecture: str = "llama", types: Mapping[str, Type] | None = None
    ) -> tuple[Exported, Any]:
        folder = tmp_path / f"onnx{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        weights = GGUFWeights(write_gguf(folder.with_suffix(".gguf"), tensors, architecture, types))
        told = export(weights, folder, precision, accuracy_level=0)
        weights.close()
        return Exported(folder), told

    return exporting


TOKENS = [5, 77, 3, 120, 44, 8, 9, 101, 2, 60, 31]


def as_halves(name: str, rows: np.ndarray) -> np.ndarray:
    """A GGUF of a llama pairs row 2i with 2i+1 of each head; everything here pairs row i with i + half a head."""
    if not name.startswith(("attn_q", "attn_k")):
        return rows
    heads = [rows[first : first + HEAD] for first in range(0, len(rows), HEAD)]
    return np.concatenate([half for head in heads for half in (head[0::2], head[1::2])])


# --- the same weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_of_an_as_stored_export_holds_bit_by_bit_what_the_gguf_holds(exported, tied):
    types = {**QUANTIZED, "output": Type.Q4_0}
    made, told = exported(random_tensors(tied=tied), "as-stored", types=types)
    reader = gguf.GGUFReader(made.folder.with_suffix(".gguf"))
    stored = {item.name: gguf.quants.dequantize(item.data, item.tensor_type) for item in reader.tensors}
    expected = {"head": stored["token_embd.weight" if tied else "output.weight"]}
    for layer in range(LAYERS):
        here = {name: as_halves(name, stored[f"blk.{layer}.{name}.weight"]) for name in LINEAR}
        for index, name in enumerate(("attn_q", "attn_k", "attn_v")):  # three, because k has another width
            expected[f"layer{layer}.qkv.{index}"] = here[name]
        expected[f"layer{layer}.up"] = np.concatenate((here["ffn_gate"], here["ffn_up"]))
        expected |= {f"layer{layer}.out": here["attn_output"], f"layer{layer}.down": here["ffn_down"]}
    for graph in (MODEL, SCORING):
        found = made.matrices(graph)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert np.array_equal(found[name], values), name
    assert not told.notes


def test_the_embedding_holds_them_too_and_is_stored_once_when_it_is_the_head(exported):
    made, told = exported(random_tensors(), "as-stored", types=QUANTIZED)
    places = made.places(MODEL)
    assert places["embedding"] == places["head.weight"]
    assert places["embedding.scales"] == places["head.scales"]
    data, scales = made.array(MODEL, "embedding"), made.array(MODEL, "embedding.scales")
    embedding = dequantize(Quantized(8, WIDTH, data.reshape(VOCABULARY, -1, BLOCK), scales))
    assert np.array_equal(embedding, made.matrices()["head"])
    tables = {name for name in places if name.startswith(("cos", "sin"))}
    each_once = {place: place[2] for name, place in places.items() if name not in tables}
    assert sum(each_once.values()) == told.weight_bytes


def test_two_that_are_not_tied_are_stored_apart(exported):
    made, _ = exported(random_tensors(tied=False), "int8")
    places = made.places(MODEL)
    assert places["embedding"] != places["head.weight"]


def test_a_type_that_no_block_can_hold_becomes_int8_and_the_result_says_so(exported):
    tensors = random_tensors()
    made, told = exported(tensors, "as-stored", types={**QUANTIZED, "ffn_down": Type.Q5_1, "attn_output": Type.F16})
    assert told.notes == (f"{LAYERS} tensors of the type q5_1 became int8",)
    found = made.matrices()["layer0.down"]
    assert np.abs(found - tensors["blk.0.ffn_down.weight"]).max() < 0.05
    assert np.array_equal(made.matrices()["layer0.out"], tensors["blk.0.attn_output.weight"].astype("<f2"))


def test_a_folder_and_a_gguf_of_the_same_weights_give_the_same_bytes(exported, tmp_path):
    tensors = random_tensors(tied=False)
    made, _ = exported({name: as_pairs(name, values) for name, values in tensors.items()}, "int4-mixed")
    folder = tmp_path / "aus HF ü"
    folder.mkdir()
    write_folder(folder, tensors)
    out = tmp_path / "from folder"
    out.mkdir()
    export(Bare(folder), out, "int4-mixed", accuracy_level=0)
    assert (out / DATA).read_bytes() == (made.folder / DATA).read_bytes()


def as_pairs(name: str, rows: np.ndarray) -> np.ndarray:
    """The inverse of `as_halves`, for a tensor under its full name."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return rows
    order = as_halves("attn_q", np.arange(len(rows)))
    return rows[np.argsort(order)]


class Bare(HFWeights):
    """A folder without a tokenizer: weights need none."""

    first_token = None

    def vocabulary_file(self) -> bytes:
        return b""


HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_folder(folder: Path, tensors: Tensors) -> None:
    """A llama as Hugging Face stores it, by the description of the safetensors format."""
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        *layer, part, suffix = name.split(".")
        theirs = f"model.layers.{layer[1]}." if layer else ""
        raw = values.tobytes()
        place = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        header[f"{theirs}{HF_NAMES[part]}.{suffix}"] = place
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


# --- the graphs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "int4-mixed", "as-stored"])
def test_both_graphs_share_one_data_file_and_agree_on_the_last_token(exported, precision):
    made, _ = exported(random_tensors(), precision, types=QUANTIZED)
    assert made.places(MODEL) == made.places(SCORING)
    assert {file for file, _, _ in made.places(MODEL).values()} == {DATA}
    assert len(list(made.folder.glob("*.data"))) == 1
    last, every = made.logits(MODEL, TOKENS), made.logits(SCORING, TOKENS)
    assert (last.shape, every.shape) == ((1, VOCABULARY), (len(TOKENS), VOCABULARY))
    assert np.abs(every).max() > 1
    np.testing.assert_allclose(last[0], every[-1], atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("precision", ["int8", "int4", "int4-mixed", "as-stored"])
def test_the_engine_computes_with_the_values_that_we_say_are_stored(exported, architecture, precision):
    """Against a float32 graph over the dequantised values: every operator reads the bytes as they were meant."""
    tensors = random_tensors(architecture)
    made, _ = exported(tensors, precision, architecture=architecture, types=QUANTIZED)
    matrices = made.matrices(SCORING)
    plain = dict(tensors)
    for layer in range(LAYERS):
        parts = [name for name in matrices if name.startswith(f"layer{layer}.qkv")]
        rows = np.concatenate([matrices[name] for name in sorted(parts)])
        splits = np.split(rows, [WIDTH, WIDTH + KV_HEADS * HEAD])
        gate, up = np.split(matrices[f"layer{layer}.up"], 2)
        values = {**dict(zip(("attn_q", "attn_k", "attn_v"), splits, strict=True)), "ffn_gate": gate, "ffn_up": up}
        values |= {"attn_output": matrices[f"layer{layer}.out"], "ffn_down": matrices[f"layer{layer}.down"]}
        for name, value in values.items():
            full = f"blk.{layer}.{name}.weight"
            plain[full] = as_pairs(full, value) if architecture == "llama" else value
    plain["token_embd.weight"] = matrices["head"]
    reference, _ = exported(plain, "fp32", architecture=architecture)
    expected = reference.logits(SCORING, TOKENS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(made.logits(SCORING, TOKENS), expected, atol=1e-3)


@pytest.mark.parametrize("architecture", NODES)
def test_a_layer_has_no_more_nodes_than_it_needs(exported, architecture):
    made, _ = exported(random_tensors(architecture), "int4", architecture=architecture)
    found = Counter(node.op_type for node in made.graphs[SCORING].node)
    found["Skip"] = found.pop("SkipSimplifiedLayerNormalization")
    once = Counter(["GatherBlockQuantized", "SimplifiedLayerNormalization", "MatMulNBits"])
    assert found == once + Counter(NODES[architecture] * LAYERS)


def test_the_tables_cover_the_context_that_was_asked_for(tmp_path):
    weights = GGUFWeights(write_gguf(tmp_path / "m.gguf", random_tensors()))
    for context, wanted in ((None, 64), (16, 16), (1000, 1000)):
        folder = tmp_path / str(context)
        folder.mkdir()
        export(weights, folder, "fp32", context=context)
        assert Exported(folder).array(MODEL, "cos").shape == (wanted, HEAD // 2)


# --- what is wrong with the weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_told(exported, precision, what):
    tensors = random_tensors()
    tensors["blk.1.ffn_up.weight"][3, 5] = what
    tensors["blk.1.ffn_norm.weight"][0] = what
    _, told = exported(tensors, precision)
    assert told.notes == ("weights that are not finite numbers: blk.1.ffn_norm.weight and 1 more",)


def test_a_stored_scale_that_is_no_number_is_told(exported, tmp_path):
    path = write_gguf(tmp_path / "damaged.gguf", random_tensors(), types=QUANTIZED)
    (place,) = (item.data_offset for item in gguf.GGUFReader(path).tensors if item.name == "blk.0.attn_v.weight")
    raw = bytearray(path.read_bytes())
    raw[place : place + 2] = np.array([np.nan], "<f2").tobytes()
    path.write_bytes(raw)
    folder = tmp_path / "out"
    folder.mkdir()
    told = export(GGUFWeights(path), folder, "as-stored")
    assert told.notes == ("weights that are not finite numbers: blk.0.attn_v.weight",)


def test_rows_that_are_no_whole_blocks_are_refused_where_they_would_be_rounded(tmp_path, monkeypatch):
    monkeypatch.setitem(LINEAR, "ffn_down", (WIDTH, 80))
    monkeypatch.setitem(LINEAR, "ffn_gate", (80, WIDTH))
    monkeypatch.setitem(LINEAR, "ffn_up", (80, WIDTH))
    monkeypatch.setitem(globals(), "INNER", 80)
    weights = GGUFWeights(write_gguf(tmp_path / "m.gguf", random_tensors()))
    for precision in ("int8", "int4"):
        folder = tmp_path / precision
        folder.mkdir()
        with pytest.raises(ArtifactError, match=r"blk\.0\.ffn_down\.weight are 80 long"):
            export(weights, folder, precision)
    folder = tmp_path / "plain"
    folder.mkdir()
    export(weights, folder, "fp32")


def test_a_precision_that_does_not_exist_is_refused_before_anything_is_written(tmp_path):
    weights = GGUFWeights(write_gguf(tmp_path / "m.gguf", random_tensors()))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(UnknownNameError, match="int5"):
        export(weights, folder, "int5")
    assert not list(folder.iterdir())
