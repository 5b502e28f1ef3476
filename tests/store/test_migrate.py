"""Migrations: what they make is what the code expects, they are safe among concurrent starters, and they are never
edited once applied."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Dialect, Index, Table, inspect, text
from sqlalchemy.types import TypeEngine

from romancy_stream.contract import contract_path
from romancy_stream.errors import ConfigurationError, StoreUnavailableError
from romancy_stream.store.database import Database
from romancy_stream.store.migrate import Migration, migrate, migrations, statements
from romancy_stream.store.sql import SqlStore
from romancy_stream.store.tables import metadata
from tests.store.conftest import Another
from tests.store.writing import committed, execute, instance, owned
from tests.support.waiting import eventually

DIALECTS = ("postgresql", "mysql", "sqlite")
BOOKKEEPING = "romancy_migrations"


def as_ddl(kind: TypeEngine[Any], dialect: Dialect) -> str:
    """A type as DDL; without what MariaDB adds of its own: display widths, collations, JSON as checked text."""
    shown = kind.compile(dialect).upper().split(" COLLATE")[0].split(" CHARACTER SET")[0].replace('"', "")
    shown = re.sub(r"^(BIGINT|INTEGER)\(\d+\)", r"\1", shown)
    return "LONGTEXT" if dialect.name == "mysql" and shown == "JSON" else shown


def expected_columns(table: Table, dialect: Dialect) -> list[tuple[str, str, bool]]:
    return [(c.name, as_ddl(c.type, dialect), bool(c.nullable)) for c in table.columns]


def expected_indexes(table: Table, dialect: Dialect) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Name -> (columns, partial?)."""
    here = [index for index in table.indexes if _is_for(index, dialect.name)]
    return {
        str(index.name): (
            tuple(column.name for column in index.columns),
            index.dialect_kwargs.get(f"{dialect.name}_where") is not None,
        )
        for index in here
    }


def _is_for(index: Index, dialect: str) -> bool:
    condition = index._ddl_if
    return condition is None or condition.dialect == dialect


def reflected(connection: Connection, table: str) -> tuple[Any, Any, Any]:
    found = inspect(connection)
    columns = [
        (c["name"], as_ddl(c["type"], connection.dialect), bool(c["nullable"])) for c in found.get_columns(table)
    ]
    key = found.get_pk_constraint(table)["constrained_columns"]
    indexes = {
        str(index["name"]): (
            tuple(index["column_names"]),
            index.get("dialect_options", {}).get(f"{connection.dialect.name}_where") is not None,
        )
        for index in found.get_indexes(table)
    }
    return columns, key, indexes


async def test_the_migrated_schema_is_that_of_the_code(store: SqlStore) -> None:
    async with store.db.engine.connect() as connection:
        dialect = connection.dialect
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert set(names) == {*metadata.tables, BOOKKEEPING}
        for table in metadata.sorted_tables:
            columns, key, indexes = await connection.run_sync(reflected, table.name)
            assert columns == expected_columns(table, dialect), table.name
            assert key == [column.name for column in table.primary_key], table.name
            assert indexes == expected_indexes(table, dialect), table.name


@pytest.mark.postgres
async def test_the_instances_are_vacuumed_before_a_fifth_of_them_has_ended(postgres_db: str) -> None:
    async with stores(postgres_db, 1) as (store,):
        await store.migrate()
        [(options,)] = await execute(store, "SELECT reloptions FROM pg_class WHERE relname = 'romancy_instances'")
        assert sorted(options) == ["autovacuum_vacuum_scale_factor=0.02", "fillfactor=85"]


async def test_every_text_column_of_mariadb_compares_bytes(mariadb_db: str) -> None:
    store = SqlStore(mariadb_db)
    await store.open()
    try:
        await store.migrate()
        found = await execute(
            store,
            "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = database() "
            "AND table_name LIKE 'romancy%' AND table_name <> 'romancy_migrations' AND collation_name IS NOT NULL",
        )
    finally:
        await store.close()
    assert {row[0] for row in found} == {"utf8mb4_nopad_bin", "utf8mb4_bin"}  # the second is JSON's


async def test_a_second_run_has_nothing_to_do(store: SqlStore) -> None:
    assert await store.migrate() == []


async def test_starters_at_the_same_time_apply_each_migration_once(another: Another, url: str) -> None:
    starters = [await another() for _ in range(4)]
    applied = await asyncio.gather(*(starter.migrate() for starter in starters))
    wanted = [migration.name for migration in migrations(starters[0].db.dialect)]
    assert sorted(applied) == [[], [], [], wanted]


PROCESS = """
import asyncio, sys
from romancy_stream.store.sql import SqlStore

async def main(url):
    store = SqlStore(url)
    await store.open()
    print(*await store.migrate())
    await store.prepare("shop", 4)
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


async def test_processes_at_the_same_time_apply_each_migration_once(url: str) -> None:
    pipe = asyncio.subprocess.PIPE
    arguments = (sys.executable, "-W", "error", "-c", PROCESS, url)
    processes = [await asyncio.create_subprocess_exec(*arguments, stdout=pipe, stderr=pipe) for _ in range(2)]
    outputs = [await process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    wanted = " ".join(migration.name for migration in migrations(Database(url).dialect)).encode()
    assert sorted(out.strip() for out, _ in outputs) == [b"", wanted]


OLDER = migrations("postgresql")[:2]
NEWER = [migration.name for migration in migrations("postgresql")[2:]]
BUILDING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%INDEX CONCURRENTLY%' "
    "AND wait_event_type = 'Lock'"
)
INDEXES = "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid WHERE relname = :name"


@contextlib.asynccontextmanager
async def held_up(store: SqlStore) -> AsyncIterator[None]:
    """Somebody has a transaction open that has written instances: nobody can make an index to its end."""
    await execute(store, INSTANCE, id="there")
    async with store.db.writing("write and wait") as connection:
        await connection.execute(text("UPDATE romancy_instances SET seq = seq + 1 WHERE instance_id = 'there'"))
        yield


async def building(store: SqlStore) -> int:
    """The process of PostgreSQL that makes or drops an index and waits."""

    async def there() -> list[tuple[Any, ...]]:
        return await execute(store, BUILDING)

    [[pid]] = await eventually(there, message="an index is being made")
    return int(pid)


INSTANCE = (
    "INSERT INTO romancy_instances (instance_id, run, part, workflow, status, seq, started_us, updated_us, "
    "event_source, event_id) VALUES (:id, 1, 0, 'order', 'running', 1, 1, 1, '/shop', 'e')"
)


@pytest.mark.postgres
async def test_commits_go_on_while_an_index_is_made(postgres_db: str) -> None:
    async with stores(postgres_db, 3) as (store, other, late):
        await migrate(store.db, OLDER)
        await store.prepare("shop", 4)
        marks = await owned(store, 0)
        async with held_up(other):
            migrating = [asyncio.ensure_future(each.migrate()) for each in (store, late)]
            await building(store)
            async with asyncio.timeout(10):  # would wait for a lock, for twice as long
                marks = await committed(store, marks, instances=[instance("o-1")])
                await committed(store, marks, updates=[instance("o-1", status="completed", finished_us=9)])
            assert not any(each.done() for each in migrating)
        assert sorted(await asyncio.gather(*migrating)) == [[], NEWER]
        assert await execute(store, INDEXES, name="romancy_instances_status") == [("romancy_instances_status", True)]
        assert await store.migrate() == []


@pytest.mark.postgres
async def test_an_index_that_was_not_finished_is_made_anew(postgres_db: str) -> None:
    async with stores(postgres_db, 2) as (store, other):
        await store.migrate()
        known = migrations("postgresql")
        extra = Migration("9998_extra", "CREATE INDEX romancy_extra\n    ON romancy_instances (workflow);\n")
        async with held_up(other):
            migrating = asyncio.ensure_future(migrate(store.db, [*known, extra]))
            pid = await building(store)
            await execute(store, "SELECT pg_terminate_backend(:pid)", pid=pid)
            with pytest.raises(StoreUnavailableError):
                await migrating
            assert await execute(store, INDEXES, name="romancy_extra") == [("romancy_extra", False)]
        assert await migrate(store.db, [*known, extra]) == ["9998_extra"]
        assert await execute(store, INDEXES, name="romancy_extra") == [("romancy_extra", True)]
        assert await migrate(store.db, [*known, extra]) == []


@pytest.mark.postgres
async def test_a_migration_that_was_cut_off_between_its_indexes_goes_through_again(postgres_db: str) -> None:
    async with stores(postgres_db, 1) as (store,):
        await migrate(store.db, OLDER)
        await execute(store, "DROP INDEX romancy_instances_status")
        assert await store.migrate() == NEWER
        assert await execute(store, INDEXES, name="romancy_instances_status") == [("romancy_instances_status", True)]


def test_a_migration_of_indexes_is_nothing_else() -> None:
    assert [migration.is_of_indexes for migration in migrations("postgresql")[:3]] == [False, False, True]
    assert not Migration("m", "CREATE INDEX a ON b (c);\nDROP TABLE d;\n").is_of_indexes
    assert not Migration("m", "CREATE UNIQUE INDEX a ON b (c);\n").is_of_indexes
    assert not Migration("m", "-- nothing\n").is_of_indexes


@contextlib.asynccontextmanager
async def stores(url: str, count: int) -> AsyncIterator[list[SqlStore]]:
    """Open ones; nothing is migrated."""
    async with contextlib.AsyncExitStack() as stack:
        opened = [SqlStore(url) for _ in range(count)]
        for each in opened:
            await each.open()
            stack.push_async_callback(each.close)
        yield opened


async def test_an_edited_migration_is_refused(store: SqlStore) -> None:
    first, *rest = migrations(store.db.dialect)
    edited = [Migration(first.name, first.sql + "-- a harmless comment\n"), *rest]
    with pytest.raises(ConfigurationError, match="another content"):
        await migrate(store.db, edited)


async def test_a_database_from_the_future_is_refused(store: SqlStore) -> None:
    known = migrations(store.db.dialect)
    newer = Migration("9999_newer", "CREATE TABLE romancy_newer (n integer);\n")
    assert await migrate(store.db, [*known, newer]) == ["9999_newer"]
    with pytest.raises(ConfigurationError, match="9999_newer"):
        await store.migrate()


async def test_a_migration_that_fails_is_not_recorded(store: SqlStore) -> None:
    known = migrations(store.db.dialect)
    broken = Migration(
        "0002_broken", "CREATE TABLE IF NOT EXISTS extra (n integer);\nINSERT INTO nowhere VALUES (1);\n"
    )
    with pytest.raises(Exception, match="nowhere"):
        await migrate(store.db, [*known, broken])
    mended = Migration("0002_broken", "CREATE TABLE IF NOT EXISTS extra (n integer);\n")
    assert await migrate(store.db, [*known, mended]) == ["0002_broken"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_has_the_same_migrations(dialect: str) -> None:
    assert [m.name for m in migrations(dialect)] == [m.name for m in migrations("postgresql")]


def test_line_ends_do_not_change_a_checksum(tmp_path: Path) -> None:
    first = migrations("sqlite")[0]
    assert "\r" not in first.sql
    assert len(first.checksum) == 64


def test_statements_end_with_a_semicolon_at_the_end_of_a_line() -> None:
    sql = "-- why; because\nCREATE TABLE a (\n    -- inside;\n    b text DEFAULT ';'\n);\n\nDROP TABLE a;\n"
    assert statements(sql) == ["CREATE TABLE a (\n    b text DEFAULT ';'\n)", "DROP TABLE a"]


def test_the_readme_names_every_table_and_view() -> None:
    readme = contract_path("storage", "README.md").read_text("utf-8")
    sql = migrations("postgresql")[0].sql
    views = re.findall(r"^CREATE VIEW (\w+)", sql, re.MULTILINE)
    assert len(views) == 5
    for name in [*metadata.tables, *views, BOOKKEEPING]:
        assert f"`{name}`" in readme, name
    for table in metadata.sorted_tables:
        for column in table.columns:
            assert f"`{column.name}`" in readme, f"{table.name}.{column.name}"


def test_an_installed_wheel_carries_the_contracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "romancy_stream" / "_contract" / "storage"
    shipped.mkdir(parents=True)
    (shipped / "README.md").write_text("shipped")
    monkeypatch.setattr("romancy_stream.contract.files", lambda package: tmp_path / package)
    assert contract_path("storage", "README.md").read_text("utf-8") == "shipped"


def test_a_part_of_the_contract_that_is_missing_says_so() -> None:
    with pytest.raises(ConfigurationError, match="storage/nothing"):
        contract_path("storage", "nothing")
