"""Leases that have run out: who is handed to the core, and what is forgotten after that. Nothing is forgotten that was
not dispatched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from romancy_stream.engine.commit import ActivityKey
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import Input, LeaseLapsed, PartitionStart
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.retry import RetryPolicy
from romancy_stream.runtime import lapses
from romancy_stream.runtime.lapses import Lapses
from romancy_stream.store.port import Detached
from romancy_stream.store.sql import SqlStore
from tests.store.writing import owned
from tests.support import eventually

KEY = ActivityKey("o-1", 1, "copy:1")
MINE = Detached(KEY, 2, 0, "dead")
ANOTHERS = Detached(ActivityKey("o-2", 1, "copy:1"), 1, 3, "dead")


@pytest.fixture
async def store(sqlite_db: str) -> AsyncIterator[SqlStore]:
    store = SqlStore(sqlite_db)
    await store.open()
    await store.migrate()
    await store.prepare("shop", 4)
    yield store
    await store.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapses, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(lapses, "LOOK_AGAIN_S", 0.01)


class Looking:
    """`takes`: whether what is found still belongs to partitions that are owned."""

    def __init__(self, store: SqlStore, *, takes: bool = True) -> None:
        self.core = EngineCore(CoreConfig("shop", 4, RetryPolicy()), {})
        self.store = store
        self.lapses = Lapses(self.core, store)
        self.takes = takes
        self.fed: list[Input] = []

    async def feed(self, inputs: Sequence[Input]) -> Sequence[Input]:
        self.fed += inputs
        return inputs if self.takes else []

    async def __aenter__(self) -> Looking:
        for mark in await owned(self.store, 0, 1):
            self.core.adopt(PartitionStart(mark.part, mark.epoch, mark.commit_no, mark.position))
        self._task = asyncio.create_task(self.lapses.run(self.feed))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def left(self) -> list[Detached]:
        return list((await self.store.detached([KEY, ANOTHERS.key])).values())


async def test_what_a_dead_worker_held_is_handed_over_once(store: SqlStore) -> None:
    await store.detach([MINE, ANOTHERS], -1)
    async with Looking(store) as looking:

        async def forgotten() -> bool:
            return await looking.left() == [ANOTHERS]

        await eventually(forgotten)
        assert looking.fed == [LeaseLapsed(0, "o-1", 1, "copy:1", 2, "dead")]


async def test_a_worker_that_says_so_before_the_second_look_lives(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.detach([MINE], -1)
    lapsed, looks = store.lapsed, 0

    async def and_then_it_renews(parts: Sequence[int], limit: int) -> Sequence[Detached]:
        nonlocal looks
        found = await lapsed(parts, limit)
        looks += 1
        if looks == 1:
            assert found == [MINE]
            await store.renew_lease("dead", 60)
        return found

    monkeypatch.setattr(store, "lapsed", and_then_it_renews)
    async with Looking(store) as looking:
        await eventually(lambda: looks >= 4)
        assert looking.fed == []
        assert await looking.left() == [MINE]


async def test_what_the_owner_could_not_dispatch_stays(store: SqlStore) -> None:
    await store.detach([MINE], -1)
    async with Looking(store, takes=False) as looking:
        await eventually(lambda: len(looking.fed) >= 2, message="and is found again")
        assert await looking.left() == [MINE]
        looking.takes = True

        async def forgotten() -> bool:
            return not await looking.left()

        await eventually(forgotten)


async def test_it_is_forgotten_before_anybody_looks_again(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database does not take that, nothing is dispatched a second time."""
    await store.detach([MINE], -1)
    attach, away = store.attach, 0

    async def sometimes(attempts: Sequence[Detached]) -> None:
        nonlocal away
        if attempts and away < 5:
            away += 1
            raise StoreUnavailableError("away")
        await attach(attempts)

    monkeypatch.setattr(store, "attach", sometimes)
    async with Looking(store) as looking:

        async def forgotten() -> bool:
            return not await looking.left()

        await eventually(forgotten)
        assert (away, len(looking.fed)) == (5, 1)


async def test_a_new_owner_looks_at_once(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapses, "LOOK_EVERY_S", 3_600.0)
    await store.detach([MINE], -1)
    async with Looking(store) as looking:
        looking.lapses.rest.hurry()
        await eventually(lambda: looking.fed)
