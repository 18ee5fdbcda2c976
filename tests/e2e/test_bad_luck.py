"""Damaged files, full disks, no memory, dying and hanging children: each is told in one line, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest

from edgebench.cgroups import find
from edgebench.engine import about as about_of
from edgebench.engine.child import Child, Ended, _exits_within, run_job
from edgebench.engine.messages import AboutJob, MeasureJob, Phase
from edgebench.engine.protocol import Limits
from edgebench.host import Host
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload

if TYPE_CHECKING:
    from conftest import Cli

HOST = Host()
PATIENT = Limits(load_s=60, block_s=60)
ANY = ("--precision", "shipped", "--threads", "1", "--workload", "tg8", "--budget", "1ms")
ONE = (*ANY, "--runtime", "llamacpp")


# --- children, one at a time ------------------------------------------------------------------------------------------


def scripted(**script: float) -> MeasureJob:
    artifact = Artifact(model="m", precision="q8_0", format="fake", path="", bytes=1062, sha256="00")
    trial = TrialSpec(
        artifact=artifact,
        runtime="fake",
        settings=Settings(threads=1, threads_batch=1),
        workloads=(parse_workload("pp8"), parse_workload("tg8")),
        script=script,
    )
    return MeasureJob(trial=trial, round=0, budget_s=1.0)


def assert_gone(ended: Ended) -> None:
    assert ended.ended_ns > ended.started_ns
    with pytest.raises(ChildProcessError):  # it has been waited for: no zombie is left
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(("die_at", "phase"), [(-1, "load"), (0, "pp8")])
@pytest.mark.parametrize(
    ("number", "outcome", "kind"),
    [
        (signal.SIGKILL, "killed", "sigkill"),
        (signal.SIGTERM, "killed", "sigterm"),
        (signal.SIGILL, "failed", "illegal-instruction"),
        (signal.SIGSEGV, "failed", "native-abort"),
        (signal.SIGABRT, "failed", "native-abort"),
    ],
)
def test_how_a_child_died_is_told(number: signal.Signals, outcome: str, kind: str, die_at: int, phase: str):
    ended = run_job(scripted(die_signal=number, die_at=die_at), HOST, PATIENT)
    assert ended.failure is not None
    assert (ended.outcome, ended.failure.kind) == (outcome, kind)
    assert (ended.failure.signal, ended.failure.phase) == (number, phase)
    assert ended.failure.next_step
    assert_gone(ended)


def test_blocks_that_were_finished_before_a_death_are_kept():
    ended = run_job(scripted(die_signal=11, die_at=2), HOST, PATIENT)
    assert ended.outcome == "failed"
    assert [(block.workload, block.index) for block in ended.attempt.blocks] == [("pp8", 0), ("pp8", 1)]


def test_a_block_that_hangs_is_stopped():
    ended = run_job(scripted(block_s=60), HOST, Limits(load_s=60, block_s=1))
    assert ended.failure is not None
    assert (ended.outcome, ended.failure.kind, ended.failure.phase) == ("timeout", "timeout", "pp8")
    assert "1 s in phase 'pp8'" in ended.failure.says
    assert_gone(ended)


def test_an_exception_is_told_with_its_traceback():
    ended = run_job(scripted(fail=1), HOST, PATIENT)
    assert ended.failure is not None
    assert (ended.outcome, ended.failure.kind) == ("failed", "python-error")
    assert ended.failure.says == "RuntimeError: the script says: fail"
    assert "fake.py" in ended.failure.log_tail


def test_logits_that_are_no_numbers_make_a_bad_artifact():
    ended = run_job(scripted(nan_logits=1), HOST, PATIENT)
    assert ended.failure is not None
    assert (ended.outcome, ended.failure.kind) == ("failed", "bad-artifact")
    assert ended.failure.says == "m: the model's logits are not finite numbers."


def test_nonsense_on_the_pipe_stops_the_child_and_not_the_parent():
    child = Child(scripted(hang_s=60), HOST, PATIENT)

    def interfere(_message: object) -> None:
        arguments = HOST.proc(f"{child.pid}/cmdline").read_bytes().split(b"\0")  # the last is the pipe's descriptor
        HOST.proc(f"{child.pid}/fd/{int(arguments[-2])}").write_bytes(b"ggml: hello\n")

    ended = child.listen(interfere)
    assert ended.failure is not None
    assert (ended.outcome, ended.failure.kind) == ("failed", "protocol")
    assert_gone(ended)


def test_whatever_interrupts_the_parent_takes_the_child_with_it():
    child = Child(scripted(hang_s=60), HOST, PATIENT)

    def interrupt(message: object) -> None:
        if isinstance(message, Phase):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.listen(interrupt)
    assert not HOST.proc(str(child.pid)).exists()
    child.close()


@pytest.mark.parametrize("told_by_the_kernel", [True, False])
def test_the_end_of_a_process_is_waited_for_and_not_longer_than_wished(monkeypatch, told_by_the_kernel: bool):  # noqa: FBT001
    if not told_by_the_kernel:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not _exits_within(process, 0.05)
        process.kill()
        assert _exits_within(process, 60)


def test_a_runtime_is_asked_once_and_again_after_a_failure(monkeypatch):
    asked = []

    def counted(job: AboutJob, host: Host, limits: Limits) -> Ended:
        asked.append(job.runtime)
        return run_job(msgspec.structs.replace(job, runtime=job.runtime if len(asked) > 1 else "none"), host, limits)

    monkeypatch.setattr(about_of, "run_job", counted)
    monkeypatch.setattr(about_of, "_TOLD", {})
    first, second, third = (about_of.about("fake", HOST) for _ in range(3))
    assert first.version.value is None
    assert second.version.value
    assert third is second
    assert asked == ["fake", "fake"]


# --- the same from outside --------------------------------------------------------------------------------------------


def test_a_hanging_model_is_stopped_and_the_sweep_goes_on(cli: Cli):
    done = cli.fake(
        "--precision",
        "q8_0,q4_0",
        "--timeout",
        "2s",
        "--budget",
        "1ms",
        "--json",
        script=("hang_s=60", "only_bits=8.5"),
    )
    done.complains(4, "q8_0 on fake", "no sign of life for 2 s", "--timeout")
    assert [trial["outcome"] for trial in done.json["trials"]] == ["timeout", "ok"]


NO_ADDRESS_SPACE = "import os, resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))"
NO_ADDRESS_SPACE += "; os.environ['OPENBLAS_NUM_THREADS'] = '1'"  # numpy reserves some for each thread


class Prison(NamedTuple):
    """Where memory is short: Python that goes there before it becomes the program, and how the end is then told."""

    enter: str
    kind: str
    eat_mib: int


@pytest.fixture
def prison(tmp_path: Path) -> Iterator[Prison]:
    """A memory control group of 256 MiB where the machine allows one, else a limit on the address space."""
    group = find(HOST, "memory")
    parent = group.directories[0] if group else None
    made = parent / f"edgebench-test-{os.getpid()}" if parent else None
    limits = {"memory.limit_in_bytes": "256M", "memory.max": "256M", "memory.swap.max": "0", "memory.swappiness": "0"}
    try:
        if made is None:
            raise PermissionError("no memory control group is visible")
        made.mkdir()
        files = [made / name for name in limits if (made / name).exists()]
        for file in files:
            file.write_text(limits[file.name])
        if not files:
            raise PermissionError("the group has no memory controller")
        (made / "cgroup.procs").write_text("")
        usable = True
    except OSError:
        usable = False
    if usable:
        yield Prison(f"open({str(made / 'cgroup.procs')!r}, 'w').write('0')", "oom-killed", 700)
    else:
        yield Prison(NO_ADDRESS_SPACE, "alloc-failed", 1500)
    if made is not None and made.exists():
        made.rmdir()


def test_running_out_of_memory_kills_one_trial_and_not_the_session(cli: Cli, prison: Prison):
    done = cli.fake(
        "--precision",
        "shipped,q8_0,q4_0",
        "--budget",
        "1ms",
        "--json",
        script=(f"eat_mib={prison.eat_mib}", "only_bits=8.5"),
        before=prison.enter,
    )
    done.complains(4, "q8_0 on fake", "memory", "smaller precision")
    trials = done.json["trials"]
    assert [trial["outcome"] for trial in trials] == ["ok", "oom", "ok"]
    assert trials[1]["failure"]["kind"] == prison.kind
    assert trials[1]["failure"]["phase"] == "load"


def test_without_address_space_a_refused_allocation_is_out_of_memory(cli: Cli):
    done = cli.fake("--json", script=("eat_mib=1500",), before=NO_ADDRESS_SPACE)
    done.complains(3, "memory")
    assert done.json["trials"][0]["outcome"] == "oom"
    assert done.json["trials"][0]["failure"]["kind"] == "alloc-failed"


# --- files ------------------------------------------------------------------------------------------------------------


def with_key(whole: bytes, key: str, value: int) -> bytes:
    """The same GGUF with another value of a u32 key."""
    name = key.encode()
    place = whole.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4
    return whole[:place] + struct.pack("<I", value) + whole[place + 4 :]


def damaged(kind: str, whole: bytes) -> bytes:
    random = bytes((37 * i * i + 11 * i) % 251 for i in range(5000))
    return {
        "truncated data": whole[: len(whole) // 2],
        "truncated header": whole[:200],
        "four bytes": b"GGUF",
        "random bytes": random,
        "random bytes after the magic": b"GGUF" + random,
        "random bytes after the version": b"GGUF\x03\0\0\0" + random,
        "another magic": b"GGML" + whole[4:],
        "empty": b"",
        "unknown architecture": whole.replace(b"llama", b"lhama"),
        "unknown tokenizer": whole.replace(b"no_vocab", b"xx_vocab"),
        "too many layers": with_key(whole, "llama.block_count", 100_000),
        "no layers": with_key(whole, "llama.block_count", 0),
        "a missing layer": with_key(whole, "llama.block_count", 3),
        "no heads": with_key(whole, "llama.attention.head_count", 0),
        "another width": with_key(whole, "llama.embedding_length", 32),
        "no words": with_key(whole, "llama.vocab_size", 0),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [
        ("truncated data", 3, "truncated"),
        pytest.param("truncated header", 3, "damaged.gguf", marks=pytest.mark.slow),
        ("four bytes", 3, "damaged.gguf"),
        pytest.param("random bytes", 3, "not a GGUF file", marks=pytest.mark.slow),
        pytest.param("random bytes after the magic", 3, "version", marks=pytest.mark.slow),
        ("random bytes after the version", 3, "more than fit"),
        pytest.param("another magic", 3, "b'GGML'", marks=pytest.mark.slow),
        ("empty", 2, "is empty"),
        ("unknown architecture", 3, "lhama"),
        pytest.param("unknown tokenizer", 3, "xx_vocab", marks=pytest.mark.slow),
        ("too many layers", 3, "SIGABRT"),
        ("no layers", 3, "SIGABRT"),
        pytest.param("a missing layer", 3, "blk.2", marks=pytest.mark.slow),
        pytest.param("no heads", 3, "wrong shape", marks=pytest.mark.slow),
        ("another width", 3, "n_rot"),
        pytest.param("no words", 3, "wrong shape", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_told_and_harms_nobody(cli: Cli, tiny_gguf: Path, kind: str, code: int, word: str):
    path = cli.folder / "damaged.gguf"
    path.write_bytes(damaged(kind, tiny_gguf.read_bytes()))
    cli.here("profile", "--model", path, *ONE).complains(code, word)


@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [
        ("truncated data", 3, "truncated"),
        pytest.param("random bytes after the version", 3, "more than fit", marks=pytest.mark.slow),
        ("unknown architecture", 3, "lhama"),
        ("too many layers", 3, "llama.block_count = 100000"),
        pytest.param("no layers", 3, "llama.block_count", marks=pytest.mark.slow),
        pytest.param("a missing layer", 3, "blk.2", marks=pytest.mark.slow),
        pytest.param("no heads", 3, "llama.attention.head_count", marks=pytest.mark.slow),
        ("another width", 3, "8 wide"),
        pytest.param("no words", 3, "0 words", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_told_by_the_exporter_too(cli: Cli, tiny_gguf: Path, kind: str, code: int, word: str):
    path = cli.folder / "damaged.gguf"
    path.write_bytes(damaged(kind, tiny_gguf.read_bytes()))
    cli.here("profile", "--model", path, *ANY, "--runtime", "ort").complains(code, word)
    assert not list(cli.cache.rglob("*.onnx"))


def test_an_abort_of_the_engine_quotes_the_assertion_and_keeps_the_log(cli: Cli, tiny_gguf: Path):
    path = cli.folder / "deep.gguf"
    path.write_bytes(damaged("too many layers", tiny_gguf.read_bytes()))
    done = cli.here("profile", "--model", path, *ONE, "--json")
    done.complains(3, "in phase 'load': ", "GGML_ASSERT")
    failure = done.json["trials"][0]["failure"]
    assert failure["kind"] == "native-abort"
    assert "llama_model_loader" in failure["log_tail"]


def test_a_file_that_the_quantizer_refuses_is_told(cli: Cli, tiny_gguf: Path):
    path = cli.folder / "alien.gguf"
    path.write_bytes(damaged("unknown architecture", tiny_gguf.read_bytes()))
    cli.here("profile", "--model", path, *ONE, "--precision", "q8_0").complains(3, "lhama", "q8_0", times=2)


def test_a_bad_model_does_not_stop_a_good_one(cli: Cli, tiny_gguf: Path):
    path = cli.folder / "half.gguf"
    path.write_bytes(damaged("truncated data", tiny_gguf.read_bytes()))
    done = cli.here("profile", "--model", path, "--model", tiny_gguf, *ONE, "--json")
    done.complains(4, "half.gguf", "truncated")
    assert sorted(trial["outcome"] for trial in done.json["trials"]) == ["failed", "ok"]


@pytest.mark.parametrize(
    ("kind", "word"),
    [("missing", "no file"), ("folder", "folder"), ("pipe", "regular file"), ("unreadable", "cannot be read")],
)
def test_what_is_no_readable_file_is_a_wrong_request(cli: Cli, kind: str, word: str):
    path = cli.folder / "model.gguf"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to(HOST.proc("self/mem"))  # its first page cannot be read, by root neither
    cli.here("profile", "--model", path, *ONE).complains(2, word, str(path.name) if kind != "unreadable" else "mem")


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["shipped", "q8_0"])
def test_a_cache_that_cannot_be_written_is_told(cli: Cli, tiny_gguf: Path, precision: str):
    cli.cache.write_text("a file where the folder should be")
    done = cli.here("profile", "--model", tiny_gguf, *ONE, "--precision", precision)
    done.complains(5, str(cli.cache), "EDGEBENCH_CACHE")


def test_a_full_disk_under_the_cache_costs_the_precisions_that_need_it(cli: Cli, tiny_gguf: Path):
    assert cli.here("profile", "--model", tiny_gguf, *ONE).code == 0  # makes the store, and remembers the hash
    options = ("--threads", "1", "--workload", "tg8", "--budget", "1ms", "--precision", "shipped,f16", "--json")
    options += ("--runtime", "llamacpp")
    done = cli("profile", "--model", tiny_gguf, *options, before=largest_file(tiny_gguf.stat().st_size // 2))
    done.complains(4, "f16", "free space")
    assert not list(cli.cache.rglob("f16*"))


def test_a_full_disk_leaves_no_export_that_looks_finished(cli: Cli, tiny_gguf: Path):
    options = (*ANY, "--runtime", "ort", "--json")
    cli.here("profile", "--model", tiny_gguf, *ONE)  # makes the store, and remembers the hash
    done = cli("profile", "--model", tiny_gguf, *options, before=largest_file(tiny_gguf.stat().st_size // 2))
    done.complains(3, "free space")
    assert not list(cli.cache.rglob("*.onnx"))


def largest_file(size: int) -> str:
    """Files cannot grow beyond this: to a program it looks much like a disk that is full."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_store_that_is_a_folder_is_told(cli: Cli):
    cli.store.mkdir()
    cli.here(*cli.fake_arguments()).complains(5, str(cli.store), "folder")


def test_a_store_in_a_folder_that_cannot_be_made_is_told(cli: Cli):
    (cli.folder / "file").write_text("")
    where = cli.folder / "file" / "results.db"
    cli.here(*cli.fake_arguments("--store", where)).complains(5, str(where.parent), "--store")


@pytest.mark.parametrize("kind", ["random bytes", "a damaged database"])
def test_a_corrupted_store_is_told_and_left_alone(cli: Cli, kind: str):
    if kind == "random bytes":
        cli.store.write_bytes(bytes(range(256)) * 40)
    else:
        assert cli.here(*cli.fake_arguments()).code == 0
        whole = bytearray(cli.store.read_bytes())
        whole[4096:] = b"\xa5" * (len(whole) - 4096)
        cli.store.write_bytes(whole)
    before = cli.store.read_bytes()
    cli.here(*cli.fake_arguments()).complains(5, str(cli.store), "--store")
    cli.here("runs", "list").complains(5, str(cli.store))
    assert cli.store.read_bytes() == before


def test_a_store_of_a_newer_version_is_told_and_left_alone(cli: Cli):
    assert cli.here(*cli.fake_arguments()).code == 0
    connection = sqlite3.connect(cli.store)
    connection.execute("UPDATE meta SET value = '999' WHERE key = 'version'")
    connection.commit()
    connection.close()
    cli.here(*cli.fake_arguments()).complains(5, "newer edgebench", "upgrade")


def test_a_disk_that_is_full_from_the_start_is_told(cli: Cli):
    cli.fake(before=largest_file(8192)).complains(5, str(cli.store), "--store")


def test_a_disk_that_fills_up_loses_nothing_that_was_stored(cli: Cli):
    full = cli.fake("--precision", "shipped,q8_0,q4_0", "--quick", before=largest_file(250_000))
    full.complains(5, str(cli.store), "free some space")
    row = cli.here("runs", "list", "--json").json["sessions"][0]
    stored = sum(row["outcomes"].values())
    assert 1 <= stored < 9
    assert row["ended_utc"] is None
    resumed = cli.here("profile", "--resume", "--json")
    assert resumed.code == 0
    assert [trial["rounds_ok"] for trial in resumed.json["trials"]] == [3, 3, 3]
    runs = cli.here("runs", "show", row["session_id"], "--json").json["runs"]
    assert len(runs) == 9


# --- the output -------------------------------------------------------------------------------------------------------


def test_a_full_disk_under_the_output_costs_the_file_only(cli: Cli):
    done = cli.here(*cli.fake_arguments("--output", "/dev/full"))
    done.complains(5, "/dev/full", "No space left", "runs export")
    assert "tg128" in done.out
    assert json.loads(cli.here("runs", "list", "--json").out)["sessions"][0]["outcomes"] == {"ok": 1}
