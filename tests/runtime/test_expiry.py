"""What is too old: the core is told of items, the rest is forgotten; in portions, of owned partitions only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import Input, Loaded, PartitionStart
from romancy_stream.retry import RetryPolicy
from romancy_stream.runtime import expiry
from romancy_stream.runtime.expiry import TOMBSTONES_S, Expiry
from romancy_stream.store import tables
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.partition import partition_for
from tests.store.writing import committed, entity, event, instance, item, owned, rows, tombstone

PARTITIONS = 4
MINUTE_US = 60_000_000
PORTION = 10
MANY = 3 * PORTION + 1


def entity_in(part: int) -> str:
    names = (f"event:{number}" for number in range(1_000))
    return next(name for name in names if partition_for(name.encode(), PARTITIONS) == part)


class Owner:
    """Of partitions 0 and 1: feeds a core and writes its commits, as the processor does."""

    def __init__(self, store: SqlStore) -> None:
        self.core = EngineCore(CoreConfig("shop", PARTITIONS, RetryPolicy()), {})
        self.fed: list[int] = []
        self._store = store

    async def begin(self) -> None:
        for mark in await owned(self._store, 0, 1):
            self.core.adopt(PartitionStart(mark.part, mark.epoch, mark.commit_no, mark.position))

    async def feed(self, inputs: Sequence[Input]) -> Sequence[Input]:
        self.fed.append(len(inputs))
        known = await self._store.known(self.core.missing(inputs))
        entities = await self._store.entities(self.core.missing_entities(inputs))
        self.core.load(Loaded(known.instances, entities=entities))
        await self._store.commit(self.core.handle(inputs, await self._store.now_us()))
        return inputs


@pytest.fixture
async def store(sqlite_db: str) -> SqlStore:
    store = SqlStore(sqlite_db)
    await store.open()
    await store.migrate()
    await store.prepare("shop", PARTITIONS)
    return store


async def test_a_sweep_takes_all_that_is_too_old_in_portions(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "ROWS_AT_ONCE", PORTION)
    now_us = await store.now_us()
    here, elsewhere = entity_in(1), entity_in(3)
    items = [item(n, here, part=1, expires_us=now_us - 1) for n in range(1, MANY + 1)]
    items += [item(MANY + 1, here, part=1, expires_us=now_us + 60 * MINUTE_US), item(MANY + 2, here, part=1)]
    items.append(item(1, elsewhere, part=3, expires_us=now_us - 1))
    intake = [(part, f"d{n}", now_us - 2 * MINUTE_US) for part in (0, 3) for n in range(MANY)]
    intake.append((0, "young", now_us))
    ages_us = (now_us, now_us - round(TOMBSTONES_S * 1_000_000) - MINUTE_US)
    await committed(
        store,
        await owned(store, 0, 1, 3),
        entities=[entity(here, part=1), entity(elsewhere, part=3)],
        items=items,
        intake=intake,
        deleted=[tombstone(f"o-{n}", at_us=at_us) for n, at_us in enumerate(ages_us)],
    )
    owner = Owner(store)
    await owner.begin()
    await Expiry(owner.core, store, 60).sweep(owner.feed)
    assert owner.fed == [PORTION] * 3 + [1]
    left = await store.entities([here, elsewhere])
    assert [row.seq for row in left[here].items] == [MANY + 1, MANY + 2]
    assert len(left[elsewhere].items) == 1
    assert sorted((row[0], row[1]) for row in await rows(store, tables.intake) if row[0] == 0) == [(0, "young")]
    assert len(await rows(store, tables.intake)) == MANY + 1
    assert [row[0] for row in await rows(store, tables.tombstones)] == ["o-0"]
    await store.close()


async def test_a_sweep_ends_when_nothing_can_be_removed(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "ROWS_AT_ONCE", 1)
    here = entity_in(0)
    await committed(
        store, await owned(store, 0), entities=[entity(here)], items=[item(n, here, expires_us=1) for n in (1, 2)]
    )
    owner, fed = Owner(store), list[Sequence[Input]]()
    await owner.begin()

    async def in_vain(inputs: Sequence[Input]) -> Sequence[Input]:
        fed.append(inputs)
        return ()

    await Expiry(owner.core, store).sweep(in_vain)
    assert len(fed) == 1
    owner.core.drop(owner.core.owned)
    await Expiry(owner.core, store).sweep(in_vain)  # owns nothing, asks for nothing
    assert len(fed) == 1
    await store.close()


async def test_what_has_been_finished_for_long_is_removed_bit_by_bit(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "RETIRED_AT_ONCE", (1, 4))
    monkeypatch.setattr(expiry, "RETIRING_S", 60.0)
    now_us = await store.now_us()
    ids = [instance_in(0, f"o-{number}-") for number in range(9)]
    ended = {"status": "completed", "started_us": now_us - 9 * MINUTE_US}
    old = [instance(i, **ended, finished_us=now_us - 5 * MINUTE_US) for i in ids]
    young = instance(instance_in(0, "young-"), **ended, finished_us=now_us - MINUTE_US)
    open_ = instance(instance_in(0, "open-"), started_us=now_us - 9 * MINUTE_US)
    rows_of = [*old, young, open_]
    history = [event(row.instance_id) for row in rows_of]
    await committed(store, await owned(store, 0, 1), instances=rows_of, history=history)
    owner = Owner(store)
    await owner.begin()
    await Expiry(owner.core, store).sweep(owner.feed)
    assert owner.fed == [], "unless somebody says otherwise they are kept"
    await Expiry(owner.core, store, retention_s=180).sweep(owner.feed)
    assert owner.fed == [1, 2, 4, 2]
    known = await store.known([row.instance_id for row in rows_of])
    assert set(known.instances) == {young.instance_id, open_.instance_id}
    assert set(known.tombstones) == set(ids)
    await store.close()


def instance_in(part: int, prefix: str) -> str:
    ids = (f"{prefix}{number}" for number in range(1_000))
    return next(i for i in ids if partition_for(i.encode(), PARTITIONS) == part)
