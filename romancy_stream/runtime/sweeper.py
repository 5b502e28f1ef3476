"""Sends what transactional activities committed and their workers, being dead, never sent. The rows lie in the
database under the partition of their instance; its owner looks after them when it takes over, and now and then
while activities are under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from romancy_stream.broker.port import Broker
from romancy_stream.engine.core import EngineCore
from romancy_stream.errors import BrokerUnavailableError, RecordRefusedError, StoreUnavailableError
from romancy_stream.runtime.rest import Rest
from romancy_stream.store.database import finished
from romancy_stream.store.port import Store, WorkerOutboxRow
from romancy_stream.wire.codec import header_bytes
from romancy_stream.wire.record import OutRecord

log = logging.getLogger(__name__)

OWN_TIME_S: Final = 10.0
"""A live worker sends and deletes its rows within milliseconds; older ones are orphans, or doubled: receivers know
both by their ids."""
SWEEP_EVERY_S: Final = 15.0
LOOK_AT_LEAST_S: Final = 3_600.0
"""While nothing happens: an attempt whose instance has ended without it may commit at any time."""
EVER_US: Final = 2**62
ROWS_AT_ONCE: Final = 1_000
REFUSED_LIMIT: Final = 20_000
"""Refused rows that a sweep passes by before it gives up; they are read again for each page behind them."""

Key = tuple[str, int]  # incarnation, seq


class Sweeper:
    def __init__(self, core: EngineCore, store: Store, broker: Broker) -> None:
        self._core = core
        self._store = store
        self._broker = broker
        self.rest = Rest()
        self._refused: set[Key] = set()  # at the last look

    async def run(self) -> None:
        """For ever, while attempts are open: what an orphan holds is the end of one. Or while there are rows that were
        too young for the look: the engine may have learned of the end by other ways, as when it gave up on it. After
        a takeover once more in any case."""
        while True:
            fresh = await self.rest.pause(SWEEP_EVERY_S)
            try:
                if self._core.owned:
                    await self.sweep()
                if not fresh and not self.rest.stirred and not await self._may_come():
                    await self.rest.sleep(LOOK_AT_LEAST_S)
            except (StoreUnavailableError, BrokerUnavailableError) as error:
                log.warning("orphaned results stay where they are for now: %s", error)

    async def _may_come(self) -> bool:
        """Something, before the next commit; perhaps, while partitions are being taken over."""
        parts = sorted(self._core.owned)
        if not parts or await finished(self._store.open_attempts(parts)):
            return True
        found = await finished(self._store.worker_outbox(parts, EVER_US, len(self._refused) + 1))
        return any(_key(row) not in self._refused for row in found)

    async def sweep(self, older_than_s: float | None = None) -> int:
        """Rows older than OWN_TIME_S, or than that; returns how many were sent. What the broker refuses is left, and
        passed by."""
        age_s = OWN_TIME_S if older_than_s is None else older_than_s
        older_than_us = await finished(self._store.now_us()) - round(age_s * 1_000_000)
        sent = 0
        refused: set[Key] = set()
        while len(refused) < REFUSED_LIMIT:
            limit = ROWS_AT_ONCE + len(refused)
            found = await finished(self._store.worker_outbox(sorted(self._core.owned), older_than_us, limit))
            done = await self._send([row for row in found if _key(row) not in refused], refused)
            await finished(self._store.delete_worker_outbox(done))
            sent += len(done)
            if len(found) < limit:
                break
        self._refused = refused
        if refused:
            log.error("%d orphaned messages stay, the broker refuses them", len(refused))
        return sent

    async def _send(self, rows: Sequence[WorkerOutboxRow], refused: set[Key]) -> list[Key]:
        """Those that were acknowledged."""
        ordered = sorted(rows, key=_key)
        records = [OutRecord(row.topic, row.key.encode(), row.value, header_bytes(row.headers)) for row in ordered]
        futures = await self._broker.send(records)
        answers = await asyncio.gather(*futures, return_exceptions=True)
        done = []
        for row, answer in zip(ordered, answers, strict=True):
            if isinstance(answer, RecordRefusedError):
                log.error("the broker refuses worker outbox row %s/%d: %s", row.incarnation, row.seq, answer)
                refused.add(_key(row))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                done.append(_key(row))
        return done


def _key(row: WorkerOutboxRow) -> Key:
    return row.incarnation, row.seq
