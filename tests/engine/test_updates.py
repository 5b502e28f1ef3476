"""Updates and queries in a world without I/O: with crashes before each step, a tiny cache and many partitions."""

from __future__ import annotations

import asyncio
import random

import orjson
import pytest

from romancy_stream import WorkflowContext, workflow
from romancy_stream.engine import history as h
from romancy_stream.engine.failure import decode_error
from romancy_stream.engine.queries import ask
from romancy_stream.engine.signals import update_ref
from romancy_stream.errors import ReadOnlyError, UnknownHandlerError, UpdateFailedError
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.saying import ANSWERS, TIME, Settings, answers, ask_world, change, make_settings, order, run_with, say
from tests.engine.world import World

settings = make_settings


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
    failed = change(world, "breaks")
    run()
    slow = change(world, "doubled", 21)
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


def test_a_run_that_recurs_gives_up_its_updates_and_the_next_one_hears_the_signals(settings: Settings) -> None:
    @workflow
    async def rounds(ctx: WorkflowContext, n: int) -> int:
        ctx.state.go = False
        await ctx.wait_condition(lambda: ctx.state.go)
        if n < 2:
            await ctx.recur(n + 1)
        return n

    @rounds.signal
    def go(ctx: WorkflowContext) -> None:
        ctx.state.go = True

    @rounds.update
    async def never_done(ctx: WorkflowContext) -> None:
        await ctx.wait_condition(lambda: False)

    world, run = run_with(settings, rounds)
    world.start("rounds", 0)
    run()
    left_open = change(world, "never_done")
    run()
    for _ in range(3):
        say(world, "go")
        run()
    assert world.output() == 2
    assert [event.run for event in world.history["i"] if event.kind == h.SIGNAL_RECEIVED] == [1, 2, 3]
    assert [each["reason"] for each in answers(world, left_open)] == ["instance_finished"]
    assert not world.dead_letters
    world.check_projections()


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
    world = World(order)
    world.start("order")
    command = change(world, "breaks")
    world.run()
    [told] = answers(world, command)
    error = decode_error(orjson.dumps(told["error"]))
    assert isinstance(error, UpdateFailedError)
    assert isinstance(error.__cause__, LookupError)
