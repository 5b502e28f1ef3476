"""What users do with channels and groups, on every broker and every database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import text

from romancy_stream import (
    ActivityContext,
    App,
    ChannelModeConflictError,
    MessageTimeoutError,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.engine.commit import WAITING_FOR_MESSAGE
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 30


class Job(BaseModel):
    number: int


async def listens(app: App, *instance_ids: str) -> None:
    """Until all of them wait for a message."""

    async def waiting() -> bool:
        instances = [await app.get_instance(instance_id) for instance_id in instance_ids]
        return all(each is not None and each.status == WAITING_FOR_MESSAGE for each in instances)

    await eventually(waiting, PATIENCE_S)


async def test_broadcast_competing_and_groups(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def listen(ctx: WorkflowContext, count: int) -> list[Any]:
        await ctx.subscribe("news")
        return [(await ctx.receive("news")).data for _ in range(count)]

    @app.workflow
    async def work(ctx: WorkflowContext) -> list[int]:
        await ctx.subscribe("jobs", "competing")
        await ctx.subscribe("stop", "direct")
        await ctx.join("crew")
        done: list[int] = []
        stop = asyncio.ensure_future(ctx.receive("stop"))
        while True:
            job = asyncio.ensure_future(ctx.receive("jobs", model=Job))
            await asyncio.wait([job, stop], return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                job.cancel()
                return done
            done.append(job.result().data.number)

    @app.workflow
    async def talk(ctx: WorkflowContext, jobs: int) -> None:
        for number in range(jobs):
            ctx.publish("news", number)
            ctx.publish("jobs", Job(number=number), {"from": ctx.instance_id})
            await ctx.sleep(0)

    @app.workflow
    async def end(ctx: WorkflowContext) -> None:
        ctx.send_to_group("crew", "stop")

    async with app:
        for n in range(3):
            await app.start(listen, 12, instance_id=f"l{n}")
            await app.start(work, instance_id=f"w{n}")
        await listens(app, "l0", "l1", "l2", "w0", "w1", "w2")
        await (await app.start(talk, 10)).result(timeout=PATIENCE_S)
        assert await app.publish("news", "from outside", {"by": "test"}, id="m1") == "m1"
        await app.publish("news", "from outside", {"by": "test"}, id="m1")  # the same message
        async with app.client() as client:
            await client.publish("news", "last")
        heard = [await app.handle(f"l{n}").result(timeout=PATIENCE_S) for n in range(3)]
        for messages in heard:  # what one publisher sent is in order; two publishers have none between them
            assert [each for each in messages if isinstance(each, int)] == list(range(10))
            assert [each for each in messages if isinstance(each, str)] == ["from outside", "last"]
        assert heard == [heard[0]] * 3
        await listens(app, "w0", "w1", "w2")
        await app.start(end)
        done = [await app.handle(f"w{n}").result(timeout=PATIENCE_S) for n in range(3)]
    assert sorted(number for each in done for number in each) == list(range(10))


async def test_modes_mailboxes_and_runs(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def first(ctx: WorkflowContext) -> str:
        await ctx.subscribe("post")
        try:
            await ctx.receive("post", timeout=0.1)
        except MessageTimeoutError as error:
            return str(error)
        return ""

    @app.workflow
    async def clerk(ctx: WorkflowContext, got: list[str]) -> list[str]:
        if ctx.run == 1:
            with pytest.raises(ChannelModeConflictError):
                await ctx.subscribe("post", "competing")
        await ctx.subscribe("orders", "direct")
        message = await ctx.receive("orders", model=str)
        assert message.sender == (None if message.data == "outside" else "b")
        got.append(message.data)
        if len(got) < 4:
            await ctx.recur(got)
        return got

    @app.workflow
    async def boss(ctx: WorkflowContext) -> None:
        for number in range(3):
            ctx.send_to("c", "orders", f"order {number}")

    async with app:
        told = await (await app.start(first)).result(timeout=PATIENCE_S)
        assert told == "no message on channel 'post' within 0.1 s"
        handle = await app.start(clerk, [], instance_id="c")
        await listens(app, "c")
        await app.start(boss, instance_id="b")
        await app.send_to("c", "orders", "outside")
        await app.send_to("nobody", "orders", "lost", id="lost-1")
        got = await handle.result(timeout=PATIENCE_S)
        assert [each for each in got if each != "outside"] == ["order 0", "order 1", "order 2"]
        assert len(got) == 4
        instance = await handle.get()
        assert instance.run == 4
        [letter] = await eventually(app.dead_letters, PATIENCE_S)
        assert (letter.reason, letter.event_id) == ("unknown_instance", "lost-1")


async def test_messages_of_an_activity_leave_with_its_commit(make_app: MakeApp) -> None:
    app = make_app()

    @app.activity
    async def save(ctx: ActivityContext, number: int) -> None:
        await ctx.session.execute(text("SELECT 1"))
        ctx.publish("saved", number, {"attempt": ctx.attempt})
        if ctx.attempt == 1:
            raise ConnectionError("rolled back, and the message with it")
        if number == 0:
            raise TerminalError("so is this")

    @app.workflow
    async def saving(ctx: WorkflowContext, number: int) -> None:
        await save.with_options(retry=None)(number)

    @app.workflow
    async def listen(ctx: WorkflowContext) -> list[Any]:
        await ctx.subscribe("saved")
        got = [await ctx.receive("saved") for _ in range(2)]
        return [[each.data, each.metadata["attempt"], each.sender] for each in got]

    async with app:
        handle = await app.start(listen, instance_id="l")
        await listens(app, "l")
        with pytest.raises(WorkflowFailedError):
            await (await app.start(saving, 0)).result(timeout=PATIENCE_S)
        for number in (1, 2):
            await (await app.start(saving, number, instance_id=f"s{number}")).result(timeout=PATIENCE_S)
        assert await handle.result(timeout=PATIENCE_S) == [[1, 2, "s1"], [2, 2, "s2"]]
