"""The worker as the engine sees it: tasks in, results out, offsets committed, nothing lost and nothing stuck."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from romancy_stream import ActivityContext, TerminalError, activity
from romancy_stream.engine.tasks import Task
from romancy_stream.errors import (
    ActivityContextError,
    BrokerUnavailableError,
    ConfigurationError,
    StoreUnavailableError,
)
from romancy_stream.runtime import worker as worker_module
from romancy_stream.runtime.worker import ActivityWorker
from romancy_stream.runtime.worker_messages import Message, read_task
from romancy_stream.runtime.worker_sending import Sender
from romancy_stream.runtime.worker_watch import Times
from romancy_stream.store import tables
from romancy_stream.wire import event as w
from romancy_stream.wire.record import OutRecord, Record
from tests.runtime.worker_kit import NAMESPACE, QUEUE, Bench, embedded
from tests.support import eventually


@activity
async def double(n: int) -> int:
    return 2 * n


@activity
async def fail(how: str) -> None:
    raise {
        "value": ValueError("no such thing"),
        "terminal": TerminalError("never"),
        "cancelled": asyncio.CancelledError("of my own"),
        "exit": SystemExit(3),
    }[how]


# -- results ---------------------------------------------------------------------------------------------------
async def test_a_plain_result_goes_to_results_and_costs_no_transaction(sqlite_bench: Bench) -> None:
    bench = sqlite_bench
    worker = await bench.worker(double)
    await bench.request("double", 21, ext={w.X_TRACEPARENT: "00-1-2-01"})
    seen = await bench.result()
    assert (seen.type, seen.data, seen.event.subject) == (w.ACTIVITY_COMPLETED, 42, "i1")
    extensions = dict(seen.event.extensions)
    assert int(extensions.pop(w.X_DURATION)) > 0
    assert extensions == {
        w.X_PARTITION_KEY: "i1",
        w.X_RUN: "1",
        w.X_ACTIVITY: "double",
        w.X_ACTIVITY_ID: "double:1",
        w.X_ATTEMPT: "1",
        w.X_IDEMPOTENCY_KEY: "i1/1/double:1",
        w.X_CORRELATION: "i1/1/double:1/1",
        w.X_WORKER: "w1",
        w.X_TRACEPARENT: "00-1-2-01",
    }
    assert await bench.count(tables.activity_results) == 0
    assert worker.statistics().completed == 1


async def test_a_task_without_data_has_no_arguments(sqlite_bench: Bench) -> None:
    @activity
    def nothing() -> None: ...

    await sqlite_bench.worker(nothing)
    await sqlite_bench.request("nothing", data=b"null")
    assert (await sqlite_bench.result()).type == w.ACTIVITY_FAILED  # null is no object of arguments
    headers = [(name, value) for name, value in await _headers("nothing")]
    await sqlite_bench.send(OutRecord(f"{NAMESPACE}.tasks.{QUEUE}", b"i1", None, headers))
    completed = (await sqlite_bench.results_of(2))[1]
    assert (completed.type, completed.data) == (w.ACTIVITY_COMPLETED, None)


async def _headers(name: str) -> list[tuple[str, bytes]]:
    texts = {
        "specversion": "1.0",
        "id": "a-task",
        "source": "/elsewhere",
        "type": w.TASK,
        "subject": "i1",
        w.X_RUN: "1",
        w.X_ACTIVITY: name,
        w.X_ACTIVITY_ID: "n:1",
        w.X_ATTEMPT: "1",
    }
    return [(f"ce_{each}", text.encode()) for each, text in texts.items()]


@pytest.mark.parametrize(
    ("how", "restrictions", "error_type", "retryable"),
    [
        ("value", {}, "builtins:ValueError", True),
        ("terminal", {}, "romancy_stream.errors:TerminalError", False),
        ("cancelled", {}, "romancy_stream.errors:ActivityError", True),
        ("exit", {}, "romancy_stream.errors:ActivityError", True),
        ("value", {w.X_RETRY_ON: "builtins:OSError,builtins:KeyError"}, "builtins:ValueError", False),
        ("value", {w.X_RETRY_ON: "builtins:OSError,builtins:ValueError"}, "builtins:ValueError", True),
        ("value", {w.X_NO_RETRY_ON: "shop:Declined,builtins:ValueError"}, "builtins:ValueError", False),
    ],
)
async def test_a_failure_says_whether_it_may_be_retried(
    sqlite_bench: Bench, how: str, restrictions: dict[str, str], error_type: str, retryable: bool
) -> None:
    await sqlite_bench.worker(fail)
    await sqlite_bench.request("fail", how, attempt=3, ext=restrictions)
    seen = await sqlite_bench.result()
    assert seen.type == w.ACTIVITY_FAILED
    assert seen.event.extensions[w.X_ATTEMPT] == "3"
    assert (seen.data["type"], seen.data["retryable"]) == (error_type, retryable)


async def test_another_version_of_the_worker_may_know_an_unknown_activity(sqlite_bench: Bench) -> None:
    worker = await sqlite_bench.worker(double)
    await sqlite_bench.request("triple", 1, ext={w.X_RETRY_ON: "shop:Declined"})
    seen = await sqlite_bench.result()
    assert seen.data["retryable"] is True
    assert "worker w1 serves the queue 'default' but has no activity 'triple'" in seen.data["message"]
    assert worker.statistics().unknown == 1


async def test_arguments_that_do_not_fit_are_not_retried(sqlite_bench: Bench) -> None:
    await sqlite_bench.worker(double)
    await sqlite_bench.request("double", "many")
    seen = await sqlite_bench.result()
    assert (seen.data["type"], seen.data["retryable"]) == ("romancy_stream.errors:InvalidInputError", False)


@pytest.mark.parametrize("size", [984_000, 1_100_000])
async def test_a_result_that_the_engine_could_not_read_is_a_failure(sqlite_bench: Bench, size: int) -> None:
    @activity
    async def large() -> str:
        return "x" * size

    await sqlite_bench.worker(large)
    await sqlite_bench.request("large")
    seen = await sqlite_bench.result()
    assert (seen.data["type"], seen.data["retryable"]) == ("romancy_stream.errors:PayloadTooLargeError", False)


async def test_what_is_no_task_is_kept_and_stops_nobody(sqlite_bench: Bench) -> None:
    bench = sqlite_bench
    worker = await bench.worker(double)
    topic = bench.topics.tasks(QUEUE)
    await bench.send(OutRecord(topic, b"i1", b"\xff", []))
    await bench.request("double", 1, ext={w.X_RETRY_ON: "no class"})
    await bench.request("double", 1, ext={w.X_TIMEOUT: "soon"})
    await bench.request("double", 1, ext={w.X_RUN: "x"})
    await bench.request("double", 1)
    await bench.result()
    await eventually(lambda: len(bench.dead) == 4)
    letters = [orjson.loads(each.value or b"{}") for each in bench.dead]
    assert [each["reason"] for each in letters] == ["not_a_cloudevent"] + ["bad_attribute"] * 3
    assert base64.b64decode(letters[0]["value_base64"]) == b"\xff"
    assert worker.statistics().malformed == 4


async def test_a_context_is_of_no_use_after_the_attempt(sqlite_bench: Bench) -> None:
    kept = []

    @activity
    async def leak(ctx: ActivityContext) -> None:
        kept.append(ctx)

    await sqlite_bench.worker(leak)
    await sqlite_bench.request("leak")
    await sqlite_bench.result()
    for use in (lambda: kept[0].session, lambda: kept[0].publish_event(type="t"), lambda: kept[0].on_commit(print)):
        with pytest.raises(ActivityContextError, match="has ended"):
            use()


# -- side by side ----------------------------------------------------------------------------------------------
async def test_concurrency_has_its_limit_and_uses_it(sqlite_bench: Bench) -> None:
    inside, most, barrier = 0, 0, asyncio.Barrier(3)

    @activity
    async def together() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await barrier.wait()
        inside -= 1

    for n in range(9):
        await sqlite_bench.request("together", instance=f"i{n}")
    await sqlite_bench.worker(together, concurrency=3)
    await sqlite_bench.results_of(9)
    assert most == 3


async def test_results_on_their_way_take_no_slots_up_to_a_limit(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker takes everything and acknowledges nothing for a while."""
    monkeypatch.setattr(worker_module, "UNREPORTED_LIMIT", 3)
    send, go, ran = sqlite_bench.broker.send, asyncio.Event(), 0

    async def later(future: asyncio.Future[int]) -> int:
        await go.wait()
        return await future

    async def unanswered(records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        return [asyncio.ensure_future(later(future)) for future in await send(records)]

    @activity
    async def count() -> None:
        nonlocal ran
        ran += 1

    for n in range(9):
        await sqlite_bench.request("count", instance=f"i{n}")
    monkeypatch.setattr(sqlite_bench.broker, "send", unanswered)
    await sqlite_bench.worker(count, concurrency=2)
    await eventually(lambda: ran >= 3)
    for _ in range(100):
        await asyncio.sleep(0)  # whatever it could start, it has started
    assert ran <= 4  # the last two slots were free when there was room for one more
    go.set()
    await sqlite_bench.results_of(9)
    assert ran == 9


async def test_tasks_go_on_when_the_broker_is_back_whatever_else_runs(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that runs for hours is not what the others wait for."""
    send, away, ran, hanging = sqlite_bench.broker.send, True, 0, asyncio.Event()

    async def unavailable(records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        if away:
            raise BrokerUnavailableError("away")
        return await send(records)

    @activity
    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    @activity
    async def count() -> None:
        nonlocal ran
        await hanging.wait()
        ran += 1

    await sqlite_bench.request("hang", instance="hangs")
    for n in range(60):
        await sqlite_bench.request("count", instance=f"i{n}")
    monkeypatch.setattr(sqlite_bench.broker, "send", unavailable)
    worker = await sqlite_bench.worker(hang, count, concurrency=3)
    await eventually(lambda: worker.statistics().unsent and worker.statistics().waiting > 0)
    before = ran
    away = False
    await sqlite_bench.results_of(60)
    assert before < ran == 60


async def test_the_same_task_again_joins_the_one_under_way(sqlite_bench: Bench) -> None:
    calls, go = itertools.count(1), asyncio.Event()

    @activity
    async def slow() -> int:
        n = next(calls)
        await go.wait()
        return n

    worker = await sqlite_bench.worker(slow)
    await sqlite_bench.request("slow")
    await sqlite_bench.request("slow")
    await eventually(lambda: worker.statistics().doubled == 1)
    go.set()
    assert (await sqlite_bench.result()).data == 1
    await sqlite_bench.stop(worker)
    await sqlite_bench.worker(slow)
    await sqlite_bench.request("slow", activity_id="slow:2")
    await sqlite_bench.results_of(2)  # both offsets were committed: neither comes again


async def test_queues_are_served_that_were_asked_for(sqlite_bench: Bench) -> None:
    other = await sqlite_bench.worker(double, queues=["other"])
    await sqlite_bench.request("double", 1, instance="a")
    await sqlite_bench.request("double", 2, instance="b", queue="other")
    assert (await sqlite_bench.result()).data == 4
    assert other.statistics().completed == 1
    await sqlite_bench.worker(double, queues=[QUEUE, "other"])
    await sqlite_bench.results_of(2)


async def test_settings_that_make_no_sense_are_refused(sqlite_bench: Bench) -> None:
    wrong: list[dict[str, Any]] = [{"concurrency": 0}, {"threads": 0}, {"queues": []}]
    for options in wrong:
        with pytest.raises(ConfigurationError, match=f"{next(iter(options))} of at least 1"):
            await sqlite_bench.worker(double, **options)


# -- offsets and leaving ---------------------------------------------------------------------------------------
async def test_what_is_done_is_not_done_again_by_the_next_worker(sqlite_bench: Bench) -> None:
    worker = await sqlite_bench.worker(double)
    for n in range(20):
        await sqlite_bench.request("double", n, instance=f"i{n}")
    await sqlite_bench.results_of(20)
    await sqlite_bench.stop(worker)
    second = await sqlite_bench.worker(double)
    for n in range(2):  # one for each partition, so that both are known to have been read
        await sqlite_bench.request("double", 100, instance=f"last{n}", partition=n)
    await sqlite_bench.results_of(22)
    assert second.statistics().completed == 2


async def test_offsets_are_committed_while_the_worker_runs_as_far_as_all_is_done(sqlite_bench: Bench) -> None:
    go = asyncio.Event()

    @activity
    async def slow(n: int) -> int:
        if n == 2:
            await go.wait()
        return n

    # On a machine that stands still for half a minute it would be a long one, which the others do not wait for.
    worker = await sqlite_bench.worker(slow, times=Times(detach_after_s=600, lease_s=600, check_every_s=600))
    for n in range(5):
        await sqlite_bench.request("slow", n, activity_id=f"slow:{n}", partition=0)
    await sqlite_bench.results_of(4)
    progress = worker._queues[0].progress
    (tp,) = [tp for tp in progress if tp.partition == 0]
    await eventually(lambda: progress[tp].committed == 2)
    assert (progress[tp].low, progress[tp].open) == (2, 1)
    go.set()
    await eventually(lambda: progress[tp].committed == 5)


async def test_work_under_way_is_redelivered_after_a_stop_without_time(sqlite_bench: Bench) -> None:
    attempts, cleaned = itertools.count(1), []

    @activity
    async def slow() -> str:
        if next(attempts) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append(True)
        return "done"

    worker = await sqlite_bench.worker(slow)
    await sqlite_bench.request("slow")
    await eventually(lambda: worker.statistics().running == 1)
    await sqlite_bench.stop(worker, drain_s=0)
    assert worker.statistics().cut_off == 1
    assert cleaned == [True]
    await sqlite_bench.worker(slow)
    seen = await sqlite_bench.result()
    assert (seen.data, seen.event.extensions[w.X_WORKER], seen.event.extensions[w.X_ATTEMPT]) == ("done", "w1", "1")


async def test_a_stop_gives_work_under_way_its_time(sqlite_bench: Bench) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    @activity
    async def slow() -> str:
        entered.set()
        await go.wait()
        return "done"

    worker = await sqlite_bench.worker(slow)
    await sqlite_bench.request("slow")
    await entered.wait()
    stopping = asyncio.create_task(sqlite_bench.stop(worker, drain_s=30))
    await eventually(lambda: not worker._consumers)
    go.set()
    await stopping
    assert (await sqlite_bench.result()).data == "done"
    assert worker.statistics().cut_off == 0


async def test_a_second_worker_takes_partitions_while_attempts_are_under_way(bench: Bench) -> None:
    """What is under way stays where it is, and comes again nowhere."""
    go, runs = asyncio.Event(), []

    @activity
    async def slow(n: int) -> int:
        runs.append(n)
        await go.wait()
        return n

    first = await bench.worker(slow)
    for n in range(2):
        await bench.request("slow", n, instance=f"i{n}", partition=n)
    await eventually(lambda: len(runs) == 2)
    second = await bench.worker(slow)
    await eventually(lambda: len(first._queues[0].progress) == len(second._queues[0].progress) == 1)
    for n in range(2, 4):
        await bench.request("slow", n, instance=f"i{n}", partition=n % 2)
    await eventually(lambda: len(runs) == 4, message="what is new goes on")
    go.set()
    results = await bench.results_of(4)
    assert len({each.event.id for each in results}) == 4
    assert sorted(runs) == [0, 1, 2, 3]
    assert (first.statistics().completed, second.statistics().completed) == (3, 1)


async def test_a_second_worker_begins_what_nobody_could_write_down(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least once: while the database is away, an attempt may run twice, and one of its results counts."""
    go, runs = asyncio.Event(), []

    @activity
    async def slow() -> int:
        runs.append(1)
        await go.wait()
        return len(runs)

    async def away(*_: Any) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(sqlite_bench.store, "detach", away)
    first = await sqlite_bench.worker(slow)
    await sqlite_bench.request("slow", partition=1)
    await eventually(lambda: first.statistics().running == 1)
    second = await sqlite_bench.worker(slow)
    await eventually(lambda: len(runs) == 2)
    assert second.statistics().elsewhere == 0
    go.set()
    await sqlite_bench.results_of(2)


async def test_a_failure_of_the_worker_itself_comes_out_of_run(sqlite_bench: Bench) -> None:
    worker = await sqlite_bench.worker(double)
    running = asyncio.create_task(worker.run())
    await sqlite_bench.store.close()
    await sqlite_bench.request("double", 1)
    with pytest.raises(RuntimeError, match="the database is not open"):
        await running
    await sqlite_bench.store.open()


async def test_run_ends_with_the_worker(sqlite_bench: Bench) -> None:
    worker = await sqlite_bench.worker(double)
    running = asyncio.create_task(worker.run())
    await sqlite_bench.stop(worker)
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_start_without_a_broker_raises_and_leaves_nothing(sqlite_bench: Bench, tmp_path: Path) -> None:
    closed = embedded(tmp_path / "closed")
    with pytest.raises(BrokerUnavailableError):
        await sqlite_bench.worker(double, broker=closed)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("romancy-worker")]


# -- sending ---------------------------------------------------------------------------------------------------
async def test_results_wait_for_a_broker_that_is_away_and_tasks_with_them(sqlite_bench: Bench, tmp_path: Path) -> None:
    away = embedded(tmp_path)  # the same log, and not open yet
    sender = Sender(away, sqlite_bench.store)
    messages = [
        Message(sqlite_bench.topics.dead_letters, "k", (("ce_specversion", "1.0"),), b"%d" % n, 0) for n in range(3)
    ]
    delivering = asyncio.create_task(sender.deliver(messages))
    await eventually(lambda: not sender.ready.is_set())
    await away.open()
    try:
        assert await delivering == [None, None, None]
        assert sender.ready.is_set()
        await eventually(lambda: [each.value for each in sqlite_bench.dead] == [b"0", b"1", b"2"])
    finally:
        await away.close()


@pytest.mark.parametrize("local", [False, True], ids=["from the broker", "of an engine here"])
async def test_a_result_that_the_broker_refuses_becomes_a_failure(sqlite_bench: Bench, local: bool) -> None:
    @activity
    async def large() -> str:
        return "x" * 5_000

    small = {"max.message.bytes": "4000"}
    await _topic(sqlite_bench, small)
    worker = ActivityWorker(
        sqlite_bench.broker,
        sqlite_bench.store,
        {"large": large},
        namespace="tight",
        queues=[QUEUE],
        partitions=1,
        worker_id="w",
    )
    await worker.start()
    sqlite_bench.workers.append(worker)
    seen = []

    async def on_records(records) -> None:  # type: ignore[no-untyped-def]
        seen.extend(records)

    tail = sqlite_bench.broker.tail(["tight.results"], on_records)
    await tail.start()
    request = OutRecord(f"tight.tasks.{QUEUE}", b"i1", b'{"args":[],"kwargs":{}}', await _headers("large"))
    if local:  # that engine has lost the partition, or its database refuses the result
        task = read_task(Record(request.topic, 0, 0, request.key, request.value, request.headers, 0))
        assert isinstance(task, Task)
        worker.send_reports([worker._messages.completed(task, b'"%s"' % (b"x" * 5_000), 0, 0)])
    else:
        await sqlite_bench.send(request)
    await eventually(lambda: seen)
    await tail.stop()
    error = orjson.loads(seen[0].value)
    assert (error["type"], error["retryable"]) == ("romancy_stream.errors:PayloadTooLargeError", False)
    assert worker.statistics().refused == 1


async def _topic(bench: Bench, config: dict[str, str]) -> None:
    from romancy_stream.broker.port import TopicSpec

    specs = [TopicSpec("tight.results", 1, config), TopicSpec(f"tight.tasks.{QUEUE}", 1), TopicSpec("tight.events", 1)]
    await bench.broker.create_topics(specs)
