"""Many attempts that end at once: few connections do for them, nobody who has one waits for others, and nobody waits
for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event

from romancy_stream import ActivityContext, activity
from romancy_stream.runtime import attempt_transaction
from romancy_stream.runtime.attempt_transaction import COMMITS_AT_ONCE
from romancy_stream.store.database import POOL_OVERFLOW, POOL_SIZE
from romancy_stream.wire import event as w
from tests.runtime.worker_kit import Bench, OrderRow
from tests.support import eventually


@activity
async def save(ctx: ActivityContext, order_id: str, amount: int = 1) -> str:
    """Needs no connection before its end."""
    ctx.session.add(OrderRow(order_id=order_id, amount=amount))
    return order_id


class Holding:
    """An activity that has written its row and goes on only when told to."""

    def __init__(self) -> None:
        self.written, self.go_on = asyncio.Event(), asyncio.Event()

        @activity
        async def hold(ctx: ActivityContext, order_id: str) -> str:
            ctx.session.add(OrderRow(order_id=order_id, amount=1))
            await ctx.session.flush()
            self.written.set()
            await self.go_on.wait()
            return order_id

        self.activity = hold


async def test_attempts_that_end_at_once_open_no_more_connections_than_are_kept(bench: Bench) -> None:
    count = 3 * (POOL_SIZE + POOL_OVERFLOW)
    barrier = asyncio.Barrier(count)
    opened: list[Any] = []

    @activity
    async def together(ctx: ActivityContext, order_id: str) -> str:
        await barrier.wait()
        return await save(order_id)

    await bench.worker(together, save, concurrency=count)
    event.listen(bench.store.db.engine.sync_engine, "connect", lambda connection, _record: opened.append(connection))
    for n in range(count):
        await bench.request("together", f"o{n:02d}", instance=f"i{n}")
    results = await bench.results_of(count)
    assert {each.type for each in results} == {w.ACTIVITY_COMPLETED}
    assert len(await bench.orders()) == count
    assert len(opened) <= POOL_SIZE


async def test_who_has_a_connection_waits_for_nobodys_turn(bench: Bench) -> None:
    """All that have a turn wait for its row, or on SQLite for its turn to write."""
    holding, count = Holding(), COMMITS_AT_ONCE + 2
    worker = await bench.worker(holding.activity, save)
    await bench.request("hold", "same", instance="holder")
    await holding.written.wait()
    for n in range(count):
        await bench.request("save", "same", instance=f"i{n}")
    await eventually(lambda: worker.statistics().running == count + 1)
    await eventually(lambda: attempt_transaction._turns(bench.store.db.engine).locked())
    assert bench.results == []
    holding.go_on.set()
    results = await bench.results_of(count + 1)
    held = [each for each in results if each.event.subject == "holder"]
    assert [each.type for each in held] == [w.ACTIVITY_COMPLETED]
    others = [each.data["type"] for each in results if each.event.subject != "holder"]
    assert all(each.endswith(":IntegrityError") for each in others), others
    assert await bench.orders() == [("same", 1)]


async def test_who_waits_for_a_turn_too_long_may_try_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_transaction, "COMMITS_AT_ONCE", 1)
    monkeypatch.setattr(attempt_transaction, "TURN_LIMIT_S", 0.05)
    holding = Holding()
    await bench.worker(holding.activity, save)
    await bench.request("hold", "same", instance="holder")
    await holding.written.wait()
    await bench.request("save", "same", instance="first")
    await eventually(lambda: attempt_transaction._turns(bench.store.db.engine).locked())
    await bench.request("save", "o2", instance="second", ext={w.X_RETRY_ON: "shop:Declined"})
    late = await bench.result()
    assert (late.event.subject, late.type, late.data["retryable"]) == ("second", w.ACTIVITY_FAILED, True)
    assert late.data["type"] == "romancy_stream.errors:StoreUnavailableError"
    holding.go_on.set()
    await bench.results_of(3)
    monkeypatch.undo()
    await bench.request("save", "o2", instance="second", attempt=2)
    assert (await bench.results_of(4))[3].data == "o2"
    assert await bench.orders() == [("o2", 1), ("same", 1)]
