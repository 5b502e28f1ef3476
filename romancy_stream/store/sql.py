"""The `Store` on a SQL database. Each part lies in a module of its own; here they become one object, and the batch
commit gets the implementation of its dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from romancy_stream.engine.commit import Commit
from romancy_stream.store.aging import Aging
from romancy_stream.store.attempts import LongAttempts
from romancy_stream.store.commit_mysql import MysqlCommitter
from romancy_stream.store.commit_postgres import PostgresCommitter
from romancy_stream.store.commit_sqlite import SqliteCommitter
from romancy_stream.store.database import MYSQL, POSTGRESQL, SQLITE, Database
from romancy_stream.store.entities import Entities
from romancy_stream.store.migrate import migrate
from romancy_stream.store.ownership import Ownership
from romancy_stream.store.prefetch import Prefetch
from romancy_stream.store.readers import Readers
from romancy_stream.store.results import Results
from romancy_stream.store.searchable import Searchable, SearchedPath
from romancy_stream.store.sqlite_thread import SqliteThread
from romancy_stream.store.versions import Versions


class Committer(Protocol):
    searched: Sequence[SearchedPath]

    async def commit(self, commit: Commit) -> int: ...
    async def close(self) -> None: ...


class SqlStore(Ownership, Prefetch, Entities, LongAttempts, Aging, Results, Versions, Searchable, Readers):
    """`url` is a plain one: postgresql://, mysql://, mariadb:// or sqlite:///path."""

    db: Database

    def __init__(self, url: str) -> None:
        self.db = Database(url)
        self.lookups = SqliteThread(self.db, "romancy-lookup") if self.db.dialect == SQLITE else None
        self.looked = {}
        self._committer = _committer(self.db)

    async def open(self) -> None:
        await self.db.open()

    async def close(self) -> None:
        await self._committer.close()
        if self.lookups is not None:
            await self.lookups.close()
        await self.db.close()

    async def migrate(self) -> list[str]:
        return await migrate(self.db)

    async def take_over(self, parts: Sequence[int], owner: str) -> Mapping[int, int]:
        """And learns which paths of inputs are searched: whoever names another raises the epoch after that."""
        epochs = await super().take_over(parts, owner)
        self._committer.searched = await self.searched()
        return epochs

    async def commit(self, commit: Commit) -> int:
        return await self._committer.commit(commit)


def _committer(db: Database) -> Committer:
    if db.dialect == POSTGRESQL:
        return PostgresCommitter(db)
    return MysqlCommitter(db) if db.dialect == MYSQL else SqliteCommitter(db)
