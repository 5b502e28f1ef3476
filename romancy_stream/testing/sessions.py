"""The database of activities under test: SQLite in memory, or whatever a URL names. It has the two tables that an
attempt's own transaction writes, and the user's; nothing is made before an activity asks for a session. Everything
else that a worker would write is kept in the environment's own rows.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import MetaData, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.pool import StaticPool

from romancy_stream.engine.commit import ActivityKey, Heartbeat, RecordedResult
from romancy_stream.store.database import SQLITE, Database
from romancy_stream.store.sql import SqlStore
from romancy_stream.store.tables import activity_results, worker_outbox
from romancy_stream.testing.tables import Tables

SESSIONS: Final = 10
"""Connections to the database in memory: sessions of activities at the same time."""
_numbers = itertools.count(1)


class MemoryDatabase(Database):
    """SQLite in memory. A connection that does nothing keeps it alive until `close`."""

    def __init__(self, metadata: MetaData | None) -> None:
        path = f"/romancy-{next(_numbers)}"  # a leading slash: shared by the connections of this process
        self._uri = f"file:{path}?vfs=memdb"
        self.url = URL.create("sqlite+aiosqlite", database=f"file:{path}", query={"vfs": "memdb", "uri": "true"})
        self.dialect = SQLITE
        self._engine = self._writer = None
        self._connections = []
        self._metadata = metadata
        self._keeper: sqlite3.Connection | None = None

    @property
    def is_made(self) -> bool:
        return self._keeper is not None

    @property
    def engine(self) -> AsyncEngine:
        return _Later(self._made)  # type: ignore[return-value]  # stands for one until it is needed

    @property
    def writer(self) -> AsyncEngine:
        return self._made()

    async def open(self) -> None:
        """Made when it is needed."""

    def _made(self) -> AsyncEngine:
        if self._engine is None:
            keeper = self._keeper = sqlite3.connect(self._uri, uri=True, check_same_thread=False)
            plain = create_engine("sqlite://", creator=lambda: keeper, poolclass=StaticPool)
            activity_results.metadata.create_all(plain, tables=[activity_results, worker_outbox])
            if self._metadata is not None:
                self._metadata.create_all(plain)
            keeper.commit()
            self._engine = self._writer = self._make(SESSIONS, 0)
        return self._engine

    async def close(self) -> None:
        engine, self._engine, self._writer = self._engine, None, None
        if engine is not None:
            await engine.dispose()
        if self._keeper is not None:
            self._keeper.close()


class _Later:
    """An engine that is made when something of it is used: an attempt is given one whether it needs it or not."""

    def __init__(self, make: Callable[[], AsyncEngine]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)


class AttemptStore(SqlStore):
    """What attempts know of the database. `url` None: in memory. `metadata`: tables to be made, of the user's."""

    def __init__(self, url: str | None, metadata: MetaData | None, tables: Tables, now_us: Callable[[], int]) -> None:
        if url is None:
            self.db = MemoryDatabase(metadata)
        else:
            super().__init__(url)
        self._metadata = metadata
        self._tables = tables
        self._now_us = now_us

    async def open(self) -> None:
        await self.db.open()
        if not isinstance(self.db, MemoryDatabase):
            await self.migrate()
            if self._metadata is not None:
                async with self.db.maintaining("create the tables of a test") as connection:
                    await connection.run_sync(self._metadata.create_all)

    async def close(self) -> None:
        await self.db.close()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """For the test itself; committed at the end."""
        async with AsyncSession(self.db.writer, expire_on_commit=False) as session, session.begin():
            yield session

    @property
    def is_used(self) -> bool:
        return not isinstance(self.db, MemoryDatabase) or self.db.is_made

    async def claim(self, keys: Sequence[ActivityKey], now_us: int) -> dict[ActivityKey, RecordedResult]:
        """For the engine, where no worker was first."""
        found = self._tables.close(keys, now_us)
        if self.is_used:
            found = self._tables.results | dict(await self.close_activities(keys, now_us))
            self._tables.results |= found
        return {key: found[key] for key in keys}

    # -- long attempts: in memory --------------------------------------------------------------------------------
    async def beat(self, key: ActivityKey, attempt: int, details: bytes | None, at_us: int | None = None) -> bool:
        now_us = self._now_us() if at_us is None else at_us
        self._tables.heartbeats[key] = Heartbeat(key, attempt, now_us, details)
        result = self._tables.results.get(key)
        return result is None or result.outcome != "closed"

    async def heartbeats(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, Heartbeat]:
        return {key: self._tables.heartbeats[key] for key in keys if key in self._tables.heartbeats}
