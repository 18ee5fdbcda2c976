"""What does measuring with edgebench cost?

Every figure with its target:

- *decode speed lost to the sampler* (<= 1 %): real child processes decode while `edgebench.engine.telemetry.Telemetry`
  watches them during every other pair of blocks (on off, off on, ...). Neighbouring blocks of one process are compared,
  so that neither the differences between processes nor slow drift hide an effect this small. The children use as many
  threads as edgebench chooses, which on most boards is all cores: the sampler has to take its time from them. It reads
  every sensor once more whenever it is switched on, so the figure is rather too high than too low.
- *parent's peak memory* (<= 120 MB): VmHWM of the ``edgebench`` process itself, read as it exits, without its children.
- *edgebench --help* (<= 0.3 s): wall time, median; and it imports none of the heavy packages. When it is missed, the
  slowest imports are listed.
- *profile --quick* (<= 30 s) and *profile* (<= 120 s): wall time from start to exit with everything cached, on
  llama.cpp. The quick one is run once before, unmeasured, so that the model and its precisions are there.
- *recording, per token* (<= 2 us): from the end of one call into the engine to the start of the next, in the very loop
  that times decode, over an engine that only notes both moments; less the same in a bare loop. What remains is the
  reading of the clock and the storing of the stamp. ``cold`` is for information: there each call copies 64 MiB, as a
  real engine reads all weights for each token and leaves nothing of ours in the caches. A token really pays about that.

Verdicts: PASS, MISS, or WIDE: the figure is within its target and its 95 % interval is not; more repetitions decide.

    python scripts/harness_cost.py                                        # about 7 minutes
    python scripts/harness_cost.py --parts help,token
    python scripts/harness_cost.py --parts sampler --children 12 --json cost.json

It needs edgebench and, the first time, the package index. Use a machine that is otherwise idle. The last line of the
output is one JSON document; ``--json`` adds all samples. Exit status: 0 when nothing was missed, else 1.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec

from edgebench.engine.child import Child
from edgebench.engine.messages import MeasureJob, Phase, Ready, Reply
from edgebench.engine.protocol import Limits
from edgebench.engine.telemetry import Telemetry
from edgebench.errors import EdgebenchError, HostError, UsageError
from edgebench.host import Host
from edgebench.profile import Outcome
from edgebench.runtimes.llamacpp import LlamaContext
from edgebench.specs import TrialSpec, parse_workload
from edgebench.stats import Interval, median, median_interval, ratio, ratio_interval

PARTS = ("sampler", "help", "quick", "default", "token")
HEAVY = ("llama_cpp", "msgspec", "numpy", "psutil", "rich", "sqlalchemy")
MOST_LOST = 0.01
MOST_RSS_BYTES = 120e6
MOST_HELP_S = 0.3
MOST_QUICK_S = 30.0
MOST_DEFAULT_S = 120.0
MOST_TOKEN_S = 2e-6
COLD_BYTES = 1 << 26
LIMIT_S = 900.0
NO_BUDGET_S = 1e9
HOST = Host()
Unit = Literal["%", "MB", "s", "us", ""]
Verdict = Literal["PASS", "MISS", "WIDE", ""]

# The command as its console script runs it; as it exits it leaves its peak memory, or its modules, in a file.
COMMAND = """
import atexit, pathlib, sys
from edgebench.cli import main
from edgebench.host import Host
note, wanted = pathlib.Path(sys.argv.pop(1)), sys.argv.pop(1)
def leave():
    note.write_text(Host().read(Host().proc("self/status")) if wanted == "status" else " ".join(sys.modules))
atexit.register(leave)
main()
"""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table, in SI units; the interval is absent where one number is all there is."""

    what: str
    figure: float
    low: float | None = None
    high: float | None = None
    target: float | None
    """None: for information."""
    unit: Unit
    verdict: Verdict
    note: str = ""


def judge(
    what: str,
    figure: float,
    interval: Interval | None,
    target: float | None,
    unit: Unit,
    note: str = "",
) -> Cost:
    """A figure that must not exceed its target, if it has one."""
    verdict: Verdict = "PASS"
    if target is None:
        verdict = ""
    elif figure > target:
        verdict = "MISS"
    elif interval is not None and interval.high > target:
        verdict = "WIDE"
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Cost(what=what, figure=figure, low=low, high=high, target=target, unit=unit, verdict=verdict, note=note)


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def running(argv: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block; edgebench's own children end with their parent."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run(argv: Sequence[str]) -> float:
    """Run a command of edgebench to its end and return its wall time, s.

    Raises:
        HostError: with the end of what it said, when it fails or hangs.
    """
    started = time.monotonic()
    with running(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            # Not wait(): with a time limit it polls, and would round the time up to the next 50 ms.
            said, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise HostError(
                f"{' '.join(argv[-4:])} did not end within {LIMIT_S:g} s.", "run edgebench alone."
            ) from None
    wall_s = time.monotonic() - started
    if process.returncode != 0:
        tail = said.decode(errors="replace")[-800:]
        raise HostError(f"{' '.join(argv[-4:])} ended with status {process.returncode}: {tail}", "run edgebench alone.")
    return wall_s


def run_noting(wanted: Literal["status", "modules"], arguments: Sequence[str], folder: Path) -> tuple[float, str]:
    """Wall time of ``edgebench ARGUMENTS``, s, and what it left as it exited."""
    note = folder / "note"
    wall_s = run([sys.executable, "-c", COMMAND, str(note), wanted, *arguments])
    return wall_s, note.read_text()


def console_script() -> str:
    """The ``edgebench`` command beside this interpreter."""
    script = Path(sys.executable).with_name("edgebench")
    if not script.is_file():
        raise HostError(f"There is no {script}.", "run this script with the interpreter of edgebench's environment.")
    return str(script)


# --- sampler ----------------------------------------------------------------------------------------------------------


def prepare_trial(options: argparse.Namespace, folder: Path) -> TrialSpec:
    """A decode trial with the threads that a shortest profile chooses; its file is made when it is not there yet."""
    output = folder / "profile.json"
    arguments = ["profile", "--runtime", "llamacpp", "--precision", "q4_0", "--workload", "tg32", "--workload", "pp32"]
    arguments += ["--budget", "1s", "--store", str(folder / "store.db"), "--output", str(output), "--quiet"]
    run([sys.executable, "-m", "edgebench", *arguments])
    trial = msgspec.json.decode(output.read_bytes(), type=Outcome).plan.trials[0]
    return msgspec.structs.replace(trial, workloads=(parse_workload(options.workload),), blocks=2 * options.pairs)


class Toggle:
    """Lets the sampler watch a child during blocks 0, 3, 4, 7, 8... and rest during the others."""

    def __init__(self, child: Child) -> None:
        self._child, self._telemetry = child, Telemetry(HOST, None)
        self._watched_since = time.monotonic()
        self.cpu_s = self.wall_s = 0.0
        self._telemetry.watch(child.pid)  # so that it has long started when the first block begins

    @staticmethod
    def is_on(block: int) -> bool:
        """Whether the sampler watches during this block."""
        return block % 4 in (0, 3)

    def hear(self, message: Reply) -> None:
        """Switch before each block: the child waits until this returns."""
        if isinstance(message, Ready):
            self._rest(count=message.index > 0 and self.is_on(message.index - 1))
            if self.is_on(message.index):
                self._telemetry.watch(self._child.pid)
                self._watched_since = time.monotonic()
        elif isinstance(message, Phase) and message.name == "end":
            self._telemetry.close()

    def _rest(self, *, count: bool) -> None:
        readings = self._telemetry.collect()
        if readings is None:
            raise HostError("The sampler was lost.", "run edgebench doctor, then this again.")
        if count:
            self.cpu_s += readings.cpu_s
            self.wall_s += time.monotonic() - self._watched_since

    def close(self) -> None:
        """End the sampler."""
        self._telemetry.close()


def watch_child(trial: TrialSpec, number: int) -> tuple[list[float], list[float], float]:
    """Tokens/s of paired blocks with and without the sampler, and the share of a core that the sampler used."""
    child = Child(MeasureJob(trial=trial, round=number, budget_s=NO_BUDGET_S), HOST, Limits())
    toggle = Toggle(child)
    try:
        ended = child.listen(toggle.hear)
    finally:
        child.kill()
        toggle.close()
    if ended.failure is not None:
        raise HostError(f"edgebench could not measure: {ended.failure.says}.", ended.failure.next_step)
    watched = [block.tokens_per_s for block in ended.attempt.blocks if toggle.is_on(block.index)]
    alone = [block.tokens_per_s for block in ended.attempt.blocks if not toggle.is_on(block.index)]
    return watched, alone, toggle.cpu_s / toggle.wall_s


def sampler_costs(options: argparse.Namespace, folder: Path, samples: dict[str, Any]) -> list[Cost]:
    """Decode with and without the sampler."""
    trial = prepare_trial(options, folder)
    watched: list[float] = []
    alone: list[float] = []
    shares: list[float] = []
    for number in range(options.children):
        more_watched, more_alone, share = watch_child(trial, number)
        watched += more_watched
        alone += more_alone
        shares.append(share)
        say(f"sampler: child {number + 1} of {options.children}, {1 - ratio(more_watched, more_alone):+.2%} lost")
    samples["sampler"] = {"with": watched, "without": alone, "share_of_a_core": shares}
    interval = ratio_interval(watched, alone)
    lost = Interval(1 - interval.high, 1 - interval.low, interval.confidence) if interval else None
    name = trial.workloads[0].name
    return [
        judge(
            f"{name} speed lost to the sampler",
            1 - ratio(watched, alone),
            lost,
            MOST_LOST,
            "%",
            f"{len(watched)} pairs, {trial.settings.threads} threads; it used {median(shares):.2%} of a core",
        )
    ]


# --- the command ------------------------------------------------------------------------------------------------------


def help_costs(options: argparse.Namespace, folder: Path, samples: dict[str, Any]) -> list[Cost]:
    """``edgebench --help``: its time, and what it imports."""
    walls = [run([console_script(), "--help"]) for _ in range(options.help_runs)]
    _, modules = run_noting("modules", ["--help"], folder)
    heavy = [name for name in HEAVY if name in modules.split()]
    samples["help_s"] = walls
    time_cost = judge(
        "edgebench --help", median(walls), median_interval(walls), MOST_HELP_S, "s", f"{len(walls)} times"
    )
    if time_cost.verdict != "PASS":
        say("slowest imports of edgebench --help (us alone, us with what it imports, module):")
        say("\n".join(slowest_imports()))
    return [time_cost, judge("heavy packages imported by --help", len(heavy), None, 0, "", " ".join(heavy))]


def slowest_imports(count: int = 12) -> list[str]:
    """Lines of ``-X importtime``, the slowest last."""
    argv = [sys.executable, "-X", "importtime", console_script(), "--help"]
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    timed = sorted((int(row[0]), row) for row in rows if row[0].strip().isdigit())
    return ["|".join(row) for _, row in timed[-count:]]


def profile_costs(
    name: str, options: Sequence[str], target_s: float, folder: Path, samples: dict[str, Any]
) -> list[Cost]:
    """Wall time of ``edgebench profile`` and the peak memory of its own process."""
    say(f"{name}...")
    arguments = ["profile", "--device", "cpu", "--runtime", "llamacpp", *options, "--store", str(folder / "store.db")]
    wall_s, status = run_noting("status", arguments, folder)
    peaks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    samples[name] = {"wall_s": wall_s, "rss_peak_bytes": peaks[0]}
    return [
        judge(f"{name}, wall time", wall_s, None, target_s, "s"),
        judge(f"{name}, parent's peak memory", peaks[0], None, MOST_RSS_BYTES, "MB"),
    ]


# --- recording --------------------------------------------------------------------------------------------------------


class NotingEngine:
    """In place of the llama.cpp library: its calls note when they begin and end, and read memory if told to."""

    llama_token = ctypes.c_int32

    def __init__(self, *, cold: bool) -> None:
        self._source, self._target = bytearray(COLD_BYTES if cold else 0), bytearray(COLD_BYTES if cold else 0)
        self._began_ns, self._ended_ns = array("q"), array("q")

    def llama_decode(self, _context: object, _batch: object) -> int:
        """The first of the two calls per token."""
        self._began_ns.append(time.monotonic_ns())
        self._target[:] = self._source
        return 0

    def llama_synchronize(self, _context: object) -> None:
        """The second one."""
        self._ended_ns.append(time.monotonic_ns())

    def gap_s(self) -> float:
        """Median time from the end of a token to the beginning of the next; forgets what it noted."""
        gaps = [began - ended for ended, began in zip(self._ended_ns, self._began_ns[1:], strict=False)]
        self._began_ns, self._ended_ns = array("q"), array("q")
        return median(gaps) / 1e9

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Everything else that a context asks for at its start: a handle, a batch, a size."""
        return lambda *_: 1


def time_bare(engine: NotingEngine, tokens: int) -> None:
    """The calls of decode and nothing else."""
    decode, synchronize = engine.llama_decode, engine.llama_synchronize
    for batch in [1] * tokens:
        decode(1, batch)
        synchronize(1)


def token_costs(options: argparse.Namespace, samples: dict[str, Any]) -> list[Cost]:
    """Time per token of the timed loop that is not the engine's."""
    costs = []
    for name, cold, tokens in (("warm", False, 2000), ("cold", True, 40)):
        engine = NotingEngine(cold=cold)
        log: Any = SimpleNamespace(new_context=lambda: None)
        context = LlamaContext(engine, 1, SimpleNamespace(n_batch=1, n_ctx=tokens), log)
        found = []
        for _ in range(options.loops):
            time_bare(engine, tokens)
            bare_s = engine.gap_s()
            context.time_decode([0] * tokens)
            found.append(engine.gap_s() - bare_s)
        samples[f"token_s_{name}"] = found
        # A difference of two noisy times need not be positive, and the interval of a median needs positive values.
        interval = median_interval(found) if min(found) > 0 else None
        note, target = f"{options.loops} loops of {tokens} tokens", None if cold else MOST_TOKEN_S
        costs.append(judge(f"recording, per token, {name}", median(found), interval, target, "us", note))
    return costs


# --- the whole --------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


SCALE = {"%": 100.0, "MB": 1e-6, "s": 1.0, "us": 1e6, "": 1.0}


def print_table(costs: Sequence[Cost]) -> None:
    """What, figure, interval, target, verdict."""
    width = max(len(cost.what) for cost in costs)
    print(f"\n{'what':{width}}     figure  {'interval':17}  target  verdict")
    for cost in costs:
        scale = SCALE[cost.unit]
        interval = "-"
        if cost.low is not None and cost.high is not None:
            interval = f"{cost.low * scale:.3g} to {cost.high * scale:.3g}"
        figure = f"{cost.figure * scale:.3g} {cost.unit}"
        target = "-" if cost.target is None else f"{cost.target * scale:g} {cost.unit}"
        print(f"{cost.what:{width}}  {figure:>9}  {interval:17} {target:>7}  {cost.verdict:4}  {cost.note}".rstrip())


def measure(options: argparse.Namespace, folder: Path, samples: dict[str, Any]) -> list[Cost]:
    """All parts asked for."""
    costs: list[Cost] = []
    if "sampler" in options.parts:
        costs += sampler_costs(options, folder, samples)
    if "help" in options.parts:
        costs += help_costs(options, folder, samples)
    if {"quick", "default"} & set(options.parts):
        say("making sure that everything is cached...")
        run(
            [
                *(console_script(), "profile", "--precision", "shipped,q8_0,q4_0", "--workload", "tg1"),
                *("--budget", "1ms", "--store", str(folder / "first.db")),
            ],
        )
    if "quick" in options.parts:
        costs += profile_costs("profile --quick", ["--quick"], MOST_QUICK_S, folder, samples)
    if "default" in options.parts:
        costs += profile_costs("profile", [], MOST_DEFAULT_S, folder, samples)
    if "token" in options.parts:
        costs += token_costs(options, samples)
    return costs


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What does measuring with edgebench cost?")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--workload", default="tg64", help="that the sampler watches")
    parser.add_argument("--children", type=int, default=6, help="processes that the sampler watches")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of blocks in each of them")
    parser.add_argument("--help-runs", type=int, default=20, help="times that --help is timed")
    parser.add_argument("--loops", type=int, default=21, help="times that the recording loop is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if set(options.parts) - set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}")
    if min(options.children, options.pairs, options.help_runs, options.loops) < 1:
        parser.error("counts are at least 1")
    return options


def main() -> int:
    """Measure, judge, print; the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are then killed as on Ctrl-C
    options = parse_arguments()
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgebench-cost-") as folder:
        costs = measure(options, Path(folder), samples)
    print_table(costs)
    passed = all(cost.verdict != "MISS" for cost in costs)
    summary = {"question": "cost of measuring", "costs": costs, "nothing_missed": passed}
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode({**summary, "samples": samples}))
    print(msgspec.json.encode(summary).decode())
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgebenchError as error:
        say(f"error: {error}")
        sys.exit(2 if isinstance(error, UsageError) else error.exit_code)
    except KeyboardInterrupt:
        say("interrupted; no child is left")
        sys.exit(130)
