"""What grows old in the owned partitions: events and messages that nobody took in time and instances that have been
finished for long, which the core is told of, and rows that only remember (which messages were taken in, which instances
were deleted), which are forgotten here. Looks for them once in a while, or when the next of them is due where nothing
happens; decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Final

from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import Input, ItemExpired, Outlived
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.runtime.rest import Rest
from romancy_stream.store.database import finished
from romancy_stream.store.port import Store

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 60.0
"""While something happens. Nobody is given what is too old, whether it was swept or not: this is about space."""
LOOK_AT_LEAST_S: Final = 86_400.0
"""While nothing happens, and nothing becomes too old for longer: clocks drift, and machines sleep."""
ROWS_AT_ONCE: Final = 1_000
DEDUP_WINDOW_S: Final = 7 * 86_400.0
TOMBSTONES_S: Final = 30 * 86_400.0
RETIRED_AT_ONCE: Final = (1, 200)
"""Finished instances that go with one commit, at least and at most: some have one event, some ten thousand."""
RETIRING_S: Final = 0.1
"""About how long one such commit may keep the partitions' other work waiting."""
REST: Final = 4.0
"""After each of them, times as long as it took: what is over takes a fifth of the time at most."""

Feed = Callable[[Sequence[Input]], Awaitable[Sequence[Input]]]


class Expiry:
    """`dedup_window_s`: how long a message from outside is known by its source and id. `retention_s`: how long finished
    instances are kept; None: for ever."""

    def __init__(
        self,
        core: EngineCore,
        store: Store,
        dedup_window_s: float = DEDUP_WINDOW_S,
        retention_s: float | None = None,
    ) -> None:
        self._core = core
        self._store = store
        self._dedup_window_s = dedup_window_s
        self._retention_s = retention_s
        self._at_once = RETIRED_AT_ONCE[0]
        self.rest = Rest()

    async def run(self, feed: Feed) -> None:
        """For ever. `feed` takes inputs for the core and returns those that are committed; raises what it raises."""
        while True:
            await self.rest.pause(LOOK_EVERY_S)
            try:
                await self.sweep(feed)
                if not self.rest.stirred:
                    await self.rest.sleep(min(await self._due_s(), LOOK_AT_LEAST_S))
            except StoreUnavailableError as error:
                log.warning("what is too old stays for now: %s", error)

    async def sweep(self, feed: Feed) -> None:
        await self._expire(feed)
        now_us = await finished(self._store.now_us())
        await self._forget(self._store.forget_intake, now_us - round(self._dedup_window_s * 1_000_000))
        await self._forget(self._store.forget_tombstones, now_us - round(TOMBSTONES_S * 1_000_000))
        if self._retention_s is not None:
            await self._retire(feed, now_us - round(self._retention_s * 1_000_000))

    async def _due_s(self) -> float:
        """Until something of what is there now becomes too old; less than nothing for what is so already and could not
        be removed. Not long while partitions are being taken over."""
        parts = sorted(self._core.owned)
        if not parts:
            return LOOK_EVERY_S
        oldest = await finished(self._store.oldest(parts))
        retention_s = inf if self._retention_s is None else self._retention_s
        kept = (
            (oldest.expires_us, 0.0),
            (oldest.intake_us, self._dedup_window_s),
            (oldest.tombstone_us, TOMBSTONES_S),
            (oldest.finished_us, retention_s),
        )
        due_s = [(at_us - oldest.now_us) / 1_000_000 + for_s for at_us, for_s in kept if at_us is not None]
        return min(due_s, default=inf)

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

    async def _retire(self, feed: Feed, before_us: int) -> None:
        """In commits that are small enough, with rests between them: work that is under way goes first."""
        least, most = RETIRED_AT_ONCE
        clock = asyncio.get_running_loop().time
        full = True
        while full and (parts := sorted(self._core.owned)):
            found = await finished(self._store.finished_before(parts, before_us, self._at_once))
            began_s = clock()
            retired = await feed([Outlived(*each, before_us) for each in found]) if found else ()
            took_s = clock() - began_s
            full = len(retired) == self._at_once  # else there is nothing more, or what there is cannot be removed
            self._at_once = max(least, self._at_once // 2) if took_s > RETIRING_S else min(most, 2 * self._at_once)
            if full:
                await asyncio.sleep(took_s * REST)
