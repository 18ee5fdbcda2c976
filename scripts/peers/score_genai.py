"""One process of `scripts/onnx_quality.py`: onnxruntime-genai says what it expects after every token of a text.

Runs in genai's virtual environment, without edgebench. Reads one JSON job from the command line and the token ids of
all windows, JSON too, from standard input; writes the logits [vocabulary] after each token, as float32, to standard
output. Tokens are given one by one, as in decoding.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
from run_genai import generator, load


def main() -> None:
    """Load and say."""
    job, windows = json.loads(sys.argv[1]), json.load(sys.stdin)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print is no logit
        loop = generator(load(job), job["context"])
        for window in windows:
            loop.rewind_to(0)
            for token in window:
                loop.append_tokens(np.asarray([[token]], np.int32))
                logits = np.asarray(loop.get_logits(), np.float32).reshape(-1)[-job["vocabulary"] :]
                out.write(logits.tobytes())


if __name__ == "__main__":
    main()
