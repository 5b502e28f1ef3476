"""Every database call that running two workflows makes fails once, in every way: what was started finishes, once, and
the tables are the fold of the log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from romancy_stream import ActivityContext, RetryPolicy, WorkflowContext
from romancy_stream.audit import verify
from tests.runtime.faults import CALLS, Fault, FaultyApp

KINDS = ["unavailable", "unknown_before", "unknown_after", "crash_before", "crash_after"]
PATIENCE_S = 120
MOST_CALLS = 60  # more than the workflow below makes; the test says so if that changes


def program(folder: Path, fault: Fault) -> FaultyApp:
    app = FaultyApp(
        "crashes",
        broker=f"embedded://{folder / 'log'}",
        database=f"sqlite:///{folder / 'state.db'}",
        partitions=1,
        default_retry_policy=RetryPolicy.fixed(3, 0.01),
    )
    app.fault = fault

    @app.activity
    async def write(ctx: ActivityContext, name: str) -> str:
        await ctx.session.execute(text("INSERT INTO notes VALUES (:name)"), {"name": name})
        return name

    @app.activity
    async def stumble(ctx: ActivityContext, value: int) -> int:
        if ctx.attempt == 1:
            raise ConnectionError("once")
        return value + 1

    @app.activity
    async def hopeless() -> None:
        raise ConnectionError("always")

    @app.workflow
    async def flow(ctx: WorkflowContext, name: str) -> list[object]:
        written = await write(name)
        await ctx.sleep(0.01)
        first, second = await asyncio.gather(stumble(1), stumble(2))
        try:
            await hopeless.with_options(retry=RetryPolicy.none())()
        except Exception as error:
            return [written, first, second, type(error).__name__]
        raise AssertionError("unreachable")

    return app


EXPECTED = [2, 3, "RetryExhaustedError"]


async def attempt(folder: Path, fault: Fault) -> bool:
    """Whether the workflows finished in this process."""
    app = program(folder, fault)
    flow = app.registry.workflows["flow"]
    async with app:
        handles = [await app.start(flow, name, instance_id=name) for name in ("a", "b")]
        ends = [asyncio.ensure_future(handle.result(timeout=PATIENCE_S)) for handle in handles]
        dead = asyncio.ensure_future(_death(fault))
        both: asyncio.Future[list[object]] = asyncio.gather(*ends)
        waiting: list[asyncio.Future[Any]] = [both, dead]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        dead.cancel()
        if not both.done() or fault.dead:
            both.cancel()
            await asyncio.gather(both, return_exceptions=True)
            return False
        assert both.result() == [["a", *EXPECTED], ["b", *EXPECTED]]
    return True


async def _death(fault: Fault) -> None:
    from tests.support import eventually

    await eventually(lambda: fault.dead, deadline_s=2 * PATIENCE_S)


async def prepare(folder: Path) -> None:
    app = program(folder, Fault("none"))
    store = app.make_store()
    await store.open()
    await store.migrate()
    async with store.db.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (name VARCHAR(20))"))
    await store.close()


async def check(folder: Path) -> None:
    app = program(folder, Fault("none"))
    store = app.make_store()
    await store.open()
    try:
        assert (await verify(store)).clean
        async with store.db.engine.connect() as connection:
            notes = sorted((await connection.execute(text("SELECT name FROM notes"))).scalars())
        assert notes == ["a", "b"]
        for instance_id in ("a", "b"):
            completed = [e.ref for e in await store.history(instance_id) if e.kind == "activity.completed"]
            assert sorted(completed, key=str) == ["stumble:1", "stumble:2", "write:1"]
    finally:
        await store.close()


# What only happens now and then depends on timing; these every run makes.
CERTAIN = {"take_over", "snapshot", "known", "close_activities", "commit"}
CASES = [(kind, name) for kind in KINDS for name in CALLS if name == "commit" or not kind.startswith("unknown")]


@pytest.mark.parametrize(("kind", "name"), CASES)
async def test_each_call_of_the_database_fails_once(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_stream.runtime.patience.STORE_PATIENCE_S", 0.2)
    monkeypatch.setattr("romancy_stream.runtime.node.DRAIN_S", 0.2)
    for at in range(1, MOST_CALLS + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        await prepare(folder)
        fault = Fault(kind, name, at)
        if not await attempt(folder, fault):
            assert await attempt(folder, Fault("none"))
        await check(folder)
        if fault.calls < at:
            assert at > 1 or name not in CERTAIN
            return  # there are no more calls of this name
    pytest.fail(f"the workflows make more than {MOST_CALLS} calls of {name}; raise the limit")
