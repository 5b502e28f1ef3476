"""Results on their way to the broker: in batches, and each answered for by itself."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from romancy_stream import activity
from romancy_stream.broker.port import Broker
from romancy_stream.errors import BrokerUnavailableError
from romancy_stream.runtime import worker as worker_module
from romancy_stream.runtime.worker import ActivityWorker
from romancy_stream.runtime.worker_messages import Message
from romancy_stream.runtime.worker_sending import Sender
from romancy_stream.store.port import Store
from romancy_stream.wire.record import OutRecord
from tests.runtime.worker_kit import Bench
from tests.support import eventually, without_collector


@activity
async def double(n: int) -> int:
    return 2 * n


class Letters:
    """In place of `broker.send`: takes everything, and answers as it is told. `sent`: their keys, in batches."""

    def __init__(self, bench: Bench) -> None:
        self.sent: list[list[str]] = []
        self.answers: dict[str, asyncio.Future[int]] = {}
        self._send = bench.broker.send
        self.holding = True

    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        if not self.holding:
            return await self._send(records)
        keys = [record.key.decode() for record in records]
        self.sent.append(keys)
        futures = [asyncio.get_running_loop().create_future() for _ in keys]
        self.answers.update(zip(keys, futures, strict=True))
        return futures


async def _held(bench: Bench, letters: Letters, monkeypatch: pytest.MonkeyPatch, count: int) -> ActivityWorker:
    """A worker whose `count` results the broker has, and has not answered for."""
    for n in range(count):
        await bench.request("double", n, instance=f"i{n}", partition=0)
    monkeypatch.setattr(bench.broker, "send", letters.send)
    worker = await bench.worker(double)
    await eventually(lambda: len(letters.answers) == count)
    return worker


async def test_results_of_one_turn_travel_together_and_are_answered_for_each_by_itself(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters(sqlite_bench)
    worker = await _held(sqlite_bench, letters, monkeypatch, 20)
    assert len(letters.sent) < 20
    assert sorted(itertools.chain(*letters.sent)) == sorted(f"i{n}" for n in range(20))
    assert worker.statistics().running == 20
    for n in range(1, 20):
        letters.answers[f"i{n}"].set_result(n)
    await eventually(lambda: worker.statistics().completed == 19)
    assert worker.statistics().running == 1
    letters.answers["i0"].set_result(0)
    await eventually(lambda: worker.statistics().completed == 20)


async def test_what_was_not_acknowledged_is_sent_again_and_nothing_else(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters(sqlite_bench)
    worker = await _held(sqlite_bench, letters, monkeypatch, 5)
    letters.sent.clear()
    letters.answers["i1"].set_result(1)
    letters.answers["i3"].set_exception(BrokerUnavailableError("late"))
    await eventually(lambda: letters.sent == [["i3"]])
    assert worker.statistics().unsent
    letters.answers["i3"].set_result(3)
    await eventually(lambda: worker.statistics().completed == 2)
    assert not worker.statistics().unsent
    for n in (0, 2, 4):
        letters.answers[f"i{n}"].set_result(n)
    await eventually(lambda: worker.statistics().completed == 5)
    assert letters.sent == [["i3"]]


@pytest.mark.parametrize("late", [False, True])
async def test_results_that_nobody_acknowledged_are_made_again_elsewhere(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    letters = Letters(sqlite_bench)
    worker = await _held(sqlite_bench, letters, monkeypatch, 3)
    letters.answers["i1"].set_result(1)
    await eventually(lambda: worker.statistics().completed == 1)
    if late:
        letters.answers["i0"].set_exception(BrokerUnavailableError("late"))
        await eventually(lambda: letters.sent[-1] == ["i0"])
    await sqlite_bench.stop(worker, drain_s=0)
    assert (worker.statistics().cut_off, worker.statistics().running) == (2, 0)
    letters.holding = False
    await sqlite_bench.worker(double)
    # The one in the middle was done, but what lies before it is not: it comes again with that.
    assert {seen.event.subject for seen in await sqlite_bench.results_of(3)} == {"i0", "i1", "i2"}


async def test_a_stop_gives_results_on_their_way_their_time(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters(sqlite_bench)
    worker = await _held(sqlite_bench, letters, monkeypatch, 2)
    stopping = asyncio.create_task(sqlite_bench.stop(worker, drain_s=60))
    await eventually(lambda: not worker._consumers)
    letters.answers["i0"].set_result(0)
    letters.answers["i1"].set_exception(BrokerUnavailableError("late"))
    await eventually(lambda: letters.sent[-1] == ["i1"])
    letters.answers["i1"].set_result(1)
    await stopping
    assert (worker.statistics().completed, worker.statistics().cut_off) == (2, 0)


async def test_a_task_that_somebody_cancelled_after_its_end_fails_the_worker(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a user's should be able to; and nothing may be lost in silence."""

    @activity
    async def wild() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)

    worker = await sqlite_bench.worker(wild)
    running = asyncio.create_task(worker.run())
    await sqlite_bench.request("wild")
    with pytest.raises(RuntimeError, match="somebody cancelled the task of an attempt"):
        await running


async def test_results_that_the_broker_has_no_room_for_have_their_limit(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "UNREPORTED_LIMIT", 10)
    letters, room = Letters(sqlite_bench), asyncio.Event()

    async def full(records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        await room.wait()
        return await letters.send(records)

    for n in range(100):
        await sqlite_bench.request("double", n, instance=f"i{n}", partition=0)
    monkeypatch.setattr(sqlite_bench.broker, "send", full)
    worker = await sqlite_bench.worker(double, concurrency=5)
    await eventually(lambda: worker.statistics().running >= 10)
    for _ in range(100):
        await asyncio.sleep(0)  # whatever it could start, it has started
    assert worker.statistics().running < 10 + 5
    letters.holding = False
    room.set()
    await sqlite_bench.results_of(100)


async def test_a_result_that_fails_in_the_moment_in_which_the_worker_leaves(
    sqlite_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would send it again is cancelled before it has begun."""
    letters = Letters(sqlite_bench)
    worker = await _held(sqlite_bench, letters, monkeypatch, 1)
    cut_off = worker._cut_off

    async def fails_before() -> None:
        letters.answers["i0"].set_exception(BrokerUnavailableError("late"))
        await asyncio.sleep(0)  # its callbacks run, and what they start does not yet
        await cut_off()

    monkeypatch.setattr(worker, "_cut_off", fails_before)
    await sqlite_bench.stop(worker, drain_s=0.0)
    assert (worker.statistics().running, worker.statistics().cut_off) == (0, 1)


async def test_messages_that_the_broker_would_not_take_stand_in_no_circle() -> None:
    class Away:
        async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
            raise BrokerUnavailableError("away")

    class Held: ...

    def posted() -> tuple[Callable[[asyncio.Future[int]], None], weakref.ref[Held]]:
        held = Held()
        return lambda answer: heard.append((answer.exception(), str(held))), weakref.ref(held)

    heard: list[object] = []
    sender = Sender(cast(Broker, Away()), cast(Store, None))
    with without_collector():
        answered, held = posted()
        await sender.post(Message("t", "k", (), b"", 0), answered)
        del answered
        await eventually(lambda: heard)
        heard.clear()
        await asyncio.sleep(0)
        assert held() is None
