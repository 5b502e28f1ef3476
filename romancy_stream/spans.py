"""Spans of time as users give them, in seconds or as a timedelta, as numbers. Whoever takes one says what it may be;
here is only what they share."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

_US: Final = timedelta(microseconds=1)


def in_seconds(span: float | timedelta) -> float:
    """What is no timedelta comes back as it is."""
    return span.total_seconds() if isinstance(span, timedelta) else span


def in_us(span: float | timedelta) -> int:
    """Exactly, where it is a timedelta. A number has to be finite."""
    return span // _US if isinstance(span, timedelta) else round(span * 1_000_000)


def seconds_above_0(name: str, span: float | timedelta) -> float:
    """ValueError for anything else."""
    number = in_seconds(span)
    if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be a number of seconds above 0, or a timedelta, not {span!r}")
    return float(number)
