"""What each part of a `Commit` means for its table, said once and without SQL: the statements of every dialect are made
from this list. Knows the tables and the values of a commit; touches nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import orjson
from sqlalchemy import JSON, BigInteger, Column, Integer, LargeBinary, Table

from romancy_stream.engine.commit import (
    ActivityKey,
    ActivityRow,
    DeadLetter,
    EntityRow,
    InstanceRow,
    ItemRow,
    MemberRow,
    OutboxRow,
    Rejection,
    TimerRow,
    Tombstone,
)
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.store import tables

Row = tuple[Any, ...]
Values = Sequence[Any]
"""Of one column, row by row."""

CLOSED: Final = "closed"
CLOSED_ATTEMPT: Final = 0  # no attempt made it


class Action(Enum):
    INSERT = "insert"
    INSERT_MISSING = "insert where there is none"
    UPSERT = "upsert"
    UPDATE = "update"  # of rows that are there
    DELETE = "delete"
    DELETE_RANGE = "delete range"  # rows are (part, first, last), inclusive


@dataclass(frozen=True, slots=True)
class Write:
    """`part` names the field of `Commit`, `row` makes a tuple in the order of `columns` out of one of its items. The
    columns of an update or a delete end with the key, as the statement does. `by` is the key of a delete that names
    its rows by less than the table's own; `clock` a column that an insert fills with the database's time."""

    part: str
    table: Table
    action: Action
    columns: tuple[str, ...]
    row: Callable[[Any], Row]
    only: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    clock: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return self.by or tuple(column.name for column in self.table.primary_key)

    @property
    def sets(self) -> tuple[str, ...]:
        """What an upsert changes in a row that is there, or an update sets."""
        return self.only or tuple(name for name in self.columns if name not in self.keys)


# What is left of an instance's row was written when it was new, and never changes.
UPDATED_OF_INSTANCE: Final = ("status", "seq", "output", "error", "updated_us", "finished_us", "parked", "waiting_for")


def pg_type(column: Column[Any]) -> str:
    """How a parameter for the column travels; JSON travels as text."""
    if isinstance(column.type, BigInteger):
        return "int8"
    if isinstance(column.type, Integer):
        return "int4"
    return "bytea" if isinstance(column.type, LargeBinary) else "text"


def pg_cast(column: Column[Any]) -> str:
    """What turns the parameter into the column's value."""
    return "::jsonb" if isinstance(column.type, JSON) else ""


def columns_of(rows: Sequence[Row], width: int) -> list[Values]:
    """`width`: how many columns there are, also where there are no rows."""
    return list(zip(*rows, strict=True)) if rows else [()] * width


def json_of(value: Any) -> str:
    return orjson.dumps(value).decode()


def text_of(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


def _history(event: HistoryEvent) -> Row:
    attrs = json_of(event.attrs) if event.attrs else "{}"
    payload = text_of(event.payload)
    return (event.instance_id, event.run, event.seq, event.at_us, event.kind, event.ref, attrs, payload)


def _instance(row: InstanceRow) -> Row:
    return (
        row.instance_id,
        row.run,
        row.part,
        row.workflow,
        row.status,
        row.seq,
        text_of(row.input),
        text_of(row.output),
        text_of(row.error),
        row.started_us,
        row.updated_us,
        row.finished_us,
        row.parked,
        row.event_source,
        row.event_id,
        row.parent_id,
        text_of(row.waiting_for),
        row.version,
    )


def _update(row: InstanceRow) -> Row:
    return (
        row.status,
        row.seq,
        text_of(row.output),
        text_of(row.error),
        row.updated_us,
        row.finished_us,
        row.parked,
        text_of(row.waiting_for),
        row.instance_id,
    )


def _activity(row: ActivityRow) -> Row:
    return (
        row.instance_id,
        row.run,
        row.activity_id,
        row.name,
        row.queue,
        row.status,
        row.attempt,
        row.scheduled_us,
        row.updated_us,
        row.finished_us,
        row.next_attempt_us,
        text_of(row.error),
        row.eager,
    )


def _timer(row: TimerRow) -> Row:
    return (row.instance_id, row.run, row.timer_id, row.part, row.due_us)


def _outbox(row: OutboxRow) -> Row:
    return (row.part, row.position, row.topic, row.key, row.to_partition, json_of(row.headers), row.value)


def _dead_letter(row: DeadLetter) -> Row:
    headers = [(_storable(name), _base64(value)) for name, value in row.headers]
    return (
        row.topic,
        row.partition,
        row.offset,
        row.at_us,
        row.reason,
        _storable(row.message),
        row.key,
        json_of(headers),
        row.raw,
        row.event_source if row.event_source is None else _storable(row.event_source),
        row.event_id if row.event_id is None else _storable(row.event_id),
        None,
    )


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _storable(text: str) -> str:
    """A dead letter must never be refused for what made it one: PostgreSQL stores no NUL, nobody a lone surrogate.
    `raw` keeps the bytes as they came."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _rejection(row: Rejection) -> Row:
    return (
        row.instance_id,
        row.part,
        row.workflow,
        row.reason,
        row.message,
        row.errors.decode(),
        row.event_source,
        row.event_id,
        row.at_us,
    )


def _refused(item: tuple[int, int, str]) -> Row:
    part, position, reason = item
    return (reason, part, position)


def _closed(key: ActivityKey) -> Row:
    return (key.instance_id, key.run, key.activity_id, CLOSED_ATTEMPT, CLOSED)


def _entity(row: EntityRow) -> Row:
    return (row.entity, row.part, row.kind, row.head.decode(), row.updated_us)


def _member(row: MemberRow) -> Row:
    return (row.entity, row.instance_id, row.ref, row.run, row.seq, row.attrs.decode())


def _item(row: ItemRow) -> Row:
    attrs, payload = row.attrs.decode(), text_of(row.payload)
    return (row.entity, row.seq, row.part, row.at_us, row.expires_us, attrs, payload)


def _tombstone(row: Tombstone) -> Row:
    return (row.instance_id, row.part, row.run, row.event_source, row.event_id, row.at_us)


def _instance_id(row: Tombstone) -> Row:
    return (row.instance_id,)


def _as_it_is(item: Row) -> Row:
    return item


def _alone(item: str) -> Row:
    return (item,)


def _all(table: Table, *without: str) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns if column.name not in without)


_OF_AN_INSTANCE: Final = (
    tables.history,
    tables.instances,
    tables.input_values,  # after the instance: who fills it in holds on to that
    tables.activities,
    tables.activity_results,
    tables.timers,
    tables.heartbeats,
    tables.detached,
    tables.members,
)
_BY_INSTANCE: Final = ("instance_id",)
_CLOSED_COLUMNS: Final = ("instance_id", "run", "activity_id", "attempt", "outcome")

# In the order in which a dialect that needs several statements runs them: rows go before new ones come.
WRITES: Final[tuple[Write, ...]] = (
    Write("offsets", tables.offsets, Action.UPSERT, _all(tables.offsets), _as_it_is),
    Write("watermarks", tables.watermarks, Action.UPSERT, _all(tables.watermarks), _as_it_is),
    Write("outbox_sent", tables.outbox, Action.DELETE_RANGE, ("part", "first", "last"), _as_it_is),
    Write("timers_gone", tables.timers, Action.DELETE, ("instance_id", "run", "timer_id"), _as_it_is),
    Write("rejections_gone", tables.rejections, Action.DELETE, ("instance_id",), _alone),
    *(Write("deleted", table, Action.DELETE, _BY_INSTANCE, _instance_id, by=_BY_INSTANCE) for table in _OF_AN_INSTANCE),
    Write("entities_gone", tables.entities, Action.DELETE, ("entity",), _alone),
    Write("members_gone", tables.members, Action.DELETE, ("entity", "instance_id", "ref"), _as_it_is),
    Write("items_gone", tables.items, Action.DELETE, ("entity", "seq"), _as_it_is),
    Write("closed", tables.activity_results, Action.INSERT_MISSING, _CLOSED_COLUMNS, _closed, clock="at_us"),
    Write("intake", tables.intake, Action.INSERT_MISSING, _all(tables.intake), _as_it_is),
    Write("deleted", tables.tombstones, Action.UPSERT, _all(tables.tombstones), _tombstone),
    Write("history", tables.history, Action.INSERT, _all(tables.history), _history),
    Write("instances", tables.instances, Action.UPSERT, _all(tables.instances), _instance),
    Write("updates", tables.instances, Action.UPDATE, (*UPDATED_OF_INSTANCE, "instance_id"), _update),
    Write("activities", tables.activities, Action.UPSERT, _all(tables.activities), _activity),
    Write("timers", tables.timers, Action.UPSERT, _all(tables.timers), _timer),
    Write("entities", tables.entities, Action.UPSERT, _all(tables.entities), _entity),
    Write("members", tables.members, Action.UPSERT, _all(tables.members), _member),
    Write("items", tables.items, Action.UPSERT, _all(tables.items), _item),
    Write("outbox", tables.outbox, Action.INSERT, _all(tables.outbox, "refused"), _outbox),
    Write("outbox_refused", tables.outbox, Action.UPDATE, ("refused", "part", "position"), _refused),
    Write("dead_letters", tables.dead_letters, Action.UPSERT, _all(tables.dead_letters), _dead_letter),
    Write("rejections", tables.rejections, Action.UPSERT, _all(tables.rejections), _rejection),
)
# Where paths of inputs are searched: of a run after the first, those of the run before go.
VALUES_GONE: Final = Write("instances", tables.input_values, Action.DELETE, _BY_INSTANCE, _alone, by=_BY_INSTANCE)
VALUES_MADE: Final = Write(
    "instances", tables.input_values, Action.INSERT_MISSING, _all(tables.input_values), _as_it_is
)
# MySQL has no update of many rows by key in one statement, other than an upsert that always finds its row.
UPDATES_AS_UPSERT: Final = Write(
    "updates", tables.instances, Action.UPSERT, _all(tables.instances), _instance, only=UPDATED_OF_INSTANCE
)
