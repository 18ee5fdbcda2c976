"""What does exporting to ONNX cost?

Every figure with its target, each export in a fresh child process, its imports included:

- *SmolLM2-135M, GGUF to int4 ONNX*: wall time (<= 5 s) and peak resident memory (<= 600 MB).
- ``--peers FOLDER``: the usual road beside it, for information: ``optimum-cli export onnx`` of the same weights as a
  Hugging Face folder, then onnxruntime's MatMulNBitsQuantizer. An environment of its own is made in FOLDER when there
  is none (about 2 GB, mostly torch), because optimum-onnx needs an older transformers than anything else. Making the
  folder that it starts from is not counted.
- ``--large``: a llama of Llama 3.2 3B's shape with random bfloat16 weights, written here as safetensors shards of 2 GB
  and removed afterwards: 6.4 GB, and 2 GB for the result. Its peak resident memory must stay within
  1.3 x max(largest tensor in float32, output shard) + 300 MB. The data file grows by one tensor at a time and is never
  held, so what is held of the output at once, the "output shard", is a tensor at its new width; that is smaller than
  the tensor in float32, which therefore decides. With fewer ``--layers`` the limit is the same, and the figure should
  be: memory must not depend on the depth.

Resident memory is the kernel's own maximum for the child (wait4), mapped pages of the checkpoint included.

    python scripts/export_cost.py                              # half a minute
    python scripts/export_cost.py --large --layers 2           # 1 GB instead of 6.4 GB
    python scripts/export_cost.py --large --peers ~/peers      # everything, about 10 minutes

Verdicts: PASS, MISS, or WIDE: the figure is within its target and its 95 % interval is not. Use a machine that is
otherwise idle. The last line of the output is one JSON document. Exit status: 0 when nothing was missed, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from edgebench.artifacts import obtain
from edgebench.errors import EdgebenchError, HostError, UsageError
from edgebench.stats import Interval, median, median_interval

MODEL = "smollm2-135m-instruct"
MOST_WALL_S = 5.0
MOST_RSS_BYTES = 600e6
SHARE, FIXED_BYTES = 1.3, 300e6
LIMIT_S = 1800.0
SHARD_BYTES = 2_000_000_000
CHUNK = 1 << 22
"""Weights that are made at once."""
PEERS = (
    ("torch==2.13.0",),
    ("optimum-onnx==0.1.0", "transformers<4.58", "onnxruntime", "onnx-ir", "gguf", "accelerate"),
)
"""Installed one after the other: torch first, or a build with CUDA comes along."""
Unit = Literal["MB", "s"]
Verdict = Literal["PASS", "MISS", "WIDE", ""]

# Without a vocabulary: the large checkpoint has none, and what is measured are the weights.
EXPORT = """
import sys
from pathlib import Path
from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.hf import HFWeights
from edgebench.export.onnx import export
source, target = map(Path, sys.argv[1:])
target.mkdir()
checkpoint = HFWeights(source) if source.is_dir() else GGUFWeights(source)
export(checkpoint, target, "int4")
checkpoint.close()
"""
PEER_FOLDER = """
import sys
from pathlib import Path
import torch, transformers
source, target = map(Path, sys.argv[1:])
where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).save_pretrained(target)
transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(target)
"""
PEER_QUANTIZE = """
import sys
import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
quantizer = MatMulNBitsQuantizer(onnx.load(sys.argv[1]), bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
quantizer.process()
quantizer.model.save_model_to_file(sys.argv[2], use_external_data_format=True)
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
    what: str, figure: float, target: float | None, unit: Unit, interval: Interval | None = None, note: str = ""
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


# --- children ---------------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """What a child took from its start to its end."""

    wall_s: float
    cpu_s: float
    rss_peak_bytes: int


def spend(argv: Sequence[str | Path], folder: Path) -> Spent:
    """Run a command to its end.

    Raises:
        HostError: with the end of what it said, when it fails or hangs.
    """
    log, what = folder / "log", " ".join(map(str, argv[:4]))[:120]
    started = time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(int(LIMIT_S))
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            signal.alarm(0)
            if process.returncode is None:
                process.kill()
                process.wait()
    wall_s = time.monotonic() - started
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-800:]
        raise HostError(f"{what} ended with status {process.returncode}: {tail}", "run that command alone.")
    return Spent(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def export(source: Path, folder: Path) -> Spent:
    """Our own export of a GGUF or a folder to int4; the result is removed."""
    target = folder / "exported"
    spent = spend([sys.executable, "-c", EXPORT, source, target], folder)
    shutil.rmtree(target)
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


def peer_python(place: Path, folder: Path) -> Path:
    """The Python of the peers' environment, which is made when there is none."""
    python = place / "bin" / "python"
    if not python.exists():
        spend([sys.executable, "-m", "venv", place], folder)
        for packages in PEERS:
            say(f"installing {', '.join(packages)}...")
            spend([python, "-m", "pip", "install", "--quiet", *packages], folder)
    return python


def peer_costs(source: Path, place: Path, folder: Path) -> list[Cost]:
    """Time and memory of optimum's export and onnxruntime's quantizer, once."""
    python = peer_python(place, folder)
    start, traced, rounded = folder / "start", folder / "traced", folder / "rounded"
    rounded.mkdir()
    say("making the folder that optimum starts from...")
    spend([python, "-c", PEER_FOLDER, source, start], folder)
    say("optimum-cli...")
    command = [python.with_name("optimum-cli"), "export", "onnx", "--model", start]
    tracing = spend([*command, "--task", "text-generation-with-past", traced], folder)
    say("MatMulNBitsQuantizer...")
    rounding = spend([python, "-c", PEER_QUANTIZE, traced / "model.onnx", rounded / "model.onnx"], folder)
    for used in (start, traced, rounded):
        shutil.rmtree(used)
    note = f"{tracing.wall_s:.1f} s + {rounding.wall_s:.1f} s, one run"
    peak = max(tracing.rss_peak_bytes, rounding.rss_peak_bytes)
    return [
        judge("optimum + quantizer, wall time", tracing.wall_s + rounding.wall_s, None, "s", note=note),
        judge("optimum + quantizer, peak memory", peak, None, "MB", note="the larger of the two"),
    ]


# --- a large checkpoint -----------------------------------------------------------------------------------------------

HIDDEN, KEY, INNER, WORDS = 3072, 1024, 8192, 128_256
"""Llama 3.2 3B: 24 heads of 128, 8 of them for keys and values, 28 layers, tied."""


def large_config(layers: int) -> dict[str, object]:
    """``config.json`` of the large checkpoint."""
    return {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": INNER,
        "vocab_size": WORDS,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }


def large_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Its tensors under Hugging Face's names."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEY, HIDDEN),
        "self_attn.v_proj": (KEY, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for index in range(layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def elements(shape: tuple[int, ...]) -> int:
    """Number of weights."""
    return int(np.prod(shape, dtype=np.int64))


def shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names of the tensors of each file, at most 2 GB in bfloat16."""
    own: list[str] = []
    for name in shapes:
        if own and 2 * sum(elements(shapes[one]) for one in [*own, name]) > SHARD_BYTES:
            yield own
            own = []
        own.append(name)
    yield own


def write_large(folder: Path, layers: int) -> None:
    """Random bfloat16 weights: normal, as wide as those of a trained model."""
    folder.mkdir()
    shapes, random, where = large_shapes(layers), np.random.default_rng(0), {}
    (folder / "config.json").write_text(json.dumps(large_config(layers)))
    for number, names in enumerate(shards(shapes), 1):
        file, header, at = f"model-{number:05}.safetensors", {}, 0
        for name in names:
            end = at + 2 * elements(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for first in range(0, at // 2, CHUNK):
                values = random.standard_normal(min(CHUNK, at // 2 - first), np.float32) * np.float32(0.02)
                out.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def large_costs(layers: int, folder: Path) -> list[Cost]:
    """Memory of exporting the large checkpoint, and the time that it took."""
    sizes = [elements(shape) for shape in large_shapes(layers).values()]
    needed, free = 3 * sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise HostError(
            f"The large checkpoint and its export need {needed / 1e9:.1f} GB; {folder} has {free / 1e9:.1f} GB free.",
            "choose another --folder, or fewer --layers.",
        )
    say(f"writing a checkpoint of {sum(sizes) / 1e9:.2f}e9 parameters...")
    write_large(folder / "large", layers)
    say("exporting it...")
    spent = export(folder / "large", folder)
    shutil.rmtree(folder / "large")
    target = SHARE * 4 * max(sizes) + FIXED_BYTES
    name, note = (
        f"{sum(sizes) / 1e9:.2f}e9 parameters to int4",
        f"largest tensor {4 * max(sizes) / 1e6:.0f} MB in float32",
    )
    return [
        judge(f"{name}, peak memory", spent.rss_peak_bytes, target, "MB", note=note),
        judge(f"{name}, wall time", spent.wall_s, None, "s", note=f"{layers} layers, one run"),
    ]


# --- the whole --------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


SCALE = {"MB": 1e-6, "s": 1.0}


def print_table(costs: Sequence[Cost]) -> None:
    """What, figure, interval, target, verdict."""
    width = max(len(cost.what) for cost in costs)
    print(f"\n{'what':{width}}     figure  {'interval':17}   target  verdict")
    for cost in costs:
        scale = SCALE[cost.unit]
        interval = "-"
        if cost.low is not None and cost.high is not None:
            interval = f"{cost.low * scale:.3g} to {cost.high * scale:.3g}"
        figure = f"{cost.figure * scale:.4g} {cost.unit}"
        target = "-" if cost.target is None else f"{cost.target * scale:.4g} {cost.unit}"
        print(f"{cost.what:{width}}  {figure:>9}  {interval:17} {target:>8}  {cost.verdict:4}  {cost.note}".rstrip())


def measure(options: argparse.Namespace, folder: Path) -> list[Cost]:
    """All parts asked for."""
    source = Path(obtain(MODEL).path)
    say(f"exporting {MODEL} {options.runs} times...")
    costs = model_costs(source, options.runs, folder)
    if options.peers is not None:
        costs += peer_costs(source, options.peers, folder)
    if options.large:
        costs += large_costs(options.layers, folder)
    return costs


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What does exporting to ONNX cost?")
    parser.add_argument("--runs", type=int, default=9, help="exports of the default model that are timed")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="environment of optimum; made there if it is not")
    parser.add_argument("--large", action="store_true", help="export a random checkpoint of 3.2e9 parameters as well")
    parser.add_argument("--layers", type=int, default=28, help="of the large checkpoint")
    parser.add_argument("--folder", type=Path, help="where files are made and removed; the temporary folder by default")
    options = parser.parse_args()
    if min(options.runs, options.layers) < 1:
        parser.error("counts are at least 1")
    return options


def main() -> int:
    """Measure, judge, print; the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the child is then killed as on Ctrl-C
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="edgebench-export-", dir=options.folder) as folder:
        costs = measure(options, Path(folder))
    print_table(costs)
    passed = all(cost.verdict != "MISS" for cost in costs)
    summary = {"question": "cost of exporting", "costs": costs, "nothing_missed": passed}
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
