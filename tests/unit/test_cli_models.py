"""The verb `models`: what it prints, as text and as JSON."""

from __future__ import annotations

import json
import os
import struct

import pytest
from click.testing import CliRunner

from edgebench.cli.models import command
from edgebench.errors import ArtifactError, UnknownNameError, UsageError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def run(*arguments: str):
    result = CliRunner().invoke(command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.fixture
def model(tmp_path):
    """A whole GGUF file with one F32 tensor of eight weights."""
    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    keys += text("general.file_type") + struct.pack("<II", 4, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + text("w") + struct.pack("<IQIQ", 1, 8, 0, 0)
    path = tmp_path / "own.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(32))
    return path


def test_list_shows_every_card_and_where_the_cache_is(tmp_path):
    out = run("list").stdout
    assert "smollm2-135m-instruct" in out
    assert "Apache-2.0" in out
    assert f"Cache: {tmp_path / 'cache'}" in out


def test_list_json_is_one_document():
    listed = json.loads(run("list", "--json").stdout)
    assert {"gemma-3-270m", "smollm2-135m-instruct"} <= {model["model"] for model in listed["models"]}
    assert all(model["path"] is None for model in listed["models"])


def test_show_marks_every_claim_with_its_source_or_as_unverified():
    out = run("show", "smollm2-135m-instruct").stdout
    claims = [line for line in out.splitlines() if line.startswith("    ") and line[4] != " "]
    assert len(claims) > 5, out
    assert all("[" in line for line in claims)
    assert "unverified" in out
    assert "6,000,000,000,000" in run("show", "gemma-3-270m").stdout


def test_show_json_is_the_card():
    assert json.loads(run("show", "gemma-3-270m", "--json").stdout)["license_notice"].strip().startswith("Gemma")


def test_show_of_a_file_reads_its_header(model):
    assert "not in the file" in run("show", str(model)).stdout
    shown = json.loads(run("show", str(model), "--json").stdout)
    assert (shown["header"]["parameters"], shown["header"]["bits_per_weight"]) == (8, 32.0)
    assert shown["artifact"]["precision"] == "f32"


def test_show_of_an_unknown_name_says_what_was_meant():
    with pytest.raises(UnknownNameError, match="did you mean"):
        run("show", "gemma-3")


def test_pull_of_a_file_checks_it_and_names_its_precision(model):
    out = run("pull", str(model))
    assert out.stdout.startswith("own f32: ")
    pulled = json.loads(run("pull", "--json", str(model)).stdout)
    assert [artifact["precision"] for artifact in pulled["artifacts"]] == ["f32"]


def test_quiet_prints_nothing(model):
    result = run("pull", "--quiet", str(model))
    assert (result.stdout, result.stderr) == ("", "")


def test_pull_of_a_truncated_file_is_refused(model):
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        run("pull", str(model))


def test_pull_asks_for_the_terms():
    with pytest.raises(UsageError, match="--accept-license"):
        run("pull", "gemma-3-270m")
