"""Long activities and queues, on every broker and every database."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from romancy_stream import (
    ActivityCancelledError,
    ActivityContext,
    RateLimit,
    RetryLaterError,
    RetryPolicy,
    WorkflowCancelledError,
    WorkflowContext,
)
from romancy_stream.engine.commit import ActivityKey
from romancy_stream.runtime import attempt_heartbeats, worker_watch
from romancy_stream.runtime.worker_watch import Times
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 60


class Cursor(BaseModel):
    row: int


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_watch, "TIMES", Times(detach_after_s=0.2, lease_s=30.0, check_every_s=0.2))
    monkeypatch.setattr(attempt_heartbeats, "BEAT_EVERY_S", 0.1)


async def test_an_attempt_that_falls_silent_is_followed_by_one_that_goes_on_from_there(make_app: MakeApp) -> None:
    app = make_app()
    ended = []

    @app.activity(heartbeat_timeout=1.0, retry=RetryPolicy.fixed(3, 0.05))
    async def copy(ctx: ActivityContext, rows: int) -> list[int]:
        cursor = ctx.heartbeat_details_as(Cursor) or Cursor(row=0)
        for row in range(cursor.row + 1, rows + 1):
            await ctx.heartbeat(Cursor(row=row))
            if row == 3 and ctx.attempt == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(ctx.attempt)
        return [ctx.attempt, cursor.row]

    @app.workflow
    async def copying(ctx: WorkflowContext, rows: int) -> list[int]:
        return await copy(rows)

    async with app:
        handle = await copying.start(5)
        assert await handle.result(timeout=PATIENCE_S) == [2, 3]
        kinds = [entry.kind for entry in await app.history(handle.instance_id)]
        assert kinds.count("activity.attempt_failed") == 1
        (activity,) = await app.activities(handle.instance_id)
        assert (activity.status, activity.attempt) == ("completed", 2)


async def test_cancelling_a_workflow_reaches_its_long_activities(make_app: MakeApp) -> None:
    app = make_app()
    entered, told = [], []
    in_thread = threading.Event()

    @app.activity
    async def silent(ctx: ActivityContext) -> None:
        entered.append(ctx.activity_name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append(ctx.activity_name)
            raise

    @app.activity
    def plain(ctx: ActivityContext) -> None:
        entered.append(ctx.activity_name)
        try:
            while not in_thread.wait(0.01):
                ctx.heartbeat("going on")
        except ActivityCancelledError:
            told.append(ctx.activity_name)
            raise

    @app.workflow
    async def both(ctx: WorkflowContext) -> None:
        await asyncio.gather(silent(), plain())

    async with app:
        handle = await app.start(both)
        try:
            await eventually(lambda: len(entered) == 2)
            await handle.cancel("enough")
            with pytest.raises(WorkflowCancelledError):
                await handle.result(timeout=PATIENCE_S)
            await eventually(lambda: sorted(told) == ["plain", "silent"], deadline_s=PATIENCE_S)
        finally:
            in_thread.set()
        assert app._node is not None
        worker = app._node.worker
        assert worker is not None
        await eventually(lambda: worker.statistics().closed == 2)


async def test_a_long_activity_is_written_down_and_forgotten_when_it_ends(make_app: MakeApp) -> None:
    app = make_app()

    @app.activity
    async def long(ctx: ActivityContext) -> str:
        async def detached() -> Any:
            return await app._store.detached([ActivityKey(ctx.instance_id, ctx.run, ctx.activity_id)])

        (row,) = (await eventually(detached)).values()
        return str(row.incarnation)

    @app.workflow
    async def flow(ctx: WorkflowContext) -> str:
        return await long()

    async with app:
        handle = await flow.start()
        assert app._node is not None
        worker = app._node.worker
        assert worker is not None
        assert await handle.result(timeout=PATIENCE_S) == worker.incarnation

        async def forgotten() -> bool:
            return not await app._store.detached([ActivityKey(handle.instance_id, 1, "long:1")])

        await eventually(forgotten)


async def test_queues_have_limits_and_tasks_priorities(make_app: MakeApp) -> None:
    app = make_app(concurrency=20)
    emails = app.queue("emails", concurrency=1, rate_limit=RateLimit(100, per=0.5))
    ran: list[int] = []
    go, inside = asyncio.Event(), 0

    @app.activity(queue=emails, priority=9)
    async def send(n: int) -> int:
        nonlocal inside
        inside += 1
        assert inside == 1
        ran.append(n)
        if n == 0:
            await go.wait()
        inside -= 1
        return n

    @app.activity
    async def count() -> int:
        worker = app._node.worker if app._node is not None else None
        assert worker is not None
        await eventually(lambda: worker.statistics().waiting == 4)
        go.set()
        return len(ran)

    @app.workflow
    async def mailing(ctx: WorkflowContext) -> list[int]:
        first = asyncio.create_task(send(0))
        await ctx.sleep(0.2)
        calls = [send(n) if n % 2 else send.with_options(priority=1)(n) for n in range(1, 5)]
        rest = asyncio.gather(*calls)
        return [await count(), await first, *await rest]

    async with app:
        handle = await mailing.start()
        assert await handle.result(timeout=PATIENCE_S) == [1, 0, 1, 2, 3, 4]
        assert ran[0] == 0
        assert sorted(ran[1:3]) == [2, 4]


async def test_an_activity_says_when_to_try_again(make_app: MakeApp) -> None:
    app = make_app(default_retry_policy=RetryPolicy.fixed(3, 3_600))

    @app.activity
    async def ask(ctx: ActivityContext) -> int:
        if ctx.attempt == 1:
            raise RetryLaterError(0.05, "busy")
        return ctx.attempt

    @app.workflow
    async def asking(ctx: WorkflowContext) -> int:
        return await ask()

    async with app:
        handle = await asking.start()
        assert await handle.result(timeout=PATIENCE_S) == 2


async def test_a_queue_that_nobody_serves_waits(make_app: MakeApp) -> None:
    app = make_app()

    @app.activity(queue="elsewhere")
    async def there() -> str:
        return "served"

    @app.activity
    async def here() -> str:
        return "at once"

    @app.workflow
    async def flow(ctx: WorkflowContext) -> list[str]:
        return list(await asyncio.gather(there(), here()))

    async with app.running(queues=["default"]):
        await app.start(flow, instance_id="i")

        async def half() -> bool:
            rows = await app.activities("i")
            return [row.status for row in rows] in (["completed", "scheduled"], ["scheduled", "completed"])

        await eventually(half, deadline_s=PATIENCE_S)
    async with app.running(roles=["engine", "worker"], queues=["elsewhere"]):
        assert await app.handle("i").result(timeout=PATIENCE_S) == ["served", "at once"]
