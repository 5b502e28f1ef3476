"""Signals, updates, queries, conditions, patches and versions in a world without I/O: with crashes before each step, a
tiny cache and many partitions."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import orjson
import pytest

from romancy_stream import Registry, WorkflowContext, activity, query, signal, update, workflow
from romancy_stream.engine import history as h
from romancy_stream.engine.queries import ask
from romancy_stream.engine.signals import update_ref
from romancy_stream.errors import (
    NonDeterminismError,
    ReadOnlyError,
    UnknownHandlerError,
    UpdateFailedError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.world import START_US, World

DAY_US = 86_400_000_000
TIME = "2026-01-01T00:00:00Z"


def say(world: World, name: str, data: Any = None, to: str = "i", kind: str = w.SIGNAL, **given: Any) -> WireEvent:
    """A command as any producer sends it, in any partition; nothing has processed it yet."""
    number = len(world.outbox) + len(world.pending) + random.randrange(10**9)
    raw = None if data is None else orjson.dumps(data)
    event = WireEvent(given.pop("id", f"c-{number}"), "/desk", kind, to, raw, TIME, {w.X_NAME: name, **given})
    world.send(event, number % world.config.partitions)
    return event


def change(world: World, name: str, data: Any = None, to: str = "i", **given: Any) -> WireEvent:
    return say(world, name, data, to, w.UPDATE, **given)


def answers(world: World, command: WireEvent) -> list[Any]:
    told = [event for event in world.events if event.type == w.ANSWERED]
    return [orjson.loads(each.data or b"") for each in told if each.extensions[w.X_CAUSATION] == command.id]


def ask_world(world: World, name: str, *args: Any, to: str = "i") -> Any:
    definition = world.workflows[world.instances[to].workflow]
    history = world.run_of(to, world.instances[to].run)
    payload = definition.handlers[name].encode(*args)
    return orjson.loads(ask(definition, history, name, payload))


@activity
async def double(n: int) -> int:
    raise AssertionError("activities run in workers")


ANSWERS = {"double": lambda _, args: args[0] * 2}


@workflow
async def order(ctx: WorkflowContext) -> list[Any]:
    ctx.state.said, ctx.state.closed = [], False
    await ctx.wait_condition(lambda: ctx.state.closed)
    await ctx.wait_condition(ctx.all_handlers_finished)
    return list(ctx.state.said)


@order.signal
def note(ctx: WorkflowContext, text: str) -> None:
    ctx.state.said.append(text)


@order.signal
async def look_up(ctx: WorkflowContext, n: int, times: int = 1) -> None:
    for _ in range(times):
        n = await double(n)
    ctx.state.said.append(n)


@order.signal(name="close")
def close_it(ctx: WorkflowContext) -> None:
    ctx.state.closed = True


@order.query
def count(ctx: WorkflowContext) -> int:
    return len(ctx.state.said)


@order.query
def said_like(ctx: WorkflowContext, part: str) -> list[str]:
    return [text for text in ctx.state.said if part in str(text)]


@order.query
def meddle(ctx: WorkflowContext, how: str) -> int:
    if how == "state":
        ctx.state.closed = True
    elif how == "publish":
        ctx.publish_event(type="x")
    elif how == "task":
        ctx._scope.loop.create_future()  # type: ignore[attr-defined]
    return 0


@order.update
def rename(ctx: WorkflowContext, old: str, new: str) -> list[str]:
    ctx.state.said = [new if text == old else text for text in ctx.state.said]
    return list(ctx.state.said)


@rename.validator
def check_rename(ctx: WorkflowContext, old: str, new: str) -> None:
    if old not in ctx.state.said:
        raise ValueError(f"nobody said {old!r}")


@order.update
async def doubled(ctx: WorkflowContext, n: int) -> int:
    result = await double(n)
    ctx.state.said.append(result)
    return result


@order.update
def breaks(ctx: WorkflowContext) -> None:
    raise LookupError("nothing there")


@order.update
async def never(ctx: WorkflowContext) -> None:
    await ctx.wait_condition(lambda: False)


Settings = tuple[dict[str, Any], bool]
"""Of the world, and whether it crashes before each step."""


@pytest.fixture(params=["live", "restarts", "one cached", "many partitions"])
def settings(request: pytest.FixtureRequest) -> Settings:
    cached = {"one cached": 1}.get(request.param, 1_000)
    partitions = {"many partitions": 7}.get(request.param, 1)
    return {"cached": cached, "partitions": partitions, "answers": ANSWERS}, request.param == "restarts"


def run_with(settings: Settings, *workflows: Any) -> tuple[World, Any]:
    world = World(*workflows, **settings[0])
    return world, lambda: world.run(restarts=settings[1])


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


# -- updates -----------------------------------------------------------------------------------------------------
def test_updates_are_validated_run_and_answered(settings: Settings) -> None:
    world, run = run_with(settings, order)
    world.start("order")
    say(world, "note", "a")
    run()
    ok = change(world, "rename", {"old": "a", "new": "b"})
    run()
    rejected = change(world, "rename", {"old": "a", "new": "c"})
    run()
    failed, slow = change(world, "breaks"), change(world, "doubled", 21)
    run()
    assert answers(world, ok) == [{"ok": True, "result": ["b"]}]
    assert answers(world, slow) == [{"ok": True, "result": 42}]
    [no] = answers(world, rejected)
    assert (no["ok"], no["reason"], no["error"]["cause"]["message"]) == (False, "update_rejected", "nobody said 'a'")
    [broke] = answers(world, failed)
    assert broke["reason"] == "update_failed"
    assert broke["error"]["type"].endswith(":UpdateFailedError")
    assert broke["error"]["cause"] | {"message": "nothing there"} == broke["error"]["cause"]
    say(world, "close")
    run()
    assert world.output() == ["b", 42]
    accepted = [event for event in world.history["i"] if event.kind == h.UPDATE_ACCEPTED]
    assert [event.attrs["name"] for event in accepted] == ["rename", "breaks", "doubled"]
    assert accepted[0].ref == update_ref("/desk", ok.id)
    assert not world.dead_letters
    world.check_projections()


def test_updates_that_come_together_are_begun_in_their_order(settings: Settings) -> None:
    world, run = run_with(settings, order)
    world.start("order")
    run()
    part = world.part_of("i")
    commands = []
    for n in range(5):
        event = WireEvent(f"u{n}", "/x", w.UPDATE, "i", b"%d" % n, TIME, {w.X_NAME: "doubled"})
        world.pending.append(world.record("commands", part, event))
        commands.append(event)
    run()
    assert [answers(world, each) for each in commands] == [[{"ok": True, "result": 2 * n}] for n in range(5)]
    scheduled = [event.ref for event in world.history["i"] if event.kind == h.ACTIVITY_SCHEDULED]
    assert scheduled == [f"double:{n + 1}" for n in range(5)]


def test_an_update_that_comes_again_gets_its_answer_again_and_happens_once(settings: Settings) -> None:
    world, run = run_with(settings, order)
    world.start("order")
    run()
    for _ in range(3):
        command = change(world, "doubled", 4, id="same")
        run()
    for _ in range(2):
        bad = change(world, "rename", {"old": "x", "new": "y"}, id="bad")
        run()
    say(world, "close")
    run()
    assert world.output() == [8]
    assert answers(world, command) == [{"ok": True, "result": 8}] * 3
    assert len(answers(world, bad)) == 1


def test_updates_that_cannot_be_are_answered_and_kept_as_dead_letters() -> None:
    world = World(order, answers=ANSWERS, partitions=3)
    world.start("order")
    world.run()
    given = {
        "invalid_input": change(world, "doubled", "x"),
        "unknown_handler": change(world, "note", "x"),
        "instance_not_found": change(world, "doubled", 1, to="nobody"),
    }
    world.run()
    left_open = change(world, "never")
    world.run()
    assert world.instances["i"].status == "running"
    assert answers(world, left_open) == []

    @order.signal(name=f"end_{id(world)}")
    def end(ctx: WorkflowContext) -> None:
        raise RuntimeError("over")

    say(world, end.name)
    world.run()
    assert world.instances["i"].status == "failed"
    given["instance_finished"] = change(world, "doubled", 1)
    world.run()
    for reason, command in given.items():
        [told] = answers(world, command)
        assert (told["ok"], told["reason"]) == (False, reason)
    assert [each["reason"] for each in answers(world, left_open)] == ["instance_finished"]
    reasons = sorted(letter.reason for letter in world.dead_letters)
    assert reasons == ["instance_finished", "invalid_input", "unknown_handler", "unknown_instance"]
    assert len(world.dead_letters) == len(given)


def test_a_validator_that_wakes_the_workflow_parks_it_and_a_restart_brings_it_back() -> None:
    @workflow
    async def careful(ctx: WorkflowContext) -> str:
        ctx.state.event = asyncio.Event()
        await ctx.state.event.wait()
        return "done"

    @careful.update
    def poke(ctx: WorkflowContext, how: str) -> None: ...

    @poke.validator
    def check(ctx: WorkflowContext, how: str) -> None:
        if how == "event":
            ctx.state.event.set()
        elif how == "state":
            ctx.state.event = None
        elif how == "publish":
            ctx.publish_event(type="x")

    @careful.signal
    def go(ctx: WorkflowContext) -> None:
        ctx.state.event.set()

    world = World(careful)
    world.start("careful")
    world.run()
    before = list(world.history["i"])
    for how in ("state", "publish"):
        command = change(world, "poke", how)
        world.run()
        [told] = answers(world, command)
        assert told["error"]["cause"]["type"].endswith(":ReadOnlyError")
    assert world.history["i"] == before
    command = change(world, "poke", "event")
    world.run()
    assert answers(world, command)[0]["reason"] == "instance_parked"
    assert "poke" in str(world.instances["i"].parked)
    world.restart()
    say(world, "go")
    world.run()
    assert world.output() == "done"


# -- queries -----------------------------------------------------------------------------------------------------
def test_queries_see_the_state_and_change_nothing() -> None:
    world = World(order, answers=ANSWERS)
    world.start("order")
    for text in ("ab", "bc", "cd"):
        say(world, "note", text)
    world.run()
    before = list(world.history["i"])
    assert ask_world(world, "count") == 3
    assert ask_world(world, "said_like", "b") == ["ab", "bc"]
    for how in ("state", "publish", "task"):
        with pytest.raises(ReadOnlyError):
            ask_world(world, "meddle", how)
    with pytest.raises(UnknownHandlerError, match=r"count, meddle, said_like"):
        ask(order, before, "nothing_like_it", None)
    with pytest.raises(UnknownHandlerError):
        ask(order, before, "rename", None)
    assert world.history["i"] == before
    say(world, "close")
    world.run()
    assert ask_world(world, "count") == 3


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
    from romancy_stream import Workflow

    world, run = run_with(settings, Workflow.of(Cart))
    world.start("cart", "anna")
    run()
    for item in ("pear", "plum", "fig"):
        say(world, "add", item)
    run()
    removed, refused = change(world, "remove", "plum"), change(world, "remove", "nut")
    run()
    assert answers(world, removed) == [{"ok": True, "result": 2}]
    assert answers(world, refused)[0]["reason"] == "update_rejected"
    assert ask_world(world, "size") == 2
    say(world, "pay")
    run()
    assert world.output() == "anna of i: pear, fig"
    world.check_projections()


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


# -- patches -------------------------------------------------------------------------------------------------------
@workflow(name="patchy")
async def before_patch(ctx: WorkflowContext) -> list[int]:
    first = await double(1)
    await ctx.sleep(100)
    return [first, await double(2)]


@workflow(name="patchy")
async def patched(ctx: WorkflowContext) -> list[int]:
    first = await double(1)
    if ctx.patched("checks"):
        first += await double(10)
    await ctx.sleep(100)
    assert ctx.patched("checks") == (first > 10)
    return [first, await double(2)]


@workflow(name="patchy")
async def after_patch(ctx: WorkflowContext) -> list[int]:
    ctx.deprecate_patch("checks")
    first = await double(1) + await double(10)
    await ctx.sleep(100)
    return [first, await double(2)]


@workflow(name="patchy")
async def unguarded(ctx: WorkflowContext) -> list[int]:
    first = await double(1) + await double(10)
    await ctx.sleep(100)
    return [first, await double(2)]


def test_a_patch_tells_runs_from_before_it_from_runs_after_it(settings: Settings) -> None:
    world, run = run_with(settings, before_patch)
    world.start("patchy", None, "old")
    world.run(until_us=START_US + 50_000_000)
    world.restart(patched)
    world.start("patchy", None, "new")
    run()
    assert world.output("old") == [2, 4]
    assert world.output("new") == [22, 4]
    assert [event.ref for event in world.history["new"] if event.kind == h.PATCH_MARKED] == ["checks"]
    assert not [event for event in world.history["old"] if event.kind == h.PATCH_MARKED]


def test_a_run_that_comes_to_the_change_after_it_was_deployed_has_it() -> None:
    slow = World(before_patch)  # nobody answers
    slow.start("patchy", None, "i")
    slow.run()
    slow.answers = ANSWERS
    [task] = [row for row in slow.outbox if ".tasks." in row.topic]
    slow.restart(patched)
    slow.result(task, 2)
    slow.run(restarts=True)
    assert slow.output() == [22, 4]


def test_a_deprecated_patch_passes_over_its_markers_and_leaves_none() -> None:
    world = World(patched, answers=ANSWERS)
    world.start("patchy", None, "old")
    world.run(until_us=START_US + 50_000_000)
    world.restart(after_patch)
    world.start("patchy", None, "new")
    world.run(restarts=True)
    assert world.output("old") == world.output("new") == [22, 4]
    assert not [event for event in world.history["new"] if event.kind == h.PATCH_MARKED]


def test_without_the_patch_the_change_parks_old_runs() -> None:
    world = World(before_patch, answers=ANSWERS)
    world.start("patchy", None, "old")
    world.run(until_us=START_US + 50_000_000)
    world.restart(unguarded)
    world.run()
    assert "history says" in str(world.instances["old"].parked)
    with pytest.raises(NonDeterminismError):
        ask(unguarded, world.run_of("old", 1), "x", None)
    world.restart(patched)
    world.run()
    assert world.output("old") == [2, 4]


# -- versions --------------------------------------------------------------------------------------------------------
def test_runs_keep_their_version_and_wait_for_its_code() -> None:
    @workflow(name="greet", version="1")
    async def one(ctx: WorkflowContext) -> str:
        await ctx.sleep(100)
        return "one"

    @workflow(name="greet", version="2")
    async def two(ctx: WorkflowContext) -> str:
        await double(1)
        await ctx.sleep(100)
        return "two"

    both, newer = Registry(), Registry()
    for each in (one, two):
        both.add_workflow(each)
    newer.add_workflow(two)
    world = World(one, answers=ANSWERS)
    world.start("greet", None, "old")
    world.run(until_us=START_US + 10_000_000)
    assert world.instances["old"].version == "1"
    world.workflows = newer.workflows  # type: ignore[assignment]
    _restart(world)
    world.start("greet", None, "new")
    world.run()
    assert "version '1'" in str(world.instances["old"].parked)
    assert world.output("new") == "two"
    world.workflows = both.workflows  # type: ignore[assignment]
    _restart(world)
    world.start("greet", None, "newest")
    world.run(restarts=False)
    assert (world.output("old"), world.output("newest")) == ("one", "two")
    assert [world.instances[i].version for i in ("old", "new", "newest")] == ["1", "2", "2"]
    world.check_projections()


def _restart(world: World) -> None:
    """As `World.restart`, for workflows that are no dict."""
    from romancy_stream.engine.inputs import Unpark

    world.core.drop(world.core.owned)
    world.core = world._new_core()
    world.step([Unpark(row.part, row.instance_id) for row in world.instances.values() if row.parked is not None])


# -- chance ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_every_signal_counts_once_and_every_update_is_answered(seed: int) -> None:
    """Random commands, some of them sent again, with crashes, evictions and partitions in between."""
    chance = random.Random(seed)
    world = World(order, answers=ANSWERS, partitions=chance.choice([1, 3]), cached=chance.choice([1, 2, 100]))
    ids = [f"i{n}" for n in range(3)]
    for instance in ids:
        world.start("order", None, instance)
    said: dict[str, list[str]] = {instance: [] for instance in ids}
    updates: list[WireEvent] = []
    for step in range(40):
        to = chance.choice(ids)
        if chance.random() < 0.4:
            event = _command(world, chance, w.SIGNAL, "note", b'"n%d"' % step, to, f"n{step}")
            said[to].append(f"n{step}")
        else:
            name = chance.choice(["doubled", "breaks", "rename"])
            data = {"doubled": b"%d" % step, "breaks": b"null", "rename": b'{"old": "none", "new": "x"}'}[name]
            event = _command(world, chance, w.UPDATE, name, data, to, f"u{step}")
            updates.append(event)
        for _ in range(chance.choice([1, 1, 2])):
            world.send(event, chance.randrange(world.config.partitions))
        if chance.random() < 0.3:
            world.restart()
        if chance.random() < 0.6:
            world.step()
    world.run(restarts=chance.random() < 0.5)
    for instance in ids:
        world.send(_command(world, chance, w.SIGNAL, "close", None, instance, f"close-{instance}"))
    world.run()
    for instance in ids:
        assert sorted(each for each in world.output(instance) if isinstance(each, str)) == sorted(said[instance])
    for event in updates:
        told = answers(world, event)
        assert told
        assert all(each == told[0] for each in told)
    world.check_projections()


def _command(
    world: World, chance: random.Random, kind: str, name: str, data: bytes | None, to: str, event_id: str
) -> WireEvent:
    return WireEvent(event_id, "/desk", kind, to, data, TIME, {w.X_NAME: name})


def test_the_error_of_a_failed_update_is_what_the_handler_raised() -> None:
    from romancy_stream.engine.failure import decode_error

    world = World(order)
    world.start("order")
    command = change(world, "breaks")
    world.run()
    [told] = answers(world, command)
    error = decode_error(orjson.dumps(told["error"]))
    assert isinstance(error, UpdateFailedError)
    assert isinstance(error.__cause__, LookupError)
