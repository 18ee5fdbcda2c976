"""The experiments in scripts/: how they judge, and how far is far."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from types import SimpleNamespace

import costs
import experiment
import large_checkpoint
import numpy as np
import onnx_quality
import pytest
from divergence import diverge, mean_interval, read_text

from edgebench.stats import Interval


@pytest.mark.parametrize(
    ("value", "interval", "limits", "verdict"),
    [
        (1.0, Interval(0.9, 1.1, 0.95), {}, ""),
        (1.0, Interval(0.9, 1.1, 0.95), {"low": 0.9}, "PASS"),
        (1.0, Interval(0.8, 1.1, 0.95), {"low": 0.9}, "WIDE"),
        (1.0, None, {"low": 0.9}, "WIDE"),
        (0.8, Interval(0.7, 1.1, 0.95), {"low": 0.9}, "MISS"),
        (1.0, Interval(0.9, 1.1, 0.95), {"low": 0.9, "high": 1.1}, "PASS"),
        (1.0, Interval(0.9, 1.2, 0.95), {"low": 0.9, "high": 1.1}, "WIDE"),
        (1.2, Interval(0.9, 1.3, 0.95), {"high": 1.1}, "MISS"),
    ],
)
def test_a_figure_passes_with_its_whole_interval(value, interval, limits, verdict):
    assert experiment.judge(value, interval, **limits) == verdict


def test_a_cost_without_an_interval_is_judged_by_its_one_number():
    assert costs.judge("time", 4.0, 5.0, "s").verdict == "PASS"
    assert costs.judge("time", 6.0, 5.0, "s").verdict == "MISS"
    assert costs.judge("time", 6.0, None, "s").verdict == ""
    assert costs.judge("time", 4.0, 5.0, "s", Interval(3.0, 6.0, 0.95)).verdict == "WIDE"


def test_a_process_does_not_outlive_its_block():
    with experiment.running([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.PIPE) as process:
        started = time.monotonic()
    assert process.returncode == -9
    assert time.monotonic() - started < 30


def test_a_failed_command_is_told_with_the_end_of_what_it_said():
    status, said, complained = experiment.run_program([sys.executable, "-c", "raise SystemExit('broken')"])
    error = experiment.failed(["python"], status, said + complained, "repair it.")
    assert "status 1" in str(error)
    assert "broken" in str(error)
    assert "repair it." in str(error)


def test_the_divergence_of_two_coins():
    fair, loaded = np.log(np.float32([0.5, 0.5])), np.log(np.float32([0.9, 0.1]))
    text = read_text([[0, 0], [1, 0]], [fair] * 4)
    found = diverge([fair + 3, fair, loaded, loaded], text)  # logits may all be larger by the same
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert found.by_window == pytest.approx([0.0, expected], abs=1e-6)
    assert found.kld == pytest.approx(expected / 2, rel=1e-6)
    # After the last token of a window nothing follows: two tokens are scored, one of them with 0.9 for 0.5.
    assert found.ppl_ratio == pytest.approx(math.sqrt(0.5 / 0.9), rel=1e-6)


def test_somebody_who_stops_early_is_not_compared():
    fair = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="shorter"):
        diverge([fair], read_text([[0, 0]], [fair] * 2))


def test_the_interval_of_a_mean_is_that_of_student():
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval is not None
    assert interval.high - 2.0 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert mean_interval([1.0]) is None
    many = mean_interval([float(number % 2) for number in range(1000)])
    assert many is not None
    assert many.high - 0.5 == pytest.approx(1.96 * 0.5 / math.sqrt(1000), rel=0.06)


def rows(**changes: float) -> dict:
    """Divergence and size of everybody; what is not named is as it should be."""
    figures = {
        ("llamacpp", "q8_0"): 0.005,
        ("ort", "q8_0"): 0.005,
        ("llamacpp", "q4_0"): 0.3,
        ("ort", "q4_0"): 0.3,
        ("ort", "int8"): 0.005,
        ("ort", "int4-mixed"): changes.get("mixed", 0.2),
        ("genai", "int4"): 0.4,
    }
    figures["ort", "q4_0"] *= changes.get("twin", 1.0)
    figures["ort", "int8"] = changes.get("int8", 0.005)
    sizes = {("ort", "int4-mixed"): changes.get("size", 120), ("genai", "int4"): 100}
    return {
        name: SimpleNamespace(
            kld=kld, by_window=tuple(kld * (1 + 0.01 * at) for at in range(8)), bytes=sizes.get(name, 100)
        )
        for name, kld in figures.items()
    }


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, None),
        ({"twin": 1.06}, "q4_0: twins' divergences differ by"),
        ({"int8": 0.011}, "int8 loses (nat)"),
        ({"mixed": 0.4}, "int4-mixed / genai int4, divergence"),
        ({"size": 126}, "int4-mixed / genai int4, bytes"),
    ],
)
def test_each_target_of_quality_can_be_missed(changes, missed):
    lines = onnx_quality.verdicts(rows(**changes))
    assert [line.what for line in lines if line.verdict == "MISS"] == ([missed] if missed else [])
    assert all(line.verdict == "PASS" for line in lines if line.what != missed)


def test_the_large_checkpoint_is_cut_into_shards_and_has_a_word_for_every_row():
    shapes = large_checkpoint.shapes(28)
    parts = list(large_checkpoint.shards(shapes))
    sizes = [2 * sum(large_checkpoint.elements(shapes[name]) for name in part) for part in parts]
    assert [name for part in parts for name in part] == list(shapes)
    assert max(sizes) <= large_checkpoint.SHARD_BYTES
    assert sum(sizes) / 2 == pytest.approx(3.2e9, rel=0.01)
    assert len(large_checkpoint.tokenizer()["model"]["vocab"]) == large_checkpoint.WORDS
