"""The readers and the one writer behind `romancy verify` and `romancy rebuild`: the whole log page by page, the
projections of some instances, and a replacement for them. Touches history, instances, activities and timers only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Table, Text, bindparam, cast, delete, insert, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import ActivityRow, InstanceRow, TimerRow
from romancy_stream.engine.fields import storable
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.store import selects, tables
from romancy_stream.store.keys import chunks
from romancy_stream.store.searchable import insert_values, rows_of, searched_paths

IDS_PER_STATEMENT: Final = 500  # far below every driver's limit of parameters
ROWS_PER_STATEMENT: Final = 500  # rows hold whole inputs and outputs

_TABLES: Final[dict[type[Any], Table]] = {
    InstanceRow: tables.instances,
    ActivityRow: tables.activities,
    TimerRow: tables.timers,
}


class Projections:
    """A part of the store; `db` is the store's database."""

    db: selects.Connections

    async def scan_histories(self, page_instances: int = 500) -> AsyncIterator[Mapping[str, Sequence[HistoryEvent]]]:
        """Each page is a snapshot of its own: an instance never appears with half a commit. All runs of an instance,
        by (run, seq). The order of ids is the database's. ValueError when a page is to hold less than one."""
        if page_instances < 1:
            raise ValueError(f"a page of {page_instances} instances")
        last: str | None = None
        while page := await self._page_of_histories(last, page_instances):
            yield page
            last = next(reversed(page))

    async def _page_of_histories(self, after: str | None, page_instances: int) -> dict[str, list[HistoryEvent]]:
        table = tables.history
        ids = select(table.c.instance_id).distinct().order_by(table.c.instance_id).limit(page_instances)
        if after is not None:
            ids = ids.where(table.c.instance_id > after)
        wanted = ids.subquery()
        found = (
            select(*selects.columns(table, HistoryEvent, self.db.dialect))
            .join(wanted, wanted.c.instance_id == table.c.instance_id)
            .order_by(table.c.instance_id, table.c.run, table.c.seq)
        )
        async with self.db.reading("scan histories") as connection:
            events = map(selects.history_event, await connection.execute(found))
            return {instance_id: list(rows) for instance_id, rows in groupby(events, attrgetter("instance_id"))}

    async def whole_histories(self, ids: Sequence[str]) -> Mapping[str, Sequence[HistoryEvent]]:
        """All runs of each, by (run, seq), out of the log alone. Ids without a log are absent."""
        table = tables.history
        found = select(*selects.columns(table, HistoryEvent, self.db.dialect)).order_by(*table.primary_key)
        histories: dict[str, list[HistoryEvent]] = {}
        async with self.db.reading("read histories") as connection:
            for some in chunks(sorted(filter(storable, set(ids))), IDS_PER_STATEMENT):
                for row in await connection.execute(found.where(table.c.instance_id.in_(some))):
                    event = selects.history_event(row)
                    histories.setdefault(event.instance_id, []).append(event)
        return histories

    async def projected(
        self, ids: Sequence[str]
    ) -> tuple[Sequence[InstanceRow], Sequence[ActivityRow], Sequence[TimerRow]]:
        """By primary key; rows of all runs, as one snapshot shows them."""
        instances: list[InstanceRow] = []
        activities: list[ActivityRow] = []
        timers: list[TimerRow] = []
        async with self.db.reading("read projections") as connection:
            if self.db.dialect != "sqlite":  # where a transaction is one snapshot anyway
                await connection.execution_options(isolation_level="REPEATABLE READ")
            for some in chunks(sorted(set(ids)), IDS_PER_STATEMENT):
                instances += map(selects.instance_row, await self._rows(connection, InstanceRow, some))
                activities += map(selects.activity_row, await self._rows(connection, ActivityRow, some))
                timers += map(selects.timer_row, await self._rows(connection, TimerRow, some))
        return instances, activities, timers

    async def _rows(self, connection: AsyncConnection, shape: type[Any], ids: Sequence[str]) -> Sequence[selects.Row]:
        table = _TABLES[shape]
        found = (
            select(*selects.columns(table, shape, self.db.dialect))
            .where(table.c.instance_id.in_(ids))
            .order_by(*table.primary_key.columns)
        )
        return (await connection.execute(found)).all()

    async def replace_projections(
        self,
        ids: Sequence[str],
        instances: Sequence[InstanceRow],
        activities: Sequence[ActivityRow],
        timers: Sequence[TimerRow],
    ) -> None:
        """All or nothing. Every row that is given belongs to one of `ids`, else ValueError."""
        listed = set(ids)
        rows: list[InstanceRow | ActivityRow | TimerRow] = [*instances, *activities, *timers]
        if strays := {row.instance_id for row in rows} - listed:
            raise ValueError(f"rows of instances that are not to be replaced: {sorted(strays)[:5]}")
        async with self.db.writing("replace projections") as connection:
            for table in _TABLES.values():
                for some in chunks(sorted(listed), IDS_PER_STATEMENT):
                    await connection.execute(delete(table).where(table.c.instance_id.in_(some)))
            await self._insert(connection, tables.instances, [_values(row) for row in instances])
            await self._replace_values(connection, sorted(listed), instances)
            await self._insert(connection, tables.activities, [_values(row) for row in activities])
            await self._insert(connection, tables.timers, [_values(row) for row in timers])

    async def _replace_values(
        self, connection: AsyncConnection, ids: Sequence[str], instances: Sequence[InstanceRow]
    ) -> None:
        if searched := await searched_paths(connection):
            for some in chunks(ids, IDS_PER_STATEMENT):
                gone = delete(tables.input_values).where(tables.input_values.c.instance_id.in_(some))
                await connection.execute(gone)
            await insert_values(connection, self.db.dialect, rows_of(instances, searched))

    async def _insert(self, connection: AsyncConnection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        # JSON goes in as text: SQLAlchemy's JSON type would quote it once more.
        values = {column.name: _bound(column, self.db.dialect) for column in table.columns}
        for chunk in chunks(rows, ROWS_PER_STATEMENT):
            await connection.execute(insert(table).values(values), chunk)


def _bound(column: Column[Any], dialect: str) -> ColumnElement[Any]:
    if column not in selects.JSON_COLUMNS:
        return bindparam(column.key, type_=column.type)
    given = bindparam(column.key, type_=Text())
    return cast(given, JSONB()) if dialect == "postgresql" else type_coerce(given, Text())


def _values(row: InstanceRow | ActivityRow | TimerRow) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
