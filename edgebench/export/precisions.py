"""The names of precisions, and which formats can hold each."""

from __future__ import annotations

from edgebench.errors import UnknownNameError
from edgebench.export.quantize import FILE_TYPES

SHIPPED = "shipped"
"""As published, whatever that is."""
ONNX_ONLY = ("fp32", "int8", "int4", "int4-mixed")
"""Made from the checkpoint's values by ``export.onnx``. All others are a GGUF's, taken over block by block."""


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
