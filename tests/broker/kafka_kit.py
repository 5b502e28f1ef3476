"""What the Kafka tests share: a batch handler that checks what the port promises, and shorthands. No broker is started
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient
from aiokafka.codec import lz4_encode
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c, encode_varint_py
from aiokafka.structs import TopicPartition

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.kafka.tail import KafkaTail
from romancy_stream.broker.port import TP, BatchSource, Broker, OutRecord, Record, Tail, TopicSpec
from tests.support import eventually

# A member that died is noticed after 2 s; a rebalance after 0.3 s.
FAST = KafkaSettings(session_timeout_ms=2_000, heartbeat_interval_ms=300)


class Book:
    """The positions and values that several handlers share, as they would share a database."""

    def __init__(self) -> None:
        self.next: dict[TP, int] = {}
        self.values: dict[TP, list[bytes | None]] = {}

    def take(self, tp: TP, records: Sequence[Record]) -> None:
        """Fails at a hole, a duplicate, or a wrong order."""
        expected = self.next.get(tp, 0)
        assert [r.offset for r in records] == list(range(expected, expected + len(records)))
        assert all((r.topic, r.partition) == tp for r in records)
        self.next[tp] = expected + len(records)
        self.values.setdefault(tp, []).extend(r.value for r in records)

    @property
    def count(self) -> int:
        return sum(len(each) for each in self.values.values())


class Handler:
    """Checks that calls do not overlap and that only owned partitions are delivered."""

    def __init__(self, book: Book | None = None) -> None:
        self.book = book or Book()
        self.owned: set[TP] = set()
        self.assigned_count = 0
        self.batches: list[Mapping[TP, Sequence[Record]]] = []
        self.revoked: list[set[TP]] = []
        self.before_assigned: Callable[[], Awaitable[None]] | None = None
        self.before_batch: Callable[[Mapping[TP, Sequence[Record]]], Awaitable[None]] | None = None
        self._inside = False

    @contextlib.contextmanager
    def _alone(self):  # type: ignore[no-untyped-def]
        assert not self._inside, "calls of the handler overlap"
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        with self._alone():
            assert not self.owned, "assigned without revoking"
            if self.before_assigned is not None:
                await self.before_assigned()
            self.owned = set(partitions)
            self.assigned_count += 1
            return {tp: self.book.next.get(tp, 0) for tp in partitions}

    async def on_batch(self, batch: Mapping[TP, Sequence[Record]]) -> None:
        with self._alone():
            assert set(batch) <= self.owned
            if self.before_batch is not None:
                await self.before_batch(batch)
            await asyncio.sleep(0)
            for tp, records in batch.items():
                self.book.take(tp, records)
            self.batches.append(batch)

    async def on_revoked(self, partitions: set[TP]) -> None:
        with self._alone():
            assert partitions == self.owned
            self.owned = set()
            self.revoked.append(partitions)


@contextlib.asynccontextmanager
async def running(source: BatchSource) -> AsyncIterator[asyncio.Task[None]]:
    """Stops it at the end and lets through what `run` raised."""
    task = asyncio.create_task(source.run())
    try:
        yield task
    finally:
        await source.stop()
    await task


def tps(*topics: str, partitions: Iterable[int]) -> set[TP]:
    return {TP(topic, each) for topic in topics for each in partitions}


async def make_topic(broker: Broker, name: str, partitions: int = 1, **config: str) -> None:
    made = await broker.create_topics(
        [TopicSpec(name, partitions, {k.replace("_", "."): v for k, v in config.items()})]
    )
    assert made == [name]


def record(topic: str, value: bytes, partition: int | None = None, key: bytes = b"k") -> OutRecord:
    return OutRecord(topic, key, value, [("h", b"v")], partition)


async def produce(broker: Broker, topic: str, count: int, partitions: int = 1, start: int = 0) -> None:
    """`count` records round robin over the partitions, with the values start, start + 1, …"""
    rows = [record(topic, b"%d" % n, n % partitions) for n in range(start, start + count)]
    await asyncio.gather(*await broker.send(rows))


# -- batches as other producers may write them: brokers take them all, aiokafka's own parser does not ------------
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
APPEND_TIME, TRANSACTIONAL, CONTROL = 8, 16, 32
Headers = Sequence[tuple[bytes, bytes]]


def raw_record(
    value: bytes, headers: Headers = (), *, key: bytes = b"k", offset_delta: int = 0, attributes: int = 0
) -> bytes:
    parts = [part for header in headers for part in header]
    texts = b"".join(_number(len(part)) + part for part in (key, value))
    fields = bytes([attributes]) + _number(0) + _number(offset_delta) + texts + _number(len(headers))
    body = fields + b"".join(_number(len(part)) + part for part in parts)
    return _number(len(body)) + body


def raw_batch(
    *records: bytes,
    codec: int = 0,
    compress: Callable[[bytes], bytes] = bytes,
    base: int = 0,
    flags: int = 0,
    producer: int = -1,
) -> bytes:
    """With the checksum that it should have."""
    last, epoch = len(records) - 1, min(producer, 0)
    head = struct.pack(">hiqqqhii", codec | flags, last, 0, 0, producer, epoch, epoch, len(records))
    body = head + compress(b"".join(records))
    return struct.pack(">qiibI", base, len(body) + 9, -1, 2, calc_crc32c(body)) + body


def _number(number: int) -> bytes:
    written = bytearray()
    encode_varint_py(number, written.append)
    return bytes(written)


NO_TEXT = b"\xff\xfe"
"""Kafka says that names of headers are texts, and takes any bytes."""


def beyond_reading(*records: bytes) -> bytes:
    """Java's decoder stops at the end of the first frame."""
    return raw_batch(*records, codec=LZ4, compress=lambda plain: lz4_encode(plain) + b"and more")


async def append_raw(broker: KafkaBroker, topic: str, batch: bytes) -> None:
    """To partition 0, of a cluster with one broker."""
    client = AIOKafkaClient(bootstrap_servers=broker.bootstrap)
    await client.bootstrap()

    async def appended() -> bool:
        request = ProduceRequest(None, -1, 5_000, [(topic, [(0, batch)])])
        answer = await client.send(client.get_random_node(), request)
        error = kafka.for_code(answer.topics[0][1][0][1])
        assert error in (kafka.NoError, kafka.NotLeaderForPartitionError), error
        return bool(error is kafka.NoError)

    try:
        await eventually(appended)
    finally:
        await client.close()


def spoil(tail: Tail, topic: str) -> None:
    """What the tail reads next of partition 0 has not its checksum."""
    assert isinstance(tail, KafkaTail)
    assert tail._consumer is not None
    error = kafka.CorruptRecordException(f"Invalid CRC - {topic}/0")
    tail._consumer._fetcher._set_error(TopicPartition(topic, 0), error)
