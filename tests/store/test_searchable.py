"""Paths of inputs that an app has named: whatever is searched is found as without them, by an index, and the index
follows each commit, also of owners that were there before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event

from romancy_stream.errors import ConfigurationError, FencedError
from romancy_stream.store import readers, searchable, tables
from romancy_stream.store.database import POSTGRESQL
from romancy_stream.store.migrate import migrate, migrations
from romancy_stream.store.port import InstanceQuery
from romancy_stream.store.searchable import SearchedPath
from romancy_stream.store.sql import SqlStore
from tests.store.conftest import ON_EVERY_DATABASE, PARTITIONS, Another
from tests.store.writing import committed, event, execute, instance, owned, rows, tombstone
from tests.support.waiting import eventually

PATHS = ["customer.id", "total", "lines.0.sku", "flag", "clé.x"]
INPUTS = [
    b'{"customer": {"id": "c1"}, "total": 5, "lines": [{"sku": "a"}, {"sku": "b"}], "flag": true}',
    b'{"customer": {"id": "c1"}, "total": 5.0, "lines": {"0": {"sku": "a"}}, "flag": null}',
    b'{"customer": {"id": "c1", "id": "c2"}, "total": 50e-1, "lines": [], "flag": "true"}',
    b'{"cust\\u006fmer": {"id": "c\\u0031"}, "total": "5", "cl\\u00e9": {"x": "caf\\u00e9"}}',
    '{"customer": {"id": "c1 "}, "total": 5.000000000000000000001, "clé": {"x": "café"}}'.encode(),
    b'{"customer": "c1", "total": 12345678901234567890123, "flag": false}',
    b'[{"customer": {"id": "c1"}}]',
    b'"c1"',
    None,
]
WANTED: list[tuple[str, Any]] = [
    *(("customer.id", value) for value in ("c1", "c2", "c1 ", "C1", "", None)),
    *(("total", value) for value in (5, 5.0, "5", 12345678901234567890123, 0)),
    *(("lines.0.sku", value) for value in ("a", "b")),
    *(("flag", value) for value in (True, False, None, "true", 1)),
    ("clé.x", "café"),
]


async def found(store: SqlStore, filters: dict[str, Any], **options: Any) -> list[str]:
    ids: list[str] = []
    token = None
    while True:
        page = await store.list_instances(InstanceQuery(input=filters, page_token=token, **options))
        ids += [row.instance_id for row in page.rows]
        if (token := page.next_page_token) is None:
            return ids


async def by_value(store: SqlStore, filters: dict[str, Any], **options: Any) -> list[str]:
    """By the index: on PostgreSQL by the one of all inputs."""
    sent: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    engine = store.db.engine.sync_engine
    sqlalchemy_event.listen(engine, "before_cursor_execute", note)
    try:
        ids = await found(store, filters, **options)
    finally:
        sqlalchemy_event.remove(engine, "before_cursor_execute", note)
    if store.db.dialect != POSTGRESQL:
        assert any("FROM romancy_input_values" in statement for statement in sent)
    return ids


# Where rows are kept: PostgreSQL has an index of all inputs.
kept_rows = pytest.mark.parametrize("url", [ON_EVERY_DATABASE[0], ON_EVERY_DATABASE[2]], indirect=True)


async def test_what_is_found_is_the_same_with_and_without(store: SqlStore) -> None:
    instances = [instance(f"i{n}", input=raw, started_us=n) for n, raw in enumerate(INPUTS)]
    await committed(store, await owned(store, 0), instances=instances)
    before = [await found(store, {path: value}) for path, value in WANTED]
    assert before[0] == ["i3", "i1", "i0"]
    assert sum(map(bool, before)) >= 13
    assert await store.make_searchable(PATHS) == ([] if store.db.dialect == POSTGRESQL else PATHS)
    assert [await by_value(store, {path: value}) for path, value in WANTED] == before
    again = [instance(f"j{n}", input=raw, started_us=100 + n) for n, raw in enumerate(INPUTS)]
    await committed(store, await owned(store, 0), instances=again)
    doubled = [[name.replace("i", "j") for name in ids] + ids for ids in before]
    assert [await by_value(store, {path: value}) for path, value in WANTED] == doubled


async def test_pages_and_other_filters_go_along_the_index(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "FEW", 10)
    await store.make_searchable(["k", "n"])
    made = [
        instance(f"i{n:03}", input=b'{"k": %d, "n": %d}' % (n % 3, n % 50), started_us=n // 5, part=n % 2)
        for n in range(200)
    ]
    made[30] = instance("i030", input=made[30].input, started_us=6, status="failed")
    await committed(store, await owned(store, 0), instances=made)
    wanted = [f"i{n:03}" for n in reversed(range(200)) if n % 3 == 1]
    for limit in (3, 50, 200):
        assert await by_value(store, {"k": 1}, limit=limit) == wanted
    assert await by_value(store, {"k": 1, "n": 4}, limit=1) == ["i154", "i004"]
    assert await by_value(store, {"k": 0}, status="failed") == ["i030"]
    assert await by_value(store, {"k": 1, "other": 1}) == []
    in_time = {"started_after_us": 2, "started_before_us": 4}
    assert await by_value(store, {"k": 1}, limit=2, **in_time) == ["i019", "i016", "i013", "i010"]


@kept_rows
async def test_a_new_run_and_a_deletion_take_their_values_along(store: SqlStore) -> None:
    await store.make_searchable(["k"])
    marks = await owned(store, 0)
    marks = await committed(
        store, marks, instances=[instance("a", input=b'{"k": 1}'), instance("b", input=b'{"k": 1}')]
    )
    marks = await committed(store, marks, instances=[instance("a", run=2, input=b'{"k": 2}')])
    assert (await by_value(store, {"k": 1}), await by_value(store, {"k": 2})) == (["b"], ["a"])
    marks = await committed(store, marks, instances=[instance("a", run=3, input=b"{}")])
    assert [row[0] for row in await rows(store, tables.input_values)] == ["b"]
    await committed(store, marks, deleted=[tombstone("b")])
    assert await rows(store, tables.input_values) == []


@kept_rows
async def test_an_owner_that_did_not_know_the_path_is_fenced_off(store: SqlStore, another: Another) -> None:
    """Once, and the next commit has the rows."""
    engine, starter = await another(), store
    marks = await committed(engine, await owned(engine, 0), instances=[instance("a", input=b'{"k": 1}')])
    assert await starter.make_searchable(["k"]) == ["k"]
    with pytest.raises(FencedError):
        await committed(engine, marks, instances=[instance("b", input=b'{"k": 1}')])
    marks = await committed(engine, await owned(engine, 0), instances=[instance("b", input=b'{"k": 1}')])
    assert await by_value(starter, {"k": 1}) == ["b", "a"]
    assert await starter.make_searchable(["k"]) == []
    await committed(engine, marks, instances=[instance("c", input=b'{"k": 1}')])
    assert await by_value(starter, {"k": 1}) == ["c", "b", "a"]


@kept_rows
async def test_until_all_are_gone_through_a_search_reads_them(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searchable, "FILLED_AT_ONCE", 2)
    instances = [instance(f"i{n}", input=b'{"k": 1}') for n in range(7)]
    await committed(store, await owned(store, 0), instances=instances)
    wanted = [row.instance_id for row in reversed(instances)]
    filled, pages = store._filled_page, 0

    async def and_dies(new: Any, after: str) -> str | None:
        nonlocal pages
        pages += 1
        if pages == 3:
            raise ConnectionError("died")
        return await filled(new, after)

    monkeypatch.setattr(store, "_filled_page", and_dies)
    with pytest.raises(ConnectionError):
        await store.make_searchable(["k"])
    assert len(await rows(store, tables.input_values)) == 4
    assert await found(store, {"k": 1}) == wanted
    assert await store.make_searchable(["k"]) == ["k"], "it is begun again"
    assert pages == 3 + 5
    assert await by_value(store, {"k": 1}) == wanted


@kept_rows
async def test_what_engines_write_meanwhile_stands(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new run's values are not replaced by those that were read before it."""
    marks = await committed(store, await owned(store, 0), instances=[instance("a", input=b'{"k": 1}')])
    declare = store._declare

    async def and_then_a_commit(paths: Any) -> None:
        await declare(paths)
        new = [instance("a", run=2, input=b'{"k": 2}'), instance("b", input=b'{"k": 1}')]
        await committed(store, await owned(store, 0), instances=new)

    monkeypatch.setattr(store, "_declare", and_then_a_commit)
    assert await store.make_searchable(["k"]) == ["k"]
    assert (await by_value(store, {"k": 1}), await by_value(store, {"k": 2})) == (["b"], ["a"])
    assert len(await rows(store, tables.input_values)) == 2
    assert marks


@kept_rows
async def test_rebuilt_instances_have_their_values(store: SqlStore) -> None:
    await store.make_searchable(["k"])
    right, wrong = instance("a", input=b'{"k": 1}'), instance("a", input=b'{"k": 2}')
    await committed(store, await owned(store, 0), instances=[wrong], history=[event("a")])
    await store.replace_projections(["a"], [right], [], [])
    assert (await by_value(store, {"k": 1}), await by_value(store, {"k": 2})) == (["a"], [])


@kept_rows
async def test_a_path_that_is_dropped_leaves_no_rows(store: SqlStore, another: Another) -> None:
    await store.make_searchable(["k", "n"])
    assert [each.path for each in await store.kept_paths() if each.filled_us is not None] == ["k", "n"]
    marks = await owned(store, 0)
    made = [instance(f"i{n}", input=b'{"k": 1, "n": 2}') for n in range(3)]
    marks = await committed(store, marks, instances=made)
    dropper = await another()
    assert await dropper.drop_searchable(["k"]) == 3
    assert [each.path for each in await store.kept_paths()] == ["n"]
    with pytest.raises(FencedError):
        await committed(store, marks, instances=[instance("late", input=b'{"k": 1, "n": 2}')])
    await committed(store, await owned(store, 0), instances=[instance("new", input=b'{"k": 1, "n": 2}')])
    left = {(row[0], row[1]) for row in await rows(store, tables.input_values)}
    assert left == {(row[0], row[1]) for name in ("i0", "i1", "i2", "new") for row in of_n(name)}
    assert await found(store, {"k": 1}) == await by_value(store, {"n": 2}) == ["new", "i2", "i1", "i0"]
    assert await dropper.drop_searchable(["k", "unknown"]) == 0
    assert await store.make_searchable(["k"]) == ["k"]
    assert await by_value(store, {"k": 1}) == ["new", "i2", "i1", "i0"]


def of_n(instance_id: str) -> list[searchable.ValueRow]:
    return list(searchable.value_rows(instance_id, 0, b'{"n": 2}', [SearchedPath("n")]))


@pytest.mark.postgres
async def test_nothing_is_kept_where_an_index_has_all_paths(postgres_db: str) -> None:
    store = SqlStore(postgres_db)
    await store.open()
    try:
        await store.migrate()
        assert await store.make_searchable(["k"]) == []
        assert await store.kept_paths() == []
        assert await store.drop_searchable(["k"]) == 0
    finally:
        await store.close()


@kept_rows
async def test_a_drop_that_was_cut_off_is_done_by_the_next_one(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searchable, "FILLED_AT_ONCE", 2)
    instances = [instance(f"i{n}", input=b'{"k": 1}') for n in range(7)]
    await store.make_searchable(["k"])
    await committed(store, await owned(store, 0), instances=instances)
    emptied = store._emptied_page

    async def and_dies(gone: Any, after: str) -> tuple[int, str | None]:
        if after == "i3":
            raise ConnectionError("died")
        return await emptied(gone, after)

    monkeypatch.setattr(store, "_emptied_page", and_dies)
    with pytest.raises(ConnectionError):
        await store.drop_searchable(["k"])
    monkeypatch.undo()
    assert len(await rows(store, tables.input_values)) == 3
    assert await found(store, {"k": 1}) == [row.instance_id for row in reversed(instances)]
    assert await store.drop_searchable(["k"]) == 3


@kept_rows
async def test_a_path_that_is_named_again_meanwhile_has_all_its_rows(
    store: SqlStore, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searchable, "FILLED_AT_ONCE", 2)
    instances = [instance(f"i{n}", input=b'{"k": 1}') for n in range(7)]
    await store.make_searchable(["k"])
    await committed(store, await owned(store, 0), instances=instances)
    other, emptied = await another(), store._emptied_page

    async def and_somebody_starts(gone: Any, after: str) -> tuple[int, str | None]:
        if after == "i3":
            assert await other.make_searchable(["k"]) == ["k"]
        return await emptied(gone, after)

    monkeypatch.setattr(store, "_emptied_page", and_somebody_starts)
    with pytest.raises(ConfigurationError, match="k was named again"):
        await store.drop_searchable(["k"])
    assert len(await rows(store, tables.input_values)) == 7
    assert await by_value(store, {"k": 1}) == [row.instance_id for row in reversed(instances)]


@pytest.mark.mariadb
@pytest.mark.parametrize("url", [ON_EVERY_DATABASE[2]], indirect=True)
async def test_who_names_a_path_waits_for_the_page_that_is_being_emptied(
    store: SqlStore, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has seen that the path is not there. On SQLite there is one writer at a time."""
    await store.make_searchable(["k"])
    await committed(store, await owned(store, 0), instances=[instance("a", input=b'{"k": 1}')])
    other, read = await another(), searchable.searched_paths
    naming: list[asyncio.Future[list[str]]] = []

    async def and_somebody_starts(connection: Any) -> tuple[SearchedPath, ...]:
        kept = await read(connection)
        if not naming:
            naming.append(asyncio.ensure_future(other.make_searchable(["k"])))
            await eventually(waits, every_s=0.3)  # the server looks anew where nobody has looked for 0.1 s
        return kept

    async def waits() -> list[tuple[Any, ...]]:
        return await execute(store, WAITING)

    monkeypatch.setattr(searchable, "searched_paths", and_somebody_starts)
    with pytest.raises(ConfigurationError, match="k was named again"):
        await store.drop_searchable(["k"])
    assert await naming[0] == ["k"]
    assert await by_value(store, {"k": 1}) == ["a"]


WAITING = (
    "SELECT trx_id FROM information_schema.innodb_trx JOIN information_schema.processlist ON id = trx_mysql_thread_id "
    "WHERE trx_state = 'LOCK WAIT' AND db = database()"
)


async def test_tables_of_the_first_version_are_brought_up_to_date(another: Another) -> None:
    """With what is in them; searches go on."""
    store = await another()
    first, *later = migrations(store.db.dialect)
    assert await migrate(store.db, [first]) == ["0001_initial"]
    await store.prepare("shop", PARTITIONS)
    insert = (
        "INSERT INTO romancy_instances (instance_id, run, part, workflow, status, seq, input, started_us, updated_us, "
        "event_source, event_id) VALUES ('old', 1, 0, 'order', 'running', 1, '{\"k\": 1}', 5, 5, '/shop', 'e')"
    )
    await execute(store, insert)
    assert await store.migrate() == [migration.name for migration in later]
    await store.make_searchable(["k"])
    await committed(store, await owned(store, 0), instances=[instance("new", input=b'{"k": 1}', started_us=9)])
    assert await by_value(store, {"k": 1}) == ["new", "old"]
    page = await store.list_instances(InstanceQuery(workflow_name="order", status="running"))
    assert [row.instance_id for row in page.rows] == ["new", "old"]


def test_marks_of_equal_numbers_are_equal() -> None:
    (row,) = searchable.value_rows("i", 1, b'{"n": 5.00}', [SearchedPath("n")])
    assert [row] == list(searchable.value_rows("i", 1, b'{"n": 50e-1}', [SearchedPath("n")]))
    assert list(searchable.value_rows("i", 1, b'{"n": {}, "m": "5"}', [SearchedPath("n")])) == []
    (other,) = searchable.value_rows("i", 1, b'{"n": {}, "m": "5"}', [SearchedPath("m")])
    assert other != row
