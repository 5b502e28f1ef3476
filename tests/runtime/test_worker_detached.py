"""Attempts that run longer than a worker holds their place in the queue: its lease stands for them."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import select

from romancy_stream import activity
from romancy_stream.engine.commit import ActivityKey
from romancy_stream.runtime.worker import ActivityWorker
from romancy_stream.runtime.worker_watch import Times
from romancy_stream.store import tables
from romancy_stream.store.port import Detached
from romancy_stream.wire import event as w
from tests.runtime.worker_kit import PARTITIONS, Bench
from tests.support import eventually

SOON = Times(detach_after_s=0.05, lease_s=60, check_every_s=60)
SHORT_LEASE = Times(detach_after_s=0.05, lease_s=0.6, check_every_s=60)
PARTS = range(PARTITIONS)


def scene() -> tuple[asyncio.Event, list[int]]:
    return asyncio.Event(), []


def key(n: int) -> ActivityKey:
    return ActivityKey("i1", 1, f"work:{n}")


def working(go: asyncio.Event, ran: list[int]) -> Any:
    @activity
    async def work(n: int) -> int:
        ran.append(n)
        if n == 0:
            await go.wait()
        return n

    return work


async def requested(bench: Bench, *numbers: int, **options: Any) -> None:
    for n in numbers:
        await bench.request("work", n, activity_id=f"work:{n}", partition=0, **options)


async def detached(bench: Bench) -> list[Detached]:
    return list((await bench.store.detached([key(n) for n in range(9)])).values())


def low(worker: ActivityWorker) -> int:
    return next(each.committed for tp, each in worker._queues[0].progress.items() if tp.partition == 0)


async def test_the_worker_commits_past_a_long_attempt(bench: Bench) -> None:
    go, ran = scene()
    worker = await bench.worker(working(go, ran), times=SOON)
    await requested(bench, 0, 1, 2)
    await eventually(lambda: low(worker) == 3, message="committed, though the first is under way")
    assert worker.statistics().detached == 1
    (row,) = await detached(bench)
    assert row == Detached(key(0), 1, worker._messages.part_of("i1"), worker.incarnation)
    assert await bench.store.lapsed(PARTS, 10) == []
    go.set()
    assert sorted(seen.data for seen in await bench.results_of(3)) == [0, 1, 2]

    async def attached() -> bool:
        return not await detached(bench)

    await eventually(attached)
    await bench.stop(worker)
    await bench.worker(working(go, ran))
    await requested(bench, 3)
    await bench.results_of(4)
    assert sorted(ran) == [0, 1, 2, 3]


async def test_short_attempts_leave_no_trace(sqlite_bench: Bench) -> None:
    go, ran = scene()
    await sqlite_bench.worker(working(go, ran), times=Times(detach_after_s=30, lease_s=0.3, check_every_s=30))
    await requested(sqlite_bench, 1, 2)
    await sqlite_bench.results_of(2)
    assert await sqlite_bench.count(tables.detached) == await sqlite_bench.count(tables.leases) == 0


async def test_the_lease_is_renewed_while_it_runs(bench: Bench) -> None:
    go, ran = scene()
    worker = await bench.worker(working(go, ran), times=SHORT_LEASE)

    async def expires_us() -> int:
        async with bench.store.db.reading("leases") as connection:
            found = select(tables.leases.c.expires_us).where(tables.leases.c.incarnation == worker.incarnation)
            return int((await connection.execute(found)).scalar() or 0)

    await requested(bench, 0)
    first = await eventually(expires_us)

    async def outlived() -> bool:
        return await bench.store.now_us() > first

    await eventually(outlived)
    await eventually(lambda: worker.statistics().detached == 1)

    async def renewed() -> bool:
        return await expires_us() > first

    await eventually(renewed)
    assert worker.statistics().closed == 0
    go.set()
    assert (await bench.result()).data == 0


async def test_the_task_again_joins_a_long_attempt_and_is_done_with(sqlite_bench: Bench) -> None:
    bench, (go, ran) = sqlite_bench, scene()
    worker = await bench.worker(working(go, ran), times=SOON)
    await requested(bench, 0)
    await eventually(lambda: worker.statistics().detached == 1)
    await requested(bench, 0)
    await eventually(lambda: worker.statistics().doubled == 1)
    await eventually(lambda: low(worker) == 2)
    go.set()
    assert (await bench.result()).data == 0
    assert ran == [0]


async def test_a_long_attempt_of_another_worker_is_not_begun_again(bench: Bench) -> None:
    """Its task comes again, as the other one's offset was not committed. Whether that one lives is not ours to say."""
    go, ran = scene()
    go.set()
    await bench.store.detach([Detached(key(0), 1, 0, "another"), Detached(key(1), 2, 0, "another")], -1)
    await requested(bench, 0, 1, 2)
    await requested(bench, 3, attempt=2)
    worker = await bench.worker(working(go, ran))
    await bench.results_of(2)
    assert worker.statistics().elsewhere == 2
    await eventually(lambda: low(worker) == 4)
    await bench.stop(worker)
    await requested(bench, 0, ext={w.X_LAPSED: "another"})
    await bench.worker(working(go, ran))
    await bench.results_of(3)
    assert sorted(ran) == [0, 2, 3]


async def test_a_change_of_members_does_not_begin_it_again(sqlite_bench: Bench) -> None:
    bench, (go, ran) = sqlite_bench, scene()
    work = working(go, ran)
    first = await bench.worker(work, times=SOON)
    await requested(bench, 0)
    await eventually(lambda: first.statistics().detached == 1)
    others = [await bench.worker(work, times=SOON) for _ in range(2)]
    for n in range(1, 5):
        await bench.request("work", n, activity_id=f"work:{n}", partition=n % PARTITIONS)
    await bench.results_of(4)
    await bench.stop(others[0])
    await requested(bench, 5)
    await bench.results_of(5)
    go.set()
    assert 0 in [seen.data for seen in await bench.results_of(6)]
    assert sorted(ran) == [0, 1, 2, 3, 4, 5]


async def test_a_worker_that_leaves_says_so(bench: Bench) -> None:
    go, ran = scene()
    worker = await bench.worker(working(go, ran), times=SOON)
    await requested(bench, 0)
    await eventually(lambda: low(worker) == 1)
    await bench.stop(worker, drain_s=0)
    assert await bench.store.lapsed(PARTS, 10) == await detached(bench)
    assert len(await detached(bench)) == 1


async def test_a_worker_that_wakes_up_late_lets_the_other_one_do_it(bench: Bench) -> None:
    go, ran = scene()
    worker = await bench.worker(working(go, ran), times=SHORT_LEASE)
    await requested(bench, 0)
    await eventually(lambda: worker.statistics().detached == 1)
    successor = Detached(key(0), 1, 0, "the-next")
    await bench.store.detach([successor], 60)
    await eventually(lambda: worker.statistics().closed == 1)
    assert bench.results == []

    async def untouched() -> bool:
        return await detached(bench) == [successor]

    await eventually(untouched)


async def test_what_was_dispatched_again_is_cancelled_where_it_ran_before(sqlite_bench: Bench) -> None:
    bench, (go, ran) = sqlite_bench, scene()
    worker = await bench.worker(working(go, ran), times=SHORT_LEASE)
    await requested(bench, 0)
    await eventually(lambda: worker.statistics().detached == 1)
    await bench.store.attach(await detached(bench))  # by the engine, which took it for dead
    await eventually(lambda: worker.statistics().closed == 1)
    assert bench.results == []
