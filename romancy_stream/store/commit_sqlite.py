"""The batch commit on SQLite: a connection of its own in a thread of its own, so that a whole transaction costs one hop
to that thread instead of one per statement."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from romancy_stream.engine.commit import Commit
from romancy_stream.errors import FencedError
from romancy_stream.store.clocks import clock_us
from romancy_stream.store.commit_generic import fence, statements
from romancy_stream.store.database import SQLITE, Database, connect_sqlite, finished
from romancy_stream.store.failures import translating
from romancy_stream.store.searchable import SearchedPath


class SqliteCommitter:
    """The file is local, so a commit that fails has not happened: there is no unknown outcome here."""

    def __init__(self, db: Database) -> None:
        self.searched: Sequence[SearchedPath] = ()
        self._db = db
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def close(self) -> None:
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown()
            self._thread = None

    async def commit(self, commit: Commit) -> int:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="romancy-commit")
        return await finished(self._run(self._thread, commit))

    async def _run(self, thread: ThreadPoolExecutor, commit: Commit) -> int:
        with translating("commit"):
            return await asyncio.get_running_loop().run_in_executor(thread, self._apply, commit)

    def _apply(self, commit: Commit) -> int:
        connection = self._connection or self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            if commit.marks and connection.execute(*fence(commit.marks, SQLITE)).rowcount != len(commit.marks):
                raise FencedError("another owner has taken over a partition of this commit")
            for text, rows in statements(commit, SQLITE, self.searched):
                connection.executemany(text, rows)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return clock_us()

    def _connect(self) -> sqlite3.Connection:
        self._connection = connect_sqlite(self._db.sqlite_path, self._db.busy_timeout_s)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
