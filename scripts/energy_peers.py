"""Joules against a known truth: edgebench, codecarbon and zeus read the same scripted powercap tree at the same time.

No power is measured here. A writer process advances the ``energy_uj`` of a made-up package (with a core zone inside)
along a load whose energy is known at every moment, one step a millisecond, as RAPL does. Each tool measures one window
of it in its own process; the peers live in virtual environments of their own and see the tree at its usual place
through a mount namespace (``unshare``, so Linux, and root or user namespaces, are needed). edgebench reads it below
another root, through its own sampler process and its own integration.

The truth for each is the energy between the return of its call that began the window and its call that ended it: what
the user's work took. What its own calls took beside that is told apart.

Target: edgebench within 1 % for every load, on windows of 10 s and more.

    python scripts/energy_peers.py                  # five loads, windows of 20 s
    python scripts/energy_peers.py --window 60s --json energy.json
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import peer_graphs
from experiment import HOST, conclude, failed, machine, print_facts, running, say, start

from edgebench.analysis.energy_source import EnergySource, choose
from edgebench.analysis.energy_windows import Window, accuracy_of, integrate
from edgebench.engine.telemetry import Telemetry
from edgebench.errors import HostError, UsageError
from edgebench.host import Host
from edgebench.units import parse_duration

LIMIT = 0.01
SHORTEST_S = 10.0
RANGE_UJ = 262_143_328_850
STEP_S = 1e-3
DIGITS = 15
"""Numbers of equal length: a reader never sees half of one."""
PROGRAM = Path(__file__).parent / "peers" / "run_energy.py"
SETTLE_S = 0.5
READY_S = 120.0


# --- loads ------------------------------------------------------------------------------------------------------------


PACKAGE = {"intel-rapl:0": ("package-0", 1.0), "intel-rapl:0:0": ("core", 2 / 3)}
MIRRORED = {"intel-rapl:0": ("package-0-die-0", 1.0), "intel-rapl:1": ("package-0-die-1", 1.0)}
"""As on AMD parts with several dies: every die shows the counter of the whole package (codecarbon issue 1274)."""


class Load(msgspec.Struct, frozen=True):
    """What one tree shows."""

    energy_j: Callable[[float], float]
    """Energy since the start as a function of time, s to J."""
    begins_at: int = 52_649_883_221
    """First value of the counters, uJ."""
    zones: dict[str, tuple[str, float]] = msgspec.field(default_factory=lambda: PACKAGE)
    """By the name of its folder: a zone's name, and its share of the energy."""


def pulses(low_w: float, high_w: float, period_s: float, high_s: float) -> Callable[[float], float]:
    """Energy of a load that is high for ``high_s`` at the beginning of each period."""

    def energy_j(t_s: float) -> float:
        whole, rest_s = divmod(t_s, period_s)
        return low_w * t_s + (high_w - low_w) * (whole * high_s + min(rest_s, high_s))

    return energy_j


def wave(mean_w: float, swing_w: float, period_s: float) -> Callable[[float], float]:
    """Energy of a load that swings like a sine."""
    turns = 2 * math.pi / period_s
    return lambda t_s: mean_w * t_s + swing_w * (1 - math.cos(turns * t_s)) / turns


LOADS = {
    "constant": Load(lambda t_s: 12.5 * t_s),
    "steps": Load(pulses(4.0, 28.0, 7.0, 3.0)),
    "bursts": Load(pulses(6.0, 60.0, 2.1, 0.1)),
    "wave, and the counter starts again": Load(wave(15.0, 10.0, 3.7), begins_at=RANGE_UJ - 150_000_000),
    "two dies that show one counter": Load(lambda t_s: 12.5 * t_s, zones=MIRRORED),
}


# --- the tree ---------------------------------------------------------------------------------------------------------


def plant(root: Path, load: Load) -> None:
    """The folders and links that powercap shows, with the counters at their first values."""
    folder = Host(root).sys("class/powercap")
    control = folder / "intel-rapl"
    control.mkdir(parents=True)
    (control / "subsystem").symlink_to("..")
    for zone, (name, _) in load.zones.items():
        parent, inside, _ = zone.rpartition(":")
        place = control / parent / zone if inside and parent in load.zones else control / zone
        place.mkdir()
        (place / "name").write_text(f"{name}\n")
        (place / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (place / "enabled").write_text("1\n")
        (place / "energy_uj").write_text(f"{load.begins_at:0{DIGITS}d}\n")
        (folder / zone).symlink_to(place.relative_to(folder))


def write(root: Path, load: Load, from_ns: int) -> None:
    """Advance the counters until killed."""
    folder = Host(root).sys("class/powercap")
    shares = {os.open(folder / zone / "energy_uj", os.O_WRONLY): share for zone, (_, share) in load.zones.items()}
    while True:
        t_s = (time.monotonic_ns() - from_ns) / 1e9
        for fd, share in shares.items():
            counted = (load.begins_at + round(load.energy_j(t_s) * share * 1e6)) % RANGE_UJ
            os.pwrite(fd, f"{counted:0{DIGITS}d}\n".encode(), 0)
        time.sleep(STEP_S)


@contextmanager
def counting(name: str, scratch: Path) -> Iterator[tuple[Path, int]]:
    """A tree whose counters run, and the moment at which its load began."""
    root = scratch / name.replace(" ", "-").replace(",", "")
    plant(root, LOADS[name])
    from_ns = time.monotonic_ns()
    with running([sys.executable, __file__, "--write", name, str(root), str(from_ns)]):
        time.sleep(SETTLE_S)
        yield root, from_ns


# --- the tools --------------------------------------------------------------------------------------------------------


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool said about one load, against the truth."""

    load: str
    tool: str
    joules: float
    truth_j: float
    own_calls_j: float
    """Energy that went by inside the calls that began and ended the window."""

    @property
    def error(self) -> float:
        """Relative."""
        return self.joules / self.truth_j - 1


def measured(
    name: str, energy_j: Callable[[float], float], tool: str, joules: float, stamps_ns: Sequence[int], from_ns: int
) -> Measured:
    """A tool's joules against the load's, by the clock around its calls."""
    before, began, ended, after = (energy_j((stamp - from_ns) / 1e9) for stamp in stamps_ns)
    return Measured(
        load=name,
        tool=tool,
        joules=joules,
        truth_j=ended - began,
        own_calls_j=began - before + after - ended,
    )


class Ours:
    """edgebench's sampler, read in the background as beside a model.

    Args:
        host: a tree, or this machine.
        device: where the model would run.
    """

    def __init__(self, host: Host, device: str = "cpu") -> None:
        self._telemetry, self._device = Telemetry(host, None), device
        self._telemetry.watch(os.getpid())

    def joules(self, start_ns: int, end_ns: int) -> tuple[float, float]:
        """Energy of a window, and the expanded uncertainty that edgebench states.

        Raises:
            HostError: when it found no source, or the sampler died.
        """
        readings = self._telemetry.collect()
        self._telemetry.close()
        if readings is None:
            raise HostError("The sampler was lost.", "run edgebench doctor, then this again.")
        series = {one.channel.name: one for one in readings.series}
        source = choose([one.channel for one in series.values()], set(series), device=self._device)
        if not isinstance(source, EnergySource):
            raise HostError(f"edgebench found no energy source: {source.why}.", "look at the tree.")
        window = Window("window", start_ns, end_ns)
        (reading,) = integrate([series[name] for name in source.channels], [window], accuracy_of(source))
        if reading.because:
            raise HostError(f"edgebench did not measure: {reading.because}.", "look at the tree.")
        return reading.joules, reading.u_j


PEERS: dict[str, dict[str, str | int | None]] = {
    "codecarbon": {"peer": "codecarbon", "every_s": None},
    "codecarbon, every 1 s": {"peer": "codecarbon", "every_s": 1},
    "zeus": {"peer": "zeus", "every_s": None},
}


def peer_argv(python: Path, root: Path, job: dict[str, object]) -> list[str]:
    """A peer that sees our tree where the kernel's would be."""
    become_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    places = [str(Host(root).sys("class")), str(HOST.sys("class"))]
    peer = [str(python), str(PROGRAM), msgspec.json.encode(job).decode()]
    return ["unshare", "--mount", *become_root, "sh", "-c", script, "sh", *places, *peer]


def measure_load(name: str, window_s: float, pythons: dict[str, Path], scratch: Path) -> tuple[list[Measured], float]:
    """All tools over the same load at the same time, and the uncertainty that edgebench states, relative.

    Raises:
        HostError: when one of them failed.
    """
    with counting(name, scratch) as (root, from_ns):
        peers = {
            tool: peer_argv(pythons[str(options["peer"])], root, {**options, "window_s": window_s})
            for tool, options in PEERS.items()
            if options["peer"] in pythons
        }
        return observe(LOADS[name].energy_j, name, peers, lambda: Ours(Host(root)), window_s, from_ns)


def observe(
    energy_j: Callable[[float], float],
    name: str,
    peers: dict[str, list[str]],
    ours: Callable[[], Ours],
    window_s: float,
    from_ns: int,
) -> tuple[list[Measured], float]:
    """Let the peers and edgebench measure one window of a load that runs already."""
    with ExitStack() as stack:
        pipe = subprocess.PIPE
        processes = {}
        for tool, argv in peers.items():
            log = stack.enter_context(tempfile.TemporaryFile())
            variables = peer_graphs.peer_variables()
            process = stack.enter_context(running(argv, stdin=pipe, stdout=pipe, stderr=log, env=variables))
            processes[tool] = process, log, argv
        for process, log, argv in processes.values():
            if process.stdout is None or process.stdout.readline().strip() != b"ready":
                log.seek(0)
                said = log.read().decode("utf-8", "replace")
                raise failed(argv, process.wait(READY_S), said, "root or user namespaces are needed for its tree.")
        sampling = ours()
        time.sleep(SETTLE_S)
        for process, _, _ in processes.values():
            if process.stdin is not None:
                process.stdin.write(b"go\n")
                process.stdin.flush()
        began_ns = time.monotonic_ns()
        time.sleep(window_s)
        ended_ns = time.monotonic_ns()
        time.sleep(SETTLE_S)
        joules, u_j = sampling.joules(began_ns, ended_ns)
        stamps = {"edgebench": (joules, (began_ns, began_ns, ended_ns, ended_ns))}
        for tool, (process, log, argv) in processes.items():
            answered, _ = process.communicate(timeout=READY_S)
            if process.returncode != 0 or not answered.strip():
                log.seek(0)
                raise failed(argv, process.returncode, log.read().decode("utf-8", "replace"), "see above.")
            answer = msgspec.json.decode(answered.splitlines()[-1])
            stamps[tool] = answer["joules"], tuple(answer["stamps_ns"])
        return [measured(name, energy_j, tool, *told, from_ns) for tool, told in stamps.items()], u_j / joules


# --- result -----------------------------------------------------------------------------------------------------------


def print_table(rows: Sequence[Measured]) -> None:
    """One line per load and tool."""
    widths = [max(len(text) for text in column) for column in ([row.load for row in rows], ["edgebench", *PEERS])]
    print(f"\n{'load':{widths[0]}}  {'tool':{widths[1]}}  {'J':>9}  {'truth':>9}  {'error':>8}  {'in its calls':>12}")
    for row in rows:
        print(
            f"{row.load:{widths[0]}}  {row.tool:{widths[1]}}  {row.joules:9.3f}  {row.truth_j:9.3f}  "
            f"{row.error:+8.2%}  {row.own_calls_j:10.3f} J"
        )


def close(rows: Sequence[Measured], window_s: float, file: Path | None) -> int:
    """The table and the verdict; the exit status."""
    print_table(rows)
    worst = max(abs(row.error) for row in rows if row.tool == "edgebench")
    met = worst <= LIMIT
    print(f"\nedgebench: at most {worst:.3%} from the truth (target: {LIMIT:.0%}): {'PASS' if met else 'MISS'}")
    summary = {
        "window_s": window_s,
        "worst_error": {tool: max(abs(r.error) for r in rows if r.tool == tool) for tool in {r.tool for r in rows}},
        "met": met,
    }
    return conclude(summary, {"rows": rows}, file, met=met)


class Given(NamedTuple):
    """What was asked for, and the Python of each peer that takes part."""

    window_s: float
    pythons: dict[str, Path]
    json: Path | None


def begin(about: str | None, write: Callable[[str, Path, int], None]) -> Given:
    """Read the command line, make the peers' environments, and say on what all this runs.

    Args:
        about: the experiment's docstring.
        write: what the writer process does for ever: a load's name, where to, and since when.

    Raises:
        UsageError: when the window is too short to say anything.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--window", default="20s", help="length of each window, 10s or more (default: 20s)")
    parser.add_argument("--only-edgebench", action="store_true", help="leave the peers out: nothing is installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to a file")
    parser.add_argument("--write", nargs=3, metavar=("LOAD", "WHERE", "FROM_NS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        name, where, from_ns = given.write
        write(name, Path(where), int(from_ns))
    window_s = parse_duration(given.window)
    if window_s < SHORTEST_S:
        raise UsageError(f"A window of {given.window} says little.", "give --window 10s or more.")
    environments = {} if given.only_edgebench else {n: peer_graphs.environment(n) for n in ("codecarbon", "zeus")}
    print_facts({**machine(), **{name: versions for name, (_, versions) in environments.items()}})
    return Given(window_s, {name: python for name, (python, _) in environments.items()}, given.json)


def main() -> int:
    """Run the experiment."""
    given = begin(__doc__, lambda name, root, from_ns: write(root, LOADS[name], from_ns))
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in LOADS:
            say(f"{name}: {given.window_s:g} s")
            found, uncertainty = measure_load(name, given.window_s, given.pythons, Path(scratch))
            say(f"  edgebench states an uncertainty of {uncertainty:.1%} (mostly of RAPL's own scale)")
            rows += found
    return close(rows, given.window_s, given.json)


if __name__ == "__main__":
    start(main)
