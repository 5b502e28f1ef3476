"""Plain `def` activities: a synchronous session on the transaction of the attempt, on every database, while the event
loop goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from romancy_stream import ActivityContext, activity, activity_context
from romancy_stream.errors import ActivityContextError
from romancy_stream.runtime.sync_session import DaemonThreads, LoopBridge, wait_in_thread
from romancy_stream.wire import event as w
from tests.runtime.worker_kit import Bench, OrderRow
from tests.support import eventually


async def test_a_plain_function_writes_on_the_transaction_of_the_attempt(bench: Bench) -> None:
    @activity
    def order(ctx: ActivityContext, order_id: str) -> list[str]:
        session = ctx.sync_session
        assert {id(ctx.session), id(activity_context().session)} == {id(session)}
        session.add(OrderRow(order_id=order_id, amount=1))
        with session.begin_nested():
            session.add(OrderRow(order_id=f"{order_id} inner", amount=1))
        try:
            with session.begin_nested():
                session.add(OrderRow(order_id=order_id, amount=2))
                session.flush()
        except IntegrityError:
            pass
        ctx.publish_event(type="order.saved", data=order_id)
        return list(session.scalars(select(OrderRow.order_id).order_by(OrderRow.order_id)))

    await bench.worker(order)
    await bench.request("order", "o1")
    assert (await bench.result()).data == ["o1", "o1 inner"]
    assert await bench.orders() == [("o1", 1), ("o1 inner", 1)]
    assert [each.type for each in bench.seen] == ["order.saved", w.ACTIVITY_COMPLETED]
    assert await bench.recorded("order:1") is not None


async def test_its_failure_rolls_back(bench: Bench) -> None:
    @activity
    def order(ctx: ActivityContext) -> None:
        ctx.sync_session.add(OrderRow(order_id="o1", amount=1))
        ctx.sync_session.flush()
        ctx.sync_session.execute(text("SELECT no_such_column FROM shop_orders"))

    await bench.worker(order)
    await bench.request("order")
    assert (await bench.result()).data["type"].startswith("sqlalchemy.exc:")
    assert await bench.orders() == []


@pytest.mark.parametrize("what", ["commit", "rollback", "close", "begin"])
async def test_it_does_not_end_the_transaction_either(sqlite_bench: Bench, what: str) -> None:
    @activity
    def order(ctx: ActivityContext) -> None:
        getattr(ctx.sync_session, what)()

    await sqlite_bench.worker(order)
    await sqlite_bench.request("order")
    assert f"session.{what}()" in (await sqlite_bench.result()).data["message"]


async def test_the_loop_goes_on_while_the_thread_waits_for_the_database(bench: Bench) -> None:
    ticks, meanwhile = 0, []
    statement = {"postgresql": "SELECT pg_sleep(0.5)", "mysql": "SELECT SLEEP(0.5)"}.get(bench.store.db.dialect)

    @activity
    def slow(ctx: ActivityContext) -> None:
        session = ctx.sync_session
        before = ticks
        if statement is not None:
            session.execute(text(statement))
        else:
            for _ in range(200):
                session.execute(text("SELECT 1"))
        meanwhile.append(ticks - before)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    await bench.worker(slow)
    ticking = asyncio.create_task(tick())
    await bench.request("slow")
    await bench.result()
    ticking.cancel()
    assert meanwhile[0] > 20


async def test_the_session_belongs_to_the_thread_of_the_activity(sqlite_bench: Bench) -> None:
    @activity
    def order(ctx: ActivityContext) -> str:
        with DaemonThreads(1, "other") as pool:
            return str(pool.submit(lambda: ctx.sync_session).exception(timeout=90))

    await sqlite_bench.worker(order)
    await sqlite_bench.request("order")
    assert "belongs to the thread of the activity" in (await sqlite_bench.result()).data


async def test_many_threads_share_the_pool_of_connections(bench: Bench) -> None:
    @activity
    def order(ctx: ActivityContext, n: int) -> int:
        ctx.sync_session.add(OrderRow(order_id=f"o{n}", amount=n))
        ctx.sync_session.flush()
        return n

    await bench.worker(order, threads=8)
    for n in range(40):
        await bench.request("order", n, instance=f"i{n}")
    results = await bench.results_of(40, deadline_s=120)
    assert sorted(each.data for each in results) == list(range(40))
    assert len(await bench.orders()) == 40


@pytest.mark.postgres
async def test_a_connection_that_breaks_under_a_thread_is_a_failure_like_others(bench: Bench) -> None:
    if bench.store.db.dialect != "postgresql":
        pytest.skip("ends its own connection as PostgreSQL does it")

    @activity
    def order(ctx: ActivityContext, n: int) -> int:
        ctx.sync_session.add(OrderRow(order_id=f"o{n}", amount=1))
        ctx.sync_session.flush()
        if n == 1:
            ctx.sync_session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return n

    await bench.worker(order)
    await bench.request("order", 1)
    assert (await bench.result()).data["retryable"] is True
    await bench.request("order", 2, attempt=2)
    assert (await bench.results_of(2))[1].data == 2
    assert await bench.orders() == [("o2", 1)]


# -- the bridge --------------------------------------------------------------------------------------------------
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_the_bridge_carries_values_errors_and_context() -> None:
    bridge = LoopBridge(lambda: None)
    threads = DaemonThreads(2, "bridge")

    async def answer(value: str) -> str:
        await asyncio.sleep(0)
        if value == "bad":
            raise ProgrammingError("statement", None, ValueError("origin"))
        return value + variable.get()

    def work() -> list[str]:
        heard = [variable.get(), wait_in_thread(answer("good "))]
        try:
            wait_in_thread(answer("bad"))
        except ProgrammingError as error:
            heard.append(str(error.orig))
        return heard

    variable.set("set")
    context = contextvars.copy_context()
    heard = await asyncio.wrap_future(threads.submit(context.run, bridge.call, work))
    assert heard == ["set", "good set", "origin"]
    assert bridge.close() == 0
    with pytest.raises(ActivityContextError, match="has ended"):
        await asyncio.wrap_future(threads.submit(bridge.call, work))
    threads.shutdown()


async def test_a_closed_bridge_ends_what_is_under_way_and_takes_nothing_more() -> None:
    late, started, release = threading.Event(), asyncio.Event(), asyncio.Event()
    bridge = LoopBridge(late.set)
    threads = DaemonThreads(1, "bridge")

    async def under_way() -> str:
        started.set()
        await release.wait()
        return "done"

    def work() -> str:
        assert wait_in_thread(under_way()) == "done"
        return wait_in_thread(under_way())

    future = threads.submit(bridge.call, work)
    await started.wait()
    assert bridge.close() == 1
    quiet = asyncio.create_task(bridge.quiet())
    release.set()
    await quiet
    with pytest.raises(ActivityContextError):
        await asyncio.wrap_future(future)
    await eventually(late.is_set)
    threads.shutdown()


# -- the threads -------------------------------------------------------------------------------------------------
async def test_the_pool_has_its_limit_and_gives_a_thread_for_each_that_is_given_up() -> None:
    threads, go, running = DaemonThreads(2, "pool"), threading.Event(), []

    def work(n: int) -> int:
        running.append(threading.current_thread())
        go.wait(120)
        return n

    futures: list[Future[int]] = [threads.submit(work, n) for n in range(6)]
    await eventually(lambda: len(running) == 2)
    threads.abandon()
    await eventually(lambda: len(running) == 3)
    threads.abandon()
    await eventually(lambda: len(running) == 4)
    threads.abandon()  # no more than as many again
    assert futures[5].cancel()
    go.set()
    assert [await asyncio.wrap_future(each) for each in futures[:5]] == list(range(5))
    assert len(set(running)) == 4
    assert all(each.daemon for each in running)
    for _ in range(3):
        threads.returned()
    assert await asyncio.wrap_future(threads.submit(work, 7)) == 7
    threads.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(work, 8)
    await eventually(lambda: not any(each.is_alive() for each in running))


async def test_an_idle_thread_is_used_again() -> None:
    threads = DaemonThreads(5, "pool")
    names = {await asyncio.wrap_future(threads.submit(lambda: threading.current_thread().name)) for _ in range(100)}
    threads.shutdown()
    assert len(names) == 1


async def test_a_thread_that_took_a_job_from_the_queue_is_not_idle() -> None:
    """It hangs and is given up: the next job must not wait for it."""
    threads, go, hang = DaemonThreads(1, "pool"), threading.Event(), threading.Event()
    first, hanging = threads.submit(go.wait, 120), threads.submit(hang.wait, 120)
    go.set()
    assert await asyncio.wrap_future(first)
    await eventually(hanging.running)
    threads.abandon()
    assert await asyncio.wait_for(asyncio.wrap_future(threads.submit(lambda: "done")), 90) == "done"
    hang.set()
    assert await asyncio.wrap_future(hanging)
    threads.returned()
    threads.shutdown()
