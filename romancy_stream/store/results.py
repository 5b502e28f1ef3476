"""Results of activities, and what transactional activities leave to send. One key per activity decides who was first,
the worker or the engine that gives up on it; the functions at the top are for a worker's own transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Connection, bindparam, delete, insert, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.store.database import MYSQL, POSTGRESQL, SQLITE, Database, finished
from romancy_stream.store.failures import translating
from romancy_stream.store.keys import (
    IDS_PER_STATEMENT,
    KEYS_PER_STATEMENT,
    activity_columns,
    any_of,
    chunks,
)
from romancy_stream.store.ownership import insert_missing
from romancy_stream.store.port import WorkerOutboxRow
from romancy_stream.store.tables import activity_results, worker_outbox
from romancy_stream.store.writes import CLOSED, CLOSED_ATTEMPT, Row, columns_of, json_of, pg_type, text_of

_MY_DUPLICATE: Final = 1062

# Made once: what SQLAlchemy works out about a statement before it runs, it keeps with the object.
_INSERT_MISSING_RESULT: Final = {
    dialect: insert_missing(activity_results, dialect) for dialect in (POSTGRESQL, MYSQL, SQLITE)
}
_DELETE_OUTBOX: Final = delete(worker_outbox).where(
    worker_outbox.c.incarnation == bindparam("of"), worker_outbox.c.seq.in_(bindparam("numbers", expanding=True))
)

# As the drivers take them, with the tables' columns in their order: every transaction of an activity ends with these,
# and SQLAlchemy would spend more on each than the driver does.
_MY: Final = mysql.dialect(paramstyle="format")
_LITE: Final = sqlite.dialect()
_MY_INSERT_RESULT: Final = str(insert(activity_results).compile(dialect=_MY))
_MY_INSERT_OUTBOX: Final = str(insert(worker_outbox).compile(dialect=_MY))
_LITE_INSERT_RESULT: Final = str(_INSERT_MISSING_RESULT[SQLITE].compile(dialect=_LITE))
_LITE_INSERT_OUTBOX: Final = str(insert(worker_outbox).compile(dialect=_LITE))


def _pg_record() -> str:
    results, outbox = activity_results.columns, worker_outbox.columns
    values = ", ".join(f"${n}" for n in range(1, len(results) + 1))
    arrays = ", ".join(f"${n}::{pg_type(column)}[]" for n, column in enumerate(outbox, start=len(results) + 1))
    left = f"INSERT INTO {worker_outbox.name} ({', '.join(outbox.keys())}) SELECT * FROM unnest({arrays})"
    made = f"INSERT INTO {activity_results.name} ({', '.join(results.keys())}) VALUES ({values})"
    return f"WITH left_to_send AS ({left}) {made} ON CONFLICT DO NOTHING"


_PG_RECORD: Final = _pg_record()


def record_result(connection: Connection, result: RecordedResult, left: Sequence[WorkerOutboxRow]) -> bool:
    """In the caller's transaction, which has begun, and in a greenlet of SQLAlchemy's: the result, and what is `left`
    to send. False: the key is taken, and the caller must roll back what it did. Waits for a transaction that has the
    same key under way."""
    assert connection.in_transaction()
    key = result.key
    row = (
        key.instance_id,
        key.run,
        key.activity_id,
        result.attempt,
        result.outcome,
        text_of(result.result),
        result.worker,
        result.at_us,
    )
    rows = [
        (each.incarnation, each.seq, each.part, each.at_us, each.topic, each.key, json_of(each.headers), each.value)
        for each in left
    ]
    return _RECORD[connection.dialect.name](connection, row, rows)


def _record_postgresql(connection: Connection, result: Row, left: Sequence[Row]) -> bool:
    """In one round trip."""
    columns = columns_of(left, len(worker_outbox.columns))
    made = connection.exec_driver_sql(_PG_RECORD, (*result, *map(list, columns)))
    return made.rowcount == 1


def _record_mysql(connection: Connection, result: Row, left: Sequence[Row]) -> bool:
    try:  # an upsert cannot tell here whether it inserted, as the driver counts rows found
        connection.exec_driver_sql(_MY_INSERT_RESULT, result)
    except IntegrityError as error:
        if error.orig is None or error.orig.args[0] != _MY_DUPLICATE:
            raise
        return False  # only the statement was undone; the transaction goes on
    if left:
        connection.exec_driver_sql(_MY_INSERT_OUTBOX, list(left))
    return True


def _record_sqlite(connection: Connection, result: Row, left: Sequence[Row]) -> bool:
    """Past SQLAlchemy, which goes to the driver's thread three times for a statement."""
    driver: Any = connection.connection.dbapi_connection
    with translating("record a result"):
        made = driver.run_async(lambda raw: raw.execute(_LITE_INSERT_RESULT, result))
        if made.rowcount != 1:
            return False
        driver.run_async(lambda raw: raw.executemany(_LITE_INSERT_OUTBOX, left))
    return True


_RECORD: Final = {POSTGRESQL: _record_postgresql, MYSQL: _record_mysql, SQLITE: _record_sqlite}


class Results:
    db: Database

    async def close_activities(self, keys: Sequence[ActivityKey], at_us: int) -> Mapping[ActivityKey, RecordedResult]:
        if not keys:
            return {}
        return await finished(self._close(sorted(set(keys)), at_us))

    async def _close(self, keys: Sequence[ActivityKey], at_us: int) -> Mapping[ActivityKey, RecordedResult]:
        """In one order everywhere, so that two engines that close the same keys cannot deadlock."""
        closing = {"attempt": CLOSED_ATTEMPT, "outcome": CLOSED, "at_us": at_us}
        rows = [{"instance_id": k.instance_id, "run": k.run, "activity_id": k.activity_id, **closing} for k in keys]
        async with self.db.writing("close activities") as connection:
            await connection.execute(_INSERT_MISSING_RESULT[self.db.dialect], rows)
            return await _stored(connection, keys)

    async def results(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, RecordedResult]:
        if not keys:
            return {}
        async with self.db.reading("read results") as connection:
            return await _stored(connection, keys)

    async def worker_outbox(self, parts: Sequence[int], older_than_us: int, limit: int) -> list[WorkerOutboxRow]:
        """Oldest first; of one incarnation in its own order."""
        table = worker_outbox
        statement = (
            select(table)
            .where(table.c.part.in_(parts), table.c.at_us < older_than_us)
            .order_by(table.c.at_us, table.c.incarnation, table.c.seq)
            .limit(limit)
        )
        async with self.db.reading("read what workers left") as connection:
            return [_worker_row(row) for row in await connection.execute(statement)]

    async def delete_worker_outbox(self, keys: Sequence[tuple[str, int]]) -> None:
        numbers: dict[str, list[int]] = defaultdict(list)
        for incarnation, seq in sorted(keys):
            numbers[incarnation].append(seq)
        async with self.db.writing("delete what was sent") as connection:
            for incarnation, each in numbers.items():
                for chunk in chunks(each, IDS_PER_STATEMENT):
                    await connection.execute(_DELETE_OUTBOX, {"of": incarnation, "numbers": chunk})


async def _stored(connection: AsyncConnection, keys: Sequence[ActivityKey]) -> dict[ActivityKey, RecordedResult]:
    table = activity_results
    found: dict[ActivityKey, RecordedResult] = {}
    for chunk in chunks(keys, KEYS_PER_STATEMENT):
        for row in await connection.execute(select(table).where(any_of(activity_columns(table), chunk))):
            result = _result(row)
            found[result.key] = result
    return found


def _result(row: Any) -> RecordedResult:
    key = ActivityKey(row.instance_id, row.run, row.activity_id)
    value = None if row.result is None else row.result.encode()
    return RecordedResult(key, row.attempt, row.outcome, value, row.worker, row.at_us)


def _worker_row(row: Any) -> WorkerOutboxRow:
    headers = tuple((name, value) for name, value in orjson.loads(row.headers))
    return WorkerOutboxRow(row.incarnation, row.seq, row.part, row.at_us, row.topic, row.key, headers, row.value)
