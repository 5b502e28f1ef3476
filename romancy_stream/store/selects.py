"""What readers select and what they make of it: columns in the order of the contract's fields, so that a row becomes
a value by position. JSON of the projection comes as text, so that no number passes through a float. Runs nothing.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import fields
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, Table
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import ActivityRow, InstanceRow, TimerRow
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.sealing import put_back
from romancy_stream.store import tables
from romancy_stream.store.port import DeadLetterRow

Row = Sequence[Any]

JSON_COLUMNS: Final = frozenset(
    {
        tables.instances.c.input,
        tables.instances.c.output,
        tables.instances.c.error,
        tables.instances.c.waiting_for,
        tables.activities.c.error,
    }
)
_JSON_OF_INSTANCE: Final = tuple(
    index for index, field in enumerate(fields(InstanceRow)) if tables.instances.c[field.name] in JSON_COLUMNS
)
_DLQ_ID: Final = re.compile(r"(.+)/(0|[1-9][0-9]{0,9})/(0|[1-9][0-9]{0,18})\Z", re.DOTALL)
_PARTITION_MAX: Final = 2**31 - 1  # what the columns hold
_OFFSET_MAX: Final = 2**63 - 1


class Connections(Protocol):
    """The part of the store's database that readers need. `dialect`: "postgresql", "mysql" or "sqlite"; `doing` names
    the call in an error's message."""

    @property
    def dialect(self) -> str: ...
    def reading(self, doing: str) -> AbstractAsyncContextManager[AsyncConnection]: ...
    def writing(self, doing: str) -> AbstractAsyncContextManager[AsyncConnection]: ...


def columns(table: Table, shape: type[Any], dialect: str) -> list[ColumnElement[Any]]:
    """The columns of `table` that are the fields of the dataclass `shape`, in its order."""
    named = [table.c[field.name] for field in fields(shape)]
    return [tables.json_text(column, dialect) if column in JSON_COLUMNS else column for column in named]


DEAD_LETTER_COLUMNS: Final = (
    tables.dead_letters.c.topic,
    tables.dead_letters.c.part,
    tables.dead_letters.c.record_offset,
    tables.dead_letters.c.at_us,
    tables.dead_letters.c.reason,
    tables.dead_letters.c.message,
    tables.dead_letters.c.record_key,
    tables.dead_letters.c.headers,
    tables.dead_letters.c.raw,
    tables.dead_letters.c.event_source,
    tables.dead_letters.c.event_id,
    tables.dead_letters.c.replayed_us,
)


def instance_row(row: Row) -> InstanceRow:
    values = list(row)
    for index in _JSON_OF_INSTANCE:
        values[index] = put_back(raw(values[index]))
    return InstanceRow(*values)


def activity_row(row: Row) -> ActivityRow:
    values = list(row)
    values[-2] = raw(values[-2])  # error
    return ActivityRow(*values)


def timer_row(row: Row) -> TimerRow:
    return TimerRow(*row)


def history_event(row: Row) -> HistoryEvent:
    values = list(row)
    values[-2:] = json.loads(values[-2]), raw(values[-1])  # attrs, payload
    return HistoryEvent(*values)


def dead_letter_row(row: Row) -> DeadLetterRow:
    topic, partition, offset, at_us, reason, message, key, headers, *rest = row
    return DeadLetterRow(
        f"{topic}/{partition}/{offset}", topic, partition, offset, at_us, reason, message, key, _headers(headers), *rest
    )


def parse_dlq_id(dlq_id: str) -> tuple[str, int, int] | None:
    """(topic, partition, offset), or None for what cannot be the id of a dead letter."""
    found = _DLQ_ID.match(dlq_id)
    if found is None:
        return None
    topic, partition, offset = found[1], int(found[2]), int(found[3])
    return (topic, partition, offset) if partition <= _PARTITION_MAX and offset <= _OFFSET_MAX else None


def _headers(text: str) -> tuple[tuple[str, bytes | None], ...]:
    return tuple((name, None if value is None else base64.b64decode(value)) for name, value in json.loads(text))


def raw(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
