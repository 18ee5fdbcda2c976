"""The main job on the real default model, end to end. Nothing here judges speed: only what must hold on any machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jsonschema
import pytest

from edgebench.cards import model_card
from edgebench.records import FindingKind, Severity

if TYPE_CHECKING:
    from conftest import Cli, Done

pytestmark = pytest.mark.model

LAYERS, KV_HEADS, HEAD = 30, 3, 64
VOCABULARY = 49152
PARAMETERS = 134_515_008


@pytest.fixture(scope="module")
def cli(cli_in: type[Cli], tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return cli_in(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def done(cli: Cli, model_file: Path) -> Done:
    """Three rounds of the file as published, however long they take here. One thread cannot wait for another."""
    what = ("--model", model_file, "--precision", "shipped", "--workload", "pp64", "--workload", "tg64")
    how = ("--quick", "--budget", "10m", "--runtime", "llamacpp", "--threads", "1")
    finished = cli("profile", *what, *how, "--json", "--output", cli.folder / "all.json")
    assert finished.code == 0, finished.err
    return finished


@pytest.fixture(scope="module")
def trial(done: Done) -> dict[str, Any]:
    """The summary of the file as published."""
    (only,) = done.json["trials"]
    return only


@pytest.fixture(scope="module")
def smaller(cli: Cli, done: Done, model_file: Path) -> dict[str, Any]:
    """The summary of one short round of the same weights at q4_0, made here."""
    assert done.code == 0
    what = ("--model", model_file, "--precision", "q4_0", "--workload", "tg8", "--threads", "1", "--budget", "1ms")
    finished = cli.here("profile", *what, "--runtime", "llamacpp", "--json")
    assert finished.code == 0, finished.err
    (only,) = finished.json["trials"]
    return only


@pytest.fixture(scope="module")
def twins(cli: Cli, done: Done, model_file: Path) -> dict[str, dict[str, Any]]:
    """One short round of the same q4_0 weights on each runtime, by its name."""
    assert done.code == 0
    what = ("--model", model_file, "--precision", "q4_0", "--workload", "tg8", "--threads", "1", "--budget", "1ms")
    finished = cli.here("profile", *what, "--json")
    assert finished.code == 0, finished.err
    assert "the same weights, bit for bit, on llamacpp and ort: q4_0" in finished.err
    return {trial["trial"]["runtime"]: trial for trial in finished.json["trials"]}


@pytest.fixture(scope="module")
def runs(cli: Cli, done: Done) -> list[dict[str, Any]]:
    """Measured rounds, with raw samples."""
    assert done.code == 0
    every = json.loads((cli.folder / "all.json").read_text())["runs"]
    return [run for run in every if run["purpose"] == "measure"]


def test_every_round_was_measured(trial: dict[str, Any]):
    assert trial["outcome"] == "ok"
    assert trial["trial"]["artifact"]["precision"] == "q4_1"
    assert (trial["rounds_ok"], trial["rounds_failed"]) == (3, 0)
    assert set(trial["workloads"]) == {"pp64", "tg64"}


def test_the_file_is_the_one_that_the_card_declares(trial: dict[str, Any], smaller: dict[str, Any]):
    declared = model_card("smollm2-135m-instruct").files[0]
    shipped = trial["trial"]["artifact"]
    assert (shipped["sha256"], shipped["bytes"]) == (declared.sha256, declared.bytes)
    assert smaller["trial"]["artifact"]["derived_from"] == declared.sha256


def test_what_was_loaded_is_the_model(trial: dict[str, Any], smaller: dict[str, Any]):
    for loaded in (trial["loaded"], smaller["loaded"]):
        assert loaded["architecture"] == "llama"
        assert loaded["vocabulary"] == VOCABULARY
        assert loaded["context_trained"] == 8192
        assert loaded["parameters"] == PARAMETERS
        assert loaded["load_s"] > 0


def test_real_bits_per_weight_are_above_the_name_of_the_precision(trial: dict[str, Any], smaller: dict[str, Any]):
    bits = [8 * one["loaded"]["weight_bytes"] / PARAMETERS for one in (smaller, trial)]
    assert 4.5 <= bits[0] < bits[1] < 6.5
    for one in (trial, smaller):
        whole = one["trial"]["artifact"]["bytes"]
        assert 0.95 * whole <= one["loaded"]["weight_bytes"] <= whole


def test_every_token_has_its_own_time(runs: list[dict[str, Any]]):
    for run in runs:
        for block in run["blocks"]:
            assert len(block["step_ns"]) == (64 if block["workload"] == "tg64" else 1)
            assert min(block["step_ns"]) > 0
            assert sum(block["step_ns"]) == block["t1_ns"] - block["t0_ns"]
            assert block["start"]["t_ns"] <= block["t0_ns"] < block["t1_ns"] <= block["end"]["t_ns"]
            assert (block["ttft_ns"] or 0) >= (sum(block["step_ns"]) if block["workload"] == "pp64" else 0)


def test_latencies_and_rates_fit_each_other(trial: dict[str, Any]):
    prefill, decode = trial["workloads"]["pp64"], trial["workloads"]["tg64"]
    assert prefill["ttft_s"]["value"] >= 0.99 * 64 / prefill["tokens_per_s"]["value"] > 0
    p50, p95, p99 = (decode[f"itl_{q}_s"]["value"] for q in ("p50", "p95", "p99"))
    assert 0 < p50 <= p95 <= p99
    assert decode["tokens_per_s"]["value"] > 0


def test_the_engine_accounts_for_its_memory(trial: dict[str, Any], smaller: dict[str, Any]):
    for one in (trial, smaller):
        engine = one["memory"]["engine"]
        weights = sum(engine["weights"].values())
        assert weights >= 0.99 * one["loaded"]["weight_bytes"]
        assert weights <= 2.2 * one["loaded"]["weight_bytes"]  # mapped, and repacked once more
        assert engine["kv"] == pytest.approx(LAYERS * 2 * KV_HEADS * HEAD * 2 * 256, rel=0.01)  # as the log rounds it
        assert engine["compute"] > 0
        assert engine["output"] == pytest.approx(4 * VOCABULARY, rel=0.1)


def test_the_kernel_saw_that_memory_too(runs: list[dict[str, Any]]):
    for run in runs:
        phases = {phase["phase"]: phase for phase in run["memory"]["phases"]}
        assert set(phases) == {"load", "pp64", "tg64"}
        for phase in phases.values():
            assert phase["anon"] + phase["file"] > 30e6
            if phase["rss_peak"] is not None:
                assert phase["rss_peak"] >= 0.99 * (phase["anon"] + phase["file"])
        engine = run["memory"]["engine"]
        assert phases["pp64"]["anon"] > engine["kv"]
        assert phases["tg64"]["anon"] + phases["tg64"]["file"] > sum(engine["weights"].values())


def test_the_sampler_read_while_blocks_were_timed(runs: list[dict[str, Any]]):
    for run in runs:
        names = {series["channel"]["name"] for series in run["series"]}
        assert {"memory.anon", "memory.file", "memory.available"} <= names
        for series in run["series"]:
            assert len(series["t_ns"]) == len(series["values"])
            assert list(series["t_ns"]) == sorted(series["t_ns"])
        assert run["sampler_cost_s"] is not None


def test_a_model_computes_the_same_in_every_process(runs: list[dict[str, Any]]):
    assert len(runs) == 3
    (said,) = {tuple(run["greedy"]) for run in runs}
    assert len(said) == 8
    assert all(0 <= token < VOCABULARY for token in said)


def test_findings_are_sentences_with_a_remedy(trial: dict[str, Any], smaller: dict[str, Any]):
    findings = [*trial["findings"], *smaller["findings"]]
    assert "too_few_rounds" in {finding["kind"] for finding in findings}
    for finding in findings:
        assert finding["kind"] in get_args(FindingKind)
        assert finding["severity"] in get_args(Severity)
        assert finding["says"].endswith(".")
        assert finding["remedy"]


def test_where_it_was_measured_is_known(runs: list[dict[str, Any]]):
    for run in runs:
        provenance = run["provenance"]
        assert "llama-cpp-python" in provenance["runtime_version"]["value"]
        assert provenance["runtime_build"]["value"]
        assert provenance["logical_cpus"] >= 1
        for fact in ("kernel", "cpu_model", "governor", "memory_bytes", "virtualization", "container"):
            assert (provenance[fact]["value"] is None) == bool(provenance[fact]["unknown_because"])


def test_every_run_fits_the_published_schema(cli: Cli, runs: list[dict[str, Any]]):
    check = jsonschema.Draft202012Validator(cli.here("runs", "schema").json)
    for run in runs:
        check.validate(run)


def test_the_session_can_be_shown(cli: Cli, done: Done):
    shown = cli.here("runs", "show", done.json["session_id"])
    assert shown.code == 0
    assert "q4_1" in shown.out
    assert "ok" in shown.out


def test_a_finished_session_is_resumed_without_another_run(cli: Cli, done: Done, runs: list[dict[str, Any]]):
    again = cli.here("profile", "--resume", done.json["session_id"], "--json", "--output", cli.folder / "again.json")
    assert again.code == 0
    measured = json.loads((cli.folder / "again.json").read_text())["runs"]
    assert sorted(run["run_id"] for run in measured) == sorted(run["run_id"] for run in runs)
    assert [trial["workloads"] for trial in again.json["trials"]] == [t["workloads"] for t in done.json["trials"]]


# --- the same weights on onnxruntime ----------------------------------------------------------------------------------


def test_both_runtimes_hold_the_same_weights(twins: dict[str, dict[str, Any]]):
    llamacpp, ort = twins["llamacpp"], twins["ort"]
    assert ort["trial"]["artifact"]["same_weights_as"] == llamacpp["trial"]["artifact"]["sha256"]
    assert ort["loaded"]["parameters"] == llamacpp["loaded"]["parameters"] == PARAMETERS
    assert ort["loaded"]["vocabulary"] == llamacpp["loaded"]["vocabulary"] == VOCABULARY
    assert ort["memory"]["engine"]["kv"] == 2 * 4 * LAYERS * KV_HEADS * HEAD * 256  # float32, 256 tokens


def test_scales_of_single_precision_cost_half_a_bit(twins: dict[str, dict[str, Any]]):
    bits = {name: 8 * trial["loaded"]["weight_bytes"] / PARAMETERS for name, trial in twins.items()}
    assert bits["ort"] - bits["llamacpp"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("runtime", ["llamacpp", "ort"])
def test_it_answers_a_question(cli: Cli, twins: dict[str, dict[str, Any]], model_file: Path, runtime: str):
    assert twins
    how = ("--precision", "q4_0", "--runtime", runtime, "--chat", "--max-tokens", "12", "--threads", "1", "--json")
    done = cli.here("generate", model_file, "What is the capital of France?", *how)
    assert done.code == 0, done.err
    assert "Paris" in done.json["text"]
    assert done.json["prompt_tokens"] > 20
    assert 1 < len(done.json["tokens"]) <= 12


def test_what_was_exported_runs_where_it_was_put(cli: Cli, twins: dict[str, dict[str, Any]], model_file: Path):
    assert twins
    place = cli.folder / "ünï code" / "an export"
    done = cli.here("export", model_file, "--to", "onnx", "--precision", "q4_0", "-o", place, "--json")
    assert done.code == 0, done.err
    assert done.json["path"] == str(place)
    assert done.json["bits_per_weight"] == pytest.approx(5.85, abs=0.02)
    cli.here("export", model_file, "--to", "onnx", "--precision", "q4_0", "-o", place).complains(2, "exists", "--force")
    again = cli.here("generate", place, "The capital of France is", "--max-tokens", "4", "--threads", "1", "--json")
    assert again.code == 0, again.err
    assert again.json["text"].strip()
    cli.here("profile", "--model", place, "--runtime", "llamacpp").complains(2, "ONNX export", "--runtime ort")
