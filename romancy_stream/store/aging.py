"""What grows old: found by the database's clock or by a given time, and forgotten a portion at a time. Rows are read
first and deleted by key, so that nobody waits for rows that merely lie near them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Column, ScalarSelect, Table, and_, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.store.clocks import clock
from romancy_stream.store.database import Database, finished
from romancy_stream.store.keys import KEYS_PER_STATEMENT, any_of, chunks
from romancy_stream.store.port import Oldest
from romancy_stream.store.tables import activity_results, instances, intake, items, partitions, tombstones


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
        started, ended = instances.c.started_us, instances.c.finished_us
        found = (  # by the index of starts: what has ended so long ago began before that
            select(instances.c.part, instances.c.instance_id)
            .where(instances.c.part.in_(parts), ended < before_us, started < before_us)
            .order_by(started, instances.c.instance_id)
            .limit(limit)
        )
        async with self.db.reading("look for old instances") as connection:
            return [(row.part, row.instance_id) for row in await connection.execute(found)]

    async def forget_intake(self, parts: Sequence[int], before_us: int, limit: int) -> int:
        return await finished(self._forget(intake, parts, before_us, limit))

    async def forget_tombstones(self, parts: Sequence[int], before_us: int, limit: int) -> int:
        """And what a worker has recorded for such an instance at the moment of its deletion: by now it is over."""
        return await finished(self._forget(tombstones, parts, before_us, limit, _forget_late_results))

    async def oldest(self, parts: Sequence[int]) -> Oldest:
        """One step into an index for each table and partition."""
        ages = (items.c.expires_us, intake.c.at_us, tombstones.c.at_us, instances.c.finished_us)
        found = select(clock(self.db.dialect), *(func.min(_first_of_part(age)) for age in ages))
        async with self.db.reading("look for what is oldest") as connection:
            row = (await connection.execute(found.where(partitions.c.part.in_(parts)))).one()
        return Oldest(row[0], row[1], row[2], row[3], row[4])

    async def _forget(
        self,
        table: Table,
        parts: Sequence[int],
        before_us: int,
        limit: int,
        first: Callable[[AsyncConnection, Sequence[Any]], Awaitable[None]] | None = None,
    ) -> int:
        key = list(table.primary_key)
        old = select(table).where(table.c.part.in_(parts), table.c.at_us < before_us).order_by(table.c.at_us)
        async with self.db.writing(f"forget old rows of {table.name}") as connection:
            found = (await connection.execute(old.limit(limit))).all()
            if first is not None:
                await first(connection, found)
            keys = sorted(tuple(row._mapping[column] for column in key) for row in found)
            return await _deleted(connection, table, key, keys, before_us)


def _first_of_part(age: Column[int]) -> ScalarSelect[int]:
    first = select(age).where(age.table.c.part == partitions.c.part, age.is_not(None)).order_by(age).limit(1)
    return first.correlate(partitions).scalar_subquery()


async def _forget_late_results(connection: AsyncConnection, found: Sequence[Any]) -> None:
    """Of the runs that were deleted: a later one under the same id has higher numbers."""
    instance_id, run = activity_results.c.instance_id, activity_results.c.run
    for chunk in chunks(sorted((row.instance_id, row.run) for row in found), KEYS_PER_STATEMENT):
        late = or_(*(and_(instance_id == gone, run <= last) for gone, last in chunk))
        await connection.execute(delete(activity_results).where(late))


async def _deleted(
    connection: AsyncConnection, table: Table, key: Sequence[Any], keys: Sequence[tuple[Any, ...]], before_us: int
) -> int:
    """A row that became young meanwhile stays."""
    count = 0
    for chunk in chunks(keys, KEYS_PER_STATEMENT):
        gone = await connection.execute(delete(table).where(any_of(key, chunk), table.c.at_us < before_us))
        count += int(gone.rowcount)
    return count
