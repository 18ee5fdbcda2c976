"""The reader of Hugging Face folders, against tiny folders written here without torch or safetensors."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebench.checkpoint.architectures import ARCHITECTURES
from edgebench.checkpoint.hf import HFWeights
from edgebench.checkpoint.hf_config import HFConfig
from edgebench.checkpoint.shapes import global_shapes, layer_shapes
from edgebench.errors import ArtifactError, EdgebenchError, UsageError

MOST_BYTES = 8 << 20

SHARED = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 16,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SHARED, "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False},
    "qwen2": {**SHARED, "model_type": "qwen2", "hidden_act": "silu"},
    "qwen3": {**SHARED, "model_type": "qwen3", "hidden_act": "silu", "head_dim": 4},
    "gemma3": {
        **SHARED,
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 4,
        "sliding_window": 8,
        "query_pre_attn_scalar": 4,
    },
    "phi3": {**SHARED, "model_type": "phi3", "hidden_act": "silu"},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 16,
        "n_positions": 32,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    },
}
NEEDED = {
    "llama": [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ],
    "gpt2": ["n_embd", "n_layer", "n_head", "vocab_size", "n_positions", "layer_norm_epsilon"],
}
EACH_NEEDED = [(name, key) for name, keys in NEEDED.items() for key in keys]


# --- folders ----------------------------------------------------------------------------------------------------------


def tensors(name: str, config: Mapping[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Random tensors of the shapes that the configuration asks for, under Hugging Face's names."""
    (folder / "config.json").write_text(json.dumps(config))
    architecture, shape = ARCHITECTURES[name], HFConfig(folder).read("tiny")
    prefix, random = architecture.hf_prefixes[0], np.random.default_rng(0)
    stored = {}
    for full, dims in global_shapes(architecture, shape).items():
        part, suffix = full.rsplit(".", 1)
        theirs = architecture.hf_head if part == "output" else prefix + architecture.hf_global[part]
        stored[f"{theirs}.{suffix}"] = dims
    for layer in range(shape.layers):
        for full, dims in layer_shapes(architecture, shape).items():
            part, suffix = full.rsplit(".", 1)
            swapped = architecture.transposed and not part.endswith("norm")
            theirs = f"{prefix}{architecture.hf_layers}.{layer}.{architecture.hf_layer[part]}.{suffix}"
            stored[theirs] = dims[::-1] if swapped else dims
    return {theirs: random.normal(size=dims).astype("<f4") for theirs, dims in stored.items()}


def container(stored: Mapping[str, np.ndarray]) -> bytes:
    entries, data = {}, b""
    kinds = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "F8_E4M3"}
    for name, values in stored.items():
        raw = values.tobytes()
        kind = kinds[str(values.dtype)]
        entries[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


class Folder:
    """A folder that a test may spoil before it is opened."""

    def __init__(self, path: Path, name: str) -> None:
        path.mkdir()
        self.path, self.name, self.config = path, name, dict(CONFIGS[name])
        self.tensors = tensors(name, self.config, path)

    def write(self, shards: int = 1) -> Path:
        """Write everything; the path."""
        (self.path / "config.json").write_text(json.dumps(self.config))
        if shards == 1:
            (self.path / "model.safetensors").write_bytes(container(self.tensors))
            return self.path
        where, names = {}, list(self.tensors)
        for index in range(shards):
            file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            own = names[index::shards]
            (self.path / file).write_bytes(container({name: self.tensors[name] for name in own}))
            where |= dict.fromkeys(own, file)
        self.write_index(where)
        return self.path

    def write_index(self, weight_map: object) -> None:
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def refused(self, *words: str, error: type[EdgebenchError] = ArtifactError) -> EdgebenchError:
        """It cannot be opened, the error says these words, and nothing of it stays mapped."""
        with pytest.raises(error) as caught:
            HFWeights(self.path)
        for word in words:
            assert word in str(caught.value)
        assert str(self.path) in caught.value.what
        assert caught.value.next_step
        assert str(self.path) not in Path("/proc/self/maps").read_text()
        return caught.value


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "model", "llama")


# --- what is fine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_folder_of_each_architecture_is_read(tmp_path, name, shards):
    folder = Folder(tmp_path / "model", name)
    weights = HFWeights(folder.write(shards))
    arch = ARCHITECTURES[name]
    assert (weights.architecture, weights.config.name, weights.config.layers) == (arch, "model", 2)
    stored = {theirs: values.copy() for theirs, values in folder.tensors.items()}
    assert len(list(weights.names())) == len(stored)
    for full in weights.names():
        part, suffix = full.removeprefix("blk.1.").rsplit(".", 1)
        assert weights.tensor(full).shape == weights.shape(full)
        assert weights.type_of(full) == "f32"
        assert weights.blocks(full) is None
        if full.startswith("blk.1."):
            theirs = stored[f"{arch.hf_prefixes[0]}{arch.hf_layers}.1.{arch.hf_layer[part]}.{suffix}"]
            wanted = theirs.T if arch.transposed else theirs
            wanted = wanted + np.float32(arch.norm_offset) if full.endswith("norm.weight") else wanted
            np.testing.assert_array_equal(weights.tensor(full), wanted)
    weights.close()
    weights.close()


def test_spaces_and_unicode_in_a_path_are_fine(tmp_path):
    for name in ("mit Leerzeichen", "模型 ✓ é"):
        HFWeights(Folder(tmp_path / name, "llama").write(2)).close()


def test_a_head_that_is_tied_may_be_stored_all_the_same(folder):
    folder.config["tie_word_embeddings"] = True
    weights = HFWeights(folder.write())
    assert weights.config.tied
    assert not weights.has("output.weight")
    weights.close()


def test_buffers_that_are_not_learned_are_left_out(folder):
    folder.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    weights = HFWeights(folder.write())
    assert not any("rotary" in name for name in weights.names())
    weights.close()


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_named(folder):
    folder.write(3)
    (folder.path / "model-00002-of-00003.safetensors").unlink()
    folder.refused("lacks model-00002-of-00003.safetensors of 3 shards", "download what is missing")


def test_a_truncated_shard_is_named(folder):
    folder.write(2)
    shard = folder.path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    folder.refused("model-00002-of-00002.safetensors is truncated")


@pytest.mark.parametrize("theirs", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(folder, theirs):
    del folder.tensors[theirs]
    folder.write()
    named = {"model.norm": "output_norm", "model.layers.1.mlp.up_proj": "blk.1.ffn_up", "lm_head": "output"}
    folder.refused(f"lacks the tensor {named[theirs.removesuffix('.weight')]}.weight")


def test_a_folder_without_the_embedding_says_where_it_was_looked_for(folder):
    folder.tensors = {"other.embed_tokens.weight": np.ones((16, 8), np.float32)}
    folder.write()
    folder.refused("holds no tensor model.embed_tokens.weight")


@pytest.mark.parametrize("shape", [(12, 9), (8, 12), (96,), (1, 12, 8), (11, 8)])
def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder, shape):
    folder.tensors["model.layers.0.mlp.up_proj.weight"] = np.ones(shape, np.float32)
    folder.write()
    folder.refused(f"model.layers.0.mlp.up_proj.weight of shape {list(shape)}; config.json says [12, 8]")


@pytest.mark.parametrize(
    "extra", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.adapter.weight", "score.weight"]
)
def test_a_tensor_that_would_be_left_out_is_refused(folder, extra):
    folder.tensors[extra] = np.ones((12, 8), np.float32)
    folder.write()
    folder.refused(f"has the tensor {extra}, which llama does not use", "optimum road")


def test_a_bias_that_the_architecture_does_not_know_is_refused(tmp_path):
    folder = Folder(tmp_path / "model", "phi3")
    folder.tensors["model.layers.0.mlp.down_proj.bias"] = np.ones(8, np.float32)
    folder.write()
    folder.refused("model.layers.0.mlp.down_proj.bias, which phi3 does not use")


def test_an_optional_bias_has_to_have_the_length_of_its_layer(folder):
    bias = "model.layers.0.mlp.down_proj.bias"
    folder.tensors[bias] = np.ones(8, np.float32)
    weights = HFWeights(folder.write())
    assert weights.has("blk.0.ffn_down.bias")
    weights.close()
    folder.tensors[bias] = np.ones(9, np.float32)
    folder.write()
    folder.refused(bias, "[9]", "[8]")


def test_one_tensor_in_two_shards_is_refused(folder):
    folder.write(2)
    twin = container({name: folder.tensors[name] for name in list(folder.tensors)[0::2]})
    (folder.path / "model-00002-of-00002.safetensors").write_bytes(twin)
    folder.refused("in both model-00001-of-00002.safetensors and model-00002-of-00002.safetensors")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_a_tensor_of_no_floating_type_is_refused_when_it_is_read(folder, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    folder.tensors[name] = np.ones((12, 8), dtype)
    weights = HFWeights(folder.write())
    with pytest.raises(ArtifactError, match=r"stores model\.layers\.0\.mlp\.up_proj\.weight as (I64|F8_E4M3)"):
        weights.tensor("blk.0.ffn_up.weight")
    assert weights.type_of("blk.0.ffn_up.weight") in ("i64", "f8_e4m3")
    weights.close()


def test_a_tensor_that_is_not_there_is_an_error_of_ours(folder):
    weights = HFWeights(folder.write())
    for ask in (weights.tensor, weights.shape, weights.type_of):
        with pytest.raises(ArtifactError, match=r"lacks the tensor blk\.7"):
            ask("blk.7.ffn_up.weight")
    weights.close()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused(folder, name):
    (folder.path / name).write_bytes(b"\x80\x04")
    folder.refused(name, "reading those runs code", "safetensors version")


def test_an_index_of_pickles_is_refused(folder):
    folder.write_index({"model.norm.weight": "pytorch_model.bin"})
    (folder.path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    folder.refused("pytorch_model.bin", "reading those runs code")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "..",
        "",
        "model",
        "a\0.safetensors",
    ],
)
def test_an_index_that_points_elsewhere_is_refused(folder, name):
    folder.write()
    (folder.path.parent / "x.safetensors").write_bytes(container(folder.tensors))
    folder.write_index({"model.norm.weight": name})
    folder.refused("which is no safetensors file beside it")


def test_an_index_with_an_endless_name_is_refused(folder):
    folder.write_index({"a": "x" * 5000 + ".safetensors"})
    folder.refused("no safetensors file beside it")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": '])
def test_an_unusable_index_is_refused(folder, text):
    folder.write()
    (folder.path / "model.safetensors.index.json").write_text(text)
    folder.refused("model.safetensors.index.json")


def test_a_folder_without_weights_or_config_says_what_to_give(folder, tmp_path):
    folder.refused("holds no model.safetensors", error=UsageError)
    (folder.path / "config.json").unlink()
    folder.refused("config.json cannot be read", "give a folder", error=UsageError)
    with pytest.raises(UsageError, match="cannot be read"):
        HFWeights(tmp_path / "nowhere")


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "key"), EACH_NEEDED)
def test_a_missing_key_is_named(tmp_path, name, key):
    folder = Folder(tmp_path / "model", name)
    del folder.config[key]
    folder.write()
    folder.refused("config.json lacks the key", key)


@pytest.mark.parametrize("value", [0, -1, "8", True, [8], {}, 2.5, 1 << 40, 10**30])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size"])
def test_a_number_that_cannot_be_is_refused(folder, key, value):
    folder.config[key] = value
    folder.write()
    folder.refused(f"config.json has {key} = {value!r}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 3}, "cannot share evenly"),
        ({"num_attention_heads": 16}, "has head_dim = 0"),
        ({"head_dim": 3}, "rotates 3 channels of heads that are 3 wide"),
        ({"partial_rotary_factor": 1.5}, "rotates 3 channels of heads that are 2 wide"),
        ({"partial_rotary_factor": "half"}, "has partial_rotary_factor = 'half'"),
        ({"rope_theta": -1}, "has rope_theta = -1"),
        ({"rope_theta": "1e4"}, "has rope_theta = '1e4'"),
        ({"rope_scaling": {"type": "linear"}}, "lacks the key factor"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "has factor = 'two'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "stretches its context by 'yarn'"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "stretches its context by ['llama3']"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1}},
            "lacks the key high_freq_factor",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "from 4 to 4",
        ),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1, 1]}}, "no short_factor of 1 numbers"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": ["a"]}}, "no short_factor of 1 numbers"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [0], "long_factor": [1]}}, " 0"),
        ({"hidden_act": "relu"}, "has the activation 'relu'"),
        ({"hidden_act": ["silu"]}, "has the activation ['silu']"),
        ({"quantization_config": {"bits": 4}}, "is a quantized checkpoint"),
        ({"text_config": [1]}, "text_config that is no object"),
    ],
)
def test_a_variant_that_would_go_wrong_is_refused(folder, change, words):
    folder.config |= change
    folder.write()
    folder.refused(words)


@pytest.mark.parametrize("model_type", ["mamba", "Llama", "", None, 3, {"a": 1}])
def test_an_unknown_architecture_is_refused_by_name(folder, model_type):
    folder.config["model_type"] = model_type
    folder.write()
    folder.refused(f"is of the architecture {str(model_type)!r}", "llama, qwen2, qwen3", "--exporter optimum")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"nonsense", b'{"a": "\xff"}', b'{"a":' + b"[" * 200_000])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    folder.write()
    (folder.path / "config.json").write_bytes(text)
    folder.refused("config.json is not a JSON object")


def test_a_config_without_end_is_refused(folder):
    folder.write()
    with (folder.path / "config.json").open("wb") as file:
        file.truncate(1 << 34)  # sparse
    folder.refused("config.json is longer than 64 MiB")


# --- anything ---------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=8), SCALARS, max_size=3)
ROPE_KEYS = ["rope_type", "type", "factor", "rope_theta", "short_factor", "long_factor", "low_freq_factor"]
ROPES = st.dictionaries(
    st.sampled_from([*ROPE_KEYS, "high_freq_factor", "full_attention", "original_max_position_embeddings"]),
    VALUES | st.sampled_from(["linear", "llama3", "longrope", 2, [1.0, 2.0], [1.0]]),
    max_size=6,
)
MORE_KEYS = ["rope_scaling", "rope_parameters", "head_dim", "sliding_window", "layer_types", "partial_rotary_factor"]
EXTRA_KEYS = [*MORE_KEYS, "final_logit_softcapping", "max_window_layers", "use_sliding_window", "text_config"]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_no_config_does_more_than_be_refused(tmp_path, name):
    keys = st.sampled_from([*CONFIGS[name], *EXTRA_KEYS, "sliding_window_pattern", "query_pre_attn_scalar"])

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(keys, VALUES | ROPES | st.integers(1, 64), min_size=1, max_size=4))
    def holds(changes: dict[str, Any]) -> None:
        changes = {"model_type": CONFIGS[name]["model_type"], **changes}
        (tmp_path / "config.json").write_text(json.dumps({**CONFIGS[name], **changes}))
        tracemalloc.start()
        try:
            config = HFConfig(tmp_path).read("tiny")
            assert config.head_dim >= 1
            assert config.heads % config.kv_heads == 0
        except EdgebenchError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MOST_BYTES

    holds()
