"""Searching by input: the same answers on every database."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from romancy_stream.engine.fields import storable
from romancy_stream.errors import InvalidPathError
from romancy_stream.store import paths, tables
from romancy_stream.store.port import InstanceQuery
from romancy_stream.store.readers import Readers
from tests.store.reading import instance, on_every_database, put, readers_on

BIG = 2**53 + 1  # the first whole number that a double cannot hold


class Word(str, enum.Enum):  # noqa: UP042  the older kind, whose str() is not its value
    FIVE = "5"


class Level(enum.IntEnum):
    FIVE = 5


async def find(readers: Readers, filters: Mapping[str, Any]) -> set[str]:
    page = await readers.list_instances(InstanceQuery(input=filters, limit=1000))
    assert page.next_page_token is None
    return {row.instance_id for row in page.rows}


DOCUMENTS: dict[str, str | None] = {
    "none": None,
    "null": "null",
    "number": "5",
    "text": '"a"',
    "true": "true",
    "list": '[{"a": 1}, 5, [7, 8]]',
    "empty-object": "{}",
    "empty-list": "[]",
    "order-1": '{"customer": {"id": "c1", "vip": true}, "items": [{"sku": "A", "n": 1}, {"sku": "B", "n": 2}]}',
    "order-2": '{"customer": {"id": "C1", "vip": false}, "items": [{"sku": "B", "n": 1.0}]}',
    "order-3": '{"customer": {"id": "c1 ", "vip": 1}, "items": {"0": {"sku": "A"}}}',
    "order-4": '{"customer": {"id": null, "vip": "true"}, "items": []}',
    "order-5": '{"customer": "c1", "items": "A"}',
    "five": '{"v": 5}',
    "five.0": '{"v": 5.0}',
    "five-exp": '{"v": 50e-1}',
    "five-list": '{"v": [5]}',
    "five-text": '{"v": "5"}',
    "five-deep": '{"v": {"0": 5}}',
    "one": '{"v": 1}',
    "zero": '{"v": 0}',
    "minus-zero": '{"v": -0.0}',
    "v-true": '{"v": true}',
    "v-false": '{"v": false}',
    "v-null": '{"v": null}',
    "v-text-true": '{"v": "true"}',
    "v-text-null": '{"v": "null"}',
    "v-empty": '{"v": ""}',
    "v-text-1": '{"v": "1"}',
    "big-1": f'{{"v": {BIG - 1}}}',
    "big": f'{{"v": {BIG}}}',
    "big.0": f'{{"v": {BIG}.0}}',
    "big-digits": '{"v": 12345678901234567890123}',
    "big-digits+1": '{"v": 12345678901234567890124}',
    "half": f'{{"v": {BIG}.00000000000000000001}}',  # parsers that keep too few digits round it to another double
    "decimal": '{"v": 0.1}',
    "decimal-near": '{"v": 0.10000000000000000001}',
    "huge": '{"v": 1e400}',
    "huge-2": '{"v": 2e400}',
    "tiny": '{"v": 1e-400}',
    "e-acute": '{"v": "caf\u00e9", "k\u00e9": 1}',
    "e-escaped": '{"v": "caf\\u00e9", "k\\u00e9": 1}',
    "e-combined": '{"v": "cafe\u0301", "ke\u0301": 1}',
    "emoji": '{"v": "\U0001f600"}',
    "emoji-escaped": '{"v": "\\ud83d\\ude00"}',
    "odd-keys": r'{"a b": {"x-y": {"q\"q": {"b\\s": {"s/s": {"$": {"*": {"[0]": "deep"}}}}}}}}',
    "odd-keys-2": r'{"\u0061 b": {"x-y": {"q\u0022q": {"b\u005cs": {"s\/s": {"$": {"*": {"[0]": "deep"}}}}}}}}',
    "like": '{"v": "a%b_c\\\\d"}',
    "quotes": '{"v": "it\'s \\"q\\""}',
    "twice": '{"w": 1, "w": 2}',
    "twice-deep": '{"w": {"x": 1}, "w": {"y": 2}}',
    "index-keys": '{"w": {"-1": 1, "01": 2, "+1": 3, " 1": 4, "1": 5}}',
    "index-list": '{"w": [10, 20]}',
    "matrix": "[[[[[[42]]]]]]",
    "multi\nline": '{\n "v"\t: "li\\nne",\r\n "w": [ 0 , -3.25 ] }',
}

CASES: list[tuple[Mapping[str, Any], set[str]]] = [
    ({"customer.id": "c1"}, {"order-1"}),
    ({"customer.id": "C1"}, {"order-2"}),
    ({"customer.id": "c1 "}, {"order-3"}),
    ({"customer.id": None}, {"order-4"}),
    ({"customer.vip": True}, {"order-1"}),
    ({"customer.vip": False}, {"order-2"}),
    ({"customer.vip": 1}, {"order-3"}),
    ({"customer.vip": "true"}, {"order-4"}),
    ({"customer": "c1"}, {"order-5"}),
    ({"customer.0": "c1"}, set()),
    ({"items.0.sku": "A"}, {"order-1", "order-3"}),
    ({"items.1.sku": "B"}, {"order-1"}),
    ({"items.0.sku": "A", "customer.id": "c1"}, {"order-1"}),
    ({"items.0.n": 1}, {"order-1", "order-2"}),
    ({"items.0": "A"}, set()),
    ({"items.sku": "A"}, set()),
    ({"items.2.sku": "A"}, set()),
    ({"v": 5}, {"five", "five.0", "five-exp"}),
    ({"v": 5.0}, {"five", "five.0", "five-exp"}),
    ({"v": Decimal("5.000")}, {"five", "five.0", "five-exp"}),
    ({"v": Level.FIVE}, {"five", "five.0", "five-exp"}),
    ({"v": "5"}, {"five-text"}),
    ({"v.0": 5}, {"five-list", "five-deep"}),
    ({"v": 1}, {"one"}),
    ({"v": 0}, {"zero", "minus-zero"}),
    ({"v": -0.0}, {"zero", "minus-zero"}),
    ({"v": True}, {"v-true"}),
    ({"v": False}, {"v-false"}),
    ({"v": None}, {"v-null"}),
    ({"v": "true"}, {"v-text-true"}),
    ({"v": "null"}, {"v-text-null"}),
    ({"v": ""}, {"v-empty"}),
    ({"v": "1"}, {"v-text-1"}),
    ({"v": BIG - 1}, {"big-1"}),
    ({"v": BIG}, {"big", "big.0"}),
    ({"v": Decimal(BIG)}, {"big", "big.0"}),
    ({"v": 12345678901234567890123}, {"big-digits"}),
    ({"v": Decimal(f"{BIG}.00000000000000000001")}, {"half"}),
    ({"v": 0.1}, {"decimal"}),
    ({"v": Decimal("0.10000000000000000001")}, {"decimal-near"}),
    ({"v": Decimal("1e400")}, {"huge"}),
    ({"v": Decimal("-1e400")}, set()),
    ({"v": 10**400}, {"huge"}),
    ({"v": Decimal("1e-400")}, {"tiny"}),
    ({"v": "caf\u00e9"}, {"e-acute", "e-escaped"}),
    ({"v": "cafe"}, set()),
    ({"v": "CAF\u00c9"}, set()),
    ({"k\u00e9": 1}, {"e-acute", "e-escaped"}),
    ({"ke\u0301": 1}, {"e-combined"}),
    ({"v": "\U0001f600"}, {"emoji", "emoji-escaped"}),
    ({'a b.x-y.q"q.b\\s.s/s.$.*.[0]': "deep"}, {"odd-keys", "odd-keys-2"}),
    ({"v": "a%b_c\\d"}, {"like"}),
    ({"v": "%"}, set()),
    ({"v": 'it\'s "q"'}, {"quotes"}),
    ({"v": Word.FIVE}, {"five-text"}),
    ({"v": "li\nne"}, {"multi\nline"}),
    ({"w.1": -3.25}, {"multi\nline"}),
    ({"w": 1}, set()),
    ({"w": 2}, {"twice"}),
    ({"w.x": 1}, set()),
    ({"w.y": 2}, {"twice-deep"}),
    ({"w.-1": 1}, {"index-keys"}),
    ({"w.01": 2}, {"index-keys"}),
    ({"w.+1": 3}, {"index-keys"}),
    ({"w. 1": 4}, {"index-keys"}),
    ({"w.1": 5}, {"index-keys"}),
    ({"w.1": 20}, {"index-list"}),
    ({"w.01": 20}, set()),
    ({"w.-1": 20}, set()),
    ({"w.99999999999999999999": 20}, set()),
    ({"0": 5}, set()),
    ({"1": 5}, {"list"}),
    ({"0.a": 1}, {"list"}),
    ({"2.1": 8}, {"list"}),
    ({"0.0.0.0.0.0": 42}, {"matrix"}),
    ({"missing": None}, set()),
    ({"a": None}, set()),
    ({"v": "a\0b"}, set()),
    ({"v": "\ud800"}, set()),
    ({"v": 5, "v.0": 5}, set()),
]


@on_every_database
async def test_the_same_answers_everywhere(
    database: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        rows = [
            instance(name, input=None if document is None else document.encode())
            for name, document in DOCUMENTS.items()
        ]
        await put(readers, rows)
        wrong = []
        for filters, expected in CASES:
            found = await find(readers, filters)
            if found != expected:
                wrong.append((filters, found, expected))
        assert wrong == []
        assert caplog.records == []  # asyncmy logs each warning of the server: one per row and search would be many
        assert await find(readers, {}) == set(DOCUMENTS)


async def test_a_row_that_holds_no_json_spoils_no_search(sqlite_db: str) -> None:
    """Only SQLite would store it."""
    async with readers_on(sqlite_db) as readers:
        await put(readers, [instance("good", input=b'{"v": 5}'), instance("bad", input=b'{"v": 5')])
        assert await find(readers, {"v": 5}) == {"good"}


INJECTIONS = [
    "a'; DROP TABLE romancy_instances; --",
    "a' OR '1'='1",
    'a" OR "1"="1',
    '"] OR true --',
    "') OR 1=1 --",
    "a\\' OR 1=1 -- ",
    "$[*]",
    "**",
    "%s %(x)s {0} :name ? $1",
    "} || true",
    '{"a":1}',
    "/*",
    "`",
]


@on_every_database
async def test_a_path_and_a_value_are_never_read_as_sql(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        attacks = [attack.replace(".", "") for attack in INJECTIONS]
        rows = [instance("innocent", input=b'{"a": 1, "k": {"a": "x"}}')]
        rows += [
            instance(f"key-{number}", input=json.dumps({"k": {attack: attack}}).encode())
            for number, attack in enumerate(attacks)
        ]
        await put(readers, rows)
        for number, attack in enumerate(attacks):
            assert await find(readers, {f"k.{attack}": attack}) == {f"key-{number}"}
            assert await find(readers, {f"k.{attack}": "x"}) == set()
            assert await find(readers, {"k.a": attack}) == set()
            assert await find(readers, {attack: "x"}) == set()
        for attack in INJECTIONS:
            page = await readers.list_instances(InstanceQuery(workflow_name=attack))
            assert page.rows == []
            page = await readers.list_instances(InstanceQuery(instance_id=attack, status=attack))
            assert page.rows == []
        assert len(await find(readers, {})) == len(rows)


@pytest.mark.parametrize(
    "path",
    ["", ".", "a.", ".a", "a..b", "a\0b", "\ud800", "a" * 1001, ".".join("a" * 31), 5, None, ("a",)],
    ids=lambda path: repr(path)[:20],
)
def test_a_path_that_cannot_be_read(path: Any) -> None:
    with pytest.raises(InvalidPathError):
        paths.parse_filters({path: 1})


@pytest.mark.parametrize("value", [None, True, False, 0, 1, "", "0", "1", "true", "null"], ids=repr)
def test_what_matches_a_value_is_of_its_kind(value: Any) -> None:
    """Python has the last word, so it must not take True for 1 where a database lets that through."""
    (wanted,) = paths.parse_filters({"v": value})
    kinds: list[Any] = [None, True, False, 0, 1, "", "0", "1", "true", "null", [], {}]
    matching = [kind for kind in kinds if wanted.matches(paths.read_document(json.dumps({"v": kind}).encode()))]
    assert [repr(kind) for kind in matching] == [repr(value)]
    assert not wanted.matches(paths.read_document(b"{}"))
    assert not wanted.matches(paths.read_document(None))


def test_a_document_that_cannot_be_read_matches_nothing() -> None:
    (wanted,) = paths.parse_filters({"v": 1})
    for raw in (b"", b"{", b"[" * 100_000 + b"]" * 100_000, b'{"v": 1e99999999999999999999}', b"\xff"):
        assert not wanted.matches(paths.read_document(raw))


def test_the_longest_and_the_deepest_path() -> None:
    assert paths.parse_path("a" * paths.PATH_CHARS_MAX) == ("a" * paths.PATH_CHARS_MAX,)
    assert len(paths.parse_path(".".join("a" * paths.SEGMENTS_MAX))) == paths.SEGMENTS_MAX


@on_every_database
async def test_the_deepest_path_finds(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        depth = paths.SEGMENTS_MAX
        objects = '{"a": ' * depth + "7" + "}" * depth
        lists = "[" * depth + "7" + "]" * depth
        await put(readers, [instance("o", input=objects.encode()), instance("l", input=lists.encode())])
        assert await find(readers, {".".join("a" * depth): 7}) == {"o"}
        assert await find(readers, {".".join("a" * (depth - 1)): 7}) == set()
        assert await find(readers, {".".join("0" * depth): 7}) == {"l"}
        assert await find(readers, {".".join("0" * depth): 8}) == set()


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), Decimal("sNaN"), {}, [], (), b"a", object(), 1j, Decimal("1e10001"), 10**1001],
    ids=lambda value: repr(value)[:20],
)
def test_a_value_that_is_no_json_scalar_names_its_path(value: Any) -> None:
    with pytest.raises(ValueError, match=r"'some\.path'"):
        paths.parse_filters({"some.path": value})


def test_too_many_filters() -> None:
    filters = {f"k{number}": number for number in range(paths.FILTERS_MAX + 1)}
    with pytest.raises(ValueError, match="at most 20"):
        paths.parse_filters(filters)


@on_every_database
async def test_as_many_filters_as_are_allowed(database: str, request: pytest.FixtureRequest) -> None:
    filters = {f"k.{number}.x": number for number in range(paths.FILTERS_MAX)}
    document = {"k": [{"x": number} for number in range(paths.FILTERS_MAX)]}
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [instance("all", input=json.dumps(document).encode()), instance("none", input=b'{"k": []}')])
        assert await find(readers, filters) == {"all"}
        assert await find(readers, {**filters, "k.3.x": 4}) == set()


# -- any document, any path: against a second reading of the rules ----------------------------------------------


@dataclass(frozen=True)
class Number:
    text: str


@dataclass(frozen=True)
class Pairs:
    """An object, which may name a key twice."""

    pairs: tuple[tuple[str, Any], ...]


NUMBERS = ["0", "-0", "1", "5", "5.0", "50e-1", "0.05E+2", "-1.5", str(BIG), str(BIG - 1), f"{BIG}.0", "1e400", "0.1"]
KEYS = ["a", "b", "0", "1", "01", "-1", "\u00e9", "a b", 'q"q', "b\\s", "s/s", "$", "\U0001f600", "A", "'"]
TEXTS = ["", "a", "A", "a ", "5", "true", "null", "\u00e9", "e\u0301", "%", "\\", '"', "\n", "\U0001f600", "s/s"]

scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(TEXTS), st.sampled_from(NUMBERS).map(Number), st.text(max_size=3)
).filter(lambda value: not isinstance(value, str) or storable(value))
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=3).map(lambda pairs: Pairs(tuple(pairs)))
    ),
    max_leaves=8,
)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(TEXTS),
    st.sampled_from([0, 1, 5, 5.0, -1.5, BIG, BIG - 1, float(BIG), Decimal(BIG), Decimal("1e400"), 0.1]),
)


def written(value: Any, escaped: bool) -> str:
    match value:
        case Number(text):
            return text
        case Pairs(pairs):
            members = (f"{written(key, escaped)}:{written(member, escaped)}" for key, member in pairs)
            return "{" + ",".join(members) + "}"
        case list():
            return "[ " + " , ".join(written(element, escaped) for element in value) + "]"
        case str() if escaped:
            return json.dumps(value).replace("/", "\\/")
        case _:
            return json.dumps(value, ensure_ascii=False)


def reached(document: Any, path: list[str]) -> list[Any]:
    """The value at the path, or nothing."""
    if not path:
        return [document]
    head, *rest = path
    if isinstance(document, Pairs):
        members = dict(document.pairs)
        return reached(members[head], rest) if head in members else []
    indexes = {str(index): element for index, element in enumerate(document)} if isinstance(document, list) else {}
    return reached(indexes[head], rest) if head in indexes else []


def equal(stored: Any, wanted: Any) -> bool:
    if wanted is None or isinstance(wanted, bool):
        return stored is wanted
    if isinstance(wanted, str):
        return isinstance(stored, str) and stored == wanted
    return isinstance(stored, Number) and Fraction(stored.text) == Fraction(str(wanted))


def every_path(document: Any, depth: int = 4) -> list[list[str]]:
    if isinstance(document, Pairs):
        members = list(document.pairs)
    elif isinstance(document, list):
        members = [(str(index), element) for index, element in enumerate(document)]
    else:
        members = []
    return [[key, *rest] for key, member in members if depth for rest in ([], *every_path(member, depth - 1))]


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[tuple[Any, bool]], list[dict[str, Any]]]:
    """Documents with the way to write each, and filters that have a fair chance to meet them."""
    stored = draw(st.lists(st.tuples(documents, st.booleans()), min_size=1, max_size=6))
    known = [path for document, _ in stored for path in every_path(document)]
    anywhere = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4)
    some_path = st.one_of(st.sampled_from(known), anywhere) if known else anywhere
    filters = st.dictionaries(some_path.map(".".join), values, min_size=1, max_size=2)
    return stored, draw(st.lists(filters, min_size=1, max_size=4))


def check_against_the_oracle(url: str, examples: int) -> None:
    with asyncio.Runner() as runner:
        context = readers_on(url)
        readers = runner.run(context.__aenter__())

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(searches())
        def answers_are_right(search: tuple[list[tuple[Any, bool]], list[dict[str, Any]]]) -> None:
            stored, all_filters = search
            runner.run(check(stored, all_filters))

        async def check(stored: list[tuple[Any, bool]], all_filters: list[dict[str, Any]]) -> None:
            rows = [instance(f"i{n}", input=written(*document).encode()) for n, document in enumerate(stored)]
            await readers.replace_projections([f"i{n}" for n in range(6)], rows, [], [])
            for filters in all_filters:
                expected = {
                    f"i{n}"
                    for n, (document, _) in enumerate(stored)
                    if all(
                        any(equal(found, wanted) for found in reached(document, path.split(".")))
                        for path, wanted in filters.items()
                    )
                }
                assert await find(readers, filters) == expected, filters

        try:
            answers_are_right()
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_any_document_and_any_path_on_sqlite(sqlite_db: str) -> None:
    check_against_the_oracle(sqlite_db, 200)


@pytest.mark.postgres
def test_any_document_and_any_path_on_postgresql(postgres_db: str) -> None:
    check_against_the_oracle(postgres_db, 60)


@pytest.mark.mariadb
def test_any_document_and_any_path_on_mariadb(mariadb_db: str) -> None:
    check_against_the_oracle(mariadb_db, 60)


# -- the database does the narrowing -----------------------------------------------------------------------------


@on_every_database
async def test_an_ordinary_search_hands_python_no_row_too_many(database: str, request: pytest.FixtureRequest) -> None:
    searches: list[dict[str, Any]] = [
        {"customer.id": "c1"},
        {"customer.vip": True},
        {"customer.id": None},
        {"items.0.n": 1},
        {"v": 5},
        {"v": "5"},
        {"v": Decimal("0.1")},
        {"v": "missing"},
        {"w.x.y": 1},
    ]
    names = ["order-1", "order-2", "order-4", "five", "five-text", "one", "v-null", "v-true", "v-text-true", "null"]
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [instance(name, input=str(DOCUMENTS[name]).encode()) for name in names])
        await put(readers, [instance("decimal", input=b'{"v": 0.1}'), instance("decimal-far", input=b'{"v": 0.1001}')])
        for filters in searches:
            narrowed = select(tables.instances.c.instance_id).where(
                *(
                    paths.predicate(wanted, number, readers.db.dialect)
                    for number, wanted in enumerate(paths.parse_filters(filters))
                )
            )
            async with readers.db.reading("narrow") as connection:
                candidates = set((await connection.execute(narrowed)).scalars())
            assert candidates == await find(readers, filters), filters


@pytest.mark.postgres
async def test_a_search_by_keys_can_use_a_gin_index(postgres_db: str) -> None:
    (wanted,) = paths.parse_filters({"customer.id": "c1"})
    async with readers_on(postgres_db) as readers, readers.db.writing("explain") as connection:
        await connection.exec_driver_sql("CREATE INDEX by_input ON romancy_instances USING gin (input jsonb_path_ops)")
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # the table is too small to be worth it
        search = select(tables.instances.c.run).where(paths.predicate(wanted, 0, "postgresql"))
        compiled = search.compile(dialect=connection.dialect)
        plan = await connection.exec_driver_sql(f"EXPLAIN {compiled}", tuple(compiled.params.values()))
        assert "by_input" in "\n".join(plan.scalars())
