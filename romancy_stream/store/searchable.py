"""Searches by what stands in the input at paths that the app has named, on databases without an index over all of it:
a small row for each such value, written in the commit that writes the instance. Part of the store.

The paths stand in the database. Every owner reads them after it has taken partitions over, and whoever adds one raises
the epochs: what is committed from then on has its rows, and the instances before that are gone through once. Until
that is done a path is searched without them. A row too many does no harm, as Python decides what matches.

A path is dropped the other way round: first nobody searches by its rows nor writes them any more, then they go. They
do not say which path they are of, so the instances are gone through for that too. Who names a path and who drops rows
take turns, so that no path that was named again meanwhile lacks rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import InstanceRow
from romancy_stream.engine.fields import follow
from romancy_stream.engine.sealing import put_back
from romancy_stream.errors import ConfigurationError
from romancy_stream.store import selects
from romancy_stream.store.clocks import clock
from romancy_stream.store.database import POSTGRESQL, Database
from romancy_stream.store.keys import KEYS_PER_STATEMENT, any_of, chunks
from romancy_stream.store.ownership import insert_missing
from romancy_stream.store.paths import InputFilter, parse_path, read_document, tagged
from romancy_stream.store.tables import input_values, instances, json_text, meta, partitions, searchable

log = logging.getLogger(__name__)

SEARCHABLE_MAX: Final = 20
"""Paths: each costs a row per instance."""
SEARCHABLE_CHARS: Final = 255
"""Of such a path: a key of the database."""
FILLED_AT_ONCE: Final = 1_000
"""Instances of a transaction, while work goes on beside it: some 20 ms."""

TURN: Final = "namespace"
"""The row of facts that is locked by whose turn it is: it is always there, and nobody changes it."""

ValueRow = tuple[str, int, int]  # of input_values


class SearchedPath:
    """A path, with what it takes to look along it many times."""

    __slots__ = ("path", "segments")

    def __init__(self, path: str) -> None:
        self.path = path
        self.segments = parse_path(path)


@dataclass(frozen=True, slots=True)
class KeptPath:
    path: str
    filled_us: int | None
    """Since when all instances are in; None: not yet."""


def mark(path: str, value: Any) -> int:
    """Of a value at a path, the same for numbers that are equal. 64 bits: Python looks at what they find."""
    digest = hashlib.sha256(json.dumps([path, *tagged(value)]).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def mark_of(wanted: InputFilter) -> int:
    return mark(wanted.path, wanted.value)


def value_rows(
    instance_id: str, started_us: int, raw: bytes | None, searched: Sequence[SearchedPath]
) -> Iterator[ValueRow]:
    """Of the values at those paths that a filter can ask for."""
    document = read_document(put_back(raw))
    for each in searched:
        value = follow(document, each.segments)
        if InputFilter.can_ask_for(value):
            yield instance_id, mark(each.path, value), started_us


def rows_of(rows: Sequence[InstanceRow], searched: Sequence[SearchedPath]) -> list[ValueRow]:
    return [values for row in rows for values in value_rows(row.instance_id, row.started_us, row.input, searched)]


async def searched_paths(connection: AsyncConnection) -> tuple[SearchedPath, ...]:
    """Those that are kept, whether all instances are in yet or not."""
    found = await connection.execute(select(searchable.c.path).order_by(searchable.c.path))
    return tuple(map(SearchedPath, found.scalars()))


class Searchable:
    db: Database

    async def searched(self) -> tuple[SearchedPath, ...]:
        """For a takeover. None on PostgreSQL, whose index has all paths."""
        if self.db.dialect == POSTGRESQL:
            return ()
        async with self.db.writing("read which paths are searched") as connection:  # activities may hold all others
            return await searched_paths(connection)

    async def make_searchable(self, paths: Sequence[str]) -> list[str]:
        """Goes through all instances for those that are new, or were not finished; returns these. What is kept already
        stays, whether it is named or not."""
        if self.db.dialect == POSTGRESQL or not paths:
            return []
        await self._declare(paths)
        async with self.db.reading("read which paths are searched") as connection:
            done = set((await connection.execute(_filled())).scalars())
        new = [path for path in paths if path not in done]
        if new:
            log.info("going through all instances, to make searchable: %s", ", ".join(new))
            await self._fill([SearchedPath(path) for path in new])
        return new

    async def _declare(self, paths: Sequence[str]) -> None:
        async with self.db.writing("name what is searched") as connection:
            await _turn(connection)
            there = set((await connection.execute(select(searchable.c.path))).scalars())
            if new := [path for path in paths if path not in there]:
                await connection.execute(insert_missing(searchable, self.db.dialect), [{"path": path} for path in new])
                await _tell_owners(connection)

    async def _fill(self, new: Sequence[SearchedPath]) -> None:
        last: str | None = ""
        while last is not None:
            last = await self._filled_page(new, last)
        async with self.db.writing("all is searchable") as connection:
            of_these = searchable.c.path.in_([each.path for each in new])
            await connection.execute(update(searchable).where(of_these).values(filled_us=clock(self.db.dialect)))

    async def _filled_page(self, new: Sequence[SearchedPath], after: str) -> str | None:
        """The last id; None: there are no more."""
        async with self.db.writing("make inputs searchable") as connection:
            rows, last = await self._values_behind(connection, new, after)
            await insert_values(connection, self.db.dialect, rows)
        return last

    async def _values_behind(
        self, connection: AsyncConnection, paths: Sequence[SearchedPath], after: str
    ) -> tuple[list[ValueRow], str | None]:
        """Those of the next instances, and the last of them; None: there are no more. Nobody changes or deletes the
        instances meanwhile."""
        table = instances
        page = (
            select(table.c.instance_id, table.c.started_us, json_text(table.c.input, self.db.dialect))
            .where(table.c.instance_id > after)
            .order_by(table.c.instance_id)
            .limit(FILLED_AT_ONCE)
            .with_for_update(read=True)
        )
        found = (await connection.execute(page)).all()
        rows = [row for i, started_us, raw in found for row in value_rows(i, started_us, selects.raw(raw), paths)]
        return rows, found[-1].instance_id if found else None

    async def kept_paths(self) -> list[KeptPath]:
        """By path. None on PostgreSQL."""
        async with self.db.reading("read which paths are searched") as connection:
            rows = await connection.execute(select(searchable).order_by(searchable.c.path))
            return [KeptPath(row.path, row.filled_us) for row in rows]

    async def drop_searchable(self, paths: Sequence[str]) -> int:
        """Forgets these paths and removes their rows; returns how many there were. Searches find the same as before,
        without an index. May be called again where it was cut off. ConfigurationError where one is named again
        meanwhile: then it is kept, with all its rows."""
        if self.db.dialect == POSTGRESQL or not paths:
            return 0
        gone = [SearchedPath(path) for path in paths]
        async with self.db.writing("forget what is searched") as connection:
            await _turn(connection)
            forgotten = await connection.execute(delete(searchable).where(searchable.c.path.in_(paths)))
            if forgotten.rowcount:
                await _tell_owners(connection)
        last: str | None = ""
        count = 0
        while last is not None:
            removed, last = await self._emptied_page(gone, last)
            count += removed
        return count

    async def _emptied_page(self, gone: Sequence[SearchedPath], after: str) -> tuple[int, str | None]:
        """How many rows, and the last id; None: there are no more."""
        async with self.db.writing("remove what is not searched") as connection:
            await _turn(connection)
            kept = await searched_paths(connection)
            if again := sorted({each.path for each in kept} & {each.path for each in gone}):
                raise ConfigurationError(
                    f"{', '.join(again)} was named again meanwhile, and is kept: a process whose App(searchable=) has "
                    "it was started. Start them all anew without it, and drop it then"
                )
            rows, last = await self._values_behind(connection, gone, after)
            removed = 0
            for some in chunks([(instance_id, value) for instance_id, value, _ in rows], KEYS_PER_STATEMENT):
                these = any_of((input_values.c.instance_id, input_values.c.value), some)
                removed += int((await connection.execute(delete(input_values).where(these))).rowcount)
        return removed, last


async def _turn(connection: AsyncConnection) -> None:
    """Who names a path or drops one waits for who is about it, until its transaction is over. SQLite has one writer
    anyway."""
    await connection.execute(select(meta.c.value).where(meta.c.name == TURN).with_for_update())


async def _tell_owners(connection: AsyncConnection) -> None:
    """Each takes its partitions over from itself, and learns by that which paths there are."""
    await connection.execute(update(partitions).values(epoch=partitions.c.epoch + 1))


async def insert_values(connection: AsyncConnection, dialect: str, rows: Sequence[ValueRow]) -> None:
    names = [column.name for column in input_values.columns]
    if rows:
        values = [dict(zip(names, row, strict=True)) for row in sorted(rows)]
        await connection.execute(insert_missing(input_values, dialect), values)


def _filled() -> Any:
    return select(searchable.c.path).where(searchable.c.filled_us.is_not(None))


async def marks_kept(connection: AsyncConnection, filters: Sequence[InputFilter]) -> list[int]:
    """Of the filters whose rows are all there."""
    kept = set((await connection.execute(_filled())).scalars())
    return [mark_of(wanted) for wanted in filters if wanted.path in kept]
