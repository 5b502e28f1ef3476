"""The client of Temporal. Registers the namespace first. Obeys orders."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from benchmarks.driving import obey
from benchmarks.loops import loop_factory
from benchmarks.rivals.programs.chunks import in_chunks
from benchmarks.rivals.programs.temporal_work import (
    QUEUE,
    ParallelSteps,
    SequentialSteps,
    ThreeSteps,
    WaitForGo,
    connected,
)
from benchmarks.settings import ANSWER_LIMIT_S

RETENTION = timedelta(days=1)


class TemporalDriver:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def ready(self) -> None:
        """When the namespace is known everywhere and the worker has answered."""
        period = Duration(seconds=int(RETENTION.total_seconds()))
        request = RegisterNamespaceRequest(namespace=self._client.namespace, workflow_execution_retention_period=period)
        async with asyncio.timeout(ANSWER_LIMIT_S):
            await self._until_known(self._client.workflow_service.register_namespace, request)
            await self._until_known(self.one)

    async def _until_known(self, call: Any, *arguments: Any) -> None:
        while True:
            try:
                await call(*arguments)
                return
            except RPCError as error:
                if error.status is RPCStatusCode.ALREADY_EXISTS:
                    return
            await asyncio.sleep(0.5)

    async def _start(self, code: Any, *arguments: Any) -> WorkflowHandle[Any, Any]:
        return await self._client.start_workflow(code, *arguments, id=uuid.uuid4().hex, task_queue=QUEUE)

    async def one(self) -> None:
        assert await (await self._start(ThreeSteps.run, 7)).result() == 7

    async def burst(self, count: int) -> None:
        handles = await in_chunks(lambda number: self._start(ThreeSteps.run, number), range(count))
        assert await asyncio.gather(*(handle.result() for handle in handles)) == list(range(count))

    async def parallel(self, count: int) -> dict[str, float]:
        return await self._timed(ParallelSteps.run, count, count * (count - 1) // 2)

    async def sequential(self, count: int) -> dict[str, float]:
        return await self._timed(SequentialSteps.run, count, count)

    async def _timed(self, code: Any, count: int, result: int) -> dict[str, float]:
        begun_s = time.perf_counter()
        assert await (await self._start(code, count)).result() == result
        return {"wall_s": time.perf_counter() - begun_s}

    async def events(self, count: int) -> dict[str, float]:
        handles = await in_chunks(lambda _: self._start(WaitForGo.run), range(count))
        assert all(await asyncio.gather(*(handle.query(WaitForGo.waits) for handle in handles)))
        begun_s = time.perf_counter()
        await asyncio.gather(*(handle.signal(WaitForGo.go, handle.id) for handle in handles))
        assert await asyncio.gather(*(handle.result() for handle in handles)) == [handle.id for handle in handles]
        return {"wall_s": time.perf_counter() - begun_s}


async def _run() -> None:
    driver = TemporalDriver(await connected(os.environ["RIVAL_NAMESPACE"]))
    await driver.ready()
    await obey(driver)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run())
