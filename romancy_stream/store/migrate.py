"""Brings the tables up to date: applies what is missing of `storage/migrations/<dialect>/*.sql`, in the order of the
names, one starter at a time. Reads package data and writes DDL; knows nothing of what the tables are for."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import column, inspect, select, table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.contract import contract_path
from romancy_stream.errors import ConfigurationError, StoreUnavailableError
from romancy_stream.store.database import MAINTENANCE_TIMEOUT_S, MYSQL, POSTGRESQL, Database

PG_LOCK: Final = 0x526F6D61  # any fixed number, the same in every version
MY_LOCK: Final = "romancy_migrate"  # prefixed with the database: GET_LOCK is for the whole server

_RECORDS: Final = """CREATE TABLE IF NOT EXISTS romancy_migrations (
    name       varchar(255) NOT NULL PRIMARY KEY,
    checksum   varchar(64) NOT NULL,
    applied_us bigint NOT NULL
)"""

_TABLE: Final = table("romancy_migrations", column("name"), column("checksum"))


@dataclass(frozen=True, slots=True)
class Migration:
    name: str  # file name without .sql
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(dialect: str) -> list[Migration]:
    """Of `dialect`, in order. Line ends are normalised: a checkout must not change a checksum."""
    files = contract_path("storage", "migrations", dialect).iterdir()
    found = [(file.name, file.read_text("utf-8")) for file in files if file.name.endswith(".sql")]
    return [Migration(name.removesuffix(".sql"), sql.replace("\r\n", "\n")) for name, sql in sorted(found)]


def statements(sql: str) -> list[str]:
    """The statements of a migration file, by its rule: one ends with `;` at the end of a line, and comments have
    lines of their own that begin with `--`."""
    lines = [line for line in sql.splitlines() if not line.lstrip().startswith("--")]
    return [statement.strip() for statement in "\n".join(lines).replace(";\n", ";\0").rstrip(";\n").split(";\0")]


async def migrate(db: Database, known: Sequence[Migration] | None = None) -> list[str]:
    """Returns the names it applied. ConfigurationError when a migration that was applied reads differently now, or
    the database is ahead of this version."""
    wanted = migrations(db.dialect) if known is None else list(known)
    async with _alone(db) as connection:
        await connection.exec_driver_sql(_RECORDS)
        rows = await connection.exec_driver_sql("SELECT name, checksum FROM romancy_migrations")
        applied = {name: checksum for name, checksum in map(tuple, rows)}
        _check(applied, wanted)
        missing = [migration for migration in wanted if migration.name not in applied]
        for migration in missing:
            await _apply(connection, migration)
    return [migration.name for migration in missing]


async def applied_migrations(db: Database) -> dict[str, str] | None:
    """Name -> checksum; None where no migration was ever applied."""
    async with db.reading("read which migrations are applied") as connection:
        if not await connection.run_sync(lambda plain: inspect(plain).has_table(_TABLE.name)):
            return None
        rows = await connection.execute(select(_TABLE.c.name, _TABLE.c.checksum))
        return {str(row.name): str(row.checksum) for row in rows}


async def require_migrated(db: Database) -> None:
    """Raises ConfigurationError where tables are missing."""
    applied = await applied_migrations(db) or {}
    missing = [migration.name for migration in migrations(db.dialect) if migration.name not in applied]
    if missing:
        raise ConfigurationError(
            f"the database lacks {', '.join(missing)}: run `romancy migrate MODULE:APP`, or start without --no-init"
        )


def _check(applied: dict[str, str], wanted: Sequence[Migration]) -> None:
    for migration in wanted:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise ConfigurationError(
                f"migration {migration.name} was applied to this database with another content: "
                "restore the file that was released, and put changes into a new migration"
            )
    if ahead := sorted(applied.keys() - {migration.name for migration in wanted}):
        raise ConfigurationError(
            f"the database is ahead of this version of romancy-stream (it has {', '.join(ahead)}): upgrade the package"
        )


async def _apply(connection: AsyncConnection, migration: Migration) -> None:
    for statement in statements(migration.sql):
        await connection.exec_driver_sql(statement)
    insert = text("INSERT INTO romancy_migrations (name, checksum, applied_us) VALUES (:name, :checksum, :us)")
    values = {"name": migration.name, "checksum": migration.checksum, "us": time.time_ns() // 1000}
    await connection.execute(insert, values)


@contextlib.asynccontextmanager
async def _alone(db: Database) -> AsyncIterator[AsyncConnection]:
    """One transaction that no other starter is in: SQLite's begins as the one writer, the others take a lock."""
    async with contextlib.AsyncExitStack() as stack:
        if db.dialect == MYSQL:  # before the transaction begins, as DDL ends one
            await stack.enter_async_context(_mysql_lock(db))
        connection = await stack.enter_async_context(db.maintaining("migrate"))
        if db.dialect == POSTGRESQL:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({PG_LOCK})")
        yield connection


@contextlib.asynccontextmanager
async def _mysql_lock(db: Database) -> AsyncIterator[None]:
    """The lock is the session's, so it has a connection of its own; it goes with it when this process dies."""
    name = hashlib.sha256(f"{MY_LOCK}/{db.url.database}".encode()).hexdigest()  # at most 64 characters
    async with db.maintaining("migrate") as connection:
        wait = {"name": name, "wait": MAINTENANCE_TIMEOUT_S}
        if (await connection.execute(text("SELECT GET_LOCK(:name, :wait)"), wait)).scalar_one() != 1:
            raise StoreUnavailableError(f"another process has been migrating for {MAINTENANCE_TIMEOUT_S} s")
        yield
        await connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
