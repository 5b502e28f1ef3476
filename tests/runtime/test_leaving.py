"""How an engine lets go: to its end, whatever else comes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from romancy_stream import App, WorkflowContext
from romancy_stream.broker.embedded.batches import EmbeddedBatchSource
from romancy_stream.broker.kafka.source import FaustBatchSource
from romancy_stream.broker.port import TP
from romancy_stream.runtime import hints
from romancy_stream.runtime.sweeper import Sweeper
from tests.support import eventually


async def test_leaving_while_a_membership_that_failed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail, stopping, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    stop = EmbeddedBatchSource.stop

    async def failing(_: Sweeper) -> None:
        await fail.wait()
        raise ValueError("a fault")

    async def slow(source: EmbeddedBatchSource) -> None:
        stopping.set()
        await go_on.wait()
        await stop(source)

    monkeypatch.setattr(Sweeper, "run", failing)
    monkeypatch.setattr(EmbeddedBatchSource, "stop", slow)
    app = App("leaving", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}")
    async with app:
        await app.wait_assigned()
        fail.set()
        await stopping.wait()
        assert app._node is not None
        leaving = asyncio.create_task(app._node.stop())
        await eventually(lambda: any(task.cancelling() for task in asyncio.all_tasks()))
        assert not leaving.done()
        go_on.set()
        await leaving
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "romancy-source"]


@pytest.mark.kafka
async def test_what_is_done_has_no_lag(kafka_bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was done since offsets were last told."""
    monkeypatch.setattr(hints, "HINT_EVERY_S", 3600.0)
    name = f"leaving-{uuid4().hex[:8]}"
    app = App(name, broker=f"kafka://{kafka_bootstrap}", database=f"sqlite:///{tmp_path / 'state.db'}", partitions=2)

    @app.workflow
    async def double(ctx: WorkflowContext, n: int) -> int:
        return 2 * n

    async with app:
        for n in range(10):
            assert await (await app.start(double, n)).result(timeout=60) == 2 * n
    assert await told_offsets(name, kafka_bootstrap) == 10


@pytest.mark.kafka
async def test_who_takes_over_tells_what_the_last_owner_did_not(
    kafka_bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing happens any more: an idle system would show lag for ever."""
    name = f"leaving-{uuid4().hex[:8]}"
    app = App(name, broker=f"kafka://{kafka_bootstrap}", database=f"sqlite:///{tmp_path / 'state.db'}", partitions=2)

    @app.workflow
    async def double(ctx: WorkflowContext, n: int) -> int:
        return 2 * n

    async def lost(_: FaustBatchSource, offsets: Mapping[TP, int]) -> None: ...

    with monkeypatch.context() as silent:
        silent.setattr(FaustBatchSource, "commit_hint", lost)
        async with app:
            for n in range(10):
                assert await (await app.start(double, n)).result(timeout=60) == 2 * n
    assert await told_offsets(name, kafka_bootstrap) == 0

    async def all_is_told() -> bool:
        return await told_offsets(name, kafka_bootstrap) == 10

    async with app:
        await eventually(all_is_told, every_s=0.2)


async def told_offsets(namespace: str, bootstrap: str) -> int:
    """Summed up."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(f"{namespace}.engine")
    finally:
        await admin.close()
    return sum(each.offset for each in offsets.values())
