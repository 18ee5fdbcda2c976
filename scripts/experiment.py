"""How every experiment of this folder runs: its processes, the quiet that it needs, its verdicts, and how it ends.

An experiment tells progress on standard error and its result on standard output, whose last line is one JSON document.
It exits with 0 when nothing was missed, with 1 when something was, and otherwise as the command ``edgebench`` does.
Verdicts: ``PASS``, ``MISS``, or ``WIDE``: the figure meets its target and its 95 % interval does not.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, TypeVar

import msgspec

import edgebench
from edgebench.analysis.disturbance import disturbance
from edgebench.engine.child import run_job
from edgebench.engine.edges import EdgeReader
from edgebench.engine.messages import MeasureJob
from edgebench.engine.protocol import Limits
from edgebench.errors import ArtifactError, EdgebenchError, HostError
from edgebench.host import Host
from edgebench.records import Block, Edge, Failure
from edgebench.specs import Artifact, TrialSpec
from edgebench.stats import Interval, median
from edgebench.topology import read_topology

T = TypeVar("T")
Verdict = Literal["PASS", "MISS", "WIDE", ""]
ATTEMPTS = 3
"""Rounds that are tried where disturbed ones do not count, as a multiple of those that are wanted."""
QUIET_WAIT_S = 300.0
NO_BUDGET_S = 1e9
TAIL_LINES = 15
HOST = Host()
TOPOLOGY = read_topology(HOST)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Teller:
    """Passes on what edgebench says while it prepares."""

    def step(self, text: str) -> None:
        """A step begins."""
        say(text)

    def share(self, what: str, done: int, total: int) -> None:
        """Steps of seconds need no bar."""


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def running(argv: Sequence[str | Path], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own that ends, with all of the group, when the block does."""
    process = subprocess.Popen(argv, **{"stdin": subprocess.DEVNULL, **streams}, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            # edgebench's own children hang on it by a pipe and a death signal, so they end with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run_program(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
    nice: int = 0,
) -> tuple[int, str, str]:
    """Run a program to its end; whatever interrupts us kills its whole group.

    Args:
        argv: the program and its arguments.
        environment: its variables; by default ours.
        log: where both its outputs go; without it they are returned.
        nice: added to its niceness.

    Returns:
        Exit status, standard output, standard error; both texts are empty when they go to ``log``.
    """
    output, errors = (log, subprocess.STDOUT) if log else (subprocess.PIPE, subprocess.PIPE)
    with running(argv, stdout=output, stderr=errors, env=environment) as process:
        if nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        said, complained = process.communicate()
    return process.returncode, (said or b"").decode("utf-8", "replace"), (complained or b"").decode("utf-8", "replace")


def failed(argv: Sequence[str | Path], status: int | str, said: str, next_step: str) -> HostError:
    """A command that did not do what it should, with the end of what it said."""
    tail = "\n".join(said.strip().splitlines()[-TAIL_LINES:])
    what = " ".join(map(str, argv[:4]))[:120]
    return HostError(f"{what} ... ended with status {status}:\n{tail}\n", next_step)


def measure_round(trial: TrialSpec, number: int = 0) -> dict[str, float]:
    """Medians of one round of edgebench's engine in a fresh process, tokens/s by workload.

    Round 0 keeps the order of the workloads; odd rounds turn it around.

    Raises:
        HostError: when nothing could be measured.
    """
    ended = run_job(MeasureJob(trial=trial, round=number, budget_s=NO_BUDGET_S), HOST, Limits())
    if ended.failure is not None:
        raise HostError(f"edgebench could not measure: {ended.failure.says}.", ended.failure.next_step)
    rates: dict[str, list[float]] = {workload.name: [] for workload in trial.workloads}
    for block in ended.attempt.blocks:
        rates[block.workload].append(block.tokens_per_s)
    return {name: median(values) for name, values in rates.items()}


def required(made: Artifact | Failure, what: str) -> Artifact:
    """What was made.

    Raises:
        ArtifactError: when it could not be, and why.
    """
    if isinstance(made, Failure):
        raise ArtifactError(f"No {what} could be made: {made.says}.", made.next_step)
    return made


# --- quiet ------------------------------------------------------------------------------------------------------------


def observed(action: Callable[[], T], threads: int) -> tuple[T, str]:
    """Do something, and say who else was seen using the machine meanwhile (empty: nobody)."""
    start = counters()
    result = action()
    end = counters()
    window = Block(workload="", index=0, tokens=1, start=start, end=end, t0_ns=start.t_ns, t1_ns=end.t_ns, step_ns=())
    return result, disturbance(window, threads, TOPOLOGY.logical).says


def counters() -> Edge:
    """The counters now; "own" are this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_s = sum(usage.ru_utime + usage.ru_stime for usage in used)
    # Of a child's threads no run delay remains once it has ended; and what loads with more threads than it measures
    # with waits for itself, so pressure proves nothing here.
    return msgspec.structs.replace(EdgeReader(HOST).read(), own_cpu_s=own_s, run_delay_s=None)


def wait_until_quiet() -> None:
    """Wait, for five minutes at most, for one second in which nobody else uses the machine."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while observed(lambda: time.sleep(1), 1)[1] and time.monotonic() < deadline:
        pass


# --- result -----------------------------------------------------------------------------------------------------------


def judge(value: float, interval: Interval | None, *, low: float | None = None, high: float | None = None) -> Verdict:
    """Whether a value and its whole interval are at least ``low`` and at most ``high``; nothing without a target."""
    if low is None and high is None:
        return ""
    if (low is not None and value < low) or (high is not None and value > high):
        return "MISS"
    good = interval is not None and (low is None or interval.low >= low) and (high is None or interval.high <= high)
    return "PASS" if good else "WIDE"


def machine() -> dict[str, str]:
    """This machine, and which edgebench."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    status, commit, _ = run_program(git) if shutil.which("git") else (1, "", "")
    cpu = TOPOLOGY.cpu_model.value or TOPOLOGY.cpu_model.unknown_because
    return {
        "machine": f"{HOST.machine()}, {cpu}, {TOPOLOGY.logical} CPUs, {platform.release()}",
        "edgebench": f"{edgebench.__version__}, {commit.strip() if status == 0 else 'no git checkout'}",
    }


def print_facts(facts: Mapping[str, str]) -> None:
    """One line each, before anything is measured."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}} {value}", flush=True)


def conclude(summary: Mapping[str, object], samples: Mapping[str, object], file: Path | None, *, met: bool) -> int:
    """The last line, and with ``--json`` the samples as well; the exit status."""
    if file is not None:
        file.write_bytes(msgspec.json.encode({**summary, **samples}))
    print(msgspec.json.encode(summary).decode())
    return 0 if met else 1


def start(main: Callable[[], int], kept: str = "") -> NoReturn:
    """Run ``main`` and exit; ``kept`` says what an interrupted experiment leaves behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are then killed as on Ctrl-C
    try:
        sys.exit(main())
    except EdgebenchError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say(f"interrupted: no child is left{', and ' if kept else ''}{kept}")
        sys.exit(130)
