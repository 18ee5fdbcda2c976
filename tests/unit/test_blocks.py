"""Weights in MatMulNBits' blocks: GGUF blocks are taken over bit by bit, rounding keeps within its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgebench.checkpoint.base import Blocks
from edgebench.export.blocks import BLOCK, dequantize, pack4, quantize, take_over, unpack4

TYPES = {"q8_0": (GGMLQuantizationType.Q8_0, 34), "q4_0": (GGMLQuantizationType.Q4_0, 18)}
TINY = float(np.finfo(np.float32).tiny)
WEIGHTS = st.floats(-(2.0**127), 2.0**127, width=32)


def stored(kind: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Random blocks of a GGUF with finite scales, zero and negative ones among them."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, 256, (rows, blocks, TYPES[kind][1]), dtype=np.uint8)
    scales = random.normal(0, 0.1, (rows, blocks)).astype("<f2")
    scales[random.random((rows, blocks)) < 0.1] = 0
    cells[..., :2] = scales[..., None].view(np.uint8)
    return cells.reshape(rows, -1)


def worst_error(weights: np.ndarray, bits: int) -> np.ndarray:
    """What rounding may cost in each block: [rows, blocks]."""
    padded = np.pad(weights.astype(np.float64), ((0, 0), (0, -weights.shape[1] % BLOCK)))
    largest = np.abs(padded).reshape(len(weights), -1, BLOCK).max(axis=-1)
    # 8 bits: half a step of the largest / 127. 4 bits: the best of several scales has no larger squared error than the
    # scale that puts the largest weight on -8; there no weight is off by more than one step, so the block's error is
    # at most sqrt(32) steps, and usually half a step.
    return largest / 127 * 0.5001 if bits == 8 else largest / 8 * 32**0.5


def errors(weights: np.ndarray, bits: int) -> np.ndarray:
    """The largest error of each block: [rows, blocks]."""
    difference = np.abs(dequantize(quantize(weights, bits)).astype(np.float64) - weights)
    padded = np.pad(difference, ((0, 0), (0, -weights.shape[1] % BLOCK)))
    return padded.reshape(len(weights), -1, BLOCK).max(axis=-1)


# --- taken over -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_blocks_of_a_gguf_are_taken_over_bit_by_bit(kind, rows, blocks, seed):
    data = stored(kind, rows, blocks, seed)
    taken = take_over(Blocks(kind, data))
    assert taken is not None
    expected = gguf_dequantize(data, TYPES[kind][0])
    found = dequantize(taken)
    assert found.shape == expected.shape == (rows, blocks * BLOCK)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", TYPES)
def test_every_stored_integer_is_taken_over(kind):
    data = np.zeros((1, 8 * TYPES[kind][1]), np.uint8).reshape(8, -1)
    data[:, 2:] = np.arange(256, dtype=np.uint8).reshape(8, -1)[:, : data.shape[1] - 2]
    data[:, :2] = np.array([1.5], "<f2").view(np.uint8)
    assert np.array_equal(dequantize(take_over(Blocks(kind, data))), gguf_dequantize(data, TYPES[kind][0]))


@pytest.mark.parametrize("kind", ["q4_1", "q5_0", "q6_k", "f16"])
def test_other_types_are_not_taken_over(kind):
    assert take_over(Blocks(kind, np.zeros((2, 64), np.uint8))) is None


# --- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 70)), elements=WEIGHTS))
@example(np.full((1, 32), 1e-40, np.float32))
@example(np.array([[3e38, -3e38, 1.0]], np.float32))
@example(np.array([[1e-40, 0.0, -1e-44]], np.float32))
def test_the_error_of_rounding_is_bounded(bits, weights):
    assert (errors(weights, bits) <= worst_error(weights, bits) + 127 * TINY).all()


@pytest.mark.parametrize(("bits", "share"), [(8, 0.006), (4, 0.10)])
def test_normal_weights_keep_most_of_their_energy(bits, share):
    """The root of the relative squared error, for weights as they usually are."""
    weights = np.random.default_rng(1).normal(0, 0.05, (64, 512)).astype(np.float32)
    lost = np.linalg.norm(dequantize(quantize(weights, bits)) - weights) / np.linalg.norm(weights)
    assert share / 2 < lost < share


def test_four_bits_keep_large_weights_better_than_llama_cpps_q4_0():
    from gguf.quants import quantize as gguf_quantize

    weights = np.random.default_rng(2).normal(0, 0.05, (64, 512)).astype(np.float32)
    theirs = gguf_dequantize(gguf_quantize(weights, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    ours = dequantize(quantize(weights, 4))
    assert np.square(ours - weights).sum() < np.square(theirs - weights).sum()
    assert (weights**2 * np.square(ours - weights)).sum() < 0.95 * (weights**2 * np.square(theirs - weights)).sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 31), (2, 33), (1, 4096), (5000, 33), (7, 96)])
def test_any_shape_is_padded_to_whole_blocks_and_comes_back(bits, rows, columns):
    weights = np.random.default_rng(3).normal(0, 1, (rows, columns)).astype(np.float32)
    rounded = quantize(weights, bits)
    blocks = -(-columns // BLOCK)
    assert rounded.data.shape == (rounded.rows, blocks, BLOCK * bits // 8) == (rows, blocks, BLOCK * bits // 8)
    assert rounded.scales.shape == (rows, blocks)
    assert dequantize(rounded).shape == (rows, columns)
    assert (errors(weights, bits) <= worst_error(weights, bits)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_of_zeros_stays_zero(bits):
    weights = np.zeros((2, 64), np.float32)
    weights[0, 40] = 3.0
    values = dequantize(quantize(weights, bits))
    assert not values[1].any()
    assert not values[0, :32].any()
    assert values[0, 40] == pytest.approx(3.0)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_representable_come_back_exactly(bits):
    middle = 1 << (bits - 1)
    q = np.arange(1 - middle, middle)[: 2 * BLOCK - 1]
    weights = np.resize(np.append(q, 1 - middle if bits == 8 else -middle), (1, 8 * BLOCK)).astype(np.float32) / 4
    if bits == 8:
        weights[:, ::BLOCK] = -127 / 4  # each block spans the range
    assert np.array_equal(dequantize(quantize(weights, bits)), weights)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_spoils_its_own_block_only(bits, what):
    weights = np.ones((1, 96), np.float32)
    weights[0, 33] = what
    rounded = quantize(weights, bits)
    with np.errstate(invalid="ignore"):
        values = dequantize(rounded)
    assert np.allclose(values[:, :32], 1)
    assert not np.isfinite(values[:, 32:64]).all(), "it is not hidden"
    assert np.allclose(values[:, 64:], 1)


@given(arrays.arrays(np.uint8, (3, 32), elements=st.integers(0, 15)))
def test_packing_two_in_a_byte_can_be_undone(q):
    assert np.array_equal(unpack4(pack4(q)), q)
    assert pack4(q)[0, 0] == q[0, 0] + 16 * q[0, 1], "the first element is the low half"
