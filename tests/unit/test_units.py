from __future__ import annotations

import math

import pytest

from edgebench.errors import UsageError
from edgebench.units import (
    MIB,
    format_bytes_mib,
    format_estimate,
    format_half_width,
    format_percent,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_duration,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.24, "1.24 s"),
        (0.0123, "12.3 ms"),
        (45e-6, "45.0 us"),
        (0.0, "0 s"),
        (0.9996, "1.00 s"),
        (0.0009996, "1.00 ms"),
        (119.4, "119 s"),
        (119.5, "2m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (3725, "1h02m"),
    ],
)
def test_a_duration_is_shown_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(213.4, "213"), (21.34, "21.3"), (2.134, "2.13"), (99.96, "100"), (1234.4, "1234"), (0.01234, "0.0123"), (0, "0")],
)
def test_a_rate_has_three_significant_digits_and_all_its_whole_ones(rate: float, text: str) -> None:
    assert format_rate(rate) == text


def test_memory_is_shown_in_mib() -> None:
    assert format_bytes_mib(98_345_678) == "93.8"
    assert format_bytes_mib(1624 * MIB) == "1624"


def test_a_share_is_shown_as_per_cent() -> None:
    assert format_percent(0.0123) == "1.2 %"
    assert format_percent(0.987, digits=3) == "98.7 %"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_measurement(value: float) -> None:
    with pytest.raises(ValueError, match="no measurement"):
        format_rate(value)


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (213.0, 211.0, 215.5, "", "213 ±1.2 %"),
        (213.0, 210.0, 214.0, "tok/s", "213 tok/s ±1.4 %"),
        (0.0123, 0.0122, 0.0124, "s", "12.3 ms ±0.81 %"),
        (98_345_678, None, None, "B", "93.8 MiB ±?"),
        (213.0, None, None, "", "213 ±?"),
        (213.0, 1.0, 9e9, "", "213 ±>100 %"),
    ],
)
def test_an_estimate_shows_the_larger_side_of_its_interval(
    value: float, low: float | None, high: float | None, unit: str, text: str
) -> None:
    assert format_estimate(value, low, high, unit) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), (" 1.5 h ", 5400), ("250ms", 0.25), ("2M", 120), ("1d", 86400)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "90", "s", "-5s", "nan", "nans", "infs", "1e9s", "30m1h", "5m5m", "0s", "400d", "1h 30", "٣s", "1.s"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="90s, 10m, 1h30m") as caught:
        parse_duration(text)
    assert repr(text) in caught.value.what


@pytest.mark.parametrize(
    ("text", "n"),
    [("2GiB", 2 * 2**30), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("4096", 4096), ("2G", 2 * 2**30)],
)
def test_amounts_of_memory_are_read(text: str, n: int) -> None:
    assert parse_bytes(text) == n


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GB", "nan", "inf", "0", "0.1", "5 bananas", "9999999TiB", "1 2GB", "2GiBs"]
)
def test_what_is_no_amount_of_memory_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="2GiB, 500MB") as caught:
        parse_bytes(text)
    assert repr(text) in caught.value.what


def test_a_half_width_beyond_the_value_itself_is_no_figure():
    assert format_half_width(0.012) == "±1.2 %"
    assert format_half_width(3.8e23) == "±>100 %"
