"""One instance, its log and its activities, dead letters, and what verify and rebuild read and write."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from romancy_stream.engine.commit import TimerRow
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.errors import InvalidPageTokenError, StoreUnavailableError
from romancy_stream.store import tables
from romancy_stream.store.database import Database
from romancy_stream.store.port import DeadLetterRow
from romancy_stream.store.readers import Readers
from tests.store.reading import activity, instance, on_every_database, put, put_rows, readers_on

NOBODY = ["", "nobody", "A", "a ", "a\0", "\ud800", "a' OR '1'='1"]


def value_of(raw: bytes | None) -> Any:
    return None if raw is None else json.loads(raw, parse_int=Decimal, parse_float=Decimal)


def logged(instance_id: str, seq: int, **columns: Any) -> dict[str, Any]:
    row = {"run": 1, "at_us": 1_000 + seq, "kind": "timer.fired", "ref": None, "attrs": "{}", "payload": None}
    return {"instance_id": instance_id, "seq": seq, **row, **columns}


# -- one instance


@on_every_database
async def test_an_instance_with_every_field(database: str, request: pytest.FixtureRequest) -> None:
    full = instance(
        "a",
        run=3,
        part=7,
        workflow="Bestellung \U0001f600",
        status="failed",
        seq=12,
        input=b'{"big": 12345678901234567890.5, "text": "caf\\u00e9 \xc3\xa9"}',
        output=b"null",
        error=b'{"type": "ValueError"}',
        started_us=1_700_000_000_000_001,
        updated_us=1_700_000_000_000_002,
        finished_us=1_700_000_000_000_003,
        parked="why \u2028 not",
        event_source="https://example.com/" + "x" * 1000,
        event_id="e/1",
        parent_id="p" * 255,
        waiting_for=b'["event paid", "channel \\u00e9"]',
        version="v" * 64,
    )
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [full, instance("b")])
        found = await readers.get_instance("a")
        assert found is not None
        for name in (field.name for field in fields(full)):
            stored, wanted = getattr(found, name), getattr(full, name)
            assert type(stored) is type(wanted), name
            if isinstance(wanted, bytes):
                stored, wanted = value_of(stored), value_of(wanted)
            assert stored == wanted, name
        assert await readers.get_instance("b") == instance("b")
        for unknown in NOBODY:
            assert await readers.get_instance(unknown) is None, unknown


@on_every_database
async def test_json_of_the_projection_comes_back_as_text_of_the_same_value(
    database: str, request: pytest.FixtureRequest
) -> None:
    texts = [
        "null",
        "true",
        '"5"',
        '""',
        "5",
        "5.0",
        "-0.0",
        "1e400",
        "9007199254740993",
        "12345678901234567890123",
        "0.10000000000000000001",
        '" \\u0001\\" \U0001f600"',
        "[]",
        '[1, [2.50, {"a": null}]]',
        '{"": {"k": [true, false]}}',
        "[" * 30 + "]" * 30,
    ]
    async with readers_on(request.getfixturevalue(database)) as readers:
        rows = [
            instance(f"i{number:02}", input=text.encode(), output=text.encode(), error=text.encode())
            for number, text in enumerate(texts)
        ]
        await put(readers, [*rows, instance("none")])
        for number, text in enumerate(texts):
            found = await readers.get_instance(f"i{number:02}")
            assert found is not None
            for raw in (found.input, found.output, found.error):
                assert isinstance(raw, bytes)
                assert value_of(raw) == value_of(text.encode()), text
        none = await readers.get_instance("none")
        assert none is not None
        assert (none.input, none.output, none.error) == (None, None, None)


# -- the log


@on_every_database
async def test_history_is_the_log_as_it_was_written(database: str, request: pytest.FixtureRequest) -> None:
    payload = '{"b": 1.0, "a":12345678901234567890.10 ,"x": "\\u00e9\u00e9",\n "b": null}'
    attrs = '{"due_us": 9007199254740993, "policy": {"k": [1.5, null, true, "\U0001f600"]}}'
    rows = [
        logged("a", 2, ref="t:1", attrs=attrs, payload=payload, kind="activity.completed"),
        logged("a", 1, kind="workflow.started", payload="null"),
        logged("a", 10),
        logged("a", 3),
        logged("a", 1, run=2, payload='"second"'),
        logged("A", 1, payload='"other"'),
    ]
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put_rows(readers, tables.history, rows)
        first = await readers.history("a", 1)
        assert [event.seq for event in first] == [1, 2, 3, 10]
        assert first[0] == HistoryEvent("a", 1, 1, 1_001, "workflow.started", None, {}, b"null")
        assert first[1].payload == payload.encode()
        assert first[1].attrs == {"due_us": 9007199254740993, "policy": {"k": [1.5, None, True, "\U0001f600"]}}
        assert (first[1].ref, first[1].kind, first[1].at_us) == ("t:1", "activity.completed", 1_002)
        assert first[2].payload is None
        second = [HistoryEvent("a", 2, 1, 1_001, "timer.fired", payload=b'"second"')]
        assert await readers.history("a") == second
        assert await readers.history("a", 2) == second
        for run in (0, -1, 3, 2**31, 2**70):
            assert await readers.history("a", run) == [], run
        for unknown in set(NOBODY) - {"A"}:
            assert await readers.history(unknown) == [], unknown


@on_every_database
async def test_activities_of_the_current_run(database: str, request: pytest.FixtureRequest) -> None:
    one = activity("a", "charge:1", status="failed", attempt=5, finished_us=9, error=b'{"n": 9007199254740993.5}')
    early = activity("a", "z:1", scheduled_us=10, next_attempt_us=2**60, status="backing_off")
    tie = [activity("a", name, scheduled_us=20) for name in ("B", "a", "\u00e9")]
    old = activity("b", "save:1", run=1)
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [instance("a"), instance("b", run=2)], [*reversed(tie), one, early, old])
        await put_rows(readers, tables.history, [logged("a", 1), logged("b", 1), logged("b", 1, run=2)])
        found = await readers.activities("a")
        assert [row.activity_id for row in found] == ["z:1", "B", "a", "\u00e9", "charge:1"]
        assert found[0] == early
        assert value_of(found[4].error) == {"n": Decimal("9007199254740993.5")}
        assert (found[4].status, found[4].attempt, found[4].finished_us) == ("failed", 5, 9)
        assert await readers.activities("a", 1) == found
        assert await readers.activities("b") == []  # the new run has none yet
        assert await readers.activities("b", 2) == []
        assert await readers.activities("b", 1) == [old]
        for unknown in NOBODY:
            assert await readers.activities(unknown) == [], unknown


# -- dead letters


def letter(topic: str, part: int, offset: int, at_us: int, **columns: Any) -> dict[str, Any]:
    rest = {"record_key": None, "headers": "[]", "raw": None, "event_source": None, "event_id": None}
    reasons = {"reason": "invalid_json", "message": "no", "replayed_us": None}
    key = {"topic": topic, "part": part, "record_offset": offset, "at_us": at_us}
    return {**key, **rest, **reasons, **columns}


@on_every_database
async def test_a_dead_letter_is_whole(database: str, request: pytest.FixtureRequest) -> None:
    every_byte = bytes(range(256))
    headers = [["ce_id", base64.b64encode(b"\xff\0").decode()], ["none", None], ["ce_id", ""]]
    row = letter("shop.commands", 3, 2**40, 5, record_key=every_byte, raw=every_byte, headers=json.dumps(headers))
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put_rows(readers, tables.dead_letters, [{**row, "event_source": "s", "event_id": "e"}])
        await put_rows(readers, tables.dead_letters, [letter("shop/odd", 0, 0, 6)])
        dlq_id = f"shop.commands/3/{2**40}"
        whole = DeadLetterRow(
            dlq_id=dlq_id,
            topic="shop.commands",
            partition=3,
            offset=2**40,
            at_us=5,
            reason="invalid_json",
            message="no",
            key=every_byte,
            headers=(("ce_id", b"\xff\0"), ("none", None), ("ce_id", b"")),
            raw=every_byte,
            event_source="s",
            event_id="e",
            replayed_us=None,
        )
        assert await readers.dead_letter(dlq_id) == whole
        empty = await readers.dead_letter("shop/odd/0/0")
        assert empty is not None
        assert (empty.key, empty.headers, empty.raw, empty.event_id) == (None, (), None, None)
        assert await readers.dead_letters(10) == [empty, whole]


@pytest.mark.parametrize(
    "dlq_id",
    [
        *("", "a", "a/1", "a/1/", "a/1/x", "a/-1/1", "a/01/1", "a/1/2/3", "/1/1", "a/1/1 ", "a/1/1\n", "a/1/\u0661"),
        *(f"a/{2**31}/1", f"a/1/{2**63}", "b/1/1", "A/1/1", "a /1/1", "a\0/1/1", "\ud800/1/1"),
    ],
    ids=repr,
)
async def test_what_is_no_dead_letters_id(sqlite_db: str, dlq_id: str) -> None:
    async with readers_on(sqlite_db) as readers:
        await put_rows(readers, tables.dead_letters, [letter("a", 1, 1, 5)])
        assert await readers.dead_letter(dlq_id) is None
        await readers.mark_replayed(dlq_id, 7)
        with pytest.raises(InvalidPageTokenError):
            await readers.dead_letters(10, before=dlq_id)
        (untouched,) = await readers.dead_letters(10)
        assert untouched.replayed_us is None


@on_every_database
async def test_dead_letters_newest_first_page_by_page(database: str, request: pytest.FixtureRequest) -> None:
    offsets = {1: (90, 110), 2: (9, 11)}
    keys = [(at, topic, part, offset) for at in offsets for topic in "Ba" for part in (0, 10) for offset in offsets[at]]
    expected = [f"{topic}/{part}/{offset}" for _, topic, part, offset in sorted(keys, reverse=True)]
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put_rows(
            readers, tables.dead_letters, [letter(topic, part, offset, at) for at, topic, part, offset in keys]
        )
        assert [row.dlq_id for row in await readers.dead_letters(1000)] == expected
        for limit in (1, 3, 16):
            seen: list[str] = []
            before = None
            while page := await readers.dead_letters(limit, before):
                assert len(page) <= limit
                seen += [row.dlq_id for row in page]
                before = seen[-1]
                await put_rows(readers, tables.dead_letters, [letter("new", limit, len(seen), 3)])
            assert seen == expected
            async with readers.db.writing("tidy up") as connection:
                await connection.execute(tables.dead_letters.delete().where(tables.dead_letters.c.topic == "new"))


@on_every_database
async def test_a_replay_marks_one_dead_letter(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put_rows(readers, tables.dead_letters, [letter("a", 1, 1, 5), letter("a", 1, 2, 5), letter("a", 2, 1, 5)])
        await readers.mark_replayed("a/1/2", 2**50)
        marks = {row.dlq_id: row.replayed_us for row in await readers.dead_letters(10)}
        assert marks == {"a/1/1": None, "a/1/2": 2**50, "a/2/1": None}


# -- verify and rebuild


@on_every_database
async def test_a_scan_meets_every_instance_once_with_its_whole_log(
    database: str, request: pytest.FixtureRequest
) -> None:
    names = ["a", "A", "a b", "\u00e9", "b", "a-b", "\U0001f600"]
    rows = [
        logged(name, seq, run=run, payload=f'"{name}"')
        for number, name in enumerate(names)
        for run in (1, 2)
        for seq in range(1, 2 + number)
    ]
    async with readers_on(request.getfixturevalue(database)) as readers:
        assert [page async for page in readers.scan_histories()] == []
        await put_rows(readers, tables.history, list(reversed(rows)))
        for page_instances in (1, 2, 3, 7, 500):
            pages = [page async for page in readers.scan_histories(page_instances)]
            assert [len(page) for page in pages[:-1]] == [page_instances] * (len(pages) - 1)
            assert sorted(name for page in pages for name in page) == sorted(names)
            for page in pages:
                for name, events in page.items():
                    expected = [(run, seq) for run in (1, 2) for seq in range(1, 2 + names.index(name))]
                    assert [(event.run, event.seq) for event in events] == expected
                    assert {event.instance_id for event in events} == {name}
                    assert {event.payload for event in events} == {f'"{name}"'.encode()}


async def test_a_scan_by_pages_of_nothing(sqlite_db: str) -> None:
    async with readers_on(sqlite_db) as readers:
        with pytest.raises(ValueError, match="page of 0"):
            await anext(aiter(readers.scan_histories(0)))


@on_every_database
async def test_projections_are_replaced_whole_and_only_those(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        bystander = instance("bystander", input=b"[1]")
        activities = [activity("bystander", "x:1"), activity("a", "x:1", run=1), activity("a", "y:1", run=2)]
        timers = [TimerRow("bystander", 1, "t:1", 0, 5), TimerRow("a", 1, "t:1", 3, 5)]
        await put(readers, [bystander, instance("a", input=b'"old"'), instance("b")], activities, timers)
        assert await readers.projected(["a", "bystander", "nobody"]) == (
            [instance("a", input=b'"old"'), bystander],
            [activities[1], activities[2], activities[0]],
            [timers[1], timers[0]],
        )

        rebuilt = instance("a", run=2, input=b'"new"', output=b"null")
        ended = activity("a", "z:1", run=2, status="completed", error=b"{}")
        await readers.replace_projections(["a", "b", "never"], [rebuilt], [ended], [])
        assert await readers.projected(["a", "b", "never"]) == ([rebuilt], [ended], [])
        assert await readers.projected(["bystander"]) == ([bystander], [activities[0]], [timers[0]])
        assert await readers.projected([]) == ([], [], [])


@on_every_database
async def test_a_replacement_that_fails_changes_nothing(database: str, request: pytest.FixtureRequest) -> None:
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, [instance("a")], [activity("a", "x:1")], [TimerRow("a", 1, "t:1", 0, 5)])
        before = await readers.projected(["a"])
        twice = [activity("a", "y:1"), activity("a", "y:1")]
        with pytest.raises(IntegrityError):
            await readers.replace_projections(["a"], [instance("a", seq=9)], twice, [])
        assert await readers.projected(["a"]) == before
        with pytest.raises(ValueError, match="stray"):
            await readers.replace_projections(["a"], [], [], [TimerRow("stray", 1, "t:1", 0, 5)])
        assert await readers.projected(["a"]) == before


@on_every_database
async def test_more_instances_than_one_statement_takes(database: str, request: pytest.FixtureRequest) -> None:
    rows = [instance(f"i{number:04}", started_us=number, input=b"%d" % number) for number in range(1_203)]
    names = [row.instance_id for row in rows]
    async with readers_on(request.getfixturevalue(database)) as readers:
        await put(readers, rows)
        assert (await readers.projected([*reversed(names), *names]))[0] == rows
        await readers.replace_projections(names, rows[:2], [], [])
        assert (await readers.projected(names))[0] == rows[:2]


# -- failures


async def test_a_database_that_is_away() -> None:
    database = Database("postgresql://romancy@127.0.0.1:1/romancy")
    await database.open()
    readers = Readers()
    readers.db = database
    try:
        with pytest.raises(StoreUnavailableError, match="get instance"):
            await readers.get_instance("a")
        with pytest.raises(StoreUnavailableError, match="mark dead letter"):
            await readers.mark_replayed("a/1/1", 5)
        with pytest.raises(StoreUnavailableError, match="scan histories"):
            await anext(aiter(readers.scan_histories()))
    finally:
        await database.close()
