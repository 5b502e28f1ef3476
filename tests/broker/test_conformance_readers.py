"""What the `Broker` port promises, on every implementation of it: task queues and tails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from romancy_stream.broker.port import TP, AssignedRange, Broker, Record, TaskSource, TopicSpec
from romancy_stream.errors import BrokerUnavailableError
from tests.broker.recording import DEADLINE_S, TaskRecorder, append, numbered, settled, started
from tests.support import eventually

PARTITIONS = 4


@pytest.fixture
async def queue(broker: Broker, namespace: str) -> str:
    name = f"{namespace}.tasks.default"
    await broker.create_topics([TopicSpec(name, PARTITIONS)])
    return name


async def fetched(source: TaskSource, count: int, limit: int = 100) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(records) < count:
            more = await source.fetch(limit)
            assert 0 < len(more) <= limit
            records += more
    return records


def numbers(records: Sequence[Record]) -> list[int]:
    return [int(record.value or b"") for record in records]


# -- tasks -----------------------------------------------------------------------------------------------------
async def test_what_was_not_committed_comes_again(broker: Broker, queue: str, namespace: str) -> None:
    await append(broker, numbered(queue, range(10), partition=1))
    async with started(broker.tasks([queue], namespace, TaskRecorder())) as source:
        assert numbers(await fetched(source, 10)) == list(range(10))
        await source.commit({TP(queue, 1): 4})
    again = TaskRecorder()
    async with started(broker.tasks([queue], namespace, again)) as source:
        assert numbers(await fetched(source, 6)) == list(range(4, 10))
        assert again.ranges[TP(queue, 1)] == AssignedRange(committed=4, end=10)
        assert again.ranges[TP(queue, 0)] == AssignedRange(committed=0, end=0)
        await source.commit({TP(queue, 1): 10})
    async with started(broker.tasks([queue], namespace, TaskRecorder())) as source:
        await append(broker, numbered(queue, range(10, 12), partition=1))
        assert numbers(await fetched(source, 2)) == [10, 11]


async def test_groups_do_not_share_positions(broker: Broker, queue: str, namespace: str) -> None:
    await append(broker, numbered(queue, range(5), partition=0))
    for group in ("a", "b"):
        async with started(broker.tasks([queue], f"{namespace}.{group}", TaskRecorder())) as source:
            assert numbers(await fetched(source, 5)) == list(range(5))
            await source.commit({TP(queue, 0): 5})


async def test_fetch_keeps_to_its_limit_and_waits(broker: Broker, queue: str, namespace: str) -> None:
    async with started(broker.tasks([queue], namespace, TaskRecorder())) as source:
        waiting = asyncio.create_task(fetched(source, 20, limit=3))
        await append(broker, numbered(queue, range(20), partition=0))
        assert numbers(await waiting) == list(range(20))


async def test_nothing_is_fetched_before_on_assigned_returned(broker: Broker, queue: str, namespace: str) -> None:
    recorder, entered, gate = TaskRecorder(), asyncio.Event(), asyncio.Event()

    async def wait_for_gate() -> None:
        entered.set()
        await gate.wait()

    recorder.hooks["on_assigned"] = wait_for_gate
    await append(broker, numbered(queue, range(5)))
    async with started(broker.tasks([queue], namespace, recorder)) as source:
        fetch = asyncio.create_task(fetched(source, 5))
        await asyncio.wait_for(entered.wait(), DEADLINE_S)
        await append(broker, numbered(queue, range(5, 6)))
        assert not fetch.done()
        gate.set()
        await fetch


async def test_workers_compete(broker: Broker, second_broker: Broker, queue: str, namespace: str) -> None:
    first, second = TaskRecorder(), TaskRecorder()
    async with (
        started(broker.tasks([queue], namespace, first)) as one,
        started(second_broker.tasks([queue], namespace, second)) as two,
    ):
        mine, theirs = await settled(PARTITIONS, first, second)
        records = [out for n in range(PARTITIONS) for out in numbered(queue, range(n * 10, n * 10 + 10), n)]
        await append(broker, records)
        got = [await fetched(one, 10 * len(mine)), await fetched(two, 10 * len(theirs))]
        assert {TP(r.topic, r.partition) for r in got[0]} == mine
        assert sorted(numbers(got[0]) + numbers(got[1])) == list(range(10 * PARTITIONS))


async def test_a_dead_workers_tasks_go_to_the_other(
    broker: Broker, second_broker: Broker, queue: str, namespace: str
) -> None:
    """Also when nobody fetches meanwhile: a rebalance is not the fetcher's business."""
    first, second = TaskRecorder(), TaskRecorder()
    async with started(broker.tasks([queue], namespace, first)) as one:
        async with started(second_broker.tasks([queue], namespace, second)) as two:
            _, theirs = await settled(PARTITIONS, first, second)
            await append(broker, [out for tp in theirs for out in numbered(queue, range(5), tp.partition)])
            assert len(await fetched(two, 5 * len(theirs))) == 5 * len(theirs)
            await two.commit(dict.fromkeys(theirs, 2))
        await settled(PARTITIONS, first)
        assert {first.ranges[tp] for tp in theirs} == {AssignedRange(2, 5)}
        again = await fetched(one, 3 * len(theirs))
        assert sorted(numbers(again)) == sorted([2, 3, 4] * len(theirs))


async def test_commits_of_others_partitions_are_left_out(
    broker: Broker, second_broker: Broker, queue: str, namespace: str
) -> None:
    await append(broker, [out for n in range(PARTITIONS) for out in numbered(queue, range(5), n)])
    first, second = TaskRecorder(), TaskRecorder()
    async with started(broker.tasks([queue], namespace, first)) as one:
        async with started(second_broker.tasks([queue], namespace, second)):
            mine, theirs = await settled(PARTITIONS, first, second)
            await one.commit(dict.fromkeys([*mine, *theirs], 5))
        await settled(PARTITIONS, first)
        assert {tp: first.ranges[tp].committed for tp in mine | theirs} == {
            **dict.fromkeys(mine, 5),
            **dict.fromkeys(theirs, 0),
        }


async def test_commit_while_partitions_are_revoked(broker: Broker, queue: str, namespace: str) -> None:
    recorder = TaskRecorder()
    source = broker.tasks([queue], namespace, recorder)

    async def commit() -> None:
        await source.commit({TP(queue, 0): 3})

    recorder.hooks["on_revoked"] = commit
    await append(broker, numbered(queue, range(5), 0))
    async with started(source):
        await fetched(source, 5)
    assert recorder.calls == ["on_assigned", "on_revoked"]
    async with started(broker.tasks([queue], namespace, TaskRecorder())) as source:
        assert numbers(await fetched(source, 2)) == [3, 4]


async def test_nothing_is_fetched_while_partitions_are_revoked(
    broker: Broker, second_broker: Broker, queue: str, namespace: str
) -> None:
    first, second, entered, gate = TaskRecorder(), TaskRecorder(), asyncio.Event(), asyncio.Event()

    async def wait_for_gate() -> None:
        entered.set()
        await gate.wait()

    first.hooks["on_revoked"] = wait_for_gate
    async with started(broker.tasks([queue], namespace, first)) as one:
        await settled(PARTITIONS, first)
        fetch = asyncio.create_task(one.fetch(100))
        async with started(second_broker.tasks([queue], namespace, second)) as two:
            await asyncio.wait_for(entered.wait(), DEADLINE_S)
            records = [out for n in range(PARTITIONS) for out in numbered(queue, range(5), n)]
            await append(broker, records)
            assert not fetch.done()
            gate.set()
            mine, theirs = await settled(PARTITIONS, first, second)
            got = await asyncio.wait_for(fetch, DEADLINE_S)
            got += await fetched(one, 5 * len(mine) - len(got)) if len(got) < 5 * len(mine) else []
            assert {TP(r.topic, r.partition) for r in got} == mine
            assert {TP(r.topic, r.partition) for r in await fetched(two, 5 * len(theirs))} == theirs


async def test_what_a_task_handler_raises_comes_out_of_fetch(broker: Broker, queue: str, namespace: str) -> None:
    recorder = TaskRecorder()

    async def fail() -> None:
        raise ArithmeticError("in the handler")

    recorder.hooks["on_assigned"] = fail
    source = broker.tasks([queue], namespace, recorder)
    await source.start()
    with pytest.raises(ArithmeticError, match="in the handler"):
        await asyncio.wait_for(source.fetch(1), DEADLINE_S)
    with suppress(ArithmeticError):  # it may say so again
        await source.stop()


# -- tails -----------------------------------------------------------------------------------------------------
class Seen:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.gaps: list[BaseException | None] = []

    async def on_records(self, records: Sequence[Record]) -> None:
        assert records
        self.records += records

    async def received(self, count: int) -> None:
        await eventually(lambda: len(self.records) >= count, DEADLINE_S, message=f"{count} records")


async def test_a_tail_sees_everything_after_start_and_nothing_before(
    broker: Broker, second_broker: Broker, queue: str, namespace: str
) -> None:
    events = f"{namespace}.events"
    await broker.create_topics([TopicSpec(events, 2)])
    await append(broker, [*numbered(queue, range(10)), *numbered(events, range(10))])
    seen = Seen()
    tail = second_broker.tail([queue, events], seen.on_records)
    await tail.start()
    await append(broker, [*numbered(queue, range(10, 60)), *numbered(events, range(10, 60))])
    await seen.received(100)
    for name in (queue, events):
        assert sorted(numbers([r for r in seen.records if r.topic == name])) == list(range(10, 60))
    await tail.stop()
    await append(broker, numbered(queue, range(60, 61)))
    late = Seen()
    tail = broker.tail([queue], late.on_records)
    await tail.start()
    await append(broker, numbered(queue, range(61, 62)))
    await late.received(1)
    await tail.stop()
    assert numbers(late.records) == [61]
    assert len(seen.records) == 100


async def test_every_tail_sees_every_record(broker: Broker, queue: str) -> None:
    seen = [Seen() for _ in range(3)]
    tails = [broker.tail([queue], each.on_records) for each in seen]
    for tail in tails:
        await tail.start()
    await append(broker, numbered(queue, range(30)))
    for each, tail in zip(seen, tails, strict=True):
        await each.received(30)
        await tail.stop()
        for n in range(PARTITIONS):
            offsets = [r.offset for r in each.records if r.partition == n]
            assert offsets == list(range(len(offsets)))


async def test_what_the_callback_of_a_tail_raises_comes_out_of_stop(broker: Broker, queue: str) -> None:
    called = asyncio.Event()

    async def fail(records: Sequence[Record]) -> None:
        called.set()
        raise ArithmeticError("in the callback")

    tail = broker.tail([queue], fail)
    await tail.start()
    await append(broker, numbered(queue, range(1)))
    await asyncio.wait_for(called.wait(), DEADLINE_S)
    with pytest.raises(ArithmeticError, match="in the callback"):
        await tail.stop()


async def test_a_tail_that_its_callback_has_ended_says_so_once(broker: Broker, queue: str) -> None:
    seen = Seen()

    async def fail(records: Sequence[Record]) -> None:
        raise ArithmeticError("in the callback")

    tail = broker.tail([queue], fail, seen.gaps.append)
    await tail.start()
    await append(broker, numbered(queue, range(1)))
    await eventually(lambda: seen.gaps, DEADLINE_S)
    with pytest.raises(ArithmeticError, match="in the callback"):
        await tail.stop()
    assert [type(each) for each in seen.gaps] == [ArithmeticError]


async def test_a_tail_whose_task_has_died_says_so_once(broker: Broker, queue: str) -> None:
    seen = Seen()
    tail = broker.tail([queue], seen.on_records, seen.gaps.append)
    await tail.start()
    await append(broker, numbered(queue, range(3)))
    await seen.received(3)
    tail._task.cancel()  # type: ignore[attr-defined]
    await eventually(lambda: seen.gaps, DEADLINE_S)
    await tail.stop()
    assert [type(each) for each in seen.gaps] == [BrokerUnavailableError]


async def test_a_tail_that_was_stopped_says_nothing(broker: Broker, queue: str) -> None:
    seen = Seen()
    tail = broker.tail([queue], seen.on_records, seen.gaps.append)
    await tail.start()
    await append(broker, numbered(queue, range(3)))
    await seen.received(3)
    await tail.stop()
    await asyncio.sleep(0)
    assert seen.gaps == []
