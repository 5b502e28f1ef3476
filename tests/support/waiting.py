"""Polls a condition up to a deadline, so that no test sleeps and hopes. Touches nothing."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")
LIMIT_S = 90.0
"""Only what hangs takes so long, also on a machine that has next to no time for us. Less than the limit of a test."""


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], deadline_s: float = LIMIT_S, every_s: float = 0.02, message: str = ""
) -> T: ...
@overload
async def eventually(
    predicate: Callable[[], T], deadline_s: float = LIMIT_S, every_s: float = 0.02, message: str = ""
) -> T: ...
async def eventually(
    predicate: Callable[[], object], deadline_s: float = LIMIT_S, every_s: float = 0.02, message: str = ""
) -> object:
    """Returns the first true value of `predicate` (plain or async).

    An AssertionError inside the predicate means "not yet"; any other exception passes through at once. When the
    deadline passes, raises AssertionError with `message` and the last value or assertion seen.
    """
    last = "it never answered"
    try:
        async with asyncio.timeout(deadline_s) as deadline:
            while True:
                try:
                    value = predicate()
                    if inspect.isawaitable(value):
                        value = await value
                except AssertionError as error:
                    last = f"last assertion: {error}"
                else:
                    if value:
                        return value
                    last = f"last value: {value!r}"
                await asyncio.sleep(every_s)
    except TimeoutError:
        if not deadline.expired():
            raise
        what = message or getattr(predicate, "__qualname__", repr(predicate))
        raise AssertionError(f"not within {deadline_s:g} s: {what} ({last})") from None
