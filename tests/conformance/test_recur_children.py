"""Runs that follow one another, children, and the options of a start, on every broker and every database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from romancy_stream import (
    App,
    ChildCancelledError,
    ChildWorkflowError,
    InstanceExistsError,
    TerminalError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
)
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 30


def with_rounds(app: App) -> App:
    @app.activity
    async def add(left: int, right: int) -> int:
        return left + right

    @app.workflow(name="rounds")
    async def rounds(ctx: WorkflowContext, left: int, total: int = 0) -> list[int]:
        total = await add(total, left)
        event = await ctx.wait_event("round.over")
        assert event.data == ctx.run
        if left > 1:
            await ctx.recur(left - 1, total=total)
        return [ctx.run, total]

    return app


async def test_recurring_with_events_that_come_early(make_app: MakeApp) -> None:
    app = with_rounds(make_app())
    async with app:
        handle = await app.start_by_name("rounds", {"left": 5}, instance_id="loop")
        waiting = asyncio.create_task(handle.result(PATIENCE_S))
        for n in range(1, 6):  # the later ones wait in the mailbox, from run to run
            await app.send_event(type="round.over", data=n, subject="loop")
        assert await waiting == [5, 15]
        assert await handle.result(PATIENCE_S) == [5, 15]
        assert [event.kind for event in await app.history("loop", run=2)][-1] == "workflow.recurred"
        instance = await app.get_instance("loop")
        assert instance is not None
        assert instance.status == "completed"


def with_family(app: App) -> App:
    @app.activity
    async def refuse(value: int) -> None:
        raise TerminalError(f"not {value}")

    @app.workflow(name="leaf")
    async def leaf(ctx: WorkflowContext, value: int) -> int:
        await ctx.sleep(0.01)
        if value < 0:
            await refuse(value)
        return value * 2

    @app.workflow(name="endless")
    async def endless(ctx: WorkflowContext) -> None:
        await ctx.sleep(3_600)

    @app.workflow(name="parent")
    async def parent(ctx: WorkflowContext, values: list[int]) -> dict[str, object]:
        doubled = await asyncio.gather(*[ctx.child(leaf, value) for value in values])
        failed = cancelled = ""
        try:
            await ctx.child(leaf, -1)
        except ChildWorkflowError as error:
            failed = f"{type(error.__cause__).__name__}: {error.__cause__}"
        child = await ctx.start_child(endless)
        await ctx.sleep(0.01)
        child.cancel("enough")
        try:
            await child.result()
        except ChildCancelledError as error:
            cancelled = str(error.reason)
        await ctx.start_child(endless, instance_id="goes-on", parent_close="abandon")
        await ctx.start_child(endless, instance_id="goes-too", parent_close="cancel")
        await ctx.sleep(0.01)
        return {"doubled": doubled, "failed": failed, "cancelled": cancelled}

    return app


async def test_children_on_all_partitions(make_app: MakeApp) -> None:
    app = with_family(make_app())
    async with app:
        handle = await app.start_by_name("parent", list(range(6)))
        assert await handle.result(PATIENCE_S) == {
            "doubled": [0, 2, 4, 6, 8, 10],
            "failed": "TerminalError: not -1",
            "cancelled": "enough",
        }
        with pytest.raises(WorkflowCancelledError, match="its parent"):
            await app.handle("goes-too").result(PATIENCE_S)
        instance = await app.get_instance("goes-on")
        assert instance is not None
        assert instance.status == "waiting_for_timer"
        await app.cancel("goes-on")
        with pytest.raises(WorkflowCancelledError):
            await app.handle("goes-on").result(PATIENCE_S)


async def test_a_delayed_start_survives_a_restart(make_app: MakeApp) -> None:
    def with_clock() -> App:
        app = make_app()

        @app.workflow(name="clock")
        async def clock(ctx: WorkflowContext) -> datetime:
            return ctx.now()

        return app

    async with with_clock() as app:
        workflow = app.registry.workflows["clock"]
        delayed = await app.start(workflow, instance_id="delayed", start_delay=timedelta(seconds=2))
        planned = datetime.now(UTC) + timedelta(seconds=3)
        await app.start(workflow, instance_id="planned", start_at=planned)

        async def waits() -> bool:
            instance = await app.get_instance("planned")
            return instance is not None and instance.status == "waiting_for_timer"

        await eventually(waits, PATIENCE_S)
    async with with_clock() as app:
        assert await app.handle("planned", app.registry.workflows["clock"]).result(PATIENCE_S) >= planned
        first = await app.handle(delayed.instance_id, app.registry.workflows["clock"]).result(PATIENCE_S)
        assert first < planned


async def test_ids_are_used_again_when_that_is_asked_for(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def attempt(ctx: WorkflowContext, good: bool) -> int:
        if not good:
            raise RuntimeError("as asked")
        return ctx.run

    @app.workflow
    async def other(ctx: WorkflowContext) -> None: ...

    async with app:
        first = await app.start(attempt, False, instance_id="again")
        with pytest.raises(WorkflowFailedError):
            await first.result(PATIENCE_S)
        with pytest.raises(InstanceExistsError, match="it is failed"):
            await app.start(attempt, True, instance_id="again", reuse="reject_duplicate")
        second = await app.start(attempt, True, instance_id="again", reuse="allow_failed")
        assert await second.result(PATIENCE_S) == 2
        third = await app.start(attempt, True, instance_id="again", reuse="allow_failed")
        assert await third.result(PATIENCE_S) == 2
        fourth = await app.start(attempt, True, instance_id="again", reuse="allow_finished")
        assert await fourth.result(PATIENCE_S) == 3
        assert (await app.history("again", run=1))[-1].kind == "workflow.failed"
        stranger = await app.start(other, instance_id="again")
        with pytest.raises(InstanceExistsError, match="'attempt', not 'other'"):
            await stranger.result(PATIENCE_S)


async def test_many_at_once(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def one(ctx: WorkflowContext, value: int) -> int:
        return value

    @app.workflow
    async def two(ctx: WorkflowContext, left: int, right: int = 1) -> int:
        return left + right

    async with app:
        handles = await app.start_many(one, range(500))
        assert await asyncio.gather(*[handle.result(PATIENCE_S) for handle in handles]) == list(range(500))
        ids = [f"sum-{n}" for n in range(3)]
        for _ in range(2):  # nothing is started twice
            sums = await app.start_many(two, [{"left": n} for n in range(3)], instance_ids=ids)
        assert [await handle.result(PATIENCE_S) for handle in sums] == [1, 2, 3]
        with pytest.raises(ValueError, match="2 inputs and 1 instance_ids"):
            await app.start_many(one, [1, 2], instance_ids=["a"])
