"""How a burst is begun, alike for all: so many starts under way together, never more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from benchmarks.settings import STARTS_AT_ONCE

T = TypeVar("T")


async def in_chunks(call: Callable[[int], Awaitable[T]], numbers: Iterable[int]) -> list[T]:
    """`call` of each number, in order; the next chunk when all of the last have returned."""
    left, done = list(numbers), []
    while left:
        done += await asyncio.gather(*(call(number) for number in left[:STARTS_AT_ONCE]))
        del left[:STARTS_AT_ONCE]
    return done
