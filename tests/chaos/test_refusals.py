"""What the database refuses, or fails to take again and again, in the middle of other people's work: one message or one
instance is set aside, its neighbours notice nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from romancy_stream import App, StartRefusedError, StoreUnavailableError, WorkflowContext
from romancy_stream.audit import verify
from romancy_stream.engine.commit import Commit
from romancy_stream.store.sql import SqlStore
from tests.chaos.checks import Tables, tables
from tests.chaos.program import plan, program
from tests.support import eventually

PATIENCE_S = 120
POISON = "arsenic"  # no row of history may contain it: see REFUSING
REFUSING = {
    "sqlite": f"CREATE TRIGGER antidote BEFORE INSERT ON romancy_history WHEN NEW.payload LIKE '%{POISON}%' "
    "BEGIN SELECT RAISE(ABORT, 'no poison'); END",
    "postgres": f"ALTER TABLE romancy_history ADD CONSTRAINT antidote CHECK (payload NOT LIKE '%{POISON}%')",
    "mariadb": f"ALTER TABLE romancy_history ADD CONSTRAINT antidote CHECK (payload NOT LIKE '%{POISON}%')",
}


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
async def poisonable(
    request: pytest.FixtureRequest, namespace: str, tmp_path: Path
) -> AsyncIterator[tuple[App, Tables]]:
    """An app, and a database that refuses some data, as databases do for reasons that nobody thought of."""
    database = request.getfixturevalue(f"{request.param}_db")
    app = program(namespace, broker=f"embedded://{tmp_path / 'log'}", database=database)

    @app.activity
    async def brew(where: str) -> str:
        return POISON if where == "result" else where

    @app.workflow
    async def drinking(ctx: WorkflowContext, where: str) -> str:
        brewed = await brew(where)
        await ctx.sleep(0.05)
        return POISON if where == "timer" else brewed

    async with tables(app) as looking:
        await looking.execute(REFUSING[request.param])
        yield app, looking


async def test_what_the_database_refuses_is_set_aside(poisonable: tuple[App, Tables]) -> None:
    app, looking = poisonable
    cups = [f"fine-{number}" for number in range(40)]
    for place, where in (0, POISON), (11, "result"), (22, "timer"), (39, POISON):
        cups[place] = where
    async with app.running(roles=["worker"]):  # no engine: they come in one batch
        for number, where in enumerate(cups):
            await app.start_by_name("drinking", where, instance_id=f"cup-{number}")
    async with app:
        for number, where in enumerate(cups):
            if where.startswith("fine"):
                assert await app.handle(f"cup-{number}").result(timeout=PATIENCE_S) == where
        for number in (0, 39):
            with pytest.raises(StartRefusedError, match="refused_by_database"):
                await app.handle(f"cup-{number}").result(timeout=PATIENCE_S)
        for number in (11, 22):
            await eventually(partial(parked, app, f"cup-{number}"), deadline_s=PATIENCE_S)
    letters = await looking.rows("SELECT topic, reason FROM romancy_dead_letters ORDER BY topic")
    topics = [app.topics.commands, app.topics.commands, app.topics.results]
    assert [tuple(row) for row in letters] == [(topic, "refused_by_database") for topic in topics]
    assert (await verify(looking.store)).clean
    assert await looking.number("SELECT count(*) FROM romancy_instances WHERE status = 'completed'") == 36


async def parked(app: App, instance_id: str) -> bool:
    instance = await app.get_instance(instance_id)
    return instance is not None and instance.parked is not None


# -- a lock in the way -----------------------------------------------------------------------------------------------


class LockedOut(SqlStore):
    """As if somebody held a lock on one instance's row: whatever is to be written with it has to wait in vain."""

    instance_id = ""
    times = 0

    async def commit(self, commit: Commit) -> int:
        if self.times and any(row.instance_id == self.instance_id for row in commit.instances):
            self.times -= 1
            raise StoreUnavailableError("lock timeout")
        return await super().commit(commit)


async def test_a_lock_in_the_way_makes_no_message_guilty(
    namespace: str, sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often an owner gives up over a message, it was not the message that ended the owner."""
    monkeypatch.setattr("romancy_stream.runtime.patience.STORE_PATIENCE_S", 0.0)
    monkeypatch.setattr("romancy_stream.runtime.service.BACKOFF_S", (0.01, 0.05))
    app = program(namespace, broker=f"embedded://{tmp_path / 'log'}", database=sqlite_db)
    store = LockedOut(sqlite_db)
    store.instance_id, store.times = "steps-0", 20
    app.make_store = lambda: store  # type: ignore[method-assign]
    async with app:
        for instance_id, kind, number in plan(8):
            await app.start_by_name(kind, number, instance_id=instance_id)
        assert await app.handle("steps-0").result(timeout=PATIENCE_S) == 3
        assert store.times == 0
        assert not await app.dead_letters()
