"""Signals to the session, to its worker and to its sampler: what was measured is kept, nobody is left behind, and
``--resume`` does what is missing and nothing twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from conftest import Cli, Done

PATIENCE_S = 60.0
DEATH_S = 10.0
SHORT = ("--workload", "tg8", "--quick")
EVERY_ROUND = {(precision, round_) for precision in ("shipped", "q8_0") for round_ in range(3)}


class Running:
    """A session in a process group of its own, as a shell starts it."""

    def __init__(self, cli: Cli, *arguments: str, block_s: float = 0.1) -> None:
        self._done = cli.done
        sweep = () if "--precision" in arguments else ("--precision", "shipped,q8_0")
        argv = cli.argv(*cli.fake_arguments(*SHORT, *sweep, *arguments, script=(f"block_s={block_s}",)))
        self.out_path, self.err_path = cli.folder / "out.txt", cli.folder / "err.txt"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                argv,
                env=cli.environment(),
                cwd=cli.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def until(self, true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < deadline, f"waited in vain until {what}; stderr:\n{self.err}"
            time.sleep(0.02)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.err or self.process.poll() is not None, f"it says {text!r}")
        assert text in self.err

    def child(self, module: str) -> psutil.Process:
        """The live child that runs this module."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [one for one in children(self.process.pid) if module in command(one)]
            return bool(found)

        self.until(look, f"{module} runs")
        return found[0]

    @property
    def done(self) -> Done:
        return self._done(self.ended(), self.out, self.err)

    def ended(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def session(cli: Cli, *arguments: str, **options: Any) -> Iterator[Running]:
    """A session, of which nothing survives the test."""
    running = Running(cli, *arguments, **options)
    try:
        yield running
    finally:
        for one in [*children(running.process.pid)]:
            one.kill()
        running.process.kill()
        running.process.wait()


def assert_all_dead(running: Running, family: list[psutil.Process]) -> None:
    assert family
    _, alive = psutil.wait_procs(family, timeout=DEATH_S)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def stored(cli: Cli) -> dict[str, Any]:
    (row,) = cli.here("runs", "list", "--json").json["sessions"]
    return cli.here("runs", "show", row["session_id"], "--json").json


def rounds_of(cli: Cli) -> Counter[tuple[str, int]]:
    runs = cli.here("runs", "export").json["runs"]
    return Counter((run["trial"]["artifact"]["precision"], run["round"]) for run in runs if run["outcome"] == "ok")


def assert_resume_finishes(cli: Cli) -> None:
    """What was done is not done again, and what comes out is what an undisturbed session would have measured."""
    before = {run["run_id"] for run in cli.here("runs", "export").json["runs"]}
    resumed = cli.here("profile", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert [trial["rounds_ok"] for trial in resumed.json["trials"]] == [3, 3]
    assert rounds_of(cli) == dict.fromkeys(EVERY_ROUND, 1)
    after = cli.here("runs", "export").json["runs"]
    assert before <= {run["run_id"] for run in after}
    assert stored(cli)["exit_code"] == 0
    cli.here("profile", "--resume").complains(2, "No session was interrupted")


# --- the session ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "whole_group"),
    [
        pytest.param(signal.SIGINT, 130, True, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, False, id="sigterm", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_session_shows_what_it_has_and_can_be_finished(
    cli: Cli,
    number: signal.Signals,
    code: int,
    whole_group: bool,  # noqa: FBT001
):
    with session(cli) as running:
        running.until_said("round 1 q8_0 fake: ")
        running.child("edgebench.engine.worker")
        family = children(running.process.pid)
        (os.killpg if whole_group else os.kill)(running.process.pid, number)
        assert running.ended() == code
        assert_all_dead(running, family)
        assert "tg8" in running.out
        running.done.complains(code, f"interrupted by {number.name}", "edgebench profile --resume")
    shown = stored(cli)
    assert shown["ended_utc"] is None
    assert {run["outcome"] for run in shown["runs"]} == {"ok"}
    assert 2 <= len(shown["runs"]) < 6
    assert len(shown["unrecorded"]) == 1
    assert_resume_finishes(cli)


def test_an_interrupted_session_is_one_document_with_json(cli: Cli):
    with session(cli, "--json") as running:
        running.until_said("round 1 shipped fake: ")
        running.process.send_signal(signal.SIGINT)
        assert running.ended() == 130

        assert json.loads(running.out)["interrupted_by"] == "SIGINT"


def test_a_session_interrupted_before_its_first_round_says_how_to_go_on(cli: Cli):
    with session(cli, block_s=60) as running:
        running.child("edgebench.engine.worker")
        running.until(lambda: cli.store.exists() and running.child("edgebench.engine.sampler"), "a round has begun")
        family = children(running.process.pid)
        running.process.send_signal(signal.SIGINT)
        assert running.ended() == 130
        assert_all_dead(running, family)
        running.done.complains(130, "interrupted by SIGINT", "edgebench profile --resume")
    assert stored(cli)["runs"] == []


def test_a_second_ctrl_c_ends_it_at_once(cli: Cli):
    with session(cli) as running:
        running.until_said("round 1 q8_0 fake: ")
        family = children(running.process.pid)
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        assert running.ended() == 130
        assert_all_dead(running, family)
        assert "Traceback" not in running.err
    assert_resume_finishes(cli)


SLOW = [pytest.param(moment, marks=pytest.mark.slow) for moment in (0.05, 0.1, 0.3, 0.7)]


@pytest.mark.parametrize("moment", [0.0, 0.2, 0.5, *SLOW])
def test_ctrl_c_at_any_moment_is_no_crash(cli: Cli, moment: float):
    with session(cli) as running:
        running.until(lambda: children(running.process.pid), "it starts its first child")
        time.sleep(moment)
        running.process.send_signal(signal.SIGINT)
        assert running.ended() == 130
        assert "Traceback" not in running.err
        assert "Exception" not in running.err


def test_the_kernel_takes_the_children_of_a_killed_session_in_the_middle_of_a_block(cli: Cli):
    with session(cli, block_s=300) as running:
        running.child("edgebench.engine.worker")
        running.child("edgebench.engine.sampler")
        time.sleep(1.0)  # by now the worker sleeps in its block and looks at no pipe
        family = children(running.process.pid)
        running.process.kill()
        assert running.ended() == -signal.SIGKILL
        assert_all_dead(running, family)
    assert len(stored(cli)["unrecorded"]) == 1


def test_a_killed_session_can_be_finished(cli: Cli):
    with session(cli) as running:
        running.until_said("round 2 q8_0 fake: ")
        running.child("edgebench.engine.worker")
        running.process.kill()
        assert running.ended() == -signal.SIGKILL
    assert len(stored(cli)["unrecorded"]) == 1
    assert_resume_finishes(cli)


# --- its children -----------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_one_round(cli: Cli):
    with session(cli, "--precision", "shipped") as running:
        running.until_said("round 1 shipped fake: ")
        running.child("edgebench.engine.worker").kill()
        assert running.ended() == 0
        assert "killed: it was killed (SIGKILL)" in running.err
        assert "Traceback" not in running.err
    outcomes = Counter(run["outcome"] for run in stored(cli)["runs"])
    assert outcomes == {"killed": 1, "ok": 3}


def test_a_killed_sampler_costs_its_readings_and_is_a_finding(cli: Cli):
    with session(cli, "--precision", "shipped", block_s=0.3) as running:
        running.until_said("round 1 shipped fake: ")
        running.child("edgebench.engine.worker")
        time.sleep(0.15)  # by now the sampler has been told to watch that worker
        running.child("edgebench.engine.sampler").kill()
        running.until_said("round 3 shipped fake: ")
        assert running.ended() == 0
        assert "Traceback" not in running.err
        assert "sampler_lost" in running.out
    runs = cli.here("runs", "export").json["runs"]
    assert {run["outcome"] for run in runs} == {"ok"}
    lost = [run for run in runs if "sampler_lost" in [finding["kind"] for finding in run["findings"]]]
    assert len(lost) == 1
    assert [finding["kind"] for finding in lost[0]["findings"]].count("sampler_lost") == 1
    assert lost[0]["series"] == []
    assert [run["round"] for run in runs if not run["series"]] == [1]
