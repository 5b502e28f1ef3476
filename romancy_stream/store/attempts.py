"""Long attempts: their heartbeats, those that their worker has committed past, and the leases of worker processes that
stand for them. Primary state, on the database's clock; the engine decides what a lapse means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, case, delete, exists, literal, or_, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import COMPENSATING, RUNNING, ActivityKey, Heartbeat
from romancy_stream.store import selects
from romancy_stream.store.clocks import clock
from romancy_stream.store.database import MYSQL, POSTGRESQL, Database, finished
from romancy_stream.store.keys import KEYS_PER_STATEMENT, activity_columns, any_of, chunks
from romancy_stream.store.port import Detached
from romancy_stream.store.tables import (
    activities,
    activity_results,
    detached,
    heartbeats,
    instances,
    leases,
    partitions,
    tombstones,
)
from romancy_stream.store.writes import CLOSED, text_of

LEASES_KEPT_US: Final = 24 * 3600 * 1_000_000  # over and done with, but somebody may want to see who worked here
LEASES_FORGOTTEN_AT_ONCE: Final = 100  # per renewal: each process leaves one behind
WITH_ATTEMPTS: Final = (RUNNING, COMPENSATING)
"""What an instance is, whatever else it waits for, while one of its activities is open."""

_US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Look:
    """Whether a partition had an open attempt when it was at this epoch and commit."""

    part: int
    at: tuple[int, int]
    found: bool


class LongAttempts:
    db: Database
    looked: dict[int, Look]
    """By partition. Every commit counts, so it is true for as long as the partition stays where it was."""

    async def beat(self, key: ActivityKey, attempt: int, details: bytes | None) -> bool:
        return await finished(self._beat(key, attempt, details))

    async def _beat(self, key: ActivityKey, attempt: int, details: bytes | None) -> bool:
        """An attempt that is older than the one that beat last changes nothing; one that was given up leaves none."""
        unwanted = or_(_given_up(key), exists().where(*_overtaken(key, attempt)))
        row = {"instance_id": key.instance_id, "run": key.run, "activity_id": key.activity_id, "attempt": attempt}
        row["details"] = text_of(details)
        async with self.db.writing("record a heartbeat") as connection:
            if (await connection.execute(select(unwanted))).scalar_one():
                return False
            beaten = _unless_later(heartbeats, self.db.dialect, "at_us", "details")
            await connection.execute(beaten.values(at_us=clock(self.db.dialect), **row))
            return True

    async def heartbeats(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, Heartbeat]:
        found: dict[ActivityKey, Heartbeat] = {}
        if not keys:
            return found
        columns = activity_columns(heartbeats)
        async with self.db.reading("read heartbeats") as connection:
            for chunk in chunks(keys, KEYS_PER_STATEMENT):
                for row in await connection.execute(select(heartbeats).where(any_of(columns, chunk))):
                    key = ActivityKey(row.instance_id, row.run, row.activity_id)
                    found[key] = Heartbeat(key, row.attempt, row.at_us, selects.raw(row.details))
        return found

    async def detach(self, attempts: Sequence[Detached], lease_s: float) -> None:
        if attempts:
            await finished(self._detach(attempts, lease_s))

    async def _detach(self, attempts: Sequence[Detached], lease_s: float) -> None:
        rows = [
            {
                "instance_id": each.key.instance_id,
                "run": each.key.run,
                "activity_id": each.key.activity_id,
                "part": each.part,
                "attempt": each.attempt,
                "incarnation": each.incarnation,
            }
            for each in sorted(attempts, key=lambda each: each.key)
        ]
        async with self.db.writing("detach attempts") as connection:
            await connection.execute(_unless_later(detached, self.db.dialect, "part", "incarnation"), rows)
            for incarnation in sorted({each.incarnation for each in attempts}):
                await self._renew(connection, incarnation, lease_s)

    async def renew_lease(self, incarnation: str, lease_s: float) -> None:
        await finished(self._renew_lease(incarnation, lease_s))

    async def _renew_lease(self, incarnation: str, lease_s: float) -> None:
        async with self.db.writing("renew a lease") as connection:
            await self._renew(connection, incarnation, lease_s)
            await self._forget_old_leases(connection)

    async def _renew(self, connection: AsyncConnection, incarnation: str, lease_s: float) -> None:
        until = clock(self.db.dialect) + literal(round(lease_s * _US_PER_S))
        renewed = _upsert(leases, self.db.dialect, "expires_us")
        await connection.execute(renewed.values(incarnation=incarnation, expires_us=until))

    async def _forget_old_leases(self, connection: AsyncConnection) -> None:
        """Read first, deleted by key: two who renew at once must not wait for each other's rows."""
        old = select(leases.c.incarnation).where(leases.c.expires_us < clock(self.db.dialect) - LEASES_KEPT_US)
        rows = await connection.execute(old.order_by(leases.c.incarnation).limit(LEASES_FORGOTTEN_AT_ONCE))
        if names := list(rows.scalars()):
            await connection.execute(delete(leases).where(leases.c.incarnation.in_(names)))

    async def attach(self, attempts: Sequence[Detached]) -> None:
        if attempts:
            await finished(self._attach(attempts))

    async def _attach(self, attempts: Sequence[Detached]) -> None:
        """Only where that worker stands for that attempt: another one may have taken it over."""
        columns = (*activity_columns(detached), detached.c.attempt, detached.c.incarnation)
        values = {(*each.key, each.attempt, each.incarnation) for each in attempts}
        async with self.db.writing("attach attempts") as connection:
            for chunk in chunks(sorted(values), KEYS_PER_STATEMENT):
                await connection.execute(delete(detached).where(any_of(columns, chunk)))

    async def detached(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, Detached]:
        found: dict[ActivityKey, Detached] = {}
        if not keys:
            return found
        async with self.db.reading("look for detached attempts") as connection:
            for chunk in chunks(keys, KEYS_PER_STATEMENT):
                statement = select(detached).where(any_of(activity_columns(detached), chunk))
                found |= {(each := _detached(row)).key: each for row in await connection.execute(statement)}
        return found

    async def unwanted(self, attempts: Sequence[tuple[ActivityKey, int]]) -> set[tuple[ActivityKey, int]]:
        found: set[tuple[ActivityKey, int]] = set()
        async with self.db.reading("look for what was given up") as connection:
            for chunk in chunks(list(attempts), KEYS_PER_STATEMENT):
                keys = list({key for key, _ in chunk})
                closed, buried = await _closed(connection, keys), await _buried(connection, keys)
                latest = await _latest(connection, keys)
                found |= {
                    (key, attempt)
                    for key, attempt in chunk
                    if key in closed or buried.get(key.instance_id, 0) >= key.run or latest.get(key, 0) > attempt
                }
        return found

    async def lapsed(self, parts: Sequence[int], limit: int) -> Sequence[Detached]:
        """By key."""
        over = or_(leases.c.incarnation.is_(None), leases.c.expires_us <= clock(self.db.dialect))
        found = (
            select(detached)
            .outerjoin(leases, leases.c.incarnation == detached.c.incarnation)
            .where(detached.c.part.in_(parts), over)
            .order_by(*detached.primary_key)
            .limit(limit)
        )
        async with self.db.reading("look for lapsed leases") as connection:
            return [_detached(row) for row in await connection.execute(found)]

    async def open_attempts(self, parts: Sequence[int]) -> bool:
        """Looks at those partitions only in which something was committed since it looked last."""
        detached_here = select(detached.c.instance_id).where(detached.c.part.in_(parts)).limit(1)
        async with self.db.reading("look for open attempts") as connection:
            if (await connection.execute(detached_here)).first() is not None:
                return True
            states = select(partitions.c.part, partitions.c.epoch, partitions.c.commit_no)
            rows = await connection.execute(states.where(partitions.c.part.in_(parts)))
            now = {part: (epoch, commit_no) for part, epoch, commit_no in rows}  # what comes later is another state
            known = [look for part, at in now.items() if (look := self.looked.get(part)) is not None and look.at == at]
            if any(look.found for look in known):
                return True
            changed = sorted(now.keys() - {look.part for look in known})
            found = (await connection.execute(_open_in(changed))).scalars().all() if changed else ()
            for part in found or changed:
                self.looked[part] = Look(part, now[part], bool(found))
            return bool(found)


def _open_in(parts: Sequence[int]) -> Select[Any]:
    """The partition of an instance that has one of these. An index finds those that may."""
    of_run = and_(activities.c.instance_id == instances.c.instance_id, activities.c.run == instances.c.run)
    under_way = exists().where(of_run, activities.c.finished_us.is_(None))
    may_have = instances.c.status.in_(WITH_ATTEMPTS), instances.c.part.in_(parts)
    return select(instances.c.part).where(*may_have, under_way).limit(1)


async def _closed(connection: AsyncConnection, keys: Sequence[ActivityKey]) -> set[ActivityKey]:
    columns = activity_columns(activity_results)
    mine = any_of(columns, keys)
    rows = await connection.execute(select(*columns).where(mine, activity_results.c.outcome == CLOSED))
    return {ActivityKey(*row) for row in rows}


async def _buried(connection: AsyncConnection, keys: Sequence[ActivityKey]) -> dict[str, int]:
    """The last run of each that was deleted."""
    ids = sorted({key.instance_id for key in keys})
    columns = (tombstones.c.instance_id, tombstones.c.run)
    rows = await connection.execute(select(*columns).where(tombstones.c.instance_id.in_(ids)))
    return {row.instance_id: row.run for row in rows}


async def _latest(connection: AsyncConnection, keys: Sequence[ActivityKey]) -> dict[ActivityKey, int]:
    """The attempt that beat last."""
    columns = activity_columns(heartbeats)
    mine = any_of(columns, keys)
    rows = await connection.execute(select(*columns, heartbeats.c.attempt).where(mine))
    return {ActivityKey(*row[:3]): row.attempt for row in rows}


def _detached(row: Any) -> Detached:
    return Detached(ActivityKey(row.instance_id, row.run, row.activity_id), row.attempt, row.part, row.incarnation)


def _given_up(key: ActivityKey) -> ColumnElement[bool]:
    """Closed, or gone with its instance."""
    results = activity_results.c
    closed = and_(any_of(activity_columns(activity_results), [key]), results.outcome == CLOSED)
    buried = and_(tombstones.c.instance_id == key.instance_id, tombstones.c.run >= key.run)
    return or_(exists().where(closed), exists().where(buried))


def _overtaken(key: ActivityKey, attempt: int) -> tuple[ColumnElement[bool], ...]:
    """A later attempt has begun."""
    return any_of(activity_columns(heartbeats), [key]), heartbeats.c.attempt > attempt


def _unless_later(table: Any, dialect: str, *names: str) -> Any:
    """An upsert of `attempt` and `names` that leaves the row of a later attempt as it is."""
    names = (*names, "attempt")  # MySQL sets from left to right, and each looks at `attempt`
    if dialect == MYSQL:
        statement = mysql.insert(table)
        new = statement.inserted
        kept = new.attempt < table.c.attempt
        return statement.on_duplicate_key_update(
            [(name, case((kept, table.c[name]), else_=new[name])) for name in names]
        )
    made = postgresql.insert(table) if dialect == POSTGRESQL else sqlite.insert(table)
    return made.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: made.excluded[name] for name in names},
        where=made.excluded.attempt >= table.c.attempt,
    )


def _upsert(table: Any, dialect: str, *names: str) -> Any:
    """`names`: what changes where the key is there."""
    if dialect == MYSQL:
        statement = mysql.insert(table)
        return statement.on_duplicate_key_update([(name, statement.inserted[name]) for name in names])
    made = postgresql.insert(table) if dialect == POSTGRESQL else sqlite.insert(table)
    return made.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={name: made.excluded[name] for name in names}
    )
