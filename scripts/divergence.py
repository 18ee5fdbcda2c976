"""How far one model's next-token distributions are from another's, over the tokens of a text.

A text is cut into windows, each of which begins with the begin-of-sequence token if the model wants one; every token of
a window is fed one by one, as in decoding. One protocol for all, so that kernels that round differently in prefill and
decode do not blur the comparison. The 95 % interval of a mean is Student's, over the means of the windows.

The default text is this repository's own documents, so that nothing need be downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.errors import UsageError
from edgebench.registry import load
from edgebench.specs import Artifact, Settings, TrialSpec
from edgebench.stats import Interval

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
Logits = Iterable[npt.NDArray[np.float32]]
Windows = list[list[int]]


class Text(NamedTuple):
    """What all read, and what the reference expects after each token (natural logarithms of probabilities)."""

    windows: Windows
    reference: list[npt.NDArray[np.float32]]


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """Kullback-Leibler divergence KL(reference || somebody) of what both expect after each token, in nats, and more."""

    kld: float
    kld_low: float | None
    kld_high: float | None
    kld_p99: float
    top1: float
    ppl_ratio: float
    by_window: tuple[float, ...]
    """Mean divergence of each window."""


def read_windows(source: Path, file: Path | None, tokens: int, window: int) -> tuple[Windows, int]:
    """The first ``tokens`` tokens of a text, in windows, and the size of the vocabulary.

    Args:
        source: the GGUF whose vocabulary it is, and that says whether a window begins with a special token.
        file: the text; None for this repository's documents.
        tokens: how many, special ones not counted.
        window: tokens that see each other.

    Raises:
        UsageError: when the text is too short.
    """
    text = file.read_text() if file else "\n\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    with closing(GGUFWeights(source)) as checkpoint:
        first = checkpoint.first_token
    with closing(Vocabulary(source)) as vocabulary:
        ids, size = vocabulary.tokenize(text, add_special=False), vocabulary.size
    if len(ids) < tokens:
        raise UsageError(f"The text has {len(ids)} tokens; {tokens} are wanted.", "give a longer --text.")
    start_with = [] if first is None else [first]
    return [[*start_with, *ids[at : min(at + window, tokens)]] for at in range(0, tokens, window)], size


def runtime_logits(runtime: str, artifact: Artifact, threads: int, windows: Windows) -> Logits:
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


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each token, natural logarithm."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found


def read_text(windows: Windows, logits: Logits) -> Text:
    """The windows with what the reference expects in them."""
    return Text(windows, [log_probabilities(row).astype(np.float32) for row in logits])


def diverge(logits: Logits, text: Text) -> Divergence:
    """How far somebody is from the reference."""
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
    return Divergence(
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
