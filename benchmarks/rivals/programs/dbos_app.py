"""DBOS on PostgreSQL. It is a library: client, engine and steps are this one process, its fastest arrangement, for a
workflow that is started where it runs needs no queue. Obeys orders."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

from dbos import DBOS
from dbos import WorkflowHandleAsync as Handle

from benchmarks.driving import obey
from benchmarks.loops import loop_factory
from benchmarks.rivals.programs.chunks import in_chunks
from benchmarks.settings import ANSWER_LIMIT_S

TOPIC: Final = "bench.go"
DBOS(
    config={
        "name": "bench",
        "system_database_url": os.environ["RIVAL_DATABASE"].replace("postgresql://", "postgresql+psycopg://"),
        "run_admin_server": False,
        "log_level": "WARNING",
    }
)


@DBOS.step()
async def step(number: int) -> int:
    return number


@DBOS.workflow()
async def three_steps(number: int) -> int:
    return await step(await step(await step(number)))


@DBOS.workflow()
async def parallel_steps(count: int) -> int:
    return sum(await asyncio.gather(*(step(number) for number in range(count))))


@DBOS.workflow()
async def sequential_steps(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await step(number) + 1
    return number


waiting: set[str] = set()


@DBOS.workflow()
async def wait_for_go() -> str:
    waiting.add(str(DBOS.workflow_id))
    return str(await DBOS.recv_async(TOPIC, timeout_seconds=ANSWER_LIMIT_S))


class DbosDriver:
    async def one(self) -> None:
        handle = await DBOS.start_workflow_async(three_steps, 7)
        assert await handle.get_result() == 7

    async def burst(self, count: int) -> None:
        async def start(number: int) -> Handle[int]:
            return await DBOS.start_workflow_async(three_steps, number)

        handles = await in_chunks(start, range(count))
        assert await asyncio.gather(*(handle.get_result() for handle in handles)) == list(range(count))

    async def parallel(self, count: int) -> dict[str, float]:
        begun_s = time.perf_counter()
        handle = await DBOS.start_workflow_async(parallel_steps, count)
        assert await handle.get_result() == count * (count - 1) // 2
        return {"wall_s": time.perf_counter() - begun_s}

    async def sequential(self, count: int) -> dict[str, float]:
        begun_s = time.perf_counter()
        handle = await DBOS.start_workflow_async(sequential_steps, count)
        assert await handle.get_result() == count
        return {"wall_s": time.perf_counter() - begun_s}

    async def events(self, count: int) -> dict[str, float]:
        waiting.clear()

        async def start(_: int) -> Handle[str]:
            return await DBOS.start_workflow_async(wait_for_go)

        handles = await in_chunks(start, range(count))
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while len(waiting) < count:  # noqa: ASYNC110 - their workflows say so as they come to it
                await asyncio.sleep(0.05)
        ids = [handle.get_workflow_id() for handle in handles]
        begun_s = time.perf_counter()
        await asyncio.gather(*(DBOS.send_async(workflow_id, workflow_id, TOPIC) for workflow_id in ids))
        assert await asyncio.gather(*(handle.get_result() for handle in handles)) == ids
        return {"wall_s": time.perf_counter() - begun_s}


async def _run() -> None:
    DBOS.launch()
    try:
        await obey(DbosDriver())
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run())
