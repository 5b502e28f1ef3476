"""Sends what transactional activities committed and their workers, being dead, never sent. The rows lie in the
database under the partition of their instance; its owner looks after them when it takes over, and now and then
while activities are under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from romancy_stream.broker.port import Broker
from romancy_stream.engine.core import EngineCore
from romancy_stream.errors import BrokerUnavailableError, RecordRefusedError, StoreUnavailableError
from romancy_stream.store.database import finished
from romancy_stream.store.port import Store, WorkerOutboxRow
from romancy_stream.wire.record import OutRecord

log = logging.getLogger(__name__)

OWN_TIME_S: Final = 10.0
"""A live worker sends and deletes its rows within milliseconds; older ones are orphans, or doubled: receivers know
both by their ids."""
SWEEP_EVERY_S: Final = 15.0
ROWS_AT_ONCE: Final = 1_000


class Sweeper:
    def __init__(self, core: EngineCore, store: Store, broker: Broker) -> None:
        self._core = core
        self._store = store
        self._broker = broker
        self._now = asyncio.Event()

    def ownership_changed(self) -> None:
        self._now.set()

    async def run(self) -> None:
        """For ever. An engine that has long been idle, with no instance open, asks the database nothing."""
        loop = asyncio.get_running_loop()
        new_until_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_EVERY_S):
                    await self._now.wait()
            if self._now.is_set():
                # What was open at the takeover is not in memory, and orphans show themselves only with time.
                new_until_s = loop.time() + OWN_TIME_S + 2 * SWEEP_EVERY_S
                self._now.clear()
            if self._core.owned and (self._core.cached or loop.time() < new_until_s):
                try:
                    await self.sweep()
                except (StoreUnavailableError, BrokerUnavailableError) as error:
                    log.warning("orphaned results stay where they are for now: %s", error)

    async def sweep(self) -> int:
        """Returns the number of rows sent."""
        older_than_us = await finished(self._store.now_us()) - round(OWN_TIME_S * 1_000_000)
        sent = 0
        while True:
            rows = await finished(self._store.worker_outbox(sorted(self._core.owned), older_than_us, ROWS_AT_ONCE))
            done = await self._send(rows)
            await finished(self._store.delete_worker_outbox(done))
            sent += len(done)
            if len(rows) < ROWS_AT_ONCE or not done:
                return sent

    async def _send(self, rows: list[WorkerOutboxRow]) -> list[tuple[str, int]]:
        records = [
            OutRecord(row.topic, row.key.encode(), row.value, [(name, value.encode()) for name, value in row.headers])
            for row in sorted(rows, key=lambda row: (row.incarnation, row.seq))
        ]
        futures = await self._broker.send(records)
        answers = await asyncio.gather(*futures, return_exceptions=True)
        done = []
        for row, answer in zip(sorted(rows, key=lambda row: (row.incarnation, row.seq)), answers, strict=True):
            if isinstance(answer, RecordRefusedError):
                log.error("the broker refuses worker outbox row %s/%d: %s", row.incarnation, row.seq, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                done.append((row.incarnation, row.seq))
        return done
