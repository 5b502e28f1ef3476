"""The documented views show people what the tables hold, the same on each database."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from typing import Any

from romancy_stream.engine.commit import Commit, DeadLetter
from romancy_stream.store.sql import SqlStore
from tests.store.writing import activity, entity, event, execute, instance, item, member, outgoing, owned, timer

AT_US = 1_700_000_000_123_456
AT = datetime.datetime(2023, 11, 14, 22, 13, 20, 123456, datetime.UTC)


def moment(value: Any) -> datetime.datetime:
    """What a view shows as a time: timestamptz, datetime in UTC, or text in UTC."""
    shown = datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
    assert isinstance(shown, datetime.datetime)
    return shown.replace(tzinfo=datetime.UTC) if shown.tzinfo is None else shown


async def test_v_instances(store: SqlStore) -> None:
    marks = await owned(store, 2)
    running = instance("o-1", part=2, started_us=AT_US, updated_us=AT_US)
    failed = instance(
        "o-2", part=2, run=3, status="failed", error=b'{"type": "X"}', finished_us=AT_US + 1, parked="why"
    )
    failed = replace(failed, parent_id="p-1", waiting_for=b'["event paid"]', version="v2")
    await store.commit(Commit(marks=marks, instances=[running, failed]))
    quote = "`" if store.db.dialect == "mysql" else '"'
    columns = ["instance_id", "run", "workflow", "status", "input", "output", "error", "started_at", "updated_at"]
    columns += ["finished_at", f"{quote}partition{quote}", "parked"]
    first, second = await execute(store, f"SELECT {', '.join(columns)} FROM v_instances ORDER BY instance_id")
    assert first[:4] == ("o-1", 1, "order", "running")
    assert moment(first[7]) == moment(first[8]) == AT
    assert first[9:] == (None, 2, None)
    assert second[:4] == ("o-2", 3, "order", "failed")
    assert (second[6] if isinstance(second[6], dict) else json.loads(second[6])) == {"type": "X"}
    assert moment(second[9]) == AT + datetime.timedelta(microseconds=1)
    assert second[10:] == (2, "why")
    added = await execute(store, "SELECT parent_id, waiting_for, version FROM v_instances ORDER BY instance_id")
    assert added[0] == (None, None, None)
    waiting_for = added[1][1] if isinstance(added[1][1], list) else json.loads(added[1][1])
    assert (added[1][0], waiting_for, added[1][2]) == ("p-1", ["event paid"], "v2")
    async with store.db.reading("look") as connection:
        shown = (await connection.exec_driver_sql("SELECT * FROM v_instances")).keys()
    assert [*shown] == [name.strip('`"') for name in columns] + ["parent_id", "waiting_for", "version"]


async def test_v_activity_attempts(store: SqlStore) -> None:
    marks = await owned(store, 0)
    error = b'{"type": "TimeoutError", "message": "\\u0000"}'
    kinds: list[tuple[str, str, dict[str, Any], bytes | None]] = [
        ("activity.scheduled", "charge:1", {"name": "charge"}, b"{}"),
        ("activity.attempt_failed", "charge:1", {"attempt": 1, "next_at_us": 5}, error),
        ("activity.retried", "charge:1", {"attempt": 2}, None),
        ("activity.completed", "charge:1", {"attempt": 2, "worker": "w"}, b'"receipt"'),
        ("activity.attempt_failed", "mail:1", {"attempt": 1}, error),
        ("activity.failed", "mail:1", {"attempt": 1, "reason": "timeout"}, b'"gave up while it backed off"'),
        ("activity.failed", "pack:1", {"attempt": 1, "reason": "terminal"}, error),
    ]
    history = [
        event("o-1", seq, kind=kind, ref=ref, attrs=attrs, payload=payload, at_us=AT_US)
        for seq, (kind, ref, attrs, payload) in enumerate(kinds, start=1)
    ]
    await store.commit(Commit(marks=marks, history=history, activities=[activity("o-1", "charge:1", name="charge")]))
    found = await execute(
        store,
        "SELECT instance_id, run, activity_id, name, attempt, outcome, error, at FROM v_activity_attempts "
        "ORDER BY activity_id, attempt",
    )
    assert [row[:7] for row in found] == [
        ("o-1", 1, "charge:1", "charge", 1, "failed", error.decode()),
        ("o-1", 1, "charge:1", "charge", 2, "completed", None),
        ("o-1", 1, "mail:1", None, 1, "failed", error.decode()),
        ("o-1", 1, "pack:1", None, 1, "terminal", error.decode()),
    ]
    assert {moment(row[7]) for row in found} == {AT}


async def test_v_stuck(store: SqlStore) -> None:
    assert await execute(store, "SELECT * FROM v_stuck") == []
    marks = await owned(store, 0)
    letter = DeadLetter("shop.commands", 0, 7, AT_US, "not_json", "at 3", None, (), b"{")
    backing_off = {"status": "backing_off", "scheduled_us": AT_US}
    await store.commit(
        Commit(
            marks=marks,
            instances=[instance("o-1", parked="diverged", updated_us=AT_US), instance("o-2")],
            activities=[
                activity("o-2", "a:1", attempt=5, error=b'"refused"', **backing_off),
                activity("o-2", "a:2", attempt=6, **backing_off),
                activity("o-2", "a:3", attempt=4, **backing_off),
                activity("o-2", "a:4", attempt=9, status="scheduled"),
            ],
            timers=[timer(f"retry:a:{n}", "o-2") for n in range(1, 5)],
            outbox=[outgoing(1, "o-3"), outgoing(2, "o-4")],
            dead_letters=[letter, DeadLetter("shop.commands", 0, 8, AT_US, "x", "y", None, (), None)],
        )
    )
    await store.mark_replayed("shop.commands/0/8", 1)
    await store.commit(
        Commit(
            marks=[type(marks[0])(0, marks[0].epoch, 1, 2)],
            outbox_refused=[(0, 1, "too large")],
        )
    )
    found = await execute(store, "SELECT kind, instance_id, since, detail FROM v_stuck ORDER BY kind, detail")
    assert [(row[0], row[1], row[3]) for row in found] == [
        ("backing_off", "o-2", 'a:1: attempt 5, last error "refused"'),
        ("backing_off", "o-2", "a:2: attempt 6, last error unknown"),
        ("dead_letter", None, "shop.commands/0/7: not_json: at 3"),
        ("parked", "o-1", "diverged"),
        ("refused", "o-3", "partition 0, position 1 for shop.events: too large"),
    ]
    assert [None if row[2] is None else moment(row[2]) for row in found] == [AT, AT, AT, AT, None]


async def test_v_channels(store: SqlStore) -> None:
    await store.commit(
        Commit(
            marks=await owned(store, 0),
            entities=[
                entity("channel:orders", kind="channel", head=b'{"name": "orders", "mode": "broadcast", "n": [1]}'),
                entity("channel:new", kind="channel"),
                entity("channel:odd", kind="channel", head=b'{"name": null, "mode": {"a": 1}}'),
                entity(),
            ],
            members=[member("channel:orders", f"o-{n}", "sub:1") for n in range(3)] + [member()],
            items=[item(n, "channel:orders") for n in (4, 5)] + [item()],
        )
    )
    found = await execute(store, "SELECT channel, mode, subscribers, backlog FROM v_channels")
    shown = sorted(found, key=lambda row: row[2])
    assert [row[2:] for row in shown] == [(0, 0), (0, 0), (3, 2)]
    assert shown[-1][:2] == ("orders", "broadcast")
    assert {row[0] for row in shown[:2]} == {None}


async def test_v_event_waits(store: SqlStore) -> None:
    waited = event("o-1", 2, run=2, kind="event.awaited", ref="paid:1", at_us=AT_US)
    await store.commit(
        Commit(
            marks=await owned(store, 0),
            entities=[
                entity(head=b'{"type": "paid", "key": "k1"}'),
                entity("event:bare"),
                entity("channel:orders", kind="channel"),
            ],
            members=[
                member(run=2, attrs=b'{"match": {"n": 1}, "wait": "paid:1"}'),
                member("event:bare", "o-2", ref="bare:1", attrs=b'{"wait": null}'),
                member("channel:orders", "o-3"),
            ],
            history=[waited, event("o-1", 3, run=2, kind="event.received", ref="paid:1", at_us=AT_US + 9)],
        )
    )
    first, second = await execute(
        store,
        "SELECT event_type, event_key, instance_id, run, wait_id, matches, since FROM v_event_waits "
        "ORDER BY instance_id",
    )
    assert first[:5] == ("paid", "k1", "o-1", 2, "paid:1")
    assert json.loads(first[5]) == {"n": 1}
    assert moment(first[6]) == AT
    assert second == (None, None, "o-2", 1, "bare:1", None, None)
