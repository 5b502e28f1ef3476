"""Timers on every broker and every database: deadlines, moments that have passed, and thousands that come due while
nobody is there."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from romancy_stream import App, WorkflowContext
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 120
INSTANCES = 20
TIMERS = 100
"""In each of them: more together than one commit takes up."""


def program(make_app: MakeApp) -> App:
    app = make_app()

    @app.workflow
    async def sleeper(ctx: WorkflowContext, ends: datetime) -> list[bool]:
        missed = False
        try:
            async with asyncio.timeout(0.1):
                await ctx.wait_event("never")
        except TimeoutError:
            missed = True
        await ctx.sleep_until(datetime(2001, 1, 1, tzinfo=UTC))
        await asyncio.gather(*[ctx.sleep_until(ends) for _ in range(TIMERS + 1)])
        return [missed, ctx.now() >= ends]

    return app


async def test_thousands_come_due_while_nobody_is_there(make_app: MakeApp) -> None:
    ends = datetime.now(UTC)
    first = program(make_app)
    async with first:
        ends = datetime.now(UTC) + timedelta(seconds=4)
        handles = await first.start_many(first.registry.workflows["sleeper"], [ends] * INSTANCES)

        async def all_sleep() -> bool:
            return first.stats().timers >= INSTANCES * TIMERS or datetime.now(UTC) > ends

        await eventually(all_sleep, deadline_s=PATIENCE_S)
    await eventually(lambda: datetime.now(UTC) > ends, deadline_s=PATIENCE_S)
    second = program(make_app)
    async with second:
        for handle in handles:
            assert await second.handle(handle.instance_id).result(timeout=PATIENCE_S) == [True, True]
        kinds = [entry.kind for entry in await second.history(handles[0].instance_id)]
    assert kinds.count("timer.started") == kinds.count("timer.fired") == TIMERS + 3
    assert kinds[-1] == "workflow.completed"
