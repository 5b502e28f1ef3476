"""The parts of a commit beyond one instance: entities and what hangs on them, what was taken in, activities that are
given up, instances that are deleted. The same on each database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from romancy_stream.engine.commit import ActivityKey, Commit, RecordedResult
from romancy_stream.errors import FencedError
from romancy_stream.store import tables
from romancy_stream.store.commit_postgres import rendered, statement_of
from romancy_stream.store.sql import SqlStore
from romancy_stream.store.writes import WRITES
from tests.store.test_results import waits_for_a_lock
from tests.store.writing import (
    activity,
    committed,
    entity,
    event,
    everything,
    execute,
    instance,
    item,
    member,
    owned,
    recorded,
    rows,
    timer,
    tombstone,
)

PG_CACHEABLE_CHARS = 15 * 1024  # asyncpg prepares a longer statement anew each time
CHANNEL = "channel:orders"


async def test_entities_come_change_and_go(store: SqlStore) -> None:
    marks = await owned(store, 0)
    marks = await committed(
        store,
        marks,
        entities=[entity(head=b'{"type":"paid"}'), entity(CHANNEL, kind="channel", part=3)],
        members=[
            member(seq=2**40, attrs=b'{"match":{}}'),
            member(ref="wait:2"),
            member(CHANNEL, "o-2", "sub:1", run=7),
        ],
        items=[item(1, payload=b"[1.50]"), item(2, expires_us=99, attrs=b'{"id":"e"}'), item(1, CHANNEL)],
    )
    assert await rows(store, tables.entities) == [
        (CHANNEL, 3, "channel", "{}", 10),
        ("event:paid:k1", 0, "event", '{"type":"paid"}', 10),
    ]
    assert await rows(store, tables.members) == [
        (CHANNEL, "o-2", "sub:1", 7, 1, "{}"),
        ("event:paid:k1", "o-1", "wait:1", 1, 2**40, '{"match":{}}'),
        ("event:paid:k1", "o-1", "wait:2", 1, 1, "{}"),
    ]
    assert await rows(store, tables.items) == [
        (CHANNEL, 1, 0, 10, None, "{}", None),
        ("event:paid:k1", 1, 0, 10, None, "{}", "[1.50]"),
        ("event:paid:k1", 2, 0, 10, 99, '{"id":"e"}', None),
    ]
    await committed(
        store,
        marks,
        entities=[entity(CHANNEL, kind="channel", part=3, head=b'{"n":1}', updated_us=11)],
        entities_gone=["event:paid:k1", "unknown"],
        members=[member(CHANNEL, "o-2", "sub:1", run=8, seq=5, attrs=b"[]")],
        members_gone=[("event:paid:k1", "o-1", "wait:1"), ("event:paid:k1", "o-1", "unknown")],
        items=[item(1, CHANNEL, at_us=12, expires_us=13, payload=b"null")],
        items_gone=[("event:paid:k1", 1)],
    )
    assert await rows(store, tables.entities) == [(CHANNEL, 3, "channel", '{"n":1}', 11)]
    assert [row[:5] for row in await rows(store, tables.members)] == [
        (CHANNEL, "o-2", "sub:1", 8, 5),
        ("event:paid:k1", "o-1", "wait:2", 1, 1),
    ]
    assert [row[:5] + row[6:] for row in await rows(store, tables.items)] == [
        (CHANNEL, 1, 0, 12, 13, "null"),
        ("event:paid:k1", 2, 0, 10, 99, None),
    ]


async def test_many_rows_of_each_part_go_in_one_commit(store: SqlStore) -> None:
    names = [f"e-{n}" for n in range(450)]
    marks = await owned(store, 0)
    marks = await committed(
        store,
        marks,
        entities=[entity(name) for name in names],
        members=[member(name) for name in names],
        items=[item(n, CHANNEL) for n in range(450)],
        intake=[(0, name, 1) for name in names],
        closed=[ActivityKey(name, 1, "a:1") for name in names],
    )
    await committed(
        store,
        marks,
        entities_gone=names[1:],
        members_gone=[(name, "o-1", "wait:1") for name in names[1:]],
        items_gone=[(CHANNEL, n) for n in range(1, 450)],
        deleted=[tombstone(name) for name in names[1:]],
    )
    for table in (tables.entities, tables.members, tables.items, tables.activity_results):
        assert len(await rows(store, table)) == 1, table.name
    assert len(await rows(store, tables.intake)) == 450
    assert len(await rows(store, tables.tombstones)) == 449


async def test_what_was_taken_in_stays_as_it_was(store: SqlStore) -> None:
    marks = await committed(store, await owned(store, 0), intake=[(0, "d1", 5), (1, "d1", 6)])
    await committed(store, marks, intake=[(0, "d1", 50), (0, "d0", 51)])
    assert await rows(store, tables.intake) == [(0, "d0", 51), (0, "d1", 5), (1, "d1", 6)]


async def test_a_commit_closes_what_no_worker_was_first_with(store: SqlStore) -> None:
    marks = await owned(store, 0)
    done = RecordedResult(ActivityKey("o-1", 1, "a:2"), 3, "completed", b"1", "w", 7)
    async with store.db.writing("work") as worker:
        assert await recorded(worker, done)
    keys = [ActivityKey("o-1", 1, f"a:{n}") for n in (3, 2, 1)]
    before = await store.now_us()
    marks = await committed(store, marks, closed=keys)
    after = await store.now_us()
    found = await store.results(keys)
    assert found[done.key] == done
    for key in (keys[0], keys[2]):
        assert replace(found[key], at_us=0) == RecordedResult(key, 0, "closed", None, None, 0)
        assert before <= found[key].at_us <= after
    await committed(store, marks, closed=keys)
    assert await store.results(keys) == found


async def test_a_commit_that_closes_waits_for_a_worker_in_flight(store: SqlStore) -> None:
    marks = await owned(store, 0)
    done = RecordedResult(ActivityKey("o-1", 1, "a:1"), 3, "completed", b"1", "w", 7)
    async with store.db.engine.connect() as worker:
        assert await recorded(worker, done)
        closing = asyncio.create_task(committed(store, marks, closed=[done.key, ActivityKey("o-0", 1, "a:1")]))
        await waits_for_a_lock(store)
        await worker.commit()
    await closing
    assert [row[:5] for row in await rows(store, tables.activity_results)] == [
        ("o-0", 1, "a:1", 0, "closed"),
        ("o-1", 1, "a:1", 3, "completed"),
    ]


async def test_closing_and_working_at_once_has_one_winner_per_key_and_no_deadlock(store: SqlStore) -> None:
    keys = [ActivityKey("o-1", 1, f"a:{n}") for n in range(24)]

    async def work(key: ActivityKey) -> bool:
        async with store.db.engine.connect() as worker:
            won = await recorded(worker, RecordedResult(key, 1, "completed", b"1", "w", 7))
            await (worker.commit() if won else worker.rollback())
            return won

    marks = await owned(store, 0)
    workers = [asyncio.create_task(work(key)) for key in keys]
    for chunk in (keys[:12], keys[11::-1], keys[6:]):
        marks = await committed(store, marks, closed=chunk)
    won = await asyncio.gather(*workers)
    found = await store.results(keys)
    assert [found[key].outcome == "completed" for key in keys] == won


async def test_a_deleted_instance_leaves_a_tombstone_and_nothing_else(store: SqlStore) -> None:
    marks = await owned(store, 0)
    ids = ("o-1", "o-2")
    keys = [ActivityKey(each, 1, "a:1") for each in ids]
    marks = await committed(
        store,
        marks,
        history=[event(each, n, run=run) for each in ids for run in (1, 2) for n in (1, 2)],
        instances=[instance(each, run=2) for each in ids],
        activities=[activity(each) for each in ids],
        timers=[timer(instance_id=each) for each in ids],
        closed=keys,
        entities=[entity()],
        members=[member(instance_id=each) for each in ids],
    )
    for table in (tables.heartbeats, tables.detached):
        for each in ids:
            fields: dict[str, Any] = {"instance_id": each, "run": 1, "activity_id": "a:1", "attempt": 1}
            fields |= {"at_us": 1} if table is tables.heartbeats else {"part": 0, "incarnation": "w"}
            async with store.db.writing("put") as connection:
                await connection.execute(table.insert(), fields)
    before = await everything(store)
    marks = await committed(store, marks, deleted=[tombstone("o-1", run=2), tombstone("never", at_us=3)])
    after = await everything(store)
    emptied = ("history", "instances", "activities", "activity_results", "timers", "heartbeats", "detached", "members")
    for name in (f"romancy_{each}" for each in emptied):
        assert after[name] == [row for row in before[name] if "o-1" not in row], name
        assert len(after[name]) == len(before[name]) / 2, name
    assert after["romancy_tombstones"] == [("never", 0, 1, "/shop", "e-1", 3), ("o-1", 0, 2, "/shop", "e-1", 10)]
    assert after["romancy_entities"] == before["romancy_entities"]

    marks = await committed(store, marks, history=[event("o-1", run=3)], instances=[instance("o-1", run=3)])
    await committed(store, marks, deleted=[tombstone("o-1", run=3, at_us=20)])
    assert (await rows(store, tables.tombstones))[1] == ("o-1", 0, 3, "/shop", "e-1", 20)


async def test_a_fenced_commit_writes_none_of_these_parts(store: SqlStore) -> None:
    marks = await committed(store, await owned(store, 0), instances=[instance()], entities=[entity()], items=[item()])
    before = await everything(store)
    stale = [replace(mark, epoch=0) for mark in marks]
    parts: dict[str, Any] = {
        "closed": [ActivityKey("o-1", 1, "a:1")],
        "intake": [(0, "d", 1)],
        "entities": [entity("new")],
        "members": [member()],
        "items_gone": [("event:paid:k1", 1)],
        "entities_gone": ["event:paid:k1"],
        "deleted": [tombstone("o-1")],
    }
    for name, rows_of_part in parts.items():
        with pytest.raises(FencedError):
            await store.commit(Commit(marks=stale, **{name: rows_of_part}))
    with pytest.raises(FencedError):
        await store.commit(Commit(marks=stale, **parts))
    assert await everything(store) == before


def test_whatever_changes_of_an_entity_is_one_statement() -> None:
    changes: list[dict[str, Any]] = [
        {"entities": [entity()]},
        {"members": [member()]},
        {"items_gone": [("e", 1)], "items": [item()]},
    ]
    texts = {rendered(Commit(history=[event()], **parts))[0] for parts in changes}
    assert len(texts) == 1
    assert texts.isdisjoint({rendered(Commit(history=[event()]))[0]})


def test_the_statement_of_all_parts_is_one_that_stays_prepared() -> None:
    assert len(statement_of(2 ** len(WRITES) - 1)) < PG_CACHEABLE_CHARS


async def test_ids_sort_byte_by_byte_and_by_an_index_on_postgresql(postgres_db: str) -> None:
    store = SqlStore(postgres_db)
    await store.open()
    try:
        await store.migrate()
        found = await execute(
            store,
            "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_name LIKE 'romancy\\_%' "
            "AND table_name <> 'romancy_migrations' AND data_type = 'character varying'",
        )
        async with store.db.engine.connect() as connection:
            for detour in ("seqscan", "bitmapscan", "sort"):
                await connection.exec_driver_sql(f"SET LOCAL enable_{detour} = off")
            query = 'SELECT instance_id FROM romancy_instances ORDER BY started_us DESC, instance_id COLLATE "C" DESC'
            plan = [str(row[0]) for row in await connection.exec_driver_sql(f"EXPLAIN {query}")]
    finally:
        await store.close()
    assert found == [("C",)]
    assert "romancy_instances_started" in plan[0], plan  # no sort on top
