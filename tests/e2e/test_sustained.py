"""A sustained run from the command line: a scripted device that slows down, and runs that are stopped in the middle."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from edgebench.host import Host

if TYPE_CHECKING:
    from conftest import Cli

REAL = ("wait=1", "tg_token_s=0.002")
SLOWING = (*REAL, "slow_after_s=1", "slow_to=0.5")
PATIENCE_S = 60.0


def runs_of(cli: Cli) -> list[dict[str, Any]]:
    return cli.here("runs", "export").json["runs"]


def sustained(document: dict[str, Any]) -> dict[str, Any]:
    (trial,) = document["trials"]
    (found,) = trial["sustained"]
    return found


def test_a_device_that_slows_down_is_told_when_and_by_how_much(cli: Cli):
    done = cli.fake("--workload", "sustained:2s", "--json", script=SLOWING)
    assert done.code == 0, done.err
    found = sustained(done.json)
    assert found["workload"] == "sustained:2s"
    assert found["measured_s"] == pytest.approx(2, abs=1)
    assert found["first_tokens_per_s"] == pytest.approx(500, rel=0.02)
    assert found["last_tokens_per_s"] == pytest.approx(250, rel=0.02)
    assert found["drop"] == pytest.approx(0.5, abs=0.02)
    assert found["slowdown"]["t_s"] == pytest.approx(1, abs=0.5)
    assert len(found["points"]) >= 20
    assert "slowdown" in [finding["kind"] for finding in done.json["trials"][0]["findings"]]
    assert "slower by 50 %" in done.err
    assert "tok/s" in done.err
    assert [run["round"] for run in runs_of(cli)] == [0]


def test_beside_other_workloads_it_comes_last_and_once(cli: Cli):
    options = ("--workload", "sustained:1s", "--workload", "tg8", "--quick")
    done = cli.fake(*options, "--json", script=REAL)
    assert done.code == 0, done.err
    assert sustained(done.json)["slowdown"] is None
    assert set(done.json["trials"][0]["workloads"]) == {"tg8"}
    rounds = [[block["workload"] for block in run["blocks"]] for run in runs_of(cli)]
    assert rounds[0][0] == "tg8"
    assert set(rounds[0][1:]) == {"sustained:1s"}
    assert rounds[1:] == [["tg8"], ["tg8"]]


def test_a_run_whose_process_dies_in_the_middle_keeps_what_it_measured(cli: Cli):
    done = cli.fake("--workload", "sustained:20s", "--json", script=(*REAL, "die_signal=9", "die_at=8"))
    assert done.code == 3
    found = sustained(done.json)
    assert found["blocks"] == 7  # call 0 was the warm-up
    assert found["measured_s"] < 5
    assert found["first_tokens_per_s"] == pytest.approx(500, rel=0.02)
    assert "no slowdown in" in done.err


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def measures(session: int) -> bool:
    """Whether the session's sampler and a worker run that has got through its imports."""
    commands = {" ".join(one.cmdline()): one.pid for one in psutil.Process(session).children()}
    workers = [pid for words, pid in commands.items() if "engine.worker" in words]
    sampled = any("engine.sampler" in words for words in commands)
    return sampled and any(Host().try_read(Host().proc(f"{pid}/oom_score_adj")) == "1000" for pid in workers)


def stopped(cli: Cli, workload: str, number: signal.Signals) -> tuple[int, str, str]:
    """Exit status and output of a session that is sent a signal after 1 s of its run."""
    argv = cli.argv(*cli.fake_arguments("--workload", workload, "--json", script=REAL))
    session = subprocess.Popen(
        argv, cwd=cli.folder, env=cli.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: cli.store.exists() and measures(session.pid))
    time.sleep(1.0)
    session.send_signal(number)
    out, err = session.communicate(timeout=PATIENCE_S)
    return session.returncode, out, err


def assert_kept(cli: Cli, out: str, err: str) -> None:
    assert "what was measured is kept" in err
    assert '"sustained":[{' in out
    (cut,) = runs_of(cli)
    assert (cut["outcome"], cut["failure"]["kind"]) == ("killed", "interrupted")
    assert cut["blocks"]
    assert cut["series"]


def test_a_session_that_is_stopped_in_the_middle_keeps_what_it_measured_and_can_be_finished(cli: Cli):
    code, out, err = stopped(cli, "sustained:3s", signal.SIGINT)
    assert code == 130, err
    assert_kept(cli, out, err)
    resumed = cli.here("profile", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert sustained(resumed.json)["measured_s"] == pytest.approx(3, abs=1)
    assert "stopped in phase" not in resumed.err
    assert [run["outcome"] for run in runs_of(cli)] == ["killed", "ok"]


def test_a_session_that_is_told_to_end_keeps_what_it_measured(cli: Cli):
    code, out, err = stopped(cli, "sustained:60s", signal.SIGTERM)
    assert code == 143, err
    assert_kept(cli, out, err)


def test_power_of_a_meter_stands_beside_the_speed(cli: Cli):
    (cli.folder / "watts.txt").write_text("6.5 W\n")
    meter = ("--meter", "dc_input=command:cat watts.txt")
    done = cli.fake("--workload", "sustained:1s", *meter, "--json", script=REAL)
    assert done.code == 0, done.err
    found = sustained(done.json)
    assert found["power_scope"] == "dc_input"
    assert found["points"][-1]["power_w"] == 6.5
    assert "W dc_input" in done.err


def test_a_slip_in_the_name_of_a_meter_is_told_before_anything_runs(cli: Cli):
    done = cli.fake("--meter", "shely2:http://192.168.1.5")
    done.complains(2, "shely2", "shelly2")
    assert not cli.store.exists()


def test_a_meter_that_fails_leaves_no_energy_and_its_reason(cli: Cli):
    meter = ("--meter", "command:cat no-such-file.txt")
    done = cli.fake("--workload", "sustained:1s", *meter, "--json", script=REAL)
    assert done.code == 0, done.err
    energy = done.json["trials"][0]["energy"]
    if energy["energy_j"] is not None:
        pytest.skip("this machine has an energy sensor of its own, which is used instead")
    assert "No such file" in energy["reason"]
    assert "frozen_counter" not in [finding["kind"] for finding in done.json["trials"][0]["findings"]]
    run = runs_of(cli)[0]
    assert "meter_failed" in {finding["kind"] for finding in run["findings"]}
    (series,) = [one for one in run["series"] if one["channel"]["name"] == "meter.command.power"]
    assert not any(series["values"])
    assert "No such file" in series["missing_because"]
