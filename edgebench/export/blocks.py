"""Weights in blocks of 32 with one scale each, in the layout of onnxruntime's MatMulNBits.

``data`` is uint8 [rows, blocks, 32 * bits / 8], consecutive elements from the low bits up; ``scales`` is float32
[rows, blocks]. The value is ``(q - 2**(bits - 1)) * scale``: the zero point is the middle and is not stored.

GGUF's q8_0 and q4_0 hold the same numbers in another order, so they are taken over bit for bit (ggml
``block_q8_0``: f16 scale, 32 int8; ``block_q4_0``: f16 scale, 16 bytes whose low halves are elements 0-15).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.base import Blocks

BLOCK = 32
_SHRINK = (1.0, 0.93, 0.86)
_CHUNK_ELEMENTS = 1 << 17  # a chunk and its temporaries stay in a core's cache


class Quantized(NamedTuple):
    """A matrix [rows, columns] in blocks; see the module."""

    bits: int
    columns: int
    data: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]

    @property
    def rows(self) -> int:
        """Output features."""
        return int(self.data.shape[0])


def quantize(weights: npt.NDArray[np.float32], bits: int) -> Quantized:
    """Round a matrix to blocks of ``bits`` bits (4 or 8).

    4 bits: integers by the scale that puts the largest weight on -8 (as q4_0) and by two smaller ones, for each of them
    the scale of the least squared error, and of the three whichever errs least. Each error is weighted by the square of
    its weight, as in llama.cpp's ``make_qx_quants``: large weights carry the output. Without these weights the search
    loses more than no search at all.
    """
    rows, columns = weights.shape
    blocks = -(-columns // BLOCK)
    if columns % BLOCK:
        weights = np.pad(weights, ((0, 0), (0, blocks * BLOCK - columns)))
    data = np.empty((rows, blocks, BLOCK * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, _CHUNK_ELEMENTS // (blocks * BLOCK))

    def work(first: int) -> None:
        part = weights[first : first + step].reshape(-1, blocks, BLOCK)
        rounded = _round8 if bits == 8 else _round4
        with np.errstate(invalid="ignore"):  # what is no number stays none, in the scale
            data[first : first + step], scales[first : first + step] = rounded(part)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(work, range(0, rows, step)))
    return Quantized(bits, columns, data, scales)


def _round8(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    scale = _or_zero(np.abs(x).max(axis=-1) / np.float32(127))
    q = np.rint(x * _inverse(scale)[..., None])
    return (q + 128).astype(np.uint8), scale


def _round4(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    unit = _or_zero(largest / np.float32(-8))
    x = x * _inverse(unit)[..., None]  # within 8, so that no power overflows
    importance = np.square(x)
    best_q = np.zeros_like(x)
    best_gain = fitted = np.zeros(x.shape[:-1], np.float32)
    for shrink in _SHRINK:
        q = np.clip(np.rint(x / np.float32(shrink)), -8, 7)
        weighted = importance * q
        projection, squares = (weighted * x).sum(axis=-1), (weighted * q).sum(axis=-1)
        scale = np.divide(projection, squares, out=np.zeros_like(squares), where=squares > 0)
        gain = projection * scale  # by which the error is smaller than that of zeros, at this scale, the best one
        better = gain > best_gain
        best_q[better] = q[better]
        best_gain, fitted = np.where(better, gain, best_gain), np.where(better, scale, fitted)
    return pack4((best_q + 8).astype(np.uint8)), _or_zero(fitted * unit)


def _or_zero(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Zero for a scale whose inverse overflows: such a block is zero for every purpose. What is no number stays."""
    kept: npt.NDArray[np.float32] = np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(0), scale)
    return kept


def _inverse(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    inverse: npt.NDArray[np.float32] = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return inverse


def pack4(q: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two elements a byte, the first in the low half; the last axis halves."""
    packed: npt.NDArray[np.uint8] = q[..., ::2] | q[..., 1::2] << np.uint8(4)
    return packed


def unpack4(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The inverse of `pack4`."""
    return np.stack((data & 15, data >> 4), axis=-1).reshape(*data.shape[:-1], -1)


def take_over(stored: Blocks) -> Quantized | None:
    """The same weights as a GGUF tensor holds, bit for bit; None for a type that this layout cannot hold."""
    rows = stored.data.shape[0]
    if stored.type == "q8_0":
        cells = stored.data.reshape(rows, -1, 2 + BLOCK)
        return Quantized(8, cells.shape[1] * BLOCK, cells[..., 2:] ^ np.uint8(128), _scales(cells))
    if stored.type == "q4_0":
        cells = stored.data.reshape(rows, -1, 2 + BLOCK // 2)
        nibbles = cells[..., 2:]
        q = np.concatenate((nibbles & 15, nibbles >> 4), axis=-1)
        return Quantized(4, cells.shape[1] * BLOCK, pack4(q), _scales(cells))
    return None


def _scales(cells: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(cells[..., :2]).view("<f2")[..., 0].astype(np.float32)


def dequantize(matrix: Quantized) -> npt.NDArray[np.float32]:
    """The values that the engine computes with, [rows, columns]."""
    q = matrix.data if matrix.bits == 8 else unpack4(matrix.data)
    middle = np.float32(1 << (matrix.bits - 1))
    values = (q.astype(np.float32) - middle) * matrix.scales[..., None]
    whole: npt.NDArray[np.float32] = values.reshape(matrix.rows, -1)
    return whole[:, : matrix.columns]
