"""When those look again who look into the database once in a while. What lies in an owned partition's tables is put
there by its owner's commits, so where a look found that nothing is left that could become anything, the next one can
wait for a commit, or for another partition. Touches nothing."""

from __future__ import annotations

import asyncio
import contextlib


class Rest:
    """One for each who looks. Whatever comes during a look counts as come after it."""

    def __init__(self) -> None:
        self._now = asyncio.Event()
        self._stirred = asyncio.Event()
        self.asleep = False

    @property
    def stirred(self) -> bool:
        """Since the last pause."""
        return self._stirred.is_set()

    def stir(self) -> None:
        """Something was committed."""
        self._stirred.set()

    def hurry(self) -> None:
        """Other partitions are owned."""
        self._stirred.set()
        self._now.set()

    async def pause(self, seconds: float) -> bool:
        """Before a look; True where it came to an early end by `hurry`."""
        await wait_at_most(self._now, seconds)
        hurried = self._now.is_set()
        self._now.clear()
        self._stirred.clear()
        return hurried

    async def sleep(self, limit_s: float | None = None) -> None:
        """After a look that found nothing left: until something stirs."""
        self.asleep = True
        try:
            await wait_at_most(self._stirred, limit_s)
        finally:
            self.asleep = False


async def wait_at_most(event: asyncio.Event, limit_s: float | None) -> None:
    """Until it is set, or the time is up."""
    # Not wait_for: in Python 3.11 it swallows a cancellation that comes with the event.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()
