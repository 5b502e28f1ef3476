"""The batch commit on MariaDB and MySQL: one transaction, one statement per part of the commit. InnoDB undoes the whole
transaction of a deadlock's victim, so it is simply run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import Commit
from romancy_stream.errors import CommitUnknownError, FencedError
from romancy_stream.store.clocks import MY_CLOCK
from romancy_stream.store.commit_generic import fence, statements
from romancy_stream.store.database import MYSQL, Database
from romancy_stream.store.failures import MY_RETRY, code_of, is_lost, translating
from romancy_stream.store.searchable import SearchedPath

DEADLOCK_TRIES: Final = 5  # gap locks make innocent deadlocks; InnoDB finds them at once, so a try is cheap


class MysqlCommitter:
    def __init__(self, db: Database) -> None:
        self.searched: Sequence[SearchedPath] = ()
        self._db = db

    async def close(self) -> None:
        """Holds nothing of its own."""

    async def commit(self, commit: Commit) -> int:
        with translating("commit"):
            for last in (False,) * (DEADLOCK_TRIES - 1) + (True,):
                try:
                    return await self._once(commit)
                except Exception as error:
                    if code_of(error) not in MY_RETRY or last:
                        raise
        raise AssertionError("unreachable")

    async def _once(self, commit: Commit) -> int:
        async with self._db.raw("commit") as (connection, _):
            now_us = await self._written(connection, commit)
            try:
                await connection.commit()
            except Exception as error:
                if is_lost(error):
                    raise CommitUnknownError(f"the connection broke during a commit: {error!r}") from error
                raise
            return now_us

    async def _written(self, connection: AsyncConnection, commit: Commit) -> int:
        """Everything but the COMMIT: when this fails nothing has happened."""
        if commit.marks:
            text_of_fence, values = fence(commit.marks, MYSQL)
            result = await connection.exec_driver_sql(text_of_fence, values)
            if result.rowcount != len(commit.marks):
                raise FencedError("another owner has taken over a partition of this commit")
        for statement, rows in statements(commit, MYSQL, self.searched):
            await connection.exec_driver_sql(statement, list(rows))
        return int((await connection.execute(text(f"SELECT {MY_CLOCK}"))).scalar_one())
