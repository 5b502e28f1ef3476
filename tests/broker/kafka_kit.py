"""What the Kafka tests share: a batch handler that checks what the port promises, and shorthands. No broker is started
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy as BatchBuilder

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.port import TP, BatchSource, Broker, OutRecord, Record, TopicSpec

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


# -- records that other producers may write, and aiokafka's consumers cannot read ------------------------------
class _NoText(str):
    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def header_name_that_is_no_text() -> bytes:
    """Kafka calls names of headers texts, and takes any bytes."""
    batch = BatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    batch.append(0, None, b"k", b"v", [(_NoText("ab"), b"v")])
    return bytes(batch.build())


def compressed_as_nobody_here_can_read() -> bytes:
    """By snappy, in the frame that the Java client uses. aiokafka has no codec for it of its own."""

    class Snappy(BatchBuilder):  # type: ignore[misc]
        def _maybe_compress(self) -> bool:
            plain = bytes(self._buffer[self.HEADER_STRUCT.size :])
            assert len(plain) < 60
            block = bytes([len(plain), (len(plain) - 1) << 2]) + plain
            self._buffer[self.HEADER_STRUCT.size :] = b"\x82SNAPPY\x00" + struct.pack(">iii", 1, 1, len(block)) + block
            return True

    batch = Snappy(2, 2, False, -1, -1, -1, 1 << 20)
    batch.append(0, None, b"k", b"v", [])
    return bytes(batch.build())


async def append_raw(broker: KafkaBroker, topic: str, batch: bytes) -> None:
    """To partition 0, of a cluster with one broker."""
    client = AIOKafkaClient(bootstrap_servers=broker.bootstrap)
    await client.bootstrap()
    try:
        request = ProduceRequest(None, -1, 5_000, [(topic, [(0, batch)])])
        answer = await client.send(client.get_random_node(), request)
        assert answer.topics[0][1][0][1] == 0, answer
    finally:
        await client.close()
