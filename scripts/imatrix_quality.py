"""Does an importance matrix bring a quantized model nearer to the float one?

The model is made at each precision with and without a matrix. A text that the matrix was not measured on is fed to
llama.cpp, and what is expected after every token is compared with the same model at f32, as `divergence` does it. With
a matrix the divergence must be lower at every precision.

    python scripts/imatrix_quality.py --imatrix book.txt
    python scripts/imatrix_quality.py --imatrix book.txt --model path/to/folder --precisions q4_0,q2_k --tokens 8192

The default text to judge on is this repository's own documents. Exit status: 0 when the target was met, 1 when not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from divergence import Divergence, diverge, read_text, read_windows, runtime_logits
from experiment import HOST, Teller, required, start

from edgebench.derive import Maker, obtain_source, quantizer_version
from edgebench.export.imatrix import read_calibration

LLAMACPP = "llamacpp"


class Row(Divergence, frozen=True, kw_only=True):
    """One file against f32."""

    precision: str
    matrix: bool
    bytes: int


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Does an importance matrix bring a quantized model nearer to float?")
    parser.add_argument("--imatrix", type=Path, required=True, metavar="TEXT", help="the text to measure importance on")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model card, path or hf: reference")
    parser.add_argument("--precisions", default="q4_0,iq4_nl,q3_k_m,q2_k")
    parser.add_argument("--text", type=Path, help="the text to judge on; by default this repository's documents")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=256, help="tokens that see each other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accept-license", action="store_true")
    return parser.parse_args()


def print_row(row: Row) -> None:
    """One line of the table."""
    print(
        f"{row.precision:11} {'yes' if row.matrix else 'no':6} {row.bytes / 1e6:9.1f} {row.kld:14.5f} "
        f"{row.kld_p99:8.4f} {row.top1:6.3f}",
        flush=True,
    )


def main() -> int:
    """Compare and print; the exit status."""
    options = parse_arguments()
    maker = Maker(HOST, quantizer_version(HOST), options.threads, Teller())
    source = obtain_source(options.model, accept_license=options.accept_license, progress=lambda *_: None)
    calibration = read_calibration(options.imatrix)
    whole = required(maker.gguf(source, "f32"), "f32 GGUF")
    windows, _ = read_windows(Path(whole.path), options.text, options.tokens, options.window)
    text = read_text(windows, runtime_logits(LLAMACPP, whole, options.threads, windows))
    print(f"{source.model}, {options.tokens} tokens in windows of {options.window}")
    print("precision   matrix   file MB  KL mean (nat)   KL p99  top-1", flush=True)
    rows = []
    for precision in options.precisions.split(","):
        for given in (None, calibration):
            artifact = required(maker.gguf(source, precision, given), f"{precision} GGUF")
            found = diverge(runtime_logits(LLAMACPP, artifact, options.threads, windows), text)
            row = Row(
                precision=artifact.precision,
                matrix=given is not None,
                bytes=artifact.bytes,
                **msgspec.structs.asdict(found),
            )
            rows.append(row)
            print_row(row)
    shares = {with_.precision: with_.kld / without.kld for without, with_ in zip(rows[::2], rows[1::2], strict=True)}
    for precision, share in shares.items():
        print(f"{precision:11} divergence with / without: {share:.3f}  < 1  {'PASS' if share < 1 else 'MISS'}")
    met = all(share < 1 for share in shares.values())
    summary = {"model": source.model, "text": calibration.sha256, "rows": rows, "met": met}
    print(msgspec.json.encode(summary).decode())
    return 0 if met else 1


if __name__ == "__main__":
    start(main)
