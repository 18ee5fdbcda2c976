"""Make a GGUF of another precision with ``llama_model_quantize``. Runs in a child process only.

K- and IQ-types need row lengths divisible by 256; llama.cpp silently stores other tensors at another type and says
"required fallback quantization" in its log. That is passed on, because it changes the real bits per weight.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from typing import Any

from edgebench.errors import ArtifactError
from edgebench.export.imatrix import Matrix, as_parameter, compute
from edgebench.specs import Calibration

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
    "iq2_xxs": 19,
    "iq2_xs": 20,
    "q2_k_s": 21,
    "iq3_xs": 22,
    "iq3_xxs": 23,
    "iq1_s": 24,
    "iq4_nl": 25,
    "iq3_s": 26,
    "iq3_m": 27,
    "iq2_s": 28,
    "iq2_m": 29,
    "iq4_xs": 30,
    "iq1_m": 31,
    "bf16": 32,
}
_FALLBACK = re.compile(r"[0-9]+ of [0-9]+ tensor\(s\) required fallback quantization")
_PROGRESS = re.compile(r"\[ *([0-9]+)/ *([0-9]+)\] ")
_ERROR_LEVEL = 4
_Q8_0 = 8  # enum ggml_type
_WHOLE, _TEXT = 0, 3  # enum llama_model_kv_override_type
_callbacks: list[object] = []


def quantize(
    source: str,
    target: str,
    precision: str,
    threads: int,
    note: Callable[[str], None],
    *,
    calibration: Calibration | None = None,
    tell: Callable[[int, int, str], None] = lambda _done, _all, _unit: None,
) -> tuple[str, ...]:
    """Write ``target`` at ``precision`` from ``source``; returns what a reader must know.

    Args:
        source: path of a GGUF.
        target: path of the file to write.
        precision: a key of ``FILE_TYPES``.
        threads: to compute with.
        note: given every line that llama.cpp says, as it comes.
        calibration: a text; the weights are rounded by their importance on it.
        tell: how far it is: done, of how many, of what.

    Raises:
        UsageError: when the text is too short.
        ArtifactError: when llama.cpp refuses the source or cannot write the target.
    """
    matrix = None
    if calibration is not None:
        matrix = compute(source, calibration, threads, note, lambda done, of: tell(done, of, "chunks of text"))
    # On a failed assertion ggml would start a debugger for a backtrace: seconds, and it buries the assertion itself.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    import llama_cpp

    said = _listen(llama_cpp, note, tell)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = FILE_TYPES[precision]
    params.allow_requantize = True
    if precision == "q4_0":
        # llama.cpp would take q6_k here, which ONNX cannot hold: q8_0 keeps the twins of both runtimes bit-equal.
        params.token_embedding_type = params.output_tensor_type = _Q8_0
    if matrix is not None and calibration is not None:
        params.imatrix = as_parameter(llama_cpp, matrix.values)
        params.kv_overrides = _told_in_the_file(llama_cpp, matrix, calibration)
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        reason = next((text for level, text in said if level == _ERROR_LEVEL), "it gave no reason")
        raise ArtifactError(
            f"{source}: llama.cpp could not make a {precision} file of it: {reason}.",
            "check the source file and the free space of the cache (edgebench doctor).",
        )
    fallbacks = (match[0] for _, text in said if (match := _FALLBACK.search(text)))
    return (*_matrix_notes(matrix, calibration), *fallbacks)


def _listen(library: Any, note: Callable[[str], None], tell: Callable[[int, int, str], None]) -> list[tuple[int, str]]:
    """What llama.cpp will have said, as (level, line)."""
    said: list[tuple[int, str]] = []

    def take(level: int, text: bytes, _user: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        said.append((level, line))
        note(line)
        if place := _PROGRESS.match(line):
            tell(int(place[1]), int(place[2]), "tensors")

    callback = library.llama_log_callback(take)
    _callbacks.append(callback)  # llama.cpp keeps a pointer to it
    library.llama_log_set(callback, None)
    return said


def _matrix_notes(matrix: Matrix | None, calibration: Calibration | None) -> tuple[str, ...]:
    if matrix is None or calibration is None:
        return ()
    text = f"{calibration.name} (sha256 {calibration.sha256})"
    notes = [f"rounded by importance on {text}: {matrix.tokens} tokens in chunks of {matrix.chunk}"]
    if matrix.missing:
        count, first = len(matrix.missing), matrix.missing[0]
        notes.append(f"without importance, because the text did not reach them: {count} matrices, such as {first}")
    return tuple(notes)


def _told_in_the_file(library: Any, matrix: Matrix, calibration: Calibration) -> Any:
    """Keys that ``llama-quantize`` writes too, so that the file itself says what it was made with."""
    keys: tuple[tuple[str, int | bytes], ...] = (
        ("quantize.imatrix.dataset", _cut(f"sha256:{calibration.sha256} {calibration.name}")),
        ("quantize.imatrix.entries_count", len(matrix.values)),
        ("quantize.imatrix.chunks_count", matrix.chunks),
    )
    array = (library.llama_model_kv_override * (len(keys) + 1))()  # an entry without a key ends it
    for entry, (key, value) in zip(array, keys, strict=False):
        entry.key = key.encode()
        if isinstance(value, bytes):
            entry.tag, entry.value.val_str = _TEXT, value
        else:
            entry.tag, entry.value.val_i64 = _WHOLE, value
    return array


def _cut(text: str) -> bytes:
    """As much of a text as the 128 bytes of an entry hold, with the zero at their end."""
    return text.encode()[:127].decode("utf-8", "ignore").encode()
