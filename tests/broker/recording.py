"""Handlers that write down what a broker did with them and check what must hold in every test: calls never overlap,
offsets have no gaps, and nothing comes that is not assigned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from romancy_stream.broker.port import TP, AssignedRange, BatchSource, Broker, OutRecord, Record, TaskSource
from tests.support import eventually

DEADLINE_S = 120  # a rebalance on a busy machine


class Recorder:
    """A batch handler whose positions are in `positions`, which several of them may share, as they share a database.

    `hooks` are awaited inside the call of that name, before it has any effect.
    """

    def __init__(self, positions: dict[TP, int] | None = None) -> None:
        self.positions: dict[TP, int] = {} if positions is None else positions
        self.assigned: set[TP] = set()
        self.calls: list[str] = []
        self.records: list[Record] = []
        self.hooks: dict[str, Callable[[], Awaitable[None]]] = {}
        self._inside: str | None = None

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        assert self._inside is None, f"{name} during {self._inside}"
        self._inside = name
        try:
            if name in self.hooks:
                await self.hooks[name]()
            yield
            self.calls.append(name)
        finally:
            self._inside = None

    async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        async with self._call("on_assigned"):
            assert not self.assigned, "assigned twice"
            self.assigned = set(partitions)
            return {tp: self.positions.setdefault(tp, 0) for tp in partitions}

    async def on_batch(self, batch: Mapping[TP, Sequence[Record]]) -> None:
        async with self._call("on_batch"):
            for tp, records in batch.items():
                assert records, "an empty batch"
                assert tp in self.assigned
                at = self.positions[tp]
                assert [r.offset for r in records] == list(range(at, at + len(records)))
                assert {TP(r.topic, r.partition) for r in records} == {tp}
                self.positions[tp] = at + len(records)
                self.records += records

    async def on_revoked(self, partitions: set[TP]) -> None:
        async with self._call("on_revoked"):
            assert partitions == self.assigned
            self.assigned = set()

    def values(self) -> list[bytes | None]:
        return [r.value for r in self.records]

    async def received(self, count: int) -> None:
        await eventually(lambda: len(self.records) >= count, DEADLINE_S, message=f"{count} records")


class TaskRecorder:
    def __init__(self) -> None:
        self.ranges: dict[TP, AssignedRange] = {}
        self.calls: list[str] = []
        self.hooks: dict[str, Callable[[], Awaitable[None]]] = {}

    async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
        if "on_assigned" in self.hooks:
            await self.hooks["on_assigned"]()
        self.calls.append("on_assigned")
        self.ranges = dict(ranges)

    async def on_revoked(self, partitions: set[TP]) -> None:
        if "on_revoked" in self.hooks:
            await self.hooks["on_revoked"]()
        self.calls.append("on_revoked")
        assert partitions == set(self.ranges)
        self.ranges = {}


@asynccontextmanager
async def running(source: BatchSource) -> AsyncIterator[asyncio.Task[None]]:
    """Stops it at the end and raises what `run` raised, unless the test has looked at that itself."""
    task = asyncio.create_task(source.run())
    try:
        yield task
    finally:
        await asyncio.wait_for(source.stop(), DEADLINE_S)
        await asyncio.wait([task], timeout=DEADLINE_S)
    await task


@asynccontextmanager
async def started(source: TaskSource) -> AsyncIterator[TaskSource]:
    await source.start()
    try:
        yield source
    finally:
        await asyncio.wait_for(source.stop(), DEADLINE_S)


async def settled(count: int, *recorders: Recorder | TaskRecorder) -> list[set[TP]]:
    """Waits until `count` partitions are spread over all of them without overlap; returns who has which."""

    def spread() -> list[set[TP]] | None:
        have = [set(r.assigned if isinstance(r, Recorder) else r.ranges) for r in recorders]
        return have if all(have) and sum(map(len, have)) == count == len(set.union(*have)) else None

    have = await eventually(spread, DEADLINE_S, message=f"{count} partitions over {len(recorders)} members")
    assert have is not None
    return have


def numbered(topic: str, numbers: range, partition: int | None = None) -> list[OutRecord]:
    """Key and value are the number."""
    return [OutRecord(topic, b"%d" % n, b"%d" % n, [], partition) for n in numbers]


async def append(broker: Broker, records: Sequence[OutRecord]) -> list[int]:
    """Sends and returns the offsets when all are acknowledged."""
    return await asyncio.wait_for(asyncio.gather(*await broker.send(records)), DEADLINE_S)
