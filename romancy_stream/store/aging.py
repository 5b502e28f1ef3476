"""What grows old: found by the database's clock or by a given time, and forgotten a portion at a time. Rows are read
first and deleted by key, so that nobody waits for rows that merely lie near them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.store.clocks import clock
from romancy_stream.store.database import Database, finished
from romancy_stream.store.keys import KEYS_PER_STATEMENT, any_of, chunks
from romancy_stream.store.tables import instances, intake, items, tombstones


class Aging:
    db: Database

    async def expired_items(self, parts: Sequence[int], limit: int) -> Sequence[tuple[int, str, int]]:
        found = (
            select(items.c.part, items.c.entity, items.c.seq)
            .where(items.c.part.in_(parts), items.c.expires_us <= clock(self.db.dialect))
            .order_by(items.c.expires_us, items.c.entity, items.c.seq)
            .limit(limit)
        )
        async with self.db.reading("look for expired items") as connection:
            return [(row.part, row.entity, row.seq) for row in await connection.execute(found)]

    async def finished_before(self, parts: Sequence[int], before_us: int, limit: int) -> Sequence[tuple[int, str]]:
        found = (
            select(instances.c.part, instances.c.instance_id)
            .where(instances.c.part.in_(parts), instances.c.finished_us < before_us)
            .order_by(instances.c.finished_us, instances.c.instance_id)
            .limit(limit)
        )
        async with self.db.reading("look for old instances") as connection:
            return [(row.part, row.instance_id) for row in await connection.execute(found)]

    async def forget_intake(self, parts: Sequence[int], before_us: int, limit: int) -> int:
        return await finished(self._forget(intake, parts, before_us, limit))

    async def forget_tombstones(self, parts: Sequence[int], before_us: int, limit: int) -> int:
        return await finished(self._forget(tombstones, parts, before_us, limit))

    async def _forget(self, table: Table, parts: Sequence[int], before_us: int, limit: int) -> int:
        key = list(table.primary_key)
        old = (
            select(*key).where(table.c.part.in_(parts), table.c.at_us < before_us).order_by(table.c.at_us).limit(limit)
        )
        async with self.db.writing(f"forget old rows of {table.name}") as connection:
            keys = sorted(tuple(row) for row in await connection.execute(old))
            return await _deleted(connection, table, key, keys, before_us)


async def _deleted(
    connection: AsyncConnection, table: Table, key: Sequence[Any], keys: Sequence[tuple[Any, ...]], before_us: int
) -> int:
    """A row that became young meanwhile stays."""
    count = 0
    for chunk in chunks(keys, KEYS_PER_STATEMENT):
        gone = await connection.execute(delete(table).where(any_of(key, chunk), table.c.at_us < before_us))
        count += int(gone.rowcount)
    return count
