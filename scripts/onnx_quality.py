"""How far is each precision of each runtime from the checkpoint in float, and do twins agree?

The reference is the checkpoint exported to fp32 ONNX. A text is cut into windows, each of which begins with the
begin-of-sequence token if the model wants one; every token of a window is fed one by one, as in decoding, and the
next-token distribution is compared: the Kullback-Leibler divergence KL(reference || row) in nats, the share of tokens
whose likeliest successor is the same, and the ratio of perplexities. One protocol for every row, so that kernels that
round differently in prefill and decode do not blur the comparison. (A published file that is itself rounded, as those
of the model cards are, is the checkpoint here: what is judged is what happens to these weights.)

- Twins: `q8_0` and `q4_0` hold the same weights in both runtimes; their divergences differ by at most 5 %.
- `int8` loses at most 0.01 nat.
- `int4-mixed` loses less than ``genai int4``, the graph that onnxruntime-genai's model builder makes by default of the
  same weights, run by genai itself, in a file of at most 1.25 times its size. Without ``--no-rival`` its environment is
  made when it is not there yet (about 1.5 GB, see peer_graphs.py).

The 95 % interval of a mean is Student's, over the means of the windows; targets are judged by the mean, and ``WIDE``
says that the interval does not agree. The rival is compared window by window: the interval is that of the median ratio.
A file is what a runtime must have to compute: graph, weights, and rotary tables; tokenizers and edgebench's second
graph, for scores, are not counted.

The default text is this repository's own documents, so that nothing need be downloaded.

    python scripts/onnx_quality.py
    python scripts/onnx_quality.py --model gemma-3-270m --tokens 4000 --text book.txt

Exit status: 0 when every target was met, 1 when one was not.
"""

from __future__ import annotations

import argparse
import math
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gguf_as_hf
import msgspec
import numpy as np
import numpy.typing as npt
import peer_graphs
from experiment import HOST, Teller, Verdict, conclude, judge, machine, print_facts, required, running, say, start

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.derive import Maker, obtain_source, quantizer_version
from edgebench.errors import HostError, UsageError
from edgebench.registry import load
from edgebench.specs import Artifact, Settings, TrialSpec
from edgebench.stats import Interval, ratio, ratio_interval

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
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

Logits = Iterable[npt.NDArray[np.float32]]
Windows = list[list[int]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact on one runtime against the reference."""

    runtime: str
    precision: str
    bytes: int
    kld: float
    kld_low: float | None
    kld_high: float | None
    kld_p99: float
    top1: float
    ppl_ratio: float
    by_window: tuple[float, ...]
    """Mean divergence of each window."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One target, and what was found."""

    what: str
    figure: float
    low: float | None = None
    high: float | None = None
    target: str
    verdict: Verdict


class Text(NamedTuple):
    """What all read, and what the reference expects after each token (natural logarithms of probabilities)."""

    windows: Windows
    reference: list[npt.NDArray[np.float32]]


# --- who computes -----------------------------------------------------------------------------------------------------


def edgebench_logits(runtime: str, artifact: Artifact, threads: int, windows: Windows) -> Logits:
    """Logits after each token of each window, [vocabulary] each, by one of edgebench's runtimes."""
    engine = load("runtimes", runtime).RUNTIME
    settings = Settings(threads=threads, threads_batch=threads, kv_type="f32")
    trial = TrialSpec(artifact=artifact, runtime=runtime, settings=settings, workloads=())
    with closing(engine.open(trial, lambda _text: None)) as model:
        size = -(-max(len(window) for window in windows) // 256) * 256
        with closing(model.context(size, settings)) as context:
            for window in windows:
                context.clear()
                for token in window:
                    context.prefill([token])
                    yield context.logits()


def genai_logits(python: Path, folder: Path, vocabulary: int, threads: int, windows: Windows) -> Logits:
    """The same by onnxruntime-genai on its own graph, in its own environment.

    Raises:
        HostError: when it fails.
    """
    job = {"folder": str(folder), "threads": threads, "vocabulary": vocabulary, "windows": windows}
    # Its sliding caches must hold their whole window, whatever the text needs.
    job["context"] = max(1024, max(map(len, windows)) + 1)
    argv = peer_graphs.peer_argv(python, "score_genai.py", job)
    with running(argv, stdout=subprocess.PIPE, env=peer_graphs.peer_variables()) as process:
        assert process.stdout is not None
        for _ in range(sum(map(len, windows))):
            row = process.stdout.read(4 * vocabulary)
            if len(row) < 4 * vocabulary:
                raise HostError(f"score_genai.py ended early, with status {process.wait()}.", "see above.")
            yield np.frombuffer(row, np.float32)


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each token, natural logarithm."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(runtime: str, precision: str, size: int, logits: Logits, text: Text) -> Row:
    """One row of the table."""
    divergences: list[float] = []
    same, surprise, scored = 0, 0.0, 0
    following = [token for window in text.windows for token in [*window[1:], -1]]
    for wanted, row, token in zip(text.reference, logits, following, strict=True):
        found = log_probabilities(row)
        divergences.append(float((np.exp(wanted.astype(np.float64)) * (wanted - found)).sum()))
        same += int(wanted.argmax() == found.argmax())
        if token >= 0:
            surprise += float(wanted[token]) - float(found[token])
            scored += 1
    ends = np.cumsum([len(window) for window in text.windows])[:-1]
    by_window = [float(part.mean()) for part in np.split(np.array(divergences), ends)]
    interval = mean_interval(by_window)
    return Row(
        runtime=runtime,
        precision=precision,
        bytes=size,
        kld=float(np.mean(divergences)),
        kld_low=interval.low if interval else None,
        kld_high=interval.high if interval else None,
        kld_p99=float(np.quantile(divergences, 0.99)),
        top1=same / len(divergences),
        ppl_ratio=math.exp(surprise / scored),
        by_window=tuple(by_window),
    )


# Student's 97.5 % quantiles for 1, 2... degrees of freedom; beyond the last, that of the normal distribution and 5 %.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of independent values; None for one."""
    free = len(values) - 1
    if free < 1:
        return None
    quantile = STUDENT[free - 1] if free <= len(STUDENT) else 1.96 * 1.05
    half, middle = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values)), float(np.mean(values))
    return Interval(middle - half, middle + half, 0.95)


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


def cut(text: str, vocabulary: Vocabulary, tokens: int, window: int, first: int | None) -> Windows:
    """The first ``tokens`` tokens of a text, in windows that begin with the token ``first``, if there is one.

    Raises:
        UsageError: when the text is too short.
    """
    ids = vocabulary.tokenize(text, add_special=False)
    if len(ids) < tokens:
        raise UsageError(f"The text has {len(ids)} tokens; {tokens} are wanted.", "give a longer --text.")
    start_with = [] if first is None else [first]
    return [[*start_with, *ids[at : min(at + window, tokens)]] for at in range(0, tokens, window)]


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
        made = maker.gguf(source, precision) if runtime == LLAMACPP else maker.onnx(source, precision)
        artifact = required(made, f"{precision} for {runtime}")
        yield runtime, precision, Path(artifact.path), partial(edgebench_logits, runtime, artifact, options.threads)
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
    content = options.text.read_text() if options.text else "\n\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    with closing(GGUFWeights(Path(source.path))) as checkpoint:
        first = checkpoint.first_token
    with closing(Vocabulary(Path(source.path))) as vocabulary:
        windows, words = cut(content, vocabulary, options.tokens, options.window, first), vocabulary.size
    say("reference")
    reference = edgebench_logits(ORT, required(maker.onnx(source, "fp32"), "fp32 for ort"), options.threads, windows)
    text = Text(windows, [log_probabilities(row).astype(np.float32) for row in reference])
    rows: dict[tuple[str, str], Row] = {}
    print(f"{source.model}, {options.tokens} tokens in windows of {options.window}")
    print("precision   runtime    file MB  KL mean (nat)  95 % interval      KL p99  top-1  ppl ratio")
    for runtime, precision, path, logits in participants(options, maker, source, words):
        row = rows[runtime, precision] = compare(runtime, precision, computing_bytes(path), logits(windows), text)
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
