"""The importance matrix: what is collected, what it changes, what is refused. `tests/reference` judges its values."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from edgebench import derive
from edgebench.artifacts import local
from edgebench.checkpoint.gguf import read_header
from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.hf import HFWeights
from edgebench.derive import Kind, Maker
from edgebench.errors import ArtifactError, MissingDependency, UsageError
from edgebench.export import gguf, imatrix
from edgebench.export.imatrix import compute, read_calibration
from edgebench.export.precisions import EXACT, NEEDS_IMATRIX, ONNX_ONLY, SHIPPED, check_imatrix
from edgebench.export.quantize import FILE_TYPES, quantize
from edgebench.host import Host
from edgebench.records import Failure
from edgebench.specs import Artifact

TEXT = "once upon a time the model read a text, and then it read it again. " * 120


class Silent:
    """Told and says nothing."""

    def step(self, text: str) -> None: ...

    def share(self, what: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def whole(hf_folder, tmp_path_factory) -> Path:
    """The folder as a GGUF in float."""
    path = tmp_path_factory.mktemp("whole") / "whole.gguf"
    weights = HFWeights(hf_folder)
    gguf.export(weights, path, "f32")
    weights.close()
    return path


@pytest.fixture
def calibration(tmp_path):
    path = tmp_path / "text ü.txt"
    path.write_text(TEXT, encoding="utf-8")
    return read_calibration(path)


def collect(whole, calibration, **more):
    return compute(str(whole), calibration, 1, lambda _line: None, **{"tell": lambda _done, _of: None, **more})


# --- collecting


def test_every_matrix_of_every_layer_has_a_value_for_each_column(whole, calibration):
    told: list[tuple[int, int]] = []
    matrix = collect(whole, calibration, tell=lambda done, of: told.append((done, of)))
    header = read_header(whole)
    columns = {t.name: t.shape[0] for t in header.tensors if t.name.startswith("blk.") and len(t.shape) == 2}
    assert {name: row.size for name, row in matrix.values.items()} == columns
    assert all((row > 0).all() for row in matrix.values.values())
    assert matrix.missing == ()
    assert matrix.tokens == matrix.chunk * matrix.chunks
    assert told[-1] == (matrix.chunks, matrix.chunks)
    for layer in range(2):  # they are multiplied with the same
        q, k, v = (matrix.values[f"blk.{layer}.attn_{name}.weight"] for name in "qkv")
        assert np.array_equal(q, k)
        assert np.array_equal(q, v)


def test_what_was_not_reached_is_told(whole, calibration, tmp_path, monkeypatch):
    wanted = imatrix._Collector._is_wanted

    def all_but_one(self, node):
        return wanted(self, node) and imatrix._weight_name(node) != "blk.1.ffn_up.weight"

    monkeypatch.setattr(imatrix._Collector, "_is_wanted", all_but_one)
    assert collect(whole, calibration).missing == ("blk.1.ffn_up.weight",)
    notes = quantize(str(whole), str(tmp_path / "q.gguf"), "q4_0", 1, lambda _line: None, calibration=calibration)
    assert "1 matrices, such as blk.1.ffn_up.weight" in notes[1]


def test_an_error_inside_the_callback_is_raised(whole, calibration, monkeypatch):
    def fail(self, node):
        raise ArithmeticError("inside")

    monkeypatch.setattr(imatrix._Collector, "_add", fail)
    with pytest.raises(ArithmeticError, match="inside"):
        collect(whole, calibration)


def test_a_value_that_is_no_number_is_refused(whole, calibration, monkeypatch):
    means = imatrix._Collector.means

    def broken(self):
        self._sums["blk.0.ffn_down.weight"][3] = np.nan
        return means(self)

    monkeypatch.setattr(imatrix._Collector, "means", broken)
    with pytest.raises(ArtifactError, match="ffn_down"):
        collect(whole, calibration)


def test_a_layout_that_changed_is_noticed_before_anything_is_read(whole, calibration, monkeypatch):
    class Moved(ctypes.Structure):
        _fields_ = (("new", ctypes.c_int64), *imatrix._Tensor._fields_)

    monkeypatch.setattr(imatrix, "_Tensor", Moved)
    monkeypatch.setattr(imatrix._Collector, "observe", None)  # would fail loudly if it were reached
    with pytest.raises(MissingDependency, match="cannot be looked into"):
        collect(whole, calibration)


# --- what it changes


def error_of(whole: Path, target: Path, importance: dict[str, np.ndarray]) -> float:
    """Sum of squared errors of the weights, each times its importance."""
    exact, rounded = GGUFWeights(whole), GGUFWeights(target)
    total = sum(
        float(((exact.tensor(name) - rounded.tensor(name)) ** 2 * row).sum()) for name, row in importance.items()
    )
    exact.close()
    rounded.close()
    return total


def test_the_errors_that_matter_become_smaller(whole, calibration, tmp_path):
    importance = collect(whole, calibration).values
    for precision in ("q3_k_s", "iq4_nl"):
        targets = [tmp_path / f"{precision}{with_}.gguf" for with_ in (False, True)]
        for target, text in zip(targets, (None, calibration), strict=True):
            quantize(str(whole), str(target), precision, 1, lambda _line: None, calibration=text)
        without, with_ = (error_of(whole, target, importance) for target in targets)
        assert with_ < 0.97 * without


def test_the_file_itself_says_what_it_was_made_with(whole, calibration, tmp_path):
    target = tmp_path / "q.gguf"
    (note,) = quantize(str(whole), str(target), "q4_0", 1, lambda _line: None, calibration=calibration)
    keys = read_header(target).metadata
    assert keys["quantize.imatrix.dataset"] == f"sha256:{calibration.sha256} text ü.txt"
    assert keys["quantize.imatrix.entries_count"] == 14
    assert f"{512 * keys['quantize.imatrix.chunks_count']} tokens in chunks of 512" in note
    assert calibration.sha256 in note


@pytest.mark.slow
def test_llama_cpp_wants_a_matrix_where_we_say_so_and_nowhere_else(whole, tmp_path):
    """In a child: llama.cpp ends the process when an assertion of its fails."""
    code = """
        import sys
        from edgebench.errors import ArtifactError
        from edgebench.export.quantize import FILE_TYPES, quantize
        for name in FILE_TYPES:
            try:
                quantize(sys.argv[1], sys.argv[2], name, 1, lambda line: None)
            except ArtifactError as error:
                print(name)
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(whole), str(tmp_path / "q.gguf")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    assert set(done.stdout.split()) == set(NEEDS_IMATRIX)


# --- its place in the cache


@pytest.fixture
def maker(tmp_path, monkeypatch) -> Maker:
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "cache"))
    return Maker(Host(), "llama.cpp of the test", 1, Silent())


def test_a_file_is_found_again_by_the_text_and_not_by_its_name(maker, hf_folder, tmp_path, monkeypatch, calibration):
    source = local.describe(hf_folder)
    plain, first = maker.gguf(source, "q4_0"), maker.gguf(source, "q4_0", calibration)
    assert isinstance(plain, Artifact)
    assert isinstance(first, Artifact)
    assert plain.sha256 != first.sha256
    assert plain.derived_from == first.derived_from
    (tmp_path / "copy.txt").write_text(TEXT, encoding="utf-8")
    again = maker.gguf(source, "q4_0", read_calibration(tmp_path / "copy.txt"))
    assert again == first
    (tmp_path / "other.txt").write_text(TEXT.replace("time", "hill"), encoding="utf-8")
    other = maker.gguf(source, "q4_0", read_calibration(tmp_path / "other.txt"))
    assert isinstance(other, Artifact)
    assert (other.path == first.path, other.sha256 == first.sha256) == (False, False)
    monkeypatch.setattr(derive, "COLLECTOR", "imatrix-9")
    newer = maker.gguf(source, "q4_0", calibration)
    assert isinstance(newer, Artifact)
    assert newer.path != first.path


def test_a_precision_that_needs_a_matrix_is_made_with_one_only(maker, hf_folder, calibration):
    source = local.describe(hf_folder)
    failure = maker.gguf(source, "q2_k_s")
    assert isinstance(failure, Failure)
    assert "importance matrix" in failure.says
    assert "--imatrix" in failure.next_step
    assert isinstance(maker.onnx(source, "q2_k_s", Kind()), Failure)
    made = maker.gguf(source, "q2_k_s", calibration)
    assert isinstance(made, Artifact)
    assert maker.gguf(made, "q2_k_s") == made


# --- what is refused


def test_a_text_that_is_too_short_is_refused(whole, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("once upon a time", encoding="utf-8")
    with pytest.raises(UsageError, match=r"short\.txt has \d+ tokens; .* at least 512"):
        collect(whole, read_calibration(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "holds no text"), (b" \n\t", "holds no text"), (b"caf\xe9 au lait", "not UTF-8: byte 3 is 0xe9")],
)
def test_a_file_without_text_is_refused(tmp_path, content, says):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_calibration(path)


def test_a_missing_text_a_folder_and_a_huge_text_are_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="There is no file"):
            read_calibration(path)
    monkeypatch.setattr(imatrix, "_MOST_BYTES", 10)
    (tmp_path / "long").write_text("12345678901", encoding="utf-8")
    with pytest.raises(UsageError, match="a part of it") as caught:
        read_calibration(tmp_path / "long")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("precision", [SHIPPED, *EXACT])
def test_precisions_that_it_does_not_change_are_refused(precision):
    with pytest.raises(UsageError, match="the same with and without"):
        check_imatrix(precision, "gguf")


def test_it_is_for_ggufs(whole):
    for precision in ("q4_0", *ONNX_ONLY):
        with pytest.raises(UsageError, match="for making a GGUF"):
            check_imatrix(precision, "onnx")
    for precision in set(FILE_TYPES) - set(EXACT):
        check_imatrix(precision, "gguf")
