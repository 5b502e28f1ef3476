"""The batch commit on SQLite: a connection of its own in a thread of its own, so that a whole transaction costs one hop
to that thread instead of one per statement."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from romancy_stream.engine.commit import Commit
from romancy_stream.errors import FencedError
from romancy_stream.store.clocks import clock_us
from romancy_stream.store.commit_generic import fence, statements
from romancy_stream.store.database import SQLITE, Database
from romancy_stream.store.failures import translating
from romancy_stream.store.searchable import SearchedPath
from romancy_stream.store.sqlite_thread import SqliteThread


class SqliteCommitter:
    """The file is local, so a commit that fails has not happened: there is no unknown outcome here."""

    def __init__(self, db: Database) -> None:
        self.searched: Sequence[SearchedPath] = ()
        self._thread = SqliteThread(db, "romancy-commit")

    async def close(self) -> None:
        await self._thread.close()

    async def commit(self, commit: Commit) -> int:
        with translating("commit"):
            return await self._thread.run(partial(self._apply, commit))

    def _apply(self, commit: Commit, connection: sqlite3.Connection) -> int:
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
