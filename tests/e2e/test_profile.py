"""``edgebench profile`` as a user runs it: what it prints, writes, stores and returns, on scripted and tiny models."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from edgebench.host import Host
from edgebench.plan import thread_counts
from edgebench.topology import read_topology

if TYPE_CHECKING:
    from conftest import Cli, Done

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def shared(cli_in: type[Cli], tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A store that this module's sessions share; no test changes what another one reads."""
    return cli_in(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def sweep(shared: Cli) -> Done:
    """Three scripted precisions, three rounds each, as JSON and as a file."""
    return shared.fake("--precision", "shipped,q8_0,q4_0", "--quick", "--json", "--output", shared.folder / "all.json")


@pytest.fixture(scope="module")
def written(shared: Cli, sweep: Done) -> dict[str, Any]:
    """The file that the sweep wrote."""
    assert sweep.code == 0
    return json.loads((shared.folder / "all.json").read_text())


@pytest.fixture(scope="module")
def table(shared: Cli) -> Done:
    """The same for people, one precision."""
    return shared.fake("--quick")


@pytest.fixture(scope="module")
def tiny(cli_in: type[Cli], tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> tuple[Cli, dict[str, Any]]:
    """A real engine on a tiny model at three precisions, and the file with everything."""
    cli = cli_in(tmp_path_factory.mktemp("tiny"))
    options = ("--precision", "shipped,q8_0,q4_k_m", "--threads", "1", "--workload", "pp32", "--workload", "tg16")
    file = cli.folder / "tiny.json"
    done = cli("profile", "--model", tiny_gguf, *options, "--workload", "tg8@d32", "--quick", "--output", file)
    assert done.code == 0, done.err
    return cli, json.loads(file.read_text())


# --- the document -----------------------------------------------------------------------------------------------------


def test_json_is_one_document_and_all_of_standard_output(sweep: Done):
    assert sweep.code == 0
    assert sweep.out.count("\n") == 1
    assert sweep.out.endswith("}\n")
    assert set(sweep.json) >= {"schema", "session_id", "plan", "trials", "stopped", "next_step"}


def test_with_json_people_read_standard_error(sweep: Done):
    assert "tok/s" in sweep.err
    assert "next: " in sweep.err


def test_the_numbers_are_those_of_the_script(sweep: Done):
    trials = sweep.json["trials"]
    assert [trial["trial"]["artifact"]["precision"] for trial in trials] == ["shipped", "q8_0", "q4_0"]
    for trial in trials:
        assert trial["outcome"] == "ok"
        assert trial["rounds_ok"] == 3
        prefill, decode = trial["workloads"]["pp512"], trial["workloads"]["tg128"]
        assert prefill["tokens_per_s"]["value"] == pytest.approx(1000)
        assert decode["tokens_per_s"]["value"] == pytest.approx(200)
        assert prefill["ttft_s"]["value"] == pytest.approx(0.512, rel=1e-3)
        assert [decode[f"itl_{q}_s"]["value"] for q in ("p50", "p95", "p99")] == pytest.approx([0.005] * 3)
        assert prefill["itl_p50_s"] is None
        assert decode["ttft_s"] is None


def test_what_cannot_be_measured_is_absent_with_a_reason(sweep: Done):
    for trial in sweep.json["trials"]:
        assert trial["energy"]["energy_j"] is None
        assert trial["energy"]["reason"]


def test_each_trial_says_why_it_stopped(sweep: Done):
    document = sweep.json
    assert len(document["stopped"]) == 3
    assert set(document["stopped"].values()) <= {"target", "max-rounds"}


def test_the_file_holds_every_raw_sample(written: dict[str, Any]):
    assert len(written["runs"]) == 9
    for run in written["runs"]:
        assert {block["workload"] for block in run["blocks"]} == {"pp512", "tg128"}
        for block in run["blocks"]:
            assert len(block["step_ns"]) == (128 if block["workload"] == "tg128" else 1)
            assert block["t1_ns"] - block["t0_ns"] == sum(block["step_ns"])
        assert [mark["name"] for mark in run["marks"]][0::3] == ["load", "end"]
        assert run["provenance"]["command"][:2] == ["edgebench", "profile"]


def test_trials_are_interleaved_forwards_and_backwards_and_so_are_workloads(written: dict[str, Any]):
    runs = sorted(written["runs"], key=lambda run: run["started_ns"])
    order = [(run["round"], run["trial"]["artifact"]["precision"]) for run in runs]
    names = ["shipped", "q8_0", "q4_0"]
    assert order == [(i, name) for i in range(3) for name in (names if i % 2 == 0 else names[::-1])]
    for run in runs:
        first = run["blocks"][0]["workload"]
        assert first == ("pp512" if run["round"] % 2 == 0 else "tg128")


def test_every_run_fits_the_published_schema(shared: Cli, written: dict[str, Any]):
    check = jsonschema.Draft202012Validator(shared.here("runs", "schema").json)
    for run in written["runs"]:
        check.validate(run)


def test_the_file_of_a_second_session_replaces_the_first_one_whole(shared: Cli, tmp_path: Path):
    file = tmp_path / "out.json"
    file.write_text("old " * 100_000)
    assert shared.here(*shared.fake_arguments("--output", file)).code == 0
    assert len(json.loads(file.read_text())["runs"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_output_to_a_device_writes_into_it(shared: Cli):
    assert shared.here(*shared.fake_arguments("--output", "/dev/null")).code == 0
    assert Path("/dev/null").is_char_device()


# --- for people -------------------------------------------------------------------------------------------------------


def test_the_table_is_on_standard_output_and_progress_on_standard_error(table: Done):
    assert table.code == 0
    assert "tg128" in table.out
    assert "1000" in table.out
    assert "round 1 shipped fake: " in table.err
    assert "round 3 shipped fake: " in table.err
    assert "round" not in table.out.replace("rounds", "")


def test_the_last_line_says_what_to_look_at_next(table: Done):
    lines = [line for line in table.out.splitlines() if line and not line.startswith(" ")]
    assert lines[-1].startswith("next: ")


def test_without_a_terminal_there_are_no_control_codes(table: Done, sweep: Done):
    for text in (table.out, table.err, sweep.out, sweep.err):
        assert ESCAPE not in text
        assert "\r" not in text


def test_on_a_terminal_progress_is_one_line_that_is_gone_at_the_end(cli: Cli):
    terminal, its_end = os.openpty()
    argv = cli.argv(*cli.fake_arguments())
    with subprocess.Popen(
        argv, env=cli.environment({"TERM": "xterm"}), cwd=cli.folder, stdout=subprocess.DEVNULL, stderr=its_end
    ) as process:
        os.close(its_end)
        shown = bytearray()
        with contextlib.suppress(OSError):  # Linux's answer to reading a terminal that nobody holds any more
            while piece := os.read(terminal, 4096):
                shown += piece
    os.close(terminal)
    assert process.returncode == 0
    lines = shown.decode().split("\r\x1b[2K")
    assert any("round 1: shipped on fake: tg128 #1" in line for line in lines)
    assert lines[-1] == ""
    assert "\n" not in shown.decode()


def test_quiet_leaves_the_result_only(shared: Cli):
    done = shared.fake("--quiet")
    assert done.code == 0
    assert done.err == ""
    assert "tg128" in done.out


def test_a_reader_that_goes_away_is_no_crash(cli: Cli):
    argv = cli.argv(*cli.fake_arguments("--json"))
    with subprocess.Popen(
        argv, env=cli.environment(), cwd=cli.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "Exception" not in err
    assert process.returncode == 0


# --- the store --------------------------------------------------------------------------------------------------------


def test_every_run_is_in_the_store(shared: Cli, sweep: Done, written: dict[str, Any]):
    shown = shared.here("runs", "show", sweep.json["session_id"], "--json").json
    assert shown["exit_code"] == 0
    assert shown["unrecorded"] == []
    assert {run["run_id"] for run in shown["runs"]} == {run["run_id"] for run in written["runs"]}


def test_what_is_exported_is_what_was_written(shared: Cli, sweep: Done, written: dict[str, Any]):
    exported = shared.here("runs", "export", "--session", sweep.json["session_id"]).json["runs"]
    assert sorted(exported, key=lambda run: run["run_id"]) == sorted(written["runs"], key=lambda run: run["run_id"])


def test_a_session_that_came_to_its_end_is_not_resumed(cli: Cli):
    assert cli.here(*cli.fake_arguments()).code == 0
    cli.here("profile", "--resume").complains(2, "No session was interrupted", "start one")


def test_resuming_a_finished_session_by_name_shows_it_again(shared: Cli, sweep: Done):
    again = shared.here("profile", "--resume", sweep.json["session_id"][:8], "--json")
    assert again.code == 0
    assert [trial["rounds_ok"] for trial in again.json["trials"]] == [3, 3, 3]


# --- exit codes of a sweep --------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_when_one_precision_fails(shared: Cli):
    done = shared.fake(
        "--precision", "shipped,q8_0,q4_0", "--budget", "1ms", "--json", script=("die_signal=11", "only_bits=8.5")
    )
    done.complains(4, "q8_0 on fake", "SIGSEGV")
    outcomes = {trial["trial"]["artifact"]["precision"]: trial["outcome"] for trial in done.json["trials"]}
    assert outcomes == {"shipped": "ok", "q8_0": "failed", "q4_0": "ok"}


def test_when_everything_fails_nothing_was_measured(shared: Cli):
    done = shared.here(*shared.fake_arguments("--precision", "q8_0,q4_0", "--json", script=("fail=1",)))
    done.complains(3, "the script says: fail")
    assert [trial["outcome"] for trial in done.json["trials"]] == ["failed", "failed"]
    run = shared.here("runs", "show", done.json["session_id"], "--json").json["runs"][0]
    assert run["outcome"] == "failed"
    detail = shared.here("runs", "show", run["run_id"], "--json").json["run"]["failure"]
    assert "Traceback" in detail["log_tail"]
    assert detail["phase"] == "load"


# --- threads ----------------------------------------------------------------------------------------------------------


def test_without_a_number_of_threads_the_best_one_is_searched(cli: Cli):
    done = cli.here("profile", "--runtime", "fake", "--precision", "shipped", "--budget", "1ms", "--json")
    assert done.code == 0
    counts = thread_counts(read_topology(Host()))
    seen = done.json["thread_choice"].get("fake", {})
    if len(counts) > 1:
        assert {kind: sorted(map(int, rates)) for kind, rates in seen.items()} == {
            "tg": sorted(counts),
            "pp": sorted(counts),
        }
    else:
        assert seen == {}
    assert done.json["plan"]["trials"][0]["settings"]["threads"] in counts


def test_more_threads_than_cpus_are_measured_and_doubted(shared: Cli):
    done = shared.here(*shared.fake_arguments("--threads", "999", "--json"))
    assert done.code == 0
    findings = {finding["kind"]: finding for finding in done.json["trials"][0]["findings"]}
    assert findings["too_many_threads"]["severity"] == "suspect"
    assert "999 threads" in done.err


def test_a_search_that_fails_is_told(cli: Cli):
    if len(thread_counts(read_topology(Host()))) < 2:
        return  # with one core nothing is searched
    script = ("--script", "die_signal=11", "--script", "die_at=2")
    done = cli.here("profile", "--runtime", "fake", "--precision", "shipped", "--budget", "1ms", *script)
    assert done.err.count("failed: the engine crashed (SIGSEGV)") == 2  # the search, and the round after it


# --- a real engine ----------------------------------------------------------------------------------------------------


def test_a_real_engine_measures_what_was_asked(tiny: tuple[Cli, dict[str, Any]]):
    _, document = tiny
    assert {run["trial"]["runtime"] for run in document["runs"]} == {"llamacpp", "ort"}
    assert len(document["runs"]) == 18
    for run in document["runs"]:
        steps = {block["workload"]: len(block["step_ns"]) for block in run["blocks"]}
        assert steps == {"pp32": 1, "tg16": 16, "tg8@d32": 8}
        assert all(block["t1_ns"] - block["t0_ns"] == sum(block["step_ns"]) > 0 for block in run["blocks"])
        assert all((block["ttft_ns"] is not None) == (block["workload"] == "pp32") for block in run["blocks"])
        assert run["loaded"]["context_trained"] == 512


def test_the_real_bits_per_weight_come_from_the_file(tiny: tuple[Cli, dict[str, Any]]):
    _, document = tiny
    bits = {}
    for trial in document["trials"]:
        loaded = trial["loaded"]
        key = trial["trial"]["runtime"], trial["trial"]["artifact"]["precision"]
        bits[key] = 8 * loaded["weight_bytes"] / loaded["parameters"]
    assert bits["llamacpp", "f32"] == bits["ort", "f32"] == 32
    assert 8.5 <= bits["llamacpp", "q8_0"] < 9 <= bits["ort", "q8_0"] < 9.5  # half and single precision scales
    assert 4.5 < bits["llamacpp", "q4_k_m"] < bits["llamacpp", "q8_0"]


def test_a_precision_that_the_model_does_not_allow_is_a_finding(tiny: tuple[Cli, dict[str, Any]]):
    _, document = tiny
    kinds = {
        trial["trial"]["artifact"]["precision"]: {finding["kind"] for finding in trial["findings"]}
        for trial in document["trials"]
    }
    assert "quantization_fallback" in kinds["q4_k_m"]
    assert "quantization_fallback" not in kinds["q8_0"] | kinds["f32"]


def test_the_same_artifact_says_the_same_in_every_process(tiny: tuple[Cli, dict[str, Any]]):
    _, document = tiny
    said: dict[str, set[tuple[int, ...]]] = {}
    for run in document["runs"]:
        said.setdefault(run["trial"]["artifact"]["sha256"], set()).add(tuple(run["greedy"]))
    assert len(said) == 6
    assert all(len(tokens) == 1 and len(next(iter(tokens))) == 8 for tokens in said.values())


def test_what_was_quantized_once_is_not_quantized_again(tiny: tuple[Cli, dict[str, Any]], tiny_gguf: Path):
    cli, document = tiny
    options = ("--precision", "q8_0", "--threads", "1", "--workload", "tg4", "--budget", "1ms", "--json")
    again = cli.here("profile", "--model", tiny_gguf, *options)
    assert again.code == 0
    assert "making" not in again.err
    assert "exporting" not in again.err
    before = {
        (trial["trial"]["runtime"], trial["trial"]["artifact"]["precision"]): trial["trial"]["artifact"]
        for trial in document["trials"]
    }
    for trial in again.json["trials"]:
        assert trial["trial"]["artifact"] == before[trial["trial"]["runtime"], "q8_0"]


def test_both_runtimes_of_a_precision_stand_together_and_hold_the_same_weights(tiny: tuple[Cli, dict[str, Any]]):
    _, document = tiny
    order = [(trial["trial"]["artifact"]["precision"], trial["trial"]["runtime"]) for trial in document["trials"]]
    assert order == [(name, runtime) for name in ("f32", "q8_0", "q4_k_m") for runtime in ("llamacpp", "ort")]
    greedy = {
        (run["trial"]["runtime"], run["trial"]["artifact"]["precision"]): run["greedy"] for run in document["runs"]
    }
    assert greedy["llamacpp", "f32"] == greedy["ort", "f32"]


def test_a_workload_longer_than_the_trained_context_is_refused(shared: Cli, tiny_gguf: Path):
    for workload in ("tg600", "tg8@d510"):
        done = shared.here("profile", "--model", tiny_gguf, "--workload", workload)
        done.complains(2, "512", "--force-context")


def test_it_is_measured_when_forced_and_doubted(shared: Cli, tiny_gguf: Path):
    options = ("--precision", "shipped", "--threads", "1", "--budget", "1ms", "--json")
    done = shared.here("profile", "--model", tiny_gguf, "--workload", "tg8@d600", "--force-context", *options)
    assert done.code == 0
    for trial in done.json["trials"]:
        assert "context_forced" in {finding["kind"] for finding in trial["findings"]}


# --- wrong requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profil"], ["'profil'", "did you mean 'profile'"]),
        (["profile", "--treads", "2"], ["--treads", "--threads"]),
        (["profile", "--model", "smollm2-135m-instrct"], ["did you mean 'smollm2-135m-instruct'"]),
        (["profile", "--runtime", "llamacp"], ["did you mean 'llamacpp'"]),
        (["profile", "--runtime", "fake", "--precision", "q9_0"], ["'q9_0'", "did you mean 'q8_0'"]),
        (["profile", "--runtime", "fake", "--precision", ","], ["precision"]),
        (["profile", "--runtime", "fake", "--workload", "pp0"], ["'pp0'", "pp512"]),
        (["profile", "--runtime", "fake", "--workload", "prefill"], ["'prefill'", "tg128"]),
        (["profile", "--device", "gpu"], ["'gpu'", "did you mean 'webgpu'"]),
        (["profile", "--runtime", "fake", "--threads", "0"], ["0 threads"]),
        (["profile", "--runtime", "fake", "--threads", "-3"], ["-3 threads"]),
        (["profile", "--runtime", "fake", "--threads", "two"], ["'two'", "--threads"]),
        (["profile", "--runtime", "fake", "--budget", "5"], ["'5'", "90s"]),
        (["profile", "--runtime", "fake", "--budget", "-5s"], ["'-5s'"]),
        (["profile", "--runtime", "fake", "--timeout", "never"], ["'never'"]),
        (["profile", "--quick", "--thorough"], ["contradict"]),
        (["profile", "--runtime", "fake", "--energy", "5s"], ["5s is too short", "60s"]),
        (["profile", "--resume", "nosuch"], ["'nosuch'"]),
        (["profile", "--script", "tg_token_s=1"], ["fake"]),
        (["profile", "--runtime", "fake", "--script", "tg_token=1"], ["did you mean 'tg_token_s'"]),
        (["profile", "--runtime", "fake", "--script", "tg_token_s"], ["KEY=NUMBER"]),
        (["profile", "--runtime", "fake", "--script", "tg_token_s=nan"], ["nan"]),
        (["profile", "--runtime", "fake", "--script", "tg_token_s=0"], ["tg_token_s=0"]),
        (["profile", "--runtime", "fake", "--script", "die_signal=99"], ["signal 99"]),
        (["profile", "--runtime", "fake", "--output", "no/such/folder/x.json"], ["no/such/folder"]),
        (["profile", "--runtime", "fake", "--output", "."], ["directory"]),
        (["profile", "--runtime", "fake", "surplus"], ["surplus"]),
        (["profile", "--output"], ["--output"]),
    ],
    ids=lambda value: "-".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_wrong_request_is_refused_at_once(shared: Cli, arguments: list[str], words: list[str]):
    done = shared.here(*arguments)
    done.complains(2, *words)
    assert done.out == ""


def test_a_wrong_request_ends_the_program_with_its_exit_code(shared: Cli):
    shared("profile", "--treads", "2").complains(2, "--treads", "--threads")
