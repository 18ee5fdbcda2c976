"""How far is each precision of each runtime from the checkpoint in float, and do twins agree?

The reference is the checkpoint exported to fp32 ONNX. A text is cut into windows; every token of a window is fed one
by one, as in decoding, and the next-token distribution is compared: the Kullback-Leibler divergence KL(reference ||
row) in nats, the share of tokens whose likeliest successor is the same, and the ratio of perplexities. One protocol for
every row, so that kernels that round differently in prefill and decode do not blur the comparison.

- Twins: `q8_0` and `q4_0` hold the same weights in both runtimes; their divergences may differ by 5 %.
- `int8` loses at most 0.01 nat.
- `int4-mixed` loses less than the rival's 4-bit graph (`--rival FOLDER`, made for example by onnxruntime-genai's
  builder, see onnx_peers.py) in a file of at most 1.25 times its size.

The default text is this repository's own documents, so that nothing need be downloaded.

    python scripts/onnx_quality.py
    python scripts/onnx_quality.py --model gemma-3-270m --tokens 4000 --text book.txt

Exit status: 0 when every target was met, 1 when one was not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.artifacts.cache import size_of
from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.derive import Kind, Maker, obtain_source, quantizer_version
from edgebench.errors import ArtifactError, EdgebenchError, UsageError
from edgebench.host import Host
from edgebench.records import Failure
from edgebench.registry import load
from edgebench.specs import Artifact, Settings, TrialSpec

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
ROWS = (
    ("llamacpp", "q8_0"),
    ("ort", "q8_0"),
    ("llamacpp", "q4_0"),
    ("ort", "q4_0"),
    ("ort", "int8"),
    ("ort", "int4"),
    ("ort", "int4-mixed"),
)
TWINS_AGREE, INT8_LOSES, RIVAL_SIZE = 0.05, 0.01, 1.25


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact on one runtime against the reference."""

    runtime: str
    precision: str
    bytes: int
    kld: float
    kld_p99: float
    top1: float
    ppl_ratio: float


class Teller:
    """Tells of preparation on standard error."""

    def step(self, text: str) -> None:
        """A step that takes a moment."""
        print(text, file=sys.stderr, flush=True)

    def share(self, what: str, done: int, total: int) -> None:
        """How far it is: not told."""


def distributions(
    runtime: str, artifact: Artifact, windows: list[list[int]], threads: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Log-probabilities of the next token after each token of each window, [vocabulary] each."""
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
                    logits = context.logits().astype(np.float64)
                    logits -= logits.max()
                    yield (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def compare(
    runtime: str,
    precision: str,
    artifact: Artifact,
    windows: list[list[int]],
    reference: list[npt.NDArray[np.float32]],
    threads: int,
) -> Row:
    """One row of the table."""
    divergences, same, surprise = [], 0, 0.0
    following = [token for window in windows for token in [*window[1:], -1]]
    rows = distributions(runtime, artifact, windows, threads)
    for wanted, found, token in zip(reference, rows, following, strict=True):
        p = np.exp(wanted.astype(np.float64))
        divergences.append(float((p * (wanted.astype(np.float64) - found)).sum()))
        same += int(wanted.argmax() == found.argmax())
        if token >= 0:
            surprise += float(wanted[token]) - float(found[token])
    scored = sum(1 for token in following if token >= 0)
    return Row(
        runtime=runtime,
        precision=precision,
        bytes=size_of(Path(artifact.path)),
        kld=float(np.mean(divergences)),
        kld_p99=float(np.quantile(divergences, 0.99)),
        top1=same / len(divergences),
        ppl_ratio=float(np.exp(surprise / scored)),
    )


def cut(text: str, vocabulary: Vocabulary, tokens: int, window: int) -> list[list[int]]:
    """The first ``tokens`` tokens of a text, in windows.

    Raises:
        UsageError: when the text is too short.
    """
    ids = vocabulary.tokenize(text)
    if len(ids) < tokens:
        raise UsageError(f"The text has {len(ids)} tokens; {tokens} are wanted.", "give a longer --text.")
    return [ids[first : first + window] for first in range(0, tokens, window)]


def verdicts(rows: dict[tuple[str, str], Row]) -> list[tuple[str, float, str, bool]]:
    """(what, figure, target, met)."""
    found = []
    for name in ("q8_0", "q4_0"):
        one, other = rows["llamacpp", name].kld, rows["ort", name].kld
        apart = abs(one - other) / max(one, other)
        found.append((f"{name}: twins' divergences differ by", apart, f"<= {TWINS_AGREE:.0%}", apart <= TWINS_AGREE))
    int8 = rows["ort", "int8"].kld
    found.append(("int8 loses (nat)", int8, f"<= {INT8_LOSES}", int8 <= INT8_LOSES))
    rival = rows.get(("ort", "rival"))
    if rival is not None:
        mixed = rows["ort", "int4-mixed"]
        share, size = mixed.kld / rival.kld, mixed.bytes / rival.bytes
        found.append(("int4-mixed / rival, divergence", share, "< 1", share < 1))
        found.append(("int4-mixed / rival, bytes", size, f"<= {RIVAL_SIZE}", size <= RIVAL_SIZE))
    return found


def made(maker: Maker, source: Artifact, runtime: str, precision: str) -> Artifact:
    """The artifact of a row.

    Raises:
        ArtifactError: when it cannot be made.
    """
    result = maker.gguf(source, precision) if runtime == "llamacpp" else maker.onnx(source, precision, Kind())
    if isinstance(result, Failure):
        raise ArtifactError(f"{precision} for {runtime} cannot be made: {result.says}.", result.next_step)
    return result


def main() -> int:
    """Compare and print; the exit status."""
    parser = argparse.ArgumentParser(description="How far is each precision from the checkpoint in float?")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model card, path or hf: reference")
    parser.add_argument("--text", type=Path, help="a text; by default this repository's documents")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=256, help="tokens that see each other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rival", type=Path, metavar="FOLDER", help="a 4-bit ONNX folder of another exporter")
    parser.add_argument("--accept-license", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    host = Host()
    maker = Maker(host, quantizer_version(host), options.threads, Teller())
    source = obtain_source(options.model, accept_license=options.accept_license, progress=lambda *_: None)
    text = options.text.read_text() if options.text else "\n\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    with closing(Vocabulary(Path(source.path))) as vocabulary:
        windows = cut(text, vocabulary, options.tokens, options.window)
    Teller().step("reference")
    reference = list(distributions("ort", made(maker, source, "ort", "fp32"), windows, options.threads))
    wanted = [(runtime, precision, made(maker, source, runtime, precision)) for runtime, precision in ROWS]
    if options.rival is not None:
        rival = Artifact(
            model=source.model, precision="rival", format="onnx", path=str(options.rival), bytes=1, sha256="0" * 64
        )
        wanted.append(("ort", "rival", rival))
    rows: dict[tuple[str, str], Row] = {}
    print(f"{source.model}, {options.tokens} tokens in windows of {options.window}")
    print("precision   runtime    file MB  KL mean (nat)   KL p99  top-1  ppl ratio")
    for runtime, precision, artifact in wanted:
        row = rows[runtime, precision] = compare(runtime, precision, artifact, windows, reference, options.threads)
        print(
            f"{precision:11} {runtime:9} {row.bytes / 1e6:8.1f} {row.kld:14.5f} {row.kld_p99:8.4f} {row.top1:6.3f} "
            f"{row.ppl_ratio:10.4f}",
            flush=True,
        )
    judged = verdicts(rows)
    for what, figure, target, met in judged:
        print(f"{what:45} {figure:8.4f}  {target:8} {'PASS' if met else 'MISS'}")
    passed = all(met for *_, met in judged)
    summary = {"question": "distance from float", "model": source.model, "rows": list(rows.values()), "met": passed}
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode(summary))
    print(msgspec.json.encode(summary).decode())
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
