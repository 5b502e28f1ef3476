"""A connection to a SQLite file in a thread of its own: a whole transaction costs one hop to that thread, where
SQLAlchemy's driver takes one for each statement. For the few calls that every workflow makes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from romancy_stream.store.database import Database, connect_sqlite

T = TypeVar("T")


class SqliteThread:
    """Starts when it is first used; after `close`, or beside it, it can be used again."""

    def __init__(self, db: Database, name: str) -> None:
        self._db = db
        self._name = name
        self._thread: _Connected | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One at a time, each to its end even when the caller is cancelled. Raises what `work` raises."""
        if self._thread is None:
            self._thread = _Connected(self._db, self._name)
        return await asyncio.get_running_loop().run_in_executor(self._thread.pool, self._thread.do, work)

    async def close(self) -> None:
        """Behind what was begun before."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                await asyncio.get_running_loop().run_in_executor(thread.pool, thread.disconnect)
            finally:
                thread.pool.shutdown(wait=False)  # who is cancelled does not wait for what is before it


class _Connected:
    """A thread with the connection that only it may use."""

    def __init__(self, db: Database, name: str) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._db = db
        self._connection: sqlite3.Connection | None = None

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = connect_sqlite(self._db.sqlite_path, self._db.busy_timeout_s)
        return work(self._connection)

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
