"""`TaskSource` on the embedded log: competing members whose committed offsets are kept in the log's file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from romancy_stream.broker.embedded.log import Log
from romancy_stream.broker.embedded.partition import Partition
from romancy_stream.broker.embedded.reader import Reader
from romancy_stream.broker.port import TP, AssignedRange, Record, TaskHandler


class EmbeddedTaskSource:
    """A rebalance is served by a task of its own, whether anybody fetches or not. What a handler raises comes out
    of `fetch` and `stop`."""

    def __init__(self, log: Log, topics: Sequence[str], group: str, handler: TaskHandler) -> None:
        self.topics = tuple(topics)
        self._log = log
        self._group_name = group
        self._group = log.group(group)
        self._handler = handler
        self._reader = Reader(log)
        self._assigned: dict[TP, Partition] = {}
        self._rebalance_wanted = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._task is not None:
            raise RuntimeError("a task source starts once")
        self._reader.open()
        self._task = asyncio.create_task(self._serve(), name=f"romancy tasks {self._group_name}")
        self._group.join(self)

    async def stop(self) -> None:
        """Calls `on_revoked` for what it had. A waiting `fetch` raises RuntimeError."""
        self._stopping = True
        self._rebalance_wanted.set()
        if not self._assigned:
            self._group.leave(self)  # it may be waiting for the others
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task.result()

    async def _serve(self) -> None:
        try:
            while not self._stopping:
                await self._rebalance_wanted.wait()
                await self._revoke()
                if not self._stopping:
                    await self._rebalance()
            await self._revoke()
        finally:
            self._reader.close()
            self._assigned = {}
            self._group.leave(self)
            self._reader.wake()

    async def _rebalance(self) -> None:
        self._rebalance_wanted.clear()
        partitions = await self._group.settle(self)
        if partitions is None or self._rebalance_wanted.is_set():
            return
        committed = self._log.positions.get(self._group_name, {})
        positions = {p: max(p.start, committed.get(p.tp, p.start)) for p in partitions}
        self._assigned = {p.tp: p for p in partitions}
        self._log.note(self._group_name, {p.tp: offset for p, offset in positions.items()})
        await self._handler.on_assigned({p.tp: AssignedRange(at, p.end) for p, at in positions.items()})
        self._reader.attach(positions)

    async def _revoke(self) -> None:
        self._reader.detach()
        if self._assigned:
            await self._handler.on_revoked(set(self._assigned))
            self._assigned = {}

    def rebalance(self) -> None:
        self._rebalance_wanted.set()

    async def fetch(self, limit: int) -> list[Record]:
        while True:
            if self._task is None or self._task.done() or self._stopping:
                if self._task is not None and self._task.done():
                    self._task.result()
                raise RuntimeError("the task source is not running")
            batch = await self._reader.poll(limit)
            if batch:
                return [record for records in batch.values() for record in records]
            await self._reader.wait()

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        """Returns when they are on the disk. ValueError: behind the end of the log."""
        ours = {tp: offset for tp, offset in offsets.items() if tp in self._assigned}
        for tp, offset in ours.items():
            if not 0 <= offset <= self._assigned[tp].end:
                raise ValueError(f"{tp.topic}/{tp.partition} ends at {self._assigned[tp].end}, not {offset}")
        if ours:
            await self._log.commit(self._group_name, ours)
