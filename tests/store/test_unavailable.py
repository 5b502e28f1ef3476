"""A database that is away, goes away in the middle, or is busy: the caller hears which, and nothing is half done."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncmy.errors
import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, ProgrammingError

from romancy_stream.engine.commit import ActivityKey, Commit, Mark
from romancy_stream.errors import CommitUnknownError, ConfigurationError, FencedError, StoreUnavailableError
from romancy_stream.store import tables
from romancy_stream.store.database import finished
from romancy_stream.store.failures import is_lost, is_unavailable, translated
from romancy_stream.store.port import Detached
from romancy_stream.store.sql import SqlStore
from tests.store.conftest import PARTITIONS, Another
from tests.store.writing import execute, instance, outgoing, owned, rows
from tests.support import eventually

NOBODY = "127.0.0.1:1"  # a port on which nobody listens
KEY = ActivityKey("o-1", 1, "a:1")

CALLS: dict[str, Callable[[SqlStore], Awaitable[Any]]] = {
    "migrate": lambda store: store.migrate(),
    "prepare": lambda store: store.prepare("shop", 4),
    "now_us": lambda store: store.now_us(),
    "take_over": lambda store: store.take_over([0], "me"),
    "snapshot": lambda store: store.snapshot([0]),
    "find_out": lambda store: store.find_out([Mark(0, 1, 0, 0)], "me"),
    "commit": lambda store: store.commit(Commit(marks=[Mark(0, 1, 0, 0)])),
    "topic_ids": lambda store: store.topic_ids(),
    "record_topic_ids": lambda store: store.record_topic_ids({"t": "1"}),
    "known": lambda store: store.known(["o-1"]),
    "histories": lambda store: store.histories(["o-1"]),
    "history_prefixes": lambda store: store.history_prefixes([("o-1", 1)]),
    "entities": lambda store: store.entities(["e"]),
    "taken_in": lambda store: store.taken_in([(0, "d")]),
    "beat": lambda store: store.beat(KEY, 1, None),
    "heartbeats": lambda store: store.heartbeats([KEY]),
    "detach": lambda store: store.detach([Detached(KEY, 1, 0, "w")], 1),
    "renew_lease": lambda store: store.renew_lease("w", 1),
    "attach": lambda store: store.attach([Detached(KEY, 1, 0, "w")]),
    "detached": lambda store: store.detached([KEY]),
    "unwanted": lambda store: store.unwanted([(KEY, 1)]),
    "lapsed": lambda store: store.lapsed([0], 1),
    "expired_items": lambda store: store.expired_items([0], 1),
    "finished_before": lambda store: store.finished_before([0], 1, 1),
    "forget_intake": lambda store: store.forget_intake([0], 1, 1),
    "forget_tombstones": lambda store: store.forget_tombstones([0], 1, 1),
    "close_activities": lambda store: store.close_activities([KEY], 1),
    "results": lambda store: store.results([KEY]),
    "worker_outbox": lambda store: store.worker_outbox([0], 1, 1),
    "delete_worker_outbox": lambda store: store.delete_worker_outbox([("a", 1)]),
    "get_instance": lambda store: store.get_instance("o-1"),
}


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[SqlStore]:
    store = SqlStore(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
async def test_every_call_says_that_nobody_answers(scheme: str, call: str) -> None:
    async with opened(f"{scheme}://nobody@{NOBODY}/shop") as store:
        with pytest.raises(StoreUnavailableError):
            await CALLS[call](store)


async def test_a_database_that_does_not_exist_is_a_matter_of_configuration(postgres_url: str, mariadb_url: str) -> None:
    for url in (postgres_url, mariadb_url):
        async with opened(url.rsplit("/", 1)[0] + "/romancy_no_such_database") as store:
            with pytest.raises(ConfigurationError, match="romancy_no_such_database"):
                await store.take_over([0], "me")
            with pytest.raises(ConfigurationError, match="romancy_no_such_database"):
                await store.commit(Commit(marks=[Mark(0, 1, 0, 0)]))


async def test_a_busy_sqlite_is_unavailable_and_then_available_again(tmp_path: Path) -> None:
    path = tmp_path / "busy.db"
    async with opened(f"sqlite:///{path}?timeout=0.1") as store:
        await store.migrate()
        await store.prepare("shop", PARTITIONS)
        marks = await owned(store, 0)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for call in (
                store.commit(Commit(marks=marks)),
                store.take_over([0], "me"),
                store.close_activities([KEY], 1),
            ):
                with pytest.raises(StoreUnavailableError, match="locked"):
                    await call
            assert (await store.snapshot([0]))[0].epoch == 1  # readers are not held up
            other.execute("ROLLBACK")
        await store.commit(Commit(marks=marks))


# -- connections that break. `lock` holds the partition's row, so that a commit stands in the middle of its work.

LOCK = "SELECT epoch FROM romancy_partitions WHERE part = 0 FOR UPDATE"


@contextlib.asynccontextmanager
async def a_commit_that_waits(store: SqlStore, other: SqlStore, marks: list[Mark]) -> AsyncIterator[asyncio.Task[int]]:
    async with other.db.engine.connect() as holder:
        await holder.execute(text(LOCK))
        committing = asyncio.create_task(
            store.commit(Commit(marks=marks, instances=[instance()], outbox=[outgoing(1)]))
        )
        try:
            yield committing
        finally:
            await holder.rollback()
            await asyncio.wait([committing])


PG_WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
MY_WAITING = "SELECT id FROM information_schema.processlist WHERE db = database() AND info LIKE 'UPDATE romancy_part%'"


@pytest.fixture
async def postgres(postgres_db: str) -> AsyncIterator[SqlStore]:
    async with opened(postgres_db) as store:
        await store.migrate()
        await store.prepare("shop", PARTITIONS)
        yield store


@pytest.fixture
async def mariadb(mariadb_db: str) -> AsyncIterator[SqlStore]:
    async with opened(mariadb_db) as store:
        await store.migrate()
        await store.prepare("shop", PARTITIONS)
        yield store


async def test_postgres_breaks_in_the_middle_of_a_commit(postgres: SqlStore, postgres_db: str) -> None:
    marks = await owned(postgres, 0)
    async with opened(postgres_db) as other, a_commit_that_waits(postgres, other, marks) as committing:
        ((pid,),) = await eventually(lambda: execute(other, PG_WAITING))
        await execute(other, "SELECT pg_terminate_backend(:pid)", pid=pid)
        with pytest.raises(CommitUnknownError):
            await committing
    assert await rows(postgres, tables.instances) == []
    # The answer to an open outcome: take over from oneself, then look.
    assert await owned(postgres, 0) == [replace(marks[0], epoch=2)]
    with pytest.raises(FencedError):
        await postgres.commit(Commit(marks=marks))


async def test_mariadb_breaks_before_the_commit_of_a_commit(mariadb: SqlStore, mariadb_db: str) -> None:
    """The COMMIT was not sent, so it has not happened."""
    marks = await owned(mariadb, 0)
    async with opened(mariadb_db) as other, a_commit_that_waits(mariadb, other, marks) as committing:
        ((thread,),) = await eventually(lambda: execute(other, MY_WAITING))
        await execute(other, f"KILL {thread}")
        with pytest.raises(StoreUnavailableError):
            await committing
    assert await rows(mariadb, tables.instances) == []
    await mariadb.commit(Commit(marks=marks, instances=[instance()]))


async def test_a_statement_that_the_server_cuts_off_has_not_happened(postgres: SqlStore, postgres_db: str) -> None:
    marks = await owned(postgres, 0)
    async with opened(postgres_db) as other, a_commit_that_waits(postgres, other, marks) as committing:
        ((pid,),) = await eventually(lambda: execute(other, PG_WAITING))
        await execute(other, "SELECT pg_cancel_backend(:pid)", pid=pid)
        with pytest.raises(StoreUnavailableError):
            await committing
    await postgres.commit(Commit(marks=marks, instances=[instance()]))


async def test_a_connection_that_died_in_the_pool_is_replaced(postgres: SqlStore, postgres_db: str) -> None:
    marks = await owned(postgres, 0)
    async with postgres.db.raw("look") as (_, driver):
        pid = driver.get_server_pid()
    async with opened(postgres_db) as other:
        await execute(other, "SELECT pg_terminate_backend(:pid)", pid=pid)
    await eventually(driver.is_closed)
    await postgres.commit(Commit(marks=marks, instances=[instance()]))
    assert (await postgres.known(["o-1"])).instances


async def test_a_commit_that_lost_its_answer_has_happened(postgres: SqlStore) -> None:
    """A proxy that swallows the server's answers and then hangs up: the worst moment there is."""
    marks = await owned(postgres, 0)
    async with swallowing_proxy(postgres) as (url, swallow), opened(url) as store:
        await store.commit(Commit(marks=marks, instances=[instance("o-1")]))  # prepares the statement
        swallow.set()
        next_marks = [replace(marks[0], commit_no=1)]
        with pytest.raises(CommitUnknownError):
            await store.commit(Commit(marks=next_marks, instances=[instance("o-2")]))
    assert [row[0] for row in await rows(postgres, tables.instances)] == ["o-1", "o-2"]
    with pytest.raises(FencedError):
        await postgres.commit(Commit(marks=next_marks))


@contextlib.asynccontextmanager
async def swallowing_proxy(store: SqlStore) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A TCP proxy before the server. Once the event is set, an answer closes the client's connection instead."""
    swallow = asyncio.Event()
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if answers and swallow.is_set():
                    await eventually(committed)
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    async def committed() -> bool:
        return bool(await execute(store, "SELECT 1 FROM romancy_partitions WHERE part = 0 AND commit_no = 2"))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await asyncio.open_connection(store.db.url.host, store.db.url.port)
        both = [asyncio.create_task(pipe(reader, server[1], False)), asyncio.create_task(pipe(server[0], writer, True))]
        pipes.update(both)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield store.db.url.set(host="127.0.0.1", port=port, drivername="postgresql").render_as_string(False), swallow
    finally:
        listener.close()
        await listener.wait_closed()
        for task in pipes:
            task.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


async def test_a_deadlock_on_postgres_is_run_again(postgres: SqlStore, postgres_db: str) -> None:
    """The commit holds partition 0's row and wants an instance's; the other has them the other way round. The commit
    looks for a deadlock once, a while after it began to wait: by then the other must want its row."""
    marks = await owned(postgres, 0)
    await postgres.commit(Commit(marks=marks, instances=[instance()]))
    marks = [replace(marks[0], commit_no=1)]
    async with opened(postgres_db) as other, other.db.engine.connect() as rival:
        name = (await rival.execute(text("SELECT current_database()"))).scalar_one()
        await rival.execute(text(f"ALTER DATABASE {name} SET deadlock_timeout = '5s'"))
        await rival.commit()
        await postgres.close()  # connections that know nothing of it
        await postgres.open()
        await rival.execute(text("SET LOCAL deadlock_timeout = '1h'"))  # the commit is to be the victim
        await rival.execute(text("SELECT 1 FROM romancy_instances FOR UPDATE"))
        committing = asyncio.create_task(postgres.commit(Commit(marks=marks, updates=[instance(status="failed")])))
        await eventually(lambda: execute(other, PG_WAITING))
        await rival.execute(text(LOCK))  # granted only because the commit was undone
        assert not committing.done()
        await rival.rollback()
        assert await committing > 0
    assert (await postgres.known(["o-1"])).instances["o-1"].status == "failed"


async def test_a_deadlock_on_mariadb_is_run_again(mariadb: SqlStore, mariadb_db: str) -> None:
    marks = await owned(mariadb, 0)
    await mariadb.commit(Commit(marks=marks, instances=[instance()]))
    marks = [replace(marks[0], commit_no=1)]
    waiting = MY_WAITING.replace("UPDATE romancy_part", "INSERT INTO romancy_inst")
    async with opened(mariadb_db) as other, other.db.engine.connect() as rival:
        for n in range(50):  # InnoDB's victim is who wrote less: the commit
            await rival.execute(text("INSERT INTO romancy_meta (name, value) VALUES (:n, '')"), {"n": f"x{n}"})
        await rival.execute(text("SELECT 1 FROM romancy_instances FOR UPDATE"))
        committing = asyncio.create_task(mariadb.commit(Commit(marks=marks, updates=[instance(status="failed")])))
        await eventually(lambda: execute(other, waiting))
        await rival.execute(text(LOCK))  # granted only because the commit was undone
        assert not committing.done()
        await rival.rollback()
        assert await committing > 0
    assert (await mariadb.known(["o-1"])).instances["o-1"].status == "failed"


async def test_the_pools_of_activities_and_of_commits_are_apart(store: SqlStore, another: Another) -> None:
    """Activities that hold every connection of theirs cannot keep the engine from committing."""
    marks = await owned(store, 0)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(store.db.engine.connect())
        await store.commit(Commit(marks=marks))
        await store.take_over([0], "me")


async def test_a_cancelled_caller_waits_for_the_call_and_its_error_is_no_news() -> None:
    release = asyncio.Event()
    ended: list[str] = []

    async def call() -> None:
        await release.wait()
        ended.append("here")
        raise ValueError("nobody hears this")

    task = asyncio.create_task(finished(call()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["here"]


@pytest.mark.parametrize(
    ("error", "unavailable", "lost"),
    [
        (asyncpg.TooManyConnectionsError("full"), True, False),
        (asyncpg.CannotConnectNowError("starting up"), True, True),
        (asyncpg.AdminShutdownError("bye"), True, True),
        (asyncpg.ConnectionDoesNotExistError("gone"), True, True),
        (asyncpg.ReadOnlySQLTransactionError("a standby"), True, False),
        (asyncpg.DiskFullError("full"), True, False),
        (asyncpg.QueryCanceledError("slow"), True, False),
        (asyncpg.InterfaceError("connection is closed"), True, False),
        (asyncpg.UniqueViolationError("twice"), False, False),
        (asyncpg.UndefinedTableError("what"), False, False),
        (ConnectionRefusedError(111, "no"), True, True),
        (TimeoutError(), True, True),
        (OperationalError("x", None, Exception(2013, "lost")), True, True),
        (OperationalError("x", None, Exception(1040, "too many")), True, False),
        (ProgrammingError("x", None, Exception(1146, "no table")), False, False),
        (asyncmy.errors.OperationalError(1040, "Too many connections"), True, False),
        (asyncmy.errors.OperationalError(1205, "Lock wait timeout exceeded"), True, False),
        (ValueError("a bug"), False, False),
    ],
)
def test_what_an_error_means(error: Exception, unavailable: bool, lost: bool) -> None:
    assert is_unavailable(error) is unavailable
    assert is_lost(error) is lost
    assert isinstance(translated(error, "look"), StoreUnavailableError) is unavailable
