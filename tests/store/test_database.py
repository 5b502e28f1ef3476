"""URLs, and what a session of the database is like."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import sqlite3
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import event, text

from romancy_stream.engine.commit import Commit
from romancy_stream.errors import ConfigurationError
from romancy_stream.store.database import WRITER_POOL_OVERFLOW, WRITER_POOL_SIZE, Database, async_url
from romancy_stream.store.port import Store
from romancy_stream.store.sql import SqlStore
from romancy_stream.store.sqlite_thread import SqliteThread
from tests.store.writing import execute, owned
from tests.support import eventually, without_collector


@pytest.mark.parametrize(
    ("plain", "driver"),
    [
        ("postgresql://localhost/shop", "postgresql+asyncpg"),
        ("postgres://localhost/shop", "postgresql+asyncpg"),
        ("postgresql+asyncpg://localhost/shop", "postgresql+asyncpg"),
        ("mysql://localhost/shop", "mysql+asyncmy"),
        ("mariadb://localhost/shop", "mysql+asyncmy"),
        ("sqlite:///shop.db", "sqlite+aiosqlite"),
        ("sqlite:////tmp/shop.db", "sqlite+aiosqlite"),
    ],
)
def test_plain_urls_get_their_driver(plain: str, driver: str) -> None:
    assert async_url(plain).drivername == driver


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("oracle://localhost/shop", "use postgresql, mysql, mariadb or sqlite"),
        ("postgresql+psycopg2://localhost/shop", "write postgresql://"),
        ("shop.db", "not a database URL"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_a_url_that_cannot_work_says_what_to_write(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Database(url)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without_asyncmy(name: str, package: str | None = None) -> Any:
        return None if name == "asyncmy" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_asyncmy)
    with pytest.raises(ConfigurationError, match=r"romancy-stream\[mysql\]"):
        Database("mariadb://localhost/shop")


async def test_libpq_parameters_of_the_url_reach_the_server(postgres_db: str) -> None:
    store = SqlStore(f"{postgres_db}?sslmode=disable&application_name=my_shop&connect_timeout=5")
    await store.open()
    try:
        assert await execute(store, "SHOW application_name") == [("my_shop",)]
    finally:
        await store.close()


SETTINGS: dict[str, list[tuple[str, Any]]] = {
    "postgresql": [
        ("SHOW jit", "off"),
        ("SHOW statement_timeout", "1min"),
        ("SHOW lock_timeout", "20s"),
        ("SHOW plan_cache_mode", "auto"),  # sessions of activities plan as usual
    ],
    "mysql": [
        ("SELECT @@tx_isolation", "READ-COMMITTED"),
        ("SELECT @@character_set_connection", "utf8mb4"),
        ("SELECT @@sql_mode LIKE '%STRICT_TRANS_TABLES%'", 1),
        ("SELECT @@time_zone", "+00:00"),
    ],
    "sqlite": [
        ("PRAGMA journal_mode", "wal"),
        ("PRAGMA synchronous", 2),
        ("PRAGMA busy_timeout", 30_000),
        ("PRAGMA foreign_keys", 0),
    ],
}


async def test_sessions_have_their_settings(store: SqlStore) -> None:
    for query, value in SETTINGS[store.db.dialect]:
        assert await execute(store, query) == [(value,)], query


def test_a_store_can_be_opened_again_in_another_loop(url: str) -> None:
    store = SqlStore(url)

    async def once() -> list[str]:
        await store.open()
        try:
            applied = await store.migrate()
            await store.prepare("shop", 4)
            await store.take_over([0], "me")
            await store.commit(Commit())
            return applied
        finally:
            await store.close()

    assert asyncio.run(once())[0] == "0001_initial"
    assert asyncio.run(once()) == []


def test_it_is_a_store(tmp_path: Path) -> None:
    """The type checker is what looks here."""
    store: Store = SqlStore(f"sqlite:///{tmp_path / 'a.db'}")
    assert set(dir(Store)) - set(dir(Protocol)) <= set(dir(store))


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(RuntimeError, match="not open"):
        await store.take_over([0], "me")
    await store.open()
    with pytest.raises(RuntimeError, match="open already"):
        await store.open()
    await store.close()
    await store.close()


async def test_the_folder_of_a_sqlite_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "shop.db"
    store = SqlStore(f"sqlite:///{path}")
    await store.open()
    await store.close()
    assert path.exists()


async def test_many_open_one_new_sqlite_file_at_once(tmp_path: Path) -> None:
    stores = [SqlStore(f"sqlite:///{tmp_path / 'shop.db'}") for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        await store.close()


async def test_a_reader_of_sqlite_does_not_wait_for_the_writer(sqlite_db: str) -> None:
    database = Database(f"{sqlite_db}?timeout=0.1")
    await database.open()
    try:
        async with database.writing("write") as writer:
            await writer.exec_driver_sql("CREATE TABLE t (n integer)")
            async with database.reading("read") as reader:
                found = await reader.exec_driver_sql("SELECT count(*) FROM sqlite_master")
                assert found.scalar_one() == 0
    finally:
        await database.close()


async def call_left_behind(database: Database) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def look() -> int:
        async with database.reading("look") as connection:
            begun.set()
            await go_on.wait()
            return int((await connection.execute(text("SELECT 1"))).scalar_one())

    await database.open()
    call = asyncio.create_task(look())
    await begun.wait()
    await database.close()
    go_on.set()
    assert await call == 1


async def test_a_thread_that_is_closed_beside_calls_and_other_closes_can_be_used_again(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    await database.open()
    thread = SqliteThread(database, "test-thread")

    def one(connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT 1").fetchone()[0])

    for _ in range(3):
        assert await thread.run(one) == 1
        assert (await asyncio.gather(thread.close(), thread.run(one), thread.close()))[1] == 1
    assert await thread.run(one) == 1
    await thread.close()
    await database.close()
    await eventually(lambda: not [each for each in threading.enumerate() if each.name.startswith("test-thread")])


async def test_a_thread_that_is_dropped_without_close_ends_and_leaves_no_file_open(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    await database.open()
    log_of_writes = tmp_path / "state.db-wal"  # SQLite removes it when the last connection is closed

    async def write(thread: SqliteThread) -> None:
        await thread.run(lambda connection: connection.execute("CREATE TABLE IF NOT EXISTS t (a)").close())
        assert log_of_writes.exists()

    try:
        with without_collector():
            thread = SqliteThread(database, "test-thread")
            await write(thread)
            await thread.close()
            await write(thread)
            del thread
            await eventually(lambda: "test-thread" not in [each.name for each in threading.enumerate()])
            assert not log_of_writes.exists()
    finally:
        await database.close()


async def test_what_a_call_that_failed_had_in_hand_is_gone(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    await database.open()
    thread = SqliteThread(database, "test-thread")

    class Held: ...

    async def fail() -> weakref.ref[Held]:
        held = Held()

        def work(_: sqlite3.Connection) -> None:
            raise ValueError(str(held))

        with pytest.raises(ValueError, match="Held"):
            await thread.run(work)
        return weakref.ref(held)

    try:
        with without_collector():
            held = await fail()
            await thread.run(lambda connection: connection.execute("SELECT 1").fetchone())
            assert held() is None
    finally:
        await thread.close()
        await database.close()


@pytest.mark.postgres
async def test_connections_at_hand_are_there_for_all_who_write(
    postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_stream.store.database.POOL_TIMEOUT_S", 2)
    database = Database(postgres_db)
    await database.open()
    everybody = asyncio.Barrier(WRITER_POOL_SIZE + WRITER_POOL_OVERFLOW)

    async def read() -> None:
        async with database.raw("read") as (_, driver):
            await driver.fetchval("SELECT pg_sleep(0.05)")

    async def write() -> None:
        async with database.writing("write") as connection:
            await connection.execute(text("SELECT 1"))
            await everybody.wait()

    try:
        await asyncio.gather(*(read() for _ in range(WRITER_POOL_SIZE)))
        await asyncio.gather(*(write() for _ in range(everybody.parties)))
    finally:
        await database.close()


@pytest.mark.parametrize(
    "server",
    [pytest.param("postgres", marks=pytest.mark.postgres), pytest.param("mariadb", marks=pytest.mark.mariadb)],
)
async def test_one_write_after_the_other_needs_no_connection_of_the_pool(
    request: pytest.FixtureRequest, server: str
) -> None:
    store = SqlStore(request.getfixturevalue(f"{server}_db"))
    await store.open()
    checked_out: list[object] = []
    try:
        await store.migrate()
        await store.prepare("shop", 4)
        event.listen(store.db.writer.sync_engine, "checkout", lambda *of: checked_out.append(of))
        for commit_no in range(3):
            (mark,) = await owned(store, 0)
            assert mark.commit_no == commit_no
            await store.commit(Commit(marks=[mark]))
        assert checked_out == []  # since `prepare`
    finally:
        await store.close()


async def test_a_connection_that_comes_back_after_the_end_is_ended(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", forgotten.append)
    await call_left_behind(Database(url))
    gc.collect()
    assert [str(each.exc_value) for each in forgotten] == []
