"""One process of `scripts/onnx_peers.py`: what Python costs between two decode steps of edgebench's own runner.

Reads one JSON job from the command line and prints one JSON line.

- ``between_us``: wall time of a decode loop less the time inside onnxruntime's ``run_with_iobinding``, the median
  over its steps, one for each repetition. The watch itself (a call and two readings of the clock) counts as ours.
- ``tg128``: tokens/s of a loop that also chooses each token greedily from the logits, as a generation does.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edgebench.registry import load
from edgebench.specs import TrialSpec

WARM_TOKENS = 4


class Watch:
    """Stands in for a session's ``run_with_iobinding`` and notes how long each call takes, in ns."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run
        self.inside_ns: list[int] = []

    def __call__(self, *arguments: Any) -> None:
        """As the session's own method."""
        start = time.monotonic_ns()
        self._run(*arguments)
        self.inside_ns.append(time.monotonic_ns() - start)


def between_steps_us(context: Any, tokens: list[int]) -> float:
    """Median time of a step outside of onnxruntime."""
    context.clear()
    context.time_decode(tokens[:WARM_TOKENS])
    context.clear()
    session = context._session  # noqa: SLF001 - the line between the runner and onnxruntime lies inside the runner
    watch = Watch(session.run_with_iobinding)
    session.run_with_iobinding = watch
    try:
        _, _, steps = context.time_decode(tokens)
    finally:
        del session.run_with_iobinding
    if len(watch.inside_ns) != len(steps):
        raise RuntimeError(f"{len(steps)} steps made {len(watch.inside_ns)} calls: the watch stands at the wrong place")
    return statistics.median(step - inside for step, inside in zip(steps, watch.inside_ns, strict=True)) / 1000


def decode_greedily(context: Any, first: int, n: int) -> float:
    """Seconds for ``n`` tokens, each chosen from the logits of the one before."""
    context.clear()
    token = first
    start = time.perf_counter()
    for _ in range(n):
        context.prefill([token])
        token = int(context.logits().argmax())
    return time.perf_counter() - start


def main() -> None:
    """Load, check, time, say."""
    job = json.loads(sys.argv[1])
    trial = msgspec.convert(job["trial"], TrialSpec)
    model = load("runtimes", trial.runtime).RUNTIME.open(trial, lambda _text: None)
    context = model.context(job["steps_context"], trial.settings)
    context.prefill(job["check"])
    context.logits().tofile(job["logits_to"])
    prompt, steps = job["prompt"], job["steps"]
    decode_greedily(context, prompt[0], WARM_TOKENS)
    tg = [steps / decode_greedily(context, prompt[0], steps) for _ in range(job["repetitions"])]
    between = [between_steps_us(context, prompt[:steps]) for _ in range(job["repetitions"])]
    print(json.dumps({"tg128": tg, "between_us": between}))


if __name__ == "__main__":
    main()
