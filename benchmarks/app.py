"""The workflows that are measured; their steps do nothing. Where they run comes from ROMANCY_NAMESPACE, ROMANCY_BROKER
and ROMANCY_DATABASE, so that the same app is engine, worker and client, each in its process."""

import asyncio
from typing import Any

from benchmarks.settings import PARTITIONS
from romancy_stream import App, TerminalError, WorkflowContext

app = App(partitions=PARTITIONS)


@app.activity
async def step(number: int) -> int:
    return number


@app.workflow
async def three_steps(ctx: WorkflowContext, number: int) -> int:
    return await step(await step(await step(number)))


@app.workflow
async def parallel_steps(ctx: WorkflowContext, count: int) -> int:
    return sum(await asyncio.gather(*(step(number) for number in range(count))))


@app.workflow
async def sequential_steps(ctx: WorkflowContext, count: int) -> int:
    number = 0
    for _ in range(count):
        number = await step(number) + 1
    return number


@app.workflow
async def wait_for_go(ctx: WorkflowContext) -> str:
    return (await ctx.wait_event("bench.go")).id


@app.workflow
async def sleep_until_due(ctx: WorkflowContext, due_s: float) -> float:
    await ctx.sleep(due_s - ctx.now().timestamp())
    return ctx.now().timestamp()


@app.workflow
async def order(ctx: WorkflowContext, placed: dict[str, Any]) -> int:
    """What an application's tables are full of. `fate` is "fulfilled", "refused" or "waiting"."""
    if placed["fate"] == "waiting":
        await ctx.sleep(365 * 86_400)
    number = await step(placed["number"])
    if placed["fate"] == "refused":
        raise TerminalError("out of stock")
    return number
