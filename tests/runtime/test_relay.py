"""What the broker refuses holds up its own instance only, is visible, and goes out when the cause is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from romancy_stream import App, WorkflowContext
from romancy_stream.broker.port import TopicSpec
from tests.support import eventually

PATIENCE_S = 120


def program(folder: Path) -> App:
    app = App(
        "relay",
        eager=False,
        broker=f"embedded://{folder / 'log'}",
        database=f"sqlite:///{folder / 'state.db'}",
        partitions=1,
    )

    @app.activity
    async def step(value: str) -> str:
        return value

    @app.workflow
    async def tells(ctx: WorkflowContext, topic: str) -> str:
        ctx.publish_event(type="told", data={"topic": topic}, topic=topic)
        await ctx.sleep(0.3)  # by then the broker has answered
        return await step(topic)

    return app


async def _refused(app: App) -> list[str]:
    async with app._store.db.engine.connect() as connection:  # type: ignore[attr-defined]
        found = await connection.execute(text("SELECT refused FROM romancy_outbox WHERE refused IS NOT NULL"))
        return list(found.scalars())


@pytest.mark.parametrize("restart", [False, True])
async def test_a_refused_row_waits_with_its_instance_until_the_topic_is_there(
    restart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_stream.runtime.relay.REFUSED_AGAIN_S", 0.1)
    app = program(tmp_path)
    async with app:
        await app.start_by_name("tells", "missing", instance_id="stuck")
        free = await app.start_by_name("tells", app.topics.events, instance_id="free")
        assert await free.result(timeout=PATIENCE_S) == app.topics.events

        async def reported() -> bool:
            return len(await _refused(app)) == 1

        await eventually(reported, deadline_s=PATIENCE_S)
        assert "missing" in (await _refused(app))[0]

        async def asked_for_its_step() -> bool:
            return [entry.kind for entry in await app.history("stuck")][-1:] == ["activity.scheduled"]

        await eventually(asked_for_its_step, deadline_s=PATIENCE_S)
        if not restart:
            await _make_topic_and_finish(app)
    if restart:
        async with app:
            assert len(await _refused(app)) == 1
            await _make_topic_and_finish(app)


async def _make_topic_and_finish(app: App) -> None:
    await app._broker.create_topics([TopicSpec("missing", 1)])
    assert await app.handle("stuck").result(timeout=PATIENCE_S) == "missing"

    async def gone() -> bool:
        return not await _refused(app)

    await eventually(gone, deadline_s=PATIENCE_S)
