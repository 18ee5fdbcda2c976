"""The reference exporter without its library: what it is shown, and what is refused before torch is needed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from edgebench.errors import ArtifactError, MissingDependency, UsageError
from edgebench.export import optimum

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_a_flat_rotation_is_spelled_as_before():
    told = optimum.both_spellings({"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}, "m")
    assert told["rope_theta"] == 100000.0
    assert "rope_scaling" not in told


def test_a_scaled_rotation_keeps_its_scaling():
    told = optimum.both_spellings({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, "m")
    assert told["rope_theta"] == 5e5
    assert told["rope_scaling"] == LLAMA3


def test_a_rotation_by_kind_of_layer_is_spelled_as_gemma3_did():
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    schemes = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    told = optimum.both_spellings({"rope_parameters": schemes}, "m")
    assert (told["rope_theta"], told["rope_local_base_freq"]) == (1e6, 1e4)
    assert told["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_what_the_folder_says_itself_stays():
    document = {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "hidden_size": 4}
    assert optimum.both_spellings(document, "m") == document


def test_an_old_folder_is_left_alone():
    document = {"rope_theta": 7.0, "rope_scaling": None}
    assert optimum.both_spellings(document, "m") == document


def test_a_rotation_without_an_old_spelling_is_refused():
    with pytest.raises(ArtifactError, match="chunked_attention"):
        optimum.both_spellings({"rope_parameters": {"chunked_attention": {"rope_theta": 1.0}}}, "m")


@pytest.mark.parametrize("names", [(), ("config.json",), ("config.json", "pytorch_model.bin")])
def test_a_folder_without_safetensors_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(UsageError, match="safetensors"):
        optimum.check_source(tmp_path)


def test_pickles_are_not_shown_to_the_library(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "modeling_own.py", "tokenizer.json"):
        (source / name).write_bytes(b"{}")
    shown = optimum._show(source, tmp_path / "shown")
    assert {path.name for path in shown.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_without_the_extra_the_exact_line_is_given(monkeypatch):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(MissingDependency) as refused:
        optimum.export(Path("anywhere"), Path("anywhere"))
    assert refused.value.next_step == "pip install 'edgebench[optimum]'"
