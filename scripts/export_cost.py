"""What does exporting to ONNX cost?

Every figure with its target, each export by ``edgebench export`` as a user runs it, in a fresh process and an empty
cache, its imports and the hashing of the source included:

- *SmolLM2-135M, GGUF to int4 ONNX*: wall time (<= 5 s) and peak resident memory (<= 600 MB).
- ``--peers``: the usual road beside it, for information: ``optimum-cli export onnx`` of the same weights as a Hugging
  Face folder, then onnxruntime's MatMulNBitsQuantizer, in an environment of their own (see peer_graphs.py; 1.5 GB).
  Making the folder that they start from is not counted.
- ``--large``: a llama of Llama 3.2 3B's shape with random bfloat16 weights, written here as safetensors shards of 2 GB
  and removed afterwards: 6.4 GB, and 2 GB for the result. Its peak resident memory must stay within
  1.3 x max(largest tensor in float32, output shard) + 300 MB. The data file grows by one tensor at a time and is never
  held, so what is held of the output at once, the "output shard", is a tensor at its new width; that is smaller than
  the tensor in float32, which therefore decides. With fewer ``--layers`` the limit is the same, and the figure should
  be: memory must not depend on the depth.

Resident memory is the kernel's own maximum for the largest process of the command (wait4), mapped pages of the
checkpoint included.

    python scripts/export_cost.py                      # half a minute
    python scripts/export_cost.py --large --layers 2   # 1 GB instead of 6.4 GB
    python scripts/export_cost.py --large --peers      # everything, about 10 minutes

Verdicts: PASS, MISS, or WIDE: the figure is within its target and its 95 % interval is not. Use a machine that is
otherwise idle. The last line of the output is one JSON document. Exit status: 0 when nothing was missed, else 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gguf_as_hf
import large_checkpoint
import peer_graphs
from costs import Cost, conclude, judge
from experiment import failed, running, say, start

from edgebench.derive import obtain_source
from edgebench.errors import HostError
from edgebench.specs import Artifact
from edgebench.stats import median, median_interval

MODEL = "smollm2-135m-instruct"
MOST_WALL_S = 5.0
MOST_RSS_BYTES = 600e6
SHARE, FIXED_BYTES = 1.3, 300e6
LIMIT_S = 1800

PEER_QUANTIZE = """
import sys
import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
quantizer = MatMulNBitsQuantizer(onnx.load(sys.argv[1]), bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
quantizer.process()
quantizer.model.save_model_to_file(sys.argv[2], use_external_data_format=True)
"""


# --- children ---------------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """What a command took from its start to its end."""

    wall_s: float
    cpu_s: float
    rss_peak_bytes: int
    """Of its largest process."""


def spend(argv: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> Spent:
    """Run a command to its end.

    Raises:
        HostError: with the end of what it said, when it fails or hangs.
    """
    log = folder / "log"
    started = time.monotonic()
    with log.open("wb") as said, running(argv, stdout=said, stderr=subprocess.STDOUT, env=environment) as process:
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(LIMIT_S)
        try:
            _, status, usage = os.wait4(process.pid, 0)  # its ended children are counted in
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            signal.alarm(0)
    wall_s = time.monotonic() - started
    if process.returncode != 0:
        raise failed(argv, process.returncode, log.read_text(errors="replace"), "run that command alone.")
    return Spent(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def export(source: Path, folder: Path) -> Spent:
    """``edgebench export`` of a GGUF or a folder to int4; the result is removed."""
    cache = folder / "cache"
    argv = [sys.executable, "-m", "edgebench", "export", str(source), "--to", "onnx", "--precision", "int4", "--quiet"]
    spent = spend(argv, folder, os.environ | {"EDGEBENCH_CACHE": str(cache)})
    shutil.rmtree(cache)
    return spent


# --- the default model ------------------------------------------------------------------------------------------------


def model_costs(source: Path, runs: int, folder: Path) -> list[Cost]:
    """Time and memory of the default model's export."""
    export(source, folder)  # so that files and bytecode are in the page cache, as they are for the peers
    found = [export(source, folder) for _ in range(runs)]
    times = [spent.wall_s for spent in found]
    peak = max(spent.rss_peak_bytes for spent in found)
    note = f"median of {runs} runs; {median([spent.cpu_s for spent in found]):.1f} s of CPU time"
    return [
        judge(f"{MODEL} to int4, wall time", median(times), MOST_WALL_S, "s", median_interval(times), note),
        judge(f"{MODEL} to int4, peak memory", peak, MOST_RSS_BYTES, "MB", note=f"largest of {runs} runs"),
    ]


def peer_costs(source: Artifact, folder: Path) -> list[Cost]:
    """Time and memory of optimum's export and onnxruntime's quantizer, once."""
    python, versions = peer_graphs.environment("optimum")
    begin, traced, rounded = gguf_as_hf.make_folder(source, folder), folder / "traced", folder / "rounded"
    rounded.mkdir()
    say(f"optimum-cli ({versions})...")
    command = [str(python.with_name("optimum-cli")), "export", "onnx", "--model", str(begin)]
    variables = peer_graphs.peer_variables()
    tracing = spend([*command, "--task", "text-generation-with-past", traced], folder, variables)
    say("MatMulNBitsQuantizer...")
    rounding = spend([python, "-c", PEER_QUANTIZE, traced / "model.onnx", rounded / "model.onnx"], folder, variables)
    for used in (begin, traced, rounded):
        shutil.rmtree(used)
    note = f"{tracing.wall_s:.1f} s + {rounding.wall_s:.1f} s, one run"
    peak = max(tracing.rss_peak_bytes, rounding.rss_peak_bytes)
    return [
        judge("optimum + quantizer, wall time", tracing.wall_s + rounding.wall_s, None, "s", note=note),
        judge("optimum + quantizer, peak memory", peak, None, "MB", note="the larger of the two"),
    ]


# --- a large checkpoint -----------------------------------------------------------------------------------------------


def large_costs(layers: int, folder: Path) -> list[Cost]:
    """Memory of exporting the large checkpoint, and the time that it took."""
    sizes = [large_checkpoint.elements(shape) for shape in large_checkpoint.shapes(layers).values()]
    needed, free = 3 * sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise HostError(
            f"The large checkpoint and its export need {needed / 1e9:.1f} GB; {folder} has {free / 1e9:.1f} GB free.",
            "choose another --folder, or fewer --layers.",
        )
    say(f"writing a checkpoint of {sum(sizes) / 1e9:.2f}e9 parameters...")
    large_checkpoint.write(folder / "large", layers)
    say("exporting it...")
    spent = export(folder / "large", folder)
    shutil.rmtree(folder / "large")
    target = SHARE * 4 * max(sizes) + FIXED_BYTES
    name = f"{sum(sizes) / 1e9:.2f}e9 parameters to int4"
    note = f"largest tensor {4 * max(sizes) / 1e6:.0f} MB in float32"
    return [
        judge(f"{name}, peak memory", spent.rss_peak_bytes, target, "MB", note=note),
        judge(f"{name}, wall time", spent.wall_s, None, "s", note=f"{layers} layers, one run"),
    ]


# --- the whole --------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, folder: Path) -> list[Cost]:
    """All parts asked for."""
    source = obtain_source(MODEL, accept_license=False, progress=lambda *_: None)
    say(f"exporting {MODEL} {options.runs} times...")
    costs = model_costs(Path(source.path), options.runs, folder)
    if options.peers:
        costs += peer_costs(source, folder)
    if options.large:
        costs += large_costs(options.layers, folder)
    return costs


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What does exporting to ONNX cost?")
    parser.add_argument("--runs", type=int, default=9, help="exports of the default model that are timed")
    parser.add_argument("--peers", action="store_true", help="measure optimum and onnxruntime's quantizer as well")
    parser.add_argument("--large", action="store_true", help="export a random checkpoint of 3.2e9 parameters as well")
    parser.add_argument("--layers", type=int, default=28, help="of the large checkpoint")
    parser.add_argument("--folder", type=Path, help="where files are made and removed; the temporary folder by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    options = parser.parse_args()
    if min(options.runs, options.layers) < 1:
        parser.error("counts are at least 1")
    return options


def main() -> int:
    """Measure, judge, print; the exit status."""
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="edgebench-export-", dir=options.folder) as folder:
        costs = measure(options, Path(folder))
    return conclude("cost of exporting", costs, {}, options.json)


if __name__ == "__main__":
    start(main)
