"""Long attempts on each database: heartbeats, detached attempts, and the leases that stand for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import event

from romancy_stream.engine.commit import ActivityKey, Commit, Heartbeat
from romancy_stream.store import tables
from romancy_stream.store.attempts import LEASES_FORGOTTEN_AT_ONCE, LEASES_KEPT_US
from romancy_stream.store.port import Detached
from romancy_stream.store.sql import SqlStore
from tests.store.conftest import Another
from tests.store.writing import activity, committed, execute, instance, owned, rows, tombstone

KEY = ActivityKey("o-1", 1, "copy:1")
OTHER = ActivityKey("o-1", 1, "copy:2")


async def test_a_heartbeat_replaces_the_one_before(store: SqlStore) -> None:
    before = await store.now_us()
    assert await store.beat(KEY, 1, b'{"exact": 1.10}')
    first = (await store.heartbeats([KEY]))[KEY]
    assert first == Heartbeat(KEY, 1, first.at_us, b'{"exact": 1.10}')
    assert before <= first.at_us <= await store.now_us()
    assert await store.beat(KEY, 1, None)
    assert await store.beat(OTHER, 3, b"7")
    found = await store.heartbeats([OTHER, KEY, ActivityKey("o-1", 2, "copy:1")])
    assert {key: (beat.attempt, beat.details) for key, beat in found.items()} == {KEY: (1, None), OTHER: (3, b"7")}
    assert found[KEY].at_us >= first.at_us
    assert await store.heartbeats([]) == {}


async def test_an_attempt_that_was_overtaken_does_not_beat_for_the_later_one(store: SqlStore) -> None:
    assert await store.beat(KEY, 2, b'"second"')
    second = await store.heartbeats([KEY])
    assert not await store.beat(KEY, 1, b'"first"')
    assert await store.heartbeats([KEY]) == second
    assert await store.beat(KEY, 3, b'"third"')
    assert (await store.heartbeats([KEY]))[KEY].attempt == 3


async def test_an_attempt_hears_that_it_was_given_up(store: SqlStore) -> None:
    marks = await owned(store, 0)
    buried = ActivityKey("o-2", 2, "copy:1")
    for key in (KEY, OTHER, buried):
        assert await store.beat(key, 1, None)
    marks = await committed(store, marks, closed=[KEY], deleted=[tombstone("o-2", run=2)])
    assert not await store.beat(KEY, 1, b"1")
    assert (await store.heartbeats([KEY]))[KEY].details is None
    assert not await store.beat(buried, 1, None)
    assert await store.heartbeats([buried]) == {}
    assert await store.beat(ActivityKey("o-2", 3, "copy:1"), 1, None)  # of a run after the deletion
    assert await store.beat(OTHER, 1, None)
    later = ActivityKey("o-2", 3, "copy:1")
    assert await store.unwanted([(KEY, 1), (OTHER, 1), (buried, 1), (later, 1)]) == {(KEY, 1), (buried, 1)}
    assert await store.beat(OTHER, 2, None)
    assert await store.unwanted([(OTHER, 1), (OTHER, 2), (OTHER, 3)]) == {(OTHER, 1)}
    assert await store.unwanted([]) == set()


async def test_detached_attempts_lapse_with_their_lease(store: SqlStore) -> None:
    first, second = Detached(KEY, 1, 0, "worker-a"), Detached(OTHER, 4, 2, "worker-b")
    elsewhere = Detached(ActivityKey("o-9", 1, "copy:1"), 1, 3, "worker-b")
    await store.detach([second, first, elsewhere], 60)
    assert await store.lapsed([0, 1, 2, 3], 10) == []
    await store.renew_lease("worker-b", -0.001)
    assert await store.lapsed([0, 1, 2], 10) == [second]
    assert await store.lapsed([0, 1, 2, 3], 10) == [second, elsewhere]
    assert await store.lapsed([0, 1, 2, 3], 1) == [second]
    await store.renew_lease("worker-b", 60)
    assert await store.lapsed([0, 1, 2, 3], 10) == []
    await execute(store, "DELETE FROM romancy_leases")
    assert await store.lapsed([0, 1, 2, 3], 10) == [first, second, elsewhere]
    await store.attach([first, elsewhere, Detached(ActivityKey("unknown", 1, "x"), 1, 0, "worker-a")])
    await store.attach([])
    assert await store.lapsed([0, 1, 2, 3], 10) == [second]


async def test_an_attempt_detached_again_belongs_to_the_later_worker(store: SqlStore) -> None:
    await store.detach([Detached(KEY, 1, 0, "worker-a")], 60)
    await store.detach([Detached(KEY, 2, 0, "worker-b")], -1)
    assert await store.lapsed([0], 10) == [Detached(KEY, 2, 0, "worker-b")]
    await store.detach([], 60)
    assert [row[0] for row in await rows(store, tables.leases)] == ["worker-a", "worker-b"]
    await store.detach([Detached(KEY, 1, 0, "worker-a")], 60)  # it woke up late
    assert await store.detached([KEY, OTHER]) == {KEY: Detached(KEY, 2, 0, "worker-b")}
    await store.attach([Detached(KEY, 1, 0, "worker-a"), Detached(KEY, 2, 0, "worker-a")])
    assert await store.detached([KEY]) == {KEY: Detached(KEY, 2, 0, "worker-b")}
    await store.attach([Detached(KEY, 2, 0, "worker-b")])
    assert await store.detached([KEY]) == await store.detached([]) == {}


async def test_a_lease_runs_on_the_databases_clock(store: SqlStore) -> None:
    before = await store.now_us()
    await store.renew_lease("worker-a", 2.5)
    after = await store.now_us()
    [(_, expires_us)] = await rows(store, tables.leases)
    assert before + 2_500_000 <= expires_us <= after + 2_500_000


async def test_leases_of_long_ago_are_forgotten_when_one_is_renewed(store: SqlStore) -> None:
    long_ago = -(LEASES_KEPT_US / 1_000_000) - 1
    dead = [f"dead-{n:03}" for n in range(LEASES_FORGOTTEN_AT_ONCE + 1)]
    async with store.db.writing("put") as connection:
        now_us = await store.now_us()
        values = [{"incarnation": name, "expires_us": now_us + int(long_ago * 1_000_000)} for name in dead]
        await connection.execute(tables.leases.insert(), values)
    await store.renew_lease("worker-b", -1)
    assert [row[0] for row in await rows(store, tables.leases)] == [dead[-1], "worker-b"]
    await store.renew_lease("worker-a", 60)
    assert [row[0] for row in await rows(store, tables.leases)] == ["worker-a", "worker-b"]


async def test_many_workers_at_once_do_not_stand_in_each_others_way(store: SqlStore, another: Another) -> None:
    second = await another()
    keys = [ActivityKey("o-1", 1, f"copy:{n}") for n in range(40)]
    calls = []
    for n, key in enumerate(keys):
        side = (store, second)[n % 2]
        calls += [side.beat(key, 1, b"1"), side.renew_lease(f"worker-{n}", 60)]
        calls += [side.detach([Detached(each, 1, 0, f"worker-{n}") for each in (keys[n - 1], key)], 60)]
    await asyncio.gather(*calls)
    assert len(await store.heartbeats(keys)) == len(await rows(store, tables.detached)) == 40
    found = list((await store.detached(keys)).values())
    await asyncio.gather(store.attach(found), second.attach(found[::-1]))
    assert await rows(store, tables.detached) == []


async def test_a_commit_that_deletes_an_instance_takes_its_attempts_along(store: SqlStore) -> None:
    await store.detach([Detached(KEY, 1, 0, "worker-a")], 60)
    await store.beat(KEY, 1, None)
    await store.commit(Commit(marks=await owned(store, 0), deleted=[tombstone("o-1")]))
    assert await rows(store, tables.detached) == await rows(store, tables.heartbeats) == []


async def test_whether_an_attempt_may_be_under_way(store: SqlStore) -> None:
    """Of the current run, in one of these partitions; or detached, whatever became of it."""
    marks = await owned(store, 0, 1)
    assert not await store.open_attempts([0, 1, 2, 3])
    over = activity("o-1", "charge:0", status="completed", finished_us=9)
    quiet = [instance("waits", status="waiting_for_event"), instance("parent"), instance("o-1", part=1)]
    marks = await committed(
        store, marks, instances=quiet, activities=[over, activity("o-1", run=0), activity("elsewhere")]
    )
    assert not await store.open_attempts([0, 1, 2, 3])
    for status in ("running", "compensating"):
        begun = {"instances": [instance("o-1", part=1, status=status)], "activities": [activity("o-1")]}
        marks = await committed(store, marks, **begun)
        assert await store.open_attempts([1, 2])
        assert not await store.open_attempts([0, 2, 3])
    marks = await committed(store, marks, activities=[activity("o-1", status="completed", finished_us=9)])
    assert not await store.open_attempts([1])
    await store.detach([Detached(KEY, 1, 2, "worker-a")], 60)
    assert await store.open_attempts([1, 2])
    assert not await store.open_attempts([1, 3])


async def test_open_attempts_are_looked_for_where_something_was_committed(store: SqlStore, another: Another) -> None:
    """Thousands of instances may be running that wait for others."""
    marks = await owned(store, 2, 3)
    both = [instance("p-2", part=2), instance("p-3", part=3)]
    of_3 = (await committed(store, marks, instances=both))[1]
    async with looks(store) as asked:
        assert not await store.open_attempts([2, 3])
        assert asked == [{2, 3}]
        assert not await store.open_attempts([2, 3])
        assert not await store.open_attempts([3])
        assert asked == [{2, 3}]
        [of_3] = await committed(store, [of_3], activities=[activity("p-3")])
        assert await store.open_attempts([2, 3])
        assert asked[1:] == [{3}]
        assert await store.open_attempts([2, 3])
        assert not await store.open_attempts([2])
        assert asked[2:] == []
        await committed(store, [of_3], activities=[activity("p-3", status="completed", finished_us=9)])
        assert not await store.open_attempts([2, 3])
        assert asked[2:] == [{3}]
        other = await another()
        await committed(other, await owned(other, 2), activities=[activity("p-2")])
        assert await store.open_attempts([2, 3])
        assert asked[3:] == [{2}]


@contextlib.asynccontextmanager
async def looks(store: SqlStore) -> AsyncIterator[list[set[int]]]:
    """Which of the partitions 2 and 3 each look at activities is about; a limit is another number."""
    found: list[set[int]] = []

    def note(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> None:
        if "romancy_activities" in statement:
            found.append({2, 3}.intersection(parameters))

    event.listen(store.db.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(store.db.engine.sync_engine, "before_cursor_execute", note)
