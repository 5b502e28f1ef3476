"""Long attempts whose worker is not heard of any more. Their tasks are behind the worker's committed offset, so nobody
delivers them again; the lease of the worker process stands for them instead. The owner of a partition looks for leases
that have run out, as long as attempts are open, and hands what it finds to the core, which dispatches the same attempts
again. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import Input, LeaseLapsed
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.runtime.rest import Rest
from romancy_stream.store.database import finished
from romancy_stream.store.port import Detached, Store

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 30.0
"""While an attempt is under way: whoever has it may detach it at any moment. The tables know of it, also where its
instance is not in memory."""
LOOK_AGAIN_S: Final = 5.0
"""Before a lease counts as lapsed. When the database was away, all leases have run out: this is the time in which the
workers that live say so. They ask again at least that often."""
LAPSED_AT_ONCE: Final = 1_000

Feed = Callable[[Sequence[Input]], Awaitable[Sequence[Input]]]


class Lapses:
    def __init__(self, core: EngineCore, store: Store) -> None:
        self._core = core
        self._store = store
        self.rest = Rest()
        self._dealt_with: dict[Detached, None] = {}  # and still in the table

    async def run(self, feed: Feed) -> None:
        """For ever. `feed` takes inputs for the core and returns those that are committed; raises what it raises."""
        while True:
            await self.rest.pause(LOOK_EVERY_S)
            lapsed = await self._look()
            if lapsed:
                await asyncio.sleep(LOOK_AGAIN_S)
                still = set(await self._look())
                await self.dispatch([each for each in lapsed if each in still], feed)
            elif not self.rest.stirred and not await self._may_come():
                await self.rest.sleep()

    async def _look(self) -> Sequence[Detached]:
        """Nothing, when the database does not answer."""
        parts = sorted(self._core.owned)
        if not parts:
            return ()
        try:
            await self._tidy()
            return await finished(self._store.lapsed(parts, LAPSED_AT_ONCE))
        except StoreUnavailableError as error:
            log.warning("attempts of workers that may be gone stay as they are for now: %s", error)
            return ()

    async def _may_come(self) -> bool:
        """Something, before the next commit. Perhaps, while partitions are being taken over, and when the database does
        not answer."""
        parts = sorted(self._core.owned)
        try:
            return not parts or await finished(self._store.open_attempts(parts))
        except StoreUnavailableError as error:
            log.warning("whether workers have long attempts is not known for now: %s", error)
            return True

    async def dispatch(self, lapsed: Sequence[Detached], feed: Feed) -> None:
        if not lapsed:
            return
        found = {
            LeaseLapsed(
                each.part, each.key.instance_id, each.key.run, each.key.activity_id, each.attempt, each.incarnation
            ): each
            for each in lapsed
        }
        dispatched = [found[each] for each in await feed(list(found)) if isinstance(each, LeaseLapsed)]
        for worker, count in Counter(each.incarnation for each in dispatched).items():
            log.warning("worker process %s is not heard of; long attempts taken from it: %d", worker, count)
        self._dealt_with.update(dict.fromkeys(dispatched))
        try:
            await self._tidy()
        except StoreUnavailableError as error:
            log.warning("dispatched attempts are still recorded as detached: %s", error)

    async def _tidy(self) -> None:
        """Before anybody looks again: what is found a second time is dispatched a second time."""
        done = list(self._dealt_with)
        await finished(self._store.attach(done))
        for each in done:
            del self._dealt_with[each]
