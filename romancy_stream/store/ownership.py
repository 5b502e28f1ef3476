"""Who owns a partition, and what a new owner starts from. Also the few facts an app writes down about itself: its
namespace, its number of partitions, the identity of its topics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Table, and_, case, select, text, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import ActivityKey, Mark, OutboxRow, TimerRow
from romancy_stream.errors import FencedError, NamespaceError, PartitionCountError
from romancy_stream.store.clocks import MY_CLOCK, PG_CLOCK, clock_us
from romancy_stream.store.database import MYSQL, POSTGRESQL, SQLITE, Database
from romancy_stream.store.failures import translating
from romancy_stream.store.port import Detached, PartitionSnapshot
from romancy_stream.store.tables import activities, instances, meta, offsets, outbox, partitions, timers, watermarks

_NAMESPACE: Final = "namespace"
_PARTITIONS: Final = "partitions"
_TOPIC: Final = "topic:"  # and 249 characters, the longest name a topic can have, fill the column exactly


def insert_missing(table: Table, dialect: str) -> Any:
    """An INSERT that leaves rows which are there as they are. Not INSERT IGNORE, which would also cut off what is too
    long."""
    if dialect == MYSQL:
        statement = mysql.insert(table)
        key = next(iter(table.primary_key))
        return statement.on_duplicate_key_update({key.name: table.columns[key.name]})
    made = postgresql.insert(table) if dialect == POSTGRESQL else sqlite.insert(table)
    return made.on_conflict_do_nothing()


class Ownership:
    db: Database

    async def prepare(self, namespace: str, partitions: int) -> None:
        async with self.db.writing("prepare") as connection:
            facts = [{"name": _NAMESPACE, "value": namespace}, {"name": _PARTITIONS, "value": str(partitions)}]
            await connection.execute(insert_missing(meta, self.db.dialect), facts)
            rows = await connection.execute(select(meta.c.name, meta.c.value))
            _check({str(row.name): str(row.value) for row in rows}, namespace, partitions)
            await self._make_partitions(connection, partitions)

    async def _make_partitions(self, connection: AsyncConnection, count: int) -> None:
        there = set((await connection.execute(select(partitions.c.part))).scalars())
        begin = {"epoch": 0, "commit_no": 0, "position": 0, "taken_at": -1, "stalls": 0}
        fresh = [{"part": part, **begin} for part in range(count) if part not in there]
        if fresh:
            await connection.execute(insert_missing(partitions, self.db.dialect), fresh)

    async def now_us(self) -> int:
        if self.db.dialect == SQLITE:
            return clock_us()
        if self.db.dialect == MYSQL:
            async with self.db.reading("read the clock") as connection:
                return int((await connection.execute(text(f"SELECT {MY_CLOCK}"))).scalar_one())
        with translating("read the clock"):
            async with self.db.raw("read the clock") as (_, driver):
                return int(await driver.fetchval(f"SELECT {PG_CLOCK}"))

    async def take_over(self, parts: Sequence[int], owner: str) -> Mapping[int, int]:
        mine = partitions.c.part.in_(parts)
        epochs = select(partitions.c.part, partitions.c.epoch).where(mine).order_by(partitions.c.part)
        async with self.db.writing("take over") as connection:
            found = (await connection.execute(epochs.with_for_update())).all()  # locked in order: no deadlock
            if missing := set(parts) - {row.part for row in found}:
                raise PartitionCountError(f"the database has no partition {sorted(missing)}: it was made with fewer")
            stalled = case((partitions.c.commit_no == partitions.c.taken_at, partitions.c.stalls + 1), else_=0)
            raised = (
                update(partitions)
                .where(mine)
                .ordered_values(  # MySQL reads columns that stand before as changed already
                    (partitions.c.stalls, stalled),
                    (partitions.c.taken_at, partitions.c.commit_no),
                    (partitions.c.epoch, partitions.c.epoch + 1),
                    (partitions.c.owner, owner),
                )
            )
            await connection.execute(raised)
        return {row.part: row.epoch + 1 for row in found}

    async def find_out(self, marks: Sequence[Mark], owner: str) -> bool:
        by_part = {mark.part: mark for mark in marks}
        told = (
            select(partitions.c.part, partitions.c.epoch, partitions.c.commit_no, partitions.c.owner)
            .where(partitions.c.part.in_(by_part))
            .order_by(partitions.c.part)
        )
        async with self.db.writing("find out about a commit") as connection:
            found = (await connection.execute(told.with_for_update())).all()
            old = [row.part for row in found if row.epoch == by_part[row.part].epoch]
            done = [row.part for row in found if row.owner == owner and row.epoch == by_part[row.part].epoch + 1]
            if len(old) + len(done) != len(by_part):
                raise FencedError("another process owns one of the partitions")
            applied = {bool(row.commit_no == by_part[row.part].commit_no + 1) for row in found}
            if len(applied) != 1:
                raise FencedError("the commit took effect in part: another process wrote in between")
            if old:
                raised = {"epoch": partitions.c.epoch + 1, "owner": owner}
                await connection.execute(update(partitions).where(partitions.c.part.in_(old)).values(raised))
        return applied.pop()

    async def snapshot(self, parts: Sequence[int]) -> Sequence[PartitionSnapshot]:
        async with self.db.reading("read what a partition owns") as connection:
            rows = await connection.execute(select(partitions).where(partitions.c.part.in_(parts)))
            marks = {row.part: row for row in rows}
            next_offsets = await _by_part(connection, offsets, parts)
            seen = await _by_part(connection, watermarks, parts)
            waiting = await _by_part(connection, timers, parts)
            unsent = await _by_part(connection, outbox, parts)
            halted = await connection.execute(
                select(instances.c.part, instances.c.instance_id)
                .where(instances.c.part.in_(parts), instances.c.parked.is_not(None))
                .order_by(instances.c.instance_id)
            )
            eager = await self._eager(connection, parts)
            parked: dict[int, list[str]] = defaultdict(list)
            for row in halted:
                parked[row.part].append(row.instance_id)
        if missing := set(parts) - marks.keys():
            raise PartitionCountError(f"the database has no partition {sorted(missing)}: it was made with fewer")
        snapshots = []
        for part in parts:
            sendable, held = _sendable(unsent[part])
            snapshots.append(
                PartitionSnapshot(
                    part=part,
                    epoch=marks[part].epoch,
                    commit_no=marks[part].commit_no,
                    position=marks[part].position,
                    offsets={row.topic: row.next_offset for row in next_offsets[part]},
                    watermarks={row.origin: row.position for row in seen[part]},
                    timers=[TimerRow(r.instance_id, r.run, r.timer_id, r.part, r.due_us) for r in waiting[part]],
                    outbox=sendable,
                    held=held,
                    parked=parked[part],
                    eager=tuple(each for each in eager if each.part == part),
                    stalls=marks[part].stalls,
                    suspect=marks[part].suspect,
                )
            )
        return snapshots

    async def _eager(self, connection: AsyncConnection, parts: Sequence[int]) -> list[Detached]:
        current = and_(instances.c.instance_id == activities.c.instance_id, instances.c.run == activities.c.run)
        found = await connection.execute(
            select(
                activities.c.instance_id,
                activities.c.run,
                activities.c.activity_id,
                activities.c.attempt,
                instances.c.part,
                activities.c.eager,
            )
            .join(instances, current)
            .where(instances.c.part.in_(parts), instances.c.finished_us.is_(None), activities.c.eager.is_not(None))
        )
        return [
            Detached(ActivityKey(instance_id, run, activity_id), attempt, part, incarnation)
            for instance_id, run, activity_id, attempt, part, incarnation in found
        ]

    async def mark_suspect(self, part: int, epoch: int, suspect: str | None) -> None:
        own = (partitions.c.part == part) & (partitions.c.epoch == epoch)
        async with self.db.writing("mark a suspect") as connection:
            await connection.execute(update(partitions).where(own).values(suspect=suspect))

    async def topic_ids(self) -> Mapping[str, str]:
        async with self.db.reading("read the topics' identity") as connection:
            rows = await connection.execute(select(meta.c.name, meta.c.value))
            return {row.name.removeprefix(_TOPIC): row.value for row in rows if row.name.startswith(_TOPIC)}

    async def record_topic_ids(self, ids: Mapping[str, str]) -> None:
        """Replaces those that are there."""
        async with self.db.writing("record the topics' identity") as connection:
            for topic, value in sorted(ids.items()):
                named = {"name": _TOPIC + topic, "value": value}
                await connection.execute(insert_missing(meta, self.db.dialect), named)
                await connection.execute(update(meta).where(meta.c.name == named["name"]).values(value=value))


def _check(facts: Mapping[str, str], namespace: str, partitions: int) -> None:
    if facts[_NAMESPACE] != namespace:
        raise NamespaceError(
            f"this database belongs to the app {facts[_NAMESPACE]!r}, not to {namespace!r}: "
            "give each app a database of its own, or correct the namespace"
        )
    if facts[_PARTITIONS] != str(partitions):
        raise PartitionCountError(
            f"this database was made for {facts[_PARTITIONS]} partitions and the app asks for {partitions}: instances "
            f"would change hands. Set partitions={facts[_PARTITIONS]} and make the topics with as many, "
            "or start with an empty database"
        )


async def _by_part(connection: AsyncConnection, table: Table, parts: Sequence[int]) -> Mapping[int, list[Any]]:
    """Rows by partition, in the order of the table's key."""
    found: dict[int, list[Any]] = defaultdict(list)
    statement = select(table).where(table.c.part.in_(parts)).order_by(*table.primary_key)
    for row in await connection.execute(statement):
        found[row.part].append(row)
    return found


def _sendable(rows: Sequence[Any]) -> tuple[list[OutboxRow], dict[str, list[OutboxRow]]]:
    """Apart from the rest: refused rows, and what follows one under the same key."""
    held: dict[str, list[OutboxRow]] = {}
    sendable: list[OutboxRow] = []
    for found in rows:
        headers = tuple((name, value) for name, value in orjson.loads(found.headers))
        row = OutboxRow(found.part, found.position, found.topic, found.key, found.to_partition, headers, found.value)
        if found.refused is not None or row.key in held:
            held.setdefault(row.key, []).append(row)
        else:
            sendable.append(row)
    return sendable, held
