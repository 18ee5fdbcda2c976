"""One process of `scripts/onnx_peers.py`: ``ORTModelForCausalLM`` of optimum-onnx on its own export.

Runs in optimum's virtual environment, without edgebench. Reads one JSON job from the command line: with ``export`` it
makes the graph, else it times and prints one JSON line with rates in tokens/s, one for each repetition.

A decode of n tokens is ``generate`` from a prompt of one token: n forward passes, as in llama-bench's ``tg``. A prefill
is ``generate`` of one token.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM

WARM_TOKENS = 4


def export(job: dict[str, Any]) -> None:
    """The reference export at fp32, with past keys and values as inputs."""
    model = ORTModelForCausalLM.from_pretrained(job["export"], export=True, use_cache=True)
    check_rotation(Path(job["export"]), model)
    model.save_pretrained(job["folder"])


def check_rotation(folder: Path, model: Any) -> None:
    """A folder that transformers 4 does not understand is silently rotated with a base of 10000."""
    wanted = json.loads((folder / "config.json").read_text())["rope_theta"]
    if model.config.rope_theta != wanted:
        raise RuntimeError(f"the export rotates with a base of {model.config.rope_theta}, not {wanted}")


def load(job: dict[str, Any]) -> Any:
    """The model, with this many threads."""
    torch.set_num_threads(job["threads"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    model = ORTModelForCausalLM.from_pretrained(job["folder"], session_options=options, use_cache=True)
    model.generation_config.eos_token_id = None  # nothing stops it early
    return model


def generate(model: Any, tokens: Sequence[int], n: int) -> float:
    """Seconds for ``n`` tokens after a prompt, greedily."""
    ids = torch.tensor([list(tokens)])
    mask = torch.ones_like(ids)
    start = time.perf_counter()
    found = model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False, num_beams=1, pad_token_id=0)
    seconds = time.perf_counter() - start
    if found.shape[1] != len(tokens) + n:
        raise RuntimeError(f"generate made {found.shape[1] - len(tokens)} of {n} tokens")
    return seconds


def main() -> None:
    """Export; or load, check, time, say."""
    job = json.loads(sys.argv[1])
    if "export" in job:
        export(job)
        return
    model = load(job)
    prompt, steps = job["prompt"], job["steps"]
    ids = torch.tensor([job["check"]])
    logits = model(ids, attention_mask=torch.ones_like(ids)).logits
    np.asarray(logits, np.float32)[0, -1].tofile(job["logits_to"])
    generate(model, prompt, 1)
    pp = [len(prompt) / generate(model, prompt, 1) for _ in range(job["repetitions"])]
    generate(model, prompt[:1], WARM_TOKENS)
    tg = [steps / generate(model, prompt[:1], steps) for _ in range(job["repetitions"])]
    print(json.dumps({"pp512": pp, "tg128": tg}))


if __name__ == "__main__":
    main()
