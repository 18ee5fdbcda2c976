"""The safetensors reader, against files written here byte by byte and mutations of them."""

from __future__ import annotations

import json
import os
import resource
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebench.checkpoint.mapped_file import MappedFile
from edgebench.checkpoint.safetensors import SafetensorsFile
from edgebench.errors import ArtifactError, EdgebenchError, UsageError

MOST_BYTES = 4 << 20
"""Python memory that opening and reading a file of a few hundred bytes may take."""


def container(entries: dict[str, Any], data: bytes, *, length: int | None = None) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


VALUES = np.array([[1.0, -2.0, 0.5], [3.0, 65504.0, -0.25]], np.float32)  # exact in every type but bfloat16's 65504
BFLOAT = (np.array([1.0, -2.0, 0.5, 3.0], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
GOOD = container(
    {
        "__metadata__": {"format": "pt"},
        "half": entry("F16", [2, 3], 24, 36),
        "full": entry("F32", [2, 3], 0, 24),
        "brain": entry("BF16", [4], 36, 44),
        "double": entry("F64", [3, 2], 44, 92),
    },
    VALUES.tobytes() + VALUES.astype("<f2").tobytes() + BFLOAT + VALUES.astype("<f8").tobytes(),
)


@pytest.fixture
def write(tmp_path):
    def write_bytes(content: bytes) -> Path:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return path

    return write_bytes


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        SafetensorsFile(path)
    assert str(path) in caught.value.what
    assert caught.value.next_step
    return caught.value.what


def test_every_floating_type_comes_as_float32(write):
    file = SafetensorsFile(write(GOOD))
    assert set(file.entries) == {"full", "half", "brain", "double"}
    np.testing.assert_array_equal(file.tensor("full"), VALUES)
    np.testing.assert_array_equal(file.tensor("half"), VALUES)
    np.testing.assert_array_equal(file.tensor("brain"), np.array([1.0, -2.0, 0.5, 3.0], np.float32))
    np.testing.assert_array_equal(file.tensor("double"), VALUES.reshape(3, 2))
    assert {file.tensor(name).dtype for name in file.entries} == {np.dtype(np.float32)}
    file.close()
    file.close()


def test_a_long_tensor_is_converted_piece_by_piece(write, monkeypatch):
    monkeypatch.setattr("edgebench.checkpoint.safetensors._CHUNK_ELEMENTS", 5)
    file = SafetensorsFile(write(GOOD))
    np.testing.assert_array_equal(file.tensor("half"), VALUES)
    np.testing.assert_array_equal(file.tensor("double"), VALUES.reshape(3, 2))
    file.close()


def test_a_tensor_outlives_the_file_that_it_came_from(write):
    file = SafetensorsFile(write(GOOD))
    full = file.tensor("full")
    file.close()
    np.testing.assert_array_equal(full, VALUES)


def test_a_double_too_large_for_a_float_is_infinite(write):
    content = container({"x": entry("F64", [1], 0, 8)}, struct.pack("<d", 1e300))
    file = SafetensorsFile(write(content))
    assert np.isinf(file.tensor("x")).all()
    file.close()


def test_values_need_not_be_aligned(write):
    file = SafetensorsFile(
        write(container({"a": entry("U8", [1], 0, 1), "b": entry("F32", [2, 3], 1, 25)}, b"\0" + VALUES.tobytes()))
    )
    np.testing.assert_array_equal(file.tensor("b"), VALUES)
    file.close()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I64", "BOOL", "F4_NEW"])
def test_a_type_that_is_no_float_is_refused_when_it_is_read(write, dtype):
    width = {"I64": 8}.get(dtype, 1)
    file = SafetensorsFile(write(container({"x": entry(dtype, [4], 0, 4 * width)}, bytes(4 * width))))
    with pytest.raises(ArtifactError, match=f"stores x as {dtype}; the exporters read F32"):
        file.tensor("x")
    file.close()


@pytest.mark.parametrize("length", [1 << 60, 1 << 63, (1 << 64) - 1, 100_000_001, len(GOOD) - 7])
def test_a_header_longer_than_the_file_is_refused_before_anything_is_made(write, length):
    path = write(struct.pack("<Q", length) + GOOD[8:])
    tracemalloc.start()
    try:
        assert f"claims a header of {length} bytes in a file of {len(GOOD)}" in refused(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [1, 40, 91, len(GOOD) - 12])
def test_a_truncated_file_says_so(write, cut):
    what = refused(write(GOOD[:-cut]))
    assert "is truncated" in what or "claims a header" in what


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"1234567", "holds 7 bytes"),
        (struct.pack("<Q", 3) + b"abc", "header that is not what the format says"),
        (struct.pack("<Q", 2) + b"[]", "header that is not what the format says"),
        (struct.pack("<Q", 3) + b'"\xff"', "header that is not what the format says"),
        (struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000, "header that is not what the format says"),
        (container({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)), "data_offsets"),
        (container({"x": entry("F32", ["1"], 0, 4)}, bytes(4)), "Expected `int`"),
        (container({"x": entry("F32", [1], -4, 0)}, bytes(4)), ">= 0"),
        (container({"x": entry("F32", [-1], 0, 4)}, bytes(4)), ">= 0"),
        (container({"x": entry("F32", [1], 4, 0)}, bytes(4)), "from 4 back to 0"),
        (container({"x": entry("F32", [1], 0, 4) | {"more": 1}}, bytes(4)), "unknown field"),
        (container({"x": entry("F32", [1], 1 << 59, 1 << 60)}, bytes(4)), "is truncated: the tensor x"),
        (container({"x": entry("F32", [1 << 60, 1 << 60], 0, 4)}, bytes(4)), "its shape needs"),
        (container({"x": entry("F32", [0, 1 << 60], 0, 0)}, b""), "of shape"),
        (container({"x": entry("NEW", [1] * 70, 0, 4)}, bytes(4)), "of shape"),
        (container({"x": entry("F32", [2], 0, 4)}, bytes(4)), "gives the tensor x 4 bytes; its shape needs 8"),
        (container({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 4, 12)}, bytes(12)), "y inside another one"),
        (container({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 0, 8)}, bytes(8)), "y inside another one"),
        (container({"x": entry("F32", [1], 0, 4), "y": entry("F32", [1], 8, 12)}, bytes(12)), "y behind a hole"),
        (container({"x": entry("F32", [1], 0, 4)}, bytes(9)), "5 bytes at its end that belong to no tensor"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(write, content, words):
    assert words in refused(write(content))


def test_a_path_that_is_no_file_is_a_usage_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.safetensors", tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError):
            SafetensorsFile(path)


def test_spaces_and_unicode_in_a_path_are_fine(tmp_path):
    path = tmp_path / "mit Leerzeichen 模型 ✓.safetensors"
    path.write_bytes(GOOD)
    SafetensorsFile(path).close()


def test_nothing_stays_open_or_mapped_when_opening_fails(write):
    path = write(GOOD[:-1])
    kept = []
    for _ in range(3):
        with pytest.raises(ArtifactError) as caught:
            SafetensorsFile(path)
        kept.append(caught.value)  # and with it the frames of the traceback
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert len(kept) == 3


def test_what_was_looked_at_before_is_given_back(tmp_path):
    """A walk through a file of 64 MiB does not add it to the resident set."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        for number in range(64):
            file.write(bytes([number]) * (1 << 20))
    mapped = MappedFile(path)
    before = _resident_file_bytes()
    for number in range(0, 64, 4):
        view = mapped.view(number << 20, 4 << 20)
        assert view[:: 1 << 20].tolist() == [number, number + 1, number + 2, number + 3]
        assert int(view.max()) == number + 3
    assert _resident_file_bytes() - before < 16 << 20
    mapped.close()


def _resident_file_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[2]) * resource.getpagesize()


def read_everything(path: Path) -> None:
    """Open, and read all that can be read; whatever is wrong is one of our errors."""
    try:
        file = SafetensorsFile(path)
    except EdgebenchError:
        return
    for name, found in file.entries.items():
        with suppress(EdgebenchError):
            assert file.tensor(name).shape == found.shape
    file.close()


FEW = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "?"]) | JSON,
        "shape": st.lists(st.integers(-1, 1 << 61), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 1 << 61) | st.integers(0, 16), min_size=2, max_size=2) | JSON,
    }
)


@pytest.mark.parametrize(
    "contents",
    [
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8)).map(
            lambda change: GOOD[: change[0]] + change[1] + GOOD[change[0] + len(change[1]) :]
        ),
        st.integers(0, len(GOOD)).map(lambda length: GOOD[:length]),
        st.tuples(st.dictionaries(st.text(max_size=4), FIELDS, max_size=3), st.binary(max_size=16)).map(
            lambda parts: container(*parts)
        ),
        st.tuples(st.binary(max_size=80), st.binary(max_size=16)).map(
            lambda parts: struct.pack("<Q", len(parts[0])) + parts[0] + parts[1]
        ),
    ],
    ids=["random", "mutated", "truncated", "any header", "no header"],
)
def test_no_file_does_more_than_be_refused(contents, write):
    @FEW
    @given(contents)
    def holds(content: bytes) -> None:
        tracemalloc.start()
        try:
            read_everything(write(content))
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        finally:
            tracemalloc.stop()

    holds()
