"""Runs that follow one another, on the core without I/O: live, after crashes at every step, and on replay."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random
from typing import Any

import orjson
import pytest

from romancy_stream import InvalidInputError, PayloadError, WorkflowContext, activity, workflow
from romancy_stream.engine.messages import channel_entity
from romancy_stream.engine.runs import RECUR_PAUSE_US
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.world import START_US, World


@activity
async def double(value: int) -> int:
    raise AssertionError("activities run in workers")


def doubled(_: dict[str, str], args: list[Any]) -> Any:
    return args[0] * 2


ANSWERS = {"double": doubled}


@workflow
async def rounds(ctx: WorkflowContext, left: int, value: int = 1) -> dict[str, Any]:
    value = await double(value)
    await ctx.sleep(60)
    if left > 1:
        await ctx.recur(left - 1, value=value)
    return {"value": value, "run": ctx.run}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("cached", [1_000, 0])
def test_each_run_has_its_own_history_and_the_last_one_the_result(restarts: bool, cached: int) -> None:
    world = World(rounds, answers=ANSWERS, cached=cached)
    begun = world.start("rounds", {"left": 5})
    world.run(restarts=restarts)
    assert world.output() == {"value": 32, "run": 5}
    first = ["workflow.started", "activity.scheduled", "activity.completed", "timer.started", "timer.fired"]
    for run in range(1, 6):
        end = "workflow.completed" if run == 5 else "workflow.recurred"
        events = world.run_of("i", run)
        assert [event.kind for event in events] == [*first, end]
        assert (events[0].attrs["event_source"], events[0].attrs["event_id"]) == (begun.source, begun.id)
    assert orjson.loads(world.run_of("i", 1)[-1].payload or b"") == {"left": 4, "value": 2}
    assert [event.type for event in world.events] == [w.STARTED, *[w.RECURRED] * 4, w.COMPLETED]
    assert world.events[1].data == b'{"input":{"left":4,"value":2}}'
    world.check_projections()


def test_a_start_that_comes_again_is_known_in_every_run() -> None:
    world = World(rounds, answers=ANSWERS)
    begun = world.start("rounds", {"left": 3})
    world.step()
    while world.pending or world.instances["i"].finished_us is None:
        world.send(begun)
        world.now_us = max(world.now_us, world.core.timers.next_due_us() or 0)
        world.step()
    assert world.output() == {"value": 8, "run": 3}
    assert {event.run for event in world.history["i"]} == {1, 2, 3}


def test_a_result_of_an_earlier_run_is_dropped() -> None:
    @workflow
    async def leaves(ctx: WorkflowContext, again: bool) -> str:
        if again:
            working = asyncio.ensure_future(double(1))
            await ctx.sleep(1)
            assert not working.done()
            await ctx.recur(False)
        return f"first of run {ctx.run}: {await double(5)}"

    world = World(leaves)  # nobody works
    world.start("leaves", True)
    world.run()
    early, late = [row for row in world.outbox if ".tasks." in row.topic]
    world.result(early, 99)
    world.run()
    assert world.core.stats["late_result"] == 1
    world.result(late, 10)
    world.run()
    assert world.output() == "first of run 2: 10"
    assert world.activities["i", 1, "double:1"].status == "abandoned"
    world.check_projections()


@pytest.mark.parametrize("restarts", [False, True])
def test_who_does_nothing_but_recur_is_slowed_down(restarts: bool) -> None:
    @workflow
    async def spins(ctx: WorkflowContext, round_: int) -> int:
        await ctx.recur(round_ + 1)

    world = World(spins)
    world.start("spins", 0)
    world.run(restarts=restarts, until_us=START_US + 10 * RECUR_PAUSE_US)
    assert 10 <= world.instances["i"].run <= 25
    assert world.instances["i"].status == "waiting_for_timer"
    world.check_projections()


def test_recurring_out_of_groups_timeouts_and_finally() -> None:
    done: list[str] = []

    @workflow
    async def nested(ctx: WorkflowContext, again: bool) -> str:
        if not again:
            return f"run {ctx.run}"
        try:
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                group.create_task(ctx.sleep(100))
                try:
                    await ctx.recur(False)
                except Exception:
                    done.append("caught")
        finally:
            await double(1)
            done.append("finally")
        return "never"

    world = World(nested, answers=ANSWERS)
    world.start("nested", True)
    world.run()
    assert world.output() == "run 2"
    assert done == ["finally"]


def test_recur_belongs_into_the_workflows_own_task_and_checks_its_input() -> None:
    @workflow
    async def wrong(ctx: WorkflowContext, how: str) -> str:
        if how == "task":
            await asyncio.ensure_future(ctx.recur("again"))
        elif how == "call":
            await ctx.recur()
        elif how == "type":
            await ctx.recur(7)
        return "never"

    for how, error in (("task", RuntimeError), ("call", TypeError), ("type", PayloadError)):
        world = World(wrong)
        world.start("wrong", how)
        world.run()
        kind = world.error()["type"].rpartition(":")[2]
        assert kind in (error.__name__, InvalidInputError.__name__), world.error()
        assert world.instances["i"].run == 1


def test_a_history_that_grows_too_long_is_announced_once_and_then_ends_the_run() -> None:
    @workflow
    async def endless(ctx: WorkflowContext) -> None:
        while True:
            await ctx.sleep(1)

    world = World(endless, history_warning=10, history_limit=20)
    world.start("endless")
    world.run(restarts=True)
    assert world.error()["type"].endswith("HistoryTooLongError")
    assert len(world.history["i"]) == 21
    assert [event.type for event in world.events] == [w.STARTED, w.HISTORY_LARGE, w.FAILED]
    assert world.events[1].data == b'{"events":10}'
    world.check_projections()


# -- what the next run has of this one -----------------------------------------------------------------------------
@workflow
async def one_at_a_time(ctx: WorkflowContext, seen: list[Any], total: int) -> list[Any]:
    """One message for each run, whichever way it comes."""
    if ctx.run == 1:
        await ctx.subscribe("news", "broadcast")
        await ctx.subscribe("jobs", "competing")
        await ctx.sleep(30)  # while more comes than it takes
    channel = ("news", "jobs", "mine")[len(seen) % 3]
    if channel == "mine":
        seen.append((await ctx.wait_event("order.paid")).data)
    else:
        seen.append((await ctx.receive(channel)).data)
    if len(seen) < total:
        await ctx.recur(seen, total)
    return seen


def to_i(world: World, type_: str, id_: str, data: Any, **extensions: str) -> None:
    event = WireEvent(id_, "/test", type_, "i", orjson.dumps(data), "2026-01-01T00:00:00Z", extensions)
    world.send(event, world.part_of("i"))


@pytest.mark.parametrize(("partitions", "restarts"), [(1, False), (5, True)])
def test_what_was_not_read_goes_on_to_the_next_run(partitions: int, restarts: bool) -> None:
    world = World(one_at_a_time, partitions=partitions)
    world.start("one_at_a_time", {"seen": [], "total": 9})
    world.run(restarts=restarts, until_us=world.now_us + 1_000_000)
    for n in range(3):
        to_i(world, "order.paid", f"paid-{n}", f"paid {n}")
        for channel in ("news", "jobs"):
            data = orjson.dumps(f"{channel} {n}")
            at = world.part_of(channel_entity(channel))
            told = WireEvent(f"{channel}-{n}", "/test", w.CHANNEL_PUBLISH, None, data, "2026-01-01T00:00:00Z")
            world.send(replace(told, extensions={w.X_CHANNEL: channel}), at)
    world.run(restarts=restarts)
    assert world.output() == [f"{what} {n}" for n in range(3) for what in ("news", "jobs", "paid")]
    assert world.instances["i"].run == 9
    world.check_projections()


# -- crashes at random -----------------------------------------------------------------------------------------------
@workflow
async def tree(ctx: WorkflowContext, depth: int, left: int = 2, total: int = 0) -> int:
    """Children in parallel, activities, and another run each time."""
    if depth == 0:
        return await double(1)
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(ctx.child(tree, depth - 1, n)) for n in range(2)]
        await ctx.sleep(1)
    total += sum(part.result() for part in parts)
    if left:
        await ctx.recur(depth, left - 1, total)
    return total


@pytest.mark.parametrize("seed", range(12))
def test_runs_and_children_through_crashes_at_random(seed: int) -> None:
    random = Random(seed)
    world = World(tree, answers=ANSWERS, partitions=random.choice((1, 3, 8)), cached=random.choice((0, 3, 1_000)))
    world.start("tree", {"depth": 2})
    for _ in range(3_000):
        if random.random() < 0.3:
            world.restart()
        due_us = world.core.timers.next_due_us()
        if not world.pending and due_us is None:
            break
        if not world.pending and due_us is not None:
            world.now_us = max(world.now_us, due_us)
        if random.random() < 0.3 and len(world.pending) > 1:  # a part of it, the rest in a later batch
            cut = random.randrange(1, len(world.pending))
            late, world.pending = world.pending[cut:], world.pending[:cut]
            world.step()
            world.pending = late + world.pending
        else:
            world.step()
    # Three runs of the root with two children each, which have one to two runs of two leaves.
    assert world.output() == 3 * (1 + 2) * 2 * 2
    assert {row.status for row in world.instances.values()} == {"completed"}
    assert len(world.instances) == 1 + 3 * 2 + 3 * (1 + 2) * 2
    world.check_projections()
