"""The batch source on a real Kafka within one process: positions, rebalances, backpressure, rewinds, membership."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from faust.types import TP as FaustTP

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings, seam
from romancy_stream.broker.kafka.consumer import Consumer
from romancy_stream.broker.kafka.membership import confirmed
from romancy_stream.broker.kafka.source import FaustBatchSource
from romancy_stream.broker.port import TP, BatchSource, Broker, Record
from romancy_stream.errors import BrokerUnavailableError
from tests.broker.kafka_kit import Book, Handler, make_topic, produce, record, running, tps
from tests.support import eventually

pytestmark = pytest.mark.kafka


async def test_everything_arrives_once_and_in_order(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=3)
    await produce(kafka, name, 300, partitions=3)
    handler = Handler()
    async with running(kafka.batches([name], name, handler)):
        await eventually(lambda: handler.book.count == 300)
        await produce(kafka, name, 300, partitions=3, start=300)
        await eventually(lambda: handler.book.count == 600)
    assert handler.book.values[TP(name, 1)] == [b"%d" % n for n in range(600) if n % 3 == 1]
    assert handler.revoked == [tps(name, partitions=range(3))]


async def test_it_begins_where_the_handler_says(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    await produce(kafka, name, 20, partitions=2)
    handler = Handler()
    handler.book.next = {TP(name, 0): 7, TP(name, 1): 10}
    async with running(kafka.batches([name], name, handler)) as run:
        await eventually(lambda: handler.book.count == 3)
        assert not run.done()
    assert handler.book.values == {TP(name, 0): [b"14", b"16", b"18"]}


async def test_a_batch_is_limited(kafka_bootstrap: str, name: str) -> None:
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=KafkaSettings(batch_limit_records=50))
    await broker.open()
    try:
        await make_topic(broker, name)
        await produce(broker, name, 500)
        handler = Handler()
        async with running(broker.batches([name], name, handler)):
            await eventually(lambda: handler.book.count == 500)
        sizes = [sum(len(each) for each in batch.values()) for batch in handler.batches]
        assert max(sizes) == 50
    finally:
        await broker.close()


async def test_two_sources_share_copartitioned_topics_and_take_over(kafka: Broker, name: str) -> None:
    topics = [name, f"{name}-b"]
    for topic in topics:
        await make_topic(kafka, topic, partitions=3)
    book = Book()
    first, second = Handler(book), Handler(book)
    everything = tps(*topics, partitions=range(3))
    count = 0

    async def produce_some() -> None:
        nonlocal count
        for topic in topics:
            await produce(kafka, topic, 60, partitions=3, start=count)
        count += 60
        await eventually(lambda: book.count == count * 2)

    async with running(kafka.batches(topics, name, first)):
        await eventually(lambda: first.owned == everything)
        await produce_some()
        async with running(kafka.batches(topics, name, second)):
            await eventually(lambda: first.owned and second.owned and first.owned | second.owned == everything)
            for handler in (first, second):
                partitions = {tp.partition for tp in handler.owned}
                assert handler.owned == tps(*topics, partitions=partitions)
            await produce_some()
        await eventually(lambda: first.owned == everything)
        await produce_some()


async def test_records_produced_during_rebalances(kafka: Broker, name: str) -> None:
    """Members come and go under load; the book fails at a hole or a duplicate."""
    await make_topic(kafka, name, partitions=4)
    book = Book()
    sent = 0
    stop = asyncio.Event()

    async def load() -> None:
        nonlocal sent
        while not stop.is_set():
            await produce(kafka, name, 40, partitions=4, start=sent)
            sent += 40
            await asyncio.sleep(0.01)

    loading = asyncio.create_task(load())
    async with running(kafka.batches([name], name, first := Handler(book))):
        await eventually(lambda: len(first.owned) == 4)
        for _ in range(3):
            second = Handler(book)
            async with running(kafka.batches([name], name, second)):
                await eventually(partial(_has_batches, second, 3))
            await eventually(lambda: len(first.owned) == 4)
        stop.set()
        await loading
        await eventually(lambda: book.count == sent)
    assert {tp: len(values) for tp, values in book.values.items()} == {TP(name, p): sent // 4 for p in range(4)}


async def test_sources_of_two_groups_in_one_process(kafka: Broker, name: str) -> None:
    other = f"{name}-other"
    for topic in (name, other):
        await make_topic(kafka, topic, partitions=2)
    one, two = Handler(), Handler()
    async with (
        running(kafka.batches([name], f"{name}-1", one)),
        running(kafka.batches([other], f"{name}-2", two)),
    ):
        await produce(kafka, name, 10, partitions=2)
        await produce(kafka, other, 20, partitions=2)
        await eventually(lambda: one.book.count == 10 and two.book.count == 20)
    assert set(one.book.values) == tps(name, partitions=range(2))


async def test_more_members_than_partitions(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    first, second = Handler(), Handler()
    async with running(kafka.batches([name], name, first)), running(kafka.batches([name], name, second)):
        await eventually(lambda: first.assigned_count and second.assigned_count)
        await eventually(lambda: len(first.owned) + len(second.owned) == 1)


async def test_hold_and_release(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    held, free = TP(name, 0), TP(name, 1)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    async with running(source):
        await eventually(lambda: handler.owned)
        source.hold(held)
        await produce(kafka, name, 20, partitions=2)
        await eventually(lambda: len(handler.book.values.get(free, ())) == 10)
        source.hold(free)
        await produce(kafka, name, 20, partitions=2, start=20)
        source.release(free)
        await eventually(lambda: len(handler.book.values.get(free, ())) == 20)
        assert held not in handler.book.values
        source.release(held)
        await eventually(lambda: handler.book.count == 40)


async def test_hold_from_inside_a_batch_takes_effect_at_once(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)

    async def hold(batch: Mapping[TP, Sequence[Record]]) -> None:
        source.hold(*batch)

    handler.before_batch = hold
    async with running(source):
        await eventually(lambda: handler.owned)
        for n in range(5):
            await produce(kafka, name, 10, start=n * 10)
            await eventually(partial(_has_batches, handler, n + 1))
            assert handler.book.count <= n * 10 + 10
            source.release(TP(name, 0))
        await eventually(lambda: handler.book.count == 50)


async def test_a_hold_outlives_a_rebalance_that_leaves_the_partition_here(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    book = Book()
    first, second = Handler(book), Handler(book)
    source = kafka.batches([name], name, first)
    async with running(source):
        await eventually(lambda: first.owned)
        source.hold(*first.owned)
        async with running(kafka.batches([name], name, second)):
            await eventually(lambda: len(first.owned) == 1 and len(second.owned) == 1)
            kept, moved = next(iter(first.owned)), next(iter(second.owned))
            await produce(kafka, name, 20, partitions=2)
            await eventually(lambda: len(book.values.get(moved, ())) == 10)
        await eventually(lambda: len(first.owned) == 2)
        await produce(kafka, name, 20, partitions=2, start=20)
        await eventually(lambda: len(book.values.get(moved, ())) == 20)  # its hold ended when it left
        assert kept not in book.values
        assert isinstance(source, FaustBatchSource)
        assert source._consumer is not None
        assert source._consumer._get_active_partitions() == {FaustTP(*moved)}  # it is not even fetched
        source.release(kept)
        await eventually(lambda: book.count == 40)


async def test_rewind_between_and_inside_batches(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    back, other = TP(name, 0), TP(name, 1)
    seen: list[int] = []
    handler = Handler()
    source = kafka.batches([name], name, handler)
    times = 3

    async def rewind_from_inside(batch: Mapping[TP, Sequence[Record]]) -> None:
        nonlocal times
        seen.extend(r.offset for r in batch.get(back, ()))
        if back in batch and times:
            times -= 1
            handler.book.next[back] = batch[back][0].offset  # as if nothing had been done
            await source.rewind(back, batch[back][0].offset)
            handler.batches.append(batch)
            raise Skip

    async def on_batch(batch: Mapping[TP, Sequence[Record]]) -> None:
        try:
            await Handler.on_batch(handler, batch)
        except Skip:
            for tp in set(batch) - {back}:
                handler.book.take(tp, batch[tp])

    handler.before_batch = rewind_from_inside
    handler.on_batch = on_batch  # type: ignore[method-assign]
    async with running(source):
        await eventually(lambda: handler.owned)
        await produce(kafka, name, 40, partitions=2)
        await eventually(lambda: handler.book.count == 40)
        assert seen.count(0) == 4
        handler.book.next[back] = 5
        await source.rewind(back, 5)
        await eventually(lambda: handler.book.next[back] == 20)
        assert handler.book.next[other] == 20
        assert seen[-15:] == list(range(5, 20))


class Skip(Exception):
    pass


async def test_records_fetched_from_kafkas_offsets_while_the_handler_loads_are_dropped(
    kafka: Broker, name: str
) -> None:
    await make_topic(kafka, name, partitions=2)
    book = Book()
    first, second = Handler(book), Handler(book)
    source = kafka.batches([name], name, first)

    async def load_slowly() -> None:
        if first.assigned_count:
            await asyncio.sleep(0.6)  # aiokafka has its offsets, and the fetch that was under way its records, by then

    first.before_assigned = load_slowly
    async with running(source):
        await produce(kafka, name, 40, partitions=2)
        await eventually(lambda: book.count == 40)
        await source.commit_hint(dict.fromkeys(first.owned, 3))
        async with running(kafka.batches([name], name, second)):
            await eventually(lambda: len(first.owned) == len(second.owned) == 1)
            await produce(kafka, name, 20, partitions=2, start=40)
            await eventually(lambda: book.count == 60)


def between_fetch_and_delivery(source: BatchSource, happens: Callable[[], Awaitable[None]]) -> None:
    """Once."""
    assert isinstance(source, FaustBatchSource)
    assert source._consumer is not None
    consumer = source._consumer
    deliver = consumer._deliver

    async def deliver_late(epoch: int, fetched: Mapping[Any, list[Any]]) -> None:
        consumer._deliver = deliver  # type: ignore[method-assign]
        await happens()
        await deliver(epoch, fetched)

    consumer._deliver = deliver_late  # type: ignore[method-assign]


async def test_a_rewind_between_fetch_and_delivery(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)

    async def rewind() -> None:
        handler.book.next[TP(name, 0)] = 2
        await source.rewind(TP(name, 0), 2)

    async with running(source):
        await produce(kafka, name, 5)
        await eventually(lambda: handler.book.count == 5)
        between_fetch_and_delivery(source, rewind)
        await produce(kafka, name, 5, start=5)
        await eventually(lambda: handler.book.count == 5 + 8)


async def test_a_hold_between_fetch_and_delivery(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    held = TP(name, 0)
    handler = Handler()
    source = kafka.batches([name], name, handler)

    async def hold() -> None:
        source.hold(held)

    async with running(source):
        await eventually(lambda: handler.owned)
        between_fetch_and_delivery(source, hold)
        await asyncio.gather(*await kafka.send([record(name, b"x", 0)]))
        await eventually(lambda: _is_held(source, held))
        await asyncio.gather(*await kafka.send([record(name, b"y", 1)]))
        await eventually(lambda: handler.book.count)
        assert held not in handler.book.values
        source.release(held)
        await eventually(lambda: handler.book.count == 2)


def _consumer_of(source: BatchSource) -> Consumer:
    assert isinstance(source, FaustBatchSource)
    assert source._consumer is not None
    aio = source._consumer._aio
    assert isinstance(aio, Consumer)
    return aio


def _is_held(source: BatchSource, tp: TP) -> bool:
    assert isinstance(source, FaustBatchSource)
    return tp in source._held


async def test_confirm_membership(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    first, second = Handler(), Handler()
    source = kafka.batches([name], name, first)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await source.confirm_membership())

    first.before_assigned = ask
    assert not await source.confirm_membership()
    async with running(source):
        await eventually(lambda: first.owned)
        assert answers == [True]
        assert await source.confirm_membership()
        # somebody else joins while this member has not noticed it: it is about to lose its partitions
        async with running(kafka.batches([name], name, second)):
            await eventually(lambda: _is_false(source.confirm_membership()), every_s=0.001)
            await eventually(lambda: second.owned)
            assert await source.confirm_membership()
    assert not await source.confirm_membership()


def _has_batches(handler: Handler, count: int) -> bool:
    return len(handler.batches) >= count


async def _is_false(question: Awaitable[bool]) -> bool:
    return not await question


async def test_the_coordinator_denies_a_generation_it_does_not_know(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    async with running(source):
        await eventually(lambda: handler.owned)
        consumer = _consumer_of(source)
        current = consumer._coordinator.generation
        assert await confirmed(consumer, current, limit_s=10)
        assert not await confirmed(consumer, current - 1, limit_s=10)
        stranger = SimpleNamespace(_coordinator=_Stranger(consumer._coordinator, current))
        assert not await confirmed(stranger, current, limit_s=10)


class _Stranger:
    """The coordinator's view of a member that it has thrown out, and that has not noticed it."""

    def __init__(self, coordinator: Any, generation: int) -> None:
        self.ensure_coordinator_known = coordinator.ensure_coordinator_known
        self._send_req = coordinator._send_req
        self.group_id = coordinator.group_id
        self.generation = generation
        self.member_id = "nobody"


async def test_a_process_that_stood_still_asks_on(kafka: Broker, name: str) -> None:
    """It was frozen for longer than it waits for an answer: that tells nothing about the coordinator."""
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    async with running(source):
        await eventually(lambda: handler.owned)
        consumer = _consumer_of(source)
        asking = asyncio.create_task(confirmed(consumer, consumer._coordinator.generation, limit_s=0.5))
        await asyncio.sleep(0)
        time.sleep(1)  # noqa: ASYNC251 - as SIGSTOP does it, but surely while the answer is on its way
        assert await asking


async def test_a_coordinator_that_does_not_answer(kafka: Broker, name: str) -> None:
    async def never(_request: object) -> None:
        await asyncio.Event().wait()

    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    async with running(source):
        await eventually(lambda: handler.owned)
        coordinator = _consumer_of(source)._coordinator
        silent = _Stranger(coordinator, coordinator.generation)
        silent._send_req = never
        with pytest.raises(BrokerUnavailableError, match=r"did not answer within 0\.2 s"):
            await confirmed(SimpleNamespace(_coordinator=silent), coordinator.generation, limit_s=0.2)


async def test_a_hint_that_is_not_answered(kafka: Broker, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever told it tells it again. Kafka's newest offsets would be old ones for as long as nothing happens."""
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    async with running(source):
        await eventually(lambda: handler.owned)
        aio, answered = _consumer_of(source), asyncio.Event()
        commit = aio.commit

        async def late(offsets: object) -> None:
            await answered.wait()
            await commit(offsets)

        monkeypatch.setattr(aio, "commit", late)
        monkeypatch.setattr(seam, "HINT_LIMIT_S", 0.2)
        for _ in range(2):  # no answer; the one before hangs still
            with pytest.raises(BrokerUnavailableError, match="hint of offsets"):
                await source.commit_hint({TP(name, 0): 0})
        answered.set()
        await eventually(lambda: aio._committing is not None and aio._committing.done())
        await source.commit_hint({TP(name, 0): 0})


async def test_loading_for_longer_than_the_session_does_not_lose_it(kafka_bootstrap: str, name: str) -> None:
    settings = KafkaSettings(session_timeout_ms=3_000, heartbeat_interval_ms=300)
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=settings)
    await broker.open()
    try:
        await make_topic(broker, name)
        await produce(broker, name, 1)
        handler = Handler()
        source = broker.batches([name], name, handler)
        answers: list[bool] = []

        async def load() -> None:
            await asyncio.sleep(7)  # two sessions, each long enough for a machine that has much to do
            answers.append(await source.confirm_membership())

        handler.before_assigned = load
        async with running(source):
            await eventually(lambda: handler.book.count == 1)
        assert answers == [True]
    finally:
        await broker.close()


async def test_commit_hint_is_for_lag_tools_only(kafka: KafkaBroker, name: str) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 10)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    async with running(source):
        await eventually(lambda: handler.book.count == 10)
        await source.commit_hint({TP(name, 0): 4, TP(name, 9): 1})
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(name)
    finally:
        await admin.close()
    assert {(tp.topic, tp.partition): meta.offset for tp, meta in offsets.items()} == {(name, 0): 4}
    again = Handler()
    async with running(kafka.batches([name], name, again)):
        await eventually(lambda: again.book.count == 10)
