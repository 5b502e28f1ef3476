"""Sending to a real Kafka: order, partitions, offsets, and every way in which a record can be refused."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import errors as kafka_errors

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.kafka import producer as producer_module
from romancy_stream.broker.port import Broker, OutRecord, Record
from romancy_stream.errors import BrokerUnavailableError, RecordRefusedError
from tests.broker.kafka_kit import Handler, make_topic, produce, record, running
from tests.support import eventually

pytestmark = pytest.mark.kafka


async def read_all(broker: Broker, topic: str, count: int) -> list[Record]:
    handler = Handler()
    async with running(broker.batches([topic], f"read-{topic}", handler)):
        await eventually(lambda: handler.book.count >= count)
    return [r for batch in handler.batches for records in batch.values() for r in records]


async def test_offsets_follow_the_order_of_each_partition(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=3)
    calls = [kafka.send([record(name, b"%d" % (n * 100 + i), i % 3) for i in range(60)]) for n in range(10)]
    offsets = [await asyncio.gather(*futures) for futures in await asyncio.gather(*calls)]
    by_partition = {p: [offsets[n][i] for n in range(10) for i in range(60) if i % 3 == p] for p in range(3)}
    assert by_partition == {p: list(range(200)) for p in range(3)}
    values = [r.value for r in await read_all(kafka, name, 600) if r.partition == 1]
    assert values == [b"%d" % (n * 100 + i) for n in range(10) for i in range(60) if i % 3 == 1]


async def test_a_record_arrives_as_it_was_sent(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    sent = OutRecord(name, "schlüssel".encode(), None, [("a", b"\x00\xff"), ("a", b""), ("ü", b"2")])
    await (await kafka.send([sent]))[0]
    (got,) = await read_all(kafka, name, 1)
    assert (got.key, got.value, list(got.headers)) == (sent.key, None, list(sent.headers))
    assert got.timestamp_ms > 1_600_000_000_000


async def test_the_partition_of_a_key_is_that_of_the_java_client(kafka: Broker, name: str) -> None:
    # murmur2 of these keys as Kafka's own unit test of it lists them
    hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    await make_topic(kafka, name, partitions=7)
    await asyncio.gather(*await kafka.send([OutRecord(name, key, b"", []) for key in hashes]))
    got = {r.key: r.partition for r in await read_all(kafka, name, len(hashes))}
    assert got == {key: (each & 0x7FFFFFFF) % 7 for key, each in hashes.items()}


async def test_one_record_too_large_for_the_topic_costs_nobody_else(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, max_message_bytes="3000")
    values = [b"%d" % n if n != 7 else b"x" * 5_000 for n in range(20)]
    results = await asyncio.gather(*await kafka.send([record(name, v, 0) for v in values]), return_exceptions=True)
    assert isinstance(results[7], RecordRefusedError)
    assert "MessageSizeTooLarge" in str(results[7])
    assert [r for r in results if not isinstance(r, RecordRefusedError)] == list(range(19))
    assert [r.value for r in await read_all(kafka, name, 19)] == [v for v in values if len(v) < 5_000]


async def test_a_record_over_the_limit_is_refused_before_it_is_sent(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    small, large = await kafka.send([record(name, b"a", 0), record(name, b"x" * 2_000_000, 0)])
    with pytest.raises(RecordRefusedError, match="the limit is 1048576"):
        await large
    assert await small == 0


async def test_an_unknown_topic_is_refused_and_not_created(
    kafka: Broker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "UNKNOWN_TOPIC_LIMIT_S", 0.5)
    first, second = await kafka.send([record(name, b"1"), record(name, b"2")])
    for future in (first, second):
        with pytest.raises(RecordRefusedError, match=name):
            await future
    assert name not in await kafka.topics()
    await make_topic(kafka, name)
    assert await (await kafka.send([record(name, b"3")]))[0] == 0


async def test_an_unknown_partition_is_refused(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    futures = await kafka.send([record(name, b"1", 2), record(name, b"2", 1)])
    with pytest.raises(RecordRefusedError, match="2 partitions"):
        await futures[0]
    assert await futures[1] == 0


async def test_a_producer_that_died_is_replaced(kafka: KafkaBroker, name: str) -> None:
    await make_topic(kafka, name, partitions=2)
    await produce(kafka, name, 10, partitions=2)
    assert kafka._producer is not None
    dead = kafka._producer._session
    assert dead is not None
    dead.producer._message_accumulator.fail_all(
        kafka_errors.OutOfOrderSequenceNumber()
    )  # as its sender does at its end
    offsets = await asyncio.gather(*await kafka.send([record(name, b"%d" % n, n % 2) for n in range(10)]))
    assert offsets == [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert kafka._producer._session is not dead


async def test_sequence_numbers_that_the_broker_rejects_do_not_lose_records(kafka: KafkaBroker, name: str) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 3)
    assert kafka._producer is not None
    assert kafka._producer._session is not None
    txn = kafka._producer._session.producer._txn_manager
    txn.increment_sequence_number(_tp(name), 1000)  # the broker has never seen the thousand before
    await produce(kafka, name, 3, start=3)
    assert [r.value for r in await read_all(kafka, name, 6)] == [b"%d" % n for n in range(6)]


def _tp(name: str):  # type: ignore[no-untyped-def]
    from aiokafka.structs import TopicPartition

    return TopicPartition(name, 0)


async def test_send_waits_for_space_and_keeps_the_order_of_the_callers(kafka_bootstrap: str, name: str) -> None:
    settings = KafkaSettings(buffer_limit_bytes=10_000, batch_limit_bytes=4_000)
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=settings)
    await broker.open()
    try:
        await make_topic(broker, name)
        calls = [broker.send([record(name, b"x" * 500, 0) for _ in range(50)]) for _ in range(4)]
        offsets = [await asyncio.gather(*futures) for futures in await asyncio.gather(*calls)]
        assert offsets == [list(range(n * 50, n * 50 + 50)) for n in range(4)]
    finally:
        await broker.close()


async def test_what_is_not_acknowledged_in_time_fails_with_all_behind_it(
    kafka_bootstrap: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader is unreachable: as when its machine is gone."""
    monkeypatch.setattr(producer_module, "CLOSE_LIMIT_S", 0.5)
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=KafkaSettings(delivery_limit_ms=1_500))
    await broker.open()
    try:
        await make_topic(broker, name)
        await produce(broker, name, 1)
        assert broker._producer is not None
        assert broker._producer._session is not None
        monkeypatch.setattr(broker._producer._session.producer.client, "send", _never)
        futures = await broker.send([record(name, b"1", 0)])
        futures += await broker.send([record(name, b"2", 0)])
        for future in futures:
            with pytest.raises(BrokerUnavailableError, match=r"not acknowledged within 1\.5 s"):
                await future
        assert await (await broker.send([record(name, b"3", 0)]))[0] == 1
    finally:
        await broker.close()


async def _never(*_args: object, **_kwargs: object) -> None:
    await asyncio.Event().wait()


async def test_a_topic_deleted_under_a_batch_is_refused(
    kafka: KafkaBroker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "EXISTENCE_CHECK_S", 0.5)
    await make_topic(kafka, name)
    await produce(kafka, name, 1)
    await delete_topic(kafka.bootstrap, name)
    await eventually(lambda: _is_absent(kafka, name))
    with pytest.raises(RecordRefusedError, match=f"no topic {name}"):
        await (await kafka.send([record(name, b"1", 0)]))[0]


async def _is_absent(broker: Broker, name: str) -> bool:
    return name not in await broker.topics()


async def delete_topic(bootstrap: str, name: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([name])
    finally:
        await admin.close()


async def test_a_record_that_is_not_bytes_does_not_block_its_partition(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    with pytest.raises(TypeError):
        await kafka.send([OutRecord(name, "text", b"", [], 0)])  # type: ignore[arg-type]
    assert await (await kafka.send([record(name, b"1", 0)]))[0] == 0


async def test_a_mistake_in_sending_leaves_nobody_waiting(
    kafka: Broker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_topic(kafka, name)

    def broken(*_args: object) -> int:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(producer_module, "_fill", broken)
        with pytest.raises(RecordRefusedError, match="on purpose"):
            await (await kafka.send([record(name, b"1", 0)]))[0]
    assert await (await kafka.send([record(name, b"1", 0)]))[0] == 0


async def test_nobody_answers() -> None:
    broker = KafkaBroker("kafka://127.0.0.1:1", client_id="test")
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        await broker.open()
    with pytest.raises(BrokerUnavailableError):
        await broker.send([record("t", b"1")])


async def test_compression(kafka_bootstrap: str, name: str) -> None:
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=KafkaSettings(compression="gzip"))
    await broker.open()
    try:
        await make_topic(broker, name)
        await produce(broker, name, 100)
        assert [r.value for r in await read_all(broker, name, 100)] == [b"%d" % n for n in range(100)]
    finally:
        await broker.close()
