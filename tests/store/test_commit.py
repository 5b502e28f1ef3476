"""The batch commit, the same on each database: every part of it applied and read back, all or nothing, and fenced."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError

from romancy_stream.engine.commit import Commit, DeadLetter, Rejection
from romancy_stream.errors import FencedError, StoreUnavailableError
from romancy_stream.store import tables
from romancy_stream.store.database import finished
from romancy_stream.store.sql import SqlStore
from tests.store.conftest import Another
from tests.store.writing import activity, committed, event, everything, execute, instance, outgoing, owned, rows, timer


async def test_every_part_of_a_commit_is_there_afterwards(store: SqlStore) -> None:
    marks = [replace(mark, position=mark.part + 7) for mark in await owned(store, 0, 2)]
    letter = DeadLetter(
        "shop.commands", 0, 5, 11, "not_an_event", "no type", b"\x00k", (("h", b"\xff"), ("n", None)), b"\xff\x00"
    )
    refused = Rejection("o-9", 0, "order", "invalid_input", "bad", b'[{"loc": []}]', "/shop", "e-9", 12)
    await store.commit(
        Commit(
            marks=marks,
            offsets=[("shop.commands", 0, 6), ("shop.results", 2, 1)],
            watermarks=[(0, 2, 40), (2, 0, 41)],
            history=[
                event(attrs={"workflow": "order"}, payload=b'{"n": 1}'),
                event(seq=2, kind="timer.started", ref="t:1"),
            ],
            instances=[instance(error=b"null", parent_id="p-1", waiting_for=b'["event paid"]', version="v2")],
            activities=[activity(error=b'{"type": "x"}', next_attempt_us=77)],
            timers=[timer()],
            outbox=[outgoing(1), outgoing(2, to_partition=3, value=None), outgoing(1, part=2, value=b"\xff\x00\x27\\")],
            dead_letters=[letter],
            rejections=[refused],
        )
    )
    assert await rows(store, tables.partitions) == [
        (0, 1, 1, 7, "me", 0, 0, None),
        (1, 0, 0, 0, None, -1, 0, None),
        (2, 1, 1, 9, "me", 0, 0, None),
        (3, 0, 0, 0, None, -1, 0, None),
    ]
    assert await rows(store, tables.offsets) == [("shop.commands", 0, 6), ("shop.results", 2, 1)]
    assert await rows(store, tables.watermarks) == [(0, 2, 40), (2, 0, 41)]
    assert await rows(store, tables.history) == [
        ("o-1", 1, 1, 10, "workflow.started", None, '{"workflow":"order"}', '{"n": 1}'),
        ("o-1", 1, 2, 10, "timer.started", "t:1", "{}", None),
    ]
    started = ("o-1", 1, 0, "order", "running", 1, '{"n": 1}', None, "null", 10, 10, None, None, "/shop", "e-1")
    assert await rows(store, tables.instances) == [(*started, "p-1", '["event paid"]', "v2")]
    assert await rows(store, tables.activities) == [
        ("o-1", 1, "charge:1", "charge", "default", "scheduled", 1, 10, 10, None, 77, '{"type": "x"}', None)
    ]
    assert await rows(store, tables.timers) == [("o-1", 1, "sleep:1", 0, 99)]
    assert await rows(store, tables.outbox) == [
        (0, 1, "shop.events", "o-1", None, '[["ce_type","x"]]', b"{}", None),
        (0, 2, "shop.events", "o-1", 3, '[["ce_type","x"]]', None, None),
        (2, 1, "shop.events", "o-1", None, '[["ce_type","x"]]', b"\xff\x00\x27\\", None),
    ]
    kept = (b"\x00k", '[["h","/w=="],["n",null]]', b"\xff\x00", None, None, None)
    assert await rows(store, tables.dead_letters) == [("shop.commands", 0, 5, 11, "not_an_event", "no type", *kept)]
    assert await rows(store, tables.rejections) == [
        ("o-9", 0, "order", "invalid_input", "bad", '[{"loc": []}]', "/shop", "e-9", 12)
    ]


async def test_a_commit_changes_rows_that_are_there(store: SqlStore) -> None:
    marks = await owned(store, 0)
    marks = await committed(
        store,
        marks,
        offsets=[("shop.commands", 0, 6)],
        watermarks=[(0, 2, 40)],
        instances=[instance("o-1", parent_id="p-1", version="v1"), instance("o-2", input=b"2")],
        activities=[activity("o-1"), activity("o-2")],
        timers=[timer("a"), timer("b")],
        outbox=[outgoing(n) for n in range(1, 7)],
        rejections=[Rejection("o-9", 0, "order", "invalid_input", "bad", b"[]", "/shop", "e-9", 12)],
    )
    done = instance(
        "o-1", status="completed", seq=9, input=b'"ignored"', output=b"[1.50]", updated_us=20, finished_us=20
    )
    done = replace(done, waiting_for=b'["channel orders"]')
    again = instance("o-2", run=2, seq=1, input=b'"new"', started_us=30, updated_us=30, event_id="e-2", version="v2")
    await committed(
        store,
        marks,
        offsets=[("shop.commands", 0, 8)],
        watermarks=[(0, 2, 45)],
        updates=[replace(done, workflow="ignored", part=3, started_us=0, event_id="ignored")],
        instances=[again],
        activities=[activity("o-1", status="completed", attempt=2, updated_us=20, finished_us=20)],
        timers=[timer("b", due_us=100)],
        timers_gone=[("o-1", 1, "a")],
        outbox_sent=[(0, 1, 2), (0, 4, 4), (1, 1, 100)],
        outbox_refused=[(0, 5, "too large")],
        rejections_gone=["o-9", "unknown"],
    )
    assert await rows(store, tables.offsets) == [("shop.commands", 0, 8)]
    assert await rows(store, tables.watermarks) == [(0, 2, 45)]
    assert await store.get_instance("o-1") == replace(done, input=b'{"n": 1}', parent_id="p-1", version="v1")
    assert await store.get_instance("o-2") == again
    statuses = [(r[0], r[5], r[6]) for r in await rows(store, tables.activities)]
    assert statuses == [("o-1", "completed", 2), ("o-2", "scheduled", 1)]
    assert await rows(store, tables.timers) == [("o-1", 1, "b", 0, 100)]
    assert [(r[1], r[7]) for r in await rows(store, tables.outbox)] == [(3, None), (5, "too large"), (6, None)]
    assert await rows(store, tables.rejections) == []


@pytest.mark.parametrize("count", [2, 7, 1_100])
async def test_many_rows_of_each_part_go_in_one_commit(store: SqlStore, count: int) -> None:
    """The most are more than any statement of a dialect takes at once."""
    ids = [f"o-{n:04}" for n in range(count)]
    marks = await owned(store, 0)
    marks = await committed(
        store,
        marks,
        history=[event(i) for i in ids],
        instances=[instance(i) for i in ids],
        timers=[timer("t", i) for i in ids],
        outbox=[outgoing(n, i) for n, i in enumerate(ids)],
        rejections=[Rejection(i, 0, "order", "invalid_input", "bad", b"[]", "/shop", "e-9", 12) for i in ids],
    )
    await committed(
        store,
        marks,
        updates=[instance(i, status="completed", output=f'"{i}"'.encode()) for i in ids],
        timers_gone=[(i, 1, "t") for i in ids[1:]],
        outbox_sent=[(0, n, n) for n in range(1, count, 2)],
        outbox_refused=[(0, n, "too large") for n in range(0, count, 2)],
        rejections_gone=ids[1:],
    )
    known = await store.known([*ids, "unknown"])
    assert sorted(known.instances) == ids
    written = await rows(store, tables.instances)
    assert [(row[0], row[4], row[7]) for row in written] == [(i, "completed", f'"{i}"') for i in ids]
    assert [row[0] for row in await rows(store, tables.history)] == ids
    assert [row[0] for row in await rows(store, tables.timers)] == ids[:1]
    left = [(row[1], row[7]) for row in await rows(store, tables.outbox)]
    assert left == [(n, "too large") for n in range(0, count, 2)]
    assert [row[0] for row in await rows(store, tables.rejections)] == ids[:1]


async def test_numbers_of_the_log_keep_every_digit(store: SqlStore) -> None:
    payload = b'{"big":123456789012345678901234567890,"exact":1.10,"tiny":1E-400}'
    attrs = {"n": 2**62 + 1}
    marks = await owned(store, 0)
    await committed(store, marks, history=[event(payload=payload, attrs=attrs)], instances=[instance(input=payload)])
    found = (await store.histories(["o-1"]))["o-1"]
    assert [(e.payload, e.attrs) for e in found] == [(payload, attrs)]
    row = (await store.known(["o-1"])).instances["o-1"]
    assert row.input is not None
    assert b"123456789012345678901234567890" in row.input
    assert b"1.10" in row.input


async def test_text_compares_byte_by_byte(store: SqlStore) -> None:
    ids = ["a", "A", "ä", "a ", "a\u0308", "日本"]
    marks = await owned(store, 0)
    await committed(store, marks, instances=[instance(i, event_source=i) for i in ids])
    for instance_id in ids:
        assert list((await store.known([instance_id])).instances) == [instance_id]


async def test_a_dead_letter_is_kept_whatever_it_holds(store: SqlStore) -> None:
    marks = await owned(store, 0)
    letter = DeadLetter("t", 0, 1, 1, "bad", "nul \0 and \ud800", b"", (("n\0", b"\0"),), b"\0", "src\0", "id\0")
    await committed(store, marks, dead_letters=[letter])
    found = await store.dead_letter("t/0/1")
    assert found is not None
    assert (found.message, found.raw, found.key) == ("nul \ufffd and ?", b"\0", b"")
    assert (found.event_source, found.event_id) == ("src\ufffd", "id\ufffd")


# A value of one of PostgreSQL's marks alone, between others, empty ones, and commits of one row and of two.
@pytest.mark.parametrize("refs", [[""], ["", ""], ["a\x1fb", "c"], ["\x1e", "\x1ed"], [None], [None, "\x1e", "\x1f"]])
async def test_any_text_arrives_as_it_is(store: SqlStore, refs: list[str | None]) -> None:
    marks = await owned(store, 0)
    history = [event(seq=seq, ref=ref, payload=b'"\\u001f"') for seq, ref in enumerate(refs, 1)]
    await store.commit(Commit(marks=marks, history=history))
    assert [(row[5], row[7]) for row in await rows(store, tables.history)] == [(ref, '"\\u001f"') for ref in refs]


async def test_the_commit_returns_the_databases_clock(store: SqlStore) -> None:
    marks = await owned(store, 0)
    before = await store.now_us()
    during = await store.commit(Commit(marks=marks))
    assert before <= during <= await store.now_us()


STALE = [
    pytest.param({"epoch": 0}, id="older epoch"),
    pytest.param({"epoch": 99}, id="unknown epoch"),
    pytest.param({"commit_no": 1}, id="other commit_no"),
    pytest.param({"part": 77}, id="unknown partition"),
]


@pytest.mark.parametrize("stale", STALE)
async def test_one_stale_mark_of_two_and_nothing_is_written(store: SqlStore, stale: dict[str, int]) -> None:
    first, second = await owned(store, 0, 1)
    before = await everything(store)
    parts: dict[str, Any] = {"history": [event()], "instances": [instance()], "offsets": [("t", 0, 1)]}
    for marks in ([first, replace(second, **stale)], [replace(first, **stale), second]):
        with pytest.raises(FencedError):
            await store.commit(Commit(marks=marks, **parts))
    assert await everything(store) == before
    await store.commit(Commit(marks=[first, second], **parts))


async def test_a_takeover_fences_the_former_owner(store: SqlStore, another: Another) -> None:
    marks = await committed(store, await owned(store, 0), instances=[instance("o-1")])
    successor = await another()
    new_marks = await owned(successor, 0)
    assert new_marks == [replace(marks[0], epoch=2)]
    with pytest.raises(FencedError):
        await store.commit(Commit(marks=marks, instances=[instance("o-2")]))
    await successor.commit(Commit(marks=new_marks, instances=[instance("o-3")]))
    assert [row[0] for row in await rows(store, tables.instances)] == ["o-1", "o-3"]


async def test_of_two_who_commit_at_once_exactly_one_wins(store: SqlStore, another: Another) -> None:
    rival = await another()
    marks = await owned(store, 0, 1)
    for n in range(15):
        both = [
            side.commit(Commit(marks=marks, instances=[instance(f"{name}-{n}")], history=[event(f"x-{n}")]))
            for name, side in (("a", store), ("b", rival))
        ]
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["FencedError", "int"], outcomes
        marks = [replace(mark, commit_no=mark.commit_no + 1) for mark in marks]
    assert len(await rows(store, tables.instances)) == 15


async def test_a_row_that_the_database_refuses_undoes_the_whole_commit(store: SqlStore) -> None:
    marks = await owned(store, 0)
    before = await everything(store)
    bad = instance("o-2", workflow=None)
    with pytest.raises(IntegrityError) as caught:
        await store.commit(Commit(marks=marks, history=[event()], instances=[instance("o-1"), bad]))
    assert not isinstance(caught.value, StoreUnavailableError)
    assert await everything(store) == before
    await store.commit(Commit(marks=marks, instances=[instance("o-1")]))


async def test_history_is_append_only(store: SqlStore) -> None:
    marks = await committed(store, await owned(store, 0), history=[event()])
    before = await everything(store)
    with pytest.raises(IntegrityError):
        await store.commit(Commit(marks=marks, history=[event(kind="timer.fired"), event(seq=2)]))
    assert await everything(store) == before


@pytest.mark.parametrize(
    ("bad", "refused_by"),
    [
        pytest.param(instance(input=b'"\\u0000"'), {"postgresql"}, id="NUL in JSON"),
        pytest.param(instance(input=b"{not json"), {"postgresql", "mysql"}, id="no JSON"),
        pytest.param(instance(event_source="\0"), {"postgresql"}, id="NUL in text"),
        pytest.param(instance("x" * 256), {"postgresql", "mysql"}, id="id too long"),
        pytest.param(instance(event_id="\ud800"), {"postgresql", "mysql", "sqlite"}, id="half a surrogate pair"),
        pytest.param(instance(output=b"\xff"), {"postgresql", "mysql", "sqlite"}, id="no UTF-8"),
        pytest.param(instance(started_us=2**63), {"postgresql", "mysql", "sqlite"}, id="number too large"),
    ],
)
async def test_bad_data_is_no_outage(store: SqlStore, bad: Any, refused_by: set[str]) -> None:
    marks = await owned(store, 0)
    before = await everything(store)
    if store.db.dialect in refused_by:
        with pytest.raises(DBAPIError):
            await store.commit(Commit(marks=marks, offsets=[("t", 0, 1)], instances=[bad]))
        assert await everything(store) == before
    else:
        await store.commit(Commit(marks=marks, offsets=[("t", 0, 1)], instances=[bad]))


async def test_a_cancelled_caller_does_not_cut_a_commit_off(store: SqlStore) -> None:
    marks = await owned(store, 0)
    task = asyncio.create_task(finished(store.commit(Commit(marks=marks, instances=[instance()]))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await execute(store, "SELECT commit_no FROM romancy_partitions WHERE part = 0") == [(1,)]
    assert await store.get_instance("o-1") is not None
