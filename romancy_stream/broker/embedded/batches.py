"""`BatchSource` on the embedded log: everything happens in the one task that awaits `run`, so that handler calls
cannot overlap."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from romancy_stream.broker.embedded.log import Log
from romancy_stream.broker.embedded.partition import Partition
from romancy_stream.broker.embedded.reader import Reader
from romancy_stream.broker.port import TP, BatchHandler
from romancy_stream.errors import LogIdentityError


class EmbeddedBatchSource:
    """`stop` lets a running `on_batch` end and then calls `on_revoked`. When `run` is cancelled or the handler
    raised, nothing more is called: the member is gone as if its process had died."""

    def __init__(self, log: Log, topics: Sequence[str], group: str, handler: BatchHandler) -> None:
        self.topics = tuple(topics)
        self._log = log
        self._group_name = group
        self._group = log.group(group)
        self._handler = handler
        self._reader = Reader(log, retained=_checked)
        self._assigned: dict[TP, Partition] | None = None
        self._generation = -1
        self._rebalance_wanted = False
        self._stopping = False
        self._task: asyncio.Task[object] | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        if self._task is not None:
            raise RuntimeError("a batch source runs once")
        self._task = asyncio.current_task()
        try:
            if not self._stopping:
                self._reader.open()
                self._group.join(self)
            while not self._stopping:
                await self._step()
            await self._revoke()
        finally:
            self._reader.close()
            self._assigned = None
            self._group.leave(self)
            self._ended.set()

    async def _step(self) -> None:
        if self._rebalance_wanted:
            await self._rebalance()
            return
        batch = await self._reader.poll()
        if batch:
            await self._handler.on_batch(batch)
        else:
            await self._reader.wait()

    async def _rebalance(self) -> None:
        await self._revoke()
        self._rebalance_wanted = False
        partitions = await self._group.settle(self)
        if partitions is None or self._rebalance_wanted or self._stopping:
            return
        self._generation = self._group.generation
        self._assigned = {p.tp: p for p in partitions}
        wanted = await self._handler.on_assigned(set(self._assigned))
        missing = set(self._assigned) - set(wanted)
        if missing:
            raise ValueError(f"on_assigned returned no position for {sorted(missing)}")
        positions = {p: _checked(p, wanted[p.tp]) for p in partitions}
        self._log.note(self._group_name, {p.tp: offset for p, offset in positions.items()})
        self._reader.attach(positions)

    async def _revoke(self) -> None:
        self._reader.detach()
        if self._assigned:
            await self._handler.on_revoked(set(self._assigned))
        self._assigned = None

    def rebalance(self) -> None:
        self._rebalance_wanted = True
        self._reader.wake()

    async def stop(self) -> None:
        self._stopping = True
        self._reader.wake()
        if self._assigned is None:
            self._group.leave(self)  # it may be waiting for the others
        if self._task is not None and self._task is not asyncio.current_task():
            await self._ended.wait()

    def hold(self, *tps: TP) -> None:
        self._reader.hold(tps)

    def release(self, *tps: TP) -> None:
        self._reader.release(tps)

    async def rewind(self, tp: TP, offset: int) -> None:
        """Of a partition that is not ours: nothing. LogIdentityError: the log does not hold `offset`."""
        p = self._log.partition(tp)
        if p in self._reader.positions:
            self._reader.seek(p, _checked(p, offset))

    async def commit_hint(self, offsets: Mapping[TP, int]) -> None:
        """Here it is also what retention goes by: records from the hint on are kept."""
        ours = self._assigned or {}
        self._log.note(self._group_name, {tp: offset for tp, offset in offsets.items() if tp in ours})

    async def confirm_membership(self) -> bool:
        return self._assigned is not None and self._generation == self._group.generation and self._log.failure is None


def _checked(p: Partition, offset: int) -> int:
    if offset > p.end:
        raise LogIdentityError(
            f"{p.topic}/{p.number} ends at offset {p.end}, but offset {offset} is the next to process: the database "
            "and broker.db do not belong together. Restore both from the same backup, or start both anew"
        )
    if offset < p.start:
        raise LogIdentityError(
            f"{p.topic}/{p.number} begins at offset {p.start}, but offset {offset} is the next to process: an older "
            "database was put beside this broker.db, and retention has deleted what lies between. Restore both from "
            "the same backup, or start both anew"
        )
    return offset
