"""The list of instances: filters, order, and pages that stay right while rows arrive."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from romancy_stream.errors import InvalidPageTokenError, InvalidPathError
from romancy_stream.store import pages, paths
from romancy_stream.store.port import InstancePage, InstanceQuery
from romancy_stream.store.readers import Readers
from tests.store.reading import instance, on_every_database, put, readers_on


async def ids(readers: Readers, **query: Any) -> list[str]:
    page = await readers.list_instances(InstanceQuery(**query))
    assert page.next_page_token is None
    return [row.instance_id for row in page.rows]


async def pages_of(readers: Readers, query: InstanceQuery) -> AsyncIterator[InstancePage]:
    while True:
        page = await readers.list_instances(query)
        yield page
        if page.next_page_token is None:
            return
        query = replace(query, page_token=page.next_page_token)


# -- filters


@on_every_database
async def test_names_and_ids_match_in_part_and_in_any_case_of_ascii(
    database: str, request: pytest.FixtureRequest
) -> None:
    names = ["Order-A", "order_b", "o%r", "o\\r", "\u00c4rger", "\u00e4rger", "plain", "\u212aelvin", "kelvin", "x y "]
    cases = {
        "ORDER": {"Order-A", "order_b"},
        "order-a": {"Order-A"},
        "_": {"order_b"},
        "%": {"o%r"},
        "\\": {"o\\r"},
        "o%r": {"o%r"},
        "o_r": set(),
        "\u00c4RGER": {"\u00c4rger"},
        "\u00e4rger": {"\u00e4rger"},
        "RGER": {"\u00c4rger", "\u00e4rger"},
        "KELVIN": {"kelvin"},
        "elvin": {"kelvin", "\u212aelvin"},
        "y ": {"x y "},
        "": set(names),
        "nothing": set(),
        "a\0": set(),
        "\ud800": set(),
    }
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [instance(name, workflow=name) for name in names])
        for part, expected in cases.items():
            assert set(await ids(readers, instance_id=part)) == expected, part
            assert set(await ids(readers, workflow_name=part)) == expected, part


@on_every_database
async def test_status_is_exact_and_times_are_half_open(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(
            readers,
            [
                instance("a", status="running", started_us=10),
                instance("b", status="completed", started_us=20),
                instance("c", status="running", started_us=30, workflow="other"),
            ],
        )
        assert await ids(readers) == ["c", "b", "a"]
        assert await ids(readers, status="running") == ["c", "a"]
        for status in ("Running", "run", "running ", "%", ""):
            assert await ids(readers, status=status) == [], status
        assert await ids(readers, started_after_us=10, started_before_us=30) == ["b", "a"]
        assert await ids(readers, started_after_us=11) == ["c", "b"]
        assert await ids(readers, started_before_us=10) == []
        assert await ids(readers, started_after_us=20, started_before_us=20) == []
        assert await ids(readers, started_after_us=-(2**70), started_before_us=2**70) == ["c", "b", "a"]
        assert await ids(readers, started_after_us=2**70) == []
        assert await ids(readers, status="running", workflow_name="oth", instance_id="C", started_after_us=30) == ["c"]


@on_every_database
async def test_children_parked_ones_and_those_that_ended(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(
            readers,
            [
                instance("a", parent_id="p", parked="diverged", started_us=10),
                instance("b", parent_id="P", finished_us=20, status="failed", started_us=20),
                instance("c", finished_us=30, status="completed", parked="x", started_us=30),
                instance("d", parent_id="p", finished_us=40, status="completed", started_us=40),
            ],
        )
        assert await ids(readers, parent_id="p") == ["d", "a"]
        for parent_id in ("p ", "", "q", "nul\0"):
            assert await ids(readers, parent_id=parent_id) == [], parent_id
        assert await ids(readers, parked=True) == ["c", "a"]
        assert await ids(readers, parked=False) == ["d", "b"]
        assert await ids(readers, finished_before_us=40) == ["c", "b"]
        assert await ids(readers, finished_before_us=20) == []
        assert await ids(readers, finished_before_us=2**70) == ["d", "c", "b"]
        assert await ids(readers, parent_id="p", parked=False, finished_before_us=41, status="completed") == ["d"]


# -- order and pages


@on_every_database
async def test_newest_first_and_ties_by_id_byte_by_byte(database: str, request: pytest.FixtureRequest) -> None:
    ties = ["\U0001f600", "\uffee", "\u00e9", "a-b", "a b", "ab", "aB", "A", "_", "Z", "a", "B", "10", "9"]
    rows = [instance(name, started_us=5) for name in ties]
    rows += [instance("newest", started_us=6), instance("oldest", started_us=-1)]
    expected = ["newest", *sorted(ties, key=str.encode, reverse=True), "oldest"]
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, rows)
        assert await ids(readers) == expected
        for limit in (1, 2, 3, len(rows) - 1, len(rows), len(rows) + 1):
            found = [page async for page in pages_of(readers, InstanceQuery(limit=limit))]
            assert [row.instance_id for page in found for row in page.rows] == expected
            assert all(len(page.rows) == limit for page in found[:-1])
            assert 1 <= len(found[-1].rows) <= limit


@pytest.mark.postgres
async def test_the_order_of_a_language_plays_no_part(postgres_db: str) -> None:
    """A PostgreSQL whose default is the order of a language, where "a" stands before "B" and LOWER knows "Ä"."""
    names = ["B", "a", "Äb", "äb", "a-b", "ab"]
    async with readers_on(postgres_db) as readers, readers.db.writing("change collation") as connection:
        await connection.exec_driver_sql("CREATE SCHEMA english")
        await connection.exec_driver_sql("CREATE TABLE english.romancy_instances (LIKE romancy_instances)")
        for column in ("instance_id", "workflow"):
            await connection.exec_driver_sql(
                f'ALTER TABLE english.romancy_instances ALTER {column} TYPE varchar(255) COLLATE "en-x-icu"'
            )
        name = (await connection.exec_driver_sql("SELECT current_database()")).scalar_one()
        await connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET search_path = english, public')
    async with readers_on(postgres_db, migrated=True) as readers:
        await put(readers, [instance(name, workflow=name) for name in names])
        found = [page async for page in pages_of(readers, InstanceQuery(limit=1))]
        assert [row.instance_id for page in found for row in page.rows] == sorted(names, key=str.encode, reverse=True)
        assert await ids(readers, workflow_name="ÄB") == ["Äb"]
        assert await ids(readers, instance_id="B") == sorted(
            (name for name in names if name != "a"), key=str.encode, reverse=True
        )


@on_every_database
async def test_pages_stay_right_while_rows_arrive(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [instance(f"old-{number:02}", started_us=100 + number // 4) for number in range(20)])
        seen: list[str] = []
        number = 0
        async for page in pages_of(readers, InstanceQuery(limit=3, status="running")):
            seen += [row.instance_id for row in page.rows]
            number += 1
            # Newer than everything, a tie that sorts before what was seen, and another status.
            await put(readers, [instance(f"new-{number}", started_us=500 + number)])
            await put(readers, [instance(f"zzz-{number}", started_us=page.rows[-1].started_us)])
            await put(readers, [instance(f"other-{number}", started_us=1, status="failed")])
        assert number == 7
        assert seen == [f"old-{number:02}" for number in reversed(range(20))]


@on_every_database
async def test_a_row_that_goes_takes_no_other_with_it(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [instance(f"i{number}", started_us=number) for number in range(6)])
        first = await readers.list_instances(InstanceQuery(limit=2))
        assert [row.instance_id for row in first.rows] == ["i5", "i4"]
        await readers.replace_projections(["i5", "i4", "i3"], [], [], [])
        second = await readers.list_instances(InstanceQuery(limit=2, page_token=first.next_page_token))
        assert [row.instance_id for row in second.rows] == ["i2", "i1"]


@on_every_database
async def test_pages_are_full_although_python_turns_rows_down(database: str, request: pytest.FixtureRequest) -> None:
    """Neighbours of a number beyond a double, and keys that MariaDB cannot name: the database lets them through."""
    big = 2**60
    rows = [
        instance(f"i{number:03}", started_us=number, input=b'{"\\u006b": {"k/": %d.0}}' % (big + number % 5))
        for number in range(60)
    ]
    expected = [f"i{number:03}" for number in reversed(range(60)) if number % 5 == 2]
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, rows)
        for limit in (1, 5, 11, 12, 13, 100):
            query = InstanceQuery(limit=limit, input={"k.k/": big + 2})
            found = [page async for page in pages_of(readers, query)]
            assert [row.instance_id for page in found for row in page.rows] == expected
            assert all(len(page.rows) == limit for page in found[:-1])


async def test_a_small_page_of_many_rejected_rows_takes_few_questions(sqlite_db: str) -> None:
    big = 2**60
    async with readers_on(sqlite_db) as readers:
        await put(readers, [instance(f"i{n:04}", started_us=n, input=b'{"v": %d.0}' % (big + 1)) for n in range(2000)])
        await put(readers, [instance("wanted", started_us=-1, input=b'{"v": %d.0}' % big)])
        asked: list[str] = []
        event.listen(
            readers.db.engine.sync_engine,  # type: ignore[attr-defined]
            "before_cursor_execute",
            lambda *arguments: asked.append(arguments[2]),
        )
        page = await readers.list_instances(InstanceQuery(limit=1, input={"v": big}))
        assert [row.instance_id for row in page.rows] == ["wanted"]
        assert 1 < sum("json_each" in statement for statement in asked) < 20


@on_every_database
async def test_a_last_page_that_is_exactly_full_has_no_token(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        assert await readers.list_instances(InstanceQuery(limit=1)) == InstancePage([], None)
        await put(readers, [instance(f"i{number}") for number in range(4)])
        first = await readers.list_instances(InstanceQuery(limit=2))
        assert first.next_page_token is not None
        second = await readers.list_instances(InstanceQuery(limit=2, page_token=first.next_page_token))
        assert second.next_page_token is None
        assert len(second.rows) == 2


@pytest.mark.parametrize("limit", [0, -1, 1001, True, 1.0, "5", None])
async def test_a_limit_out_of_range(sqlite_db: str, limit: Any) -> None:
    async with readers_on(sqlite_db) as readers:
        with pytest.raises(ValueError, match="1 to 1000"):
            await readers.list_instances(InstanceQuery(limit=limit))
        with pytest.raises(ValueError, match="1 to 1000"):
            await readers.dead_letters(limit)


async def test_a_bad_path_is_reported_before_the_database_is_asked(sqlite_db: str) -> None:
    async with readers_on(sqlite_db) as readers:
        await readers.db.close()  # type: ignore[attr-defined]  # from here on a question would fail
        with pytest.raises(InvalidPathError):
            await readers.list_instances(InstanceQuery(input={"a..b": 1}))
        with pytest.raises(ValueError, match="'a'"):
            await readers.list_instances(InstanceQuery(input={"a": float("nan")}))


# -- tokens


def token_of(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


MARK = pages.fingerprint(InstanceQuery(), ())


@pytest.mark.parametrize(
    "token",
    [
        "",
        "garbage",
        "\u00e9",
        "=",
        "====",
        "a" * 5000,
        5,
        b"bytes",
        token_of(None),
        token_of({}),
        token_of([]),
        token_of([1, 5, "a"]),
        token_of([2, 5, "a", MARK]),
        token_of([1, "5", "a", MARK]),
        token_of([1, 5.0, "a", MARK]),
        token_of([1, True, "a", MARK]),
        token_of([1, 2**63, "a", MARK]),
        token_of([1, 5, 7, MARK]),
        token_of([1, 5, "a\0", MARK]),
        token_of([1, 5, "\ud800", MARK]),
        token_of([1, 5, "a", MARK, 1]),
        token_of([1, 5, "a", "other"]),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
    ],
    ids=lambda token: repr(token)[:24],
)
async def test_a_token_that_no_page_gave(sqlite_db: str, token: Any) -> None:
    async with readers_on(sqlite_db) as readers:
        with pytest.raises(InvalidPageTokenError):
            await readers.list_instances(InstanceQuery(page_token=token))


async def test_a_token_belongs_to_its_filters(sqlite_db: str) -> None:
    base = InstanceQuery(limit=1, workflow_name="o", status="running", input={"a": 5, "b": None})
    others = [
        replace(base, workflow_name="O"),
        replace(base, workflow_name=None),
        replace(base, status=None),
        replace(base, instance_id="i"),
        replace(base, started_after_us=0),
        replace(base, started_before_us=2**60),
        replace(base, parent_id="p"),
        replace(base, parked=True),
        replace(base, parked=False),
        replace(base, finished_before_us=1),
        replace(base, input=None),
        replace(base, input={"a": 5}),
        replace(base, input={"a": "5", "b": None}),
        replace(base, input={"a": 5, "b": False}),
        replace(base, input={"a": 5, "b": "null"}),
        replace(base, input={"a": True, "b": None}),
    ]
    same = [
        replace(base, limit=7),
        replace(base, input={"b": None, "a": 5}),
        replace(base, input={"b": None, "a": 5.0}),
        replace(base, input={"b": None, "a": Decimal("50e-1")}),
    ]
    async with readers_on(sqlite_db) as readers:
        await put(readers, [instance(f"i{number}", input=b'{"a": 5, "b": null}') for number in range(3)])
        token = (await readers.list_instances(base)).next_page_token
        assert token is not None
        for other in others:
            with pytest.raises(InvalidPageTokenError, match="other filters"):
                await readers.list_instances(replace(other, page_token=token))
        for query in same:
            page = await readers.list_instances(replace(query, page_token=token))
            assert page.rows[0].instance_id == "i1"


@given(
    st.integers(pages.INT64_MIN, pages.INT64_MAX),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=255),
)
def test_any_row_survives_its_token(started_us: int, instance_id: str) -> None:
    token = pages.make_token(pages.Cursor(started_us, instance_id), MARK)
    assert len(token) <= pages.TOKEN_CHARS_MAX
    assert token.isascii()
    assert not set(token) & set("+/=&?#% ")
    assert pages.read_token(token, MARK) == pages.Cursor(started_us, instance_id)


@given(st.text(max_size=60))
def test_any_text_is_a_token_or_an_error(token: str) -> None:
    with pytest.raises(InvalidPageTokenError):
        pages.read_token(token, MARK)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6) | st.integers())
def test_equal_numbers_have_one_fingerprint(number: Decimal | int) -> None:
    def mark(value: Any) -> str:
        return pages.fingerprint(InstanceQuery(), paths.parse_filters({"a": value}))

    shifted = Decimal(number).scaleb(-3) if len(Decimal(number).as_tuple().digits) < 20 else Decimal(number)
    assert mark(number) == mark(Decimal(f"{number}{'' if '.' in str(number) else '.'}000"))
    assert (mark(shifted) == mark(number)) == (shifted == number)
