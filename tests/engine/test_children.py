"""Workflows that start workflows, on the core without I/O: on one partition and many, after crashes at every step."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from romancy_stream import ChildCancelledError, ChildHandle, ChildWorkflowError, WorkflowContext, activity, workflow
from romancy_stream.engine.children import derived_child_id
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.world import World


@activity
async def double(value: int) -> int:
    raise AssertionError("activities run in workers")


def doubled(_: dict[str, str], args: list[Any]) -> Any:
    return args[0] * 2


ANSWERS = {"double": doubled}


class Broken(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"broken with {code}")
        self.code = code


@workflow
async def doubler(ctx: WorkflowContext, value: int) -> int:
    await ctx.sleep(5)
    return await double(value)


@workflow
async def adder(ctx: WorkflowContext, left: int, right: int = 1) -> int:
    return left + right


@workflow
async def breaker(ctx: WorkflowContext) -> None:
    raise Broken(7)


@workflow
async def sleeper(ctx: WorkflowContext, seconds: float) -> str:
    await ctx.sleep(seconds)
    return "slept"


@workflow
async def family(ctx: WorkflowContext, values: list[int]) -> dict[str, Any]:
    doubled_ = await asyncio.gather(*[ctx.child(doubler, value) for value in values])
    handle = await ctx.start_child(adder, sum(doubled_), right=3)
    try:
        await ctx.child(breaker)
    except ChildWorkflowError as error:
        broken = [str(error), getattr(error.__cause__, "code", None)]
    return {"doubled": doubled_, "sum": await handle.result(), "again": await handle.result(), "broken": broken}


EVERYBODY = (doubler, adder, breaker, sleeper, family)


def cancel(world: World, instance_id: str, reason: str = "enough") -> None:
    data = orjson.dumps({"reason": reason})
    event = WireEvent(f"cancel-{instance_id}", "/test", w.CANCEL, instance_id, data, "2026-01-01T00:00:00Z")
    world.send(event, world.part_of(instance_id))


@pytest.mark.parametrize(("partitions", "cached", "restarts"), [(1, 1_000, False), (7, 1_000, True), (7, 0, False)])
def test_results_and_errors_of_children(partitions: int, cached: int, restarts: bool) -> None:
    world = World(*EVERYBODY, answers=ANSWERS, partitions=partitions, cached=cached)
    world.start("family", [1, 2, 3])
    world.run(restarts=restarts)
    broken = ["child i:1:5 (breaker) failed: Broken: broken with 7", 7]
    assert world.output() == {"doubled": [2, 4, 6], "sum": 15, "again": 15, "broken": broken}
    assert {row.parent_id for row in world.instances.values()} == {None, "i"}
    assert len(world.instances) == 6
    world.check_projections()


def test_what_the_log_says_of_parent_and_child() -> None:
    @workflow
    async def parent(ctx: WorkflowContext) -> int:
        return await ctx.child(adder, 1)

    world = World(parent, adder, partitions=3)
    begun = world.start("parent", correlationid="order-1")
    world.run()
    assert world.kinds() == [
        "workflow.started",
        "child.started child:1",
        "child.completed child:1",
        "workflow.completed",
    ]
    child = world.run_of("i:1:1", 1)[0]
    assert child.attrs["parent"] == {"id": "i", "run": 1, "ref": "child:1", "close": "cancel"}
    assert child.attrs["correlation_id"] == begun.extensions["correlationid"]
    assert orjson.loads(child.payload or b"") == {"left": 1}


@pytest.mark.parametrize("restarts", [False, True])
def test_a_child_that_cannot_be_started_fails_its_parent_by_name(restarts: bool) -> None:
    @workflow
    async def asks(ctx: WorkflowContext, how: str) -> list[str]:
        try:
            if how == "taken":
                await ctx.child(sleeper, 1, instance_id="somebody")
            elif how == "unknown":
                await ctx.child(elsewhere)
            else:
                first = await ctx.start_child(sleeper, 10, instance_id="twice")
                await ctx.child(sleeper, 10, instance_id="twice")
        except ChildWorkflowError as error:
            if how == "twice":
                assert await first.result() == "slept"
            return [type(error.__cause__).__name__, error.child_id]
        return []

    @workflow
    async def elsewhere(ctx: WorkflowContext) -> None: ...

    for how, expected in (
        ("taken", ["InstanceExistsError", "somebody"]),
        ("unknown", ["UnknownWorkflowError", "i:1:1"]),
        ("twice", ["InstanceExistsError", "twice"]),
    ):
        world = World(asks, sleeper, partitions=3)
        world.start("sleeper", 1, "somebody")
        world.run()
        world.start("asks", how)
        world.run(restarts=restarts)
        assert world.output() == expected


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("close", ["cancel", "abandon"])
@pytest.mark.parametrize("end", ["returns", "fails", "is cancelled", "recurs"])
def test_children_when_their_parent_ends(close: Any, end: str, restarts: bool) -> None:
    @workflow
    async def leaving(ctx: WorkflowContext, how: str) -> str:
        if how == "over":
            return "over"
        await ctx.start_child(sleeper, 1_000, instance_id="child", parent_close=close)
        await ctx.sleep(1)
        if how == "fails":
            raise Broken(1)
        if how == "is cancelled":
            await ctx.sleep(100)
        if how == "recurs":
            await ctx.recur("over")
        return "returned"

    world = World(leaving, sleeper, partitions=5)
    world.start("leaving", end)
    world.run(restarts=restarts, until_us=world.now_us + 2_000_000)
    if end == "is cancelled":
        cancel(world, "i")
    world.run(restarts=restarts)
    parent = {"fails": "failed", "is cancelled": "cancelled"}.get(end, "completed")
    assert world.instances["i"].status == parent
    child = world.instances["child"]
    assert child.status == ("cancelled" if close == "cancel" else "completed")
    if close == "cancel":
        assert b"parent i " in (child.error or b"")
    world.check_projections()


@pytest.mark.parametrize("restarts", [False, True])
def test_a_child_can_be_cancelled_by_its_handle(restarts: bool) -> None:
    @workflow
    async def impatient(ctx: WorkflowContext) -> list[Any]:
        child = await ctx.start_child(sleeper, 1_000)
        try:
            async with asyncio.timeout(3):
                await child.result()
        except TimeoutError:
            child.cancel("too slow")
            child.cancel("too slow")
        try:
            await child.result()
        except ChildCancelledError as error:
            child.cancel()  # it has ended
            return [error.reason, error.child_id, ctx.now().timestamp()]
        return []

    world = World(impatient, sleeper, partitions=5)
    world.start("impatient")
    begun = world.now_us / 1_000_000
    world.run(restarts=restarts)
    reason, child_id, at = world.output()
    assert (reason, child_id) == ("too slow", "i:1:1")
    assert 3 <= at - begun < 4
    assert [kind for kind in world.kinds() if "cancel" in kind] == [
        "child.cancel_requested child:1",
        "child.cancelled child:1",
    ]
    world.check_projections()


@pytest.mark.parametrize(("close", "status"), [("cancel", "cancelled"), ("abandon", "completed")])
def test_who_waits_for_a_child_no_longer(close: Any, status: str) -> None:
    """Nobody has a handle of it: it goes the way that it would go at its parent's end."""

    @workflow
    async def hurried(ctx: WorkflowContext) -> str:
        try:
            async with asyncio.timeout(3):
                await ctx.child(sleeper, 20, instance_id="child", parent_close=close)
        except TimeoutError:
            await ctx.sleep(100)
        return "done"

    world = World(hurried, sleeper)
    world.start("hurried")
    world.run(restarts=True)
    assert world.output() == "done"
    assert world.instances["child"].status == status
    assert (world.instances["child"].finished_us or 0) < (world.instances["i"].finished_us or 0) - 50_000_000


def test_a_child_that_is_cancelled_at_once_was_never_started() -> None:
    @workflow
    async def fickle(ctx: WorkflowContext) -> str:
        child = await ctx.start_child(sleeper, 1)
        child.cancel()
        try:
            await child.result()
        except ChildCancelledError as error:
            return str(error)
        return ""

    world = World(fickle, sleeper)
    world.start("fickle")
    world.run()
    assert "before it was started" in world.output()
    assert world.kinds() == ["workflow.started", "workflow.completed"]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_child_that_recurs_is_still_the_same_child(restarts: bool) -> None:
    @workflow
    async def rounds(ctx: WorkflowContext, left: int) -> int:
        await ctx.sleep(1)
        if left:
            await ctx.recur(left - 1)
        return ctx.run

    @workflow
    async def parent(ctx: WorkflowContext) -> int:
        return await ctx.child(rounds, 3)

    world = World(parent, rounds, partitions=3)
    world.start("parent")
    world.run(restarts=restarts)
    assert world.output() == 4
    assert world.instances["i:1:1"].parent_id == "i"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_child_may_begin_later(restarts: bool) -> None:
    @workflow
    async def planner(ctx: WorkflowContext) -> float:
        begun = ctx.now()
        await ctx.child(sleeper, 0, start_delay=60)
        return (ctx.now() - begun).total_seconds()

    world = World(planner, sleeper)
    world.start("planner")
    world.run(restarts=restarts)
    assert 60 <= world.output() < 61


def test_a_parked_parent_gets_its_childs_result_when_it_goes_on() -> None:
    @workflow(name="parent")
    async def first(ctx: WorkflowContext) -> int:
        return await ctx.child(doubler, 4)

    @workflow(name="parent")
    async def other(ctx: WorkflowContext) -> int:
        return await double(1)

    world = World(first, doubler, answers=ANSWERS)
    world.start("parent")
    world.step()
    world.restart(other)
    world.run()
    assert world.instances["i"].parked is not None
    assert world.instances["i:1:1"].status == "completed"
    world.restart(first)
    world.run()
    assert world.output() == 8


def test_ids_of_children_fit_their_column_and_tell_runs_apart() -> None:
    assert derived_child_id("order", 2, "child:3") == "order:2:3"
    long = {derived_child_id("x" * 255, run, f"child:{n}") for run in (1, 2) for n in (1, 2)}
    assert len(long) == 4
    assert {len(each) for each in long} == {255}


def test_wrong_calls_are_seen_at_the_call() -> None:
    @workflow
    async def wrong(ctx: WorkflowContext) -> list[str]:
        found = []
        for make in (
            lambda: ctx.child(double, 1),  # type: ignore[call-overload]
            lambda: ctx.child(sleeper),  # type: ignore[arg-type]
            lambda: ctx.child(sleeper, 1, instance_id=""),
            lambda: ctx.child(sleeper, 1, instance_id="a\0b"),
            lambda: ctx.child(sleeper, 1, parent_close="later"),  # type: ignore[call-arg]
            lambda: ctx.child(sleeper, 1, start_delay=-1),
        ):
            try:
                await make()
            except (TypeError, ValueError) as error:
                found.append(type(error).__name__)
        return found

    world = World(wrong, sleeper)
    world.start("wrong")
    world.run()
    assert world.output() == ["TypeError", "TypeError", *["ValueError"] * 4]


def test_a_handle_says_whose_it_is() -> None:
    @workflow
    async def parent(ctx: WorkflowContext) -> str:
        child: ChildHandle[int] = await ctx.start_child(adder.with_options(instance_id="mine"), 1, 2)
        assert await child.result() == 3
        return f"{child.instance_id} {child!r}"

    world = World(parent, adder)
    world.start("parent")
    world.run()
    assert world.output() == "mine <ChildHandle mine>"


def operate(world: World, type_: str, instance_id: str, **extensions: str) -> None:
    event = WireEvent(f"{type_}-{instance_id}", "/operator", type_, instance_id, None, "2026-01-01T00:00:00Z")
    event.extensions.update(extensions)
    world.send(event, world.part_of(instance_id))


@workflow
async def waiting(ctx: WorkflowContext) -> list[Any]:
    return [await ctx.child(adder, 1), await ctx.child(sleeper, 100), ctx.run]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_run_that_is_reset_starts_what_was_open_under_another_id(restarts: bool) -> None:
    world = World(waiting, *EVERYBODY, partitions=5)
    world.start("waiting")
    world.run(restarts=restarts, until_us=world.now_us + 1_000_000)
    assert world.kinds()[-2:] == ["child.completed child:1", "child.started child:2"]
    operate(world, w.RESET, "i", **{w.X_SEQUENCE: "4"})  # the last event: its answer is given again
    world.run(restarts=restarts)
    assert world.output() == [2, "slept", 2]
    assert world.instances["i:1:2"].status == "cancelled"
    assert {"i:1:1", "i:2:2"} < set(world.instances)
    assert "i:2:1" not in world.instances
    world.check_projections()


@pytest.mark.parametrize("restarts", [False, True])
def test_a_fork_has_children_of_its_own(restarts: bool) -> None:
    world = World(waiting, *EVERYBODY, partitions=5)
    world.start("waiting")
    world.run(restarts=restarts, until_us=world.now_us + 1_000_000)
    operate(world, w.FORK, "copy", **{w.X_INSTANCE: "i", w.X_RUN: "1", w.X_SEQUENCE: "3"})
    world.run(restarts=restarts)
    assert world.output("copy") == world.output("i") == [2, "slept", 1]
    assert world.instances["copy:1:2"].parent_id == "copy"
    world.check_projections()
