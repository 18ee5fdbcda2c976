"""``config.json`` in both spellings of its rotary parameters, and what each architecture says or leaves out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebench.checkpoint.base import ModelConfig, Rope
from edgebench.checkpoint.hf_config import HFConfig
from edgebench.checkpoint.rotary import frequencies, tables
from edgebench.errors import ArtifactError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "vocab_size": 300,
    "hidden_act": "silu",
}
GEMMA = {**LLAMA, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 512, "query_pre_attn_scalar": 16}
del GEMMA["hidden_act"]
PHI = {**LLAMA, "model_type": "phi3"}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 8.0]
FACTORS = {"short_factor": SHORT, "long_factor": LONG}

# What: the spelling before transformers 5, the spelling since, what both mean.
SPELLINGS: dict[str, tuple[dict[str, Any], dict[str, Any], Rope]] = {
    "plain": (
        {**LLAMA, "rope_theta": 500000.0, "rope_scaling": None},
        {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        Rope(base=500000.0, dimensions=16),
    ),
    "left out": ({**LLAMA}, {**LLAMA, "rope_parameters": None}, Rope(base=10000.0, dimensions=16)),
    "linear": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        Rope(base=10000.0, dimensions=16, scale=4.0),
    ),
    "gemma, full attention": (
        {
            **GEMMA,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8},
        },
        {
            **GEMMA,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        Rope(base=1e6, dimensions=16, scale=8.0),
    ),
    "phi, part of a head": (
        {**PHI, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        {**PHI, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}},
        Rope(base=10000.0, dimensions=8),
    ),
    "phi, long": (
        {
            **PHI,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", **FACTORS},
        },
        {
            **PHI,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 4096,
                **FACTORS,
            },
        },
        Rope(
            base=10000.0,
            dimensions=8,
            factors=tuple(SHORT),
            long_factors=tuple(LONG),
            original=4096,
            attention_factor=math.sqrt(1 + math.log(32) / math.log(4096)),
        ),
    ),
}


@pytest.fixture
def read(tmp_path):
    def reading(document: dict[str, Any]) -> ModelConfig:
        (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")
        return HFConfig(tmp_path).read("m")

    return reading


# --- both spellings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", SPELLINGS)
def test_both_spellings_of_the_rotary_parameters_mean_the_same(read, what):
    old, new, expected = SPELLINGS[what]
    assert read(old).rope == expected
    assert read(new).rope == expected


def test_layers_with_a_window_have_a_base_of_their_own_in_both_spellings(read):
    old, new, _ = SPELLINGS["gemma, full attention"]
    assert read(old).local_rope == read(new).local_rope == Rope(base=10000.0, dimensions=16)
    assert read({**old, "rope_local_base_freq": 20000.0}).local_rope == Rope(base=20000.0, dimensions=16)


def test_llama_3_slows_long_wavelengths_in_both_spellings(read):
    old = read({**LLAMA, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    new = read({**LLAMA, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", **LLAMA3}})
    assert old.rope is not None
    assert old.rope == new.rope
    factors = np.array(old.rope.factors)
    wavelengths = 2 * math.pi / frequencies(Rope(base=500000.0, dimensions=16))
    assert (factors[wavelengths < 8192 / 4] == 1).all()
    assert factors[wavelengths > 8192] == pytest.approx(8)
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    blend = (8192 / wavelengths[between] - 1) / (4 - 1)
    assert 1 / factors[between] == pytest.approx((1 - blend) / 8 + blend, rel=1e-6)
    assert between.any()


def test_a_base_at_the_top_is_used_where_the_new_spelling_has_none(read):
    config = read({**LLAMA, "rope_theta": 77777.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0}})
    assert config.rope == Rope(base=77777.0, dimensions=16, scale=2.0)


def test_longrope_has_two_tables(read):
    rope = read(SPELLINGS["phi, long"][0]).rope
    assert rope is not None
    plain = 10000.0 ** -(np.arange(4) / 4)
    assert frequencies(rope) == pytest.approx(plain / SHORT, rel=1e-6)
    assert frequencies(rope, long=True) == pytest.approx(plain / LONG, rel=1e-6)
    cosine, sine = tables(rope, 5, long=True)
    assert cosine.shape == sine.shape == (5, 4)
    assert cosine[0] == pytest.approx(rope.attention_factor)
    assert sine[3] == pytest.approx(np.sin(3 * plain / LONG) * rope.attention_factor, rel=1e-5)


def test_a_declared_attention_factor_is_taken(read):
    new = SPELLINGS["phi, long"][1]
    scheme = {**new["rope_parameters"], "attention_factor": 1.19}
    assert read({**new, "rope_parameters": scheme}).rope.attention_factor == 1.19


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
@pytest.mark.parametrize("value", [None, [1.0, 2.0], [1.0, 2.0, 3.0, "4"]])
def test_longrope_without_all_its_factors_is_refused(read, key, value):
    new = SPELLINGS["phi, long"][1]
    with pytest.raises(ArtifactError, match=f"{key} of 4 numbers"):
        read({**new, "rope_parameters": {**new["rope_parameters"], key: value}})


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "proportional"])
def test_other_ways_to_stretch_are_refused_by_name(read, kind):
    for document in (
        {**LLAMA, "rope_scaling": {"type": kind, "factor": 2.0}},
        {**LLAMA, "rope_parameters": {"rope_type": kind, "factor": 2.0}},
    ):
        with pytest.raises(ArtifactError, match=kind):
            read(document)


@pytest.mark.parametrize("scheme", [{"rope_type": "linear"}, {"rope_type": "llama3", "factor": 8.0}])
def test_a_scheme_without_its_numbers_is_refused_by_key(read, scheme):
    with pytest.raises(ArtifactError, match=r"lacks the key (factor|low_freq_factor)"):
        read({**LLAMA, "rope_parameters": scheme})


# --- the rest of the shape --------------------------------------------------------------------------------------------


def test_what_published_gemma_folders_leave_out_has_the_values_of_transformers(read):
    """As the multimodal 4B is published: only what differs from the class."""
    inner = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = read({"model_type": "gemma3", "text_config": inner, "vision_config": {"hidden_size": 1152}})
    assert (config.heads, config.kv_heads, config.head_dim, config.vocabulary) == (8, 4, 256, 262208)
    assert (config.hidden, config.context, config.norm_eps, config.tied) == (2560, 131072, 1e-6, True)
    assert config.rope == Rope(base=1e6, dimensions=256, scale=8.0)
    assert config.local_rope == Rope(base=10000.0, dimensions=256)
    assert config.window == 1024
    assert config.local_layers == tuple(layer % 6 != 5 for layer in range(34))
    assert config.attention_scale is None, "1 / sqrt(256), which is that of the heads"


@pytest.mark.parametrize("key", ["vocab_size", "rms_norm_eps", "intermediate_size", "num_hidden_layers"])
def test_other_architectures_write_their_keys_down(read, key):
    with pytest.raises(ArtifactError, match=key):
        read({name: value for name, value in LLAMA.items() if name != key})


def test_gemma_says_which_layers_see_a_window(read):
    types = ["full_attention", "sliding_attention"] * 3 + ["full_attention"]
    assert read({**GEMMA, "layer_types": types}).local_layers == (False, True) * 3 + (False,)
    assert read({**GEMMA, "sliding_window_pattern": 2}).local_layers == (True, False) * 3 + (True,)
    assert read({**GEMMA, "layer_types": ["full_attention"] * 7}).window is None


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_has_a_window_only_when_it_is_switched_on(read, model_type):
    declared = {**LLAMA, "model_type": model_type, "sliding_window": 32, "max_window_layers": 5}
    assert read({**declared, "use_sliding_window": False}).window is None
    assert read({**declared, "use_sliding_window": False, "layer_types": ["sliding_attention"] * 7}).window is None
    assert read(declared).window is None
    on = read({**declared, "use_sliding_window": True})
    assert (on.window, on.local_layers) == (32, (False,) * 5 + (True,) * 2)


def test_phi_has_its_window_in_every_layer(read):
    assert read({**PHI, "sliding_window": 2047}).local_layers == (True,) * 7
    assert read({**PHI, "sliding_window": None}).window is None


def test_the_scale_of_attention_is_what_each_family_declares(read):
    assert read({**GEMMA, "query_pre_attn_scalar": 64}).attention_scale == 1 / 8
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 32, "vocab_size": 9}
    gpt2 |= {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
    config = read(gpt2)
    assert (config.attention_scale, config.ffn, config.tied, config.rope) == (None, 256, True, None)
    assert read({**gpt2, "scale_attn_weights": False}).attention_scale == 1.0
    assert read({**gpt2, "n_inner": 100}).ffn == 100


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_act": "gelu"}, "activation"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"attn_logit_softcapping": 50.0}, "caps"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "mamba"}, "mamba"),
    ],
)
def test_a_variant_that_the_graph_would_get_wrong_is_refused(read, change, word):
    with pytest.raises(ArtifactError, match=word):
        read({**LLAMA, **change})


def test_the_file_says_what_is_wrong_and_where(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        HFConfig(tmp_path)
