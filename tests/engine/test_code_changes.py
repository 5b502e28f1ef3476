"""Changes of workflow code: patches, which tell runs from before a change from those after it, and versions side by
side. In a world without I/O, with crashes, a tiny cache and many partitions."""

from __future__ import annotations

from typing import Any

import pytest

from romancy_stream import Registry, WorkflowContext, activity, workflow
from romancy_stream.engine import history as h
from romancy_stream.engine.inputs import Unpark
from romancy_stream.engine.queries import ask
from romancy_stream.errors import NonDeterminismError
from tests.engine.world import START_US, World

ANSWERS = {"double": lambda _, args: args[0] * 2}


@activity
async def double(n: int) -> int:
    raise AssertionError("activities run in workers")


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


@pytest.mark.parametrize("settings", [{}, {"cached": 1}, {"partitions": 7}], ids=str)
@pytest.mark.parametrize("restarts", [False, True])
def test_a_patch_tells_runs_from_before_it_from_runs_after_it(settings: dict[str, Any], restarts: bool) -> None:
    world = World(before_patch, answers=ANSWERS, **settings)
    world.start("patchy", None, "old")
    world.run(until_us=START_US + 50_000_000)
    world.restart(patched)
    world.start("patchy", None, "new")
    world.run(restarts=restarts)
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
    world.core.drop(world.core.owned)
    world.core = world._new_core()
    world.step([Unpark(row.part, row.instance_id) for row in world.instances.values() if row.parked is not None])
