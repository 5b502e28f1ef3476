"""The read side of the store: instances and how to find them, histories, activities, dead letters. A part of the
store, on top of `Projections`; it reads, and writes nothing but the mark that a dead letter was replayed.

Searches: the database narrows, Python decides what matches (see `paths`). Names and ids match regardless of the case
of ASCII letters; other letters match as they are, because that is what all three databases can do.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    Table,
    TextClause,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from romancy_stream.engine.commit import ActivityRow, InstanceRow
from romancy_stream.engine.fields import storable
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.errors import InvalidPageTokenError
from romancy_stream.store import pages, paths, selects, sorts, tables
from romancy_stream.store.database import POSTGRESQL, SQLITE
from romancy_stream.store.keys import IDS_PER_STATEMENT, chunks
from romancy_stream.store.port import DeadLetterRow, InstancePage, InstanceQuery
from romancy_stream.store.projections import Projections
from romancy_stream.store.searchable import marks_kept
from romancy_stream.wire.event import RESERVED_PREFIX

RUN_MAX: Final = 2**31 - 1  # what the column holds
FEW: Final = 500
"""Rows that are looked for by what stands in their input, whatever their order: a few milliseconds. Where there are
more, the next page of 50 is not far along the index of starts: a tenth of the table, where they lie evenly."""
# How often a value stands in the inputs is known of the value only, never in general. Ends with the transaction.
_PLAN_EACH: Final = text("SELECT set_config('plan_cache_mode', 'force_custom_plan', true)")

Condition: TypeAlias = ColumnElement[bool] | TextClause

_ASCII_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Readers(Projections):
    """A part of the store; `db` is the store's database."""

    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        table = tables.instances
        found = select(*selects.columns(table, InstanceRow, self.db.dialect)).where(table.c.instance_id == instance_id)
        rows = await self._read("get instance", found) if storable(instance_id) else ()
        return next(map(selects.instance_row, rows), None)

    async def list_instances(self, query: InstanceQuery) -> InstancePage:
        """Raises ValueError (limit, a filter's value), InvalidPathError, InvalidPageTokenError."""
        search = _Search.of(query)
        if search.impossible:
            return InstancePage([], None)
        rows: list[InstanceRow] = []
        async with (
            self.db.reading("list instances") as connection,
            contextlib.aclosing(await self._found(connection, search)) as found,
        ):
            async for some in found:  # more than once where Python turned rows down
                rows += filter(search.matches, some)
                if len(rows) > query.limit:  # one more than asked for tells whether there are more
                    break
        return _page(rows, query.limit, search.fingerprint)

    async def _found(self, connection: AsyncConnection, search: _Search) -> AsyncGenerator[list[InstanceRow]]:
        """Rows in the order of the list, by the way that is shortest."""
        if search.filters and self.db.dialect != POSTGRESQL:
            kept = await marks_kept(connection, search.filters)
            if kept:
                return self._by_value(connection, search, await _rarest(connection, kept))
        if search.is_by_sort:
            if self.db.dialect != SQLITE:  # of one moment: an instance may go from one sort to another meanwhile
                await connection.execution_options(isolation_level="REPEATABLE READ")
            among = sorts.statuses(search.query.status, search.query.finished)
            there = await sorts.sorts(connection, among)
            if there is not None:
                wanted = [each for each in there if search.has_name(each[1])]
                if len(wanted) <= sorts.SORTS_MAX:
                    return self._by_sort(connection, search, wanted) if wanted else _nothing()
        few = await self._few(connection, search)
        if few is not None:
            return self._by_key(connection, few, search.query.limit)
        return self._in_order(connection, search)

    def _by_value(self, connection: AsyncConnection, search: _Search, mark: int) -> AsyncGenerator[list[InstanceRow]]:
        """Along the index of what stands in inputs."""
        values, dialect = tables.input_values, self.db.dialect

        async def keys(after: pages.Cursor | None, size: int) -> Sequence[sorts.Key]:
            wanted = values.c.value == mark, *search.started(values), *_behind(after, dialect, values)
            found = select(values.c.started_us, values.c.instance_id).where(*wanted)
            page = await connection.execute(found.order_by(*_newest_first(values.c, dialect)).limit(size))
            return [(row.started_us, row.instance_id) for row in page]

        return self._along(connection, search, keys)

    def _by_sort(
        self, connection: AsyncConnection, search: _Search, found: Sequence[sorts.Sort]
    ) -> AsyncGenerator[list[InstanceRow]]:
        """Along the index of statuses and workflows."""
        times = (search.query.started_after_us, search.query.started_before_us)
        from_us, until_us = (None if time_us is None else _int64(time_us) for time_us in times)

        async def keys(after: pages.Cursor | None, size: int) -> Sequence[sorts.Key]:
            return await sorts.newest(connection, found, sorts.Bounds(from_us, until_us, after), size)

        return self._along(connection, search, keys)

    async def _along(
        self,
        connection: AsyncConnection,
        search: _Search,
        keys: Callable[[pages.Cursor | None, int], Awaitable[Sequence[sorts.Key]]],
    ) -> AsyncGenerator[list[InstanceRow]]:
        """An index, newest first, more at a time each time. `keys`: the next of it."""
        after, size = search.after, search.query.limit + 1
        while True:
            page = await keys(after, size)
            async for rows in self._by_key(connection, [instance_id for _, instance_id in page], size):
                yield rows
            if len(page) < size:
                return
            after = pages.Cursor(*page[-1])
            size = min(2 * size, pages.PAGE_ROWS_MAX)

    async def _in_order(self, connection: AsyncConnection, search: _Search) -> AsyncGenerator[list[InstanceRow]]:
        """Along the index of starts, newest first, more at a time each time."""
        table, dialect = tables.instances, self.db.dialect
        order = _newest_first(table.c, dialect)
        every = (
            select(*selects.columns(table, InstanceRow, dialect)).where(*search.conditions(dialect)).order_by(*order)
        )
        after, size = search.after, search.query.limit + 1
        while True:
            found = every.where(*_behind(after, dialect)).limit(size)
            rows = [selects.instance_row(row) for row in (await connection.execute(found)).all()]
            yield rows
            if len(rows) < size:
                return
            after = pages.Cursor(rows[-1].started_us, rows[-1].instance_id)
            size = min(2 * size, pages.PAGE_ROWS_MAX)

    async def _few(self, connection: AsyncConnection, search: _Search) -> list[str] | None:
        """Ids in the order of the list, where an index of inputs knows that they are few. None: it does not, and then
        the next page is not far on the way along the index of starts."""
        table, dialect = tables.instances, self.db.dialect
        if not search.filters or dialect != POSTGRESQL:  # which has an index of all inputs
            return None
        await connection.execute(_PLAN_EACH)
        found = select(table.c.started_us, table.c.instance_id).where(
            *search.conditions(dialect), *_behind(search.after, dialect)
        )
        keys = [tuple(row) for row in await connection.execute(found.limit(FEW + 1))]
        if len(keys) > FEW:
            return None
        keys.sort(key=lambda key: (key[0], key[1].encode()), reverse=True)
        return [instance_id for _, instance_id in keys]

    async def _by_key(
        self, connection: AsyncConnection, ids: Sequence[str], limit: int
    ) -> AsyncGenerator[list[InstanceRow]]:
        """One that was deleted meanwhile is left out."""
        table = tables.instances
        for some in chunks(ids, min(limit + 1, IDS_PER_STATEMENT)):
            found = select(*selects.columns(table, InstanceRow, self.db.dialect)).where(table.c.instance_id.in_(some))
            rows = {row.instance_id: row for row in map(selects.instance_row, await connection.execute(found))}
            yield [rows[instance_id] for instance_id in some if instance_id in rows]

    async def history(self, instance_id: str, run: int | None = None) -> Sequence[HistoryEvent]:
        """By seq; of the current run where `run` is None. Empty for what does not exist."""
        table = tables.history
        found = self._of_run(table, HistoryEvent, instance_id, run).order_by(table.c.seq)
        return [selects.history_event(row) for row in await self._read_of_run("read history", found, instance_id, run)]

    async def activities(self, instance_id: str, run: int | None = None) -> Sequence[ActivityRow]:
        """In the order in which they were scheduled; of the current run where `run` is None."""
        table = tables.activities
        activity_id = _bytewise(table.c.activity_id, self.db.dialect)
        found = self._of_run(table, ActivityRow, instance_id, run).order_by(table.c.scheduled_us, activity_id)
        return [
            selects.activity_row(row) for row in await self._read_of_run("list activities", found, instance_id, run)
        ]

    def _of_run(self, table: Any, shape: type[Any], instance_id: str, run: int | None) -> Select[Any]:
        # The log knows the current run even while the projection is being rebuilt, and without any activity in it.
        log = tables.history.alias("log")
        current = select(func.max(log.c.run)).where(log.c.instance_id == instance_id).scalar_subquery()
        return select(*selects.columns(table, shape, self.db.dialect)).where(
            table.c.instance_id == instance_id, table.c.run == (current if run is None else run)
        )

    async def _read_of_run(
        self, doing: str, found: Select[Any], instance_id: str, run: int | None
    ) -> Sequence[selects.Row]:
        if not storable(instance_id) or (run is not None and not 0 <= run <= RUN_MAX):
            return ()
        return await self._read(doing, found)

    async def dead_letters(self, limit: int, before: str | None = None) -> Sequence[DeadLetterRow]:
        """Newest first. `before` is the last `dlq_id` of the page before; InvalidPageTokenError when there is no such
        dead letter. ValueError: limit."""
        pages.check_limit(limit)
        table, dialect = tables.dead_letters, self.db.dialect
        order = (table.c.at_us, _bytewise(table.c.topic, dialect), table.c.part, table.c.record_offset)
        found = select(*selects.DEAD_LETTER_COLUMNS).order_by(*(column.desc() for column in order)).limit(limit)
        if before is not None:
            last = await self.dead_letter(before)
            if last is None:
                raise InvalidPageTokenError(f"no dead letter has the id {before!r}")
            place = (last.at_us, last.topic, last.partition, last.offset)
            bound = tuple_(*(literal(value, column.type) for value, column in zip(place, order, strict=True)))
            found = found.where(table.c.at_us <= last.at_us, tuple_(*order) < bound)
        return [selects.dead_letter_row(row) for row in await self._read("list dead letters", found)]

    async def dead_letter(self, dlq_id: str) -> DeadLetterRow | None:
        key = selects.parse_dlq_id(dlq_id) if storable(dlq_id) else None
        if key is None:
            return None
        found = select(*selects.DEAD_LETTER_COLUMNS).where(*_is_dead_letter(key))
        return next(map(selects.dead_letter_row, await self._read("get dead letter", found)), None)

    async def mark_replayed(self, dlq_id: str, at_us: int) -> None:
        """Does nothing where the dead letter is gone: somebody may have deleted it since it was read."""
        key = selects.parse_dlq_id(dlq_id) if storable(dlq_id) else None
        if key is None:
            return
        async with self.db.writing("mark dead letter") as connection:
            await connection.execute(update(tables.dead_letters).where(*_is_dead_letter(key)).values(replayed_us=at_us))

    async def forget_rejection(self, event_source: str, event_id: str) -> None:
        rejected = tables.rejections.c
        async with self.db.writing("forget a rejection") as connection:
            await connection.execute(
                delete(tables.rejections).where(rejected.event_source == event_source, rejected.event_id == event_id)
            )

    async def _read(self, doing: str, found: Select[Any]) -> Sequence[selects.Row]:
        async with self.db.reading(doing) as connection:
            rows: Sequence[selects.Row] = (await connection.execute(found)).all()
            return rows


@dataclass(frozen=True, slots=True)
class _Search:
    """An InstanceQuery that was checked."""

    query: InstanceQuery
    filters: tuple[paths.InputFilter, ...]
    fingerprint: str
    after: pages.Cursor | None

    @classmethod
    def of(cls, query: InstanceQuery) -> _Search:
        pages.check_limit(query.limit)
        filters = paths.parse_filters(query.input or {})
        mark = pages.fingerprint(query, filters)
        after = None if query.page_token is None else pages.read_token(query.page_token, mark)
        return cls(query, filters, mark, after)

    @property
    def impossible(self) -> bool:
        """A filter asks for text that no database stores, and some refuse to be asked for."""
        texts = (self.query.workflow_name, self.query.status, self.query.instance_id, self.query.parent_id)
        return any(wanted.impossible for wanted in self.filters) or not all(
            storable(text) for text in texts if text is not None
        )

    @property
    def is_by_sort(self) -> bool:
        """It asks for a workflow, a status or open ones, and for nothing that few of such instances may have."""
        query = self.query
        few = (query.input or None, query.instance_id, query.parent_id, query.parked, query.finished_before_us)
        asked = query.workflow_name is not None or query.status is not None or query.finished is False
        return asked and all(each is None for each in few)

    def has_name(self, workflow: str) -> bool:
        query = self.query
        hidden = query.hides and workflow.startswith(RESERVED_PREFIX)
        return not hidden and (query.workflow_name is None or _fold(query.workflow_name) in _fold(workflow))

    def conditions(self, dialect: str) -> list[Condition]:
        """True at least for all rows that `matches` accepts."""
        query, table = self.query, tables.instances
        found: list[Condition] = [
            paths.predicate(wanted, number, dialect) for number, wanted in enumerate(self.filters)
        ]
        if query.workflow_name is not None:
            found.append(_contains(table.c.workflow, query.workflow_name, dialect))
        if query.hides:
            found.append(func.substr(table.c.workflow, 1, len(RESERVED_PREFIX)) != RESERVED_PREFIX)
        if query.instance_id is not None:
            found.append(_contains(table.c.instance_id, query.instance_id, dialect))
        if query.status is not None:
            found.append(table.c.status == query.status)
        found += self.started(table)
        if query.finished_before_us is not None:
            found.append(table.c.finished_us < _int64(query.finished_before_us))
        if query.finished is not None:
            found.append(table.c.finished_us.is_not(None) if query.finished else table.c.finished_us.is_(None))
        if query.parent_id is not None:
            found.append(table.c.parent_id == query.parent_id)
        if query.parked is not None:
            found.append(table.c.parked.is_not(None) if query.parked else table.c.parked.is_(None))
        return found

    def started(self, table: Table) -> list[ColumnElement[bool]]:
        query = self.query
        found: list[ColumnElement[bool]] = []
        if query.started_after_us is not None:
            found.append(table.c.started_us >= _int64(query.started_after_us))
        if query.started_before_us is not None:
            found.append(table.c.started_us < _int64(query.started_before_us))
        return found

    def matches(self, row: InstanceRow) -> bool:
        query = self.query
        document = paths.read_document(row.input) if self.filters else None
        before_us = query.finished_before_us
        return (
            (query.status is None or row.status == query.status)
            and self.has_name(row.workflow)
            and (query.instance_id is None or _fold(query.instance_id) in _fold(row.instance_id))
            and (query.started_after_us is None or row.started_us >= query.started_after_us)
            and (query.started_before_us is None or row.started_us < query.started_before_us)
            and (before_us is None or (row.finished_us is not None and row.finished_us < before_us))
            and (query.finished is None or query.finished == (row.finished_us is not None))
            and (query.parent_id is None or row.parent_id == query.parent_id)
            and (query.parked is None or query.parked == (row.parked is not None))
            and all(wanted.matches(document) for wanted in self.filters)
        )


def _page(rows: list[InstanceRow], limit: int, fingerprint: str) -> InstancePage:
    if len(rows) <= limit:
        return InstancePage(rows, None)
    last = rows[limit - 1]
    return InstancePage(rows[:limit], pages.make_token(pages.Cursor(last.started_us, last.instance_id), fingerprint))


async def _rarest(connection: AsyncConnection, marks: Sequence[int]) -> int:
    """Of those, the one with the fewest rows, as far as it pays to count."""
    if len(marks) == 1:
        return marks[0]
    counts = []
    for mark in marks:
        some = select(tables.input_values.c.instance_id).where(tables.input_values.c.value == mark).limit(FEW)
        counts.append((await connection.execute(select(func.count()).select_from(some.subquery()))).scalar_one())
    return marks[counts.index(min(counts))]


def _behind(after: pages.Cursor | None, dialect: str, table: Table = tables.instances) -> list[ColumnElement[bool]]:
    if after is None:
        return []
    started, instance_id = table.c.started_us, _bytewise(table.c.instance_id, dialect)
    return [started <= after.started_us, or_(started < after.started_us, instance_id < after.instance_id)]


async def _nothing() -> AsyncGenerator[list[InstanceRow]]:
    yield []


def _newest_first(columns: ReadOnlyColumnCollection[str, Any], dialect: str) -> tuple[ColumnElement[Any], ...]:
    return columns["started_us"].desc(), _bytewise(columns["instance_id"], dialect).desc()


def _bytewise(column: ColumnElement[str], dialect: str) -> ColumnElement[str]:
    """For an order that is the same on every database. The others' columns have it anyway."""
    return column.collate("C") if dialect == "postgresql" else column


def _contains(column: Column[str], part: str, dialect: str) -> ColumnElement[bool]:
    """No LIKE, so no character of `part` means anything but itself. MariaDB's LOWER knows more letters than ASCII's:
    `matches` has the last word."""
    if dialect == "postgresql":
        return func.strpos(func.lower(column.collate("C")), _fold(part)) > 0
    if dialect == "sqlite":
        return func.instr(func.lower(column), _fold(part)) > 0
    return func.locate(func.lower(part), func.lower(column)) > 0


def _fold(value: str) -> str:
    return value.translate(_ASCII_LOWER)


def _int64(value: int) -> int:
    return max(pages.INT64_MIN, min(value, pages.INT64_MAX))


def _is_dead_letter(key: tuple[str, int, int]) -> tuple[ColumnElement[bool], ...]:
    table = tables.dead_letters
    topic, partition, offset = key
    return table.c.topic == topic, table.c.part == partition, table.c.record_offset == offset
