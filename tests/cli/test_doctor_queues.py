"""doctor: queues whose tasks wait, and whether anybody serves them."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from romancy_stream import App, WorkflowContext
from romancy_stream.cli.checks import Finding, queues
from tests.support import eventually


def program(broker: str, database: str) -> App:
    app = App(f"q{uuid.uuid4().hex[:12]}", broker=broker, database=database, partitions=2)

    @app.activity(queue="slow")
    async def wait() -> None:
        await asyncio.Event().wait()

    @app.workflow
    async def flow(ctx: WorkflowContext) -> None:
        await wait()

    return app


async def look(app: App) -> dict[str, Finding]:
    return {found.subject: found async for found in queues(app, app._broker)}


@pytest.mark.kafka
async def test_a_queue_with_tasks_and_without_workers(
    kafka_bootstrap: str, sqlite_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = program(f"kafka://{kafka_bootstrap}", sqlite_db)
    monkeypatch.setattr("romancy_stream.runtime.node.DRAIN_S", 0.1)
    async with app.running(roles=["engine", "worker"], queues=["default"]):
        await app.start_by_name("flow")

        async def warned() -> Finding | None:
            found = (await look(app))["queue slow"]
            return found if found.status == "warn" else None

        found = await eventually(warned, deadline_s=60)
        assert found is not None
        assert found.told == "1 tasks wait or are under way, and no worker process serves it"
        assert found.todo == "romancy worker MODULE:APP --roles worker --queues slow"
        told = (await look(app))["queue default"].told
        assert told == "0 tasks wait or are under way, 1 worker processes"
    async with app.running(roles=["worker"], queues=["slow"]):
        assert app._node is not None
        worker = app._node.worker
        assert worker is not None
        await eventually(lambda: worker.statistics().running == 1, deadline_s=60)
        told = (await look(app))["queue slow"].told
        assert told == "1 tasks wait or are under way, 1 worker processes"


async def test_an_embedded_queue(tmp_path: Path, sqlite_db: str) -> None:
    app = program(f"embedded://{tmp_path / 'log'}", sqlite_db)
    async with app.running(roles=["engine"]):
        await app.start_by_name("flow")

        async def one() -> bool:
            return (await look(app))["queue slow"].told == "1 tasks wait or are under way"

        await eventually(one)
        assert (await look(app))["queue default"] == Finding("ok", "queue default", "0 tasks wait or are under way")
