"""``edgebench profile`` on boards that are not here: captured trees, whose files change while it looks at them.

Scripted times stand in for an engine; everything else is the program as users run it. Each board lives: a thread counts
its energy on, or raises a throttle flag in the middle, as the hardware would.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Cli, Done

TREES = Path(__file__).parents[1] / "trees"
TOKEN_S = 0.05
PACKAGE_W = 23.0
SCRIPT = ("--runtime", "fake", "--script", f"tg_token_s={TOKEN_S}", "--script", "wait=1")

Live = Callable[[Path, float], None]


@dataclass(frozen=True)
class Board:
    """A tree, what changes in it, and what is added to it before."""

    tree: str
    live: Live
    extra: tuple[tuple[str, str], ...] = ()
    workload: str = "tg128"


def write(root: Path, name: str, text: str) -> None:
    """Whole or not at all, as the kernel's own files are read."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    other = path.with_name(path.name + ".new")
    other.write_text(text)
    other.replace(path)


def pi(root: Path, age_s: float) -> None:
    """The supply weakens after a moment of measuring."""
    write(root, "commands/vcgencmd get_throttled", "throttled=0x50005\n" if age_s > 4 else "throttled=0x50000\n")


def orin(root: Path, age_s: float) -> None:
    write(root, "sys/class/thermal/cooling_device1/cur_state", "1\n" if age_s > 4 else "0\n")


def laptop(root: Path, age_s: float) -> None:
    write(root, "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", f"{7 + int(age_s)}\n")


def desktop(root: Path, age_s: float) -> None:
    write(root, "sys/class/powercap/intel-rapl:0/energy_uj", f"{65997277274 + int(age_s * PACKAGE_W * 1e6)}\n")


_CLOSED = "".join(
    f"EACCES sys/class/powercap/{zone}/energy_uj\n" for zone in ("intel-rapl:0", "intel-rapl:1", "intel-rapl-mmio:0")
)

BOARDS = {
    "raspberry-pi-5": Board("raspberry-pi-5", pi),
    "jetson-orin-nano": Board(
        "jetson-orin-nano", orin, (("sys/class/thermal/cooling_device1/type", "cpu-throttle-alert\n"),)
    ),
    "laptop": Board(
        "laptop-i5-1340p",
        laptop,
        (("refused", _CLOSED),),
        workload="tg512",
    ),
    "desktop": Board("desktop-i5-13500", desktop),
}


class Life(threading.Thread):
    """Changes a tree every 20 ms until it is stopped."""

    def __init__(self, root: Path, live: Live) -> None:
        super().__init__(daemon=True)
        self._root, self._live, self._stopped = root, live, threading.Event()

    def run(self) -> None:
        born = time.monotonic()
        while not self._stopped.wait(0.02):
            self._live(self._root, time.monotonic() - born)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def profile_all(names: tuple[str, ...], factory: pytest.TempPathFactory) -> dict[str, tuple[Done, Cli]]:
    """Boards at once: their processes wait far more than they compute."""
    started = {}
    for name in names:
        board, folder = BOARDS[name], factory.mktemp(name)
        root, cli = folder / "root", Cli(folder)
        for path, text in [*json.loads((TREES / f"{board.tree}.json").read_text()).items(), *board.extra]:
            write(root, path, text)
        life = Life(root, board.live)
        life.start()
        how = ("--quick", "--budget", "1s", "--threads", "2", "--workload", board.workload)
        argv = cli.argv("profile", "--root", root, *SCRIPT, *how)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(argv, cwd=folder, env=cli.environment(), text=True, **pipes)
        started[name] = process, life, cli
    done = {}
    for name, (process, life, cli) in started.items():
        out, err = process.communicate()
        life.stop()
        done[name] = Done(process.returncode, out, err), cli
    return done


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Done, Cli]]:
    return profile_all(("raspberry-pi-5", "jetson-orin-nano", "desktop"), tmp_path_factory)


SAID = {
    "raspberry-pi-5": (
        "device: Raspberry Pi 5 (raspberry-pi-5): 4 x Cortex-A76, 7.9 GiB",
        "energy: board rails, by pmic.board (gauge,",
        "suspect: throttled: ",
        "(under-voltage; throttled)",
    ),
    "jetson-orin-nano": (
        "device: NVIDIA Jetson Orin Nano 8 GB",
        "energy: module, by ina3221.VDD_IN (gauge,",
        "suspect: throttled: ",
        "cpu-throttle-alert",
    ),
    "laptop": (
        "device: Laptop with an Intel Core i5-1340P",
        "energy: dc input, by battery.power (gauge,",
        "note: on_battery: ",
        "suspect: throttled: ",
        "package_events",
    ),
    "desktop": (
        "13th Gen Intel(R) Core(TM) i5-13500",
        "energy: cpu package, by rapl.package-0 (counter,",
    ),
}


def assert_said(board: str, done: Done) -> None:
    assert done.code == 0, done.err
    for text in (*SAID[board], "invalid: captured_tree: "):
        assert text in done.out, f"{text!r} is not in\n{done.out}"


@pytest.mark.parametrize("board", ["raspberry-pi-5", "jetson-orin-nano", "desktop"])
def test_the_report_names_the_device_its_energy_and_its_throttling(profiled, board):
    assert_said(board, profiled[board][0])


@pytest.mark.slow
def test_a_laptop_on_its_battery(tmp_path_factory):
    """A battery tells something new once a second, and twenty of these make a figure."""
    assert_said("laptop", profile_all(("laptop",), tmp_path_factory)["laptop"][0])


def test_the_joules_are_those_that_were_counted(profiled):
    _, cli = profiled["desktop"]
    [trial] = json.loads(cli("runs", "show", "--json").out)["trials"]
    energy = trial["energy"]
    assert energy["mean_w"] == pytest.approx(PACKAGE_W, rel=0.03)
    assert energy["energy_j"] == pytest.approx(PACKAGE_W * 128 * TOKEN_S, rel=0.03)
    assert energy["j_per_token"]["tg128"] == pytest.approx(PACKAGE_W * TOKEN_S, rel=0.03)


def test_a_steady_desktop_is_not_said_to_throttle(profiled):
    done, _ = profiled["desktop"]
    assert not re.search(r"throttle", done.out)


def test_an_engine_is_not_measured_on_a_captured_tree(cli, tmp_path):
    for path, text in json.loads((TREES / "raspberry-pi-5.json").read_text()).items():
        write(tmp_path / "root", path, text)
    cli("profile", "--quick", "--root", tmp_path / "root").complains(2, "captured tree", "--runtime fake")
