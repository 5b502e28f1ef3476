"""Edda on PostgreSQL. It is a library: client, engine and activities are this one process, its fastest arrangement.
Pool and batch sizes are those that its documentation gives for production. Obeys orders."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from edda import EddaApp, HooksBase, WorkflowContext, activity, publish, receive, subscribe, workflow

from benchmarks.driving import obey
from benchmarks.loops import loop_factory
from benchmarks.settings import ANSWER_LIMIT_S

CHANNEL: Final = "bench.go"
POOL_SIZE: Final = 20
MAX_OVERFLOW: Final = 40
FALLBACK_S: Final = 1
"""Notifications that come within 100 ms of another are dropped; by default what they were about waits 30 s."""
AT_ONCE: Final = (POOL_SIZE + MAX_OVERFLOW) // 2
"""Workflows, or parallel steps. Each may hold two connections: with more of them, all connections are held by those who
wait for a second one, and after 30 s the pool gives up."""


class Completions(HooksBase):
    """Results as they come: the alternative is to poll the database."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self._wanted = 0
        self._all = asyncio.Event()

    async def on_workflow_complete(self, instance_id: str, workflow_name: str, result: Any) -> None:
        self.results[instance_id] = result
        if len(self.results) >= self._wanted:
            self._all.set()

    def expect(self, count: int) -> None:
        self.results.clear()
        self._wanted = count
        self._all.clear()

    async def all(self) -> dict[str, Any]:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            await self._all.wait()
        return self.results


@activity
async def step(ctx: WorkflowContext, number: int) -> int:
    return number


@workflow
async def three_steps(ctx: WorkflowContext, number: int) -> int:
    return await step(ctx, await step(ctx, await step(ctx, number)))


@workflow
async def parallel_steps(ctx: WorkflowContext, count: int) -> int:
    turn = asyncio.Semaphore(AT_ONCE)

    async def in_turn(number: int) -> int:
        async with turn:
            return await step(ctx, number, activity_id=f"step:{number}")

    return sum(await asyncio.gather(*(in_turn(number) for number in range(count))))


@workflow(lock_timeout_seconds=3600)
async def sequential_steps(ctx: WorkflowContext, count: int) -> int:
    number = 0
    for _ in range(count):
        number = await step(ctx, number) + 1
    return number


@workflow
async def wait_for_go(ctx: WorkflowContext) -> str:
    await subscribe(ctx, CHANNEL, mode="direct")
    message = await receive(ctx, CHANNEL)
    return message.data["id"]


class EddaDriver:
    """`start` returns when the workflow has ended or waits."""

    def __init__(self, app: EddaApp, completions: Completions) -> None:
        self._app = app
        self._completions = completions

    async def one(self) -> None:
        self._completions.expect(1)
        instance_id = await three_steps.start(number=7)
        assert (await self._completions.all())[instance_id] == 7

    async def burst(self, count: int) -> None:
        self._completions.expect(count)
        ids = await self._in_turn(lambda number: three_steps.start(number=number), range(count))
        results = await self._completions.all()
        assert [results[instance_id] for instance_id in ids] == list(range(count))

    async def parallel(self, count: int) -> dict[str, float]:
        return await self._timed(parallel_steps, count, count * (count - 1) // 2)

    async def sequential(self, count: int) -> dict[str, float]:
        return await self._timed(sequential_steps, count, count)

    async def _timed(self, code: Any, count: int, result: int) -> dict[str, float]:
        self._completions.expect(1)
        begun_s = time.perf_counter()
        instance_id = await code.start(count=count)
        assert (await self._completions.all())[instance_id] == result
        return {"wall_s": time.perf_counter() - begun_s}

    async def events(self, count: int) -> dict[str, float]:
        self._completions.expect(count)
        ids = await self._in_turn(lambda _: wait_for_go.start(), range(count))
        begun_s = time.perf_counter()
        await self._in_turn(self._send, ids)
        results = await self._completions.all()
        assert results == {instance_id: instance_id for instance_id in ids}
        return {"wall_s": time.perf_counter() - begun_s}

    async def _in_turn(self, call: Callable[[Any], Awaitable[Any]], values: Iterable[Any]) -> list[Any]:
        turn = asyncio.Semaphore(AT_ONCE)

        async def in_turn(value: Any) -> Any:
            async with turn:
                return await call(value)

        return await asyncio.gather(*(in_turn(value) for value in values))

    async def _send(self, instance_id: str) -> None:
        channel = f"{CHANNEL}:{instance_id}"  # what "direct" stands for
        await publish(self._app.storage, channel, {"id": instance_id}, target_instance_id=instance_id)


async def _run() -> None:
    completions = Completions()
    app = EddaApp(
        service_name="bench",
        db_url=os.environ["RIVAL_DATABASE"].replace("postgresql://", "postgresql+asyncpg://"),
        hooks=completions,
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        max_workflows_per_batch="auto",
        notify_fallback_interval=FALLBACK_S,
    )
    await app.initialize()
    try:
        driver = EddaDriver(app, completions)
        await driver.one()
        await driver.events(1)  # the first of a workflow alone: several at once collide when they write its definition
        await obey(driver)
    finally:
        await app.shutdown()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run())
