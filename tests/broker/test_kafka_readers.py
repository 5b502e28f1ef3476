"""Tasks, tails and topics on a real Kafka, beyond what the suite for all brokers asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.structs import TopicPartition

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.kafka import tail as tail_module
from romancy_stream.broker.kafka.tail import KafkaTail
from romancy_stream.broker.kafka.tasks import KafkaTaskSource
from romancy_stream.broker.port import TP, AssignedRange, Broker, Record, Tail, TaskSource, TopicSpec
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError
from tests.broker.kafka_kit import make_topic, produce, spoil
from tests.support import eventually

pytestmark = pytest.mark.kafka

FETCH_S = 90


class Tasks:
    def __init__(self) -> None:
        self.ranges: dict[TP, AssignedRange] = {}
        self.assigned_count = 0

    async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
        self.ranges = dict(ranges)
        self.assigned_count += 1

    async def on_revoked(self, partitions: set[TP]) -> None:
        self.ranges = {}


async def fetch(source: object, count: int) -> list[Record]:
    assert isinstance(source, KafkaTaskSource)
    records: list[Record] = []
    async with asyncio.timeout(FETCH_S):
        while len(records) < count:
            records += await source.fetch(count - len(records))
    return records


@pytest.fixture
async def admin(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    yield admin
    await admin.close()


# -- tasks ---------------------------------------------------------------------------------------------------


async def test_a_worker_that_does_not_fetch_stays_a_member(kafka_bootstrap: str, name: str) -> None:
    settings = KafkaSettings(session_timeout_ms=1_000, heartbeat_interval_ms=200)
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=settings)
    await broker.open()
    try:
        await make_topic(broker, name)
        await produce(broker, name, 10)
        handler = Tasks()
        source = broker.tasks([name], name, handler)
        await source.start()
        await fetch(source, 2)
        assert isinstance(source, KafkaTaskSource)
        assert source._consumer is not None
        generation = source._consumer._coordinator.generation
        await asyncio.sleep(2.5)  # longer than the session: this is what is tested
        assert source._consumer._coordinator.generation == generation
        await source.commit({TP(name, 0): 2})
        assert [r.offset for r in await fetch(source, 8)] == list(range(2, 10))
        assert handler.assigned_count == 1
        await source.stop()
    finally:
        await broker.close()


async def test_no_task_is_handed_out_while_the_handler_is_being_told_of_the_assignment(
    kafka: Broker, name: str
) -> None:
    """Also when the fetch began before the rebalance, and Kafka answers it during the call."""
    await make_topic(kafka, name, partitions=2)
    inside = False
    early: list[Record] = []
    got: list[Record] = []

    class Slow(Tasks):
        async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
            nonlocal inside
            inside = True
            await asyncio.sleep(0.6)
            inside = False
            await super().on_assigned(ranges)

    async def work(source: TaskSource) -> None:
        while True:
            records = await source.fetch(100)
            got.extend(records)
            if inside:
                early.extend(records)

    first, second = Slow(), Tasks()
    one, two = kafka.tasks([name], name, first), kafka.tasks([name], name, second)
    await one.start()
    working = asyncio.create_task(work(one))
    await produce(kafka, name, 40, partitions=2)
    await eventually(lambda: len(got) == 40)
    await one.commit({TP(name, 0): 1, TP(name, 1): 1})  # the rest will be handed out again
    await two.start()
    await eventually(lambda: len(first.ranges) == len(second.ranges) == 1)
    await eventually(lambda: len(got) == 40 + 19)
    assert early == []
    working.cancel()
    await two.stop()
    await one.stop()


async def test_tasks_that_retention_deleted_are_skipped(kafka: Broker, admin: AIOKafkaAdminClient, name: str) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 10)
    handler = Tasks()
    source = kafka.tasks([name], name, handler)
    await source.start()
    await fetch(source, 10)
    await source.commit({TP(name, 0): 3})
    await source.stop()
    await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(6)})
    again = kafka.tasks([name], name, handler)
    await again.start()
    assert [r.offset for r in await fetch(again, 4)] == [6, 7, 8, 9]
    await again.stop()


async def test_retention_overtakes_a_worker_that_is_reading(
    kafka: Broker, admin: AIOKafkaAdminClient, name: str
) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 3)
    source = kafka.tasks([name], name, Tasks())
    await source.start()
    await fetch(source, 3)
    assert isinstance(source, KafkaTaskSource)
    await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(2)})
    source._next[TP(name, 0)] = 1
    assert source._consumer is not None
    source._consumer.seek(TopicPartition(name, 0), 1)
    assert [r.offset for r in await fetch(source, 1)] == [2]
    await source.stop()


async def test_a_hung_task_consumer_is_built_anew(kafka_bootstrap: str, name: str) -> None:
    settings = KafkaSettings(session_timeout_ms=2_000, heartbeat_interval_ms=300, stall_limit_ms=600)
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=settings)
    await broker.open()
    try:
        await make_topic(broker, name)
        await produce(broker, name, 2)
        handler = Tasks()
        source = broker.tasks([name], name, handler)
        await source.start()
        await fetch(source, 2)
        await source.commit({TP(name, 0): 2})
        assert isinstance(source, KafkaTaskSource)
        assert source._consumer is not None
        fetcher = source._consumer._fetcher
        fetcher._fetch_task.cancel()
        await eventually(lambda: all(task.done() for task in fetcher._pending_tasks))
        await produce(broker, name, 2, start=2)
        assert [r.offset for r in await fetch(source, 2)] == [2, 3]
        assert handler.assigned_count == 2
        await source.stop()
    finally:
        await broker.close()


async def test_nobody_answers() -> None:
    source = KafkaTaskSource(["t"], "g", Tasks(), bootstrap="127.0.0.1:1", client_id="test", settings=KafkaSettings())
    with pytest.raises(BrokerUnavailableError):
        await source.start()
    await source.stop()


# -- tails ---------------------------------------------------------------------------------------------------


class Seen:
    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.gaps: list[BaseException | None] = []

    async def on_records(self, records: Sequence[Record]) -> None:
        self.values += [r.value for r in records]


async def test_a_tail_finds_new_partitions(kafka: KafkaBroker, admin: AIOKafkaAdminClient, name: str) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 3)
    seen = Seen()
    tail = kafka.tail([name], seen.on_records, seen.gaps.append)
    await tail.start()
    await admin.create_partitions({name: NewPartitions(3)})
    await eventually(lambda: _partitions(kafka, name, 3))
    await produce(kafka, name, 30, partitions=3, start=3)  # the producer finds them too
    assert isinstance(tail, KafkaTail)
    assert tail._consumer is not None
    await tail._consumer._client.force_metadata_update()  # instead of waiting for its age
    await eventually(lambda: len(seen.values) == 30)
    assert set(seen.values) == {b"%d" % n for n in range(3, 33)}
    await tail.stop()
    assert seen.gaps == []


async def _partitions(broker: Broker, name: str, count: int) -> bool:
    return (await broker.topics())[name].partitions == count


async def test_a_hung_tail_goes_on_without_a_gap(
    kafka_bootstrap: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "RETRY_PAUSE_S", 0.1)
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=KafkaSettings(stall_limit_ms=600))
    await broker.open()
    try:
        await make_topic(broker, name, partitions=2)
        seen = Seen()
        tail = broker.tail([name], seen.on_records, seen.gaps.append)
        await tail.start()
        await produce(broker, name, 10, partitions=2)
        await eventually(lambda: len(seen.values) == 10)
        assert isinstance(tail, KafkaTail)
        assert tail._consumer is not None
        fetcher = tail._consumer._fetcher
        fetcher._fetch_task.cancel()
        await eventually(lambda: all(task.done() for task in fetcher._pending_tasks))
        await produce(broker, name, 10, partitions=2, start=10)
        await eventually(lambda: len(seen.values) == 20, deadline_s=FETCH_S)
        assert set(seen.values) == {b"%d" % n for n in range(20)}
        await tail.stop()
        assert seen.gaps == []
    finally:
        await broker.close()


def move(tail: Tail, tp: TP, offset: int) -> None:
    assert isinstance(tail, KafkaTail)
    assert tail._consumer is not None
    tail._next[tp] = offset
    tail._consumer.seek(TopicPartition(*tp), offset)


async def test_retention_overtakes_a_tail(kafka: Broker, admin: AIOKafkaAdminClient, name: str) -> None:
    await make_topic(kafka, name)
    seen = Seen()
    tail = kafka.tail([name], seen.on_records, seen.gaps.append)
    await tail.start()
    await produce(kafka, name, 5)
    await eventually(lambda: len(seen.values) == 5)
    await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(4)})
    move(tail, TP(name, 0), 1)
    await eventually(lambda: seen.values[5:] == [b"4"])
    await tail.stop()
    assert seen.gaps == [None]


async def test_a_tail_behind_the_end_of_the_log_sees_nothing_twice(kafka: Broker, name: str) -> None:
    """As when the log has lost its end."""
    await make_topic(kafka, name)
    seen = Seen()
    tail = kafka.tail([name], seen.on_records, seen.gaps.append)
    await tail.start()
    await produce(kafka, name, 5)
    await eventually(lambda: len(seen.values) == 5)
    move(tail, TP(name, 0), 100)
    await eventually(lambda: seen.gaps == [None])
    await produce(kafka, name, 5, start=5)
    await eventually(lambda: len(seen.values) >= 10)
    await tail.stop()
    assert seen.values == [b"%d" % n for n in range(10)]


async def test_a_topic_that_was_made_again_is_a_gap_also_when_it_is_as_long(
    kafka: KafkaBroker, admin: AIOKafkaAdminClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tail does not look while that happens, as one whose network is away."""
    await make_topic(kafka, name)
    seen = Seen()
    looking = asyncio.Event()
    looking.set()

    async def on_records(records: Sequence[Record]) -> None:
        await seen.on_records(records)
        await looking.wait()

    tail = kafka.tail([name], on_records, seen.gaps.append)
    await tail.start()
    looking.clear()
    await produce(kafka, name, 2)
    await eventually(lambda: len(seen.values) == 2)
    await admin.delete_topics([name])
    await eventually(lambda: _is_absent(kafka, name))
    await eventually(lambda: _created(kafka, name))
    await produce(kafka, name, 4, start=10)
    assert seen.gaps == []
    looking.set()
    await eventually(lambda: seen.gaps)
    await produce(kafka, name, 1, start=14)
    await eventually(lambda: seen.values[-1] == b"14")
    await tail.stop()
    assert set(seen.gaps) == {None}


async def test_a_tail_passes_by_what_it_cannot_read(
    kafka: KafkaBroker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a batch that a disk has spoilt."""
    monkeypatch.setattr(tail_module, "RETRY_PAUSE_S", 0.1)
    await make_topic(kafka, name, partitions=2)
    seen = Seen()
    tail = kafka.tail([name], seen.on_records, seen.gaps.append)
    await tail.start()
    await produce(kafka, name, 2, partitions=2)
    await eventually(lambda: len(seen.values) == 2)
    spoil(tail, name)
    await eventually(lambda: seen.gaps == [None])
    await produce(kafka, name, 10, partitions=2, start=2)
    await eventually(lambda: len(seen.values) >= 12)
    await tail.stop()
    assert set(seen.values) == {b"%d" % n for n in range(12)}
    assert seen.gaps == [None]


async def test_a_tail_that_is_stopped_before_it_has_begun_leaves_no_connection(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    tail = kafka.tail([name], Seen().on_records)
    await tail.start()
    assert isinstance(tail, KafkaTail)
    await tail.stop()
    assert tail._consumer is None


async def test_a_tail_of_a_topic_that_is_not_there(kafka: Broker, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "TOPICS_LIMIT_S", 0.3)
    tail = kafka.tail([name], Seen().on_records)
    with pytest.raises(ConfigurationError, match=f"no topic {name}"):
        await tail.start()
    await tail.stop()


# -- topics --------------------------------------------------------------------------------------------------


async def test_a_topic_that_was_made_again_has_another_id(
    kafka: KafkaBroker, admin: AIOKafkaAdminClient, name: str
) -> None:
    await make_topic(kafka, name)
    first = (await kafka.topics())[name]
    assert (await kafka.topics())[name] == first
    await admin.delete_topics([name])
    await eventually(lambda: _is_absent(kafka, name))
    await eventually(lambda: _created(kafka, name))
    second = (await kafka.topics())[name]
    assert second.partitions == first.partitions
    assert second.topic_id != first.topic_id


async def _is_absent(broker: Broker, name: str) -> bool:
    return name not in await broker.topics()


async def _created(broker: Broker, name: str) -> bool:
    return await broker.create_topics([TopicSpec(name, 1)]) == [name]


async def test_a_topic_that_cannot_be_made_says_why(kafka: Broker, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"retention\.m"):
        await kafka.create_topics([TopicSpec(name, 1, {"retention.m": "1"})])
    with pytest.raises(ConfigurationError, match="InvalidTopic"):
        await kafka.create_topics([TopicSpec("a/b", 1)])


async def test_configuration_is_what_was_asked_for(kafka: Broker, admin: AIOKafkaAdminClient, name: str) -> None:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    config = {"retention.ms": "123456", "message.timestamp.type": "LogAppendTime"}
    await kafka.create_topics([TopicSpec(name, 2, config)])
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    found = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert {key: found[key] for key in config} == config
