"""Activities that use their session in ways they should not: the attempt fails with a reason, and nothing of it is left
behind that could hold up others, least of all an open transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sqlalchemy import text

from romancy_stream import ActivityContext, activity
from tests.runtime.worker_kit import Bench, OrderRow
from tests.support import eventually


@activity
async def save(ctx: ActivityContext, order_id: str) -> str:
    await ctx.session.execute(text("INSERT INTO shop_orders VALUES (:id, 1)"), {"id": order_id})
    return order_id


async def test_two_tasks_that_open_the_session_at_once_leave_nothing_open(bench: Bench) -> None:
    @activity
    async def both(ctx: ActivityContext) -> list[str]:
        return list(await asyncio.gather(save("o1"), save("o2")))

    await bench.worker(both, save)
    await bench.request("both")
    told = await bench.result()
    saved: list[tuple[str, int]] = []
    if isinstance(told.data, list):  # whose connection was there at once
        saved = [("o1", 1), ("o2", 1)]
    else:
        assert told.data["type"].startswith("sqlalchemy.exc:")
    await bench.request("save", "o3", instance="i2")  # would wait for the lock of the first
    await eventually(bench_has(bench, [*saved, ("o3", 1)]))


async def test_a_task_that_is_left_behind_begins_no_other_transaction(bench: Bench) -> None:
    go_on = asyncio.Event()
    left: list[asyncio.Task[object]] = []

    @activity
    async def leaves(ctx: ActivityContext) -> None:
        session = ctx.session
        await session.execute(text("INSERT INTO shop_orders VALUES ('o1', 1)"))

        async def later() -> None:
            await go_on.wait()
            await session.execute(text("INSERT INTO shop_orders VALUES ('o2', 1)"))

        left.append(asyncio.create_task(later()))

    await bench.worker(leaves, save)
    await bench.request("leaves")
    await bench.result()
    go_on.set()
    [error] = await asyncio.gather(*left, return_exceptions=True)
    assert "closed" in str(error)
    await bench.request("save", "o3", instance="i2")
    await eventually(bench_has(bench, [("o1", 1), ("o3", 1)]))


async def test_a_caught_error_that_spoils_the_transaction_is_explained(bench: Bench) -> None:
    @activity
    async def careless(ctx: ActivityContext) -> str:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        try:
            await ctx.session.execute(text("SELECT * FROM no_such_table"))
        except Exception:
            return "never mind"
        raise AssertionError("there is no such table")

    await bench.worker(careless)
    await bench.request("careless")
    told = await bench.result()
    if bench.store.db.dialect == "postgresql":
        assert "begin_nested" in told.data["message"]
        assert await bench.orders() == []
    else:  # the others go on as if nothing had happened
        assert told.data == "never mind"
        assert await bench.orders() == [("o1", 1)]


def bench_has(bench: Bench, orders: list[tuple[str, int]]) -> Callable[[], Awaitable[bool]]:
    async def has() -> bool:
        return await bench.orders() == orders

    return has
