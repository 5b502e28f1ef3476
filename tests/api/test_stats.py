"""app.stats(): a snapshot of a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from romancy_stream import App, ConfigurationError, Stats, WorkflowContext
from tests.support import eventually

PATIENCE_S = 30


async def test_a_snapshot_of_a_process(tmp_path: Path) -> None:
    app = App(
        "seen", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}", partitions=3
    )

    @app.activity
    async def one() -> int:
        return 1

    @app.workflow
    async def works(ctx: WorkflowContext) -> int:
        return await one()

    @app.workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await ctx.sleep(3_600)

    with pytest.raises(ConfigurationError, match="not entered"):
        app.stats()
    async with app:
        await app.start(sleeps, instance_id="s")
        handles = [await app.start(works) for _ in range(4)]
        assert [await handle.result(timeout=PATIENCE_S) for handle in handles] == [1] * 4
        await app.send_event(type="nobody.wants.it", subject="s")

        async def settled() -> bool:
            stats = app.stats()
            return (stats.unsent, stats.timers, stats.instances) == (0, 1, 1)

        await eventually(settled, deadline_s=PATIENCE_S)
        stats = app.stats()
        assert (stats.partitions, stats.held, stats.listeners_dropped) == (3, 0, 0)
        assert stats.worker is not None
        assert (stats.worker.completed, stats.worker.running) == (4, 0)
        assert stats != Stats()
    async with app.running(roles=["worker"]):
        idle = app.stats()
        assert (idle.partitions, idle.dropped) == (0, {})
        assert idle.worker is not None
