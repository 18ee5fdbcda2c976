from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench.errors import UsageError
from edgebench.units import format_bytes_mib, format_rate, format_seconds, parse_bytes, parse_duration


@given(st.floats(1e-6, 30 * 86400.0))
def test_a_shown_duration_reads_back_as_the_same(seconds: float) -> None:
    # Three significant digits below an hour, whole minutes above it.
    assert parse_duration(format_seconds(seconds)) == pytest.approx(seconds, rel=0.0085)


@given(st.integers(1024, 2**50))
def test_a_shown_amount_of_memory_reads_back_as_the_same(n: int) -> None:
    assert parse_bytes(f"{format_bytes_mib(n)}MiB") == pytest.approx(n, rel=0.0051)


@given(st.floats(1e-9, 1e12))
def test_a_shown_rate_reads_back_as_the_same(rate: float) -> None:
    text = format_rate(rate)
    assert "e" not in text
    assert float(text) == pytest.approx(rate, rel=0.0051)


@given(st.sampled_from([parse_duration, parse_bytes]), st.text(max_size=20))
def test_reading_any_text_gives_a_positive_number_or_a_usage_error(parse: Callable[[str], float], text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse(text) > 0
