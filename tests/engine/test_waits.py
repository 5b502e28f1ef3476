"""Waits as code has them: events that name their instance, the mailbox, waits that are left, what code gets."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from romancy_stream.context import WorkflowContext
from romancy_stream.errors import EventTimeoutError, PayloadError
from romancy_stream.events import EventType
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import workflow
from tests.engine.events_kit import Make, anything, event, nothing_left, order, settle, sleeper, worlds
from tests.engine.world import START_US, World


# -- targeted --------------------------------------------------------------------------------------------------------
@worlds
@pytest.mark.parametrize("aim", ["subject", "romancyinstance"])
def test_a_targeted_event_never_reaches_its_waiter(make: Make, aim: str) -> None:
    """(It does here.) Wherever it comes in, whether the wait is there or yet to come."""

    def aimed(id_: str) -> WireEvent:
        return event(id_, subject="i") if aim == "subject" else event(id_, subject="other", romancyinstance="i")

    for part in range(5):
        world = make(sleeper)
        part %= world.config.partitions
        world.start("sleeper", 100)
        world.start("sleeper", 0, "other")
        settle(world)
        world.send(aimed("e1"), part)
        settle(world)
        assert world.kinds()[-1] == "event.received"  # the mailbox
        world.run(until_us=START_US + 5_000_000)
        assert world.instances["other"].status == "waiting_for_event"
        world.run()
        assert world.output() == "e1"
        assert not any(kind.startswith("wait.") for kind in world.kinds())
        world = make(sleeper)
        world.start("sleeper", 0)
        settle(world)
        world.send(aimed("e1"), part)
        settle(world)
        assert world.output() == "e1"
        nothing_left(world)


@worlds
def test_a_targeted_event_of_no_open_instance(make: Make) -> None:
    """A subject may be anything: then the event is for whoever matches. `romancyinstance` is an instance."""
    world = make(anything, sleeper)
    world.start("sleeper", 0, "gone")
    world.run()
    world.start("anything")
    settle(world)
    for number, name in enumerate(("gone", "never")):
        world.send(event(f"e{number}", subject="i2", romancyinstance=name))
    settle(world)
    assert world.instances["i"].status == "waiting_for_event"
    world.send(event("e3", subject="gone"))
    world.run()
    assert world.output()[2:4] == ["e3", "gone"]
    nothing_left(world)


@worlds
def test_the_mailbox_gives_the_oldest_that_fits_and_keeps_it_for_its_time(make: Make) -> None:
    @workflow
    async def picky(ctx: WorkflowContext) -> Any:
        await ctx.sleep(10)
        got = [(await ctx.wait_event("paid", match={"n": n})).id for n in (2, 1, 2)]
        await ctx.sleep(3_600)
        try:
            await ctx.wait_event("paid", match={"n": 3}, timeout=1)
        except EventTimeoutError:
            return got

    world = make(picky)
    world.start("picky")
    settle(world)
    for number, n in enumerate((1, 2, 2, 3)):
        world.send(event(f"e{number}", {"n": n}, "i"))
    world.run()
    assert world.output() == ["e1", "e0", "e2"]
    nothing_left(world)


def test_a_targeted_event_finds_the_wait_that_it_fits() -> None:
    @workflow
    async def two(ctx: WorkflowContext) -> Any:
        first, second = await asyncio.gather(
            ctx.wait_event("paid", match={"n": 1}), ctx.wait_event("paid", match={"n": 2})
        )
        return [first.id, second.id]

    world = World(two, partitions=5)
    world.start("two")
    settle(world)
    world.send(event("e1", {"n": 2}, "i"))
    settle(world)
    assert len(world.members) == 1  # the other wait is told of at its entity no more
    world.send(event("e2", {"n": 1}))
    world.run(restarts=True)
    assert world.output() == ["e2", "e1"]
    nothing_left(world)


def test_what_an_instance_publishes_is_not_aimed_at_itself() -> None:
    """Its `romancyinstance` says who published it."""

    @workflow
    async def publisher(ctx: WorkflowContext) -> Any:
        ctx.publish_event(type="paid", data=5)
        await ctx.sleep(1)
        return "no event"

    world = World(publisher, anything)
    world.start("publisher", None, "p")
    world.start("anything")
    settle(world)
    [told] = [each for each in world.events if each.type == "paid"]
    assert told.extensions[w.X_INSTANCE] == "p"
    world.send(told)
    world.run()
    assert world.output()[6] == 5
    assert "event.received" not in world.kinds("p")


def test_a_route_on_commands_is_not_believed() -> None:
    world = World(anything, order, partitions=5)
    world.start("anything")
    settle(world)
    forged = {w.X_ROUTE: "entity", w.X_REF: "event:0", w.X_ORIGIN: "0:999"}
    world.send(event("e1", 1, **forged), part=3)
    world.run()
    assert world.output()[5:] == [{}, 1]
    world.start("anything", None, "i2")
    settle(world)
    world.send(event("e2", 1, **{w.X_ROUTE: "start"}))
    settle(world)
    assert world.output("i2")[2] == "e2"
    nothing_left(world)


# -- withdrawing -----------------------------------------------------------------------------------------------------
@worlds
def test_waits_are_withdrawn_when_code_leaves_them(make: Make) -> None:
    @workflow
    async def leaver(ctx: WorkflowContext) -> Any:
        left = []
        try:
            async with asyncio.timeout(5):
                await ctx.wait_event("paid")
        except TimeoutError:
            left.append("timeout")
        waiting = asyncio.create_task(ctx.wait_event("paid", timeout=60))
        await asyncio.sleep(0)
        waiting.cancel()  # within the step in which it began: nobody has heard of it
        await asyncio.wait([waiting])
        done, pending = await asyncio.wait(
            [asyncio.create_task(ctx.wait_event(kind)) for kind in ("paid", "shipped")],
            return_when=asyncio.FIRST_COMPLETED,
        )
        open_ = asyncio.create_task(ctx.wait_event("paid"))  # the end of the run lets go of it
        await asyncio.sleep(0)
        return [left, [task.result().type for task in done], len(pending), open_.done()]

    world = make(leaver)
    world.start("leaver")
    world.run()
    assert [member.ref for member in world.members.values()] == ["wait:3", "wait:4"]
    assert world.kinds() == [
        "workflow.started",
        "timer.started timer:1",
        "wait.started wait:1",
        "timer.fired timer:1",
        "wait.cancelled wait:1",
        "wait.started wait:3",
        "wait.started wait:4",
    ]
    world.send(event("e1", type="shipped"))
    world.run()
    assert world.output() == [["timeout"], ["shipped"], 1, False]
    nothing_left(world)


@worlds
def test_the_mailbox_survives_recur(make: Make) -> None:
    @workflow
    async def again(ctx: WorkflowContext, left: int) -> Any:
        await ctx.sleep(10)
        got = (await ctx.wait_event("paid", match={"n": left})).data
        if left == 0:
            return got
        await ctx.recur(left - 1)

    world = make(again)
    world.start("again", 2)
    settle(world)
    for n in (0, 2, 1):
        world.send(WireEvent(f"e{n}", "/bank", "paid", "i", b'{"n":%d,"x":1.10}' % n, "2026-01-01T00:00:00Z"))
    world.run()
    assert world.output() == {"n": 0, "x": 1.1}
    assert world.instances["i"].run == 3
    nothing_left(world)


@worlds
def test_a_loop_of_runs_loses_nothing(make: Make) -> None:
    @workflow
    async def again(ctx: WorkflowContext, got: list[str]) -> Any:
        got = [*got, (await ctx.wait_event("paid")).id]
        if len(got) == 6:
            return got
        await ctx.recur(got)

    world = make(again)
    world.start("again", [])
    sent = [f"e{number}" for number in range(6)]
    for number, id_ in enumerate(sent):
        world.send(event(id_, subject="i" if number % 2 else None))
        settle(world)
    world.run()
    assert sorted(world.output()) == sent
    nothing_left(world)


def test_what_comes_while_an_instance_is_parked_is_recorded_and_kept() -> None:
    def version(other: bool) -> Any:
        @workflow(name="parking")
        async def parking(ctx: WorkflowContext) -> Any:
            if other:
                await ctx.sleep(1)
            return [(await ctx.wait_event("paid", timeout=60)).id, (await ctx.wait_event("paid")).id]

        return parking

    world = World(version(False), partitions=5)
    world.start("parking")
    settle(world)
    world.restart(version(True))
    world.send(event("e1"))
    settle(world)
    world.send(event("e2", subject="i"))
    settle(world)
    assert world.instances["i"].parked is not None
    assert world.kinds().count("event.received wait:1") == 1
    assert world.kinds().count("event.received") == 1
    world.restart(version(False))
    world.run()
    assert world.output() == ["e1", "e2"]
    nothing_left(world)


def test_an_event_for_a_wait_that_ended_while_parked_goes_into_the_mailbox() -> None:
    def version(other: bool) -> Any:
        @workflow(name="parking")
        async def parking(ctx: WorkflowContext) -> Any:
            if other:
                await ctx.sleep(1)
            try:
                await ctx.wait_event("paid", timeout=5)
            except EventTimeoutError:
                return ["late", (await ctx.wait_event("paid")).id]

        return parking

    world = World(version(False))
    world.start("parking")
    settle(world)
    world.restart(version(True))
    world.run()  # the timer parks it; the wait stands open in the history
    assert world.instances["i"].parked is not None
    world.send(event("e1"))
    world.run()
    assert world.kinds()[-1] == "event.received wait:1"
    world.restart(version(False))
    world.run(restarts=True)
    assert world.output() == ["late", "e1"]
    nothing_left(world)


# -- what code gets --------------------------------------------------------------------------------------------------
@worlds
def test_data_is_of_the_type_that_was_declared(make: Make) -> None:
    declared: EventType[dict[str, Decimal]] = EventType("paid", key="order", model=dict[str, Decimal])

    @workflow
    async def typed(ctx: WorkflowContext) -> Any:
        plain = await ctx.wait_event("paid", match={"order": 1}, model=dict[str, float])
        by_type = await ctx.wait_event("paid", match={"order": 1})
        by_object = await ctx.wait_event(declared, match={"order": 1})
        try:
            await ctx.wait_event("paid", match={"order": 1}, model=list[int])
        except PayloadError as error:
            return [repr(plain.data["x"]), repr(by_type.data["x"]), repr(by_object.data["x"]), len(error.errors)]

    config = {"event_keys": {"paid": "order"}, "event_models": {"paid": declared.model}}
    world = make(typed, **config)
    world.start("typed")
    for number in range(4):
        world.send(WireEvent(f"e{number}", "/b", "paid", None, b'{"order":1,"x":1.10}', "2026-01-01T00:00:00Z"))
        settle(world)
    assert world.output() == ["1.1", "Decimal('1.1')", "Decimal('1.1')", 1]
    nothing_left(world)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"type": ""}, "characters"),
        ({"type": "romancy.x"}, "engine's own"),
        ({"type": "t" * 256}, "characters"),
        ({"match": {"a": [1]}}, "match\\['a'\\]"),
        ({"match": {"": 1}}, "field"),
        ({"timeout": float("inf")}, "finite"),
    ],
)
def test_a_wrong_call_is_a_value_error(call: dict[str, Any], says: str) -> None:
    @workflow
    async def wrong(ctx: WorkflowContext) -> None:
        await ctx.wait_event(**{"type": "paid"} | call)

    world = World(wrong)
    world.start("wrong")
    world.run()
    assert world.error()["type"] == "builtins:ValueError"
    assert Counter(world.kinds()) == Counter(["workflow.started", "workflow.failed"])
    with pytest.raises(ValueError, match=says):
        raise ValueError(world.error()["message"])
