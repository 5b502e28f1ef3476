"""Heartbeats of attempts, and how an attempt hears that nobody wants it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from romancy_stream import ActivityCancelledError, ActivityContext, activity
from romancy_stream.engine.commit import ActivityKey
from romancy_stream.errors import PayloadTooLargeError, StoreUnavailableError
from romancy_stream.runtime import attempt_heartbeats
from romancy_stream.runtime.worker_watch import Times
from romancy_stream.store.port import Store
from romancy_stream.wire import event as w
from tests.runtime.worker_kit import Bench
from tests.support import eventually

SOON = Times(detach_after_s=60, lease_s=60, check_every_s=0.05)
KEY = ActivityKey("i1", 1, "crunch:1")
NEVER_S = 3_600.0


class Cursor(BaseModel):
    row: int


async def details(bench: Bench, key: ActivityKey = KEY) -> bytes | None:
    found = (await bench.store.heartbeats([key])).get(key)
    return None if found is None else found.details


def stored(bench: Bench, expected: bytes | None) -> Callable[[], Any]:
    async def look() -> bool:
        return await details(bench) == expected

    return look


# -- few, and none that matters is lost ----------------------------------------------------------------------------
async def test_a_retry_finds_the_last_details_of_the_attempt_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_heartbeats, "BEAT_EVERY_S", NEVER_S)

    @activity
    async def crunch(ctx: ActivityContext) -> Any:
        if ctx.attempt == 1:
            assert ctx.heartbeat_details is None
            for row in range(50):
                await ctx.heartbeat(Cursor(row=row))
            raise ConnectionError("on the way")
        found = ctx.heartbeat_details_as(Cursor)
        assert found is not None
        return [ctx.heartbeat_details, found.row]

    await bench.worker(crunch)
    await bench.request("crunch")
    assert (await bench.result()).type == w.ACTIVITY_FAILED
    assert await details(bench) == b'{"row":49}'
    await bench.request("crunch", attempt=2)
    assert (await bench.results_of(2))[1].data == [{"row": 49}, 49]


async def test_a_redelivered_task_finds_them_as_well(sqlite_bench: Bench) -> None:
    bench, entered = sqlite_bench, asyncio.Event()

    @activity
    async def crunch(ctx: ActivityContext) -> Any:
        if ctx.heartbeat_details is None:
            await ctx.heartbeat("half")
            entered.set()
            await asyncio.Event().wait()
        return ctx.heartbeat_details

    first = await bench.worker(crunch)
    await bench.request("crunch")
    await entered.wait()
    await bench.stop(first, drain_s=0)
    await bench.worker(crunch)
    assert (await bench.result()).data == "half"


async def test_many_heartbeats_are_few_writes_and_the_last_of_a_window_is_one(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, go, beats = sqlite_bench, asyncio.Event(), 0
    beat = bench.store.beat

    async def counted(*args: Any) -> bool:
        nonlocal beats
        beats += 1
        return await beat(*args)

    monkeypatch.setattr(bench.store, "beat", counted)

    @activity
    async def crunch(ctx: ActivityContext) -> int:
        for row in range(500):
            await ctx.heartbeat(row)
        await go.wait()
        return beats

    await bench.worker(crunch)
    await bench.request("crunch", ext={w.X_HEARTBEAT: "1.5"})
    await eventually(stored(bench, b"499"))
    go.set()
    assert (await bench.result()).data < 50


async def test_without_details_those_of_before_stay(sqlite_bench: Bench) -> None:
    bench, go = sqlite_bench, asyncio.Event()

    @activity
    async def crunch(ctx: ActivityContext) -> Any:
        await go.wait()
        await ctx.heartbeat()
        return ctx.heartbeat_details

    await bench.store.beat(KEY, 1, b'"of the first"')
    await bench.worker(crunch)
    await bench.request("crunch", attempt=2, ext={w.X_HEARTBEAT: "30"})

    async def begun() -> bool:
        return (await bench.store.heartbeats([KEY]))[KEY].attempt == 2

    await eventually(begun, message="the engine hears that it has begun")
    assert await details(bench) == b'"of the first"'
    go.set()
    assert (await bench.result()).data == "of the first"
    assert await details(bench) == b'"of the first"'


async def test_a_heartbeat_waits_for_the_database_and_the_activity_does_not(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, go, away = sqlite_bench, asyncio.Event(), 3
    beat = bench.store.beat

    async def sometimes(*args: Any) -> bool:
        nonlocal away
        if away:
            away -= 1
            raise StoreUnavailableError("away")
        return await beat(*args)

    monkeypatch.setattr(bench.store, "beat", sometimes)
    monkeypatch.setattr(attempt_heartbeats, "BEAT_EVERY_S", 0.01)

    @activity
    async def crunch(ctx: ActivityContext) -> str:
        await ctx.heartbeat("here")
        await go.wait()
        return "done"

    await bench.worker(crunch)
    await bench.request("crunch")
    await eventually(stored(bench, b'"here"'))
    go.set()
    assert (await bench.result()).data == "done"
    assert away == 0


async def test_details_have_a_limit(sqlite_bench: Bench) -> None:
    @activity
    async def crunch(ctx: ActivityContext) -> str:
        with pytest.raises(PayloadTooLargeError, match="the limit is 100,000"):
            await ctx.heartbeat("x" * 100_000)
        return "told"

    await sqlite_bench.worker(crunch)
    await sqlite_bench.request("crunch")
    assert (await sqlite_bench.result()).data == "told"


async def test_a_plain_function_beats_from_its_thread(sqlite_bench: Bench) -> None:
    go = threading.Event()

    @activity
    def crunch(ctx: ActivityContext) -> str:
        assert not ctx.cancelled
        for row in range(1_000):
            ctx.heartbeat({"row": row})
        assert go.wait(20)
        if ctx.attempt == 1:
            ctx.heartbeat({"row": "the last"})
            raise ConnectionError("on the way")
        return str(ctx.heartbeat_details)

    await sqlite_bench.worker(crunch)
    await sqlite_bench.request("crunch", ext={w.X_HEARTBEAT: "0.3"})
    await eventually(stored(sqlite_bench, b'{"row":999}'))
    go.set()
    assert (await sqlite_bench.result()).type == w.ACTIVITY_FAILED
    assert await details(sqlite_bench) == b'{"row":"the last"}'
    await sqlite_bench.request("crunch", attempt=2)
    assert (await sqlite_bench.results_of(2))[1].data == "{'row': 'the last'}"


# -- given up by the engine ------------------------------------------------------------------------------------
async def close(store: Store) -> None:
    await store.close_activities([KEY], 1)


async def test_a_heartbeat_brings_back_that_the_activity_was_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_heartbeats, "BEAT_EVERY_S", 0.01)
    entered, cleaned = asyncio.Event(), []

    @activity
    async def crunch(ctx: ActivityContext) -> None:
        try:
            while True:
                await ctx.heartbeat()
                entered.set()
        except asyncio.CancelledError:
            cleaned.append(ctx.cancelled)
            raise

    worker = await bench.worker(crunch)
    await bench.request("crunch")
    await entered.wait()
    await close(bench.store)
    await eventually(lambda: worker.statistics().closed == 1)
    assert cleaned == [True]
    assert bench.results == []
    await bench.request("crunch", activity_id="crunch:2", attempt=2, data=b"null")
    assert (await bench.result()).event.extensions[w.X_ACTIVITY_ID] == "crunch:2"  # the first task was done with


async def test_who_does_not_beat_hears_of_it_as_well(bench: Bench) -> None:
    entered = asyncio.Event()

    @activity
    async def crunch() -> None:
        entered.set()
        await asyncio.Event().wait()

    worker = await bench.worker(crunch, times=SOON)
    await bench.request("crunch")
    await entered.wait()
    await close(bench.store)
    await eventually(lambda: worker.statistics().closed == 1)
    assert bench.results == []


async def test_who_takes_no_notice_of_it_is_not_reported(sqlite_bench: Bench) -> None:
    entered = asyncio.Event()

    @activity
    async def crunch() -> str:
        try:
            entered.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "all the same"

    worker = await sqlite_bench.worker(crunch, times=SOON)
    await sqlite_bench.request("crunch")
    await entered.wait()
    await close(sqlite_bench.store)
    await eventually(lambda: worker.statistics().closed == 1)
    assert sqlite_bench.results == []


async def test_a_plain_function_is_told_when_it_beats(sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_heartbeats, "BEAT_EVERY_S", 0.01)
    entered, seen = threading.Event(), []

    @activity
    def crunch(ctx: ActivityContext) -> None:
        try:
            while True:
                ctx.heartbeat()
                entered.set()
                threading.Event().wait(0.005)
        except ActivityCancelledError as error:
            seen.append((ctx.cancelled, str(error)))
            raise

    worker = await sqlite_bench.worker(crunch)
    await sqlite_bench.request("crunch")
    await eventually(entered.is_set)
    await close(sqlite_bench.store)
    await eventually(lambda: worker.statistics().closed == 1)
    assert seen == [(True, "the activity was cancelled (i1/1/crunch:1, attempt 1 of 'crunch')")]
    assert sqlite_bench.results == []


async def test_a_plain_function_may_look(sqlite_bench: Bench) -> None:
    entered = threading.Event()

    @activity
    def crunch(ctx: ActivityContext) -> str:
        entered.set()
        while not ctx.cancelled:
            threading.Event().wait(0.005)
        return "stopped by itself"

    worker = await sqlite_bench.worker(crunch, times=SOON)
    await sqlite_bench.request("crunch")
    await eventually(entered.is_set)
    await close(sqlite_bench.store)
    await eventually(lambda: worker.statistics().closed == 1)
    assert sqlite_bench.results == []


async def test_a_thread_that_was_given_up_hears_of_it_too(sqlite_bench: Bench) -> None:
    told: list[bool] = []

    @activity
    def crunch(ctx: ActivityContext) -> None:
        while not ctx.cancelled:
            threading.Event().wait(0.005)
        with pytest.raises(ActivityCancelledError, match="is over"):
            ctx.heartbeat()
        told.append(True)

    worker = await sqlite_bench.worker(crunch)
    await sqlite_bench.request("crunch", ext={w.X_TIMEOUT: "0.05"})
    assert (await sqlite_bench.result()).type == w.ACTIVITY_FAILED
    await eventually(lambda: told)
    await eventually(lambda: worker.statistics().abandoned_threads == 0)


async def test_an_attempt_that_another_one_has_followed_is_cancelled(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_heartbeats, "BEAT_EVERY_S", 0.01)
    entered = asyncio.Event()

    @activity
    async def crunch(ctx: ActivityContext) -> int:
        if ctx.attempt == 2:
            await ctx.heartbeat()
            return 2
        while True:
            await ctx.heartbeat()
            entered.set()

    worker = await sqlite_bench.worker(crunch)
    await sqlite_bench.request("crunch")
    await entered.wait()
    await sqlite_bench.request("crunch", attempt=2, ext={w.X_HEARTBEAT: "30"})
    assert (await sqlite_bench.result()).data == 2
    await eventually(lambda: worker.statistics().closed == 1)


@pytest.mark.parametrize("ext", [{w.X_HEARTBEAT: "soon"}, {w.X_HEARTBEAT: "0"}, {w.X_PRIORITY: "0"}], ids=str)
async def test_a_task_with_attributes_that_mean_nothing_is_kept(sqlite_bench: Bench, ext: dict[str, str]) -> None:
    @activity
    async def crunch() -> None: ...

    worker = await sqlite_bench.worker(crunch)
    await sqlite_bench.request("crunch", ext=ext)
    await eventually(lambda: worker.statistics().malformed == 1)
