"""``edgebench runs`` over a real store: what people read, what programs read, and what a wrong request is told."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner, Result

from edgebench.cli._runs_export import csv_lines
from edgebench.cli.runs import command
from edgebench.errors import EdgebenchError, HostError, StoreError, UnknownNameError, UsageError
from edgebench.records import SCHEMA, Energy, Failure, MemoryUse, Run
from edgebench.specs import Plan, Protocol
from edgebench.store import NoStoreYetError, Session, Store

GOLDEN = Path(__file__).parent.parent / "golden/run-schema-1.json"
GOOD = msgspec.json.decode(GOLDEN.read_bytes(), type=Run)
BAD = msgspec.structs.replace(
    GOOD,
    run_id="bad-r01",
    round=1,
    outcome="oom",
    blocks=(),
    loaded=None,
    memory=MemoryUse(),
    findings=(),
    energy=Energy(energy_j=None, reason="this machine has no power sensor"),
    failure=Failure(
        kind="oom-killed",
        says="The kernel ended the process [bold]for want of memory[/bold].",
        next_step="Choose a smaller precision.",
        phase="load",
        signal=9,
        log_tail="ggml_backend_alloc: failed\x1b[2J\x07\nend\n",
    ),
)


def session(session_id: str) -> Session:
    return Session(
        session_id=session_id,
        created_utc="2026-11-23T10:15:00Z",
        command=("edgebench", "profile"),
        plan=Plan(trials=(GOOD.trial,), protocol=Protocol()),
        device_profile="raspberry-pi-5",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished session with one good and one bad run, and an interrupted one with a lost run."""
    path = tmp_path / "results.db"
    with Store.open(str(path)) as store:
        store.begin_session(session(GOOD.session_id))
        store.record(GOOD)
        store.record(BAD)
        store.end_session(GOOD.session_id, 4, "2026-11-23T10:30:00Z")
        store.begin_session(session("20261124-080000-pi5"))
        store.announce("lost-r00", "20261124-080000-pi5", "t", 0, "measure", "2026-11-24T08:00:01Z")
    return path


@pytest.fixture(autouse=True)
def nobody_named_a_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEBENCH_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def run(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def run_json(*arguments: str | Path) -> Any:
    return json.loads(run(*arguments, "--json"))


def refused(*arguments: str | Path) -> EdgebenchError:
    result = invoke(*arguments)
    assert isinstance(result.exception, EdgebenchError), result.output
    return result.exception


# --- list -------------------------------------------------------------------------------------------------------------


def test_sessions_are_listed_newest_first_with_counts(path: Path):
    text = run("list", "--store", path)
    assert text.index("20261124-080000-pi5") < text.index(GOOD.session_id)
    assert "1 ok, 1 oom" in text
    assert "exit 4" in text
    assert "not finished" in text
    assert "1 lost" in text
    newest, oldest = run_json("list", "--store", path)["sessions"]
    assert (newest["unrecorded"], newest["exit_code"]) == (1, None)
    assert oldest["outcomes"] == {"ok": 1, "oom": 1}
    assert len(run_json("list", "--store", path, "--limit", "1")["sessions"]) == 1


def test_runs_are_listed_newest_first_and_chosen_by_what_was_asked(path: Path):
    text = run("list", "--runs", "--store", path)
    assert text.index("bad-r01") < text.index(GOOD.run_id)
    listed = run_json("list", "--runs", "--store", path)["runs"]
    assert [each["run_id"] for each in listed] == ["bad-r01", GOOD.run_id]
    assert listed[1]["tokens_per_s"]["tg128"] == pytest.approx(34.45, abs=0.1)
    for only, found in (
        (("--outcome", "oom"), ["bad-r01"]),
        (("--limit", "1"), ["bad-r01"]),
        (("--session", "20261123"), ["bad-r01", GOOD.run_id]),
        (("--model", GOOD.trial.artifact.model, "--precision", "q4_k_m", "--outcome", "ok"), [GOOD.run_id]),
        (("--runtime", "ort"), []),
    ):
        assert [each["run_id"] for each in run_json("list", "--runs", "--store", path, *only)["runs"]] == found
    assert run("list", "--runs", "--store", path, "--runtime", "ort") == "No such runs.\n"


def test_choosing_runs_in_a_list_of_sessions_is_refused(path: Path):
    error = refused("list", "--store", path, "--model", "x")
    assert isinstance(error, UsageError)
    assert error.next_step == "add --runs."


def test_before_the_first_measurement_lists_are_empty():
    assert run("list") == "No sessions yet. Next: run `edgebench profile`.\n"
    assert run_json("list") == {"sessions": []}
    assert run_json("list", "--runs") == {"runs": []}


def test_a_named_store_that_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for verb in ("list", "show", "export"):
        assert isinstance(refused(verb, "--store", tmp_path / "no.db"), NoStoreYetError)
    monkeypatch.setenv("EDGEBENCH_STORE", str(tmp_path / "no.db"))
    assert isinstance(refused("list"), NoStoreYetError)
    assert list(tmp_path.iterdir()) == []


# --- show -------------------------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_speed_memory_energy_findings_and_provenance(path: Path):
    text = run("show", GOOD.run_id[:9], "--store", path)
    for part in (
        f"run {GOOD.run_id}: ok",
        "4 threads (prefill 4)",
        "KV f16",
        "34.5",  # tokens/s of the first tg128 block
        "28.9 ms",  # its median gap
        "pp512",
        "CPU_Mapped 101, KV 11.2, compute 40.5",
        "peak of the run",
        "61.8 J",
        "0.117 J/token",
        "quantization_fallback",
        "Cortex-A76",
        "unknown (no hypervisor flag on this machine)",
        "OMP_NUM_THREADS=4",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_median_gap_is_that_of_the_raw_steps(path: Path):
    blocks = run_json("show", GOOD.run_id, "--store", path)["blocks"]
    steps = sorted(GOOD.blocks[2].step_ns)
    assert blocks[2]["itl_p50_s"] == pytest.approx((steps[63] + steps[64]) / 2e9)
    assert steps[-3] / 1e9 <= blocks[2]["itl_p99_s"] <= steps[-1] / 1e9
    assert blocks[0]["itl_p50_s"] is None  # a batch is no token
    assert blocks[0]["ttft_s"] == GOOD.blocks[0].ttft_ns / 1e9


def test_a_failed_run_says_why_and_what_next_and_cannot_steer_the_terminal(path: Path):
    text = run("show", "bad-r01", "--store", path)
    assert "Failed in load (oom-killed)" in text
    assert "[bold]for want of memory[/bold]" in " ".join(text.split())
    assert "Next: Choose a smaller precision." in text
    assert "this machine has no power sensor" in text
    assert "ggml_backend_alloc: failed" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_session_is_shown_with_its_runs_and_those_that_left_no_record(path: Path):
    text = run("show", GOOD.session_id, "--store", path)
    assert f"session {GOOD.session_id}: exit 4" in text
    assert "1 trial, 6 to 30 rounds" in text
    assert "bad-r01" in text
    latest = run("show", "--store", path)
    assert "session 20261124-080000-pi5: not finished" in latest
    assert "No run was recorded." in latest
    assert "run lost-r00 (round 0) was announced" in latest
    document = run_json("show", "--store", path)
    assert [each["run_id"] for each in document["unrecorded"]] == ["lost-r00"]
    assert document["session"]["plan"]["protocol"]["min_rounds"] == 6
    assert max(map(len, (text + latest).splitlines())) <= 80


def test_an_unknown_id_is_a_usage_error(path: Path):
    error = refused("show", "nope", "--store", path)
    assert isinstance(error, UnknownNameError)
    assert "There is no session or run 'nope'." in str(error)
    assert isinstance(refused("show", "2026", "--store", path), UsageError)


def test_showing_an_empty_store_says_what_to_do(tmp_path: Path):
    Store.open(str(tmp_path / "e.db")).close()
    assert "edgebench profile" in refused("show", "--store", tmp_path / "e.db").next_step


# --- export -----------------------------------------------------------------------------------------------------------


def test_the_json_export_is_one_document_that_the_schema_accepts(path: Path):
    document = json.loads(run("export", "--store", path))
    assert document["schema"] == SCHEMA
    assert [each["session_id"] for each in document["sessions"]] == ["20261124-080000-pi5", GOOD.session_id]
    assert [msgspec.convert(each, Run) for each in document["runs"]] == [GOOD, BAD]
    schema = json.loads(run("schema"))
    assert schema["$id"] == "urn:edgebench:run:1"
    assert schema["title"]
    assert schema["description"]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for each in document["runs"]:
        validator.validate(each)
    for wrong in ({**document["runs"][0], "extra": 1}, {**document["runs"][0], "outcome": "fine"}):
        assert not validator.is_valid(wrong)
    assert run("schema", "--json") == run("schema")


def test_the_export_of_one_session_leaves_the_others_out(path: Path):
    document = json.loads(run("export", "--session", "20261124", "--store", path, "--json"))
    assert [each["session_id"] for each in document["sessions"]] == ["20261124-080000-pi5"]
    assert document["runs"] == []


def test_jsonl_is_one_run_per_line(path: Path):
    lines = run("export", "--format", "jsonl", "--store", path).splitlines()
    assert [msgspec.json.decode(line, type=Run) for line in lines] == [GOOD, BAD]


def test_a_text_that_csv_cannot_write_is_replaced_and_not_refused():
    head, *rows = csv_lines([msgspec.structs.replace(GOOD, session_id="a\0,b")])
    assert head.startswith(b"session_id,")
    assert rows
    assert all(row.startswith('"a\ufffd,b",'.encode()) for row in rows)


def test_csv_is_one_row_per_block_and_keeps_the_failures(path: Path):
    rows = list(csv.DictReader(io.StringIO(run("export", "--format", "csv", "--store", path))))
    assert [(row["run_id"], row["workload"], row["index"]) for row in rows] == [
        (GOOD.run_id, "pp512", "0"),
        (GOOD.run_id, "pp512", "1"),
        (GOOD.run_id, "tg128", "0"),
        (GOOD.run_id, "tg128", "1"),
        ("bad-r01", "", ""),
    ]
    assert float(rows[2]["tokens_per_s"]) == GOOD.blocks[2].tokens_per_s
    assert rows[0]["settings_threads"] == "4"
    assert (rows[4]["outcome"], rows[4]["failure"], rows[4]["run_energy_j"]) == ("oom", "oom-killed", "")
    assert rows[0]["findings"] == "governor:suspect quantization_fallback:note"


def test_a_file_is_written_whole_and_reported(path: Path, tmp_path: Path):
    target = tmp_path / "out.json"
    target.write_text("old")
    report = run_json("export", "--store", path, "-o", target)
    assert report == {"file": str(target), "format": "json", "bytes": target.stat().st_size}
    assert len(json.loads(target.read_text())["runs"]) == 2
    result = invoke("export", "--store", path, "-o", target, "--format", "csv")
    assert result.stdout == ""
    assert "Wrote" in result.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.json", "results.db"]


def test_a_failed_export_keeps_the_old_file_and_leaves_no_part(path: Path, tmp_path: Path):
    target = tmp_path / "out.json"
    target.write_text("old")
    with Store.open(str(path)) as store, store._engine.connect() as connection:
        connection.exec_driver_sql("DROP TRIGGER runs_no_update")
        connection.exec_driver_sql("UPDATE runs SET digest = 'x' WHERE run_id = 'bad-r01'")
        connection.commit()
    error = refused("export", "--store", path, "-o", target)
    assert isinstance(error, StoreError)
    assert "bad-r01" in error.what
    assert target.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.json", "results.db"]


def test_a_file_that_cannot_be_written_is_named(path: Path, tmp_path: Path):
    for target in (tmp_path / "no/out.json", tmp_path):
        error = refused("export", "--store", path, "-o", target)
        assert isinstance(error, HostError)
        assert str(target) in error.what


def test_a_pipe_is_written_and_not_replaced(path: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        run("export", "--store", path, "-o", pipe)
        assert reader.stdout is not None
        assert len(json.loads(reader.stdout.read())["runs"]) == 2
    assert pipe.is_fifo()


def test_json_and_another_format_on_stdout_contradict_each_other(path: Path):
    error = refused("export", "--store", path, "--json", "--format", "csv")
    assert isinstance(error, UsageError)
    assert "leave one out" in error.next_step


# --- the verb as a whole ----------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    code = (
        "import sys, edgebench.cli.runs; "
        "print(sorted({'sqlalchemy', 'rich', 'numpy', 'msgspec', 'platformdirs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("list",), 0),
        (("show", "nope"), 2),
        (("export", "--format", "xml"), 2),
        (("show", "--store", "/dev/null/x"), 5),
    ],
)
def test_exit_codes_are_those_of_the_errors(path: Path, arguments: tuple[str, ...], status: int):
    argv = [sys.executable, "-c", "from edgebench.cli import main; main()", "runs", *arguments]
    environment = {**os.environ, "EDGEBENCH_STORE": str(path)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
