"""Joules of a GPU against a known truth: edgebench, codecarbon and zeus ask the same made-up NVML at the same time.

No GPU is needed. A library that stands in for NVIDIA's is compiled from ``peers/fake_nvml.c``; its energy counter and
its power are renewed every 0.1 s, as the hardware's are, along a load whose energy is known. All tools find it through
``LD_LIBRARY_PATH``, edgebench through its own sampler process. What counts as the truth, and what else is told, is as
in ``energy_peers.py``.

Target: edgebench within 1 % for every load, on windows of 10 s and more. Needs a C compiler and edgebench[nvidia].

    python scripts/nvml_peers.py                  # three loads, windows of 20 s
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import peer_graphs
from energy_peers import PEERS, PROGRAM, SETTLE_S, Measured, Ours, begin, close, observe, pulses, wave
from experiment import running, say, start

from edgebench.errors import MissingDependency
from edgebench.host import Host

SOURCE = Path(__file__).parent / "peers" / "fake_nvml.c"
RENEWED_S = 0.1
LOADS = {
    "GPU, constant": lambda t_s: 71.0 * t_s,
    "GPU, steps": pulses(18.0, 160.0, 7.0, 3.0),
    "GPU, wave": wave(90.0, 60.0, 3.7),
}


def write(name: str, path: Path, from_ns: int) -> None:
    """Renew the counter and the power until killed."""
    energy_j = LOADS[name]
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 16) as place:
        while True:
            t_s = (time.monotonic_ns() - from_ns) / 1e9
            power_w = (energy_j(t_s) - energy_j(t_s - 1e-3)) / 1e-3
            struct.pack_into("=QQ", place, 0, round(1e3 * (1000 + energy_j(t_s))), round(1e3 * power_w))
            time.sleep(RENEWED_S - (t_s % RENEWED_S))


@contextmanager
def counting(name: str, scratch: Path) -> Iterator[int]:
    """A GPU that works; the moment at which its load began."""
    path = scratch / "numbers"
    path.write_bytes(struct.pack("=QQ", 1_000_000, 0))
    os.environ["FAKE_NVML"] = str(path)
    from_ns = time.monotonic_ns()
    with running([sys.executable, __file__, "--write", name, str(path), str(from_ns)]):
        time.sleep(SETTLE_S)
        yield from_ns


def main() -> int:
    """Run the experiment."""
    if importlib.util.find_spec("pynvml") is None:
        raise MissingDependency("edgebench asks NVML through nvidia-ml-py.", "pip install 'edgebench[nvidia]'")
    given = begin(__doc__, write)
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libnvidia-ml.so.1"
        peer_graphs.step(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], "compiling a made-up NVML")
        os.environ["LD_LIBRARY_PATH"] = folder
        driver = Path(folder) / "nvidia-smi"  # codecarbon believes in a GPU only where this program answers
        driver.write_text("#!/bin/sh\n", encoding="utf-8")
        driver.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
        for name, energy_j in LOADS.items():
            say(f"{name}: {given.window_s:g} s")
            with counting(name, Path(folder)) as from_ns:
                jobs = {tool: {**how, "window_s": given.window_s, "gpu": True} for tool, how in PEERS.items()}
                peers = {
                    tool: [str(given.pythons[str(job["peer"])]), str(PROGRAM), msgspec.json.encode(job).decode()]
                    for tool, job in jobs.items()
                    if job["peer"] in given.pythons
                }
                found, uncertainty = observe(
                    energy_j, name, peers, lambda: Ours(Host(), "cuda"), given.window_s, from_ns
                )
            say(f"  edgebench states an uncertainty of {uncertainty:.1%} (mostly of the counter's own scale)")
            rows += found
    return close(rows, given.window_s, given.json)


if __name__ == "__main__":
    start(main)
