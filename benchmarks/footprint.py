"""What an app has left behind: bytes in its tables and their indexes, in PostgreSQL's log, and on its Kafka topics; how
many of its steps were eager. Reads, and rewrites the app's own tables where it says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from benchmarks import stage

T = TypeVar("T")
KEPT: Final = ("romancy_history", "romancy_instances", "romancy_activities")
"""Tables whose rows stay for as long as their instance does. Others lose theirs again soon: what they take on the disk
follows from how much is under way, and not from how much was done."""
SIZES: Final = """
SELECT sum(pg_table_size(oid))::int8 AS tables, sum(pg_indexes_size(oid))::int8 AS indexes
FROM pg_class WHERE relname = ANY($1) AND relkind = 'r'
"""
EAGER_SHARE: Final = """
SELECT avg((attrs::jsonb ? 'eager')::int) FROM romancy_history WHERE kind = 'activity.scheduled'
"""
LOG_POSITION: Final = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8"


def table_bytes(place: stage.Place) -> dict[str, int]:
    """As they lie on the disk, with what dead rows have left free."""

    async def read(connection: Any) -> dict[str, int]:
        return dict(await connection.fetchrow(SIZES, KEPT))

    return _asked(place, read)


def dense_table_bytes(place: stage.Place) -> dict[str, int]:
    """Of the live rows alone: the tables are written anew, without the free space."""

    async def read(connection: Any) -> dict[str, int]:
        for table in KEPT:
            await connection.execute(f"VACUUM FULL {table}")
        return dict(await connection.fetchrow(SIZES, KEPT))

    return _asked(place, read)


def eager_share(place: stage.Place) -> float:
    """Of all attempts that were dispatched: those that stayed in the engine's process."""

    async def read(connection: Any) -> float:
        return float(await connection.fetchval(EAGER_SHARE) or 0)

    return _asked(place, read)


def instances(place: stage.Place) -> int:
    async def read(connection: Any) -> int:
        return int(await connection.fetchval("SELECT count(*) FROM romancy_instances"))

    return _asked(place, read)


def log_position_bytes(place: stage.Place) -> int:
    """Of the whole server."""

    async def read(connection: Any) -> int:
        return int(await connection.fetchval(LOG_POSITION))

    return _asked(place, read)


def topic_bytes(place: stage.Place, where: stage.Servers) -> int:
    """Of all records of the app, on one replica."""
    return sum(segment.stat().st_size for segment in where.kafka_data.glob(f"**/{place.namespace}.*/*.log"))


def _asked(place: stage.Place, read: Callable[[Any], Awaitable[T]]) -> T:
    import asyncpg

    async def ask() -> T:
        connection = await asyncpg.connect(place.database)
        try:
            return await read(connection)
        finally:
            await connection.close()

    return asyncio.run(ask())
