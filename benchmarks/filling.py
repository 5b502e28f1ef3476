"""Fills an app's tables with as many finished and waiting instances as wanted, without running them: a few that the
engine has run are copied under other ids, with other inputs and other times, in the log and in what follows from it, so
that `romancy verify` finds nothing to complain of. Writes behind the engine's back: no engine may be running."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from benchmarks.settings import PARTITIONS
from romancy_stream.audit import verify
from romancy_stream.store import selects, tables
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.partition import partition_for

FATES: Final = {"fulfilled": "completed", "refused": "failed", "waiting": "waiting_for_timer"}
"""What is asked of an order, and its status in the end."""
NUMBER: Final = 7
COPY: Final = "order-copy-"
CUSTOMER: Final = "customer-of-a-model"
"""Stands in the input of the models, for the customer of each copy."""
ORDERS_OF_A_CUSTOMER: Final = 10
APART_US: Final = 1_000_000
"""From one start to the next."""
ROWS_AT_ONCE: Final = 50_000
"""Of a transaction."""
SEARCHABLE: Final = ("customer.id", "lines.0.sku")
"""As the app would name them that searches by them: on databases without an index of all inputs."""
SAMPLE: Final = 300
"""Instances that are verified."""

_ROWS: Final = "n integer NOT NULL, instance_id text NOT NULL, part integer NOT NULL, model text NOT NULL"
_TIMES: Final = frozenset({"at_us", "started_us", "updated_us", "finished_us", "scheduled_us"})
_TABLES: Final = (tables.history, tables.instances, tables.activities, tables.timers)


def model_id(fate: str) -> str:
    return f"order-model-{fate}"


def input_of(fate: str, customer: str) -> dict[str, Any]:
    lines = [{"sku": f"sku-of-{customer}", "count": 2}, {"sku": "sku-of-all", "count": 1}]
    return {"fate": fate, "number": NUMBER, "customer": {"id": customer, "tier": "gold"}, "lines": lines, "total": 19.5}


def customer(number: int) -> str:
    return f"customer-{number // ORDERS_OF_A_CUSTOMER:07}"


def fill(url: str, count: int) -> None:
    """Makes some paths of the inputs searchable and verifies some of the instances at the end."""
    numbers = iter(range(count))
    if url.startswith("sqlite"):
        _fill_sqlite(url.removeprefix("sqlite:///"), numbers, count)
    else:
        asyncio.run(_fill_postgres(url, numbers, count))
    asyncio.run(_verify(url, [_row(number)[1] for number in range(0, count, max(1, count // SAMPLE))]))


def _row(number: int) -> tuple[int, str, int, str]:
    """Two of a hundred were refused, one waits."""
    fate = {0: "waiting", 1: "refused", 2: "refused"}.get(number % 100, "fulfilled")
    instance_id = f"{COPY}{number:010}"
    return number, instance_id, partition_for(instance_id.encode(), PARTITIONS), model_id(fate)


def _chunks(numbers: Iterator[int]) -> Iterator[list[tuple[int, str, int, str]]]:
    while chunk := [_row(number) for number in islice(numbers, ROWS_AT_ONCE)]:
        yield chunk


def _copies(count: int, dialect: str) -> list[str]:
    """A statement per table. The last copy is APART_US older than its model."""
    return [_copy(table, count, dialect) for table in _TABLES]


def _copy(table: Any, count: int, dialect: str) -> str:
    digits = "lpad({}::text, 7, '0')" if dialect == "postgresql" else "printf('%07d', {})"
    name = "'customer-' || " + digits.format(f"(f.n / {ORDERS_OF_A_CUSTOMER})")
    filled = []
    for column in table.columns:
        value = f"m.{column.name}"
        if column.name in ("instance_id", "part"):
            value = f"f.{column.name}"
        elif column.name in _TIMES:
            value = f"{value} - ({count} - f.n) * CAST({APART_US} AS bigint)"
        elif column.name in ("attrs", "event_id"):
            value = f"replace({value}, f.model, f.instance_id)"
        elif column.name == "payload" or column in selects.JSON_COLUMNS:
            value = f"replace(CAST({value} AS text), '{CUSTOMER}', {name})"
            if column in selects.JSON_COLUMNS and dialect == "postgresql":
                value = f"CAST({value} AS jsonb)"
        filled.append(value)
    names = ", ".join(column.name for column in table.columns)
    return (
        f"INSERT INTO {table.name} ({names}) SELECT {', '.join(filled)} "
        f"FROM bench_copies f JOIN {table.name} m ON m.instance_id = f.model ORDER BY f.n"
    )


async def _fill_postgres(url: str, numbers: Iterator[int], count: int) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE TEMPORARY TABLE bench_copies ({_ROWS})")
        for chunk in _chunks(numbers):
            async with connection.transaction():
                await connection.execute("TRUNCATE bench_copies")
                await connection.copy_records_to_table("bench_copies", records=chunk)
                for statement in _copies(count, "postgresql"):
                    await connection.execute(statement)
        await connection.execute("VACUUM ANALYZE")  # as autovacuum would do in time
    finally:
        await connection.close()


def _fill_sqlite(path: str, numbers: Iterator[int], count: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"CREATE TEMPORARY TABLE bench_copies ({_ROWS})")
        for chunk in _chunks(numbers):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM bench_copies")
            connection.executemany("INSERT INTO bench_copies VALUES (?, ?, ?, ?)", chunk)
            for statement in _copies(count, "sqlite"):
                connection.execute(statement)
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


async def _verify(url: str, ids: list[str]) -> None:
    store = SqlStore(url)
    await store.open()
    try:
        await store.make_searchable(SEARCHABLE)
        report = await verify(store, ids)
    finally:
        await store.close()
    assert report.clean, report.differences[:3]
    assert report.instances == len(ids)
