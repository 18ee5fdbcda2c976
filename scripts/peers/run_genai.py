"""One process of `scripts/onnx_peers.py`: onnxruntime-genai times its own Generator loop on its own graph.

Runs in genai's virtual environment, without edgebench. Reads one JSON job from the command line and prints one JSON
line: rates in tokens/s, one for each repetition.

Its loop is that of its own examples: ``is_done``, ``generate_next_token``, ``get_next_tokens``. A decode of n tokens
starts on an empty cache with one token, so it costs n forward passes, as in llama-bench's ``tg``: the first inside
``append_tokens``. The timed prefill is ``append_tokens`` alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai as og

WARM_TOKENS = 4


def load(job: dict[str, Any]) -> Any:
    """The model, with this many threads and without telemetry."""
    if hasattr(og, "disable_telemetry_events"):
        og.disable_telemetry_events()
    config = og.Config(job["folder"])
    threads = {"intra_op_num_threads": job["threads"], "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    return og.Model(config)


def generator(model: Any, context: int) -> Any:
    """A greedy Generator that no end-of-sequence token stops; its shared KV buffer holds ``context`` tokens."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=context, min_length=context, do_sample=False, batch_size=1)
    return og.Generator(model, params)


def prefill(loop: Any, tokens: Sequence[int]) -> float:
    """Seconds for a prompt on an empty cache."""
    loop.rewind_to(0)
    start = time.perf_counter()
    loop.append_tokens(np.asarray([tokens], np.int32))
    return time.perf_counter() - start


def decode(loop: Any, first: int, n: int) -> float:
    """Seconds for ``n`` tokens, greedily, on an empty cache."""
    loop.rewind_to(0)
    made = 0
    start = time.perf_counter()
    loop.append_tokens(np.asarray([[first]], np.int32))
    while made < n and not loop.is_done():
        loop.generate_next_token()
        loop.get_next_tokens()[0]
        made += 1
    seconds = time.perf_counter() - start
    if made < n:
        raise RuntimeError(f"the Generator stopped after {made} of {n} tokens")
    return seconds


def main() -> None:
    """Load, check, time, say."""
    job = json.loads(sys.argv[1])
    model = load(job)
    prompt, steps = job["prompt"], job["steps"]
    long, short = generator(model, job["prompt_context"]), generator(model, job["steps_context"])
    long.append_tokens(np.asarray([job["check"]], np.int32))
    np.asarray(long.get_logits(), np.float32).reshape(-1)[-job["vocabulary"] :].tofile(job["logits_to"])
    prefill(long, prompt)
    pp = [len(prompt) / prefill(long, prompt) for _ in range(job["repetitions"])]
    decode(short, prompt[0], WARM_TOKENS)
    tg = [steps / decode(short, prompt[0], steps) for _ in range(job["repetitions"])]
    print(json.dumps({"pp512": pp, "tg128": tg}))


if __name__ == "__main__":
    main()
