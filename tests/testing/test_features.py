"""Everything that an app's client can do, in an environment, with a crash before each step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from romancy_stream import (
    ActivityContext,
    App,
    InstanceNotCancellableError,
    RetryPolicy,
    TerminalError,
    UpdateRejectedError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.testing import NEVER, StuckError, WorkflowEnvironment

app = App("features")


@app.activity
async def undo(city: str, result: str) -> None: ...


@app.activity(compensate=undo)
async def book(city: str) -> str:
    return f"H-{city}"


@app.activity
async def refuse() -> None:
    raise TerminalError("no seats")


@app.activity(heartbeat_timeout=60.0, retry=RetryPolicy.fixed(2, 1.0))
async def crunch(ctx: ActivityContext) -> str:
    await ctx.heartbeat({"done": ctx.attempt})
    if ctx.attempt == 1:
        raise ConnectionError("lost")
    return f"began at {ctx.heartbeat_details}"


@app.workflow
async def trip(ctx: WorkflowContext, city: str) -> None:
    await book(city)
    await ctx.sleep(60)
    await refuse()


@app.workflow
async def long(ctx: WorkflowContext) -> str:
    return await crunch()


@app.workflow
async def desk(ctx: WorkflowContext) -> str:
    ctx.state.by = None
    await ctx.wait_condition(lambda: ctx.state.by)
    await ctx.wait_condition(ctx.all_handlers_finished)
    return str(ctx.state.by)


@desk.signal
def approve(ctx: WorkflowContext, by: str) -> None:
    ctx.state.by = by


@desk.query
def who(ctx: WorkflowContext) -> str | None:
    by: str | None = ctx.state.by
    return by


@desk.update
async def change(ctx: WorkflowContext, by: str) -> str:
    await ctx.sleep(3600)
    ctx.state.by = by
    return by.upper()


@change.validator
def check(ctx: WorkflowContext, by: str) -> None:
    if not by:
        raise ValueError("who?")


@app.workflow
async def listener(ctx: WorkflowContext, count: int) -> list[int]:
    await ctx.subscribe("numbers")
    return [(await ctx.receive("numbers", model=int)).data for _ in range(count)]


@app.workflow
async def speaker(ctx: WorkflowContext, numbers: list[int]) -> None:
    for number in numbers:
        ctx.publish("numbers", number)


@app.workflow
async def parent(ctx: WorkflowContext) -> list[list[int]]:
    listening = [asyncio.ensure_future(ctx.child(listener, 2)) for _ in range(2)]
    await ctx.sleep(1)
    await ctx.child(speaker, [1, 2])
    return [await each for each in listening]


@app.workflow
async def countdown(ctx: WorkflowContext, left: int) -> str:
    if left:
        await ctx.sleep(86_400)
        await ctx.recur(left - 1)
    return f"run {ctx.run}"


@app.workflow
async def report(ctx: WorkflowContext, about: str) -> str:
    return f"{about} at {ctx.now():%H:%M}"


app.schedule("nightly", report, "sales", cron="0 3 * * *")


@pytest.fixture(params=["plain", "crashes", "disorder"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    crashes = "never" if request.param == "plain" else "every-step"
    async with WorkflowEnvironment(app, crashes=crashes, disorder=request.param == "disorder") as env:  # type: ignore[arg-type]
        yield env


async def test_compensations(env: WorkflowEnvironment) -> None:
    with pytest.raises(WorkflowFailedError, match="no seats"):
        await env.execute(trip, "Wien")
    assert [call.arguments for call in env.calls(undo)] == [{"city": "Wien", "result": "H-Wien"}]


async def test_cancelling(env: WorkflowEnvironment) -> None:
    handle = await env.start(trip, "Wien")
    await handle.cancel("rain")
    with pytest.raises(WorkflowCancelledError, match="rain"):
        await handle.result()
    assert len(env.calls(undo)) == 1
    done = await env.start(report, "stock")
    await done.result()
    with pytest.raises(InstanceNotCancellableError):
        await env.cancel(done.instance_id)


async def test_signals_queries_and_updates(env: WorkflowEnvironment) -> None:
    handle = await env.start(desk)
    assert await handle.query(who) is None
    with pytest.raises(UpdateRejectedError):
        await handle.update(change, "")
    began = env.now()
    assert await handle.update(change, "ada") == "ADA"
    assert env.now() - began == timedelta(hours=1)
    assert await handle.result() == "ada"
    other = await env.start(desk)
    await env.signal(other.instance_id, approve, "bob")
    assert await env.query(other.instance_id, "who") == "bob"
    assert await other.result() == "bob"
    with pytest.raises(StuckError, match="desk-3"):
        await env.execute(desk)


async def test_channels_and_children(env: WorkflowEnvironment) -> None:
    assert await env.execute(parent) == [[1, 2], [1, 2]]
    handle = await env.start(listener, 1)
    with pytest.raises(StuckError, match="a message on channel 'numbers'"):
        await handle.result()
    await env.publish("numbers", 7)
    assert await handle.result() == [7]


async def test_runs_follow_each_other(env: WorkflowEnvironment) -> None:
    handle = await env.start(countdown, 3)
    assert await handle.result() == "run 4"
    assert (await env.history(handle)).run == 4
    assert (await env.history(handle, run=1)).kinds[-1] == "workflow.recurred"
    assert env.now() == datetime(2026, 1, 4, tzinfo=UTC)


async def test_heartbeats(env: WorkflowEnvironment) -> None:
    assert await env.execute(long) == "began at {'done': 1}"
    env.mock(crunch, takes=NEVER)
    began = env.now()
    with pytest.raises(WorkflowFailedError, match="RetryExhaustedError"):
        await env.execute(long)
    assert env.now() - began == timedelta(seconds=60 + 1 + 60)
    env.mock(crunch, returns="at last", takes=86_400)
    assert await env.execute(long) == "at last"


async def test_starts_may_be_delayed(env: WorkflowEnvironment) -> None:
    handle = await env.start(report, "stock", start_delay=timedelta(hours=5))
    assert await handle.result() == "stock at 05:00"
    later = await env.start(report, "stock", start_at=datetime(2026, 1, 2, 17, 30, tzinfo=UTC))
    assert await later.result() == "stock at 17:30"
    many = await env.start_many(report, ["a", "b"])
    assert [await each.result() for each in many] == ["a at 17:30", "b at 17:30"]


async def test_schedules() -> None:
    async with WorkflowEnvironment(app, schedules=True, auto_skip=False) as env:
        await env.sleep(days=3)
        page = await env.list_instances(workflow_name="report")
        assert [each.output for each in page.instances] == ["sales at 03:00"] * 3
        [schedule] = await env.schedules()
        assert schedule.next_run == datetime(2026, 1, 4, 3, tzinfo=UTC)
    async with WorkflowEnvironment(app) as env:
        assert await env.schedules() == []
