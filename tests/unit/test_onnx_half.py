"""An export in half precision: the same nodes and blocks, every float32 as float16, and the same answers on the CPU."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.errors import ArtifactError
from edgebench.export.onnx import DATA, MODEL, SCORING, export
from edgebench.export.onnx_half import halve
from edgebench.manifest import OnnxManifest
from tests.unit.test_onnx_export import QUANTIZED, Exported, random_tensors, write_gguf


def exported(folder: Path, architecture: str, *, accuracy_level: int = 0) -> Path:
    path = write_gguf(folder / "m.gguf", random_tensors(architecture), architecture, QUANTIZED)
    target = folder / "onnx"
    target.mkdir()
    with closing(GGUFWeights(path)) as weights:
        export(weights, target, "as-stored", accuracy_level=accuracy_level)
    return target


def halved(folder: Path) -> tuple[Path, OnnxManifest]:
    other = folder.with_name("half")
    shutil.copytree(folder, other)
    return other, halve(other, msgspec.json.decode((other / "edgebench.json").read_bytes(), type=OnnxManifest))


def logits(folder: Path, tokens: list[int]) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / SCORING, providers=["CPUExecutionProvider"])
    feeds = {
        item.name: np.zeros((1, item.shape[1], 64, item.shape[3]), np.float16 if "16" in item.type else np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past")
    }
    feeds |= {
        "input_ids": np.array([tokens], np.int64),
        "seqlens_k": np.array([len(tokens) - 1], np.int32),
        "total_sequence_length": np.array(len(tokens), np.int32),
    }
    return session.run(["logits"], feeds)[0][0]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_half_precision_answers_nearly_the_same(tmp_path, architecture):
    folder = exported(tmp_path, architecture)
    other, _ = halved(folder)
    exact, half = logits(folder, list(range(20))), logits(other, list(range(20)))
    assert half.dtype == np.float16
    assert np.abs(exact - half).max() <= 0.02 * exact.std()


def test_no_float32_is_left_and_blocks_are_the_same_bits(tmp_path):
    folder = exported(tmp_path, "llama")
    other, manifest = halved(folder)
    before, after = Exported(folder), Exported(other)
    for name in (MODEL, SCORING):
        graph = after.graphs[name]
        values = [*graph.input, *graph.output]
        assert TensorProto.FLOAT not in {value.type.tensor_type.elem_type for value in values}
        assert TensorProto.FLOAT not in {tensor.data_type for tensor in graph.initializer}
        blocks = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.UINT8]
        assert blocks
        for tensor in blocks:
            assert np.array_equal(before.array(name, tensor), after.array(name, tensor))
    assert after.places(MODEL) == {name: after.places(SCORING)[name] for name in after.places(MODEL)}
    assert (manifest.activations, manifest.variant, manifest.same_weights) == ("f16", "acc0 f16", False)
    assert msgspec.json.decode((other / "edgebench.json").read_bytes(), type=OnnxManifest) == manifest


def test_scales_of_a_gguf_lose_nothing(tmp_path):
    folder = exported(tmp_path, "llama")
    other, _ = halved(folder)
    before, after = Exported(folder), onnx.load(other / MODEL).graph
    scales = [tensor for tensor in after.initializer if tensor.name.endswith("scales")]
    assert scales
    for tensor in scales:
        half = onnx.numpy_helper.to_array(tensor)
        assert half.dtype == np.float16
        assert np.array_equal(half.astype(np.float32), before.array(MODEL, tensor.name))


def test_weight_bytes_are_those_of_the_new_file(tmp_path):
    folder = exported(tmp_path, "llama")
    other, manifest = halved(folder)
    places = {name: length for name, (_, _, length) in Exported(other).places(MODEL).items()}
    unique = {place: name for name, place in Exported(other).places(MODEL).items()}
    assert manifest.weight_bytes == sum(places[name] for name in unique.values() if not name.startswith(("cos", "sin")))


def test_a_weight_beyond_half_precision_is_refused_and_the_export_stays(tmp_path):
    tensors = random_tensors("llama")
    tensors["output_norm.weight"][3] = 1e6
    path, folder = write_gguf(tmp_path / "m.gguf", tensors, "llama", QUANTIZED), tmp_path / "onnx"
    folder.mkdir()
    with closing(GGUFWeights(path)) as weights:
        manifest = export(weights, folder, "as-stored")
    before = (folder / DATA).read_bytes()
    with pytest.raises(ArtifactError, match=r"output_norm.* beyond the range of half precision"):
        halve(folder, manifest)
    assert (folder / DATA).read_bytes() == before
