"""Answers to commands: heard from commits and from the topic, looked up where they were missed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from romancy_stream import App, StoreUnavailableError, WorkflowContext
from tests.support import eventually

PATIENCE_S = 60


def add_counter(app: App) -> None:
    @app.workflow
    async def counter(ctx: WorkflowContext) -> int:
        ctx.state.n, ctx.state.over = 0, False
        await ctx.wait_condition(lambda: ctx.state.over)
        return int(ctx.state.n)

    @counter.update
    def add(ctx: WorkflowContext, n: int) -> int:
        ctx.state.n += n
        return int(ctx.state.n)


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App("answers", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}")

    add_counter(app)
    return app


async def test_a_hub_that_heard_nothing_looks_when_it_listens_again(app: App) -> None:
    async with app, app.client() as client:
        await app.start_by_name("counter", instance_id="c")
        await app.update("c", "add", 1, timeout=PATIENCE_S)
        hub = client._hub
        known: list[bytes] = []

        async def look() -> bytes | None:
            return known[0] if known else None

        async with asyncio.timeout(PATIENCE_S), hub.answer("c", "a command that nobody sent", look) as answer:
            hub.on_ownership()
            await eventually(lambda: not hub._rechecks, deadline_s=PATIENCE_S)
            assert not answer.done()
            known.append(b'{"ok":true}')
            hub.on_ownership()
            assert await answer == b'{"ok":true}'
        assert not hub._questions
        assert not hub._asked


async def test_a_lookup_that_fails_is_told_unless_the_database_is_only_away(app: App) -> None:
    async with app, app.client() as client:
        hub = client._hub
        errors: list[Exception] = [StoreUnavailableError("away"), LookupError("broken")]

        async def look() -> bytes | None:
            raise errors.pop(0)

        with pytest.raises(LookupError, match="broken"):
            async with asyncio.timeout(PATIENCE_S), hub.answer("c", "x", look, 0.01) as answer:
                await answer
        assert not errors


async def test_answers_go_to_who_asked(app: App) -> None:
    """Through the process's own commits, and through the topic."""
    async with app, app.client() as client:
        for n in range(3):
            await app.start_by_name("counter", instance_id=f"c{n}")
        ask: list[Callable[..., Awaitable[int]]] = [app.update, client.update]
        async with asyncio.timeout(PATIENCE_S):
            heard = await asyncio.gather(*(ask[n % 2](f"c{n % 3}", "add", n) for n in range(30)))
        for instance in range(3):
            own = [n for n in range(30) if n % 3 == instance]
            assert max(heard[n] for n in own) == sum(own)
            assert len({heard[n] for n in own}) >= len(own) - (0 in own)


async def test_closing_ends_waiting(app: App) -> None:
    async with app:
        await app.start_by_name("counter", instance_id="c")
        async with app.client() as client:
            hub = client._hub
            async with hub.answer("c", "never") as answer:
                await hub.close()
                with pytest.raises(asyncio.CancelledError):
                    await answer
