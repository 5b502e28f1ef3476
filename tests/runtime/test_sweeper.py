"""What a transactional activity committed and its worker, dying, never sent: the owner of the partition sends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from romancy_stream import ActivityContext, App, WorkflowContext
from tests.support import eventually

PATIENCE_S = 120


def program(folder: Path) -> App:
    app = App("sweep", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'state.db'}", partitions=1)

    @app.activity
    async def save(ctx: ActivityContext, name: str) -> str:
        await ctx.session.execute(text("INSERT INTO notes VALUES (:name)"), {"name": name})
        ctx.publish_event(type="note.saved", data=name)
        return name

    @app.workflow
    async def flow(ctx: WorkflowContext, name: str) -> str:
        return await save(name)

    return app


async def test_orphaned_results_are_sent_by_the_owner_of_the_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = program(tmp_path)
    store = app.make_store()
    await store.open()
    async with store.db.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (name VARCHAR(20))"))

    async def unsent() -> int:
        async with store.db.engine.connect() as connection:
            return int((await connection.execute(text("SELECT count(*) FROM romancy_worker_outbox"))).scalar_one())

    with monkeypatch.context() as broken:
        # A worker that dies between its commit and its send, as the others see it.
        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        broken.setattr("romancy_stream.runtime.worker_sending.Sender.deliver", never)
        broken.setattr("romancy_stream.runtime.node.DRAIN_S", 0.1)
        async with app:
            await app.start_by_name("flow", "a", instance_id="i")

            async def committed() -> bool:
                return await unsent() == 2

            await eventually(committed, deadline_s=PATIENCE_S)

    monkeypatch.setattr("romancy_stream.runtime.sweeper.OWN_TIME_S", 1.5)  # not over at the takeover
    monkeypatch.setattr("romancy_stream.runtime.sweeper.SWEEP_EVERY_S", 2.0)
    async with app.running(roles=["engine"]):  # no worker: nobody else can send it
        assert await app.handle("i").result(timeout=PATIENCE_S) == "a"

        async def gone() -> bool:
            return await unsent() == 0

        await eventually(gone, deadline_s=PATIENCE_S)
    async with store.db.engine.connect() as connection:
        assert list((await connection.execute(text("SELECT name FROM notes"))).scalars()) == ["a"]
    await store.close()
