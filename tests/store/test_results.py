"""Who was first: a worker with its result, or the engine that gives up. Both orders, with real transactions in flight;
and what transactional activities leave to send."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text

from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.store import tables
from romancy_stream.store.ownership import insert_missing
from romancy_stream.store.port import WorkerOutboxRow
from romancy_stream.store.results import record_result
from romancy_stream.store.sql import SqlStore
from tests.store.conftest import Another
from tests.store.writing import execute, recorded, rows
from tests.support import eventually

KEY = ActivityKey("o-1", 1, "charge:1")
DONE = RecordedResult(KEY, 2, "completed", b'{"exact":1.10}', "host:1", 50)
CLOSED = RecordedResult(KEY, 0, "closed", None, None, 60)
USER_TABLE = "CREATE TABLE user_rows (n integer PRIMARY KEY)"
USER_WRITE = text("INSERT INTO user_rows VALUES (1)")
MARIADB_CACHE_S = 0.2  # innodb_trx is a cache that grows older for as long as it is read more often than this
WAITING = {
    "postgresql": "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mysql": "SELECT 1 FROM information_schema.innodb_trx t JOIN information_schema.processlist p "
    "ON p.id = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.db = database()",
}


async def waits_for_a_lock(store: SqlStore) -> None:
    """Until somebody is seen waiting. SQLite shows nobody: there the caller's turn comes or it has come."""
    if (query := WAITING.get(store.db.dialect)) is not None:
        await eventually(lambda: execute(store, query), every_s=MARIADB_CACHE_S, message="nobody waits for a lock")


async def test_worker_first_its_result_is_what_the_engine_finds(store: SqlStore) -> None:
    await execute(store, USER_TABLE)
    async with store.db.engine.connect() as worker:
        assert await recorded(worker, DONE)
        await worker.execute(USER_WRITE)
        closing = asyncio.create_task(store.close_activities([KEY], 60))
        await waits_for_a_lock(store)
        await worker.commit()
    assert await closing == {KEY: DONE}
    assert await execute(store, "SELECT n FROM user_rows") == [(1,)]
    assert await store.results([KEY]) == {KEY: DONE}


async def test_engine_first_the_worker_is_refused_and_its_writes_roll_back(store: SqlStore) -> None:
    await execute(store, USER_TABLE)
    if store.db.dialect == "sqlite":  # one writer at a time: the worker's transaction begins when the engine's is over
        assert await store.close_activities([KEY], 60) == {KEY: CLOSED}
        async with store.db.engine.connect() as worker:
            await worker.execute(USER_WRITE)
            assert not await recorded(worker, DONE)
            await worker.rollback()
    else:
        async with store.db.engine.connect() as worker:
            await worker.execute(USER_WRITE)  # in flight before the engine decides
            assert await store.close_activities([KEY], 60) == {KEY: CLOSED}
            assert not await recorded(worker, DONE)
            await worker.rollback()
    assert await execute(store, "SELECT n FROM user_rows") == []
    assert await store.results([KEY]) == {KEY: CLOSED}


@pytest.mark.parametrize("engine_commits", [True, False])
async def test_the_worker_waits_for_an_engine_in_flight(store: SqlStore, engine_commits: bool) -> None:
    await execute(store, USER_TABLE)
    closing = {
        "instance_id": "o-1",
        "run": 1,
        "activity_id": "charge:1",
        "attempt": 0,
        "outcome": "closed",
        "at_us": 60,
    }

    async def work() -> bool:
        async with store.db.engine.connect() as worker:
            await worker.execute(USER_WRITE)
            if won := await recorded(worker, DONE):
                await worker.commit()
            return won

    async with store.db.writer.connect() as engine:
        await engine.execute(insert_missing(tables.activity_results, store.db.dialect), closing)
        working = asyncio.create_task(work())
        await waits_for_a_lock(store)
        await (engine.commit() if engine_commits else engine.rollback())
    assert await working is not engine_commits
    assert await execute(store, "SELECT n FROM user_rows") == ([] if engine_commits else [(1,)])
    assert await store.results([KEY]) == {KEY: CLOSED if engine_commits else DONE}


async def test_of_many_races_each_has_one_winner_on_which_both_agree(store: SqlStore) -> None:
    keys = [ActivityKey("o-1", 1, f"a:{n}") for n in range(24)]

    async def work(key: ActivityKey) -> bool:
        async with store.db.engine.connect() as worker:
            won = await recorded(worker, replace(DONE, key=key))
            await (worker.commit() if won else worker.rollback())
            return won

    workers = [asyncio.create_task(work(key)) for key in keys]
    closers = [asyncio.create_task(store.close_activities(part, 60)) for part in (keys[:12], keys[11::-1], keys[6:])]
    found = {key: result for closer in closers for key, result in (await closer).items()}
    won = dict(zip(keys, await asyncio.gather(*workers), strict=True))
    assert {key: result.outcome == "completed" for key, result in found.items()} == won


async def test_two_engines_that_close_the_same_keys_never_deadlock(store: SqlStore, another: Another) -> None:
    """A zombie and its successor, each in an order of its own."""
    zombie = await another()
    for n in range(5):
        keys = [ActivityKey(f"o-{n}", 1, f"a:{m:03d}") for m in range(400)]
        first, second = await asyncio.gather(store.close_activities(keys, 1), zombie.close_activities(keys[::-1], 2))
        assert first == second


async def test_the_second_execution_of_an_attempt_is_refused(store: SqlStore) -> None:
    async with store.db.engine.begin() as worker:
        assert await recorded(worker, DONE)
    async with store.db.engine.connect() as again:
        assert not await recorded(again, replace(DONE, result=b"2", worker="host:2"))
    assert await store.results([KEY]) == {KEY: DONE}


async def test_a_result_that_does_not_fit_is_an_error_and_no_lost_race(store: SqlStore) -> None:
    async with store.db.engine.connect() as worker:
        with pytest.raises(Exception, match=r"(?i)null"):
            await recorded(worker, replace(DONE, outcome=None))  # type: ignore[arg-type]
    assert await store.results([KEY]) == {}


async def test_what_is_recorded_and_left_is_read_back_as_it_was(store: SqlStore) -> None:
    quoted = 'it\'s "é" 100% :n $1 ? {}'
    done = replace(DONE, key=ActivityKey(quoted, 7, quoted), result=f'"{quoted}"'.encode(), worker=quoted)
    nothing = replace(another_of(DONE), result=None, worker=None)
    full = WorkerOutboxRow("w'1", 2**40, 3, 2**50, quoted, quoted, ((quoted, quoted), ("b", "")), b"\x00'\xff")
    empty = replace(full, seq=1, headers=(), value=None)
    async with store.db.engine.begin() as worker:
        assert await recorded(worker, done, [full, empty])
        assert await recorded(worker, nothing)
    assert await store.results([done.key, nothing.key]) == {done.key: done, nothing.key: nothing}
    assert await store.worker_outbox([3], 2**60, 10) == [empty, full]


async def test_who_is_refused_leaves_nothing_to_send(store: SqlStore) -> None:
    async with store.db.engine.begin() as worker:
        assert await recorded(worker, DONE, [left("first", 1)])
    async with store.db.engine.connect() as second:
        assert not await recorded(second, replace(DONE, worker="host:2"), [left("second", 1)])
        await second.rollback()
    assert [row[:2] for row in await rows(store, tables.worker_outbox)] == [("first", 1)]


async def test_what_cannot_be_left_to_send_takes_the_result_with_it(store: SqlStore) -> None:
    async with store.db.engine.connect() as worker:
        with pytest.raises(Exception, match=r"(?i)null"):
            await recorded(worker, DONE, [left("a", 1), replace(left("a", 2), topic=None)])  # type: ignore[arg-type]
        await worker.rollback()
    assert await store.results([KEY]) == {}
    assert await rows(store, tables.worker_outbox) == []


async def test_nothing_is_recorded_outside_of_a_transaction(store: SqlStore) -> None:
    async with store.db.engine.connect() as worker:
        with pytest.raises(AssertionError):
            await worker.run_sync(record_result, DONE, [left("a", 1)])
    assert await store.results([KEY]) == {}


async def test_closing_and_reading_many_keys(store: SqlStore) -> None:
    keys = [ActivityKey(f"o-{n}", 1, "a:1") for n in range(1200)]
    async with store.db.engine.begin() as worker:
        assert await recorded(worker, replace(DONE, key=keys[7]))
    closed = await store.close_activities([*keys, keys[0]], 60)
    assert closed.keys() == set(keys)
    assert [key for key in keys if closed[key].outcome == "completed"] == [keys[7]]
    assert await store.results(keys) == closed
    assert await store.close_activities([], 60) == {}
    assert await store.results([]) == {}


def another_of(result: RecordedResult) -> RecordedResult:
    return replace(result, key=ActivityKey("o-1", 1, "another:1"))


def left(incarnation: str, seq: int, part: int = 0, at_us: int = 10) -> WorkerOutboxRow:
    return WorkerOutboxRow(incarnation, seq, part, at_us, "shop.events", "o-1", (("ce_id", "x"),), b"\xff\x00")


async def test_what_a_worker_left_is_found_in_its_order_and_deleted_by_key(store: SqlStore) -> None:
    async with store.db.engine.begin() as worker:
        assert await recorded(worker, DONE, [left("b", 2), left("b", 1), left("a", 5), left("c", 1, at_us=5)])
        assert await recorded(worker, another_of(DONE), [left("d", 1, part=1), left("e", 1, at_us=20)])
    found = await store.worker_outbox([0], 20, 10)
    assert found == [left("c", 1, at_us=5), left("a", 5), left("b", 1), left("b", 2)]
    assert await store.worker_outbox([0, 1], 100, 2) == found[:2]
    await store.delete_worker_outbox([("b", 1), ("c", 1), ("unknown", 9)])
    await store.delete_worker_outbox([])
    assert [row[:2] for row in await rows(store, tables.worker_outbox)] == [("a", 5), ("b", 2), ("d", 1), ("e", 1)]


async def test_a_workers_outbox_rolls_back_with_its_transaction(store: SqlStore) -> None:
    async with store.db.engine.connect() as worker:
        assert await recorded(worker, DONE, [left("a", 1)])
        await worker.rollback()
    assert await rows(store, tables.worker_outbox) == []
    assert await store.results([KEY]) == {}
