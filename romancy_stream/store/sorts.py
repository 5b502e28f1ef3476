"""Lists by workflow and status: an index knows the instances of each sort, which is a status and a workflow, by the
time of their start. There are few sorts however many instances there are, so a part of a workflow's name is compared
with those that there are, and a page is put together from the newest of each sort. Part of the readers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ARRAY, Text, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from romancy_stream.engine.commit import FINISHED, RECURRED, RESET
from romancy_stream.store.database import MYSQL, POSTGRESQL
from romancy_stream.store.pages import Cursor
from romancy_stream.store.versions import OPEN

STATUSES: Final = (*OPEN, *sorted(FINISHED), RECURRED, RESET)
"""All that an instance can have."""
WORKFLOWS_MAX: Final = 100
"""Of one status. One step along the index each, some 10 µs, for every list."""
SORTS_MAX: Final = 200
"""That a page is put together from, some 20 µs each."""
ROWS_AT_ONCE: Final = 500
"""Of all sorts together, a millisecond: it does not pay to ask twice for less."""
STATEMENTS_CACHED: Final = 256  # texts differ by limit, bounds and, but on PostgreSQL, by how many sorts there are

_NAMED: Final = re.compile(":([a-z_]+)")

Sort = tuple[str, str]  # status, workflow
Key = tuple[int, str]  # started_us, instance_id


def statuses(status: str | None, finished: bool | None) -> list[str]:
    """Those that instances may have which are asked for."""
    without = () if finished is None else OPEN if finished else FINISHED
    return [each for each in (STATUSES if status is None else [status]) if each not in without]


async def sorts(connection: AsyncConnection, among: Sequence[str]) -> list[Sort] | None:
    """Those that there are, of these statuses. None: more workflows than WORKFLOWS_MAX have one of them."""
    if not among:
        return []
    binds: dict[str, Any] = {f"status_{number}": status for number, status in enumerate(among)}
    if connection.dialect.name == MYSQL:
        statement, binds["rows"] = _groups(len(among)), WORKFLOWS_MAX * len(among) + 1
    else:
        statement, binds["rows"] = _steps(len(among)), WORKFLOWS_MAX
    found = [(row.status, row.workflow) for row in await connection.execute(statement, binds)]
    return None if max(Counter(status for status, _ in found).values(), default=0) > WORKFLOWS_MAX else found


@lru_cache(maxsize=len(STATUSES))
def _groups(count: int) -> TextClause:
    """MySQL skips along an index by itself, and does not where it is told how."""
    marks = ", ".join(f":status_{number}" for number in range(count))
    return text(
        "SELECT status, workflow FROM romancy_instances "
        f"WHERE status IN ({marks}) GROUP BY status, workflow LIMIT :rows"
    )


@lru_cache(maxsize=len(STATUSES))
def _steps(count: int) -> TextClause:
    """From the first workflow of each status to the next one, as long as there is one. Text: to put it together anew
    for each list would take longer than to run it."""
    first = " UNION ALL ".join(
        "SELECT status, workflow, 1 FROM (SELECT status, workflow FROM romancy_instances "
        f"WHERE status = :status_{number} ORDER BY workflow LIMIT 1) AS first_{number}"
        for number in range(count)
    )
    following = (
        "SELECT more.workflow FROM romancy_instances more WHERE more.status = known.status "
        "AND more.workflow > known.workflow ORDER BY more.workflow LIMIT 1"
    )
    return text(
        f"WITH RECURSIVE known (status, workflow, number) AS ({first} UNION ALL "
        f"SELECT status, ({following}), number + 1 FROM known WHERE workflow IS NOT NULL AND number <= :rows) "
        "SELECT status, workflow FROM known WHERE workflow IS NOT NULL"
    )


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the starts that are asked for: [from, until), and behind the last row of the page before."""

    from_us: int | None
    until_us: int | None
    behind: Cursor | None

    def binds(self) -> dict[str, Any]:
        found: dict[str, Any] = {"from_us": self.from_us, "until_us": self.until_us}
        if self.behind is not None:
            found |= {"behind_us": self.behind.started_us, "behind_id": self.behind.instance_id}
        return {name: value for name, value in found.items() if value is not None}


async def newest(connection: AsyncConnection, of: Sequence[Sort], bounds: Bounds, size: int) -> list[Key]:
    """The first `size` rows of these sorts within the bounds, newest first."""
    each = size if len(of) * size <= ROWS_AT_ONCE else math.isqrt(size * size // len(of)) + 1
    found = await _first_of_each(connection, of, bounds, min(each, size))
    keys = _in_order(found)[:size]
    if each < size:  # of which only a few can have more that belong here: of each of them all we have do
        worst = _place(keys[-1]) if len(keys) == size else None
        more = [of[n] for n, its in enumerate(found) if len(its) == each and (not worst or _place(its[-1]) > worst)]
        if more:
            known = [its for one, its in zip(of, found, strict=True) if one not in more]
            keys = _in_order([*known, *await _first_of_each(connection, more, bounds, size)])[:size]
    return keys


async def _first_of_each(connection: AsyncConnection, of: Sequence[Sort], bounds: Bounds, each: int) -> list[list[Key]]:
    """Per sort, in its order."""
    found: list[list[Key]] = [[] for _ in of]
    binds, dialect = bounds.binds(), connection.dialect.name
    if dialect == POSTGRESQL:
        sorts = {"statuses": [status for status, _ in of], "workflows": [workflow for _, workflow in of]}
        rows = await connection.execute(_lateral(frozenset(binds), each), binds | sorts)
    else:  # as the driver has it: SQLAlchemy takes longer for hundreds of values than the database for all the rest
        named = _union(frozenset(binds), each, len(of), "%s" if dialect == MYSQL else "?")
        values = [binds | {"status": status, "workflow": workflow} for status, workflow in of]
        rows = await connection.exec_driver_sql(
            named.statement, tuple(each_of[name] for each_of in values for name in named.names)
        )
    for number, started_us, instance_id in rows:
        found[number].append((started_us, instance_id))
    return [_in_order([its]) for its in found]


def _in_order(found: Sequence[Sequence[Key]]) -> list[Key]:
    return sorted((key for its in found for key in its), key=_place, reverse=True)


def _place(key: Key) -> tuple[int, bytes]:
    """Ids compare byte by byte, as they do in the databases."""
    return key[0], key[1].encode()


# A limit is part of the text: a plan that is made for any limit may be one that reads and sorts a whole sort.


@lru_cache(maxsize=STATEMENTS_CACHED)
def _lateral(bounds: frozenset[str], each: int) -> TextClause:
    """One text for any number of sorts: a union would be planned part by part, each time."""
    instance_id = 'instance_id COLLATE "C"'
    return text(
        "SELECT CAST(sort.number - 1 AS integer), found.started_us, found.instance_id "
        "FROM unnest(:statuses, :workflows) WITH ORDINALITY AS sort (status, workflow, number) CROSS JOIN LATERAL "
        "(SELECT started_us, instance_id FROM romancy_instances i WHERE i.status = sort.status "
        f"AND i.workflow = sort.workflow{_within(bounds, instance_id)} "
        f"ORDER BY started_us DESC, {instance_id} DESC LIMIT {each}) AS found"
    ).bindparams(bindparam("statuses", type_=ARRAY(Text())), bindparam("workflows", type_=ARRAY(Text())))


@dataclass(frozen=True, slots=True)
class _Union:
    statement: str
    names: Sequence[str]  # of the values that each part has marks for


@lru_cache(maxsize=STATEMENTS_CACHED)
def _union(bounds: frozenset[str], each: int, count: int, mark: str) -> _Union:
    where = f"status = :status AND workflow = :workflow{_within(bounds, 'instance_id')}"
    one = (
        "SELECT {}, started_us, instance_id FROM (SELECT started_us, instance_id FROM romancy_instances "
        f"WHERE {_NAMED.sub(mark, where)} ORDER BY started_us DESC, instance_id DESC LIMIT {each}) AS found_{{}}"
    )
    parts = (one.format(number, number) for number in range(count))
    return _Union(" UNION ALL ".join(parts), _NAMED.findall(where))


def _within(bounds: frozenset[str], instance_id: str) -> str:
    conditions = {
        "from_us": "started_us >= :from_us",
        "until_us": "started_us < :until_us",
        "behind_us": f"started_us <= :behind_us AND (started_us < :behind_us OR {instance_id} < :behind_id)",
    }
    return "".join(f" AND {condition}" for name, condition in conditions.items() if name in bounds)
