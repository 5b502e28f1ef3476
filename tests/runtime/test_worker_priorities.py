"""Who begins first, and how many at a time: priorities, look-ahead, limits of a queue."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from romancy_stream import ActivityContext, App, RateLimit, activity
from romancy_stream.engine.commit import EagerTask
from romancy_stream.engine.tasks import task_of
from romancy_stream.queues import QueueOptions
from romancy_stream.runtime import worker_queue
from romancy_stream.runtime.worker import ActivityWorker
from romancy_stream.runtime.worker_limits import Window
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.runtime.worker_kit import QUEUE, Bench
from tests.support import eventually


class Line:
    """A worker that does one thing at a time, with the first thing under way."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.go = asyncio.Event()
        self.ran: list[int] = []
        self.worker: ActivityWorker

        @activity
        async def work(n: int) -> int:
            self.ran.append(n)
            if n == 0:
                await self.go.wait()
            return n

        self.work = work

    async def open(self, **options: Any) -> None:
        await self.request(0)
        self.worker = await self.bench.worker(self.work, concurrency=1, **options)
        await eventually(lambda: self.ran == [0])

    async def request(self, n: int, priority: int | None = None, queue: str = QUEUE) -> None:
        ext = {} if priority is None else {w.X_PRIORITY: str(priority)}
        await self.bench.request("work", n, activity_id=f"work:{n}", partition=0, queue=queue, ext=ext)

    async def waiting(self, count: int) -> None:
        await eventually(lambda: self.worker.statistics().waiting == count)

    def low(self, tp_partition: int = 0) -> int:
        return next(p.low for tp, p in self.worker._queues[0].progress.items() if tp.partition == tp_partition)


async def test_urgent_tasks_overtake_those_that_wait(sqlite_bench: Bench) -> None:
    line = Line(sqlite_bench)
    await line.open()
    for n, priority in enumerate((None, 9, 5, 1, 6, 1, 4), start=1):
        await line.request(n, priority)
    await line.waiting(7)
    line.go.set()
    await sqlite_bench.results_of(8)
    assert line.ran == [0, 4, 6, 7, 1, 3, 5, 2]


async def test_offsets_do_not_pass_what_was_overtaken(sqlite_bench: Bench) -> None:
    line = Line(sqlite_bench)
    held = asyncio.Event()

    @activity
    async def hold(n: int) -> int:
        line.ran.append(n)
        await held.wait()
        return n

    await line.request(0)
    line.worker = await sqlite_bench.worker(line.work, hold, concurrency=1)
    await eventually(lambda: line.ran == [0])
    await sqlite_bench.request("hold", 1, partition=0, ext={w.X_PRIORITY: "9"})
    for n in (2, 3):
        await line.request(n, 1)
    await line.waiting(3)
    assert line.low() == 0
    line.go.set()
    await sqlite_bench.results_of(3)
    await eventually(lambda: line.ran == [0, 2, 3, 1])
    assert line.low() == 1
    held.set()
    await sqlite_bench.results_of(4)
    await eventually(lambda: line.low() == 4)


async def test_a_worker_looks_ahead_so_far_and_no_further(sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_queue, "LOOK_AHEAD", 3)
    line = Line(sqlite_bench)
    await line.open()
    for n in range(1, 9):
        await line.request(n, 1 if n == 8 else None)
    await line.waiting(3)
    line.go.set()
    await sqlite_bench.results_of(9)
    assert sorted(line.ran) == list(range(9))
    assert line.ran.index(8) > line.ran.index(1)  # it was not in sight yet


async def test_nor_beyond_what_it_can_hold(sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_queue, "LOOK_AHEAD_BYTES", 1)
    line = Line(sqlite_bench)
    await line.open()
    await line.request(1)
    await line.waiting(1)
    await line.request(2)
    assert line.worker._queues[0].room == 0
    line.go.set()
    await sqlite_bench.results_of(3)


def kept_here(n: int, attempt: int = 1) -> EagerTask:
    ext = {w.X_RUN: "1", w.X_ACTIVITY: "work", w.X_ACTIVITY_ID: f"here:{n}", w.X_ATTEMPT: str(attempt)}
    data = orjson.dumps({"args": [n], "kwargs": {}})
    event = WireEvent(f"e{n}", "/romancy/shop", w.TASK, subject="i1", data=data, extensions=ext)
    return EagerTask(0, QUEUE, task_of(event))


async def test_what_an_engine_here_has_to_do_holds_back_nothing_that_came_by_the_broker(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else gets the tasks of these partitions, and an engine may have more than enough for ever."""
    monkeypatch.setattr(worker_queue, "LOOK_AHEAD", 3)
    line = Line(sqlite_bench)
    await line.open()
    line.worker.eager.run([kept_here(n) for n in range(1, 6)])
    await line.request(7, 1)
    await line.request(8)
    await line.waiting(7)
    line.go.set()
    await sqlite_bench.results_of(8)
    assert line.ran == [0, 7, 1, 2, 3, 4, 5, 8]


async def test_tasks_that_are_looked_up_are_not_forgotten_when_more_could_come(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, answered = Line(sqlite_bench), asyncio.Event()
    heartbeats = sqlite_bench.store.heartbeats

    async def slowly(keys: Any) -> Any:
        await answered.wait()
        return await heartbeats(keys)

    monkeypatch.setattr(sqlite_bench.store, "heartbeats", slowly)
    line.worker = await sqlite_bench.worker(line.work, concurrency=5)
    line.worker.eager.run([kept_here(n, attempt=2) for n in range(1, 4)])
    assert line.worker.free == 2
    answered.set()
    await sqlite_bench.results_of(3)
    assert sorted(line.ran) == [1, 2, 3]
    assert line.worker.free == 5


async def test_what_was_not_begun_goes_to_who_takes_over(sqlite_bench: Bench) -> None:
    line = Line(sqlite_bench)
    await line.open()
    for n in range(1, 6):
        await sqlite_bench.request("work", n, activity_id=f"work:{n}", partition=n % 2)
    await line.waiting(5)
    other = await sqlite_bench.worker(line.work, concurrency=1)
    await eventually(lambda: other.statistics().completed + line.worker.statistics().completed >= 2)
    line.go.set()
    await eventually(lambda: {*range(6)} <= {seen.data for seen in sqlite_bench.results})
    assert sorted(n for n in line.ran if n) == [1, 2, 3, 4, 5]


async def test_a_stop_begins_nothing_more(sqlite_bench: Bench) -> None:
    line = Line(sqlite_bench)
    await line.open()
    await line.request(1)
    await line.waiting(1)
    stopping = asyncio.create_task(sqlite_bench.stop(line.worker, drain_s=30))
    await eventually(lambda: line.worker.statistics().waiting == 0)
    line.go.set()
    await stopping
    assert line.ran == [0]
    await sqlite_bench.worker(line.work)
    await sqlite_bench.results_of(2)
    assert line.ran == [0, 1]


# -- limits of a queue -----------------------------------------------------------------------------------------
async def test_a_queue_has_so_many_attempts_at_a_time_and_others_go_on(sqlite_bench: Bench) -> None:
    inside, most, go = 0, 0, asyncio.Event()

    @activity
    async def work(ctx: ActivityContext, n: int) -> str:
        nonlocal inside, most
        if ctx.info.queue == "other":
            inside += 1
            most = max(most, inside)
            await go.wait()
            inside -= 1
        return ctx.info.queue

    for n in range(6):
        await sqlite_bench.request("work", n, activity_id=f"work:{n}", queue="other")
    worker = await sqlite_bench.worker(work, queues=[QUEUE, "other"], limits={"other": QueueOptions(concurrency=2)})
    await eventually(lambda: inside == 2)
    for n in range(6, 9):
        await sqlite_bench.request("work", n, activity_id=f"work:{n}")
    assert [seen.data for seen in await sqlite_bench.results_of(3)] == [QUEUE] * 3
    await eventually(lambda: worker.statistics().waiting == 4)
    go.set()
    await sqlite_bench.results_of(9)
    assert most == 2


async def test_a_queue_begins_so_many_in_a_time_and_others_go_on(sqlite_bench: Bench) -> None:
    line = Line(sqlite_bench)
    line.go.set()
    limits = {"other": QueueOptions(rate_limit=RateLimit(2, per=3_600))}
    worker = await sqlite_bench.worker(line.work, queues=[QUEUE, "other"], limits=limits)
    for n in range(4):
        await line.request(n, 1, queue="other")
    await eventually(lambda: worker.statistics().waiting == 2)
    for n in range(4, 8):
        await line.request(n)
    assert {seen.data for seen in await sqlite_bench.results_of(6)} == {0, 1, 4, 5, 6, 7}
    assert worker.statistics().waiting == 2


async def test_a_limited_queue_goes_on_when_its_time_has_come(sqlite_bench: Bench) -> None:
    line = Line(sqlite_bench)
    line.go.set()
    limits = {QUEUE: QueueOptions(rate_limit=RateLimit(2, per=0.05))}
    await sqlite_bench.worker(line.work, limits=limits)
    for n in range(7):
        await line.request(n)
    await sqlite_bench.results_of(7)


def test_no_span_has_more_starts_than_the_limit() -> None:
    window, starts, now_s = Window(RateLimit(3, per=1.0)), list[float](), 100.0
    for step in range(200):
        now_s += 0.07 * (step % 5)
        if window.wait_s(now_s) == 0:
            window.start(now_s)
            starts.append(now_s)
        else:
            assert 0 < window.wait_s(now_s) <= 1.0
    assert all(later - earlier >= 1.0 for earlier, later in zip(starts, starts[3:], strict=False))
    assert len(starts) > 60


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: RateLimit(0), "limit must be"),
        (lambda: RateLimit(1, per=0), "per must be"),
        (lambda: QueueOptions(concurrency=0), "concurrency must be"),
        (lambda: App("shop").queue("no spaces"), "queue must be"),
        (lambda: App("shop").queue("emails", concurrency=-1), "concurrency must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()


def test_an_app_declares_its_queues() -> None:
    app = App("shop", queues=["reports"])
    assert app.queue("emails", concurrency=5, rate_limit=RateLimit(10, per=1.0)) == "emails"
    assert app.queues == ("default", "emails", "reports")
    limits = app.node_config().limits
    assert limits["emails"] == QueueOptions(5, RateLimit(10))
    assert limits["reports"] == QueueOptions()
