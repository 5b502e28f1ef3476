"""What grows old on each database: found oldest first, forgotten a portion at a time."""

from __future__ import annotations

from romancy_stream.engine.commit import ActivityKey
from romancy_stream.store import tables
from romancy_stream.store.sql import SqlStore
from tests.store.writing import committed, entity, instance, item, owned, rows, tombstone

HOUR_US = 3600 * 1_000_000


async def test_items_expire_by_the_databases_clock(store: SqlStore) -> None:
    now_us = await store.now_us()
    items = [
        item(1, expires_us=now_us - 1, part=1),
        item(2, expires_us=now_us - 3),
        item(3, expires_us=now_us - 2),
        item(4, expires_us=now_us - 9, part=3),
        item(5, expires_us=now_us + HOUR_US),
        item(6),
        item(1, "a", expires_us=now_us - 2),
    ]
    await committed(store, await owned(store, 0), items=items)
    due = [(0, "event:paid:k1", 2), (0, "a", 1), (0, "event:paid:k1", 3), (1, "event:paid:k1", 1)]
    assert await store.expired_items([0, 1, 2], 10) == due
    assert await store.expired_items([0, 1, 2], 2) == due[:2]
    assert await store.expired_items([2], 10) == []


async def test_instances_that_ended_before(store: SqlStore) -> None:
    ended = [
        instance(f"o-{n}", status="completed", started_us=us - 5, finished_us=us)
        for n, us in enumerate((30, 10, 20, 20, 40))
    ]
    others = [instance("open"), instance("elsewhere", part=3, status="failed", started_us=0, finished_us=1)]
    await committed(store, await owned(store, 0), instances=[*ended, *others])
    assert await store.finished_before([0, 1], 30, 10) == [(0, "o-1"), (0, "o-2"), (0, "o-3")]
    assert await store.finished_before([0, 1, 3], 30, 2) == [(3, "elsewhere"), (0, "o-1")]
    assert await store.finished_before([2], 2**62, 10) == []


async def test_the_oldest_of_each_sort(store: SqlStore) -> None:
    before_us = await store.now_us()
    found = await store.oldest([0, 1, 2])
    assert before_us <= found.now_us <= await store.now_us()
    assert (found.expires_us, found.intake_us, found.tombstone_us, found.finished_us) == (None,) * 4
    await committed(
        store,
        await owned(store, 0),
        items=[item(n, part=n, expires_us=us) for n, us in ((0, None), (1, 70), (2, 50), (3, 5))],
        intake=[(part, f"d{at_us}", at_us) for part, at_us in ((0, 30), (0, 40), (1, 35), (3, 6))],
        deleted=[tombstone(f"t-{at_us}", part=part, at_us=at_us) for part, at_us in ((2, 20), (1, 25), (3, 7))],
        instances=[
            instance("open"),
            *(instance(f"i-{us}", part=part, finished_us=us) for part, us in ((1, 90), (2, 80), (3, 8))),
        ],
    )
    found = await store.oldest([0, 1, 2])
    assert (found.expires_us, found.intake_us, found.tombstone_us, found.finished_us) == (50, 30, 20, 80)


async def test_what_a_worker_recorded_of_a_deleted_run_goes_with_its_tombstone(store: SqlStore) -> None:
    marks = await owned(store, 0)
    await committed(store, marks, deleted=[tombstone("gone", run=2, at_us=5), tombstone("young", run=1, at_us=50)])
    keys = [ActivityKey(*key) for key in (("gone", 1, "a"), ("gone", 2, "a"), ("gone", 3, "a"), ("young", 1, "a"))]
    await store.close_activities(keys, 1)
    assert await store.forget_tombstones([0], 10, 10) == 1
    assert set(await store.results(keys)) == {keys[2], keys[3]}, "run 3 is alive, and the other may still be written"


async def test_what_was_taken_in_is_forgotten_oldest_first(store: SqlStore) -> None:
    intake = [(part, f"d{n:04}", 1000 + n) for part in (0, 1, 2) for n in range(300)]
    await committed(store, await owned(store, 0), intake=intake)
    assert await store.forget_intake([0, 2], 1250, 100) == 100
    left = await rows(store, tables.intake)
    assert sorted(set(intake) - set(left)) == [(part, f"d{n:04}", 1000 + n) for part in (0, 2) for n in range(50)]
    assert await store.forget_intake([0, 2], 1250, 1000) == 400
    assert await store.forget_intake([0, 2], 1250, 1000) == 0
    assert len(await rows(store, tables.intake)) == 900 - 500


async def test_tombstones_are_forgotten_oldest_first(store: SqlStore) -> None:
    deleted = [tombstone(f"o-{n}", at_us=100 - n, part=n % 2) for n in range(10)]
    await committed(store, await owned(store, 0), deleted=deleted, entities=[entity()])
    assert await store.forget_tombstones([0], 100, 2) == 2
    assert await store.forget_tombstones([1], 94, 10) == 2
    assert sorted(row[0] for row in await rows(store, tables.tombstones)) == ["o-0", "o-1", "o-2", "o-3", "o-4", "o-5"]
    assert sorted((await store.known(["o-6", "o-5"])).tombstones) == ["o-5"]
