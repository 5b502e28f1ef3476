"""Spans of time, in seconds or as a timedelta, as numbers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from romancy_stream.spans import in_seconds, in_us, seconds_above_0


def test_a_span_is_a_number_of_seconds_or_a_timedelta() -> None:
    assert in_seconds(1.5) == in_seconds(timedelta(milliseconds=1500)) == 1.5
    assert in_us(1.5) == in_us(timedelta(milliseconds=1500)) == 1_500_000
    assert seconds_above_0("limit", timedelta(minutes=1)) == seconds_above_0("limit", 60) == 60.0


def test_a_timedelta_loses_no_microsecond() -> None:
    """Its seconds, as a float, would."""
    assert in_us(timedelta.max) == in_us(timedelta.max - timedelta(microseconds=1)) + 1


@pytest.mark.parametrize("span", [0, -1.0, timedelta(0), float("inf"), float("nan"), True, "1", None])
def test_what_has_to_be_above_0_is_named(span: Any) -> None:
    with pytest.raises(ValueError, match="limit must be a number of seconds above 0, or a timedelta"):
        seconds_above_0("limit", span)
