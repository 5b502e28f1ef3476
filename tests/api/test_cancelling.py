"""Cancelling as callers see it: who answers, when nobody does, and clients that may not listen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import (
    App,
    InstanceNotCancellableError,
    WorkflowCancelledError,
    WorkflowContext,
)
from tests.support import eventually

PATIENCE_S = 30


def _app(folder: Path) -> App:
    app = App("desk", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'state.db'}", partitions=2)

    @app.workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await ctx.sleep(3_600)

    @app.workflow
    async def quick(ctx: WorkflowContext) -> int:
        return 1

    @app.workflow
    async def goes_on(ctx: WorkflowContext) -> str:
        try:
            await ctx.sleep(3_600)
        except asyncio.CancelledError:
            await ctx.sleep(3_600)
        return "in the end"

    return app


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("",), ValueError), ((5,), ValueError), (("i", 5), TypeError), (("i", b"why"), TypeError)],
)
async def test_wrong_calls_send_nothing(arguments: tuple[Any, ...], error: type[Exception], tmp_path: Path) -> None:
    async with _app(tmp_path) as app:
        with pytest.raises(error):
            await app.cancel(*arguments)
        assert not await app.dead_letters()


async def test_a_client_that_may_not_listen_asks_the_tables(tmp_path: Path) -> None:
    async with _app(tmp_path) as app, app.client(poll_interval=0.05) as client:
        for name in ("sleeps", "goes_on", "quick"):
            await client.start_by_name(name, instance_id=name)
        assert await client.handle("quick").result(timeout=PATIENCE_S) == 1
        await client.cancel("sleeps", "enough")
        with pytest.raises(WorkflowCancelledError, match="enough"):
            await client.handle("sleeps").result(timeout=PATIENCE_S)
        await client.cancel("sleeps")
        await client.cancel("goes_on")  # asked, and it goes on
        with pytest.raises(InstanceNotCancellableError, match="completed"):
            await client.cancel("quick")
        with pytest.raises(TimeoutError):
            await client.cancel("nobody", timeout=0.2)


async def test_without_an_engine_the_request_waits_for_one(tmp_path: Path) -> None:
    async with _app(tmp_path) as app:
        await app.start_by_name("sleeps", instance_id="s")

        async def is_there() -> bool:
            return await app.get_instance("s") is not None

        await eventually(is_there, deadline_s=PATIENCE_S)
    later = _app(tmp_path)
    async with later.client() as client:
        with pytest.raises(TimeoutError):
            await client.handle("s").cancel("nobody hears me", timeout=0.2)
    async with later:
        with pytest.raises(WorkflowCancelledError, match="nobody hears me"):
            await later.handle("s").result(timeout=PATIENCE_S)
