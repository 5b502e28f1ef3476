"""Results of activities, and what transactional activities leave to send. One key per activity decides who was first,
the worker or the engine that gives up on it; the functions at the top are for a worker's own transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.store.database import MYSQL, POSTGRESQL, SQLITE, Database, finished
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
from romancy_stream.store.writes import CLOSED, CLOSED_ATTEMPT, json_of, text_of

_MY_DUPLICATE: Final = 1062

# Made once: what SQLAlchemy works out about a statement before it runs, it keeps with the object.
_INSERT_RESULT: Final = insert(activity_results)
_INSERT_MISSING_RESULT: Final = {
    dialect: insert_missing(activity_results, dialect) for dialect in (POSTGRESQL, MYSQL, SQLITE)
}
_INSERT_OUTBOX: Final = insert(worker_outbox)
_DELETE_OUTBOX: Final = delete(worker_outbox).where(
    worker_outbox.c.incarnation == bindparam("of"), worker_outbox.c.seq.in_(bindparam("numbers", expanding=True))
)


async def insert_result(connection: AsyncConnection, result: RecordedResult) -> bool:
    """In the caller's transaction. False: the key is taken, and the caller must roll back what it did. Waits for a
    transaction that has the same key under way."""
    key = result.key
    row = {
        "instance_id": key.instance_id,
        "run": key.run,
        "activity_id": key.activity_id,
        "attempt": result.attempt,
        "outcome": result.outcome,
        "result": text_of(result.result),
        "worker": result.worker,
        "at_us": result.at_us,
    }
    if connection.dialect.name != MYSQL:
        made = await connection.execute(_INSERT_MISSING_RESULT[connection.dialect.name], row)
        return int(made.rowcount) == 1
    try:  # an upsert cannot tell here whether it inserted, as the driver counts rows found
        await connection.execute(_INSERT_RESULT, row)
    except IntegrityError as error:
        if error.orig is None or error.orig.args[0] != _MY_DUPLICATE:
            raise
        return False  # only the statement was undone; the transaction goes on
    return True


async def insert_worker_outbox(connection: AsyncConnection, rows: Sequence[WorkerOutboxRow]) -> None:
    """In the caller's transaction."""
    if not rows:
        return
    values = [
        {
            "incarnation": row.incarnation,
            "seq": row.seq,
            "part": row.part,
            "at_us": row.at_us,
            "topic": row.topic,
            "key": row.key,
            "headers": json_of(row.headers),
            "value": row.value,
        }
        for row in rows
    ]
    await connection.execute(_INSERT_OUTBOX, values)


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
