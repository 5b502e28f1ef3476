"""What ends, well or badly, is gone at once: nothing of it waits for Python's collector of cycles, which a worker lets
run seldom. Frames of a failure hold all that the user's code held, megabytes perhaps."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import text

from romancy_stream import (
    Activity,
    ActivityContext,
    App,
    RetryPolicy,
    TerminalError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.handle import Handle
from tests.support import eventually, without_collector

ONCE = RetryPolicy(max_attempts=1)
THRICE = RetryPolicy(max_attempts=3, initial_interval=0.001)


class Large:
    """Stands for what a user's code works with."""

    held: ClassVar[list[weakref.ref[Large]]] = []

    def __init__(self) -> None:
        self.held.append(weakref.ref(self))


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    Large.held.clear()
    with without_collector():
        yield


def shop(folder: Path) -> App:
    app = App("shop", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'state.db'}", partitions=1)
    _workflows(app, _activities(app))
    return app


def _activities(app: App) -> dict[str, Activity[Any, Any]]:
    @app.activity(name="well", retry=ONCE)
    async def well() -> None:
        large = Large()
        await asyncio.sleep(0)
        assert large

    @app.activity(name="badly", retry=THRICE)
    async def badly() -> None:
        large = Large()
        raise ValueError(str(large))

    @app.activity(name="badly_for_a_reason", retry=THRICE)
    async def badly_for_a_reason() -> None:
        large = Large()
        try:
            raise KeyError(str(large))
        except KeyError as error:
            raise TerminalError("no") from error

    @app.activity(name="badly_in_a_thread", retry=THRICE)
    def badly_in_a_thread() -> None:
        large = Large()
        raise ValueError(str(large))

    @app.activity(name="too_late", retry=ONCE, timeout=0.05)
    async def too_late() -> None:
        large = Large()
        await asyncio.Event().wait()
        assert large

    @app.activity(name="in_a_transaction", retry=THRICE)
    async def in_a_transaction(ctx: ActivityContext) -> None:
        large = Large()
        await ctx.session.execute(text("SELECT 1"))
        raise ValueError(str(large))

    @app.activity(name="committed", retry=ONCE)
    async def committed(ctx: ActivityContext) -> None:
        large = Large()
        await ctx.session.execute(text("SELECT 1"))
        ctx.on_commit(lambda: None)
        assert large

    @app.activity(name="refused_by_the_database", retry=THRICE)
    async def refused_by_the_database(ctx: ActivityContext) -> None:
        large = Large()
        await ctx.session.execute(text("SELECT no_such_column"))
        assert large

    @app.activity(name="unreadable_result", retry=ONCE)
    async def unreadable_result() -> Any:
        large = Large()
        return large

    made = (
        well,
        badly,
        badly_for_a_reason,
        badly_in_a_thread,
        too_late,
        in_a_transaction,
        committed,
        refused_by_the_database,
        unreadable_result,
    )
    return {each.name: each for each in made}


def _workflows(app: App, activities: Mapping[str, Activity[Any, Any]]) -> None:
    @app.workflow(name="calls")
    async def calls(ctx: WorkflowContext, name: str) -> None:
        large = Large()
        await activities[name]()
        assert large

    @app.workflow(name="goes_on")
    async def goes_on(ctx: WorkflowContext, name: str) -> str:
        large = Large()
        try:
            await activities[name]()
        except Exception as error:
            return f"{type(error).__name__} {large is None}"
        return "well"

    @app.workflow(name="fails_by_itself")
    async def fails_by_itself(ctx: WorkflowContext, name: str) -> None:
        large = Large()
        try:
            raise ValueError(str(large))
        except ValueError as error:
            raise TerminalError(name) from error

    @app.workflow(name="waits")
    async def waits(ctx: WorkflowContext, name: str) -> None:
        large = Large()
        try:
            await ctx.wait_event(name)
        finally:
            assert large


async def ended(app: App, workflow: str, name: str) -> None:
    """One run of it, in a task of its own, as the frame of a test is kept."""
    handle: Handle[Any] = await app.start_by_name(workflow, name)
    with contextlib.suppress(WorkflowFailedError):
        await handle.result(timeout=30)


async def gone() -> None:
    def all_gone() -> bool:
        assert Large.held
        left = [each() for each in Large.held]
        return not any(left)

    await eventually(all_gone, 30, message="something holds on to what has ended")


@pytest.mark.parametrize("workflow", ["calls", "goes_on"])
@pytest.mark.parametrize("name", list(_activities(App("names"))))
async def test_what_ends_holds_nothing(tmp_path: Path, workflow: str, name: str) -> None:
    async with shop(tmp_path) as app:
        await asyncio.create_task(ended(app, workflow, name))
        await gone()


async def test_a_workflow_that_fails_holds_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as app:
        await asyncio.create_task(ended(app, "fails_by_itself", "x"))
        await gone()


async def test_a_workflow_that_is_cancelled_holds_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as app:
        handle: Handle[Any] = await app.start_by_name("waits", "x")
        await eventually(lambda: Large.held)
        await handle.cancel()
        with pytest.raises(WorkflowCancelledError):
            await handle.result(timeout=30)
        await gone()
