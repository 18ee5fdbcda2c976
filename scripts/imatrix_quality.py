"""Does an importance matrix bring a quantized model nearer to the float one?

The model is made at each precision with and without a matrix. A text that the matrix was not measured on is cut into
windows and fed to llama.cpp; the next-token distribution after every token is compared with that of the same model at
f32: the Kullback-Leibler divergence KL(f32 || row) in nats, and the share of tokens whose likeliest successor is the
same. With a matrix the divergence must be lower at every precision.

    python scripts/imatrix_quality.py --imatrix book.txt
    python scripts/imatrix_quality.py --imatrix book.txt --model path/to/folder --precisions q4_0,q2_k --tokens 8192

The default text to judge on is this repository's own documents. Exit status: 0 when the target was met, 1 when not.
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

from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.derive import Maker, obtain_source, quantizer_version
from edgebench.errors import ArtifactError, EdgebenchError, UsageError
from edgebench.export.imatrix import read_calibration
from edgebench.host import Host
from edgebench.records import Failure
from edgebench.registry import load
from edgebench.specs import Artifact, Calibration, Settings, TrialSpec

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One file against f32."""

    precision: str
    matrix: bool
    bytes: int
    kld: float
    kld_p99: float
    top1: float


class Teller:
    """Tells of preparation on standard error."""

    def step(self, text: str) -> None:
        """A step that takes a moment."""
        print(text, file=sys.stderr, flush=True)

    def share(self, what: str, done: int, total: int) -> None:
        """How far it is: not told."""


def distributions(
    artifact: Artifact, windows: list[list[int]], settings: Settings
) -> Iterator[npt.NDArray[np.float32]]:
    """Log-probabilities of the next token after each token of each window, [vocabulary] each."""
    trial = TrialSpec(artifact=artifact, runtime="llamacpp", settings=settings, workloads=())
    with closing(load("runtimes", "llamacpp").RUNTIME.open(trial, lambda _text: None)) as model:
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
    artifact: Artifact,
    windows: list[list[int]],
    reference: list[npt.NDArray[np.float32]],
    settings: Settings,
    *,
    matrix: bool,
) -> Row:
    """One row of the table."""
    divergences, same = [], 0
    for wanted, found in zip(reference, distributions(artifact, windows, settings), strict=True):
        exact = wanted.astype(np.float64)
        divergences.append(float((np.exp(exact) * (exact - found)).sum()))
        same += int(wanted.argmax() == found.argmax())
    return Row(
        precision=artifact.precision,
        matrix=matrix,
        bytes=artifact.bytes,
        kld=float(np.mean(divergences)),
        kld_p99=float(np.quantile(divergences, 0.99)),
        top1=same / len(divergences),
    )


def made(maker: Maker, source: Artifact, precision: str, calibration: Calibration | None) -> Artifact:
    """The GGUF of a row.

    Raises:
        ArtifactError: when it cannot be made.
    """
    result = maker.gguf(source, precision, calibration)
    if isinstance(result, Failure):
        raise ArtifactError(f"{precision} cannot be made: {result.says}.", result.next_step)
    return result


def cut(text: str, path: str, tokens: int, window: int) -> list[list[int]]:
    """The first ``tokens`` tokens of a text, in windows.

    Raises:
        UsageError: when the text is too short.
    """
    with closing(Vocabulary(Path(path))) as vocabulary:
        ids = vocabulary.tokenize(text)
    if len(ids) < tokens:
        raise UsageError(f"The text has {len(ids)} tokens; {tokens} are wanted.", "give a longer --text.")
    return [ids[first : first + window] for first in range(0, tokens, window)]


def main() -> int:
    """Compare and print; the exit status."""
    parser = argparse.ArgumentParser(description="Does an importance matrix bring a quantized model nearer to float?")
    parser.add_argument("--imatrix", type=Path, required=True, metavar="TEXT", help="the text to measure importance on")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model card, path or hf: reference")
    parser.add_argument("--precisions", default="q4_0,iq4_nl,q3_k_m,q2_k")
    parser.add_argument("--text", type=Path, help="the text to judge on; by default this repository's documents")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=256, help="tokens that see each other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accept-license", action="store_true")
    options = parser.parse_args()
    host = Host()
    maker = Maker(host, quantizer_version(host), options.threads, Teller())
    source = obtain_source(options.model, accept_license=options.accept_license, progress=lambda *_: None)
    calibration = read_calibration(options.imatrix)
    settings = Settings(threads=options.threads, threads_batch=options.threads, kv_type="f32")
    whole = made(maker, source, "f32", None)
    text = options.text.read_text() if options.text else "\n\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    windows = cut(text, whole.path, options.tokens, options.window)
    reference = list(distributions(whole, windows, settings))
    rows = []
    print(f"{source.model}, {options.tokens} tokens in windows of {options.window}")
    print("precision   matrix   file MB  KL mean (nat)   KL p99  top-1", flush=True)
    for precision in options.precisions.split(","):
        for given in (None, calibration):
            artifact = made(maker, source, precision, given)
            row = compare(artifact, windows, reference, settings, matrix=given is not None)
            rows.append(row)
            print(
                f"{precision:11} {'yes' if row.matrix else 'no':6} {row.bytes / 1e6:9.1f} {row.kld:14.5f} "
                f"{row.kld_p99:8.4f} {row.top1:6.3f}",
                flush=True,
            )
    shares = {with_.precision: with_.kld / without.kld for without, with_ in zip(rows[::2], rows[1::2], strict=True)}
    for precision, share in shares.items():
        print(f"{precision:11} divergence with / without: {share:.3f}  < 1  {'PASS' if share < 1 else 'MISS'}")
    met = all(share < 1 for share in shares.values())
    summary = {"model": source.model, "text": calibration.sha256, "rows": rows, "met": met}
    print(msgspec.json.encode(summary).decode())
    return 0 if met else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
