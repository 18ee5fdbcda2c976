"""The reference exporter with the real library, and its graphs on our runtime, beside the direct road.

It needs an environment of its own: optimum-onnx wants transformers before 4.58, the other reference tests 5.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytestmark = pytest.mark.slow

_HINT = "needs an environment of its own: pip install torch==2.13.0 (first), then 'edgebench[optimum]'"
if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("torch") is None:
    pytest.skip(_HINT, allow_module_level=True)

from against_transformers import (  # noqa: E402 - after what may skip
    VOCABULARY,
    close,
    logits_of,
    open_model,
    settings,
    write_checkpoint,
)

from edgebench.checkpoint.hf import HFWeights  # noqa: E402
from edgebench.errors import ArtifactError  # noqa: E402
from edgebench.export import onnx as direct  # noqa: E402
from edgebench.export import optimum  # noqa: E402

TOKENS = np.random.default_rng(3).integers(3, VOCABULARY, size=40).tolist()
KNOWN = {
    "llama": {"rope_theta": 50.0},
    "qwen2": {"rope_theta": 50.0},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9, "num_hidden_layers": 6},
}
"""On the direct road as well. A small base turns fast: a wrong one cannot hide in forty tokens."""
FOREIGN = {"gpt_neox": {"rotary_emb_base": 50.0}}
"""Architectures that the direct road does not know."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The libraries warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def logits(folder: Path) -> list[npt.NDArray[np.float32]]:
    """After a prompt, after each of some tokens one by one, and after a continuation."""
    found = []
    with closing(open_model(folder)) as model, closing(model.context(64, settings())) as context:
        context.prefill(TOKENS[:23])
        found.append(context.logits())
        for token in TOKENS[23:30]:
            context.prefill([token])
            found.append(context.logits())
        context.prefill(TOKENS[30:])
        found.append(context.logits())
    return found


def as_transformers_5_writes(folder: Path) -> None:
    """Only the new spelling of the rotation."""
    path = folder / "config.json"
    keys = json.loads(path.read_text())
    new: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.pop("rope_theta")}
    local = keys.pop("rope_local_base_freq", None)
    if local is not None:
        new = {"full_attention": new, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    path.write_text(json.dumps({**keys, "rope_parameters": new}))


@pytest.mark.parametrize("spelling", ["before transformers 5", "since transformers 5"])
@pytest.mark.parametrize("model_type", KNOWN)
def test_both_roads_give_the_same_logits(model_type: str, spelling: str, tmp_path: Path):
    source, ours, theirs = (tmp_path / name for name in ("source", "direct", "optimum"))
    write_checkpoint(model_type, source, **KNOWN[model_type])
    if spelling.startswith("since"):
        as_transformers_5_writes(source)
    ours.mkdir()
    theirs.mkdir()
    with closing(HFWeights(source)) as checkpoint:
        direct.export(checkpoint, ours, "fp32")
    notes = optimum.export(source, theirs)
    assert "copies the whole KV cache" in notes[0]
    found = logits(theirs)
    assert found[0].std() > 0.1
    close(np.array(logits(ours)), np.array(found))


@pytest.mark.parametrize("model_type", FOREIGN)
def test_an_architecture_that_only_optimum_knows_runs_like_the_original(model_type: str, tmp_path: Path):
    source, theirs = tmp_path / "source", tmp_path / "optimum"
    model = write_checkpoint(model_type, source, **FOREIGN[model_type])
    theirs.mkdir()
    optimum.export(source, theirs)
    whole = logits_of(model, TOKENS)
    close(np.array(logits(theirs)), whole[[22, *range(23, 30), -1]])
    with closing(open_model(theirs)) as opened:
        assert "growing KV" in opened.loaded.description
        assert opened.loaded.vocabulary == VOCABULARY


def test_what_optimum_does_not_know_is_refused_by_name(tmp_path: Path):
    source = tmp_path / "source"
    write_checkpoint("llama", source)
    keys = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**keys, "model_type": "nobodys"}))
    (tmp_path / "target").mkdir()
    with pytest.raises(ArtifactError, match="nobodys"):
        optimum.export(source, tmp_path / "target")
