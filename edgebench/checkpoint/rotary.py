"""Rotary position embedding: frequencies from what checkpoints declare, and the tables that engines want.

Sources: RoFormer (arXiv 2104.09864) for the rotation; transformers ``modeling_rope_utils.py`` for Llama 3's scaling
and LongRoPE (arXiv 2402.13753); a GGUF stores the same factors as the tensors ``rope_freqs`` and ``rope_factors_*``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.base import Rope


def frequencies(rope: Rope, *, long: bool = False) -> npt.NDArray[np.float32]:
    """Radians per position of each pair, shape [dimensions / 2]; ``long`` with LongRoPE's factors for long contexts."""
    exponents = np.arange(0, rope.dimensions, 2, dtype=np.float32) / np.float32(rope.dimensions)
    inverse: npt.NDArray[np.float32] = np.power(np.float32(rope.base), exponents)
    np.reciprocal(inverse, out=inverse)
    factors = rope.long_factors if long else rope.factors
    if factors:
        inverse /= np.array(factors, np.float32)
    inverse /= np.float32(rope.scale)
    return inverse


def tables(
    rope: Rope, positions: int, *, long: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosine and sine for each position and pair: two arrays [positions, dimensions / 2]."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies(rope, long=long)[None, :]
    factor = np.float32(rope.attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


def llama3_factors(
    base: float, dimensions: int, *, factor: float, low: float, high: float, original: int
) -> tuple[float, ...]:
    """Llama 3.1's scaling as one divisor for each pair.

    Wavelengths longer than ``original / low`` are divided by ``factor``, shorter than ``original / high`` kept, and
    those between are blended (transformers ``_compute_llama3_parameters``).
    """
    wavelength = 2 * math.pi / frequencies(Rope(base=base, dimensions=dimensions)).astype(np.float64)
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return tuple(float(value) for value in 1.0 / ((1 - blend) / factor + blend))


def longrope_attention_factor(scale: float, original: int) -> float:
    """LongRoPE's factor for cosine and sine: ``sqrt(1 + ln(scale) / ln(original))``; 1 where nothing is stretched."""
    return 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))
