"""The batch commit on PostgreSQL: one prepared statement in one round trip, which is its own transaction. It speaks to
asyncpg directly, through a connection of the writers' pool.

The statement is a chain of data-modifying CTEs over `unnest` of arrays, one array per column. The fence is an UPDATE
that the final SELECT counts; that SELECT runs before the other CTEs and divides by zero when the count is short, so a
fenced commit writes nothing and does next to no work. CTEs share one snapshot and run in no certain order, which the
core allows for: it names no row twice.

A column of texts or numbers travels as one text that the server takes apart: the driver encodes an array element by
element, at four to ten times the price. Where one of the texts has a mark in it, the commit has arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import asyncpg
import orjson

from romancy_stream.engine.commit import Commit
from romancy_stream.errors import CommitUnknownError, FencedError
from romancy_stream.store.clocks import PG_CLOCK
from romancy_stream.store.database import Database
from romancy_stream.store.failures import PG_RETRY, code_of, is_lost, translated, translating
from romancy_stream.store.searchable import SearchedPath
from romancy_stream.store.writes import WRITES, Action, Values, Write, columns_of, pg_cast, pg_type

DEADLOCK_TRIES: Final = 3  # a deadlock undid everything; more than this many in a row is not a coincidence
STATEMENTS_CACHED: Final = 256  # texts differ by which parts a commit has; a running app uses a few dozen

_FENCE_PARAMETERS: Final = 4
_FENCE: Final = """fence AS (
UPDATE romancy_partitions p SET commit_no = p.commit_no + 1, position = v.position
FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::int8[]) AS v(part, epoch, commit_no, position)
WHERE p.part = v.part AND p.epoch = v.epoch AND p.commit_no = v.commit_no RETURNING 1)"""
# Parts that a commit has in any mixture. Each mixture would be a statement to prepare, which costs as much as a commit;
# running an empty part costs a hundredth of that.
_MIXED: Final = frozenset({"entities", "members", "members_gone", "items", "items_gone"})
_BITS: Final = {  # part of a commit -> what it adds to `present`
    part: sum(1 << n for n, write in enumerate(WRITES) if write.part == part or {write.part, part} <= _MIXED)
    for part in dict.fromkeys(write.part for write in WRITES)
}
# Before each value, and for NULL. Control characters: JSON has none of them, and ids and names are refused with them.
_MARK: Final = "\x1f"
_NULL: Final = "\x1e"
_TEXT: Final = "text"
_NUMBERS: Final = frozenset({"int4", "int8"})
_ALL_FENCED: Final = "CASE WHEN (SELECT count(*) FROM fence) = cardinality($1::int4[]) THEN 1 ELSE 0 END"
_END: Final = f"SELECT {PG_CLOCK} / {_ALL_FENCED}"


class PostgresCommitter:
    def __init__(self, db: Database) -> None:
        self.searched: Sequence[SearchedPath] = ()  # never: an index has all paths
        self._db = db

    async def close(self) -> None:
        """Holds nothing of its own."""

    async def commit(self, commit: Commit) -> int:
        with translating("commit"):
            statement, arguments = rendered(commit)
        return await self._written(statement, arguments)

    async def _written(self, statement: str, arguments: Sequence[Any]) -> int:
        async with self._db.raw("commit") as (connection, driver):
            for last in (False,) * (DEADLOCK_TRIES - 1) + (True,):
                try:
                    return int(await driver.fetchval(statement, *arguments))
                except asyncpg.DivisionByZeroError:
                    raise FencedError("another owner has taken over a partition of this commit") from None
                except Exception as error:
                    if is_lost(error):
                        await connection.invalidate()
                        raise CommitUnknownError(f"the connection broke during a commit: {error!r}") from error
                    if code_of(error) not in PG_RETRY or last:
                        raise translated(error, "commit") from error
        raise AssertionError("unreachable")


def rendered(commit: Commit) -> tuple[str, list[Any]]:
    """The statement's text and its arguments."""
    marks = [(mark.part, mark.epoch, mark.commit_no, mark.position) for mark in commit.marks]
    fence = columns_of(marks, _FENCE_PARAMETERS)
    columns: list[Values] = []
    types: list[str] = []
    present = 0
    for part, bits in _BITS.items():
        if getattr(commit, part):
            present |= bits
    for index in _indexes(present):
        write = WRITES[index]
        rows = [write.row(item) for item in getattr(commit, write.part)]
        if write.action is Action.INSERT_MISSING:
            rows.sort()  # they wait for a worker that has the same key under way: in one order everywhere
        types += _types(index)
        columns += columns_of(rows, len(write.columns))
    try:
        joined = [_joined(column, kind) for column, kind in zip(columns, types, strict=True)]
    except _MarkedError:
        return statement_of(present, in_arrays=True), [*fence, *columns]
    return statement_of(present), [*fence, *joined]


class _MarkedError(Exception):
    """A value has a mark in it, and could not be told apart."""


def _joined(column: Values, kind: str) -> str | Values:
    if kind in _NUMBERS:
        return "{" + orjson.dumps(column).decode()[1:-1] + "}"  # null is NULL in the text of an array too
    if kind != _TEXT:
        return column
    values = [_NULL if value is None else value for value in column] if None in column else column
    text = _MARK.join(["", *values])
    if text.count(_MARK) != len(column) or (_NULL in text and text.count(_NULL) != column.count(None)):
        raise _MarkedError
    return text


def _indexes(present: int) -> Iterator[int]:
    while present:
        lowest = present & -present
        yield lowest.bit_length() - 1
        present ^= lowest


@lru_cache(maxsize=STATEMENTS_CACHED)
def statement_of(present: int, *, in_arrays: bool = False) -> str:
    """`present` has bit n set when WRITES[n] is to be part of it."""
    parts, used = [_FENCE], _FENCE_PARAMETERS
    for index in _indexes(present):
        parts.append(f"w{index} AS (\n{_written(WRITES[index], _source(index, used, in_arrays))})")
        used += len(WRITES[index].columns)
    return "WITH " + ",\n".join(parts) + "\n" + _END


def _written(write: Write, source: str) -> str:
    table, columns = write.table.name, write.table.columns
    match = " AND ".join(f"t.{key} = v.{key}" for key in write.keys)
    if write.action is Action.DELETE_RANGE:
        return f"DELETE FROM {table} t USING {source} WHERE t.part = v.part AND t.position BETWEEN v.first AND v.last"
    if write.action is Action.DELETE:
        return f"DELETE FROM {table} t USING {source} WHERE {match}"
    if write.action is Action.UPDATE:
        sets = ", ".join(f"{name} = v.{name}{pg_cast(columns[name])}" for name in write.sets)
        return f"UPDATE {table} t SET {sets} FROM {source} WHERE {match}"
    filled = [f"v.{name}{pg_cast(columns[name])}" for name in write.columns]
    names = list(write.columns)
    if write.clock:
        filled.append(PG_CLOCK)
        names.append(write.clock)
    insert = f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(filled)} FROM {source}"
    if write.action is Action.INSERT:
        return insert
    if write.action is Action.INSERT_MISSING:
        return f"{insert} ON CONFLICT DO NOTHING"
    sets = ", ".join(f"{name} = EXCLUDED.{name}" for name in write.sets)
    return f"{insert} ON CONFLICT ({', '.join(write.keys)}) DO UPDATE SET {sets}"


def _source(index: int, used: int, in_arrays: bool) -> str:
    """The rows of one part as `v`, with the columns' own names."""
    arrays = [_array(f"${used + n}", kind, in_arrays) for n, kind in enumerate(_types(index), start=1)]
    return f"unnest({', '.join(arrays)}) AS v({', '.join(WRITES[index].columns)})"


def _array(parameter: str, kind: str, as_it_is: bool) -> str:
    if not as_it_is and kind in _NUMBERS:
        return f"{parameter}::text::{kind}[]"
    if not as_it_is and kind == _TEXT:
        return f"(string_to_array({parameter},'{_MARK}','{_NULL}'))[2:]"
    return f"{parameter}::{kind}[]"


@lru_cache(maxsize=len(WRITES))
def _types(index: int) -> tuple[str, ...]:
    write = WRITES[index]
    if write.action is Action.DELETE_RANGE:
        return ("int4", "int8", "int8")
    return tuple(pg_type(write.table.columns[name]) for name in write.columns)
