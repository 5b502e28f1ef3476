"""The batch commit where one transaction of several statements does it: the texts for MariaDB/MySQL and for SQLite.
The fence comes first, and the caller rolls back when it matched fewer rows than there are marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final

from romancy_stream.engine.commit import Commit, InstanceRow, Mark
from romancy_stream.store.clocks import MY_CLOCK, clock_us
from romancy_stream.store.database import MYSQL, SQLITE
from romancy_stream.store.searchable import SearchedPath, rows_of
from romancy_stream.store.writes import UPDATES_AS_UPSERT, VALUES_GONE, VALUES_MADE, WRITES, Action, Row, Write

KEYS_PER_STATEMENT: Final = 200  # on MySQL: beyond some memory its optimizer gives up on the index ranges of a DELETE
ROWS_PER_STATEMENT: Final = 512  # on SQLite; of 18 columns that is far below the 32,766 parameters it takes
FOLDED_CHARS: Final = 200_000  # of such rows: the driver keeps a statement with the values that it ran with last

Statement = tuple[str, Sequence[Row]]  # to be run once per row; MySQL's driver folds the rows of an INSERT into one


def fence(marks: Sequence[Mark], dialect: str) -> tuple[str, Row]:
    """One statement over all marks; it must match exactly len(marks) rows."""
    mark = "%s" if dialect == MYSQL else "?"
    whens = " ".join([f"WHEN {mark} THEN {mark}"] * len(marks))
    where = " OR ".join([f"(part = {mark} AND epoch = {mark} AND commit_no = {mark})"] * len(marks))
    values = [value for m in marks for value in (m.part, m.position)]
    values += [value for m in marks for value in (m.part, m.epoch, m.commit_no)]
    sets = f"commit_no = commit_no + 1, position = CASE part {whens} END"
    return f"UPDATE romancy_partitions SET {sets} WHERE {where}", tuple(values)


def statements(commit: Commit, dialect: str, searched: Sequence[SearchedPath] = ()) -> Iterator[Statement]:
    """`searched`: the paths of inputs whose values are kept."""
    for write in WRITES:
        if not (items := getattr(commit, write.part)):
            continue
        if dialect == MYSQL and write.part == "updates":
            write = UPDATES_AS_UPSERT
        rows = [write.row(item) for item in items]
        if write.action is Action.INSERT_MISSING:
            rows.sort()  # they wait for a worker that has the same key under way: in one order everywhere
        yield from _of_rows(write, rows, dialect)
    if searched and commit.instances:
        yield from _values(commit.instances, dialect, searched)


def _values(rows: Sequence[InstanceRow], dialect: str, searched: Sequence[SearchedPath]) -> Iterator[Statement]:
    again = [(row.instance_id,) for row in rows if row.run > 1]
    if again:
        yield from _of_rows(VALUES_GONE, again, dialect)
    if values := sorted(rows_of(rows, searched)):
        yield from _of_rows(VALUES_MADE, values, dialect)


def _of_rows(write: Write, rows: Sequence[Row], dialect: str) -> Iterator[Statement]:
    if dialect == SQLITE and write.clock:
        now_us = clock_us()
        yield from _folded(write, [(*row, now_us) for row in rows])
    elif dialect == SQLITE:
        yield from _folded(write, rows)
    elif write.action in (Action.DELETE, Action.DELETE_RANGE):
        yield from _deletes(write, rows)
    elif write.clock:
        yield from _timed_inserts(write, rows)
    else:
        yield text_of_write(write, dialect), rows


def _folded(write: Write, rows: Sequence[Row], limit: int = ROWS_PER_STATEMENT) -> Iterator[Statement]:
    """Many rows in one statement, on SQLite: each step of a statement gives up the interpreter's lock, and beside a
    busy event loop it has it back 5 ms later. Halves of halves, so that few texts serve all numbers of rows."""
    count, first = limit, 0
    while first < len(rows):
        while count > len(rows) - first:
            count //= 2
        chunk = rows[first : first + count]
        folded = tuple(chain.from_iterable(chunk))
        if count > 1 and _chars(folded) > FOLDED_CHARS:
            yield from _folded(write, chunk, count // 2)
        else:
            yield text_of_write(write, SQLITE, count), [folded]
        first += count


def _chars(values: Row) -> int:
    return sum([len(value) for value in values if type(value) is str or type(value) is bytes])


def _deletes(write: Write, rows: Sequence[Row]) -> Iterator[Statement]:
    for first in range(0, len(rows), KEYS_PER_STATEMENT):
        chunk = rows[first : first + KEYS_PER_STATEMENT]
        where = _where_any(write, MYSQL, len(chunk))
        yield f"DELETE FROM {write.table.name} WHERE {where}", [tuple(value for row in chunk for value in row)]


def _timed_inserts(write: Write, rows: Sequence[Row]) -> Iterator[Statement]:
    """The driver folds rows into one statement only where VALUES holds nothing but parameters: so by hand."""
    columns = ", ".join(quoted(name, MYSQL) for name in (*write.columns, write.clock))
    values = f"({', '.join(['%s'] * len(write.columns))}, {MY_CLOCK})"
    for first in range(0, len(rows), KEYS_PER_STATEMENT):
        chunk = rows[first : first + KEYS_PER_STATEMENT]
        insert = f"INSERT INTO {write.table.name} ({columns}) VALUES {', '.join([values] * len(chunk))}"
        yield f"{insert} {_as_it_was(write)}", [tuple(value for row in chunk for value in row)]


def _as_it_was(write: Write) -> str:
    """Not INSERT IGNORE, which would also cut off what is too long."""
    key = quoted(write.keys[0], MYSQL)
    return f"ON DUPLICATE KEY UPDATE {key} = {key}"


@lru_cache(maxsize=(len(WRITES) + 3) * (1 + ROWS_PER_STATEMENT.bit_length()))
def text_of_write(write: Write, dialect: str, rows: int = 1) -> str:
    """For so many rows; more than one only on SQLite."""
    mark = "%s" if dialect == MYSQL else "?"
    table = write.table.name
    if write.action in (Action.DELETE, Action.DELETE_RANGE):
        return f"DELETE FROM {table} WHERE {_where_any(write, dialect, rows)}"
    if write.action is Action.UPDATE:
        return _update(write, dialect) if rows == 1 else _update_many(write, rows)
    names = (*write.columns, write.clock) if write.clock else write.columns
    columns = ", ".join(quoted(name, dialect) for name in names)
    insert = f"INSERT INTO {table} ({columns}) {_values_of(mark, len(names), rows)}"
    if write.action is Action.INSERT:
        return insert
    if write.action is Action.INSERT_MISSING:
        return f"{insert} {_as_it_was(write) if dialect == MYSQL else 'ON CONFLICT DO NOTHING'}"
    if dialect == MYSQL:
        sets = ", ".join(f"{quoted(name, dialect)} = VALUES({quoted(name, dialect)})" for name in write.sets)
        return f"{insert} ON DUPLICATE KEY UPDATE {sets}"
    sets = ", ".join(f"{quoted(name, dialect)} = excluded.{quoted(name, dialect)}" for name in write.sets)
    return f"{insert} ON CONFLICT ({', '.join(write.keys)}) DO UPDATE SET {sets}"


def _values_of(mark: str, columns: int, rows: int) -> str:
    return "VALUES " + ", ".join([f"({', '.join([mark] * columns)})"] * rows)


def _update(write: Write, dialect: str) -> str:
    mark = "%s" if dialect == MYSQL else "?"
    sets = ", ".join(f"{quoted(name, dialect)} = {mark}" for name in write.sets)
    return f"UPDATE {write.table.name} SET {sets} WHERE {_where(write, dialect)}"


def _update_many(write: Write, rows: int) -> str:
    """On SQLite, which calls the columns of VALUES column1 and so on."""
    made = [f"{quoted(name, SQLITE)} = made.column{number}" for number, name in enumerate(write.columns, 1)]
    sets, keys = made[: len(write.sets)], made[len(write.sets) :]
    values = _values_of("?", len(write.columns), rows)
    return f"UPDATE {write.table.name} SET {', '.join(sets)} FROM ({values}) AS made WHERE {' AND '.join(keys)}"


def _where(write: Write, dialect: str) -> str:
    mark = "%s" if dialect == MYSQL else "?"
    if write.action is Action.DELETE_RANGE:
        return f"part = {mark} AND position BETWEEN {mark} AND {mark}"
    return " AND ".join(f"{quoted(key, dialect)} = {mark}" for key in write.keys)


def _where_any(write: Write, dialect: str, rows: int) -> str:
    """A list of ORs, which all optimizers turn into index ranges (not so IN of tuples)."""
    return " OR ".join([f"({_where(write, dialect)})"] * rows)


def quoted(name: str, dialect: str) -> str:
    return f"`{name}`" if dialect == MYSQL else f'"{name}"'
