"""How far is each precision of each runtime from the checkpoint in float, and do twins agree?

The reference is the checkpoint exported to fp32 ONNX. After every token of a text (see divergence.py) the next-token
distribution is compared: the Kullback-Leibler divergence KL(reference || row) in nats, the share of tokens whose
likeliest successor is the same, and the ratio of perplexities. (A published file that is itself rounded, as those of
the model cards are, is the checkpoint here: what is judged is what happens to these weights.)

- Twins: `q8_0` and `q4_0` hold the same weights in both runtimes; their divergences differ by at most 5 %.
- `int8` loses at most 0.01 nat.
- `int4-mixed` loses less than ``genai int4``, the graph that onnxruntime-genai's model builder makes by default of the
  same weights, run by genai itself, in a file of at most 1.25 times its size. Without ``--no-rival`` its environment is
  made when it is not there yet (about 1.5 GB, see peer_graphs.py).

``WIDE``: the figure meets its target, and its 95 % interval over the windows does not. The rival is compared window by
window: the figure is the median of the ratios.
A file is what a runtime must have to compute: graph, weights, and rotary tables; tokenizers and edgebench's second
graph, for scores, are not counted.

    python scripts/onnx_quality.py
    python scripts/onnx_quality.py --model gemma-3-270m --tokens 4000 --text book.txt

Exit status: 0 when every target was met, 1 when one was not.
"""

from __future__ import annotations

import argparse
import math
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import gguf_as_hf
import msgspec
import numpy as np
import peer_graphs
from divergence import Divergence, Logits, Windows, diverge, mean_interval, read_text, read_windows, runtime_logits
from experiment import HOST, Teller, Verdict, conclude, judge, machine, print_facts, required, running, say, start

from edgebench.derive import Kind, Maker, obtain_source, quantizer_version
from edgebench.errors import HostError
from edgebench.specs import Artifact
from edgebench.stats import Interval, ratio, ratio_interval

LLAMACPP, ORT, GENAI = "llamacpp", "ort", "genai"
ROWS = (
    (LLAMACPP, "q8_0"),
    (ORT, "q8_0"),
    (LLAMACPP, "q4_0"),
    (ORT, "q4_0"),
    (ORT, "int8"),
    (ORT, "int4"),
    (ORT, "int4-mixed"),
)
RIVAL = (GENAI, "int4")
TWINS_AGREE, INT8_LOSES, RIVAL_SIZE = 0.05, 0.01, 1.25
BESIDE = ("scoring.onnx", "edgebench.json", "genai_config.json")
"""Files of an ONNX folder that no runtime needs in order to compute; nor does it need those of a tokenizer."""


class Row(Divergence, frozen=True, kw_only=True):
    """One artifact on one runtime against the reference."""

    runtime: str
    precision: str
    bytes: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One target, and what was found."""

    what: str
    figure: float
    low: float | None = None
    high: float | None = None
    target: str
    verdict: Verdict


def genai_logits(python: Path, folder: Path, vocabulary: int, threads: int, windows: Windows) -> Logits:
    """Logits after each token by onnxruntime-genai on its own graph, in its own environment.

    Raises:
        HostError: when it fails.
    """
    job = {"folder": str(folder), "threads": threads, "vocabulary": vocabulary}
    # Its sliding caches must hold their whole window, whatever the text needs.
    job["context"] = max(1024, max(map(len, windows)) + 1)
    argv = peer_graphs.peer_argv(python, "score_genai.py", job)
    pipe, variables = subprocess.PIPE, peer_graphs.peer_variables()
    with running(argv, stdin=pipe, stdout=pipe, env=variables) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as asked:
            asked.write(msgspec.json.encode(windows))
        for _ in range(sum(map(len, windows))):
            row = process.stdout.read(4 * vocabulary)
            if len(row) < 4 * vocabulary:
                raise HostError(f"score_genai.py ended early, with status {process.wait()}.", "see above.")
            yield np.frombuffer(row, np.float32)


def verdicts(rows: dict[tuple[str, str], Row]) -> list[Line]:
    """Every target."""
    lines = []
    for name in ("q8_0", "q4_0"):
        one, other = rows[LLAMACPP, name], rows[ORT, name]
        apart = abs(one.kld - other.kld) / max(one.kld, other.kld)
        verdict: Verdict = "PASS" if apart <= TWINS_AGREE else "MISS"
        what = f"{name}: twins' divergences differ by"
        lines.append(Line(what=what, figure=apart, target=f"<= {TWINS_AGREE:.0%}", verdict=verdict))
    int8 = rows[ORT, "int8"]
    lines.append(line("int8 loses (nat)", int8.kld, mean_interval(int8.by_window), INT8_LOSES, "<="))
    if RIVAL in rows:
        rival, mixed = rows[RIVAL], rows[ORT, "int4-mixed"]
        apart_by = ratio_interval(mixed.by_window, rival.by_window)
        share = ratio(mixed.by_window, rival.by_window)
        lines.append(line("int4-mixed / genai int4, divergence", share, apart_by, 1.0, "<"))
        size = mixed.bytes / rival.bytes
        lines.append(line("int4-mixed / genai int4, bytes", size, Interval(size, size, 1.0), RIVAL_SIZE, "<="))
    return lines


def line(what: str, figure: float, interval: Interval | None, high: float, sign: str) -> Line:
    """A figure that has an interval and must not exceed something (``<``: nor reach it)."""
    limit = math.nextafter(high, 0) if sign == "<" else high
    low, top = (interval.low, interval.high) if interval else (None, None)
    verdict = judge(figure, interval, high=limit)
    return Line(what=what, figure=figure, low=low, high=top, target=f"{sign} {high:g}", verdict=verdict)


# --- the whole --------------------------------------------------------------------------------------------------------


def computing_bytes(path: Path) -> int:
    """Size of an artifact without what no runtime needs in order to compute."""
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.iterdir() if file.name not in BESIDE and not file.name.startswith("tokenizer")]
    return sum(file.stat().st_size for file in files)


def print_row(row: Row) -> None:
    """One line of the table."""
    interval = "none" if row.kld_low is None else f"{row.kld_low:.5f}-{row.kld_high:.5f}"
    print(
        f"{row.precision:11} {row.runtime:9} {row.bytes / 1e6:8.1f} {row.kld:14.5f}  {interval:16} {row.kld_p99:8.4f} "
        f"{row.top1:6.3f} {row.ppl_ratio:10.4f}",
        flush=True,
    )


def print_lines(lines: Sequence[Line]) -> None:
    """The targets."""
    for one in lines:
        interval = "" if one.low is None else f"{one.low:.4f}-{one.high:.4f}"
        print(f"{one.what:40} {one.figure:8.4f}  {interval:15} {one.target:8} {one.verdict}")


def participants(
    options: argparse.Namespace, maker: Maker, source: Artifact, vocabulary: int
) -> Iterator[tuple[str, str, Path, partial[Logits]]]:
    """Runtime, precision, file, and what gives logits for windows."""
    for runtime, precision in ROWS:
        made = maker.gguf(source, precision) if runtime == LLAMACPP else maker.onnx(source, precision, Kind())
        artifact = required(made, f"{precision} for {runtime}")
        yield runtime, precision, Path(artifact.path), partial(runtime_logits, runtime, artifact, options.threads)
    if not options.no_rival:
        python, versions = peer_graphs.environment(GENAI)
        say(f"the rival: {versions}")
        place = peer_graphs.place_of(source)
        folder = peer_graphs.genai_graph(python, gguf_as_hf.make_folder(source, place), place, [])
        yield *RIVAL, folder, partial(genai_logits, python, folder, vocabulary, options.threads)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="How far is each precision from the checkpoint in float?")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model card, or a GGUF file")
    parser.add_argument("--text", type=Path, help="a text; by default this repository's documents")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=256, help="tokens that see each other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-rival", action="store_true", help="without onnxruntime-genai")
    parser.add_argument("--accept-license", action="store_true", help="accept the model's terms")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the divergence of each window there")
    options = parser.parse_args()
    if min(options.tokens, options.window - 1, options.threads) < 1:
        parser.error("--tokens and --threads are at least 1, --window at least 2")
    return options


def main() -> int:
    """Compare and print; the exit status."""
    options = parse_arguments()
    facts = machine()
    print_facts(facts)
    maker = Maker(HOST, quantizer_version(HOST), options.threads, Teller())
    source = obtain_source(options.model, accept_license=options.accept_license, progress=lambda *_: None)
    windows, words = read_windows(Path(source.path), options.text, options.tokens, options.window)
    say("reference")
    reference = runtime_logits(
        ORT, required(maker.onnx(source, "fp32", Kind()), "fp32 for ort"), options.threads, windows
    )
    text = read_text(windows, reference)
    rows: dict[tuple[str, str], Row] = {}
    print(f"{source.model}, {options.tokens} tokens in windows of {options.window}")
    print("precision   runtime    file MB  KL mean (nat)  95 % interval      KL p99  top-1  ppl ratio")
    for runtime, precision, path, logits in participants(options, maker, source, words):
        found = msgspec.structs.asdict(diverge(logits(windows), text))
        row = rows[runtime, precision] = Row(runtime=runtime, precision=precision, bytes=computing_bytes(path), **found)
        print_row(row)
    lines = verdicts(rows)
    print_lines(lines)
    met = all(one.verdict != "MISS" for one in lines)
    told = [msgspec.structs.replace(row, by_window=()) for row in rows.values()]
    summary = {"question": "distance from float", "facts": facts, "model": source.model, "rows": told}
    samples = {"rows": list(rows.values())}
    return conclude(summary | {"lines": lines, "nothing_missed": met}, samples, options.json, met=met)


if __name__ == "__main__":
    start(main)
