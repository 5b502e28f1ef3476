"""Activities in users' unit tests: plain ones are called as they are, those with a ctx inside `activity_context`."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from romancy_stream import ActivityContext, ActivityContextError, activity
from romancy_stream.testing import activity_context


@activity
async def save(ctx: ActivityContext, name: str) -> int:
    await ctx.session.execute(text("INSERT INTO notes VALUES (:name)"), {"name": name})
    ctx.publish_event(type="note.saved", data={"name": name})
    ctx.on_commit(lambda: None)
    return ctx.attempt


@activity
def plain(ctx: ActivityContext) -> str:
    return ctx.idempotency_key


async def test_an_activity_with_a_context_runs_on_the_tests_own_session(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'notes.db'}")
    async with AsyncSession(engine) as session:
        await session.execute(text("CREATE TABLE notes (name VARCHAR(20))"))
        with activity_context(session=session, attempt_number=2) as tested:
            assert await save("first") == 2
        assert (await session.execute(text("SELECT name FROM notes"))).scalars().all() == ["first"]
    await engine.dispose()
    assert tested.published == [("note.saved", {"name": "first"})]
    assert len(tested.callbacks) == 1


async def test_a_plain_activity_and_a_missing_session() -> None:
    with activity_context(instance_id="i", activity_id="plain:1"):
        assert await plain() == "i/1/plain:1"
        with pytest.raises(ActivityContextError, match="session="):
            await save("first")


async def test_without_a_context_the_error_names_the_helper() -> None:
    with pytest.raises(ActivityContextError, match=r"romancy_stream\.testing\.activity_context"):
        await plain()
