"""A connection that breaks during the commit: the worker finds out what happened, and says what is true. And a
database that is away: tasks wait.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from romancy_stream import ActivityContext, activity
from romancy_stream.engine.commit import ActivityKey
from romancy_stream.wire import event as w
from tests.runtime.cutting import Cutter, Moment, cutter
from tests.runtime.worker_kit import Bench, OrderRow, bench_on, embedded
from tests.support import eventually


@pytest.fixture(
    params=[
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
async def cut_bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Bench, Cutter]]:
    url = request.getfixturevalue(f"{request.param}_db")
    async with cutter(url) as (cut, through), bench_on(embedded(tmp_path), through) as bench:
        yield bench, cut


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_the_worker_finds_out_whether_it_committed(cut_bench: tuple[Bench, Cutter], moment: Moment) -> None:
    bench, cut = cut_bench
    done = []

    @activity
    async def order(ctx: ActivityContext) -> str:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        ctx.publish_event(type="saved")
        ctx.on_commit(lambda: done.append(ctx.attempt))
        if ctx.attempt == 1:
            cut.armed = moment
        return "saved"

    await bench.worker(order)
    await bench.request("order", ext={w.X_RETRY_ON: "shop:Declined"})
    seen = await bench.result()
    assert cut.cuts == 1
    if moment == "before":
        assert (seen.type, seen.data["retryable"]) == (w.ACTIVITY_FAILED, True)
        assert (await bench.orders(), bench.events, done) == ([], [], [])
        await bench.request("order", attempt=2)
        seen = (await bench.results_of(2))[1]
    assert (seen.type, seen.data) == (w.ACTIVITY_COMPLETED, "saved")
    assert done == [2 if moment == "before" else 1]
    assert await bench.orders() == [("o1", 1)]
    assert [each.event.id for each in bench.events] == ["i1/1/order:1/1"]
    await bench.no_outbox()


async def test_it_asks_until_the_database_answers(cut_bench: tuple[Bench, Cutter]) -> None:
    bench, cut = cut_bench

    @activity
    async def order(ctx: ActivityContext) -> str:
        ctx.session.add(OrderRow(order_id="o1", amount=1))
        await ctx.session.flush()
        cut.armed, cut.refusing = "after", True
        return "saved"

    worker = await bench.worker(order)
    await bench.request("order")
    await eventually(lambda: cut.turned_away > 1)
    assert bench.results == []
    assert worker.statistics().running == 1
    cut.refusing = False
    seen = await bench.result()
    assert (seen.type, seen.data) == (w.ACTIVITY_COMPLETED, "saved")


async def test_a_worker_that_leaves_does_not_wait_for_the_answer(cut_bench: tuple[Bench, Cutter]) -> None:
    bench, cut = cut_bench
    calls = itertools.count(1)

    @activity
    async def order(ctx: ActivityContext) -> str:
        n = next(calls)
        ctx.session.add(OrderRow(order_id="o1", amount=n))
        await ctx.session.flush()
        if n == 1:
            cut.armed, cut.refusing = "after", True
        return "saved"

    worker = await bench.worker(order)
    await bench.request("order")
    await eventually(lambda: cut.turned_away > 0)
    await bench.stop(worker, drain_s=0)
    assert worker.statistics().cut_off == 1
    cut.refusing = False
    await bench.worker(order)
    assert (await bench.result()).data == "saved"
    assert await bench.orders() == [("o1", 1)]
    assert next(calls) == 2  # it was recorded: it did not run again


async def test_tasks_that_must_be_looked_up_wait_for_the_database(cut_bench: tuple[Bench, Cutter]) -> None:
    bench, cut = cut_bench

    @activity
    async def order(ctx: ActivityContext) -> str:
        return "done"

    await bench.request("order", instance="a", partition=0)
    await bench.request("order", instance="b", partition=1)
    await bench.store.close_activities([ActivityKey("b", 1, "order:1")], 1)
    worker = await bench.worker(order)
    cut.refusing = True
    await bench.store.db.engine.dispose()
    await eventually(lambda: cut.turned_away > 0 or worker.statistics().closed == 1)
    cut.refusing = False
    await eventually(lambda: worker.statistics().closed == 1)
    assert (await bench.result()).event.subject == "a"
