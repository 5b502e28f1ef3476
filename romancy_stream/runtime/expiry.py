"""What grows old in the owned partitions: events and messages that nobody took in time, which the core is told of, and
rows that only remember (which messages were taken in, which instances were deleted), which are forgotten here. Looks
for them once in a while; decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import Input, ItemExpired
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.store.database import finished
from romancy_stream.store.port import Store

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 60.0
"""Nobody is given what is too old, whether it was swept or not: this is about space."""
ROWS_AT_ONCE: Final = 1_000
DEDUP_WINDOW_S: Final = 7 * 86_400.0
TOMBSTONES_S: Final = 30 * 86_400.0

Feed = Callable[[Sequence[Input]], Awaitable[Sequence[Input]]]


class Expiry:
    """`dedup_window_s`: how long a message from outside is known by its source and id."""

    def __init__(self, core: EngineCore, store: Store, dedup_window_s: float = DEDUP_WINDOW_S) -> None:
        self._core = core
        self._store = store
        self._dedup_window_s = dedup_window_s

    async def run(self, feed: Feed) -> None:
        """For ever. `feed` takes inputs for the core and returns those that are committed; raises what it raises."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.sweep(feed)
            except StoreUnavailableError as error:
                log.warning("what is too old stays for now: %s", error)

    async def sweep(self, feed: Feed) -> None:
        await self._expire(feed)
        now_us = await finished(self._store.now_us())
        await self._forget(self._store.forget_intake, now_us - round(self._dedup_window_s * 1_000_000))
        await self._forget(self._store.forget_tombstones, now_us - round(TOMBSTONES_S * 1_000_000))

    async def _expire(self, feed: Feed) -> None:
        full = True
        while full and (parts := sorted(self._core.owned)):
            found = await finished(self._store.expired_items(parts, ROWS_AT_ONCE))
            committed = await feed([ItemExpired(*each) for each in found]) if found else ()
            full = len(committed) == ROWS_AT_ONCE  # else there is nothing more, or what there is cannot be removed

    async def _forget(self, forget: Callable[[Sequence[int], int, int], Awaitable[int]], before_us: int) -> None:
        parts = sorted(self._core.owned)
        while parts and await forget(parts, before_us, ROWS_AT_ONCE) == ROWS_AT_ONCE:
            pass
