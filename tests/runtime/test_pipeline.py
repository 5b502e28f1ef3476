"""While a commit is being written the next batch is decided: nothing of it is told before both are durable, and what
the database does not know yet is not asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from romancy_stream import App, StartRefusedError, WorkflowContext
from romancy_stream.audit import verify
from romancy_stream.engine import history as h
from romancy_stream.engine.commit import Commit
from romancy_stream.runtime.processor import Processor
from romancy_stream.store.port import Known
from romancy_stream.store.sql import SqlStore
from tests.support import eventually

PATIENCE_S = 120


class SlowStore(SqlStore):
    """A commit that is `slow` waits at the gate; one that is `bad` is refused behind it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.gate, self.waiting = asyncio.Event(), asyncio.Event()
        self.slow: Callable[[Commit], bool] = lambda commit: False
        self.bad: Callable[[Commit], bool] = lambda commit: False
        self.asked: set[str] = set()

    async def known(self, instance_ids: Sequence[str]) -> Known:
        self.asked.update(instance_ids)
        return await super().known(instance_ids)

    async def commit(self, commit: Commit) -> int:
        if self.slow(commit):
            self.waiting.set()
            await self.gate.wait()
        if self.bad(commit):
            raise RuntimeError("the database refuses this row")
        return await super().commit(commit)


class SlowApp(App):
    store: SlowStore

    def make_store(self) -> SqlStore:
        self.store = SlowStore(self.database_url)
        return self.store


def program(folder: Path, ran: list[str]) -> SlowApp:
    places = {"broker": f"embedded://{folder / 'log'}", "database": f"sqlite:///{folder / 'state.db'}"}
    app = SlowApp("pipeline", broker=places["broker"], database=places["database"], partitions=1)

    @app.activity
    async def greet(name: str) -> str:
        ran.append(name)
        return f"hello {name}"

    @app.workflow
    async def hello(ctx: WorkflowContext, name: str) -> str:
        return await greet(name)

    return app


@pytest.fixture(autouse=True)
def small_batches_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("romancy_stream.runtime.processor.OVERLAP_FROM", 1)


def has(kind: str, instance_id: str) -> Callable[[Commit], bool]:
    return lambda commit: any(event.kind == kind and event.instance_id == instance_id for event in commit.history)


@pytest.mark.parametrize("refused", [False, True])
async def test_the_next_batch_is_decided_while_a_commit_is_under_way(tmp_path: Path, refused: bool) -> None:
    ran: list[str] = []
    app = program(tmp_path, ran)
    async with app:
        await app.wait_assigned()
        store, starting_ada = app.store, has(h.WORKFLOW_STARTED, "ada")
        store.slow = starting_ada
        if refused:
            store.bad = starting_ada
        ada = await app.start_by_name("hello", "Ada", instance_id="ada")
        await store.waiting.wait()
        others = [await app.start_by_name("hello", name, instance_id=name) for name in ("Bob", "Cy")]
        await eventually(lambda: "Bob" in store.asked)
        assert not ran
        store.gate.set()
        assert [await other.result(timeout=PATIENCE_S) for other in others] == ["hello Bob", "hello Cy"]
        if refused:
            with pytest.raises(StartRefusedError, match="refused_by_database"):
                await ada.result(timeout=PATIENCE_S)
        else:
            assert await ada.result(timeout=PATIENCE_S) == "hello Ada"
        assert sorted(ran) == (["Bob", "Cy"] if refused else ["Ada", "Bob", "Cy"])
        await eventually(lambda: _is_clean(store), deadline_s=PATIENCE_S)


async def _is_clean(store: SqlStore) -> bool:
    return (await verify(store)).clean


async def test_what_the_commit_under_way_ends_is_not_taken_for_open(tmp_path: Path) -> None:
    """The database still has an open instance when its id is to be used again."""
    app = program(tmp_path, [])
    async with app:
        await app.wait_assigned()
        store = app.store
        store.slow = has(h.WORKFLOW_COMPLETED, "i")
        ada = await app.start_by_name("hello", "Ada", instance_id="i")
        await store.waiting.wait()
        store.asked.clear()
        starting = asyncio.create_task(app.start_by_name("hello", "Bob", instance_id="i", reuse="allow_finished"))
        await eventually(lambda: _is_busy(app))
        assert "i" not in store.asked
        store.gate.set()
        assert await ada.result(timeout=PATIENCE_S) == "hello Ada"
        assert await (await starting).result(timeout=PATIENCE_S) == "hello Bob"


def _is_busy(app: App) -> bool:
    """Whether the engine has a batch before it beside the commit under way."""
    assert app._node is not None
    assert app._node.worker is not None
    processor = app._node.worker.eager.engine
    assert isinstance(processor, Processor)
    return processor._lock.locked()
