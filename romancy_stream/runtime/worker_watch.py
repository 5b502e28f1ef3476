"""Attempts that run long: whether anybody still wants them, and who stands for them. After a while the worker commits
past the task of a long attempt, which would hold back everything behind it, and renews a lease instead: when that runs
out, the engine dispatches the attempt again. The same when the task's partition goes to another worker, who would begin
it again. One lease for all attempts of the process; nothing at all while attempts are short and partitions stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from romancy_stream.engine.commit import ActivityKey
from romancy_stream.engine.tasks import Task
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.runtime.attempt import Attempt
from romancy_stream.runtime.worker_offsets import Progress
from romancy_stream.store.database import finished
from romancy_stream.store.port import Detached, Store

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 3
"""Two may fail."""
RENEW_AGAIN_S: Final = 2.0
"""After one has failed. When the database comes back, leases must be renewed before the engine's second look."""
ATTACH_LIMIT: Final = 10_000
"""Attempts that have ended and are still recorded as detached while the database is away. Of those beyond the engine
learns when this process ends, and finds that they have ended."""

KEEP_LIMIT_S: Final = 3.0
"""How long a rebalance waits for the database."""

Place = tuple[Progress, int]


@dataclass(frozen=True, slots=True)
class Times:
    """`detach_after_s`: an attempt is long that has run for this time. `lease_s`: how long the engine waits for a
    worker that is not heard of. `check_every_s`: how soon a cancellation reaches an attempt that does not beat; an
    attempt that has run for less is not asked about."""

    detach_after_s: float = 30.0
    lease_s: float = 60.0
    check_every_s: float = 10.0

    @property
    def tick_s(self) -> float:
        return min(self.detach_after_s, self.check_every_s, self.lease_s / RENEWALS_PER_LEASE)


TIMES: Times = Times()


@dataclass(eq=False, slots=True)
class Running:
    """One task under way and the places where it was read: more than one when it came again meanwhile."""

    task: Task
    places: list[Place]
    started_s: float
    attempt: Attempt | None = None
    detached: Detached | None = None
    ended: bool = False


class Watch:
    """`running` is the worker's. `done` is told of places that need not be read again."""

    def __init__(
        self,
        store: Store,
        incarnation: str,
        part_of: Callable[[str], int],
        running: Mapping[tuple[ActivityKey, int], Running],
        done: Callable[[Sequence[Place]], None],
        times: Times | None = None,
    ) -> None:
        self._store = store
        self._incarnation = incarnation
        self._part_of = part_of
        self._running = running
        self._done = done
        self._times = times or TIMES
        self._renew_at_s = 0.0
        self._ended: dict[Detached, None] = {}  # and still recorded as detached
        self._cut_off = False

    @property
    def detached(self) -> int:
        return sum(each.detached is not None for each in self._running.values())

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(RENEW_AGAIN_S if self._is_late else self._times.tick_s)
            try:
                await self.look()
            except StoreUnavailableError as error:
                log.warning("long attempts wait for the database: %s", error)

    @property
    def _is_late(self) -> bool:
        """With the renewal of a lease."""
        late = asyncio.get_running_loop().time() > self._renew_at_s
        return late and self._times.tick_s > RENEW_AGAIN_S and self.detached > 0

    async def look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        await self._renew(now_s)
        await self._ask(now_s)
        await self._detach(now_s)
        await self.attach()

    # -- the lease ---------------------------------------------------------------------------------------------------
    async def _renew(self, now_s: float) -> None:
        if not self.detached or now_s < self._renew_at_s:
            return
        await finished(self._store.renew_lease(self._incarnation, self._times.lease_s))
        self._renewed(now_s)
        mine = [each for each in self._running.values() if each.detached is not None]
        rows = await finished(self._store.detached(list({each.task.key for each in mine})))
        for each in mine:
            if rows.get(each.task.key) != each.detached and not each.ended and each.attempt is not None:
                # This process was frozen, or without the database, for longer than its lease.
                log.warning("another worker has it by now: %s", each.task)
                each.attempt.not_wanted()

    def _renewed(self, now_s: float) -> None:
        """The lease runs from the moment that it was asked for, or later. The next look is a tick away."""
        self._renew_at_s = now_s + self._times.lease_s / RENEWALS_PER_LEASE - self._times.tick_s / 2

    async def _detach(self, now_s: float) -> None:
        limit_s = now_s - self._times.detach_after_s
        await self._detached(
            [each for each in self._running.values() if each.detached is None and each.started_s <= limit_s], now_s
        )

    async def keep(self, under_way: Sequence[Running]) -> None:
        """Their partitions go to somebody else, who would begin them again: the lease tells that they are ours."""
        try:
            due = [each for each in under_way if each.detached is None]
            await finished(self._detached(due, asyncio.get_running_loop().time()), KEEP_LIMIT_S)
        except StoreUnavailableError as error:
            log.warning("%d attempts may be begun again elsewhere: %s", len(under_way), error)

    async def _detached(self, due: Sequence[Running], now_s: float) -> None:
        if not due:
            return
        rows = [
            Detached(each.task.key, each.task.attempt, self._part_of(each.task.key.instance_id), self._incarnation)
            for each in due
        ]
        await finished(self._store.detach(rows, self._times.lease_s))
        self._renewed(now_s)
        for running, row in zip(due, rows, strict=True):
            running.detached = row
            if running.ended:  # meanwhile
                self._forget(row)
            else:
                log.info("other tasks do not wait for it any more: %s", running.task)
                self._done(running.places)

    # -- the end of an attempt ---------------------------------------------------------------------------------------
    def ended(self, running: Running) -> None:
        """Its result is sent."""
        running.ended = True
        if running.detached is not None:
            self._forget(running.detached)

    def _forget(self, row: Detached) -> None:
        if len(self._ended) < ATTACH_LIMIT:
            self._ended[row] = None

    def cut_off(self, running: Running) -> None:
        """It was under way when the worker left: if nobody delivers its task again, the engine has to hear of it."""
        running.ended = True
        self._cut_off = self._cut_off or running.detached is not None

    async def attach(self) -> None:
        """StoreUnavailableError: those that ended stay recorded as detached, until later."""
        ended = list(self._ended)
        await finished(self._store.attach(ended))
        for each in ended:
            del self._ended[each]

    async def leave(self) -> None:
        """When all attempts have ended, or were cut off."""
        try:
            await self.attach()
            if self._cut_off:
                await finished(self._store.renew_lease(self._incarnation, 0.0))
        except StoreUnavailableError as error:
            log.warning("the engine hears of long attempts when the lease has run out: %s", error)

    # -- whether anybody wants them ----------------------------------------------------------------------------------
    async def _ask(self, now_s: float) -> None:
        limit_s = now_s - self._times.check_every_s
        old = [each for each in self._running.values() if each.attempt is not None and each.started_s <= limit_s]
        if not old:
            return
        unwanted = await finished(self._store.unwanted([each.task.identity for each in old]))
        for each in old:
            if each.task.identity in unwanted and each.attempt is not None:
                each.attempt.not_wanted()
