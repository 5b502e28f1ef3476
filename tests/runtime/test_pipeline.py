"""While a commit is being written the next batch is decided: nothing of it is told before both are durable, and what
the database does not know yet is not asked of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from romancy_stream import App, StartRefusedError
from romancy_stream.audit import verify
from romancy_stream.engine import history as h
from romancy_stream.engine.commit import Commit
from romancy_stream.runtime import processor
from romancy_stream.runtime.processor import Processor
from romancy_stream.store.sql import SqlStore
from tests.support import eventually
from tests.support.gated import concerns, gated_app, refuse

PATIENCE_S = 120


@pytest.fixture(autouse=True)
def small_batches_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("romancy_stream.runtime.processor.OVERLAP_FROM", 1)


@pytest.mark.parametrize("refused", [False, True])
async def test_the_next_batch_is_decided_while_a_commit_is_under_way(tmp_path: Path, refused: bool) -> None:
    ran: list[str] = []
    app = gated_app(tmp_path, ran)
    async with app:
        await app.wait_assigned()
        store, starting_ada = app.store, concerns(h.WORKFLOW_STARTED, "ada")
        store.slow = starting_ada
        store.gate.clear()
        if refused:
            store.bad = refuse(starting_ada)
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


async def test_what_was_acknowledged_is_not_worth_a_commit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one takes it up; only where none comes, there is one for it alone."""
    monkeypatch.setattr(processor, "TIDY_AFTER_S", 1.0)
    app = gated_app(tmp_path, [], eager=False)
    begun_s: list[float] = []
    apart_s: list[float] = []

    def seen(commit: Commit) -> None:
        now_s = time.monotonic()
        if commit.outbox_sent and not commit.offsets:
            apart_s.append(now_s - begun_s[-1])
        begun_s.append(now_s)

    async with app:
        await app.wait_assigned()
        app.store.bad = seen
        for _ in range(20):
            handles = [await app.start_by_name("hello", name) for name in ("Ada", "Bob", "Cy")]
            await asyncio.gather(*[handle.result(timeout=PATIENCE_S) for handle in handles])
        await eventually(lambda: apart_s)
        assert await _is_clean(app.store)
    assert min(apart_s) > 0.5


async def _is_clean(store: SqlStore) -> bool:
    return (await verify(store)).clean


async def test_what_the_commit_under_way_ends_is_not_taken_for_open(tmp_path: Path) -> None:
    """The database still has an open instance when its id is to be used again."""
    app = gated_app(tmp_path, [])
    async with app:
        await app.wait_assigned()
        store = app.store
        store.slow = concerns(h.WORKFLOW_COMPLETED, "i")
        store.gate.clear()
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
    return processor._turns.lock.locked()
