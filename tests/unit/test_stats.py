from __future__ import annotations

import itertools
import math

import pytest

from edgebench import stats
from edgebench.specs import Protocol
from edgebench.stats import Interval

QUIET = [250.0, 250.4, 249.8, 250.2, 250.1, 249.9, 250.3, 250.0]


def test_the_median_is_the_middle_or_the_mean_of_the_two_middle_values() -> None:
    assert stats.median([3.0, 1.0, 2.0]) == 2.0
    assert stats.median([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_quantiles_interpolate_as_numpy_does() -> None:
    assert stats.quantile([1.0, 2.0, 3.0, 4.0], 0.95) == pytest.approx(3.85)
    assert (stats.quantile([5.0], 0.99), stats.quantile([1.0, 9.0], 1.0)) == (5.0, 9.0)


def test_no_values_have_no_median() -> None:
    with pytest.raises(ValueError, match="0 values"):
        stats.median([])


def test_six_rounds_span_from_the_smallest_to_the_largest() -> None:
    assert stats.median_interval([6.0, 1, 5, 2, 4, 3]) == Interval(1.0, 6.0, 0.95)


def test_twenty_rounds_use_the_textbook_ranks() -> None:
    # Binomial(20, 1/2): ranks 6 and 15 cover with 95.86 %.
    assert stats.median_interval([float(x) for x in range(1, 21)]) == Interval(6.0, 15.0, 0.95)


def test_few_rounds_stretch_their_range() -> None:
    spans = []
    for n in (2, 3, 4, 5):
        interval = stats.median_interval([1.0, *[1.005] * (n - 2), 1.01])
        assert interval is not None
        assert interval.low < 1.0
        assert interval.high > 1.01
        spans.append(interval.high / interval.low)
    assert spans == sorted(spans, reverse=True)


def test_a_higher_confidence_than_the_ranks_can_give_stretches_too() -> None:
    interval = stats.median_interval([1.0, 2, 3, 4, 5, 6], 0.99)
    assert interval is not None
    assert interval.low < 1.0
    assert interval.high > 6.0


def test_two_rounds_that_have_nothing_in_common_still_have_a_finite_interval() -> None:
    interval = stats.median_interval([1.0, 1e9], 0.99)
    assert interval is not None
    assert 0 < interval.low < 1e9 < interval.high < math.inf


def test_one_round_has_no_interval() -> None:
    assert stats.median_interval([250.0]) is None
    assert stats.median_interval([]) is None


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_round_without_a_positive_value_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        stats.median_interval([1.0, bad])


def test_a_confidence_of_ninety_five_means_0_95() -> None:
    with pytest.raises(ValueError, match="confidence"):
        stats.median_interval([1.0, 2.0], 95)


def test_rounds_that_resemble_their_neighbours_get_a_wider_interval() -> None:
    restless = [1.0, 8, 2, 7, 3, 6, 4, 5]
    plain, wide = stats.rounds_interval(restless), stats.rounds_interval(sorted(restless))
    assert plain is not None
    assert wide is not None
    assert (plain.low, plain.high) == pytest.approx((1.0, 8.0))
    assert wide.low < plain.low < plain.high < wide.high


def test_identical_rounds_have_an_interval_at_their_value() -> None:
    assert stats.rounds_interval([5.0] * 8) == Interval(5.0, 5.0, 0.95)


def test_paired_rounds_cancel_what_slows_both() -> None:
    slow = [1.0, 0.5, 0.9, 1.0, 0.7, 0.8, 1.0, 0.6]
    a, b = [1.10 * s * (1 + 0.001 * i) for i, s in enumerate(slow)], slow
    interval = stats.ratio_interval(a, b)
    assert interval is not None
    assert 1.09 < interval.low < interval.high < 1.12
    assert stats.ratio(a, b) == pytest.approx(1.10 * 1.0035, rel=1e-3)


def test_rounds_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        stats.ratio_interval([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(1.03, 1.06, "faster"), (0.9, 0.99, "slower"), (0.99, 1.01, "same"), (0.9, 1.1, "cannot tell")],
)
def test_a_verdict_needs_an_interval_that_supports_it(low: float, high: float, says: str) -> None:
    assert stats.verdict(Interval(low, high, 0.95)) == says


def test_without_an_interval_there_is_no_verdict() -> None:
    assert stats.verdict(None) == "cannot tell"


def test_a_steady_fall_is_a_drift() -> None:
    drift = stats.drift([100.0, 99, 98, 97, 96, 95, 94, 93])
    assert drift is not None
    assert drift.change == pytest.approx(-0.07, abs=1e-3)
    assert drift.p_value == pytest.approx(2 / math.factorial(8))


def test_the_p_value_of_a_trend_is_that_of_all_orders() -> None:
    for values in ([1.0, 3, 2, 5, 4], [2.0, 1, 5, 3, 4]):
        scores = [
            abs(sum((b > a) - (b < a) for a, b in itertools.combinations(order, 2)))
            for order in itertools.permutations(values)
        ]
        drift = stats.drift(values)
        assert drift is not None
        assert drift.p_value == pytest.approx(sum(s >= scores[0] for s in scores) / len(scores))


def test_ties_carry_no_trend() -> None:
    drift = stats.drift([5.0] * 10)
    assert drift == stats.Drift(0.0, 1.0)
    mixed = stats.drift([1.0, 2, 2, 1, 1, 2, 1, 2])
    assert mixed is not None
    assert mixed.p_value > 0.1


def test_three_rounds_show_no_drift() -> None:
    assert stats.drift([3.0, 2.0, 1.0]) is None


def test_it_goes_on_until_the_least_number_of_rounds() -> None:
    decision = stats.should_stop({"tg128": QUIET[:5]}, Protocol())
    assert (decision.stop, decision.reason, decision.worst_metric) == (False, "continue", "tg128")
    assert decision.half_width is not None


def test_it_stops_when_every_metric_met_the_target_twice() -> None:
    decision = stats.should_stop({"tg128": QUIET[:6], "pp512": QUIET[:6]}, Protocol())
    assert (decision.stop, decision.reason) == (True, "target")


def test_one_wide_metric_keeps_it_going_and_is_named() -> None:
    wide = [100.0, 120, 90, 110, 105, 95]
    decision = stats.should_stop({"tg128": QUIET[:6], "pp512": wide}, Protocol())
    assert (decision.stop, decision.worst_metric) == (False, "pp512")


def test_it_does_not_stop_at_the_first_narrow_look() -> None:
    lucky = [250.0, 258.0, 242.0, 250.5, 249.5, 250.2, 249.8, 250.1, 249.9]
    widths = [stats._half_width(lucky[:n], 0.95) or 1 for n in range(6, 10)]
    assert widths[-1] <= 0.02 < widths[-2]
    assert not stats.should_stop({"tg128": lucky}, Protocol()).stop
    assert stats.should_stop({"tg128": [*lucky, 250.0]}, Protocol()).reason == "target"


def test_it_gives_up_after_the_largest_number_of_rounds() -> None:
    decision = stats.should_stop({"tg128": [100.0, 150.0] * 15}, Protocol())
    assert (decision.stop, decision.reason) == (True, "max-rounds")


@pytest.mark.parametrize("values", [{}, {"tg128": []}])
def test_without_rounds_it_goes_on(values: dict[str, list[float]]) -> None:
    assert stats.should_stop(values, Protocol()) == stats.StopDecision(
        stop=False, reason="continue", worst_metric="", half_width=None
    )


def test_a_single_round_has_no_half_width_to_stop_on() -> None:
    assert stats.should_stop({"tg128": [1.0]}, Protocol(min_rounds=1, max_rounds=1)).reason == "max-rounds"
