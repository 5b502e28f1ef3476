"""Entities as they were last committed, in bulk: on PostgreSQL one prepared statement, straight through asyncpg;
elsewhere one statement per table and chunk of names. No snapshot over the tables is needed: what its own commits are
about to change, the reader has in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Table, select

from romancy_stream.engine.commit import EntityRow, ItemRow, MemberRow, StoredEntity
from romancy_stream.engine.fields import storable
from romancy_stream.store import selects, tables
from romancy_stream.store.database import POSTGRESQL, Database
from romancy_stream.store.failures import translating
from romancy_stream.store.keys import IDS_PER_STATEMENT, chunks

_ENTITY, _MEMBER, _ITEM = range(3)
_KEYS: Final = "FROM unnest($1::text[]) AS k(name)"
# Rows of three shapes, in columns that fit all of them.
_PG_ENTITIES: Final = f"""
SELECT {_ENTITY} AS shape, e.entity, e.part AS a, e.updated_us AS b, NULL::int8 AS c, NULL::int8 AS d,
       e.kind AS name, NULL::text AS ref, e.head AS attrs, NULL::text AS payload
{_KEYS} JOIN romancy_entities e ON e.entity = k.name
UNION ALL
SELECT {_MEMBER}, m.entity, m.run, m.seq, NULL, NULL, m.instance_id, m.ref, m.attrs, NULL
{_KEYS} JOIN romancy_members m ON m.entity = k.name
UNION ALL
SELECT {_ITEM}, i.entity, i.part, i.seq, i.at_us, i.expires_us, NULL, NULL, i.attrs, i.payload
{_KEYS} JOIN romancy_items i ON i.entity = k.name"""


class Entities:
    db: Database

    async def entities(self, names: Sequence[str]) -> Mapping[str, StoredEntity]:
        names = [name for name in dict.fromkeys(names) if storable(name)]
        if not names:
            return {}
        rows = await (self._from_postgres(names) if self.db.dialect == POSTGRESQL else self._from_others(names))
        members: dict[str, list[MemberRow]] = {row.entity: [] for row in rows if isinstance(row, EntityRow)}
        items: dict[str, list[ItemRow]] = {name: [] for name in members}
        for row in rows:
            if isinstance(row, MemberRow):
                members.get(row.entity, []).append(row)
            elif isinstance(row, ItemRow):
                items.get(row.entity, []).append(row)
        return {
            row.entity: StoredEntity(row, _by_seq(members[row.entity]), _by_seq(items[row.entity]))
            for row in rows
            if isinstance(row, EntityRow)
        }

    async def _from_postgres(self, names: Sequence[str]) -> list[EntityRow | MemberRow | ItemRow]:
        with translating("read entities"):
            async with self.db.raw("read entities") as (_, driver):
                rows = await driver.fetch(_PG_ENTITIES, names)
        found: list[EntityRow | MemberRow | ItemRow] = []
        for shape, entity, a, b, c, d, name, ref, attrs, payload in rows:
            if shape == _ENTITY:
                found.append(EntityRow(entity, a, name, attrs.encode(), b))
            elif shape == _MEMBER:
                found.append(MemberRow(entity, name, ref, a, b, attrs.encode()))
            else:
                found.append(ItemRow(entity, b, a, c, d, attrs.encode(), selects.raw(payload)))
        return found

    async def _from_others(self, names: Sequence[str]) -> list[EntityRow | MemberRow | ItemRow]:
        found: list[EntityRow | MemberRow | ItemRow] = []
        async with self.db.reading("read entities") as connection:
            for chunk in chunks(names, IDS_PER_STATEMENT):
                for entity, part, kind, head, updated_us in await connection.execute(_of(tables.entities, chunk)):
                    found.append(EntityRow(entity, part, kind, head.encode(), updated_us))
                for entity, instance_id, ref, run, seq, attrs in await connection.execute(_of(tables.members, chunk)):
                    found.append(MemberRow(entity, instance_id, ref, run, seq, attrs.encode()))
                for row in await connection.execute(_of(tables.items, chunk)):
                    entity, seq, part, at_us, expires_us, attrs, payload = row
                    found.append(ItemRow(entity, seq, part, at_us, expires_us, attrs.encode(), selects.raw(payload)))
        return found


def _of(table: Table, names: Sequence[str]) -> Any:
    return select(table).where(table.c.entity.in_(names))


def _by_seq(rows: Iterable[Any]) -> list[Any]:
    return sorted(rows, key=attrgetter("seq"))
