"""How an engine lets go: to its end, whatever else comes meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from romancy_stream import App
from romancy_stream.broker.embedded.batches import EmbeddedBatchSource
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
