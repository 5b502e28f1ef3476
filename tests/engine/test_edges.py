"""Workflow code at its edges: generators that are let go of, times beyond all calendars."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine import history as h
from romancy_stream.engine.loop import LATEST_US, _coroutines_in
from romancy_stream.instances import moment
from romancy_stream.retry import RetryPolicy
from romancy_stream.workflow import workflow
from tests.engine.world import World

cleaned: list[str] = []


@activity
async def double(value: int) -> int:
    raise AssertionError("activities run in workers")


@activity
async def clean_up() -> None:
    cleaned.append("outside of any worker")


ANSWERS: dict[str, Any] = {"double": lambda _, args: args[0] * 2, "clean_up": lambda _, args: None}


async def doubles() -> AsyncIterator[int]:
    try:
        for value in range(3):
            yield await double(value)
    finally:
        await clean_up()


@workflow
async def breaks_off(ctx: WorkflowContext) -> list[int]:
    found = []
    async for value in doubles():
        found.append(value)
        break
    gc.collect()
    found.append(await double(10))
    return found


@workflow
async def leaves_many(ctx: WorkflowContext) -> int:
    kept = [doubles() for _ in range(100)]
    for generator in kept:
        await anext(generator)
    return len(kept)


@workflow
async def goes_through(ctx: WorkflowContext) -> list[int]:
    return [value async for value in doubles()]


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_generator_that_is_let_go_of_stays_in_its_workflow(restarts: bool) -> None:
    cleaned.clear()
    world = World(breaks_off, goes_through, answers=ANSWERS)
    world.start("breaks_off", instance_id="broken")
    world.start("goes_through", instance_id="whole")
    world.run(restarts=restarts)
    gc.collect()
    for _ in range(3):  # rounds of the loop that the test itself runs on
        await asyncio.sleep(0)
    assert world.output("broken") == [0, 20]
    assert world.output("whole") == [0, 2, 4]
    assert cleaned == []
    assert "activity.scheduled clean_up:1" in world.kinds("whole")
    assert "activity.scheduled clean_up:1" not in world.kinds("broken")
    world.check_projections()


@pytest.mark.parametrize("cached", [0, 1_000])
def test_generators_of_an_evicted_instance_end_in_silence(cached: int, caplog: pytest.LogCaptureFixture) -> None:
    world = World(leaves_many, breaks_off, answers=ANSWERS, cached=cached)
    world.start("leaves_many", instance_id="many")
    world.start("breaks_off", instance_id="broken")
    world.run()
    assert world.output("many") == 100
    assert world.output("broken") == [0, 20]
    gc.collect()  # what is still suspended now would complain, and that is an error here
    assert not caplog.records


begun: list[str] = []


async def cleans() -> None:
    begun.append("cleaning")
    await clean_up()


@workflow
async def cleans_up_in_many_ways(ctx: WorkflowContext, how: str) -> None:
    try:
        async with asyncio.TaskGroup():  # waits in its body, with no task
            await ctx.wait_event("never")
    finally:
        if how == "gather":
            await asyncio.gather(*(cleans() for _ in range(100)))
        elif how == "group":
            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(cleans())
        elif how == "timeout":
            async with asyncio.timeout(5):
                await cleans()
        elif how == "shield":
            await asyncio.shield(cleans())
        elif how == "wait_for":
            await asyncio.wait_for(cleans(), 5)
        elif how == "later":
            first, others = cleans(), [cleans(), cleans()]
            await ctx.sleep(1)
            await asyncio.gather(first, *others)


@pytest.mark.parametrize("how", ["gather", "group", "timeout", "shield", "wait_for", "later", "nothing"])
def test_cleaning_up_is_silent_where_it_is_refused_to_an_evicted_instance(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun.clear()
    world = World(cleans_up_in_many_ways, cached=0)
    world.start("cleans_up_in_many_ways", how)
    world.run()
    assert not begun
    assert world.instances["i"].status == "waiting_for_event"
    assert "activity.scheduled clean_up:1" not in world.kinds()
    gc.collect()  # what was never awaited would complain now, and that is an error here
    assert not caplog.records


class Unbound:
    """As proxies of web frameworks are outside of a request, or weak ones of what is gone."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("there is nothing behind this")


@workflow
async def holds_a_proxy(ctx: WorkflowContext) -> int:
    proxy, others = Unbound(), [Unbound()]
    await ctx.wait_event("never")
    return len([proxy, *others])


def test_whatever_code_has_in_its_hands_is_not_asked_when_it_is_evicted(caplog: pytest.LogCaptureFixture) -> None:
    world = World(holds_a_proxy, cached=0)
    world.start("holds_a_proxy")
    world.run()
    assert world.instances["i"].status == "waiting_for_event"
    assert not caplog.records


def test_errors_that_lead_to_each_other_are_looked_through_once() -> None:
    later = cleans()

    def fails() -> None:
        held = later
        raise ValueError(held)

    try:
        fails()
    except ValueError as error:
        other = KeyError("other")
        error.__context__, other.__context__ = other, error
        met = list(itertools.islice(_coroutines_in(error), 10))
        other.__context__ = None
    assert set(met) == {later}
    assert len(met) < 10
    later.close()


async def test_the_outer_loop_keeps_its_generators() -> None:
    before = sys.get_asyncgen_hooks()
    world = World(goes_through, answers=ANSWERS)
    world.start("goes_through")
    world.run()
    assert sys.get_asyncgen_hooks() == before


@activity(total_timeout=1e18, retry=RetryPolicy(initial_interval=1e18, max_interval=1e18))
async def patient() -> None:
    raise AssertionError("activities run in workers")


@workflow
async def waits_for_ever(ctx: WorkflowContext, how: str) -> None:
    if how == "sleep":
        await asyncio.sleep(1e18)
    elif how == "infinite":
        await asyncio.sleep(math.inf)
    elif how == "timeout":
        async with asyncio.timeout(1e18):
            await asyncio.Event().wait()
    else:
        await patient()


def refuse(_: dict[str, str], args: list[Any]) -> Any:
    raise ValueError("not yet")


@pytest.mark.parametrize("how", ["sleep", "infinite", "timeout", "activity"])
def test_a_wait_that_never_ends_can_be_stored(how: str) -> None:
    world = World(waits_for_ever, answers={"patient": refuse})
    world.start("waits_for_ever", how)
    world.run(until_us=LATEST_US - 1)
    due = [timer.due_us for timer in world.timers.values()]
    assert due
    assert set(due) == {LATEST_US}
    assert moment(LATEST_US).year == 9999
    scheduled = [event for event in world.history["i"] if event.kind == h.ACTIVITY_SCHEDULED]
    assert all(event.attrs["deadline_us"] == LATEST_US for event in scheduled)
    world.check_projections()


def test_a_start_of_a_name_that_nobody_can_have_is_rejected_under_an_id_that_fits() -> None:
    world = World(goes_through, answers=ANSWERS)
    world.start("n" * 255, instance_id=None)
    world.run()
    [rejection] = world.rejections.values()
    assert rejection.reason == "unknown_workflow"
    assert len(rejection.instance_id) <= 255
    assert len(world.dead_letters) == 1
