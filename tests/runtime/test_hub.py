"""Many who wait ask the database together, and each gets the answer that is meant for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import App, InvalidInputError, WorkflowContext
from romancy_stream.handle import Handle
from romancy_stream.runtime import hub

PATIENCE_S = 120
WORKFLOWS = 60


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App("hub", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}")

    @app.workflow
    async def double(ctx: WorkflowContext, number: int) -> int:
        return 2 * number

    return app


async def test_many_waiters_share_questions(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LOOKED_FOR_AT_ONCE", 7)
    async with app:
        started = [await app.start_by_name("double", n, instance_id=f"d{n}") for n in range(WORKFLOWS)]
        assert [await each.result(timeout=PATIENCE_S) for each in started] == [2 * n for n in range(WORKFLOWS)]
        asked: list[int] = []
        known = app._store.known

        async def counted(ids: list[str]) -> object:
            asked.append(len(ids))
            return await known(ids)

        monkeypatch.setattr(app._store, "known", counted)
        refused = await app.start_by_name("double", "many", instance_id="x")
        with pytest.raises(InvalidInputError):
            await refused.result(timeout=PATIENCE_S)
        asked.clear()
        again: list[Handle[Any]] = [app.handle(f"d{n}") for n in range(WORKFLOWS)]
        results = await asyncio.gather(
            *(each.result(timeout=PATIENCE_S) for each in again), refused.result(PATIENCE_S), return_exceptions=True
        )
    assert results[:-1] == [2 * n for n in range(WORKFLOWS)]
    assert isinstance(results[-1], InvalidInputError)
    assert sum(asked) == WORKFLOWS + 1
    assert len(asked) <= (WORKFLOWS + 1) // 7 + 2


async def test_every_waiter_hears_of_a_failing_question(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app:

        async def broken(ids: list[str]) -> object:
            raise RuntimeError(f"no answer for {len(ids)}")

        monkeypatch.setattr(app._store, "known", broken)
        handles: list[Handle[Any]] = [app.handle(f"unknown-{n}") for n in range(5)]
        waiting = [each.result(timeout=PATIENCE_S) for each in handles]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(each) for each in answers] == ["no answer for 5"] * 5
        monkeypatch.undo()
        handle = await app.start_by_name("double", 4)
        assert await handle.result(timeout=PATIENCE_S) == 8
