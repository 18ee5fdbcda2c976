"""Make a GGUF of another precision with ``llama_model_quantize``. Runs in a child process only.

K- and IQ-types need row lengths divisible by 256; llama.cpp silently stores other tensors at another type and says
"required fallback quantization" in its log. That is passed on, because it changes the real bits per weight.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable

from edgebench.errors import ArtifactError

# enum llama_ftype of llama.h: numbers are part of the GGUF format and never reused.
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "bf16": 32,
}
_FALLBACK = re.compile(r"[0-9]+ of [0-9]+ tensor\(s\) required fallback quantization")
_ERROR_LEVEL = 4
_Q8_0 = 8  # enum ggml_type


def quantize(source: str, target: str, precision: str, threads: int, note: Callable[[str], None]) -> tuple[str, ...]:
    """Write ``target`` at ``precision`` from ``source``; returns what a reader must know.

    ``precision`` is a key of ``FILE_TYPES``. ``note`` is given every line that llama.cpp says, as it comes.

    Raises:
        ArtifactError: when llama.cpp refuses the source or cannot write the target.
    """
    # On a failed assertion ggml would start a debugger for a backtrace: seconds, and it buries the assertion itself.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    import llama_cpp

    said: list[tuple[int, str]] = []

    def take(level: int, text: bytes, _user: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        said.append((level, line))
        note(line)

    callback = llama_cpp.llama_log_callback(take)
    llama_cpp.llama_log_set(callback, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = FILE_TYPES[precision]
    params.allow_requantize = True
    if precision == "q4_0":
        # llama.cpp would take q6_k here, which ONNX cannot hold: q8_0 keeps the twins of both runtimes bit-equal.
        params.token_embedding_type = params.output_tensor_type = _Q8_0
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        reason = next((text for level, text in said if level == _ERROR_LEVEL), "it gave no reason")
        raise ArtifactError(
            f"{source}: llama.cpp could not make a {precision} file of it: {reason}.",
            "check the source file and the free space of the cache (edgebench doctor).",
        )
    return tuple(match[0] for _, text in said if (match := _FALLBACK.search(text)))
