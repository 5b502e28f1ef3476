"""Lists by workflow and status: an index knows the instances of each sort, which is a status and a workflow, by the
time of their start. There are few sorts however many instances there are, so a part of a workflow's name is compared
with those that there are, and a page is put together from the newest of each sort. Part of the readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, TextClause, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from romancy_stream.engine.commit import FINISHED, RECURRED, RESET
from romancy_stream.store.database import MYSQL
from romancy_stream.store.tables import instances
from romancy_stream.store.versions import OPEN

STATUSES: Final = (*OPEN, *sorted(FINISHED), RECURRED, RESET)
"""All that an instance can have."""
WORKFLOWS_MAX: Final = 100
"""Of one status. One step along the index each, some 10 µs, for every list."""
SORTS_MAX: Final = 200
"""That a page is put together from, some 20 µs each."""

Sort = tuple[str, str]  # status, workflow
Order = Callable[[ReadOnlyColumnCollection[str, Any]], Sequence[ColumnElement[Any]]]


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


def newest(
    of: Sequence[Sort], conditions: Sequence[ColumnElement[bool]], order: Order, size: int
) -> Select[tuple[int, str]]:
    """Times and ids of the first `size` rows of these sorts that meet the conditions. `order`: for such columns."""
    table = instances.c
    each = [
        select(table.started_us, table.instance_id)
        .where(table.status == status, table.workflow == workflow, *conditions)
        .order_by(*order(table))
        .limit(size)
        for status, workflow in of
    ]
    found = union_all(*(select(one.subquery()) for one in each)).subquery().c
    return select(found.started_us, found.instance_id).order_by(*order(found)).limit(size)
