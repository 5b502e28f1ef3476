"""What the write side's tests share: rows to commit, and what the tables hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import JSON, Table, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import (
    ActivityRow,
    Commit,
    EntityRow,
    InstanceRow,
    ItemRow,
    Mark,
    MemberRow,
    OutboxRow,
    RecordedResult,
    TimerRow,
    Tombstone,
)
from romancy_stream.engine.history import WORKFLOW_STARTED, HistoryEvent
from romancy_stream.store.port import WorkerOutboxRow
from romancy_stream.store.results import record_result
from romancy_stream.store.sql import SqlStore
from romancy_stream.store.tables import json_text, metadata


async def committed(store: SqlStore, marks: list[Mark], **parts: Any) -> list[Mark]:
    """Commits and returns the marks of the next commit."""
    await store.commit(Commit(marks=marks, **parts))
    return [replace(mark, commit_no=mark.commit_no + 1) for mark in marks]


async def recorded(connection: AsyncConnection, result: RecordedResult, left: Sequence[WorkerOutboxRow] = ()) -> bool:
    """In a transaction of the connection's, which is begun if there is none."""
    if not connection.in_transaction():
        await connection.begin()
    return await connection.run_sync(record_result, result, left)


async def owned(store: SqlStore, *parts: int) -> list[Mark]:
    """Takes the partitions over; returns the marks of the first commit."""
    epochs = await store.take_over(parts, "me")
    snapshots = await store.snapshot(parts)
    return [Mark(s.part, epochs[s.part], s.commit_no, s.position) for s in snapshots]


async def rows(store: SqlStore, table: Table) -> list[tuple[Any, ...]]:
    """All rows in the order of the key, JSON as text."""
    dialect = store.db.dialect
    columns = [json_text(c, dialect) if isinstance(c.type, JSON) else c for c in table.columns]
    async with store.db.reading("look") as connection:
        return [tuple(row) for row in await connection.execute(select(*columns).order_by(*table.primary_key))]


async def everything(store: SqlStore) -> dict[str, list[tuple[Any, ...]]]:
    return {table.name: await rows(store, table) for table in metadata.sorted_tables}


async def execute(store: SqlStore, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    async with store.db.engine.begin() as connection:
        result = await connection.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


def event(instance_id: str = "o-1", seq: int = 1, **changes: Any) -> HistoryEvent:
    values: dict[str, Any] = {"instance_id": instance_id, "run": 1, "seq": seq, "at_us": 10, "kind": WORKFLOW_STARTED}
    return HistoryEvent(**(values | changes))


def instance(instance_id: str = "o-1", **changes: Any) -> InstanceRow:
    values: dict[str, Any] = {
        "instance_id": instance_id,
        "run": 1,
        "part": 0,
        "workflow": "order",
        "status": "running",
        "seq": 1,
        "input": b'{"n": 1}',
        "output": None,
        "error": None,
        "started_us": 10,
        "updated_us": 10,
        "finished_us": None,
        "parked": None,
        "event_source": "/shop",
        "event_id": "e-1",
    }
    return InstanceRow(**(values | changes))


def activity(instance_id: str = "o-1", activity_id: str = "charge:1", **changes: Any) -> ActivityRow:
    values: dict[str, Any] = {
        "instance_id": instance_id,
        "run": 1,
        "activity_id": activity_id,
        "name": "charge",
        "queue": "default",
        "status": "scheduled",
        "attempt": 1,
        "scheduled_us": 10,
        "updated_us": 10,
        "finished_us": None,
        "next_attempt_us": None,
        "error": None,
    }
    return ActivityRow(**(values | changes))


def timer(timer_id: str = "sleep:1", instance_id: str = "o-1", **changes: Any) -> TimerRow:
    values: dict[str, Any] = {"instance_id": instance_id, "run": 1, "timer_id": timer_id, "part": 0, "due_us": 99}
    return TimerRow(**(values | changes))


def outgoing(position: int, key: str = "o-1", **changes: Any) -> OutboxRow:
    values: dict[str, Any] = {
        "part": 0,
        "position": position,
        "topic": "shop.events",
        "key": key,
        "to_partition": None,
        "headers": (("ce_type", "x"),),
        "value": b"{}",
    }
    return OutboxRow(**(values | changes))


def entity(name: str = "event:paid:k1", **changes: Any) -> EntityRow:
    values: dict[str, Any] = {"entity": name, "part": 0, "kind": "event", "head": b"{}", "updated_us": 10}
    return EntityRow(**(values | changes))


def member(name: str = "event:paid:k1", instance_id: str = "o-1", ref: str = "wait:1", **changes: Any) -> MemberRow:
    values: dict[str, Any] = {"entity": name, "instance_id": instance_id, "ref": ref, "run": 1, "seq": 1}
    return MemberRow(**(values | {"attrs": b"{}"} | changes))


def item(seq: int = 1, name: str = "event:paid:k1", **changes: Any) -> ItemRow:
    values: dict[str, Any] = {"entity": name, "seq": seq, "part": 0, "at_us": 10, "expires_us": None}
    return ItemRow(**(values | {"attrs": b"{}", "payload": None} | changes))


def tombstone(instance_id: str = "o-1", **changes: Any) -> Tombstone:
    values: dict[str, Any] = {"instance_id": instance_id, "part": 0, "run": 1, "event_source": "/shop"}
    return Tombstone(**(values | {"event_id": "e-1", "at_us": 10} | changes))
