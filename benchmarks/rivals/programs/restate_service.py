"""The service that Restate calls: handlers, and steps as `ctx.run`. Served as its documentation says, by hypercorn over
HTTP/2 without TLS, which lets one connection carry an invocation's whole conversation."""

from __future__ import annotations

import asyncio
import os

import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from benchmarks.loops import loop_factory

service = restate.Service("Bench")
gate = restate.Workflow("Gate")


async def step(number: int) -> int:
    return number


@service.handler()
async def three_steps(ctx: restate.Context, number: int) -> int:
    for _ in range(3):
        number = await ctx.run_typed("step", step, number=number)
    return number


@service.handler()
async def parallel_steps(ctx: restate.Context, count: int) -> int:
    steps = [ctx.run_typed("step", step, number=number) for number in range(count)]
    await restate.gather(*steps)
    return sum([await each for each in steps])


@service.handler()
async def sequential_steps(ctx: restate.Context, count: int) -> int:
    number = 0
    for _ in range(count):
        number = await ctx.run_typed("step", step, number=number) + 1
    return number


@gate.main()
async def run(ctx: restate.WorkflowContext, _: int) -> str:
    return await ctx.promise("go", type_hint=str).value()


@gate.handler()
async def go(ctx: restate.WorkflowSharedContext, word: str) -> None:
    await ctx.promise("go", type_hint=str).resolve(word)


if __name__ == "__main__":
    config = Config()
    config.bind = [f"127.0.0.1:{os.environ['RIVAL_SERVICE_PORT']}"]
    config.h2_max_concurrent_streams = 2147483647  # as its documentation has it: the server is who limits
    config.keep_alive_max_requests = 2147483647
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(restate.app([service, gate]), config, shutdown_trigger=asyncio.Future))
