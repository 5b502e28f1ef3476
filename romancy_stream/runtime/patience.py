"""How an engine calls the database, which must neither hang it for ever nor be given up at once: again while it is
away, each call for a limited time, and for little time when the engine is leaving. And how those call a server who have
nothing to do without its answer. Knows nothing of what is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from romancy_stream.errors import BrokerUnavailableError, StoreUnavailableError
from romancy_stream.store.database import first_done, seen

log = logging.getLogger(__name__)

T = TypeVar("T")

STORE_PATIENCE_S: Final = 5.0
"""How long a batch waits for the database before the owner gives its partitions up."""
CALL_LIMIT_S: Final = 25.0
"""How long one call of the database may hang. Longer than it waits for a lock; shorter than the others of the group
wait for a member in a rebalance."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""Between two attempts to reach the database."""
AWAY_PAUSE_S: Final = (0.1, 5.0)
"""The same for who asks as long as it takes."""


async def as_long_as_it_takes(call: Callable[[], Awaitable[T]], told: str) -> T:
    """Until the database or the broker answers, or the caller is cancelled. `told`: what the log says of each failure,
    before the error."""
    pause_s = AWAY_PAUSE_S[0]
    while True:
        try:
            return await call()
        except (BrokerUnavailableError, StoreUnavailableError) as error:
            log.warning("%s: %s", told, error)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, AWAY_PAUSE_S[1])


class Patience:
    def __init__(self) -> None:
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def give_up(self) -> None:
        """Who waits is told that nobody answers; calls from here on are made once."""
        if not self._given_up.done():
            self._given_up.set_result(None)

    async def patiently(self, call: Callable[[], Coroutine[Any, Any, T]], patience_s: float | None = None) -> T:
        """Again while the database is away, for a while. `call` may be made any number of times."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + (STORE_PATIENCE_S if patience_s is None else patience_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await call()
            except StoreUnavailableError:
                if loop.time() >= give_up_at or self._given_up.done():
                    raise
            await first_done([self._given_up], pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def ask(self, call: Callable[[], Coroutine[Any, Any, T]], whom: str = "the database") -> T:
        """Patiently."""
        return await self.patiently(lambda: self.answer(call(), whom))

    async def answer(self, work: Coroutine[Any, Any, T], whom: str = "the database") -> T:
        """Of one call to the database. It is never cut off, which would leave its outcome open: one that hangs is left
        behind, and whatever it still does is fenced by the takeover that must follow."""
        call = asyncio.ensure_future(work)
        call.add_done_callback(seen)
        await first_done([call, self._given_up], CALL_LIMIT_S)
        try:
            if not call.done():
                raise StoreUnavailableError(f"{whom} does not answer")
            return call.result()
        finally:
            del call  # it has the error that has this frame
