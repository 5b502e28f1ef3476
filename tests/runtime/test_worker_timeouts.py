"""An attempt has its time, and a function that takes no notice is reported all the same: what it does afterwards
counts for nothing.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from romancy_stream import ActivityContext, activity
from romancy_stream.wire import event as w
from tests.runtime.worker_kit import Bench, OrderRow, wait_on_server
from tests.support import eventually

SOON = {w.X_TIMEOUT: "0.5"}
TIMEOUT_ERROR = "romancy_stream.errors:ActivityTimeoutError"


async def test_a_coroutine_is_cancelled_and_its_transaction_rolled_back(bench: Bench) -> None:
    cancelled = []

    @activity
    async def slow(ctx: ActivityContext) -> None:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        ctx.publish_event(type="saved")
        await ctx.session.flush()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    await bench.worker(slow)
    await bench.request("slow", ext={**SOON, w.X_RETRY_ON: "shop:Declined"})
    error = (await bench.result()).data
    assert (error["type"], error["retryable"], cancelled) == (TIMEOUT_ERROR, True, [True])
    assert "slow:1 did not finish within its timeout of 0.5 s" in error["message"]
    assert await bench.orders() == []
    assert bench.events == []


async def test_a_timeout_in_the_middle_of_a_statement_leaves_a_usable_pool(bench: Bench) -> None:
    @activity
    async def slow(ctx: ActivityContext, order_id: str, wait_s: float) -> int:
        ctx.session.add(OrderRow(order_id=order_id, amount=1))
        await ctx.session.flush()
        await wait_on_server(ctx.session, bench.store.db.dialect, wait_s)
        await asyncio.sleep(wait_s)
        return 1

    await bench.worker(slow)
    for n in range(3):
        await bench.request("slow", f"o{n}", 30, attempt=n + 1, ext=SOON)
    await bench.results_of(3)
    assert {each.data["type"] for each in bench.results} == {TIMEOUT_ERROR}
    await bench.request("slow", "o1", 0, attempt=4)
    assert (await bench.results_of(4))[3].data == 1
    assert await bench.orders() == [("o1", 1)]


async def test_a_coroutine_that_loses_its_cancellation_is_cancelled_again(sqlite_bench: Bench) -> None:
    lost: list[bool] = []

    @activity
    async def deaf() -> None:
        while len(lost) < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost.append(True)
        await asyncio.Event().wait()

    worker = await sqlite_bench.worker(deaf)
    await sqlite_bench.request("deaf", ext=SOON)
    assert (await sqlite_bench.result()).data["type"] == TIMEOUT_ERROR
    assert len(lost) == 2
    lost.clear()
    await sqlite_bench.request("deaf", attempt=2)
    await eventually(lambda: worker.statistics().running == 1)
    await sqlite_bench.stop(worker, drain_s=0)
    assert len(lost) == 2
    assert worker.statistics().cut_off == 1


@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_a_coroutine_that_swallows_its_cancellation_is_late_all_the_same(sqlite_bench: Bench, how: str) -> None:
    @activity
    async def stubborn(ctx: ActivityContext) -> str:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if how == "raises":
                raise ValueError from None
        return "late"

    await sqlite_bench.worker(stubborn)
    await sqlite_bench.request("stubborn", ext=SOON)
    assert (await sqlite_bench.result()).data["type"] == TIMEOUT_ERROR
    assert await sqlite_bench.orders() == []


async def test_a_timeout_of_the_function_itself_is_its_own_error(sqlite_bench: Bench) -> None:
    @activity
    async def impatient() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    await sqlite_bench.worker(impatient)
    await sqlite_bench.request("impatient", ext={w.X_TIMEOUT: "60"})
    assert (await sqlite_bench.result()).data["type"] == "builtins:TimeoutError"


async def test_who_must_not_be_repeated_after_a_timeout_is_not(sqlite_bench: Bench) -> None:
    @activity
    async def slow() -> None:
        await asyncio.Event().wait()

    await sqlite_bench.worker(slow)
    await sqlite_bench.request("slow", ext={**SOON, w.X_NO_RETRY_ON: TIMEOUT_ERROR})
    assert (await sqlite_bench.result()).data["retryable"] is False


# -- threads ---------------------------------------------------------------------------------------------------
async def test_a_thread_that_goes_on_is_reported_and_what_it_does_is_discarded(bench: Bench) -> None:
    go, ended = threading.Event(), threading.Event()
    late: list[Any] = []

    @activity
    def slow(ctx: ActivityContext) -> str:
        session = ctx.sync_session
        session.add(OrderRow(order_id="o1", amount=1))
        session.flush()
        go.wait(30)
        session.add(OrderRow(order_id="o2", amount=1))
        for use in (session.flush, lambda: ctx.session, lambda: ctx.publish_event(type="late")):
            try:
                use()
            except Exception as error:
                late.append(type(error).__name__)
        ended.set()
        return "late"

    worker = await bench.worker(slow, threads=1)
    await bench.request("slow", ext=SOON)
    error = (await bench.result()).data
    assert (error["type"], error["retryable"]) == (TIMEOUT_ERROR, True)
    assert worker.statistics().abandoned_threads == 1

    @activity
    def quick(ctx: ActivityContext) -> str:
        ctx.sync_session.add(OrderRow(order_id="o1", amount=2))
        return "quick"

    second = await bench.worker(quick, queues=["other"])
    await bench.request("quick", queue="other")
    assert (await bench.results_of(2))[1].data == "quick"  # the locks of the first are gone, though its thread is not
    go.set()
    await eventually(ended.is_set)
    assert late == ["PendingRollbackError", "ActivityContextError", "ActivityContextError"]
    await eventually(lambda: worker.statistics().abandoned_threads == 0)
    assert await bench.orders() == [("o1", 2)]
    assert len(bench.seen) == 2
    assert second.statistics().completed == 1


async def test_a_thread_in_the_middle_of_a_statement_is_given_up_too(bench: Bench) -> None:
    from sqlalchemy import text

    statement = {"postgresql": "SELECT pg_sleep(5)", "mysql": "SELECT SLEEP(5)"}.get(bench.store.db.dialect)
    if statement is None:
        pytest.skip("SQLite has no statement that takes its time")

    @activity
    def slow(ctx: ActivityContext) -> str:
        ctx.sync_session.add(OrderRow(order_id="o1", amount=1))
        ctx.sync_session.flush()
        ctx.sync_session.execute(text(statement))
        ctx.sync_session.execute(text("SELECT 1"))
        return "late"

    worker = await bench.worker(slow)
    await bench.request("slow", ext=SOON)
    assert (await bench.result()).data["type"] == TIMEOUT_ERROR
    await eventually(lambda: worker.statistics().abandoned_threads == 0)
    await bench.stop(worker)
    assert await bench.orders() == []
    assert await bench.recorded("slow:1") is None


async def test_threads_that_hang_do_not_keep_others_from_their_turn(sqlite_bench: Bench) -> None:
    go = threading.Event()

    @activity
    def work(hang: bool) -> bool:
        return go.wait(30) if hang else True

    worker = await sqlite_bench.worker(work, threads=1)
    await sqlite_bench.request("work", True, activity_id="work:1", ext=SOON)
    await sqlite_bench.results_of(1)
    await sqlite_bench.request("work", False, activity_id="work:2", ext=SOON)
    assert (await sqlite_bench.results_of(2))[1].data is True
    go.set()
    await eventually(lambda: worker.statistics().abandoned_threads == 0)


async def test_the_time_of_a_plain_function_begins_when_it_has_a_thread(sqlite_bench: Bench) -> None:
    go, first = threading.Event(), threading.Event()

    @activity
    def work(wait: bool) -> bool:
        if wait:
            first.set()
            go.wait(30)
        return wait

    worker = await sqlite_bench.worker(work, threads=1)
    await sqlite_bench.request("work", True, activity_id="work:1")
    await eventually(first.is_set)
    await sqlite_bench.request("work", False, activity_id="work:2", ext={w.X_TIMEOUT: "0.05"})
    await eventually(lambda: worker.statistics().running == 2)
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.3
    await eventually(lambda: loop.time() > until, message="longer than the timeout")
    assert sqlite_bench.results == []
    go.set()
    assert [each.data for each in await sqlite_bench.results_of(2)] == [True, False]


async def test_a_stop_does_not_wait_for_threads_that_hang(bench: Bench) -> None:
    go, entered = threading.Event(), threading.Event()

    @activity
    def slow(ctx: ActivityContext) -> str:
        ctx.sync_session.add(OrderRow(order_id="o1", amount=1))
        ctx.sync_session.flush()
        entered.set()
        go.wait(30)
        return "late"

    worker = await bench.worker(slow)
    await bench.request("slow")
    await eventually(entered.is_set)
    await bench.stop(worker, drain_s=0)
    assert worker.statistics().cut_off == 1
    go.set()
    await eventually(lambda: worker.statistics().abandoned_threads == 0)
    assert await bench.orders() == []
    assert bench.seen == []
