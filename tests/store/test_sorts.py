"""Lists by workflow and by status: the same whichever way they are found, and by the index of both."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import event, text, update
from sqlalchemy.util import await_only

from romancy_stream.engine import commit
from romancy_stream.engine.commit import InstanceRow
from romancy_stream.store import sorts as sorts_module
from romancy_stream.store import tables
from romancy_stream.store.database import Database
from romancy_stream.store.port import InstanceQuery
from romancy_stream.store.readers import Readers
from romancy_stream.store.sorts import STATUSES, WORKFLOWS_MAX, statuses
from tests.store.reading import instance, on_every_database, put, readers_on

WORKFLOWS = ("order", "Order_refund", "romancy.schedule", "shipping", "ÄRGER")


def instances(count: int = 120) -> list[InstanceRow]:
    """Of all sorts, some with equal times."""
    kinds = itertools.cycle(itertools.product(WORKFLOWS, ("running", "completed", "failed", "waiting_for_event")))
    return [
        instance(
            f"i{n:03}",
            workflow=workflow,
            status=status,
            started_us=n // 7,
            finished_us=n if status in commit.FINISHED else None,
        )
        for n, (workflow, status) in zip(range(count), kinds, strict=False)
    ]


async def listed(readers: Readers, **query: Any) -> list[str]:
    found: list[str] = []
    token = None
    while True:
        page = await readers.list_instances(InstanceQuery(page_token=token, **query))
        assert len(page.rows) <= query.get("limit", 50)
        found += [row.instance_id for row in page.rows]
        if (token := page.next_page_token) is None:
            return found


QUERIES: list[dict[str, Any]] = [
    {"workflow_name": "ORDER"},
    {"workflow_name": "ORDER", "system": True},
    {"workflow_name": "romancy."},
    {"workflow_name": "e"},
    {"workflow_name": "ärger"},
    {"workflow_name": "ÄRGER", "status": "failed"},
    {"workflow_name": "nothing"},
    {"workflow_name": "_"},
    {"status": "completed"},
    {"status": "completed", "system": True},
    {"status": "Completed"},
    {"status": "completed", "finished": False},
    {"workflow_name": "order", "finished": True},
    {"workflow_name": "order", "finished": False},
    {"workflow_name": "shipping", "status": "running", "started_after_us": 3, "started_before_us": 11},
    {"workflow_name": "shipping", "instance_id": "1"},
    {"status": "failed", "finished_before_us": 30},
    {"finished": False},
    {"finished": False, "system": True, "started_before_us": 11},
]


@on_every_database
async def test_all_are_listed_in_order_page_by_page(
    database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, instances())
        along = [[await listed(readers, limit=limit, **query) for limit in (4, 200)] for query in QUERIES]
        monkeypatch.setattr(sorts_module, "ROWS_AT_ONCE", 0)  # in two rounds, however few they are
        in_rounds = [[await listed(readers, limit=limit, **query) for limit in (4, 200)] for query in QUERIES]
        monkeypatch.setattr(sorts_module, "SORTS_MAX", 0)
        one_by_one = [[await listed(readers, limit=limit, **query) for limit in (4, 200)] for query in QUERIES]
    assert along == in_rounds == one_by_one
    assert along[0][0] == [
        row.instance_id
        for row in sorted(instances(), key=lambda row: (row.started_us, row.instance_id), reverse=True)
        if "order" in row.workflow.lower()
    ]
    assert [len(small) for small, _ in along].count(0) == 4


@on_every_database
async def test_many_workflows_are_looked_through_as_before(
    database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        rows = [instance(f"i{n:03}", workflow=f"w{n:03}", started_us=n) for n in range(WORKFLOWS_MAX + 2)]
        await put(readers, rows[:WORKFLOWS_MAX])
        async with readers.db.reading("look") as connection:
            found = await sorts_module.sorts(connection, ["failed", "running"])
        assert found is not None
        assert sorted(found) == [("running", row.workflow) for row in rows[:WORKFLOWS_MAX]]
        await put(readers, rows[WORKFLOWS_MAX:])
        async with readers.db.reading("look") as connection:
            assert await sorts_module.sorts(connection, ["running"]) is None
        for name, count in (("w", WORKFLOWS_MAX + 2), ("w00", 10), ("w101", 1)):
            assert len(await listed(readers, workflow_name=name)) == count


@on_every_database
async def test_rare_workflows_rare_statuses_and_rare_open_ones_are_found_by_the_index(
    database: str, request: pytest.FixtureRequest
) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        rows = [instance(f"i{n:04}", status="completed", started_us=n, finished_us=n) for n in range(3_000)]
        rows[400] = instance("i0400", status="waiting_for_timer", started_us=400)  # what is open is few, and old
        rows[700] = instance("i0700", workflow="rare", status="completed", started_us=700, finished_us=700)
        rows[900] = instance("i0900", status="failed", started_us=900, finished_us=900)
        await put(readers, rows)
        await analyzed(readers)
        for query, wanted in (
            ({"workflow_name": "rar"}, ["i0700"]),
            ({"workflow_name": "order", "status": "failed"}, ["i0900"]),
            ({"status": "failed"}, ["i0900"]),
            ({"workflow_name": "order", "finished": False}, ["i0400"]),
            ({"finished": False}, ["i0400"]),
        ):
            found, plans = await explained(readers, **query)
            assert found == wanted
            assert len(plans) == 3
            assert "romancy_instances_status" in plans[0]
            assert "romancy_instances_status" in plans[1]
            assert "romancy_instances_started" not in "".join(plans)
            assert "Seq Scan on romancy_instances" not in "".join(plans)


@on_every_database
async def test_a_page_out_of_many_sorts_reads_a_few_rows_of_each(database: str, request: pytest.FixtureRequest) -> None:
    """And all of a page of those few that have most of it: one workflow was busy for a while."""
    async with readers_on(request.getfixturevalue(database)) as readers:
        rows = [instance(f"i{n:04}", workflow=f"order-{n % 60:02}", started_us=n) for n in range(3_000)]
        rows += [instance(f"j{n:04}", workflow="order-07", started_us=2_960 + n) for n in range(40)]
        await put(readers, rows)
        await analyzed(readers)
        found, plans = await explained(readers, limit=50, workflow_name="order", finished=False)
        newest = sorted(rows, key=lambda row: (row.started_us, row.instance_id), reverse=True)
        assert found == [row.instance_id for row in newest[:50]]
        assert len(plans) == 4  # which sorts there are, of each a few, more of one, and the rows
        assert "romancy_instances_status" in plans[1]
        assert "romancy_instances_status" in plans[2]
        assert await listed(readers, limit=200, workflow_name="order") == [row.instance_id for row in newest]


async def analyzed(readers: Readers) -> None:
    assert isinstance(readers.db, Database)
    if readers.db.dialect != "sqlite":
        table = "TABLE romancy_instances" if readers.db.dialect == "mysql" else "romancy_instances"
        async with readers.db.writing("analyze") as connection:
            await connection.execute(text(f"ANALYZE {table}"))


async def explained(readers: Readers, **query: Any) -> tuple[list[str], list[str]]:
    """The ids of the first page, and the plans of the statements that look for instances."""
    assert isinstance(readers.db, Database)
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> None:
        if "romancy_instances" in statement:
            sent.append((statement, parameters))

    engine = readers.db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        page = await readers.list_instances(InstanceQuery(**query))
    finally:
        event.remove(engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN" if readers.db.dialect == "sqlite" else "EXPLAIN"
    async with readers.db.engine.connect() as connection:
        plans = [
            str((await connection.exec_driver_sql(f"{explain} {statement}", parameters)).all())
            for statement, parameters in sent
        ]
    return [row.instance_id for row in page.rows], plans


@on_every_database
async def test_an_instance_that_changes_its_status_meanwhile_is_in_the_list(
    database: str, request: pytest.FixtureRequest
) -> None:
    """Between the question which sorts there are and the one for their instances."""
    async with readers_on(request.getfixturevalue(database)) as readers:
        assert isinstance(readers.db, Database)
        await put(readers, [instance("i1", workflow="single")])
        sent: list[str] = []

        async def finish() -> None:
            changed = update(tables.instances).values(status="completed", finished_us=2_000)
            async with readers.db.writing("finish") as connection:
                await connection.execute(changed)

        def between(_c: Any, _u: Any, statement: str, _p: Any, _x: Any, _m: bool) -> None:
            if "romancy_instances" in statement:
                sent.append(statement)
                if len(sent) == 1:
                    await_only(finish())

        engine = readers.db.engine.sync_engine
        event.listen(engine, "after_cursor_execute", between)
        try:
            assert await listed(readers, workflow_name="single") == ["i1"]
        finally:
            event.remove(engine, "after_cursor_execute", between)
        found = await readers.list_instances(InstanceQuery(workflow_name="single"))
        assert [row.status for row in found.rows] == ["completed"]


def test_every_status_is_known() -> None:
    """A list would leave out instances of another one."""
    words = {value for name, value in vars(commit).items() if name.isupper() and isinstance(value, str)}
    assert words - set(STATUSES) == {commit.SCHEDULED, commit.BACKING_OFF}  # of activities
    assert set(statuses(None, True)) & set(statuses(None, False)) == {commit.RECURRED, commit.RESET}
    assert statuses("failed", False) == []
