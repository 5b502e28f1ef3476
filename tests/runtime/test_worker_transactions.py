"""One transaction per attempt, on every database: the user's rows, the record of the result and the events commit
together or not at all, whoever runs the task again, and wherever a worker dies.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from sqlalchemy import event, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import QueuePool

from romancy_stream import ActivityContext, activity, activity_context
from romancy_stream.engine.commit import COMPLETED, ActivityKey
from romancy_stream.runtime.attempt import EVENTS_LIMIT
from romancy_stream.store import tables
from romancy_stream.wire import event as w
from tests.runtime.worker_kit import Bench, OrderRow
from tests.support import eventually


@activity
async def save(ctx: ActivityContext, order_id: str, amount: int = 1) -> str:
    ctx.session.add(OrderRow(order_id=order_id, amount=amount))
    ctx.publish_event(type="order.saved", data={"id": order_id})
    return order_id


# -- together or not at all ------------------------------------------------------------------------------------
async def test_rows_result_and_events_commit_together_and_events_leave_first(bench: Bench) -> None:
    offsets: list[tuple[str, str]] = []

    @activity
    async def order(ctx: ActivityContext) -> str:
        ctx.publish_event(type="order.begun", data=1, subject="o1", source="/mine")
        ctx.session.add(OrderRow(order_id="o1", amount=5))
        await ctx.session.flush()
        ctx.publish_event(type="order.saved")
        assert await bench.count(tables.activity_results) == 0
        return "saved"

    worker = await bench.worker(order)
    await bench.request("order", ext={w.X_TRACESTATE: "a=b"})
    result = await bench.result()
    offsets += [(each.topic, each.type) for each in bench.seen]
    assert [type_ for _, type_ in offsets] == ["order.begun", "order.saved", w.ACTIVITY_COMPLETED]
    assert (result.data, result.event.id) == ("saved", "i1/1/order:1/result")
    recorded = await bench.recorded("order:1")
    assert recorded is not None
    assert (recorded.outcome, recorded.attempt, recorded.result, recorded.worker) == (COMPLETED, 1, b'"saved"', "w1")
    assert await bench.orders() == [("o1", 5)]
    begun, saved = (each.event for each in bench.events)
    assert (begun.id, begun.source, begun.subject, begun.data) == ("i1/1/order:1/1", "/mine", "o1", b"1")
    assert (saved.id, saved.source, saved.subject, saved.data) == ("i1/1/order:1/2", "/romancy/shop", None, None)
    assert saved.extensions == {
        w.X_PARTITION_KEY: "i1",
        w.X_INSTANCE: "i1",
        w.X_CAUSATION: "i1/1/order:1/1",
        w.X_CAUSATION_SOURCE: "/romancy/shop",
        w.X_TRACESTATE: "a=b",
    }
    await bench.no_outbox()
    await eventually(lambda: worker.statistics().rows_to_delete == 0)


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_failure_leaves_nothing(bench: Bench, flushed: bool) -> None:
    @activity
    async def order(ctx: ActivityContext) -> None:
        ctx.session.add(OrderRow(order_id="o1", amount=5))
        ctx.publish_event(type="order.saved")
        ctx.on_commit(lambda: pytest.fail("nothing was committed"))
        if flushed:
            await ctx.session.flush()
        raise ValueError("no")

    await bench.worker(order)
    await bench.request("order")
    assert (await bench.result()).data["type"] == "builtins:ValueError"
    assert await bench.orders() == []
    assert await bench.recorded("order:1") is None
    assert await bench.outbox() == []
    assert bench.events == []


async def test_a_row_that_the_database_refuses_at_the_end_is_the_activitys_failure(bench: Bench) -> None:
    await bench.worker(save)
    await bench.request("save", "same", activity_id="save:1")
    await bench.results_of(1)
    await bench.request("save", "same", activity_id="save:2")
    _, failed = await bench.results_of(2)
    assert (failed.type, failed.data["retryable"]) == (w.ACTIVITY_FAILED, True)
    assert failed.data["type"].endswith(":IntegrityError")
    assert await bench.orders() == [("same", 1)]
    assert [each.event.id for each in bench.events] == ["i1/1/save:1/1"]


@pytest.mark.parametrize(
    ("hook", "error"), [("after_commit", ValueError), ("after_transaction_end", ConnectionResetError)]
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_hook_that_fails_after_the_commit_is_told_of_and_the_result_stands(
    bench: Bench, caplog: pytest.LogCaptureFixture, hook: str, error: type[Exception], is_async: bool
) -> None:
    called: list[str] = []

    def fail(_: Session, ended: SessionTransaction | None = None) -> None:
        if ended is None or ended.parent is None:
            raise error("a cache is away")

    def write(ctx: ActivityContext, session: Session) -> str:
        ctx.publish_event(type="order.saved")
        ctx.on_commit(lambda: called.append("on_commit"))
        event.listen(session, hook, fail)
        session.add(OrderRow(order_id="o1", amount=5))
        return "saved"

    @activity(name="order")
    async def order(ctx: ActivityContext) -> str:
        async with ctx.session.begin_nested():
            pass
        return write(ctx, ctx.session.sync_session)

    @activity(name="order")
    def sync_order(ctx: ActivityContext) -> str:
        return write(ctx, ctx.sync_session)

    worker = await bench.worker(order if is_async else sync_order)
    await bench.request("order")
    result = await bench.result()
    assert (result.type, result.data) == (w.ACTIVITY_COMPLETED, "saved")
    assert (await bench.orders(), called) == ([("o1", 5)], ["on_commit"])
    assert [each.type for each in bench.seen] == ["order.saved", w.ACTIVITY_COMPLETED]
    assert worker.statistics().completed == 1
    (logged,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert "i1/1/order:1, attempt 1 of 'order'" in logged.message
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], error)
    await bench.no_outbox()
    pool = bench.store.db.engine.pool
    assert isinstance(pool, QueuePool)
    await eventually(lambda: pool.checkedout() == 0)


async def test_a_hook_that_fails_before_the_commit_is_the_activitys_failure(bench: Bench) -> None:
    def fail(_: Session) -> None:
        raise ValueError("no")

    @activity
    async def order(ctx: ActivityContext) -> None:
        ctx.session.add(OrderRow(order_id="o1", amount=5))
        async with ctx.session.begin_nested():  # its end is no end of the transaction
            pass
        event.listen(ctx.session.sync_session, "before_commit", fail)

    await bench.worker(order)
    await bench.request("order")
    assert (await bench.result()).data["type"] == "builtins:ValueError"
    assert await bench.orders() == []


async def test_an_activity_that_only_publishes_is_recorded_too(bench: Bench) -> None:
    @activity
    async def tell(ctx: ActivityContext) -> None:
        ctx.publish_event(type="a", topic="audit")
        ctx.publish_event(type="b")

    await bench.worker(tell)
    await bench.request("tell")
    await bench.result()
    assert [(each.topic, each.type) for each in bench.seen[:2]] == [("audit", "a"), ("shop.events", "b")]
    assert await bench.recorded("tell:1") is not None
    await bench.no_outbox()


async def test_events_of_a_second_attempt_have_the_ids_of_the_first(bench: Bench) -> None:
    @activity
    async def tell(ctx: ActivityContext) -> None:
        for n in range(3):
            ctx.publish_event(type="told", data=[ctx.attempt, n])
        if ctx.attempt == 1:
            raise ValueError

    await bench.worker(tell)
    await bench.request("tell")
    await bench.results_of(1)
    await bench.request("tell", attempt=2)
    await bench.results_of(2)
    assert [(each.event.id, each.data) for each in bench.events] == [(f"i1/1/tell:1/{n + 1}", [2, n]) for n in range(3)]


async def test_long_ids_of_events_stay_within_the_limit(sqlite_bench: Bench) -> None:
    instance = "i" * 250
    await sqlite_bench.worker(save)
    await sqlite_bench.request("save", "o1", instance=instance)
    await sqlite_bench.result()
    (event,) = sqlite_bench.events
    assert len(event.event.id) == 64
    assert event.event.extensions[w.X_INSTANCE] == instance


async def test_an_event_that_nobody_could_read_is_refused_where_it_is_published(sqlite_bench: Bench) -> None:
    @activity
    async def tell(ctx: ActivityContext) -> list[str]:
        told = []
        for data, type_ in (("x" * 990_000, "large"), (1, "x" * 300), (1, "romancy.mine"), (float("nan"), "nan")):
            try:
                ctx.publish_event(type=type_, data=data)
            except Exception as error:
                told.append(type(error).__name__)
        return told

    await sqlite_bench.worker(tell)
    await sqlite_bench.request("tell")
    refused = ["PayloadTooLargeError", "PayloadTooLargeError", "ValueError", "PayloadError"]
    assert (await sqlite_bench.result()).data == refused
    assert sqlite_bench.events == []


async def test_the_number_of_events_has_a_limit(sqlite_bench: Bench) -> None:
    @activity
    async def tell(ctx: ActivityContext) -> None:
        for _ in range(EVENTS_LIMIT + 1):
            ctx.publish_event(type="a")

    await sqlite_bench.worker(tell)
    await sqlite_bench.request("tell")
    assert "10,000 events" in (await sqlite_bench.result()).data["message"]


async def test_an_event_that_the_broker_refuses_stays_and_the_result_goes(sqlite_bench: Bench) -> None:
    @activity
    async def tell(ctx: ActivityContext) -> None:
        ctx.publish_event(type="a", topic="nowhere")
        ctx.publish_event(type="b")

    worker = await sqlite_bench.worker(tell)
    await sqlite_bench.request("tell")
    assert (await sqlite_bench.result()).type == w.ACTIVITY_COMPLETED
    assert [each.type for each in sqlite_bench.events] == ["b"]

    async def one_left() -> bool:
        return [row.topic for row in await sqlite_bench.outbox()] == ["nowhere"]

    await eventually(one_left)
    assert worker.statistics().refused == 1


async def test_the_end_of_an_attempt_is_one_statement_where_the_database_can(bench: Bench) -> None:
    """Statements are most of what an attempt costs its worker."""
    if bench.store.db.dialect == "sqlite":
        pytest.skip("its own statements are not seen by SQLAlchemy's events")
    statements: list[str] = []

    def saw(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "WITH")):
            statements.append(statement)

    event.listen(bench.store.db.engine.sync_engine, "before_cursor_execute", saw)
    await bench.worker(save)
    await bench.request("save", "o1")
    await bench.result()
    mine, *ours = statements
    assert "shop_orders" in mine
    assert len(ours) == (1 if bench.store.db.dialect == "postgresql" else 2)
    assert await bench.orders() == [("o1", 1)]


# -- again -------------------------------------------------------------------------------------------------------
async def test_the_same_task_again_neither_writes_nor_records_twice(bench: Bench) -> None:
    calls = itertools.count(1)

    @activity
    async def order(ctx: ActivityContext) -> int:
        n = next(calls)
        ctx.session.add(OrderRow(order_id=f"call {n}", amount=n))
        ctx.publish_event(type="saved", data=n)
        return n

    worker = await bench.worker(order)
    await bench.request("order")
    await bench.results_of(1)
    await bench.request("order")
    first, second = await bench.results_of(2)
    assert await bench.orders() == [("call 1", 1)]
    assert (first.data, second.data) == (1, 1)
    assert first.event.id == second.event.id
    assert [each.data for each in bench.events] == [1]
    assert (worker.statistics().completed, worker.statistics().resent) == (1, 1)
    await bench.no_outbox()


async def test_a_later_attempt_finds_the_result_of_an_earlier_one(bench: Bench) -> None:
    """The engine thought that attempt 1 was lost; its transaction had committed."""
    await bench.worker(save)
    await bench.request("save", "o1", attempt=1)
    await bench.results_of(1)
    await bench.request("save", "o1", attempt=2)
    _, again = await bench.results_of(2)
    assert (again.type, again.event.extensions[w.X_ATTEMPT]) == (w.ACTIVITY_COMPLETED, "1")
    assert await bench.orders() == [("o1", 1)]


async def test_two_workers_run_the_same_attempt_at_one_time_and_one_of_them_counts(bench: Bench) -> None:
    barrier, calls = asyncio.Barrier(2), itertools.count(1)

    @activity
    async def order(ctx: ActivityContext) -> int:
        n = next(calls)
        await barrier.wait()
        ctx.session.add(OrderRow(order_id=f"call {n}", amount=n))
        ctx.publish_event(type="saved", data=n)
        return n

    workers = [await bench.worker(order), await bench.worker(order)]
    await eventually(lambda: all(len(worker._queues[0].progress) == 1 for worker in workers))
    await bench.request("order", partition=0)
    await bench.request("order", partition=1)
    first, second = await bench.results_of(2)
    ((order_id, winner),) = await bench.orders()
    assert order_id == f"call {winner}"
    assert {first.data, second.data} == {winner}
    assert {each.data for each in bench.events} == {winner}
    await bench.no_outbox()


async def test_a_result_that_is_recorded_is_sent_again_without_running(bench: Bench) -> None:
    """The worker died between its commit and everything after it: the rows are there, nothing was sent."""
    calls, hanging = itertools.count(1), asyncio.Event()

    @activity
    async def order(ctx: ActivityContext) -> int:
        n = next(calls)
        ctx.session.add(OrderRow(order_id="o1", amount=n))
        ctx.publish_event(type="saved", data=n)
        ctx.on_commit(hang)
        return n

    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    worker = await bench.worker(order)
    await bench.request("order")
    await hanging.wait()
    await bench.stop(worker, drain_s=0)
    assert bench.seen == []
    left = await bench.outbox()
    assert [(row.incarnation, row.topic, row.key) for row in left] == [
        (worker.incarnation, "shop.events", "i1"),
        (worker.incarnation, "shop.results", "i1"),
    ]

    second = await bench.worker(order)
    await eventually(lambda: second.statistics().resent == 1)
    seen = await bench.result()
    assert [each.type for each in bench.seen] == ["saved", w.ACTIVITY_COMPLETED]
    assert (seen.event.id, seen.data, seen.event.extensions[w.X_WORKER]) == ("i1/1/order:1/result", 1, "w1")
    assert next(calls) == 2
    assert await bench.outbox() == left  # they belong to the dead worker: the owner of the partition deletes them


async def test_a_closed_activity_is_dropped_on_arrival(bench: Bench) -> None:
    await bench.request("save", "o1")
    await bench.store.close_activities([ActivityKey("i1", 1, "save:1")], 1)
    worker = await bench.worker(save)
    await eventually(lambda: worker.statistics().closed == 1)
    assert bench.seen == []
    assert await bench.orders() == []


async def test_an_activity_that_is_closed_meanwhile_rolls_back(bench: Bench) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    @activity
    async def order(ctx: ActivityContext) -> None:
        entered.set()
        await go.wait()
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        ctx.publish_event(type="saved")
        ctx.on_commit(lambda: pytest.fail("nothing was committed"))

    worker = await bench.worker(order)
    await bench.request("order")
    await entered.wait()
    await bench.store.close_activities([ActivityKey("i1", 1, "order:1")], 1)
    go.set()
    await eventually(lambda: worker.statistics().closed == 1)
    assert await bench.orders() == []
    assert bench.seen == []
    assert await bench.outbox() == []


async def test_a_second_execution_that_stumbles_over_the_first_ones_rows_finds_its_result(bench: Bench) -> None:
    @activity
    async def order(ctx: ActivityContext) -> str:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        await ctx.session.flush()
        return "saved"

    await bench.worker(order)
    await bench.request("order")
    await bench.request("order", attempt=2)
    results = await bench.results_of(2)
    assert [each.data for each in results] == ["saved", "saved"]


# -- the session ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["commit", "rollback", "close", "begin", "reset", "invalidate"])
async def test_only_the_engine_ends_the_transaction(sqlite_bench: Bench, what: str) -> None:
    @activity
    async def order(ctx: ActivityContext) -> None:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        await ctx.session.flush()
        ended = getattr(ctx.session, what)()
        if what == "begin":
            async with ended:
                pass
        else:
            await ended

    await sqlite_bench.worker(order)
    await sqlite_bench.request("order")
    error = (await sqlite_bench.result()).data
    assert error["type"] == "romancy_stream.errors:ActivityContextError"
    assert f"session.{what}()" in error["message"]
    assert await sqlite_bench.orders() == []


@pytest.mark.parametrize("how", ["connection", "transaction", "rollback"])
async def test_a_commit_behind_the_engines_back_is_noticed(bench: Bench, how: str) -> None:
    @activity
    async def order(ctx: ActivityContext) -> None:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        await ctx.session.flush()
        if how == "connection":
            await (await ctx.session.connection()).commit()
        elif how == "transaction":
            await ctx.session.run_sync(lambda session: session.get_transaction().commit())  # type: ignore[union-attr]
        else:
            await ctx.session.run_sync(lambda session: session.get_transaction().rollback())  # type: ignore[union-attr]
        ctx.session.add(OrderRow(order_id="o2", amount=1))

    await bench.worker(order)
    await bench.request("order")
    error = (await bench.result()).data
    assert error["type"] in ("romancy_stream.errors:ActivityContextError", "sqlalchemy.exc:PendingRollbackError")
    assert await bench.recorded("order:1") is None
    assert "o2" not in dict(await bench.orders())


async def test_savepoints_are_the_users(bench: Bench) -> None:
    await bench.worker(save)
    await bench.request("save", "taken")
    await bench.results_of(1)

    @activity
    async def order(ctx: ActivityContext) -> str:
        ctx.session.add(OrderRow(order_id="outer", amount=1))
        async with ctx.session.begin_nested():
            ctx.session.add(OrderRow(order_id="inner", amount=1))
        try:
            async with ctx.session.begin_nested():
                ctx.session.add(OrderRow(order_id="taken", amount=2))
                await ctx.session.flush()
        except IntegrityError:
            return "was there"
        return "new"

    await bench.worker(order, queues=["other"])
    await bench.request("order", queue="other")
    assert (await bench.results_of(2))[1].data == "was there"
    assert [order_id for order_id, _ in await bench.orders()] == ["inner", "outer", "taken"]


async def test_on_commit_sees_what_is_committed_and_fails_for_itself(bench: Bench) -> None:
    seen: list[Any] = []

    @activity
    async def order(ctx: ActivityContext) -> None:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        ctx.on_commit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        ctx.on_commit(look)
        ctx.on_commit(lambda: seen.append("plain"))

    async def look() -> None:
        seen.append(await bench.orders())

    await bench.worker(order)
    await bench.request("order")
    assert (await bench.result()).type == w.ACTIVITY_COMPLETED
    assert seen == [[("o1", 1)], "plain"]


async def test_a_nested_activity_shares_session_and_fate(bench: Bench) -> None:
    @activity
    async def outer(ctx: ActivityContext, fail: bool) -> list[bool]:
        mine = ctx.session
        await save("nested")
        same = activity_context().session is mine
        await plain("plain")
        if fail:
            raise ValueError
        return [same]

    @activity
    def plain(ctx: ActivityContext, order_id: str) -> None:
        ctx.sync_session.add(OrderRow(order_id=order_id, amount=2))
        ctx.sync_session.flush()

    await bench.worker(outer)
    await bench.request("outer", True)
    await bench.results_of(1)
    assert await bench.orders() == []
    await bench.request("outer", False, attempt=2)
    assert (await bench.results_of(2))[1].data == [True]
    assert await bench.orders() == [("nested", 1), ("plain", 2)]
    assert [each.type for each in bench.events] == ["order.saved"]


async def test_without_a_transaction_there_is_no_session_and_events_follow_success(sqlite_bench: Bench) -> None:
    done = []

    @activity(transactional=False)
    async def call(ctx: ActivityContext, fail: bool) -> str:
        ctx.publish_event(type="called")
        ctx.on_commit(lambda: done.append(True))
        if fail:
            return str(ctx.session)
        return "ok"

    await sqlite_bench.worker(call)
    await sqlite_bench.request("call", True)
    assert "transactional=False" in (await sqlite_bench.results_of(1))[0].data["message"]
    await sqlite_bench.request("call", False, attempt=2)
    await sqlite_bench.results_of(2)
    assert [each.type for each in sqlite_bench.events] == ["called"]
    assert done == [True]
    assert await sqlite_bench.count(tables.activity_results) == 0


# -- a database that says no, or nothing ---------------------------------------------------------------------------
async def test_a_deadlock_may_be_retried_whatever_the_policy_names(bench: Bench) -> None:
    if bench.store.db.dialect == "sqlite":
        pytest.skip("one writer at a time cannot deadlock")
    barrier = asyncio.Barrier(2)
    await bench.worker(save)
    for each in "ab":
        await bench.request("save", each, activity_id=f"save:{each}")
    await bench.results_of(2)

    @activity
    async def cross(ctx: ActivityContext, first: str, second: str) -> str:
        await ctx.session.execute(update(OrderRow).where(OrderRow.order_id == first).values(amount=2))
        await barrier.wait()
        await ctx.session.execute(update(OrderRow).where(OrderRow.order_id == second).values(amount=3))
        return "through"

    await bench.worker(cross, queues=["other"])
    restriction = {w.X_RETRY_ON: "shop:Declined"}
    await bench.request("cross", "a", "b", activity_id="cross:1", queue="other", ext=restriction)
    await bench.request("cross", "b", "a", activity_id="cross:2", queue="other", ext=restriction)
    outcomes = {each.type: each.data for each in (await bench.results_of(4))[2:]}
    assert outcomes[w.ACTIVITY_COMPLETED] == "through"
    assert outcomes[w.ACTIVITY_FAILED]["retryable"] is True


@pytest.mark.postgres
async def test_a_connection_that_breaks_in_the_middle_is_a_failure_that_may_be_retried(bench: Bench) -> None:
    if bench.store.db.dialect != "postgresql":
        pytest.skip("ends its own connection as PostgreSQL does it")

    @activity
    async def order(ctx: ActivityContext) -> None:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        await ctx.session.flush()
        await ctx.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    await bench.worker(order)
    await bench.request("order", ext={w.X_RETRY_ON: "shop:Declined"})
    assert (await bench.result()).data["retryable"] is True
    assert await bench.orders() == []
