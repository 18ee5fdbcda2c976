"""Graphs of other exporters: what is read from them without loading them, and how they run.

The foreign graphs here are our own tiny one, rewritten to the convention of optimum and genai: a mask instead of
lengths, and logits of every token. Whatever runs them must find the logits that our own runner finds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebench.artifacts import obtain
from edgebench.checkpoint.onnx_file import graph_of, read_beside, read_onnx
from edgebench.derive import measured_bits, trained_context
from edgebench.errors import ArtifactError, UsageError
from edgebench.records import EngineMemory
from edgebench.registry import load
from edgebench.specs import Artifact, Settings, TrialSpec

SETTINGS = Settings(threads=1, threads_batch=1, kv_type="f32")
TOKENS = [5, 17, 99, 3, 42, 7, 120, 64, 1, 31, 77, 8]


def masked(graph: onnx.GraphProto) -> None:
    """Lengths are computed from a mask, as genai's builder does."""
    kept = [item for item in graph.input if item.name not in ("seqlens_k", "total_sequence_length")]
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [1, "total"])
    del graph.input[:]
    graph.input.extend([*kept, mask])
    one = numpy_helper.from_array(np.asarray([1], np.int64), "one")
    axis = numpy_helper.from_array(np.asarray(1, np.int64), "axis")
    graph.initializer.extend([one, axis])
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["filled"], keepdims=0),
        helper.make_node("Sub", ["filled", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "axis"], ["total_length"]),
        helper.make_node("Cast", ["total_length"], ["total_sequence_length"], to=TensorProto.INT32),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def opened_past(graph: onnx.GraphProto) -> None:
    """No past goes straight into attention: its present must be a new buffer."""
    pasts = [item.name for item in graph.input if item.name.startswith("past")]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in pasts:
                node.input[index] = f"{name}.copy"
    copies = [helper.make_node("Identity", [name], [f"{name}.copy"]) for name in pasts]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*copies, *rest])
    for item in [*graph.input, *graph.output]:
        if item.name.startswith(("past", "present")):
            item.type.tensor_type.shape.dim[2].dim_param = f"{item.name}.length"


def foreign(source: Path, folder: Path, *changes: Callable[[onnx.GraphProto], None]) -> Path:
    """A folder as optimum leaves it: ``model.onnx`` with its weights inside, ``config.json``."""
    folder.mkdir()
    model = onnx.load(source / "scoring.onnx")
    for change in (masked, *changes):
        change(model.graph)
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return folder


@pytest.fixture(params=["shared KV", "growing KV"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(tiny_onnx, tmp_path, kind) -> Path:
    return foreign(tiny_onnx, tmp_path / "foreign", *([opened_past] if kind == "growing KV" else []))


def opened(folder: Path):
    artifact = Artifact(model="tiny", precision="foreign", format="onnx", path=str(folder), bytes=1, sha256="0" * 64)
    trial = TrialSpec(artifact=artifact, runtime="ort", settings=SETTINGS, workloads=())
    return load("runtimes", "ort").RUNTIME.open(trial, lambda _text: None)


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_foreign_graph_finds_the_logits_of_our_own_runner(tiny_onnx, folder):
    with closing(opened(tiny_onnx)) as ours, closing(opened(folder)) as theirs:
        one, other = ours.context(64, SETTINGS), theirs.context(64, SETTINGS)
        for tokens in (TOKENS[:5], TOKENS[5:6], TOKENS[6:]):
            one.prefill(tokens)
            other.prefill(tokens)
            assert np.abs(one.logits() - other.logits()).max() < 1e-5


def test_tokens_one_by_one_are_the_same_prompt(folder):
    with closing(opened(folder)) as model:
        context = model.context(64, SETTINGS)
        context.prefill(TOKENS)
        whole = context.logits()
        context.clear()
        _, _, steps = context.time_decode(TOKENS)
        assert len(steps) == len(TOKENS)
        assert np.abs(whole - context.logits()).max() < 1e-4


def test_a_saved_cache_comes_back(folder):
    with closing(opened(folder)) as model:
        context = model.context(64, SETTINGS)
        context.prefill(TOKENS)
        filled = context.save()
        context.prefill([9, 9])
        once = context.logits()
        context.clear()
        context.prefill(TOKENS[::-1])
        context.restore(filled)
        context.prefill([9, 9])
        assert np.abs(once - context.logits()).max() < 1e-6


def test_a_full_cache_takes_no_more(folder):
    with closing(opened(folder)) as model:
        context = model.context(len(TOKENS), SETTINGS)
        context.prefill(TOKENS)
        with pytest.raises(RuntimeError, match="do not fit"):
            context.prefill([1])


def test_it_says_what_it_is_and_how_its_cache_grows(folder, kind):
    with closing(opened(folder)) as model:
        assert kind in model.loaded.description
        assert model.loaded.vocabulary == 128
        assert model.loaded.context_trained == 512
        assert model.loaded.bits_per_weight == 32
        model.context(256, SETTINGS)
        memory = model.memory()
        assert isinstance(memory, EngineMemory)
        assert memory.kv_growing == (kind == "growing KV")
        one_copy = 2 * 2 * 2 * 256 * 16 * 4  # layers, key and value, heads, tokens, width, bytes
        assert memory.kv == (2 if memory.kv_growing else 1) * one_copy


def without(name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        kept = [item for item in graph.output if item.name != name]
        del graph.output[:]
        graph.output.extend(kept)

    return change


def test_a_graph_that_does_not_give_its_cache_back_is_refused_by_what_is_missing(tiny_onnx, tmp_path):
    folder = foreign(tiny_onnx, tmp_path / "foreign", without("present.1.value"))
    with pytest.raises(ArtifactError, match=r"present\.1\.value"):
        opened(folder)


def test_a_graph_with_sliding_caches_is_refused(tiny_onnx, tmp_path):
    def slide(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.op_type == "GroupQueryAttention":
                node.attribute.append(helper.make_attribute("sliding_window_cache", 1))

    with pytest.raises(ArtifactError, match="sliding"):
        opened(foreign(tiny_onnx, tmp_path / "foreign", slide))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_the_onnx_package_reads(folder):
    read, whole = read_onnx(folder / "model.onnx"), onnx.load(folder / "model.onnx").graph
    assert [(node.op, *node.inputs, *node.outputs) for node in read.nodes] == [
        (node.op_type, *node.input, *node.output) for node in whole.node
    ]
    assert {name: (weight.shape, weight.type) for name, weight in read.weights.items()} == {
        tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in whole.initializer
    }


def test_quantized_weights_are_counted_one_by_one(tiny_gguf, tmp_path):
    from edgebench.checkpoint.gguf_weights import GGUFWeights
    from edgebench.export import onnx as exporter

    (tmp_path / "int4").mkdir()
    with closing(GGUFWeights(tiny_gguf)) as weights:
        told = exporter.export(weights, tmp_path / "int4", "int4")
    parameters, size = read_onnx(tmp_path / "int4" / "model.onnx").sizes()
    again = 128 * 64 if weights.config.tied else 0  # our graph names the tied embedding twice
    assert parameters == told.parameters + again
    assert size == told.weight_bytes + again * 5 // 8


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_graph_is_an_artifact_error(folder, share):
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ArtifactError, match="damaged"):
        read_onnx(folder / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\xff" * 64, b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_graph_is_an_error(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises((ArtifactError, UsageError)):
        read_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("config.json", {"max_position_embeddings": 512, "head_dim": 16}),
        ("config.json", {"n_positions": 512, "n_embd": 64, "n_head": 4}),
        ("config.json", {"text_config": {"max_position_embeddings": 512, "head_dim": 16}}),
        ("genai_config.json", {"model": {"context_length": 512, "decoder": {"head_size": 16}}}),
    ],
)
def test_the_configuration_beside_a_graph_is_read(tmp_path, name, keys):
    (tmp_path / name).write_text(json.dumps(keys))
    found = read_beside(tmp_path)
    assert (found.context, found.head_dim) == (512, 16)


def test_a_graph_alone_does_not_tell_its_context(tmp_path):
    with pytest.raises(ArtifactError, match="trained for"):
        read_beside(tmp_path)


# --- as an artifact ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["the folder", "the graph"])
def test_a_folder_of_another_exporter_is_an_artifact(folder, of):
    artifact = obtain(str(folder if of == "the folder" else folder / "model.onnx"))
    assert (artifact.format, artifact.precision) == ("onnx", "foreign")
    assert artifact.path == str(folder)
    assert trained_context(artifact) == 512
    assert measured_bits(artifact) == 32


def test_several_graphs_in_one_folder_are_refused_by_name(tmp_path):
    for name in ("decoder.onnx", "encoder.onnx"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"decoder\.onnx, encoder\.onnx"):
        graph_of(tmp_path)


def test_a_graph_beside_the_one_that_would_be_taken_is_refused(folder):
    (folder / "other.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(UsageError, match=r"other\.onnx"):
        obtain(str(folder / "other.onnx"))


def test_a_checkpoint_with_a_graph_beside_it_is_a_checkpoint(folder):
    (folder / "model.safetensors").write_bytes(bytes(16))
    assert obtain(str(folder)).format == "hf"
