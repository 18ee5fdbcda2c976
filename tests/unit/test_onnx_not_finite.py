"""Weights that are no finite numbers are told by the export, and do not stop it."""

from __future__ import annotations

import numpy as np
import pytest

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.export.onnx import export


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_weight_that_is_no_finite_number_is_told(tiny_gguf, tmp_path, bad, precision):
    content = bytearray(tiny_gguf.read_bytes())
    if bad is not None:  # the data ends with the last layer's down projection
        content[-400:-396] = np.array([bad], "<f4").tobytes()
    (tmp_path / "model.gguf").write_bytes(content)
    checkpoint = GGUFWeights(tmp_path / "model.gguf")
    (tmp_path / "out").mkdir()
    notes = export(checkpoint, tmp_path / "out", precision).notes
    checkpoint.close()
    told = "weights that are not finite numbers: blk.1.ffn_down.weight"
    assert notes == (() if bad is None else (told,))
