"""The store on real SQLite files: what it keeps, what it refuses, and what survives a kill."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from edgebench.errors import MissingDependency, StoreError, UnknownNameError, UsageError
from edgebench.records import Energy, Run, Series
from edgebench.specs import Plan, Protocol
from edgebench.store import (
    Announcement,
    NoStoreYetError,
    Session,
    Store,
    decode_run,
    encode_run,
    encoding,
    locate,
    sqlite,
    tables,
    upgrade_record,
)

GOLDEN = Path(__file__).parent.parent / "golden"
CHANCE = random.Random(7)  # noqa: S311 - reproducible on purpose
replace = msgspec.structs.replace


def golden_run() -> Run:
    return msgspec.json.decode((GOLDEN / "run-schema-1.json").read_bytes(), type=Run)


def make_run(run_id: str, session_id: str = "s1", **changes: Any) -> Run:
    return replace(golden_run(), run_id=run_id, session_id=session_id, **changes)


def make_session(session_id: str = "s1") -> Session:
    plan = Plan(trials=(golden_run().trial,), protocol=Protocol())
    return Session(
        session_id=session_id, created_utc="2026-11-23T10:00:00Z", command=("edgebench",), plan=plan, device_profile="p"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(str(path)) as opened:
        opened.begin_session(make_session())
        yield opened


def filled(path: Path, n: int = 20) -> None:
    with Store.open(str(path)) as store:
        store.begin_session(make_session())
        for i in range(n):
            store.record(make_run(f"r{i:02}"))


# --- what it keeps ----------------------------------------------------------------------------------------------------


def test_a_recorded_run_is_read_back_equal(store: Store):
    run = make_run("r1")
    store.record(run)
    assert store.run("r1") == run
    assert list(store.runs()) == [run]


def test_recording_the_same_run_twice_keeps_one(store: Store):
    store.record(make_run("r1"))
    store.record(make_run("r1"))
    assert len(list(store.runs())) == 1


def test_a_different_run_under_a_taken_id_is_refused_and_the_first_stays(store: Store):
    first = make_run("r1")
    store.record(first)
    with pytest.raises(StoreError, match="already holds a different run r1"):
        store.record(replace(first, round=5))
    assert store.run("r1") == first


def test_runs_are_chosen_by_every_field_and_come_in_order_of_arrival_across_pages(store: Store):
    store.begin_session(make_session("s2"))
    base = golden_run()
    other = replace(base.trial, runtime="ort", artifact=replace(base.trial.artifact, model="m2", precision="int4"))
    ids = [f"r{i:02}" for i in range(40)]
    CHANCE.shuffle(ids)
    for i, run_id in enumerate(ids):
        late = replace(base.provenance, utc=f"2026-01-{28 - i % 28:02}T00:00:00Z")  # a clock that runs backwards
        store.record(make_run(run_id, "s2" if i % 2 else "s1", provenance=late))
    store.record(make_run("x", trial=other, outcome="timeout"))
    assert [run.run_id for run in store.runs()] == [*ids, "x"]
    assert [run.run_id for run in store.runs(session_id="s2")] == ids[1::2]
    for only in (
        {"model": "m2"},
        {"precision": "int4"},
        {"runtime": "ort"},
        {"outcome": "timeout"},
        {"trial_id": other.trial_id},
        {"model": "m2", "session_id": "s1"},
    ):
        assert [run.run_id for run in store.runs(**only)] == ["x"]
    assert not list(store.runs(model="m2", session_id="s2"))


def test_runs_can_be_recorded_while_runs_are_streamed(store: Store):
    store.record(make_run("r1"))
    stream = store.runs()
    next(stream)
    store.record(make_run("r2"))
    assert [run.run_id for run in stream] == ["r2"]


def test_a_session_and_its_end_are_read_back(store: Store):
    assert store.session("s1") == make_session()
    assert store.overview("s1").exit_code is None
    store.end_session("s1", 4, "2026-11-23T11:00:00Z")
    store.end_session("s1", 0, "2026-11-23T12:00:00Z")
    row = store.overview("s1")
    assert (row.exit_code, row.ended_utc) == (0, "2026-11-23T12:00:00Z")


def test_sessions_are_listed_newest_first_with_their_outcomes(store: Store):
    store.begin_session(make_session("s0"))
    for i, outcome in enumerate(("ok", "ok", "oom", "failed")):
        store.announce(f"r{i}", "s1", "t", i, "measure", "now")
        store.record(make_run(f"r{i}", outcome=outcome))
    store.announce("lost", "s1", "t", 9, "measure", "now")
    newest, oldest = store.sessions()
    assert (newest.session_id, newest.outcomes, newest.unrecorded) == ("s0", {}, 0)
    assert (oldest.session_id, oldest.outcomes, oldest.unrecorded) == ("s1", {"failed": 1, "ok": 2, "oom": 1}, 1)
    assert [row.session_id for row in store.sessions(limit=1)] == ["s0"]


def test_the_latest_and_the_latest_unfinished_session_are_found(store: Store):
    store.begin_session(make_session("s2"))
    store.end_session("s2", 0, "now")
    latest, unfinished = store.latest_session(), store.latest_unfinished_session()
    assert latest == make_session("s2")
    assert unfinished == make_session("s1")
    store.end_session("s1", 0, "now")
    assert store.latest_unfinished_session() is None


def test_an_empty_store_has_no_latest_session(path: Path):
    with Store.open(str(path)) as store:
        assert store.latest_session() is None
        assert store.sessions() == []
        assert list(store.runs()) == []
        assert store.verify() == []


def test_an_announced_run_that_was_never_recorded_is_evidence(store: Store):
    store.announce("r1", "s1", "t1", 3, "thread-search", "2026-11-23T10:01:00Z")
    store.announce("r2", "s1", "t1", 4, "measure", "2026-11-23T10:02:00Z")
    store.record(make_run("r2"))
    lost = Announcement(
        run_id="r1",
        session_id="s1",
        trial_id="t1",
        round=3,
        purpose="thread-search",
        announced_utc="2026-11-23T10:01:00Z",
    )
    assert store.unrecorded("s1") == [lost]


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_is_enough_when_it_is_the_only_one(store: Store):
    store.record(make_run("abc1"))
    store.record(make_run("abd"))
    store.record(make_run("abc"))
    assert store.run("abd").run_id == "abd"
    assert store.run("abc").run_id == "abc"  # whole, although another id starts so
    with pytest.raises(UsageError, match="Several runs start with 'ab': abc, abc1, abd"):
        store.run("ab")


@pytest.mark.parametrize("name", ["nope", "", "%", "_", "R1"])
def test_an_unknown_id_names_those_that_exist(store: Store, name: str):
    store.record(make_run("r1"))
    with pytest.raises(UnknownNameError) as caught:
        store.run(name)
    assert "known: r1" in caught.value.next_step
    with pytest.raises(UnknownNameError):
        store.session(name)


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["sessions", "session_ends", "announcements", "runs"])
@pytest.mark.parametrize("change", ["UPDATE {} SET session_id = 'x'", "DELETE FROM {}", "REPLACE {}"])
def test_updates_deletes_and_replacements_are_refused(store: Store, path: Path, table: str, change: str):
    store.announce("r1", "s1", "t", 0, "measure", "now")
    store.record(make_run("r1"))
    store.end_session("s1", 0, "now")
    if change.startswith("REPLACE"):
        change = "INSERT OR REPLACE INTO {0} SELECT * FROM {0}"
    connection = sqlite3.connect(path)
    rows = "SELECT * FROM {}".format(table)  # noqa: S608, UP032 - a name from the list above
    before = connection.execute(rows).fetchall()
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(change.format(table))
    assert connection.execute(rows).fetchall() == before
    assert len(before) == 1
    connection.close()


def test_a_run_of_an_unknown_session_is_refused(store: Store):
    with pytest.raises(StoreError, match="refused run r1"):
        store.record(make_run("r1", "nowhere"))
    with pytest.raises(StoreError, match="refused the announcement"):
        store.announce("r1", "nowhere", "t", 0, "measure", "now")
    with pytest.raises(StoreError, match="refused the end"):
        store.end_session("nowhere", 0, "now")
    assert list(store.runs()) == []


def test_a_session_cannot_begin_twice(store: Store):
    with pytest.raises(StoreError, match="refused session s1"):
        store.begin_session(make_session())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_run_with_a_number_that_json_cannot_carry_is_refused(store: Store, number: float):
    series = golden_run().series[0]
    broken = Series(channel=series.channel, t_ns=(1,), values=(number,))
    with pytest.raises(StoreError, match="such as NaN"):
        store.record(make_run("r1", series=(broken,)))
    with pytest.raises(StoreError, match="cannot be stored"):
        store.record(make_run("r1", energy=Energy(energy_j=1.0, j_per_token={"tg1": number})))
    assert list(store.runs()) == []


def test_a_run_with_text_that_is_no_unicode_is_refused(store: Store):
    command = replace(golden_run().provenance, command=("\udcff.gguf",))
    with pytest.raises(StoreError, match="Run r1 cannot be stored"):
        store.record(make_run("r1", provenance=command))


# --- places -----------------------------------------------------------------------------------------------------------


def test_the_place_is_the_option_then_the_environment_then_the_users_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("EDGEBENCH_STORE", raising=False)
    if sys.platform == "linux":
        assert locate().database == str(tmp_path / "data/edgebench/results.db")
    monkeypatch.setenv("EDGEBENCH_STORE", str(tmp_path / "env.db"))
    assert locate().database == str(tmp_path / "env.db")
    assert locate(str(tmp_path / "option.db")).database == str(tmp_path / "option.db")


def test_a_path_is_made_absolute_and_a_url_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert locate("a.db").database == str(tmp_path / "a.db")
    assert locate("~/a.db").database == str(tmp_path / "home/a.db")
    assert locate("sqlite:///b.db").database == str(tmp_path / "b.db")
    assert locate(f"sqlite:///{tmp_path}/c.db").database == str(tmp_path / "c.db")
    assert locate("postgresql://u:p@host/db").get_backend_name() == "postgresql"


@pytest.mark.parametrize("where", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "://", "a b://c"])
def test_a_place_that_cannot_hold_a_store_is_a_usage_error(where: str):
    with pytest.raises(UsageError):
        locate(where)


def test_the_tables_can_be_made_in_postgresql():
    for table in tables.METADATA.sorted_tables:
        ddl = str(sa.schema.CreateTable(table).compile(dialect=postgresql.dialect()))
        assert ("seq SERIAL NOT NULL" in ddl) == (table.name != "meta")


def test_a_missing_database_driver_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(MissingDependency, match="psycopg") as caught:
        Store.open("postgresql+psycopg2://user:secret@localhost/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a b.db", "50%.db", "what?.db", "#1.db", "é.db"])
def test_any_file_name_works(tmp_path: Path, name: str):
    filled(tmp_path / name, 1)
    with Store.open(str(tmp_path / name), read_only=True) as store:
        assert len(list(store.runs())) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [name]  # and no log is left


def test_the_folder_of_the_store_is_made(tmp_path: Path):
    Store.open(str(tmp_path / "a/b/results.db")).close()
    assert (tmp_path / "a/b/results.db").is_file()


def test_a_folder_or_a_file_in_the_way_is_a_store_error(tmp_path: Path):
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store.open(str(tmp_path / "file/results.db"))


def test_reading_what_does_not_exist_makes_nothing(tmp_path: Path):
    with pytest.raises(NoStoreYetError, match="There is no result store at"):
        Store.open(str(tmp_path / "a/results.db"), read_only=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    with pytest.raises(NoStoreYetError, match="is empty"):
        Store.open(str(tmp_path / "empty.db"), read_only=True)


# --- durability -------------------------------------------------------------------------------------------------------


def test_commits_are_synchronous_in_wal_mode_with_foreign_keys(store: Store):
    with store._engine.connect() as connection:
        asked = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert asked == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def write(path: Path, name: str, count: int, say: int, before: Callable[[], None]) -> None:
    """Announce and record runs; each line on the pipe acknowledges what has happened."""
    before()
    with Store.open(str(path)) as store:
        os.write(say, b"open\n")
        for i in range(count):
            run_id = f"{name}-{i:04}"
            store.announce(run_id, "s1", "t", i, "measure", "now")
            os.write(say, f"announced {run_id}\n".encode())
            store.record(make_run(run_id, round=i))
            os.write(say, f"recorded {run_id}\n".encode())


forks = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
"""The children only write to the store, and need none of the threads that other tests' libraries keep."""


class Writer:
    """A process that writes runs. It is forked, not spawned: the import of SQLAlchemy costs more than the test."""

    def __init__(self, path: Path, name: str, count: int, before: Callable[[], None] = lambda: None) -> None:
        read, say = os.pipe()
        self.process = multiprocessing.get_context("fork").Process(target=write, args=(path, name, count, say, before))
        self.process.start()
        os.close(say)
        self.pipe = os.fdopen(read)

    def finish(self) -> list[str]:
        """Wait for its end; the complete lines that it said (one cut off by a kill acknowledged nothing)."""
        text = self.pipe.read()
        self.pipe.close()
        self.process.join()
        return text.split("\n")[:-1]


def said(lines: list[str], word: str) -> list[str]:
    return [line.split()[1] for line in lines if line.startswith(word)]


@forks
def test_whatever_was_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path):
    """24 kills, each 0 to 5 ms after one of the first lines: around the opening, an announcement or a commit."""
    for i in range(24):
        path = tmp_path / f"{i}.db"
        filled(path, 0)
        writer = Writer(path, "k", 10_000)
        lines = [writer.pipe.readline().strip() for _ in range(CHANCE.randint(0, 8))]
        time.sleep(CHANCE.uniform(0, 0.005))
        writer.process.kill()
        lines += writer.finish()
        assert writer.process.exitcode == -signal.SIGKILL
        recorded, announced = said(lines, "recorded"), said(lines, "announced")
        with Store.open(str(path)) as store:
            assert store.verify() == []
            kept = [run.run_id for run in store.runs()]
            lost = [each.run_id for each in store.unrecorded("s1")]
            assert kept[: len(recorded)] == recorded
            assert len(kept) - len(recorded) <= 1
            assert set(announced) <= {*kept, *lost}
            assert len(lost) <= 1
            store.record(make_run("after"))


@forks
def test_a_reader_sees_what_a_killed_process_left_in_the_log_and_tidies_up(path: Path):
    filled(path, 0)
    writer = Writer(path, "k", 10_000)
    while writer.pipe.readline() != "recorded k-0003\n":
        pass
    writer.process.kill()
    writer.finish()
    assert path.with_name("results.db-wal").stat().st_size > 0
    with Store.open(str(path), read_only=True) as store:
        assert [run.round for run in store.runs()][:4] == [0, 1, 2, 3]
    assert [entry.name for entry in path.parent.iterdir()] == ["results.db"]


@forks
def test_three_processes_open_and_write_a_new_store_at_once(path: Path):
    def begin() -> None:
        with Store.open(str(path)) as store, contextlib.suppress(StoreError):
            store.begin_session(make_session())  # two of the three come too late, and are told so

    writers = [Writer(path, name, 20, begin) for name in "abc"]
    for writer in writers:
        assert len(writer.finish()) == 41
        assert writer.process.exitcode == 0
    with Store.open(str(path)) as store:
        kept = [run.run_id for run in store.runs()]
        assert sorted(kept) == [f"{name}-{i:04}" for name in "abc" for i in range(20)]
        assert [row.session_id for row in store.sessions()] == ["s1"]
        assert store.unrecorded("s1") == []
        assert store.verify() == []


@forks
def test_a_full_disk_is_a_store_error_and_keeps_what_was_acknowledged(path: Path):
    """A limit on the file size stands in for the full disk: the write fails in the same place."""
    filled(path, 0)
    message = path.with_name("message")

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    read, say = os.pipe()

    def fill() -> None:
        with Store.open(str(path)) as store:
            try:
                write(path, "f", 500, say, fill_the_disk)
                store.record(make_run("never"))
            except StoreError as error:
                with pytest.raises(StoreError):
                    store.record(make_run("still-full"))
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                store.record(make_run("after"))  # space was freed: the open store works again
                message.write_text(str(error))

    child = multiprocessing.get_context("fork").Process(target=fill)
    child.start()
    os.close(say)
    with os.fdopen(read) as pipe:
        recorded = said(pipe.read().splitlines(), "recorded")
    child.join()
    assert child.exitcode == 0
    assert f"{path} cannot be read or written: the disk is full or failing" in message.read_text()
    assert "Next: free some space" in message.read_text()
    assert len(recorded) > 5
    with Store.open(str(path)) as store:
        assert store.verify() == []
        assert [run.run_id for run in store.runs()] == [*recorded, "after"]


# --- files that cannot be used ----------------------------------------------------------------------------------------


def test_random_bytes_are_not_a_database(path: Path):
    path.write_bytes(CHANCE.randbytes(20_000))
    with pytest.raises(StoreError, match="is not a database") as caught:
        Store.open(str(path))
    assert str(path) in caught.value.what
    assert "move the file away" in caught.value.next_step


def test_a_truncated_store_is_damaged(path: Path):
    filled(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 4096 * 4096])
    for read_only in (True, False):
        with pytest.raises(StoreError, match="is damaged") as caught:
            Store.open(str(path), read_only=read_only)
        assert str(path) in caught.value.what


@pytest.mark.parametrize("seed", range(30))
def test_overwritten_bytes_are_noticed_or_did_not_matter(path: Path, seed: int):
    filled(path, 12)
    whole = [make_run(f"r{i:02}") for i in range(12)]
    chance = random.Random(seed)  # noqa: S311 - reproducible on purpose
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 10, 100))):
        at = chance.randrange(len(data))
        data[at : at + 8] = chance.randbytes(8)[: len(data) - at]
    path.write_bytes(data)
    try:
        with Store.open(str(path)) as store:
            problems = store.verify()
            assert list(store.runs()) == whole
            assert problems == [] or all(problem.startswith("file:") for problem in problems)
    except StoreError as error:
        assert error.next_step  # noqa: PT017 - either end is right


def test_a_changed_record_is_noticed_by_its_digest(store: Store, path: Path):
    store.record(make_run("r1"))
    store.record(make_run("r2"))
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER runs_no_update")
    connection.execute("""UPDATE runs SET record = replace(record, '"round":0', '"round":1') WHERE run_id = 'r1'""")
    connection.commit()
    connection.close()
    (problem,) = store.verify()
    assert problem.startswith("run r1: sha256 is ")
    with pytest.raises(StoreError, match=r"Run r1 .* does not match its sha256"):
        store.run("r1")
    with pytest.raises(StoreError, match="Run r1"):
        list(store.runs())
    assert store.run("r2").round == 0


def test_a_changed_plan_is_noticed_by_its_digest(store: Store, path: Path):
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER sessions_no_update")
    connection.execute("""UPDATE sessions SET plan = replace(plan, '"min_rounds":6', '"min_rounds":1')""")
    connection.commit()
    connection.close()
    assert store.verify() == ["session s1: its plan or command is not what was stored"]
    with pytest.raises(StoreError, match=r"Session s1 .* does not match its sha256"):
        store.session("s1")


def test_another_database_is_left_alone(path: Path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE holidays (day TEXT)")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(StoreError, match="is not a result store of edgebench"):
            Store.open(str(path), read_only=read_only)


def set_version(path: Path, version: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'version'", (version,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_of_a_newer_edgebench_is_refused(path: Path, *, read_only: bool):
    filled(path, 1)
    set_version(path, "7")
    with pytest.raises(StoreError, match=r"made by a newer edgebench \(schema 7 > 1\)") as caught:
        Store.open(str(path), read_only=read_only)
    assert "upgrade edgebench" in caught.value.next_step
    assert "--store" in caught.value.next_step
    set_version(path, "one")
    with pytest.raises(StoreError, match="is not a result store"):
        Store.open(str(path), read_only=read_only)


def test_a_read_only_store_refuses_to_write(path: Path):
    filled(path, 1)
    with Store.open(str(path), read_only=True) as store:
        with pytest.raises(StoreError, match="is read-only") as caught:
            store.record(make_run("r9"))
        assert "writable" in caught.value.next_step
        assert len(list(store.runs())) == 1


_UNPRIVILEGED = """
import os, sys
from edgebench.store import Store
from edgebench.errors import StoreError
import edgebench.store.store, sqlalchemy.dialects.sqlite.pysqlite
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    with Store.open(sys.argv[1], read_only=sys.argv[2] == "read") as store:
        print("runs", len(list(store.runs())), flush=True)
        store.end_session("s1", 0, "now")
except StoreError as error:
    print(error)
"""


def unprivileged(path: Path, how: str) -> str:
    """What a user without rights to the folder is told; root would be allowed everything."""
    argv = [sys.executable, "-c", _UNPRIVILEGED, str(path), how]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter; pytest closes its own to them, again at the start of each session."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_that_cannot_be_written_can_be_read_but_not_written(open_folder: Path):
    folder = open_folder / "medium"
    path = folder / "results.db"
    filled(path, 3)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        read = unprivileged(path, "read")
        written = unprivileged(path, "write")
        new = unprivileged(folder / "new.db", "write")
    finally:
        folder.chmod(0o755)
    assert read.startswith("runs 3\nThe result store")
    assert "is read-only" in read
    assert str(path) in written
    assert "writable" in written
    assert "cannot be opened" in new
    assert "writable" in new


def test_the_store_waits_for_a_lock_and_then_says_so(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    filled(path, 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Store.open(str(path)) as store:
        assert len(list(store.runs())) == 1
        with pytest.raises(StoreError, match="is locked by another process"):
            store.record(make_run("r9"))
    other.close()


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def version_2(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, list[int]]:
    """An edgebench whose tables are one version further."""
    called: dict[str, list[int]] = {"steps": []}

    def step(connection: sa.Connection) -> None:
        called["steps"].append(2)
        connection.exec_driver_sql("CREATE TABLE notes (text TEXT)")

    monkeypatch.setattr(tables, "STORE_VERSION", 2)
    monkeypatch.setattr(tables, "MIGRATIONS", {2: step})
    return called


@pytest.mark.parametrize("read_only", [False, True])
def test_an_old_store_is_upgraded_once_and_keeps_its_runs(path: Path, *, read_only: bool, request: Any):
    filled(path, 3)
    called = request.getfixturevalue("version_2")
    for _ in range(2):
        with Store.open(str(path), read_only=read_only) as store:
            assert store.version() == 2
            assert len(list(store.runs())) == 3
    assert called["steps"] == [2]


def test_a_failed_upgrade_leaves_the_old_store(path: Path, monkeypatch: pytest.MonkeyPatch):
    filled(path, 3)

    def step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE notes (text TEXT)")
        connection.exec_driver_sql("SELECT nonsense")

    with monkeypatch.context() as newer:
        newer.setattr(tables, "STORE_VERSION", 2)
        newer.setattr(tables, "MIGRATIONS", {2: step})
        with pytest.raises(StoreError, match="nonsense"):
            Store.open(str(path))
    with Store.open(str(path)) as store:
        assert len(list(store.runs())) == 3
    connection = sqlite3.connect(path)
    assert not connection.execute("SELECT name FROM sqlite_master WHERE name = 'notes'").fetchall()
    connection.close()


def test_a_record_of_an_older_schema_is_upgraded_on_reading(path: Path, monkeypatch: pytest.MonkeyPatch):
    filled(path, 0)
    old = msgspec.json.decode(encode_run(make_run("old")))
    old["schema"] = 0
    old["turn"] = old.pop("round")
    text = msgspec.json.encode(old).decode()

    def rename(run: dict[str, Any]) -> dict[str, Any]:
        run["round"] = run.pop("turn")
        return run

    monkeypatch.setattr(encoding, "RUN_UPGRADES", {0: rename})
    with Store.open(str(path)) as store:
        columns = {**_columns_of(store, make_run("old")), "schema": 0, "record": text}
        columns["digest"] = encoding.sha256(text.encode())
        with store._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(sa.insert(tables.runs).values(**columns))
        assert store.run("old") == make_run("old")
        assert store.verify() == []


def _columns_of(store: Store, run: Run) -> dict[str, Any]:
    """The row that recording this run makes."""
    store.record(replace(run, run_id="template"))
    with store._engine.connect() as connection:
        row = connection.execute(sa.select(tables.runs)).mappings().one()
    return {**{key: value for key, value in row.items() if key != "seq"}, "run_id": run.run_id}


def test_upgrades_run_step_by_step():
    steps = {1: lambda run: {**run, "b": 2}, 2: lambda run: {**run, "c": run["b"] + 1}}
    assert upgrade_record({"a": 1}, 1, steps, to_schema=3) == {"a": 1, "b": 2, "c": 3}
    assert upgrade_record({"a": 1}, 3, steps, to_schema=3) == {"a": 1}
    with pytest.raises(StoreError, match="has schema 0, which this edgebench cannot read"):
        upgrade_record({"a": 1}, 0, steps, to_schema=3)


def test_a_record_of_a_newer_schema_is_refused():
    with pytest.raises(StoreError, match=r"Run x was made by a newer edgebench \(record schema 2 > 1\)"):
        decode_run(encode_run(make_run("x")), 2, "Run x")


def test_bytes_that_are_no_record_are_a_store_error():
    for data in (b"", b"{", b"{}", b"[]", b"\xff", encode_run(make_run("x")).replace(b'"round"', b'"turn"')):
        with pytest.raises(StoreError, match="cannot be read"):
            decode_run(data)


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("run-schema-*.json")), ids=lambda path: path.stem)
def test_a_record_of_every_past_schema_is_read(golden: Path):
    schema = int(golden.stem.rpartition("-")[2])
    run = decode_run(golden.read_bytes(), schema)
    assert run.outcome == "ok"
    assert decode_run(encode_run(run)) == run
