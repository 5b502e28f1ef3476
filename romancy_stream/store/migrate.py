"""Brings the tables up to date: applies what is missing of `storage/migrations/<dialect>/*.sql`, in the order of the
names, one starter at a time. Reads package data and writes DDL; knows nothing of what the tables are for.

A migration that makes and drops indexes and does nothing else is applied to a PostgreSQL that is in use without a
transaction, so that commits go on meanwhile: PostgreSQL makes such an index beside them, and waits for everybody who
has begun to look at the table before. Whoever wants to migrate too must not be among those, so nobody here waits for
his turn inside the database. What was cut off is begun again: every statement of such a migration may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import column, inspect, select, table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.contract import contract_path
from romancy_stream.errors import ConfigurationError, StoreUnavailableError
from romancy_stream.store.database import MAINTENANCE_TIMEOUT_S, MYSQL, SQLITE, Database

log = logging.getLogger(__name__)

PG_LOCK: Final = 0x526F6D61  # any fixed number, the same in every version
PG_TURN_S: Final = 0.2  # between two looks whether it is our turn; a start takes seconds
MY_LOCK: Final = "romancy_migrate"  # prefixed with the database: GET_LOCK is for the whole server

_RECORDS: Final = """CREATE TABLE IF NOT EXISTS romancy_migrations (
    name       varchar(255) NOT NULL PRIMARY KEY,
    checksum   varchar(64) NOT NULL,
    applied_us bigint NOT NULL
)"""

_INDEX_MADE: Final = re.compile(r"CREATE INDEX (\w+)\s+(ON .*)", re.DOTALL)
_INDEX_DROPPED: Final = re.compile(r"DROP INDEX (\w+)")

_TABLE: Final = table("romancy_migrations", column("name"), column("checksum"))


@dataclass(frozen=True, slots=True)
class Migration:
    name: str  # file name without .sql
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def is_of_indexes(self) -> bool:
        made = statements(self.sql)
        return bool(made) and all(_INDEX_MADE.fullmatch(each) or _INDEX_DROPPED.fullmatch(each) for each in made)


def migrations(dialect: str) -> list[Migration]:
    """Of `dialect`, in order. Line ends are normalised: a checkout must not change a checksum."""
    files = contract_path("storage", "migrations", dialect).iterdir()
    found = [(file.name, file.read_text("utf-8")) for file in files if file.name.endswith(".sql")]
    return [Migration(name.removesuffix(".sql"), sql.replace("\r\n", "\n")) for name, sql in sorted(found)]


def statements(sql: str) -> list[str]:
    """The statements of a migration file, by its rule: one ends with `;` at the end of a line, and comments have
    lines of their own that begin with `--`."""
    lines = [line for line in sql.splitlines() if not line.lstrip().startswith("--")]
    found = "\n".join(lines).replace(";\n", ";\0").rstrip(";\n").split(";\0")
    return [statement.strip() for statement in found if statement.strip()]


async def migrate(db: Database, known: Sequence[Migration] | None = None) -> list[str]:
    """Returns the names it applied. ConfigurationError when a migration that was applied reads differently now, or
    the database is ahead of this version."""
    wanted = migrations(db.dialect) if known is None else list(known)
    done: list[str] = []
    async with _turn(db) as beside_work:
        while True:
            async with db.maintaining("migrate") as connection:
                missing, in_use = await _missing(connection, wanted)
                for migration in missing:
                    if beside_work is not None and in_use and migration.is_of_indexes:
                        break
                    await _apply(connection, migration)
                    done.append(migration.name)
                else:
                    return done
            await _apply_beside_work(beside_work, migration)
            done.append(migration.name)


async def _missing(connection: AsyncConnection, wanted: Sequence[Migration]) -> tuple[list[Migration], bool]:
    """And whether the database was there before."""
    await connection.exec_driver_sql(_RECORDS)
    rows = await connection.exec_driver_sql("SELECT name, checksum FROM romancy_migrations")
    applied = {name: checksum for name, checksum in map(tuple, rows)}
    _check(applied, wanted)
    return [migration for migration in wanted if migration.name not in applied], bool(applied)


async def _apply_beside_work(connection: AsyncConnection, migration: Migration) -> None:
    log.info("making indexes beside all other work, which takes a while: %s", migration.name)
    for statement in statements(migration.sql):
        await _change_index(connection, statement)
    await _record(connection, migration)


async def _change_index(connection: AsyncConnection, statement: str) -> None:
    if dropped := _INDEX_DROPPED.fullmatch(statement):
        await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {dropped[1]}")
    elif made := _INDEX_MADE.fullmatch(statement):
        # One that is there was left by somebody who was cut off: it may be invalid, and lack rows for ever.
        await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {made[1]}")
        await connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY {made[1]} {made[2]}")


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
    await _record(connection, migration)


async def _record(connection: AsyncConnection, migration: Migration) -> None:
    insert = text("INSERT INTO romancy_migrations (name, checksum, applied_us) VALUES (:name, :checksum, :us)")
    values = {"name": migration.name, "checksum": migration.checksum, "us": time.time_ns() // 1000}
    await connection.execute(insert, values)


@contextlib.asynccontextmanager
async def _turn(db: Database) -> AsyncIterator[AsyncConnection | None]:
    """No other starter has his meanwhile: on SQLite for as long as a transaction lasts, which begins as the one writer;
    the others take a lock. On PostgreSQL it is that of the connection given, which is in no transaction: what is under
    way on it when this process dies goes on, and keeps others away, to its end."""
    if db.dialect == SQLITE:
        yield None
    elif db.dialect == MYSQL:  # before the transaction begins, as DDL ends one
        async with _mysql_lock(db):
            yield None
    else:
        async with db.maintaining("migrate", each_alone=True) as connection:
            await _postgres_lock(connection)
            yield connection


async def _postgres_lock(connection: AsyncConnection) -> None:
    """Asks again and again: a statement that waits would keep indexes from being made."""
    deadline_s = time.monotonic() + MAINTENANCE_TIMEOUT_S
    while not (await connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": PG_LOCK})).scalar_one():
        if time.monotonic() > deadline_s:
            raise StoreUnavailableError(f"another process has been migrating for {MAINTENANCE_TIMEOUT_S} s")
        await asyncio.sleep(PG_TURN_S)


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
