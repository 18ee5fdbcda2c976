from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench import stats
from edgebench.specs import Protocol

rates = st.lists(st.floats(0.1, 1e4), min_size=2, max_size=30)


@given(st.data(), rates)
def test_the_median_and_its_interval_do_not_depend_on_the_order(data: st.DataObject, values: list[float]) -> None:
    shuffled = data.draw(st.permutations(values))
    assert stats.median(shuffled) == stats.median(values)
    assert stats.median_interval(shuffled) == stats.median_interval(values)


@given(rates, st.floats(1e-3, 1e3))
def test_another_unit_scales_the_interval_and_nothing_else(values: list[float], scale: float) -> None:
    one, other = stats.median_interval(values), stats.median_interval([scale * value for value in values])
    assert one is not None
    assert other is not None
    assert (other.low, other.high) == pytest.approx((scale * one.low, scale * one.high), rel=1e-9)


@given(rates, st.floats(0.5, 0.999))
def test_an_interval_holds_the_median(values: list[float], confidence: float) -> None:
    for interval in (stats.median_interval(values, confidence), stats.rounds_interval(values, confidence)):
        assert interval is not None
        assert interval.low <= stats.median(values) * (1 + 1e-12)
        assert interval.high >= stats.median(values) * (1 - 1e-12)


@given(rates)
def test_the_interval_of_rounds_is_at_least_as_wide_as_that_of_independent_values(values: list[float]) -> None:
    plain, wide = stats.median_interval(values), stats.rounds_interval(values)
    assert plain is not None
    assert wide is not None
    assert wide.low <= plain.low * (1 + 1e-9)
    assert wide.high >= plain.high * (1 - 1e-9)


@given(rates)
def test_more_confidence_never_narrows_an_interval(values: list[float]) -> None:
    narrow, wide = stats.median_interval(values, 0.80), stats.median_interval(values, 0.99)
    assert narrow is not None
    assert wide is not None
    assert wide.low <= narrow.low
    assert wide.high >= narrow.high


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)), min_size=2, max_size=20))
def test_swapping_two_artifacts_inverts_their_ratio(pairs: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assert stats.ratio(a, b) * stats.ratio(b, a) == pytest.approx(1, rel=1e-9)


@given(st.lists(st.floats(0.1, 1e4), min_size=4, max_size=20, unique=True))
def test_playing_the_rounds_backwards_turns_a_drift_round(values: list[float]) -> None:
    there, back = stats.drift(values), stats.drift(values[::-1])
    assert there is not None
    assert back is not None
    assert back.p_value == there.p_value
    assert (1 + there.change) * (1 + back.change) == pytest.approx(1, rel=1e-6)


@given(st.lists(st.floats(1.0, 1e3), min_size=1, max_size=35))
def test_a_stop_for_the_target_means_that_the_target_is_met(values: list[float]) -> None:
    decision = stats.should_stop({"tg128": values}, Protocol())
    if decision.reason == "target":
        assert decision.half_width is not None
        assert decision.half_width <= Protocol().target_half_width
    assert decision.stop == (decision.reason != "continue")
