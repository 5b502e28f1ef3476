"""Processes that share the work on Kafka and PostgreSQL: killed, and frozen for longer than their session."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.program import PARTITIONS, plan
from tests.chaos.scene import SESSION, Scene, scene, start_all

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(600)]


@pytest.fixture
async def stage(namespace: str, kafka_bootstrap: str, postgres_db: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(namespace, f"kafka://{kafka_bootstrap}{SESSION}", postgres_db, tmp_path) as made:
        yield made


async def test_killed_one_after_the_other(stage: Scene) -> None:
    work = list(plan(200))
    first, second = stage.processes.worker("first"), stage.processes.worker("second")
    await stage.share(first, second)
    async with stage.app.client() as client:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(start_all(client, work[:100]))
            await stage.completed(20)
            await first.kill()
        third = stage.processes.worker("third")
        await stage.completed(40)
        await stage.share(second, third)
        async with asyncio.TaskGroup() as starting:
            starting.create_task(start_all(client, work[100:]))
            await stage.completed(120)
            await second.kill()
        await stage.owns(third, PARTITIONS)
    await stage.finish(work)


async def test_frozen_for_longer_than_its_session(stage: Scene) -> None:
    """What it had in hand when it wakes up belongs to somebody else by then."""
    work = list(plan(100))
    zombie, other = stage.processes.worker("zombie"), stage.processes.worker("other")
    await stage.share(zombie, other)
    async with stage.app.client() as client:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(start_all(client, work[:60]))
            await stage.completed(10)
            zombie.send(signal.SIGSTOP)
        await stage.owns(other, PARTITIONS)
        epochs = await stage.tables.epochs()
        await stage.completed(60)
        zombie.send(signal.SIGCONT)
        await stage.share(zombie, other)
        assert all(now > before for now, before in zip(await stage.tables.epochs(), epochs, strict=True))
        await start_all(client, work[60:])
    await stage.finish(work)
