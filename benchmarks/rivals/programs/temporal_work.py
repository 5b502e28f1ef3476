"""Temporal: workflows and activities, and their worker. Activities run on the event loop: they never block."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Final

from temporalio import activity, workflow
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from benchmarks.loops import loop_factory
from benchmarks.settings import ANSWER_LIMIT_S

QUEUE: Final = "bench"
STEP_LIMIT: Final = timedelta(minutes=2)


@activity.defn
async def step(number: int) -> int:
    return number


async def _step(number: int) -> int:
    return await workflow.execute_activity(step, number, start_to_close_timeout=STEP_LIMIT)


@workflow.defn
class ThreeSteps:
    @workflow.run
    async def run(self, number: int) -> int:
        return await _step(await _step(await _step(number)))


@workflow.defn
class ParallelSteps:
    @workflow.run
    async def run(self, count: int) -> int:
        return sum(await asyncio.gather(*(_step(number) for number in range(count))))


@workflow.defn
class SequentialSteps:
    @workflow.run
    async def run(self, count: int) -> int:
        number = 0
        for _ in range(count):
            number = await _step(number) + 1
        return number


@workflow.defn
class WaitForGo:
    def __init__(self) -> None:
        self._word = ""

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self._word != "")
        return self._word

    @workflow.signal
    def go(self, word: str) -> None:
        self._word = word

    @workflow.query
    def waits(self) -> bool:
        return self._word == ""


WORKFLOWS: Final = [ThreeSteps, ParallelSteps, SequentialSteps, WaitForGo]


async def connected(namespace: str) -> Client:
    """As soon as the server answers."""
    async with asyncio.timeout(ANSWER_LIMIT_S):
        while True:
            try:
                return await Client.connect(os.environ["RIVAL_ADDRESS"], namespace=namespace)
            except (RuntimeError, RPCError):
                await asyncio.sleep(0.5)  # not up yet


async def _run() -> None:
    client = await connected(os.environ["RIVAL_NAMESPACE"])
    async with asyncio.timeout(ANSWER_LIMIT_S):
        while not await _registered(client):  # noqa: ASYNC110 - the client's process does it
            await asyncio.sleep(0.5)
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=WORKFLOWS,
        activities=[step],
        workflow_runner=UnsandboxedWorkflowRunner(),  # the sandbox costs much for each workflow, and we have none
    )
    await worker.run()


async def _registered(client: Client) -> bool:
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError:
        return False  # not yet: it asks again
    return True


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run())
