"""What the readers' tests share: a store to read on each database, and rows to put there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Table, insert

from romancy_stream.engine.commit import ActivityRow, InstanceRow, TimerRow
from romancy_stream.store.database import Database
from romancy_stream.store.migrate import migrate
from romancy_stream.store.readers import Readers

# Names of fixtures, so that a server starts only for the tests that need it.
on_every_database = pytest.mark.parametrize(
    "database",
    [
        pytest.param("sqlite_db", id="sqlite"),
        pytest.param("postgres_db", id="postgresql", marks=pytest.mark.postgres),
        pytest.param("mariadb_db", id="mariadb", marks=pytest.mark.mariadb),
    ],
)


@contextlib.asynccontextmanager
async def readers_on(url: str, migrated: bool = False) -> AsyncIterator[Readers]:
    """The read side alone, on a database with all tables."""
    database = Database(url)
    await database.open()
    try:
        if not migrated:
            await migrate(database)
        readers = Readers()
        readers.db = database
        yield readers
    finally:
        await database.close()


def instance(instance_id: str, **changes: Any) -> InstanceRow:
    row = InstanceRow(
        instance_id=instance_id,
        run=1,
        part=0,
        workflow="order",
        status="running",
        seq=1,
        input=None,
        output=None,
        error=None,
        started_us=1_000,
        updated_us=1_000,
        finished_us=None,
        parked=None,
        event_source="test",
        event_id=instance_id,
    )
    return replace(row, **changes)


def activity(instance_id: str, activity_id: str, **changes: Any) -> ActivityRow:
    row = ActivityRow(
        instance_id=instance_id,
        run=1,
        activity_id=activity_id,
        name="charge",
        queue="default",
        status="scheduled",
        attempt=1,
        scheduled_us=1_000,
        updated_us=1_000,
        finished_us=None,
        next_attempt_us=None,
        error=None,
    )
    return replace(row, **changes)


async def put(
    readers: Readers,
    instances: Iterable[InstanceRow],
    activities: Iterable[ActivityRow] = (),
    timers: Iterable[TimerRow] = (),
) -> None:
    rows = list(instances)
    await readers.replace_projections([row.instance_id for row in rows], rows, list(activities), list(timers))


async def put_rows(readers: Readers, table: Table, rows: list[dict[str, Any]]) -> None:
    async with readers.db.writing("put rows") as connection:
        await connection.execute(insert(table), rows)
