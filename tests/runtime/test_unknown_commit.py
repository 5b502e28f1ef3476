"""A commit whose connection broke: its owner finds out about it and goes on, without leaving the group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from romancy_stream import App, WorkflowContext
from romancy_stream.engine.commit import Mark
from romancy_stream.errors import CommitUnknownError, StoreUnavailableError
from romancy_stream.store import tables
from romancy_stream.store.sql import SqlStore
from tests.store.writing import rows
from tests.support import eventually
from tests.support.gated import GatedStore, gated_app

PATIENCE_S = 90
WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
CUT_OFF = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


class Unlucky(GatedStore):
    """A commit, and then whoever asks what became of it, hears nothing; what was asked for has happened, or not."""

    happens = True
    silent = 0

    async def commit(self, commit: object) -> int:
        if not self.silent:
            return await super().commit(commit)  # type: ignore[arg-type]
        if self.happens:
            await super().commit(commit)  # type: ignore[arg-type]
        raise CommitUnknownError("the connection broke")

    async def find_out(self, marks: Sequence[Mark], owner: str) -> bool:
        if not self.silent:
            return await super().find_out(marks, owner)
        self.silent -= 1
        if self.happens:
            await super().find_out(marks, owner)
        raise StoreUnavailableError("the connection broke")


async def epochs(app: App) -> set[int]:
    store = SqlStore(app.database_url)
    await store.open()
    try:
        return {row[1] for row in await rows(store, tables.partitions)}
    finally:
        await store.close()


@pytest.mark.parametrize("happens", [False, True])
async def test_who_hears_no_answer_asks_again(tmp_path: Path, happens: bool, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []
    app = gated_app(tmp_path, ran)
    app.store_class = Unlucky
    with caplog.at_level(logging.WARNING, "romancy_stream"):
        async with app:
            await app.wait_assigned()
            assert isinstance(app.store, Unlucky)
            app.store.happens, app.store.silent = happens, 2
            handle = await app.start_by_name("hello", "Ada")
            assert await handle.result(timeout=PATIENCE_S) == "hello Ada"
    assert ran == ["Ada"]
    assert await epochs(app) == {2}  # that of the assignment, and one more to find out
    assert [record.message for record in caplog.records] == [
        "the outcome of a commit is unknown, finding out about it: the connection broke"
    ]


@pytest.mark.postgres
async def test_when_all_connections_break_during_a_commit_the_owner_goes_on(
    postgres_db: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the server is started again: those with which it would find out are gone, too."""
    app = App("shop", broker=f"embedded://{tmp_path / 'log'}", database=postgres_db, partitions=2)

    @app.workflow
    async def double(ctx: WorkflowContext, n: int) -> int:
        return 2 * n

    other = await asyncpg.connect(postgres_db)

    async def is_waiting() -> bool:
        return await other.fetchval(WAITING) is not None

    try:
        with caplog.at_level(logging.WARNING, "romancy_stream"):
            async with app:
                await app.wait_assigned()
                async with other.transaction():
                    await other.execute("SELECT * FROM romancy_partitions FOR UPDATE")
                    starting = asyncio.create_task(app.start(double, 3))
                    await eventually(is_waiting)
                    await other.execute(CUT_OFF)
                assert await (await starting).result(timeout=PATIENCE_S) == 6
        assert sorted([each["epoch"] for each in await other.fetch("SELECT epoch FROM romancy_partitions")]) == [1, 2]
        assert not [each.message for each in caplog.records if "lets go" in each.message]
    finally:
        await other.close()
