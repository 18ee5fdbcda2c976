"""The names of precisions, and which formats can hold each."""

from __future__ import annotations

from edgebench.errors import UnknownNameError, UsageError
from edgebench.export.quantize import FILE_TYPES

SHIPPED = "shipped"
"""As published, whatever that is."""
ONNX_ONLY = ("fp32", "int8", "int4", "int4-mixed")
"""Made from the checkpoint's values by ``export.onnx``. All others are a GGUF's, taken over block by block."""

EXACT = ("f32", "f16", "bf16", "q8_0")
"""Rounded the same whatever the importance of a weight is."""
NEEDS_IMATRIX = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s")
"""llama.cpp refuses to make them without an importance matrix (``tensor_requires_imatrix`` in ``llama-quant.cpp``)."""


def check_imatrix(precision: str, form: str) -> None:
    """Whether an importance matrix can be of use.

    Raises:
        UsageError: when nothing would be rounded by it.
    """
    if form != "gguf":
        raise UsageError(
            "An importance matrix is for making a GGUF.", "make one with --to gguf --imatrix, then export that file."
        )
    if precision in (SHIPPED, *EXACT, *ONNX_ONLY):
        raise UsageError(
            f"{precision} comes out the same with and without an importance matrix.",
            "choose a smaller precision, such as q4_0 or q4_k_m, or leave --imatrix out.",
        )


def check_precision(name: str) -> str:
    """The canonical spelling of a precision.

    Raises:
        UnknownNameError: with the nearest known one.
    """
    lowered = name.lower()
    if lowered not in FILE_TYPES and lowered not in ONNX_ONLY and lowered != SHIPPED:
        raise UnknownNameError("precision", name, (*FILE_TYPES, *ONNX_ONLY, SHIPPED))
    return lowered


def formats_of(precision: str) -> tuple[str, ...]:
    """The artifact formats that a precision can be made in."""
    return ("onnx",) if precision in ONNX_ONLY else ("gguf", "onnx")
