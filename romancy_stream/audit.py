"""Does every projected row follow from the log? `verify` folds each history again and compares, `rebuild` puts the
rows that the log asks for in the place of those that are there. Both may run beside working engines; they read and
write through the store and touch instances, activities and timers only (and, to keep engines out, epochs).

Verify has no snapshot over log and tables. It reads the log, the rows, and where they disagree the log again: a
commit writes both at once, so a log that did not move in between means that the rows are wrong, and one that did
means that the instance is looked at anew.

Rebuild takes the partitions over first, so that no engine can commit any more, and writes each page of rows in a
transaction that fails when somebody took a partition back. An engine that runs notices at its next commit, drops what
it has in memory and loads the new rows.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields
from decimal import Decimal
from itertools import groupby
from typing import Any, Final, Literal

from sqlalchemy import func, select, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import ActivityRow, InstanceRow, TimerRow
from romancy_stream.engine.history import WORKFLOW_STARTED, HistoryEvent
from romancy_stream.engine.projection import fold
from romancy_stream.errors import BrokenLogError, ConfigurationError, FencedError
from romancy_stream.store import tables
from romancy_stream.store.database import Database
from romancy_stream.store.keys import chunks
from romancy_stream.store.projections import Projections
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.partition import partition_for

PAGE_INSTANCES: Final = 200
"""Read, compared and written at once. Histories are held in memory, so this times the longest of them."""
READINGS_LIMIT: Final = 20
"""How often an instance that keeps moving is looked at before it counts as unsettled. A reading takes milliseconds."""
DIFFERENCES_LIMIT: Final = 10_000
"""Then verify stops: a table that is gone altogether need not be listed row by row."""
TAKEOVERS_LIMIT: Final = 20
"""How often rebuild takes the partitions back from engines that come again, per page, before it gives up."""

Row = InstanceRow | ActivityRow | TimerRow
Key = tuple[str, tuple[str | int, ...]]  # table, primary key
Histories = Mapping[str, Sequence[HistoryEvent]]
Kind = Literal["differs", "missing", "unexpected", "unreadable"]

_TABLES: Final[Mapping[type[Any], str]] = {
    InstanceRow: tables.instances.name,
    ActivityRow: tables.activities.name,
    TimerRow: tables.timers.name,
}
_KEYS: Final[Mapping[type[Any], tuple[str, ...]]] = {
    InstanceRow: ("instance_id",),
    ActivityRow: ("instance_id", "run", "activity_id"),
    TimerRow: ("instance_id", "run", "timer_id"),
}


@dataclass(frozen=True, slots=True)
class ColumnDifference:
    """JSON as raw text in bytes."""

    column: str
    expected: Any
    actual: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One row. `key` is its primary key, which begins with the instance id. `kind`: "differs" (in `columns`),
    "missing" (the log asks for it), "unexpected" (the log does not), or "unreadable": a history that cannot be folded,
    for the reason in `detail`; its rows were not compared."""

    table: str
    key: tuple[str | int, ...]
    kind: Kind
    columns: tuple[ColumnDifference, ...] = ()
    detail: str | None = None

    @property
    def instance_id(self) -> str:
        return str(self.key[0])


@dataclass(frozen=True, slots=True)
class Report:
    """`instances` and `rows`: how many were compared. `unsettled`: ids that disagreed and moved at each of
    READINGS_LIMIT readings. `complete` False: stopped at DIFFERENCES_LIMIT."""

    instances: int
    rows: int
    differences: tuple[Difference, ...]
    unsettled: tuple[str, ...] = ()
    complete: bool = True

    @property
    def clean(self) -> bool:
        return not self.differences and not self.unsettled


async def verify(store: SqlStore, ids: Sequence[str] | None = None) -> Report:
    """Of all instances, or of `ids`. Ids without a log and without rows are not counted. Changes nothing."""
    comparison = _Comparison(store, await _partitions(store))
    async for histories in _pages(store, ids):
        await comparison.take(histories)
        if len(comparison.differences) >= DIFFERENCES_LIMIT:
            return comparison.report(complete=False)
    return comparison.report(complete=True)


async def rebuild(store: SqlStore, ids: Sequence[str] | None = None) -> int:
    """Makes the rows of all instances, or of `ids`, anew from the log, and removes rows that have no log. Returns the
    number of instances that have one. BrokenLogError, when all others are done: a history cannot be folded, and
    rows of that instance stayed as they were. FencedError: engines took the partitions back at every attempt."""
    partitions = await _partitions(store)
    parts = range(partitions) if ids is None else sorted({_part(each, partitions) for each in ids})
    fence = _Fence(store, parts)
    await fence.take()
    done = 0
    broken: list[str] = []
    async for histories in _pages(store, ids):
        for attempt in range(TAKEOVERS_LIMIT):
            try:
                good, bad = await fence.replace(histories, partitions)
                break
            except FencedError:
                if attempt + 1 == TAKEOVERS_LIMIT:
                    raise
            await fence.take()
            histories = await _histories(store, list(histories))
        done += good
        broken += bad
    if broken:
        raise BrokenLogError(
            f"the log of {len(broken)} instance(s) cannot be read, their rows stayed as they were: "
            f"{', '.join(broken[:5])}; `verify` says why"
        )
    return done


# -- the log, and the rows that follow from it -----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a history cannot be folded."""

    reason: str


def expected_rows(events: Sequence[HistoryEvent], part: int) -> list[Row] | Unreadable:
    """The rows of one instance; `events` of all its runs, by (run, seq)."""
    rows: list[Row] = []
    instance: InstanceRow | None = None
    for run, group in groupby(events, lambda event: event.run):
        of_run = list(group)
        if flaw := _flaw(of_run):
            return Unreadable(f"run {run}: {flaw}")
        try:
            state = fold(of_run, part)
        except Exception as error:
            return Unreadable(f"run {run}: {type(error).__name__}: {error}")
        instance = state.row()
        rows += [state.activity_row(activity) for activity in state.changed.values()]
        rows += [state.timer_row(timer_id) for timer_id in state.timers]
    return rows if instance is None else [instance, *rows]


def _flaw(events: Sequence[HistoryEvent]) -> str | None:
    for number, event in enumerate(events, 1):
        if event.seq != number:
            return f"event {number} is missing, the next one is {event.seq}"
        if (event.kind == WORKFLOW_STARTED) != (number == 1):
            return f"event {number} is {event.kind}"
    return None


def _part(instance_id: str, partitions: int) -> int:
    return partition_for(instance_id.encode(), partitions)


async def _partitions(store: SqlStore) -> int:
    async with store.db.reading("count partitions") as connection:
        count = (await connection.execute(select(func.count()).select_from(tables.partitions))).scalar_one()
    if not count:
        raise ConfigurationError("this database has no partitions yet: no engine was ever set up on it")
    return int(count)


async def _pages(store: SqlStore, ids: Sequence[str] | None) -> AsyncIterator[Histories]:
    """An id without a log has an empty history; without `ids` that is one that has rows all the same."""
    if ids is None:
        async for page in store.scan_histories(PAGE_INSTANCES):
            yield page
        async for strays in _strays(store):
            yield dict.fromkeys(strays, ())
    else:
        for some in chunks(list(dict.fromkeys(ids)), PAGE_INSTANCES):
            yield await _histories(store, some)


async def _histories(store: SqlStore, ids: Sequence[str]) -> Histories:
    """All runs. Asks the log alone: the question which run is the current one must not depend on the projection."""
    logs = await store.whole_histories(ids)
    return {instance_id: logs.get(instance_id, ()) for instance_id in ids}


async def _strays(store: SqlStore) -> AsyncIterator[Sequence[str]]:
    """Ids that have rows and no log. Each page is one statement, so that an instance which begins is never one."""
    log = tables.history.alias("log")
    last: str | None = None
    while True:
        places = []
        for table in (tables.instances, tables.activities, tables.timers):
            logged = select(log.c.seq).where(log.c.instance_id == table.c.instance_id).exists()
            ids = select(table.c.instance_id).where(~logged)
            places.append(ids if last is None else ids.where(table.c.instance_id > last))
        found = union(*places).subquery()
        page = select(found.c.instance_id).order_by(found.c.instance_id).limit(PAGE_INSTANCES)
        async with store.db.reading("look for rows without a log") as connection:
            strays = [str(instance_id) for instance_id in (await connection.execute(page)).scalars()]
        if not strays:
            return
        yield strays
        last = strays[-1]


# -- comparing -------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Comparison:
    store: SqlStore
    partitions: int
    instances: int = 0
    rows: int = 0
    differences: list[Difference] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)

    def report(self, *, complete: bool) -> Report:
        differences = tuple(self.differences[:DIFFERENCES_LIMIT])
        return Report(self.instances, self.rows, differences, tuple(self.unsettled), complete)

    async def take(self, histories: Histories) -> None:
        suspects = histories
        for reading in range(READINGS_LIMIT):
            projected = await self._projected(list(suspects))
            if reading == 0:
                self.rows += sum(map(len, projected.values()))
                self.instances += sum(1 for each in suspects if suspects[each] or each in projected)
            found = {each: self._compare(each, suspects[each], projected.get(each, {})) for each in suspects}
            found = {each: differences for each, differences in found.items() if differences}
            again = await _histories(self.store, list(found))
            for instance_id, differences in found.items():
                if _end(again[instance_id]) == _end(suspects[instance_id]):
                    self.differences += differences
            suspects = {each: again[each] for each in found if _end(again[each]) != _end(suspects[each])}
            if not suspects:
                return
        self.unsettled += suspects

    async def _projected(self, ids: Sequence[str]) -> Mapping[str, Mapping[Key, Row]]:
        by_instance: dict[str, dict[Key, Row]] = defaultdict(dict)
        for rows in await self.store.projected(ids):
            for row in rows:
                by_instance[row.instance_id][_key(row)] = row
        return by_instance

    def _compare(self, instance_id: str, events: Sequence[HistoryEvent], actual: Mapping[Key, Row]) -> list[Difference]:
        wanted = expected_rows(events, _part(instance_id, self.partitions))
        if isinstance(wanted, Unreadable):
            return [Difference(tables.history.name, (instance_id,), "unreadable", (), wanted.reason)]
        expected = {_key(row): row for row in wanted}
        differences = []
        for table, key in [*expected, *(key for key in actual if key not in expected)]:
            left, right = expected.get((table, key)), actual.get((table, key))
            if right is None:
                differences.append(Difference(table, key, "missing"))
            elif left is None:
                differences.append(Difference(table, key, "unexpected"))
            elif columns := _columns(left, right):
                differences.append(Difference(table, key, "differs", columns))
        return differences


def _end(events: Sequence[HistoryEvent]) -> tuple[int, int, int]:
    """Another commit, another end: the log only grows."""
    return (len(events), events[-1].run, events[-1].seq) if events else (0, 0, 0)


def _key(row: Row) -> Key:
    shape = type(row)
    return _TABLES[shape], tuple(getattr(row, name) for name in _KEYS[shape])


def _columns(expected: Row, actual: Row) -> tuple[ColumnDifference, ...]:
    pairs = ((each.name, getattr(expected, each.name), getattr(actual, each.name)) for each in fields(expected))
    return tuple(ColumnDifference(name, left, right) for name, left, right in pairs if not _same(left, right))


def _same(left: Any, right: Any) -> bool:
    if left == right:
        return True
    return isinstance(left, bytes) and isinstance(right, bytes) and json_equal(left, right)


def json_equal(left: bytes, right: bytes) -> bool:
    """Whether two JSON texts are one value: the order of keys and how a number is written do not count (PostgreSQL
    keeps neither), every digit of it does. The last of repeated keys counts."""
    try:
        return _equal(_parse(left), _parse(right))
    except (ValueError, ArithmeticError, RecursionError):  # no JSON, 1e(nineteen digits), or a thousand levels deep
        return left == right


def _parse(text: bytes) -> object:
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


def _equal(left: object, right: object) -> bool:
    if type(left) is not type(right):  # True is 1, for Python
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


# -- replacing -------------------------------------------------------------------------------------------------------
async def fence_off(store: SqlStore, parts: Sequence[int], owner: str) -> Mapping[int, int]:
    """Raises the epochs, so that no engine that owns one of the partitions now can commit any more, and returns them.
    Unlike an engine's takeover it is no sign that an owner died: what they suspect their last input of is forgotten."""
    table = tables.partitions
    mine = table.c.part.in_(parts)
    locked = select(table.c.part, table.c.epoch).where(mine).order_by(table.c.part).with_for_update()
    async with store.db.writing("take partitions over") as connection:
        epochs = {int(row.part): int(row.epoch) + 1 for row in await connection.execute(locked)}
        raised = {"epoch": table.c.epoch + 1, "owner": owner, "stalls": 0, "suspect": None}
        await connection.execute(update(table).where(mine).values(raised))
    return epochs


class _Fence:
    """Ownership of the partitions as an engine would have it, for as long as nobody takes it."""

    def __init__(self, store: SqlStore, parts: Sequence[int]) -> None:
        self._store = store
        self._parts = list(parts)
        self._owner = f"rebuild/{uuid.uuid4().hex}"
        self._epochs: Mapping[int, int] = {}

    async def take(self) -> None:
        self._epochs = await fence_off(self._store, self._parts, self._owner)

    async def replace(self, histories: Histories, partitions: int) -> tuple[int, list[str]]:
        """The histories must have been read after `take`. Returns how many instances have a log that was folded, and
        the ids of those whose cannot be. FencedError: nothing was written."""
        rows: list[Row] = []
        broken = []
        for instance_id, events in histories.items():
            wanted = expected_rows(events, _part(instance_id, partitions))
            if isinstance(wanted, Unreadable):
                broken.append(instance_id)
            else:
                rows += wanted
        instances = [row for row in rows if isinstance(row, InstanceRow)]
        await _FencedProjections(self._store.db, self._epochs).replace_projections(
            [each for each in histories if each not in broken],
            instances,
            [row for row in rows if isinstance(row, ActivityRow)],
            [row for row in rows if isinstance(row, TimerRow)],
        )
        return len(instances), broken


class _FencedProjections(Projections):
    """The store's own writer of projections, behind the fence."""

    def __init__(self, db: Database, epochs: Mapping[int, int]) -> None:
        self.db = _FencedDatabase(db, epochs)


class _FencedDatabase:
    """Implements `selects.Connections`. A transaction that writes begins with the partitions' rows locked and their
    epochs as they were; FencedError otherwise."""

    def __init__(self, db: Database, epochs: Mapping[int, int]) -> None:
        self._db = db
        self._epochs = dict(epochs)

    @property
    def dialect(self) -> str:
        return self._db.dialect

    def reading(self, doing: str) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._db.reading(doing)

    @contextlib.asynccontextmanager
    async def writing(self, doing: str) -> AsyncIterator[AsyncConnection]:
        part, epoch = tables.partitions.c.part, tables.partitions.c.epoch
        owned = select(part, epoch).where(part.in_(self._epochs)).order_by(part).with_for_update()
        async with self._db.writing(doing) as connection:
            found = {row.part: row.epoch for row in await connection.execute(owned)}
            if found != self._epochs:
                raise FencedError(
                    "an engine took its partitions back while rows were made anew: stop the engines, or try again"
                )
            yield connection
