"""How much at a time: of a queue of activities in one worker process, of a workflow anywhere. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from romancy_stream.spans import seconds_above_0

RATE_LIMIT_MOST: Final = 100_000
"""Starts that are remembered for a rate limit: a float each."""

KEY_CHARS: Final = 255


@dataclass(frozen=True, slots=True, init=False)
class RateLimit:
    """At most `limit` starts of attempts within any span of `per` seconds (a timedelta is accepted)."""

    limit: int
    per: float

    def __init__(self, limit: int, per: float | timedelta = 1.0) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= RATE_LIMIT_MOST:
            raise ValueError(f"limit must be a whole number from 1 to {RATE_LIMIT_MOST:,}, not {limit!r}")
        per_s = seconds_above_0("per", per)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "per", per_s)

    @property
    def every_us(self) -> int:
        """From one start to the next, where they are evenly spread."""
        return max(1, math.ceil(self.per / self.limit * 1_000_000))


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Of one queue. `concurrency` and `rate_limit`: in each worker process; `global_rate`: in all of them together.
    None: no limit but that of the process."""

    concurrency: int | None = None
    rate_limit: RateLimit | None = None
    global_rate: RateLimit | None = None

    def __post_init__(self) -> None:
        concurrency = self.concurrency
        if concurrency is not None and (
            not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1
        ):
            raise ValueError(f"concurrency must be a whole number of at least 1, or None, not {concurrency!r}")


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `limit` runs of a workflow at a time whose inputs have the same value in the field `key` ("customer_id",
    "customer.id"; None: of all its runs). The others wait, in the order in which they were started; a run whose input
    lacks the field does not."""

    key: str | None = None
    limit: int = 1

    def __post_init__(self) -> None:
        key, limit = self.key, self.limit
        if key is not None and (not isinstance(key, str) or not 0 < len(key) <= KEY_CHARS or "" in key.split(".")):
            raise ValueError(f"key must be a field of the input such as 'customer_id' or 'customer.id', not {key!r}")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ValueError(f"limit must be a whole number of at least 1, not {limit!r}")


UNLIMITED: Final = QueueOptions()
