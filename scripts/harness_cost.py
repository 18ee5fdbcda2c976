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
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
from costs import Cost, conclude, judge
from experiment import HOST, NO_BUDGET_S, failed, running, say, start

from edgebench.engine.child import Child
from edgebench.engine.messages import MeasureJob, Phase, Ready, Reply
from edgebench.engine.protocol import Limits
from edgebench.engine.telemetry import Telemetry
from edgebench.errors import HostError
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


# --- processes --------------------------------------------------------------------------------------------------------


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
        raise failed(argv[-4:], process.returncode, said.decode(errors="replace"), "run edgebench alone.")
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
            MOST_LOST,
            "%",
            lost,
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
        "edgebench --help", median(walls), MOST_HELP_S, "s", median_interval(walls), f"{len(walls)} times"
    )
    if time_cost.verdict != "PASS":
        say("slowest imports of edgebench --help (us alone, us with what it imports, module):")
        say("\n".join(slowest_imports()))
    return [time_cost, judge("heavy packages imported by --help", len(heavy), 0, "", note=" ".join(heavy))]


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
        judge(f"{name}, wall time", wall_s, target_s, "s"),
        judge(f"{name}, parent's peak memory", peaks[0], MOST_RSS_BYTES, "MB"),
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
        costs.append(judge(f"recording, per token, {name}", median(found), target, "us", interval, note))
    return costs


# --- the whole --------------------------------------------------------------------------------------------------------


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
    options = parse_arguments()
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgebench-cost-") as folder:
        costs = measure(options, Path(folder), samples)
    return conclude("cost of measuring", costs, {"samples": samples}, options.json)


if __name__ == "__main__":
    start(main)
