"""Channels and groups against a world without I/O: every message once, in order, whatever crashes."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from romancy_stream.context import WorkflowContext
from romancy_stream.engine import channels
from romancy_stream.engine.commit import WAITING_FOR_MESSAGE
from romancy_stream.engine.inputs import ItemExpired
from romancy_stream.errors import (
    ChannelModeConflictError,
    MessageTimeoutError,
    NotSubscribedError,
    PayloadError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import Record
from romancy_stream.workflow import workflow
from tests.engine.world import START_US, World

PARTITIONS = 5
QUIET_S = 60.0
"""A receive that gets nothing for that long, in the time of the world, has had everything."""


def message(channel: str, data: Any, id_: str, to: str | None = None, **extensions: str) -> WireEvent:
    """From outside."""
    return WireEvent(
        id=id_,
        source="/test",
        type=w.CHANNEL_PUBLISH,
        subject=to,
        data=orjson.dumps(data),
        time="2026-01-01T00:00:00Z",
        extensions={w.X_CHANNEL: channel, **extensions},
    )


@workflow
async def listen(ctx: WorkflowContext, channel: str, mode: str) -> list[Any]:
    """Everything that comes, until nothing comes any more."""
    await ctx.subscribe(channel, mode)  # type: ignore[arg-type]  # from JSON
    got = []
    while True:
        try:
            got.append((await ctx.receive(channel, timeout=QUIET_S)).data)
        except MessageTimeoutError:
            return got


@workflow
async def talk(ctx: WorkflowContext, channel: str, count: int) -> None:
    await ctx.sleep(10)  # until everybody listens
    for number in range(count):
        ctx.publish(channel, [ctx.instance_id, number])
        if number % 3 == 2:
            await ctx.sleep(0.1)


def world(*workflows: Any, **options: Any) -> World:
    return World(*workflows, **{"partitions": PARTITIONS, **options})


def of(sender: str, got: list[Any]) -> list[int]:
    return [number for who, number in got if who == sender]


# -- broadcast -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("cached", [0, 1, 1_000])
def test_broadcast_reaches_every_subscriber_in_order(restarts: bool, cached: int) -> None:
    made = world(listen, talk, cached=cached)
    for number in range(3):
        made.start("listen", {"channel": "news", "mode": "broadcast"}, f"l{number}")
    for number in range(2):
        made.start("talk", {"channel": "news", "count": 7}, f"t{number}")
    made.run(restarts=restarts)
    for number in range(3):
        got = made.output(f"l{number}")
        assert of("t0", got) == of("t1", got) == list(range(7))
    made.check_projections()
    assert not made.dead_letters
    assert not made.members
    assert set(made.entities) == {"channel:news"}  # it has a mode for good, and nobody listens any more


def test_broadcast_starts_with_the_subscription_and_ends_with_it() -> None:
    @workflow
    async def late(ctx: WorkflowContext) -> list[Any]:
        await ctx.sleep(20)
        await ctx.subscribe("news")
        first = (await ctx.receive("news")).data
        await ctx.sleep(20)  # two more come into the mailbox
        ctx.unsubscribe("news")
        await ctx.sleep(20)  # these come to nobody
        await ctx.subscribe("news")
        return [first, (await ctx.receive("news")).data]

    made = world(late)
    made.start("late")
    for at_s in (5, 25, 26, 27, 50, 70):
        made.run(until_us=START_US + at_s * 1_000_000)
        made.now_us = START_US + at_s * 1_000_000
        made.send(message("news", at_s, f"m{at_s}"))
    made.run()
    assert made.output() == [25, 70]
    assert made.core.stats["message_without_subscriber"] == 2


def test_a_subscriber_is_waiting_for_a_message() -> None:
    made = world(listen)
    made.start("listen", {"channel": "news", "mode": "broadcast"})
    made.run(until_us=START_US + 1)
    row = made.instances["i"]
    assert row.status == WAITING_FOR_MESSAGE
    assert orjson.loads(row.waiting_for or b"") == ["message news"]


# -- competing -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("cached", [0, 1_000])
def test_competing_gives_each_message_to_one(restarts: bool, cached: int) -> None:
    made = world(listen, talk, cached=cached)
    for number in range(3):
        made.start("listen", {"channel": "jobs", "mode": "competing"}, f"l{number}")
    for number in range(2):
        made.start("talk", {"channel": "jobs", "count": 10}, f"t{number}")
    made.run(restarts=restarts)
    all_got = [made.output(f"l{number}") for number in range(3)]
    everything = sorted(tuple(each) for got in all_got for each in got)
    assert everything == [(f"t{t}", number) for t in range(2) for number in range(10)]
    for got in all_got:
        assert of("t0", got) == sorted(of("t0", got))
    assert all(all_got)  # the oldest demand first: everybody gets some
    assert not made.items
    assert not made.members
    made.check_projections()


@pytest.mark.parametrize("restarts", [False, True])
def test_a_backlog_waits_for_late_subscribers(restarts: bool) -> None:
    made = world(listen)
    for number in range(4):
        made.send(message("jobs", number, f"m{number}"))
    made.run(restarts=restarts)
    assert len(made.items) == 4
    made.start("listen", {"channel": "jobs", "mode": "competing"})
    made.run(restarts=restarts)
    assert made.output() == [0, 1, 2, 3]


def test_a_first_subscriber_that_broadcasts_gets_no_backlog() -> None:
    made = world(listen)
    made.send(message("news", 1, "m1"))
    made.run()
    made.start("listen", {"channel": "news", "mode": "broadcast"})
    made.run()
    assert made.output() == []
    assert not made.items


def test_what_is_offered_as_its_receive_ends_goes_to_another() -> None:
    """The demand and the offer cross the cancellation on the way: nothing is lost between claim and history."""

    @workflow
    async def impatient(ctx: WorkflowContext) -> str:
        await ctx.subscribe("jobs", "competing")
        try:
            await ctx.receive("jobs", timeout=1)
        except MessageTimeoutError:
            return "too late"
        return "got it"

    for delay_us in range(900_000, 1_100_000, 2_000):
        made = world(impatient, listen)
        made.start("impatient", None, "early")
        made.run(until_us=START_US + delay_us)
        made.now_us = max(made.now_us, START_US + delay_us)
        made.send(message("jobs", "m", "m1"))
        made.start("listen", {"channel": "jobs", "mode": "competing"}, "l")
        made.run()
        assert (made.output("early") == "got it") == (made.output("l") == [])
        assert made.output("l") in ([], ["m"])


def test_an_offer_to_an_instance_that_has_ended_is_made_again() -> None:
    @workflow
    async def fickle(ctx: WorkflowContext) -> None:
        await ctx.subscribe("jobs", "competing")
        waiting = asyncio.ensure_future(ctx.receive("jobs"))
        await ctx.sleep(1)
        assert not waiting.done()

    made = world(fickle, listen)
    made.start("fickle", None, "f")
    made.run(until_us=START_US + 500_000)
    made.send(message("jobs", "m", "m1"))
    while not any(row.attrs != b"{}" and b"offered" in row.attrs for row in made.items.values()):
        made.step()
    made.now_us = START_US + 2_000_000
    held, made.pending = made.pending, []  # the offer is on its way while the instance ends
    made.step()
    assert made.output("f") is None
    made.pending = held + made.pending
    made.start("listen", {"channel": "jobs", "mode": "competing"}, "l")
    made.run()
    assert made.output("l") == ["m"]


def test_competing_messages_grow_old() -> None:
    made = world(listen, channel_retention_s=100.0)
    made.send(message("jobs", 1, "m1"))
    made.run()
    [(name, seq)] = made.items
    row = made.items[name, seq]
    assert row.expires_us is not None
    assert row.expires_us == row.at_us + 100_000_000
    made.send(message("jobs", 2, "m2"))
    made.now_us += 50_000_000
    made.step()
    made.run()
    made.now_us = row.expires_us
    made.step([ItemExpired(row.part, name, seq)])
    made.start("listen", {"channel": "jobs", "mode": "competing"})
    made.run()
    assert made.output() == [2]
    assert made.core.stats["message_expired"] == 1


def test_what_has_grown_old_is_not_offered_before_it_is_collected() -> None:
    made = world(listen, channel_retention_s=100.0)
    made.send(message("jobs", 1, "m1"))
    made.run()
    made.now_us += 101_000_000
    made.start("listen", {"channel": "jobs", "mode": "competing"})
    made.run()
    assert made.output() == []


def test_a_full_channel_refuses_and_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "KEPT_MESSAGES", 3)
    made = world(talk, listen)
    made.start("talk", {"channel": "jobs", "count": 4}, "t")
    made.run()
    made.send(message("jobs", ["outside", 0], "m1"))
    made.run()
    assert [letter.reason for letter in made.dead_letters] == ["channel_full", "channel_full"]
    made.start("listen", {"channel": "jobs", "mode": "competing"}, "l")
    made.run(until_us=made.now_us + 1_000_000)
    for letter in made.dead_letters:  # what was refused can be sent again, from a workflow as from outside
        headers = [(name, value) for name, value in letter.headers if name != f"ce_{w.X_ORIGIN}"]
        again = decode(Record("shop.commands", 0, 0, letter.key, letter.raw, headers, 0))
        assert isinstance(again, WireEvent)
        made.send(again)
    made.run()
    assert made.output("l") == [["t", 0], ["t", 1], ["t", 2], ["t", 3], ["outside", 0]]


def test_bytes_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "KEPT_BYTES", 100)
    made = world(listen)
    for number in range(3):
        made.send(message("jobs", "x" * 40, f"m{number}"))
    made.run(restarts=True)
    assert [letter.reason for letter in made.dead_letters] == ["channel_full"]


def test_a_channel_has_a_limit_of_subscribers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MEMBERS", 1)
    made = world(listen, member)
    for number in range(2):
        made.start("listen", {"channel": "news", "mode": "broadcast"}, f"l{number}")
        made.start("member", "crew", f"g{number}")
    made.run(until_us=START_US + 1_000_000)
    for name in ("l", "g"):
        statuses = sorted(made.instances[f"{name}{number}"].status for number in range(2))
        assert statuses == ["failed", WAITING_FOR_MESSAGE]


# -- direct and groups -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("restarts", [False, True])
def test_direct_messages_wait_in_the_mailbox(restarts: bool) -> None:
    @workflow
    async def boss(ctx: WorkflowContext, to: str) -> None:
        for number in range(3):
            ctx.send_to(to, "orders", {"number": number}, {"urgent": number == 2})
            await ctx.sleep(1)

    @workflow
    async def clerk(ctx: WorkflowContext) -> list[Any]:
        await ctx.sleep(1.5)  # some are there before the subscription, some come later
        await ctx.subscribe("orders", "direct")
        got = [await ctx.receive("orders") for _ in range(3)]
        assert [each.sender for each in got] == ["b"] * 3
        assert got[0].sent_at < got[1].sent_at < ctx.now()
        return [[each.data, dict(each.metadata), each.id] for each in got]

    made = world(boss, clerk)
    made.start("clerk", None, "c")
    made.start("boss", "c", "b")
    made.run(restarts=restarts)
    assert made.output("c") == [[{"number": n}, {"urgent": n == 2}, f"b/1/message:{n + 1}"] for n in range(3)]
    made.check_projections()


def test_a_message_for_nobody_is_counted_or_a_dead_letter() -> None:
    @workflow
    async def send(ctx: WorkflowContext, to: str) -> None:
        ctx.send_to(to, "orders", 1)

    made = world(send)
    made.start("send", "nobody", "a")
    made.run()
    made.start("send", "a", "b")
    made.run()
    assert made.core.stats["message_for_nobody"] == 2
    assert not made.dead_letters
    made.send(message("orders", 1, "m1", to="nobody"))
    made.send(message("orders", 1, "m2", to="a"))
    made.run()
    assert sorted((letter.reason, letter.event_id) for letter in made.dead_letters) == [
        ("unknown_instance", "m1"),
        ("unknown_instance", "m2"),
    ]


@workflow
async def member(ctx: WorkflowContext, group: str) -> list[Any]:
    await ctx.join(group)
    await ctx.join(group)
    await ctx.subscribe("orders", "direct")
    first = (await ctx.receive("orders")).data
    if ctx.instance_id == "m0":
        ctx.leave(group)
    await ctx.sleep(20)
    try:
        return [first, (await ctx.receive("orders", timeout=1)).data]
    except MessageTimeoutError:
        return [first]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_group_gets_a_message_each(restarts: bool) -> None:
    @workflow
    async def boss(ctx: WorkflowContext) -> None:
        await ctx.sleep(1)
        ctx.send_to_group("crew", "orders", "first")
        await ctx.sleep(5)
        ctx.send_to_group("crew", "orders", "second")
        await ctx.sleep(100)
        ctx.send_to_group("crew", "orders", "nobody is left")

    made = world(boss, member)
    for number in range(3):
        made.start("member", "crew", f"m{number}")
    made.start("boss", None, "b")
    made.run(restarts=restarts)
    assert made.output("m0") == ["first"]
    assert made.output("m1") == made.output("m2") == ["first", "second"]
    assert not made.members
    assert "group:crew" not in made.entities
    made.check_projections()


def test_a_direct_message_ends_a_competing_receive() -> None:
    """Then its demand is withdrawn, and what was offered to it meanwhile goes elsewhere."""

    @workflow
    async def both(ctx: WorkflowContext) -> Any:
        await ctx.subscribe("jobs", "competing")
        return (await ctx.receive("jobs")).data

    made = world(both, listen)
    made.start("both", None, "b")
    made.run()
    made.send(message("jobs", "direct", "m1", to="b"), made.part_of("b"))
    made.send(message("jobs", "for all", "m2"), made.part_of("channel:jobs"))
    made.run()
    assert made.output("b") == "direct"
    made.start("listen", {"channel": "jobs", "mode": "competing"}, "l")
    made.run()
    assert made.output("l") == ["for all"]


# -- modes and mistakes ----------------------------------------------------------------------------------------------
def test_the_first_subscriber_decides_on_the_mode() -> None:
    @workflow
    async def try_all(ctx: WorkflowContext) -> list[str]:
        refused = []
        for mode in ("broadcast", "competing", "direct"):
            try:
                await ctx.subscribe("jobs", mode)
            except ChannelModeConflictError as error:
                refused.append(f"{mode}: {error}")
        return refused

    made = world(listen, try_all)
    made.start("listen", {"channel": "jobs", "mode": "competing"})
    made.run()  # it listened in vain and is gone, the mode stays
    made.start("try_all", None, "t")
    made.run(restarts=True)
    assert made.output("t") == [
        "broadcast: channel 'jobs' is competing, not broadcast: its first subscriber decided",
        "direct: channel 'jobs' is competing, not direct",
    ]


def test_receive_needs_a_subscription() -> None:
    @workflow
    async def hasty(ctx: WorkflowContext) -> list[str]:
        mistakes: list[str] = []
        for call in (
            lambda: ctx.receive("news"),
            lambda: ctx.subscribe("news", "loud"),  # type: ignore[arg-type]
            lambda: ctx.subscribe("x" * 201),
            lambda: ctx.subscribe(""),
            lambda: ctx.subscribe("a\nb"),
            lambda: ctx.receive("news", timeout=float("nan")),
        ):
            try:
                await call()
            except (NotSubscribedError, ValueError) as error:
                mistakes.append(type(error).__name__)
        ctx.unsubscribe("news")  # nothing to end
        return mistakes

    made = world(hasty)
    made.start("hasty")
    made.run()
    assert made.output() == ["NotSubscribedError"] + ["ValueError"] * 5
    assert made.kinds() == ["workflow.started", "workflow.completed"]


def test_data_of_the_wrong_type_is_used_up() -> None:
    @workflow
    async def typed(ctx: WorkflowContext) -> list[Any]:
        await ctx.subscribe("numbers", "direct")
        try:
            await ctx.receive("numbers", model=int)
        except PayloadError:
            return [(await ctx.receive("numbers", model=list[int])).data]
        return []

    made = world(typed)
    made.start("typed")
    for number, data in enumerate(["one", [1, 2]]):
        made.send(message("numbers", data, f"m{number}", to="i"), made.part_of("i"))
    made.run()
    assert made.output() == [[1, 2]]


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ({}, "missing_attribute"),
        ({w.X_CHANNEL: "x" * 201}, "bad_attribute"),
        ({w.X_CHANNEL: "news", w.X_METADATA: "[]"}, "bad_attribute"),
        ({w.X_CHANNEL: "news", w.X_METADATA: "{"}, "bad_attribute"),
        ({w.X_CHANNEL: "news", w.X_METADATA: '{"a":"' + "x" * 4_100 + '"}'}, "bad_attribute"),
        ({w.X_CHANNEL: "post"}, "wrong_mode"),
    ],
)
def test_bad_messages_from_outside_are_dead_letters(extensions: dict[str, str], reason: str) -> None:
    made = world(listen)
    made.start("listen", {"channel": "post", "mode": "direct"})
    made.run(until_us=START_US + 1_000_000)
    event = message("news", 1, "m")
    made.send(WireEvent(event.id, event.source, event.type, None, event.data, event.time, extensions))
    made.run()
    assert [(letter.reason, letter.event_id) for letter in made.dead_letters] == [(reason, "m")]


def test_a_message_from_outside_counts_once() -> None:
    made = world(listen)
    made.start("listen", {"channel": "news", "mode": "broadcast"})
    made.run(until_us=START_US + 1_000_000)
    for part in range(PARTITIONS):  # as producers with other hashes, and those who try again, would send it
        made.send(message("news", "once", "m1"), part)
        made.step()
        made.restart()
        made.send(message("news", "twice", "m2", to="i"), part)
        made.step()
    made.run()
    assert sorted(made.output()) == ["once", "twice"]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_times_that_nobody_lives_in_are_not_taken_over(time: str) -> None:
    @workflow
    async def when(ctx: WorkflowContext) -> bool:
        await ctx.subscribe("news", "direct")
        received = await ctx.receive("news")
        return abs((received.sent_at - ctx.now()).total_seconds()) < 1

    made = world(when)
    made.start("when")
    event = message("news", 1, "m", to="i")
    made.send(WireEvent(event.id, event.source, event.type, "i", event.data, time, event.extensions))
    made.run()
    assert made.output() is True
