"""Channels and the code that uses them: replay, cancelled receives, halts, further runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from romancy_stream.context import WorkflowContext
from romancy_stream.errors import MessageTimeoutError
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import workflow
from tests.engine.test_channels import listen, message, talk, world
from tests.engine.world import START_US


# -- code ------------------------------------------------------------------------------------------------------------
def test_publishing_is_not_repeated_on_replay() -> None:
    made = world(listen, talk, cached=0)
    made.start("listen", {"channel": "news", "mode": "broadcast"}, "l")
    made.start("talk", {"channel": "news", "count": 9}, "t")
    made.run(restarts=True)
    assert made.output("l") == [["t", number] for number in range(9)]
    sent = [event.ref for event in made.history["t"] if event.kind == "message.sent"]
    assert sent == [f"message:{number + 1}" for number in range(9)]
    mails = [row for row in made.outbox if row.key == "channel:news" and ("ce_romancyop", "publish") in row.headers]
    assert len(mails) == 9


def test_code_that_is_cancelled_leaves_its_message_to_others() -> None:
    @workflow
    async def juggling(ctx: WorkflowContext) -> list[Any]:
        await ctx.subscribe("jobs", "competing")
        first, second, third = (asyncio.ensure_future(ctx.receive("jobs")) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()  # within the step that it began in
        await ctx.sleep(1)
        second.cancel()
        got = [(await third).data]
        await asyncio.wait([first, second])
        while len(got) < 3:
            got.append((await ctx.receive("jobs", timeout=5)).data)
        return got

    made = world(juggling)
    made.start("juggling")
    made.run(until_us=START_US + 2_000_000)
    for number in range(3):
        made.send(message("jobs", number, f"m{number}"))
    made.run(restarts=True)
    assert made.output() == [0, 1, 2]
    assert "receive.started receive:1" not in made.kinds()
    assert "receive.cancelled receive:2" in made.kinds()
    assert not made.members


@pytest.mark.parametrize("mode", ["broadcast", "competing", "direct"])
def test_receives_that_wait_hear_of_the_end_of_the_subscription(mode: str) -> None:
    @workflow
    async def ending(ctx: WorkflowContext, mode: str) -> list[str]:
        await ctx.subscribe("jobs", mode)  # type: ignore[arg-type]
        waiting = [asyncio.ensure_future(ctx.receive("jobs")) for _ in range(3)]
        await ctx.sleep(1)
        waiting[0].cancel()
        ctx.unsubscribe("jobs")
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        await ctx.sleep(1)
        return [type(each).__name__ for each in ended]

    made = world(ending)
    made.start("ending", mode)
    made.run(restarts=True)
    assert made.output() == ["CancelledError", "NotSubscribedError", "NotSubscribedError"]
    assert not made.members
    made.check_projections()


@pytest.mark.parametrize("what", ["subscribe", "join"])
def test_a_subscription_can_be_given_up_before_it_is_agreed_on(what: str) -> None:
    @workflow
    async def hesitant(ctx: WorkflowContext, what: str) -> str:
        ask = ctx.join if what == "join" else ctx.subscribe
        first, second = (asyncio.ensure_future(ask("news")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second  # both asked once, and one goes on
        third = asyncio.ensure_future(ask("other"))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(ctx.sleep(0))
        await asyncio.sleep(0)
        third.cancel()
        await waiting
        fourth = asyncio.ensure_future(ask("third"))
        timer = asyncio.ensure_future(ctx.sleep(-1))
        await timer  # the timer is due at once, and before the answer
        fourth.cancel()
        await ctx.sleep(10)
        return "done"

    made = world(hesitant)
    made.start("hesitant", what)
    made.run(restarts=True)
    assert made.output() == "done"
    assert not made.members
    assert sum(event.kind in ("channel.subscribed", "group.joining") for event in made.history["i"]) == 2
    assert sum(event.kind in ("channel.unsubscribed", "group.left") for event in made.history["i"]) == 1
    made.check_projections()


def test_a_mode_is_asked_for_once() -> None:
    @workflow
    async def undecided(ctx: WorkflowContext) -> list[str]:
        asked = await asyncio.gather(
            ctx.subscribe("news"), ctx.subscribe("news", "competing"), ctx.subscribe("news"), return_exceptions=True
        )
        return [type(each).__name__ for each in asked]

    made = world(undecided)
    made.start("undecided")
    made.run()
    assert made.output() == ["NoneType", "ChannelModeConflictError", "NoneType"]


def test_messages_reach_code_that_was_parked() -> None:
    """They are recorded for what the state knew, and delivered to what the code has by then."""

    def version(broken: bool) -> Any:
        @workflow(name="parked")
        async def parked(ctx: WorkflowContext) -> list[Any]:
            await ctx.subscribe("news")
            await ctx.subscribe("post", "direct")
            if broken:
                ctx.publish_event(type="not.there.before")
            got: list[Any] = []
            while len(got) < 3:
                try:
                    got.append((await ctx.receive("news", timeout=10)).data)
                except MessageTimeoutError:
                    got.append("timeout")
            return [*got, (await ctx.receive("post")).data]

        return parked

    good, bad = version(broken=False), version(broken=True)
    made = world(good)
    made.start("parked")
    made.run(until_us=START_US + 1_000_000)
    made.restart(bad)
    for number in range(2):  # the first is for the receive that is open, the second for the mailbox
        made.send(message("news", number, f"m{number}"))
        made.run(until_us=START_US + 1_000_000)
    assert made.instances["i"].parked is not None
    made.run()
    made.send(message("post", "p", "p", to="i"))
    made.run()
    made.restart(good)
    made.run(restarts=True)
    assert made.output() == [0, 1, "timeout", "p"]
    made.check_projections()


def test_what_is_on_its_way_as_a_subscription_ends_is_not_for_the_next_one() -> None:
    @workflow
    async def twice(ctx: WorkflowContext) -> list[Any]:
        await ctx.subscribe("news")
        await ctx.sleep(1)
        ctx.unsubscribe("news")
        await ctx.subscribe("news")
        return [(await ctx.receive("news")).data]

    made = world(twice)
    made.start("twice")
    made.run(until_us=START_US + 500_000)
    made.send(message("news", "for the first", "m1"), made.part_of("channel:news"))
    made.step()
    held, made.pending = made.pending, []
    made.now_us = START_US + 2_000_000
    made.step()
    assert "channel.unsubscribed" in made.kinds()
    assert made.instances["i"].status != "completed"
    made.pending = held + made.pending
    made.run()
    made.send(message("news", "for the second", "m2"))
    made.run()
    assert made.output() == ["for the second"]
    assert made.core.stats["late_message"] == 1


# -- from run to run -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("restarts", [False, True])
def test_subscriptions_memberships_and_unread_messages_survive_recur(restarts: bool) -> None:
    @workflow
    async def going_on(ctx: WorkflowContext, got: list[Any]) -> list[Any]:
        await ctx.subscribe("post", "direct")
        await ctx.subscribe("news")
        await ctx.join("crew")
        if ctx.run < 3:
            got.append((await ctx.receive("news")).data)
            await ctx.sleep(10)  # what comes meanwhile stays unread
            await ctx.recur(got)
        got += [(await ctx.receive("news", timeout=5)).data for _ in range(2)]
        letter = await ctx.receive("post")
        return [*got, letter.data, dict(letter.metadata), letter.id]

    @workflow
    async def boss(ctx: WorkflowContext) -> None:
        ctx.send_to_group("crew", "post", "to all", {"n": 1})

    made = world(going_on, boss)
    made.start("going_on", [])
    made.run(until_us=START_US + 1_000_000)
    asked = len(made.outbox)
    for number in range(4):
        made.send(message("news", number, f"m{number}"))
        made.run(until_us=START_US + 1_000_000, restarts=restarts)
    made.start("boss", None, "b")
    made.run(restarts=restarts)
    assert made.output() == [0, 1, 2, 3, "to all", {"n": 1}, "b/1/message:1"]
    assert made.instances["i"].run == 3
    mails = [dict(row.headers).get("ce_romancyop") for row in made.outbox[asked:]]
    assert "subscribe" not in mails
    assert "join" not in mails
    assert not made.members
    made.check_projections()


def test_receives_that_are_open_at_recur_are_withdrawn() -> None:
    @workflow
    async def impatient(ctx: WorkflowContext) -> Any:
        await ctx.subscribe("jobs", "competing")
        waiting = asyncio.ensure_future(ctx.receive("jobs"))
        asking = asyncio.ensure_future(ctx.subscribe("news"))
        joining = asyncio.ensure_future(ctx.join("crew"))
        if ctx.run == 1:
            more = asyncio.ensure_future(ctx.receive("jobs"))
            await ctx.sleep(0)
            assert not more.done()
            await ctx.recur()
        await ctx.sleep(5)
        assert asking.done()
        assert joining.done()
        return (await waiting).data

    made = world(impatient)
    made.start("impatient")
    made.run(until_us=START_US + 1_000_000)
    demands = [ref for _, _, ref in made.members if ref.startswith("receive:")]
    assert demands == ["receive:1"]
    assert {row.run for key, row in made.members.items() if key[2] == "receive:1"} == {2}
    made.send(message("jobs", 1, "m1"))
    made.run()
    assert made.output() == 1
    assert made.core.stats["offer_refused"] == 0
    assert not made.members


# -- another run of what was -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["broadcast", "competing"])
def test_a_run_that_goes_on_listens_again(mode: str) -> None:
    mended = False

    @workflow
    async def fragile(ctx: WorkflowContext, mode: str) -> list[Any]:
        await ctx.subscribe("news", mode)  # type: ignore[arg-type]
        await ctx.subscribe("post", "direct")
        await ctx.join("crew")
        other = asyncio.ensure_future(ctx.receive("post"))
        got = [(await ctx.receive("news")).data]
        if not mended:
            raise ValueError("cannot bear it")
        got.append((await ctx.receive("news")).data)
        return [*got, (await other).data]

    @workflow
    async def boss(ctx: WorkflowContext) -> None:
        ctx.send_to_group("crew", "post", "to all")

    made = world(fragile, boss)
    made.start("fragile", mode)
    made.run()
    made.send(message("news", 1, "m1"))
    made.run()
    assert made.instances["i"].status == "failed"
    assert not made.members
    mended = True
    made.restart()
    retry = WireEvent("r", "/operator", w.RETRY, "i", None, "2026-01-01T00:00:00Z")
    made.send(retry, made.part_of("i"))
    made.run(restarts=True)
    made.send(message("news", 2, "m2"))
    made.start("boss", None, "b")
    made.run()
    assert made.output() == [1, 2, "to all"]
    assert not made.members
    made.check_projections()


def test_a_run_that_begins_anew_has_what_it_was_given() -> None:
    """Subscriptions that the run before handed on."""

    @workflow
    async def chained(ctx: WorkflowContext) -> Any:
        if ctx.run == 1:
            await ctx.subscribe("news")
            await ctx.recur()
        await ctx.subscribe("news")
        return (await ctx.receive("news")).data

    made = world(chained)
    made.start("chained")
    made.run()
    for number in range(2):
        made.send(message("news", number, f"m{number}"))
        made.run()
        assert made.output() == number
        reset = WireEvent(
            f"r{number}", "/operator", w.RESET, "i", b'{"to_event":1}', "2026-01-01T00:00:00Z", {w.X_SEQUENCE: "1"}
        )
        made.send(reset, made.part_of("i"))
        made.run()
