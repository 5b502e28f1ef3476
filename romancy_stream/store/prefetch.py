"""What a batch needs to know before it is decided: which of the ids it mentions exist, and their histories. Read in
bulk: on PostgreSQL one prepared statement each, straight through asyncpg; elsewhere one statement per chunk of ids."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final

import orjson
from sqlalchemy import Table, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import InstanceRow, Rejection, Tombstone
from romancy_stream.engine.fields import storable
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.store import selects, tables
from romancy_stream.store.database import POSTGRESQL, Database
from romancy_stream.store.failures import translating
from romancy_stream.store.keys import IDS_PER_STATEMENT, KEYS_PER_STATEMENT, any_of, chunks
from romancy_stream.store.port import Known
from romancy_stream.store.sqlite_thread import SqliteThread

_INSTANCE: Final = slice(0, len(fields(InstanceRow)))
_REJECTION: Final = slice(_INSTANCE.stop, _INSTANCE.stop + len(fields(Rejection)))
_TOMBSTONE: Final = slice(_REJECTION.stop, _REJECTION.stop + len(fields(Tombstone)))


def _pg_columns(alias: str, table: Table, shape: type[Any]) -> str:
    columns = [table.c[field.name] for field in fields(shape)]
    return ", ".join(f"{alias}.{c.name}{'::text' if c in selects.JSON_COLUMNS else ''}" for c in columns)


_PG_KNOWN: Final = f"""
SELECT {_pg_columns("i", tables.instances, InstanceRow)}, {_pg_columns("r", tables.rejections, Rejection)},
       {_pg_columns("t", tables.tombstones, Tombstone)}
FROM unnest($1::text[]) AS k(id)
LEFT JOIN romancy_instances i ON i.instance_id = k.id
LEFT JOIN romancy_rejections r ON r.instance_id = k.id
LEFT JOIN romancy_tombstones t ON t.instance_id = k.id
WHERE i.instance_id IS NOT NULL OR r.instance_id IS NOT NULL OR t.instance_id IS NOT NULL"""

_PG_HISTORIES: Final = f"""
SELECT {_pg_columns("h", tables.history, HistoryEvent)}
FROM unnest($1::text[]) AS k(id)
JOIN romancy_instances i ON i.instance_id = k.id
JOIN romancy_history h ON h.instance_id = i.instance_id AND h.run = i.run
ORDER BY h.instance_id, h.seq"""

_PG_PREFIXES: Final = f"""
SELECT {_pg_columns("h", tables.history, HistoryEvent)}
FROM unnest($1::text[], $2::int4[]) AS k(id, run)
JOIN romancy_history h ON h.instance_id = k.id AND h.run = k.run
ORDER BY h.instance_id, h.run, h.seq"""

_PG_TAKEN_IN: Final = """
SELECT t.part, t.digest
FROM unnest($1::int4[], $2::text[]) AS k(part, digest)
JOIN romancy_intake t ON t.part = k.part AND t.digest = k.digest"""


def _sqlite_by_id(table: Table, shape: type[Any]) -> str:
    names = ", ".join(field.name for field in fields(shape))
    return f"SELECT {names} FROM {table.name} WHERE instance_id IN (SELECT value FROM json_each(?))"


_SQLITE_KNOWN: Final = (
    _sqlite_by_id(tables.instances, InstanceRow),
    _sqlite_by_id(tables.rejections, Rejection),
    _sqlite_by_id(tables.tombstones, Tombstone),
)


class Prefetch:
    """`lookups`: on SQLite alone."""

    db: Database
    lookups: SqliteThread | None

    async def known(self, ids: Sequence[str]) -> Known:
        ids = _askable(ids)
        if not ids:
            return Known({}, {})
        if self.db.dialect == POSTGRESQL:
            rows = await self._fetched("look up instances", _PG_KNOWN, ids)
            known = [selects.instance_row(row[_INSTANCE]) for row in rows if row[_INSTANCE.start] is not None]
            refused = [_rejection(row[_REJECTION]) for row in rows if row[_REJECTION.start] is not None]
            deleted = [Tombstone(*row[_TOMBSTONE]) for row in rows if row[_TOMBSTONE.start] is not None]
        else:
            known, refused, deleted = await self._known(ids)
        return Known(
            {row.instance_id: row for row in known},
            {row.instance_id: row for row in refused},
            {row.instance_id: row for row in deleted},
        )

    async def histories(self, ids: Sequence[str]) -> Mapping[str, Sequence[HistoryEvent]]:
        ids = _askable(ids)
        if not ids:
            return {}
        if self.db.dialect == POSTGRESQL:
            rows = await self._fetched("read histories", _PG_HISTORIES, ids)
        else:
            rows = await self._history_rows(ids)
        found: dict[str, list[HistoryEvent]] = {}
        for event in map(selects.history_event, rows):
            found.setdefault(event.instance_id, []).append(event)
        return found

    async def history_prefixes(
        self, ids: Sequence[tuple[str, int]]
    ) -> Mapping[tuple[str, int], Sequence[HistoryEvent]]:
        ids = sorted({(instance_id, run) for instance_id, run in ids if storable(instance_id)})
        if not ids:
            return {}
        if self.db.dialect == POSTGRESQL:
            names, runs = [each[0] for each in ids], [each[1] for each in ids]
            rows = await self._fetched("read histories", _PG_PREFIXES, names, runs)
        else:
            rows = await self._rows_of_runs(ids)
        found: dict[tuple[str, int], list[HistoryEvent]] = defaultdict(list)
        for event in map(selects.history_event, rows):
            found[event.instance_id, event.run].append(event)
        return found

    async def taken_in(self, keys: Sequence[tuple[int, str]]) -> set[tuple[int, str]]:
        if not keys:
            return set()
        if self.db.dialect == POSTGRESQL:
            parts, digests = [key[0] for key in keys], [key[1] for key in keys]
            rows = await self._fetched("look up what was taken in", _PG_TAKEN_IN, parts, digests)
        else:
            rows = await self._taken_in(keys)
        return {(part, digest) for part, digest in rows}

    async def _fetched(self, doing: str, statement: str, *arrays: Sequence[Any]) -> Sequence[selects.Row]:
        with translating(doing):
            async with self.db.raw(doing) as (_, driver):
                rows: Sequence[selects.Row] = await driver.fetch(statement, *arrays)
                return rows

    async def _known(self, ids: Sequence[str]) -> tuple[list[InstanceRow], list[Rejection], list[Tombstone]]:
        if self.lookups is not None:
            with translating("look up instances"):
                rows, refusals, stones = await self.lookups.run(partial(_sqlite_known, ids))
            known, refused = list(map(selects.instance_row, rows)), list(map(_rejection, refusals))
            return known, refused, [Tombstone(*row) for row in stones]
        return await self._known_by_chunks(ids)

    async def _known_by_chunks(self, ids: Sequence[str]) -> tuple[list[InstanceRow], list[Rejection], list[Tombstone]]:
        known: list[InstanceRow] = []
        refused: list[Rejection] = []
        deleted: list[Tombstone] = []
        async with self.db.reading("look up instances") as connection:
            for chunk in chunks(ids, IDS_PER_STATEMENT):
                known += map(selects.instance_row, await self._by_id(connection, tables.instances, InstanceRow, chunk))
                refused += map(_rejection, await self._by_id(connection, tables.rejections, Rejection, chunk))
                deleted += [
                    Tombstone(*row) for row in await self._by_id(connection, tables.tombstones, Tombstone, chunk)
                ]
        return known, refused, deleted

    async def _by_id(
        self, connection: AsyncConnection, table: Table, shape: type[Any], ids: Sequence[str]
    ) -> Sequence[selects.Row]:
        found = select(*selects.columns(table, shape, self.db.dialect)).where(table.c.instance_id.in_(ids))
        return (await connection.execute(found)).all()

    async def _taken_in(self, keys: Sequence[tuple[int, str]]) -> list[selects.Row]:
        table = tables.intake
        rows: list[selects.Row] = []
        async with self.db.reading("look up what was taken in") as connection:
            for chunk in chunks(sorted(keys), IDS_PER_STATEMENT):
                of_part: dict[int, list[str]] = defaultdict(list)
                for part, digest in chunk:
                    of_part[part].append(digest)
                there = [and_(table.c.part == part, table.c.digest.in_(some)) for part, some in of_part.items()]
                rows += await connection.execute(select(table.c.part, table.c.digest).where(or_(*there)))
        return rows

    async def _rows_of_runs(self, ids: Sequence[tuple[str, int]]) -> list[selects.Row]:
        history = tables.history
        found = select(*selects.columns(history, HistoryEvent, self.db.dialect)).order_by(*history.primary_key)
        rows: list[selects.Row] = []
        async with self.db.reading("read histories") as connection:
            for chunk in chunks(ids, KEYS_PER_STATEMENT):
                rows += await connection.execute(found.where(any_of((history.c.instance_id, history.c.run), chunk)))
        return rows

    async def _history_rows(self, ids: Sequence[str]) -> list[selects.Row]:
        history, instances = tables.history, tables.instances
        current = and_(history.c.instance_id == instances.c.instance_id, history.c.run == instances.c.run)
        found = select(*selects.columns(history, HistoryEvent, self.db.dialect)).join(instances, current)
        rows: list[selects.Row] = []
        async with self.db.reading("read histories") as connection:
            for chunk in chunks(ids, IDS_PER_STATEMENT):
                wanted = found.where(instances.c.instance_id.in_(chunk))
                rows += await connection.execute(wanted.order_by(history.c.instance_id, history.c.seq))
        return rows


def _sqlite_known(ids: Sequence[str], connection: sqlite3.Connection) -> list[list[selects.Row]]:
    """In one transaction: what it finds is of one moment."""
    asked = (orjson.dumps(ids).decode(),)
    connection.execute("BEGIN")
    try:
        return [connection.execute(statement, asked).fetchall() for statement in _SQLITE_KNOWN]
    finally:
        connection.execute("COMMIT")


def _askable(ids: Sequence[str]) -> list[str]:
    """An id that no database could hold is unknown; asking for it would be an error."""
    return [instance_id for instance_id in ids if storable(instance_id)]


def _rejection(row: selects.Row) -> Rejection:
    instance_id, part, workflow, reason, message, errors, *rest = row
    return Rejection(instance_id, part, workflow, reason, message, errors.encode(), *rest)
