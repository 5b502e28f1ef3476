"""What a batch needs to know before it is decided: which of the ids it mentions exist, and their histories. Read in
bulk: on PostgreSQL one prepared statement each, straight through asyncpg; elsewhere one statement per chunk of ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from sqlalchemy import Table, and_, select

from romancy_stream.engine.commit import InstanceRow, Rejection
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.store import selects, tables
from romancy_stream.store.database import POSTGRESQL, Database
from romancy_stream.store.failures import translating
from romancy_stream.store.paths import storable
from romancy_stream.store.port import Known

IDS_PER_STATEMENT: Final = 1000  # SQLite allows some 32,000 parameters; longer texts gain nothing

_INSTANCE_WIDTH: Final = len(fields(InstanceRow))


def _pg_columns(alias: str, table: Table, shape: type[Any]) -> str:
    columns = [table.c[field.name] for field in fields(shape)]
    return ", ".join(f"{alias}.{c.name}{'::text' if c in selects.JSON_COLUMNS else ''}" for c in columns)


_PG_KNOWN: Final = f"""
SELECT {_pg_columns("i", tables.instances, InstanceRow)}, {_pg_columns("r", tables.rejections, Rejection)}
FROM unnest($1::text[]) AS k(id)
LEFT JOIN romancy_instances i ON i.instance_id = k.id
LEFT JOIN romancy_rejections r ON r.instance_id = k.id
WHERE i.instance_id IS NOT NULL OR r.instance_id IS NOT NULL"""

_PG_HISTORIES: Final = f"""
SELECT {_pg_columns("h", tables.history, HistoryEvent)}
FROM unnest($1::text[]) AS k(id)
JOIN romancy_instances i ON i.instance_id = k.id
JOIN romancy_history h ON h.instance_id = i.instance_id AND h.run = i.run
ORDER BY h.instance_id, h.seq"""


class Prefetch:
    db: Database

    async def known(self, ids: Sequence[str]) -> Known:
        ids = _askable(ids)
        if not ids:
            return Known({}, {})
        if self.db.dialect == POSTGRESQL:
            rows = await self._fetched(_PG_KNOWN, ids, "look up instances")
            known = [selects.instance_row(row[:_INSTANCE_WIDTH]) for row in rows if row[0] is not None]
            refused = [_rejection(row[_INSTANCE_WIDTH:]) for row in rows if row[_INSTANCE_WIDTH] is not None]
        else:
            known, refused = await self._known(ids)
        return Known({row.instance_id: row for row in known}, {row.instance_id: row for row in refused})

    async def histories(self, ids: Sequence[str]) -> Mapping[str, Sequence[HistoryEvent]]:
        ids = _askable(ids)
        if not ids:
            return {}
        if self.db.dialect == POSTGRESQL:
            rows = await self._fetched(_PG_HISTORIES, ids, "read histories")
        else:
            rows = await self._history_rows(ids)
        found: dict[str, list[HistoryEvent]] = {}
        for event in map(selects.history_event, rows):
            found.setdefault(event.instance_id, []).append(event)
        return found

    async def _fetched(self, statement: str, ids: Sequence[str], doing: str) -> Sequence[selects.Row]:
        with translating(doing):
            async with self.db.raw(doing) as (_, driver):
                rows: Sequence[selects.Row] = await driver.fetch(statement, ids)
                return rows

    async def _known(self, ids: Sequence[str]) -> tuple[list[InstanceRow], list[Rejection]]:
        instances = select(*selects.columns(tables.instances, InstanceRow, self.db.dialect))
        rejections = select(*selects.columns(tables.rejections, Rejection, self.db.dialect))
        known: list[InstanceRow] = []
        refused: list[Rejection] = []
        async with self.db.reading("look up instances") as connection:
            for chunk in _chunks(ids):
                rows = await connection.execute(instances.where(tables.instances.c.instance_id.in_(chunk)))
                known += map(selects.instance_row, rows)
                rows = await connection.execute(rejections.where(tables.rejections.c.instance_id.in_(chunk)))
                refused += map(_rejection, rows)
        return known, refused

    async def _history_rows(self, ids: Sequence[str]) -> list[selects.Row]:
        history, instances = tables.history, tables.instances
        current = and_(history.c.instance_id == instances.c.instance_id, history.c.run == instances.c.run)
        found = select(*selects.columns(history, HistoryEvent, self.db.dialect)).join(instances, current)
        rows: list[selects.Row] = []
        async with self.db.reading("read histories") as connection:
            for chunk in _chunks(ids):
                wanted = found.where(instances.c.instance_id.in_(chunk))
                rows += await connection.execute(wanted.order_by(history.c.instance_id, history.c.seq))
        return rows


def _askable(ids: Sequence[str]) -> list[str]:
    """An id that no database could hold is unknown; asking for it would be an error."""
    return [instance_id for instance_id in ids if storable(instance_id)]


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), IDS_PER_STATEMENT):
        yield ids[first : first + IDS_PER_STATEMENT]


def _rejection(row: selects.Row) -> Rejection:
    instance_id, part, workflow, reason, message, errors, *rest = row
    return Rejection(instance_id, part, workflow, reason, message, errors.encode(), *rest)
