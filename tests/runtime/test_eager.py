"""Tasks that stay in the engine's process: no broker sees them, nobody loses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from romancy_stream import ActivityContext, App, RetryPolicy, WorkflowContext
from romancy_stream.broker.port import Record
from tests.support import eventually

PATIENCE_S = 60


def program(folder: Path, name: str = "eager", **options: Any) -> App:
    places = {"broker": f"embedded://{folder / 'log'}", "database": f"sqlite:///{folder / 'state.db'}"}
    return App(name, **{"partitions": 2, **places, **options})


@asynccontextmanager
async def overheard(app: App) -> AsyncIterator[list[Record]]:
    """What the broker has of tasks, from now on."""
    heard: list[Record] = []

    async def hear(records: Sequence[Record]) -> None:
        heard.extend(records)

    tail = app._broker.tail([f"{app.namespace}.tasks.default"], hear)
    await tail.start()
    try:
        yield heard
    finally:
        await tail.stop()


async def test_tasks_stay_in_the_process_that_has_a_worker(tmp_path: Path) -> None:
    app = program(tmp_path)

    @app.activity(retry=RetryPolicy.fixed(3, 0.01))
    async def flaky(ctx: ActivityContext, number: int) -> int:
        if ctx.attempt < 2:
            raise ValueError(number)
        return number

    @app.workflow
    async def flow(ctx: WorkflowContext) -> int:
        return sum(await asyncio.gather(*(flaky(number) for number in range(20))))

    async with app, overheard(app) as tasks:
        handle = await app.start(flow)
        assert await handle.result(timeout=PATIENCE_S) == 190
        assert not tasks
        events = await app.history(handle.instance_id)
        marks = {e.attrs.get("eager") for e in events if e.kind in ("activity.scheduled", "activity.retried")}
        assert len(marks) == 1
        assert marks != {None}
        async with app._store.db.engine.connect() as connection:
            left = await connection.execute(text("SELECT count(*) FROM romancy_activities WHERE eager IS NOT NULL"))
            assert left.scalar_one() == 0


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    app = program(tmp_path, eager=False)

    @app.activity
    async def step(number: int) -> int:
        return number

    @app.workflow
    async def flow(ctx: WorkflowContext) -> int:
        return await step(1)

    async with app, overheard(app) as tasks:
        handle = await app.start(flow)
        assert await handle.result(timeout=PATIENCE_S) == 1
        await eventually(lambda: len(tasks) == 1)


async def slow_ones(app: App, tasks_elsewhere: int) -> None:
    """20 attempts for a worker that has room for 4 of them."""
    go = asyncio.Event()
    running = 0

    @app.activity
    async def slow(number: int) -> int:
        nonlocal running
        running += 1
        await go.wait()
        return number

    @app.workflow
    async def flow(ctx: WorkflowContext) -> int:
        return sum(await asyncio.gather(*(slow(number) for number in range(20))))

    async with app, overheard(app) as tasks:
        handle = await app.start(flow)
        await eventually(lambda: running == 4)
        await eventually(lambda: len(tasks) == tasks_elsewhere)
        go.set()
        assert await handle.result(timeout=PATIENCE_S) == 190
        assert len(tasks) == tasks_elsewhere


@pytest.mark.kafka
async def test_more_than_the_worker_can_take_goes_to_whoever_is_free(kafka_bootstrap: str, tmp_path: Path) -> None:
    app = program(tmp_path, f"eager-{uuid4().hex[:8]}", concurrency=4, broker=f"kafka://{kafka_bootstrap}")
    await slow_ones(app, 16)


async def test_where_nobody_else_can_have_a_worker_all_of_them_stay(tmp_path: Path) -> None:
    await slow_ones(program(tmp_path, concurrency=4), 0)


async def test_the_next_owner_dispatches_what_was_lost_with_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 0
    lives = asyncio.Event()

    def life() -> tuple[App, Any]:
        app = program(tmp_path)

        @app.activity
        async def step(ctx: ActivityContext) -> int:
            nonlocal begun
            begun += 1
            await lives.wait()
            return ctx.attempt

        @app.workflow
        async def flow(ctx: WorkflowContext) -> int:
            return await step()

        return app, flow

    monkeypatch.setattr("romancy_stream.runtime.node.DRAIN_S", 0.1)
    app, flow = life()
    async with app:
        await app.start(flow, instance_id="i")
        await eventually(lambda: begun == 1)
    lives.set()
    app, flow = life()
    async with app:
        assert await app.handle("i", flow).result(timeout=PATIENCE_S) == 1, "it is the same attempt"
        kinds = [event.kind for event in await app.history("i")]
    assert begun == 2
    assert kinds[1:-1] == ["activity.scheduled", "activity.passed_on", "activity.completed"]


async def test_a_result_that_is_recorded_and_not_heard_is_found_by_the_next_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 0

    def life() -> tuple[App, Any]:
        app = program(tmp_path)

        @app.activity
        async def save(ctx: ActivityContext) -> int:
            nonlocal begun
            begun += 1
            await ctx.session.execute(text("CREATE TABLE IF NOT EXISTS notes (name VARCHAR(20))"))
            await ctx.session.execute(text("INSERT INTO notes VALUES ('a')"))
            return begun

        @app.workflow
        async def flow(ctx: WorkflowContext) -> int:
            return await save()

        return app, flow

    monkeypatch.setattr("romancy_stream.runtime.node.DRAIN_S", 0.1)
    app, flow = life()
    with monkeypatch.context() as deaf:
        # The process dies between the commit of the activity and that of the engine.
        deaf.setattr("romancy_stream.runtime.worker_eager.Eager.report", lambda *_: True)
        async with app:
            await app.start(flow, instance_id="i")

            async def recorded() -> bool:
                async with app._store.db.engine.connect() as connection:
                    rows = await connection.execute(text("SELECT count(*) FROM romancy_activity_results"))
                    return bool(rows.scalar_one())

            await eventually(recorded)
    app, flow = life()
    async with app:
        assert await app.handle("i", flow).result(timeout=PATIENCE_S) == 1
        async with app._store.db.engine.connect() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM notes"))).scalar_one() == 1


async def test_what_is_under_way_stays_where_it_is_when_its_partition_goes(tmp_path: Path) -> None:
    """Another process joins: the lease of the one that has the attempts tells that they are not left behind."""
    begun: list[str] = []
    go = asyncio.Event()

    def process() -> tuple[App, Any]:
        app = program(tmp_path)

        @app.activity
        async def step(ctx: ActivityContext) -> str:
            begun.append(ctx.instance_id)
            await go.wait()
            return ctx.instance_id

        @app.workflow
        async def flow(ctx: WorkflowContext) -> str:
            return await step()

        return app, flow

    ids = [f"i{n}" for n in range(8)]  # in both partitions
    app, flow = process()
    other, _ = process()
    async with app:
        for instance_id in ids:
            await app.start(flow, instance_id=instance_id)
        await eventually(lambda: len(begun) == len(ids))
        async with other:
            await other.wait_assigned()
            go.set()
            for instance_id in ids:
                assert await app.handle(instance_id, flow).result(timeout=PATIENCE_S) == instance_id
        assert sorted(begun) == ids


@pytest.mark.kafka
async def test_a_worker_knows_whether_others_read_its_queues(kafka_bootstrap: str, tmp_path: Path) -> None:
    """As long as nobody does, the engine of its process keeps more tasks from the broker."""
    name = f"eager-{uuid4().hex[:8]}"
    app, other = (program(tmp_path, name, broker=f"kafka://{kafka_bootstrap}") for _ in range(2))

    def shared(app: App) -> bool:
        assert app._node is not None
        assert app._node.worker is not None
        return any(queue.is_shared for queue in app._node.worker.queues)

    async with app:
        await eventually(lambda: not shared(app), PATIENCE_S)
        async with other:
            await eventually(lambda: shared(app) and shared(other), PATIENCE_S)
        await eventually(lambda: not shared(app), PATIENCE_S)
