"""Signals, conditions and workflow classes in a world without I/O: with crashes before each step, a tiny cache and many
partitions."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from romancy_stream import Concurrency, Workflow, WorkflowContext, query, signal, update, workflow
from romancy_stream.engine import history as h
from romancy_stream.errors import ReadOnlyError
from romancy_stream.instances import moment
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.saying import (
    ANSWERS,
    TIME,
    Settings,
    answers,
    ask_world,
    change,
    double,
    make_settings,
    order,
    run_with,
    say,
)
from tests.engine.world import START_US, World

DAY_US = 86_400_000_000
settings = make_settings


# -- signals -----------------------------------------------------------------------------------------------------
def test_signals_reach_their_handlers_in_order_and_conditions_see_what_they_change(settings: Settings) -> None:
    world, run = run_with(settings, order)
    for instance in ("i", "j"):
        world.start("order", None, instance)
    run()
    for text in ("a", "b"):
        for instance in ("i", "j"):
            say(world, "note", f"{text}{instance}", instance)
            run()
    assert world.instances["i"].status == "running"
    say(world, "look_up", {"n": 3, "times": 2})
    say(world, "close", to="j")
    say(world, "close", {"ignored": True})
    run()
    assert world.output() == ["ai", "bi", 12]
    assert world.output("j") == ["aj", "bj"]
    assert [event.attrs["name"] for event in world.history["i"] if event.kind == h.SIGNAL_RECEIVED] == [
        *("note", "note"),
        *("look_up", "close"),
    ]
    world.check_projections()
    assert not world.dead_letters


def test_signals_in_the_batch_of_the_start_are_delivered(settings: Settings) -> None:
    world, run = run_with(settings, order)
    world.start("order")
    for _ in range(3):
        world.pending.append(world.record("commands", world.part_of("i"), _signal("note", b'"early"')))
    world.pending.append(world.record("commands", world.part_of("i"), _signal("close", None)))
    run()
    assert world.output() == ["early"] * 3


def _signal(name: str, data: bytes | None) -> WireEvent:
    number = random.randrange(10**12)
    return WireEvent(f"s-{number}", "/desk", w.SIGNAL, "i", data, TIME, {w.X_NAME: name})


def test_a_signal_that_comes_twice_is_one(settings: Settings) -> None:
    world, run = run_with(settings, order)
    world.start("order")
    run()
    for _ in range(3):
        say(world, "note", "once", id="same")
        run()
    say(world, "close")
    run()
    assert world.output() == ["once"]


def test_what_is_no_signal_of_the_workflow_is_a_dead_letter_and_leaves_no_trace() -> None:
    world = World(order, answers=ANSWERS, partitions=4)
    world.start("order")
    world.run()
    before = len(world.history["i"])
    say(world, "note", 5)
    say(world, "nothing_like_it", 5)
    say(world, "rename", {"old": "a", "new": "b"})
    say(world, "note", "a", to="nobody")
    world.pending.append(world.record("commands", 0, WireEvent("n", "/x", w.SIGNAL, "i", None, TIME)))
    world.run()
    reasons = sorted(letter.reason for letter in world.dead_letters)
    assert reasons == ["invalid_input", "missing_attribute", "unknown_handler", "unknown_handler", "unknown_instance"]
    assert len(world.history["i"]) == before
    say(world, "close")
    world.run()
    say(world, "note", "late")
    world.run()
    assert world.dead_letters[-1].reason == "instance_finished"
    assert world.output() == []


def test_an_error_of_a_signal_handler_fails_the_workflow(settings: Settings) -> None:
    @workflow
    async def fragile(ctx: WorkflowContext) -> None:
        await ctx.sleep(3_600)

    @fragile.signal
    async def hit(n: int) -> None:
        await double(n)
        raise LookupError(f"hit by {n}")

    world, run = run_with(settings, fragile)
    world.start("fragile")
    world.run(until_us=START_US + 1_000_000)
    say(world, "hit", 4)
    run()
    assert world.error()["message"] == "hit by 4"
    assert world.now_us < START_US + DAY_US


# -- conditions --------------------------------------------------------------------------------------------------
def test_a_condition_has_a_durable_timeout(settings: Settings) -> None:
    @workflow
    async def patient(ctx: WorkflowContext) -> list[str]:
        seen = []
        ctx.state.go = False
        for _ in range(2):
            try:
                await ctx.wait_condition(lambda: ctx.state.go, timeout=60)
                seen.append("went")
            except TimeoutError:
                seen.append("gave up")
        await ctx.wait_condition(lambda: True, timeout=5)
        return seen

    @patient.signal
    def go(ctx: WorkflowContext) -> None:
        ctx.state.go = True

    world, run = run_with(settings, patient)
    world.start("patient")
    world.run(until_us=START_US + 70_000_000)
    assert world.instances["i"].status == "waiting_for_timer"
    say(world, "go")
    run()
    assert world.output() == ["gave up", "went"]
    assert not world.timers
    assert [kind.partition(" ")[0] for kind in world.kinds()] == [
        *("workflow.started", "timer.started", "timer.fired", "timer.started"),
        *("signal.received", "timer.cancelled", "workflow.completed"),
    ]


def test_waiters_of_one_condition_go_one_at_a_time(settings: Settings) -> None:
    """A condition as a lock: between the moment it is true and the waiter that goes on nobody else runs."""

    @workflow
    async def locked(ctx: WorkflowContext) -> list[str]:
        busy, log = False, []

        async def work(name: str) -> None:
            nonlocal busy
            await ctx.wait_condition(lambda: not busy)
            assert not busy
            busy = True
            log.append(f"{name} in")
            await double(1)
            log.append(f"{name} out")
            busy = False

        await asyncio.gather(*(work(name) for name in "abc"))
        return log

    world, run = run_with(settings, locked)
    world.start("locked")
    run()
    assert world.output() == ["a in", "a out", "b in", "b out", "c in", "c out"]


def test_a_condition_that_raises_raises_where_it_is_waited_for() -> None:
    @workflow
    async def wrong(ctx: WorkflowContext) -> str:
        with pytest.raises(AttributeError, match="'nothing' yet"):
            await ctx.wait_condition(lambda: ctx.state.nothing)
        ctx.state.broken = False

        def condition() -> bool:
            if ctx.state.broken:
                raise LookupError("broken")
            return False

        with suppress(LookupError):
            await ctx.wait_condition(condition)
        try:
            await ctx.wait_condition(lambda: ctx.publish_event(type="x"))
        except ReadOnlyError:
            return "read only"
        return "no error"

    @wrong.signal
    def break_it(ctx: WorkflowContext) -> None:
        ctx.state.broken = True

    world = World(wrong)
    world.start("wrong")
    world.run()
    say(world, "break_it")
    world.run(restarts=True)
    assert world.output() == "read only"


def test_conditions_that_wake_each_other_for_ever_park_the_instance() -> None:
    @workflow
    async def pingpong(ctx: WorkflowContext) -> None:
        turn = 0

        async def player(mine: int) -> None:
            nonlocal turn

            def is_mine() -> bool:
                return turn == mine

            while True:
                await ctx.wait_condition(is_mine)
                turn = 1 - mine

        await asyncio.gather(player(0), player(1))

    world = World(pingpong)
    world.start("pingpong")
    world.run()
    assert world.instances["i"].parked is not None


async def test_a_condition_is_a_plain_function() -> None:
    async def condition() -> bool:
        return True

    for wrong in (condition, 5):
        with pytest.raises(TypeError, match="plain function"):
            await WorkflowContext(None).wait_condition(wrong)  # type: ignore[arg-type]


# -- classes -----------------------------------------------------------------------------------------------------
@workflow(name="cart")
class Cart:
    def __init__(self, ctx: WorkflowContext) -> None:
        self.items: list[str] = []
        self.paid = False
        self.id = ctx.instance_id

    async def run(self, ctx: WorkflowContext, owner: str) -> str:
        await ctx.wait_condition(lambda: self.paid)
        return f"{owner} of {self.id}: {', '.join(self.items)}"

    @signal
    def add(self, item: str) -> None:
        self.items.append(item)

    @signal(name="pay")
    async def pay_now(self, ctx: WorkflowContext) -> None:
        await double(1)
        self.paid = True

    @query
    def size(self) -> int:
        return len(self.items)

    @update
    async def remove(self, item: str) -> int:
        self.items.remove(item)
        return self.size()  # type: ignore[no-any-return]

    @remove.validator
    def check(self, item: str) -> None:
        if item not in self.items:
            raise KeyError(item)


def test_a_class_is_a_workflow_too(settings: Settings) -> None:
    world, run = run_with(settings, Workflow.of(Cart))
    world.start("cart", "anna")
    run()
    for item in ("pear", "plum", "fig"):
        say(world, "add", item)
        run()  # in any partition: their order is that of their arrival
    removed, refused = change(world, "remove", "plum"), change(world, "remove", "nut")
    run()
    assert answers(world, removed) == [{"ok": True, "result": 2}]
    assert answers(world, refused)[0]["reason"] == "update_rejected"
    assert ask_world(world, "size") == 2
    say(world, "pay")
    run()
    assert world.output() == "anna of i: pear, fig"
    world.check_projections()


# -- code that has not begun ------------------------------------------------------------------------------------------
@workflow(name="begins", concurrency=Concurrency())
async def in_turn(ctx: WorkflowContext, goal: int, have: int = 0) -> list[int]:
    ctx.state.have = have
    await ctx.wait_condition(lambda: ctx.state.have > have)
    await ctx.wait_condition(ctx.all_handlers_finished)
    if ctx.state.have < goal:
        await ctx.recur(goal, have=ctx.state.have)
    return [ctx.run, ctx.state.have]


@workflow(name="begins")
async def at_any_time(ctx: WorkflowContext, goal: int, have: int = 0) -> list[int]:
    result: list[int] = await in_turn.function(ctx, goal, have)
    return result


for _each in (in_turn, at_any_time):

    @_each.signal
    def more(ctx: WorkflowContext) -> None:
        ctx.state.have += 1

    @_each.update
    async def much_more(ctx: WorkflowContext) -> int:
        more = await double(2)
        ctx.state.have += more
        return int(ctx.state.have)


@pytest.mark.parametrize("flow", [in_turn, at_any_time], ids=["in turn", "at any time"])
@pytest.mark.parametrize("delay_s", [0, 60])
def test_handlers_wait_for_code_that_has_not_begun(settings: Settings, flow: Any, delay_s: int) -> None:
    world, run = run_with(settings, flow)
    soon = world.now_us + 10_000_000
    begin = {w.X_BEGIN: f"{moment(world.now_us + delay_s * 1_000_000):%Y-%m-%dT%H:%M:%SZ}"} if delay_s else {}
    for instance_id in "hi":
        world.start("begins", {"goal": 6}, instance_id, **begin)
    world.run(until_us=soon)
    for instance_id in "hi":
        say(world, "more", to=instance_id)
        updated = change(world, "much_more", to=instance_id)
        world.run(until_us=soon)  # of two that take turns, one has not begun
        say(world, "more", to=instance_id)
    run()
    assert [world.output(each)[1] for each in "hi"] == [6, 6]
    assert answers(world, updated)[0]["ok"]
    world.check_projections()


def test_a_storm_of_signals_to_an_instance_that_recurs_and_recurs(settings: Settings) -> None:
    world, run = run_with(settings, at_any_time)
    world.start("begins", {"goal": 100})
    for _ in range(50):
        say(world, "more")
        say(world, "more")
        world.step()
    run()
    assert world.output()[1] == 100
    world.check_projections()


def test_a_run_of_older_rules_does_as_it_did() -> None:
    world = World(at_any_time)
    world.start("begins", {"goal": 7}, **{w.X_BEGIN: "2099-01-01T00:00:00Z"})
    world.run(until_us=world.now_us)
    [begun, timer] = world.history["i"]
    world.history["i"] = [replace(begun, attrs={**begun.attrs, "rules": 2}), timer]
    world.restart()
    say(world, "more")
    world.run(until_us=world.now_us)
    assert "AttributeError" in str(world.error())


# -- parked instances ----------------------------------------------------------------------------------------------
def test_a_parked_instance_gets_its_signals_when_code_comes_that_agrees() -> None:
    @workflow(name="order")
    async def other(ctx: WorkflowContext) -> None:
        await double(1)

    other.handlers.update(order.handlers)
    world = World(order, answers=ANSWERS)
    world.start("order")
    say(world, "note", "before")
    world.run()
    world.restart(other)
    say(world, "note", "meanwhile")
    refused = change(world, "doubled", 1)
    world.run()
    assert world.instances["i"].parked is not None
    assert answers(world, refused)[0]["reason"] == "instance_parked"
    say(world, "note", "later")
    world.run()
    world.restart(order)
    assert world.instances["i"].parked is None
    say(world, "close")
    world.run(restarts=True)
    assert world.output() == ["before", "meanwhile", "later"]
    world.check_projections()


def test_code_that_lost_its_handler_is_parked() -> None:
    @workflow(name="order")
    async def bare(ctx: WorkflowContext) -> None:
        await ctx.wait_condition(lambda: False)

    world = World(order)
    world.start("order")
    say(world, "note", "a")
    world.run()
    world.restart(bare)
    world.pending.append(world.record("commands", 0, _signal("note", b'"b"')))
    world.run()
    assert world.dead_letters[-1].reason == "unknown_handler"

    @bare.signal
    def tick() -> None: ...

    say(world, "tick")
    world.run()
    assert "note" in str(world.instances["i"].parked)
    world.restart(order)  # which does not know the other one
    assert world.instances["i"].parked is not None
