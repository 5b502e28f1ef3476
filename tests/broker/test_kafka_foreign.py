"""What producers in other languages write, on a real Kafka: compressed batches, and batches that brokers take and
aiokafka cannot read. All three readers go on behind them, and lose nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode

from romancy_stream import App, WorkflowContext
from romancy_stream.broker.kafka import KafkaBroker
from romancy_stream.broker.port import TP, AssignedRange, Broker, Record
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import INVALID_UTF8, NOT_A_CLOUDEVENT, Malformed
from tests.broker.kafka_kit import (
    GZIP,
    LZ4,
    NO_TEXT,
    SNAPPY,
    ZSTD,
    append_raw,
    beyond_reading,
    make_topic,
    raw_batch,
    raw_record,
    running,
)
from tests.support import eventually

pytestmark = pytest.mark.kafka

PATIENCE_S = 90
Compress = Callable[[bytes], bytes]
CODECS: dict[str, tuple[int, Compress]] = {
    "gzip": (GZIP, gzip_encode),
    "snappy, as Java frames it": (SNAPPY, snappy_encode),
    "snappy without a frame": (SNAPPY, lambda plain: snappy_encode(plain, xerial_compatible=False)),
    "lz4": (LZ4, lz4_encode),
    "zstd": (ZSTD, zstd_encode),
}


class Everything:
    """Handler of batches and tasks, and callback of a tail: keeps the records."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.gaps: list[BaseException | None] = []

    async def on_assigned(self, partitions: set[TP] | Mapping[TP, AssignedRange]) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 0)

    async def on_revoked(self, partitions: set[TP]) -> None:
        pass

    async def on_batch(self, batch: Mapping[TP, Sequence[Record]]) -> None:
        await self.on_records([record for records in batch.values() for record in records])

    async def on_records(self, records: Sequence[Record]) -> None:
        self.records += records


@pytest.fixture(params=["batches", "tasks", "tail"])
async def read(request: pytest.FixtureRequest, kafka: Broker, name: str) -> AsyncIterator[Everything]:
    """What the reader has read of the topic, which is made here and empty."""
    await make_topic(kafka, name)
    seen = Everything()
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "batches":
            await stack.enter_async_context(running(kafka.batches([name], name, seen)))
        elif request.param == "tasks":
            await stack.enter_async_context(_fetching(kafka, name, seen))
        else:
            tail = kafka.tail([name], seen.on_records, seen.gaps.append)
            await tail.start()
            stack.push_async_callback(tail.stop)
        yield seen
    assert seen.gaps == []


@contextlib.asynccontextmanager
async def _fetching(kafka: Broker, name: str, seen: Everything) -> AsyncIterator[None]:
    class Tasks:
        async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
            await seen.on_assigned(ranges)

        async def on_revoked(self, partitions: set[TP]) -> None:
            await seen.on_revoked(partitions)

    async def fetch() -> None:
        while True:
            seen.records += await source.fetch(100)

    source = kafka.tasks([name], name, Tasks())
    await source.start()
    fetching = asyncio.create_task(fetch())
    yield
    fetching.cancel()
    await asyncio.wait({fetching})
    assert fetching.cancelled()
    await source.stop()


async def test_all_codecs_are_read(kafka: KafkaBroker, name: str, read: Everything) -> None:
    expected: list[bytes] = []
    for codec, (number, compress) in CODECS.items():
        values = [f"{codec} {at}".encode() * 100 for at in range(3)]
        records = [raw_record(value, [(b"h", b"v")], offset_delta=at) for at, value in enumerate(values)]
        await append_raw(kafka, name, raw_batch(*records, codec=number, compress=compress))
        expected += values
    await eventually(lambda: len(read.records) >= len(expected), deadline_s=PATIENCE_S)
    assert [r.value for r in read.records] == expected
    assert [r.offset for r in read.records] == list(range(len(expected)))
    assert {tuple(r.headers) for r in read.records} == {(("h", b"v"),)}


async def test_nothing_that_a_broker_takes_stops_a_reader(kafka: KafkaBroker, name: str, read: Everything) -> None:
    def good(value: bytes, at: int) -> bytes:
        return raw_record(value, [(b"h", b"v")], offset_delta=at)

    no_text = raw_record(b"name", [(b"h", b"v"), (NO_TEXT, b"v")], offset_delta=1)
    unread = beyond_reading(good(b"x", 0), good(b"y", 1))
    await append_raw(kafka, name, raw_batch(good(b"0", 0), no_text, good(b"2", 2)))
    await append_raw(kafka, name, unread)
    await append_raw(kafka, name, raw_batch(good(b"5", 0), raw_record(b"far", offset_delta=1_000)))
    await append_raw(kafka, name, raw_batch(raw_record(b"7", attributes=0x80, key=b"key")))
    await append_raw(kafka, name, raw_batch(raw_record(b"8", attributes=0x80), good(b"9", 1)))
    await append_raw(kafka, name, raw_batch(good(b"10", 0), no_text, good(b"12", 2), codec=GZIP, compress=gzip_encode))
    await append_raw(kafka, name, raw_batch(good(b"13", 0)))
    await eventually(lambda: len(read.records) >= 13, deadline_s=PATIENCE_S)
    values = [r.value for r in read.records]
    assert values[:3] == [b"0", b"name", b"2"]
    assert list(read.records[1].headers) == [("h", b"v"), ("\udcff\udcfe", b"v")]
    assert values[3] is not None
    assert values[3].endswith(unread[21:])  # behind the numbers that the broker gives
    assert values[4:] == [b"5", b"far", b"7", b"8", b"9", b"10", b"name", b"12", b"13"]
    assert read.records[6].key == b"key"
    assert [r.offset for r in read.records] == [0, 1, 2, *range(4, 14)]
    problems = {r.offset: decode(r) for r in read.records if r.offset in (1, 4, 11)}
    reasons = {at: each.reason for at, each in problems.items() if isinstance(each, Malformed)}
    assert reasons == {1: INVALID_UTF8, 4: NOT_A_CLOUDEVENT, 11: INVALID_UTF8}


# -- an app --------------------------------------------------------------------------------------------------


@pytest.fixture
async def app(kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[App]:
    database = f"sqlite:///{tmp_path / 'state.db'}"
    app = App(f"f{uuid.uuid4().hex[:12]}", broker=f"kafka://{kafka_bootstrap}", database=database, partitions=1)

    @app.activity
    async def say(name: str) -> str:
        return f"it is {name}"

    @app.workflow
    async def greet(ctx: WorkflowContext, name: str) -> str:
        return await say(name)

    async with app:
        yield app


def start(name: str, at: int, *more: tuple[bytes, bytes]) -> bytes:
    headers = [
        (b"ce_specversion", b"1.0"),
        (b"ce_id", name.encode()),
        (b"ce_source", b"/others"),
        (b"ce_type", w.START.encode()),
        (b"ce_subject", name.encode()),
        (b"ce_romancyworkflow", b"greet"),
        *more,
    ]
    return raw_record(f'"{name}"'.encode(), headers, key=name.encode(), offset_delta=at)


async def test_an_engine_carries_out_what_stands_beside_a_command_that_cannot_be_read(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    broker = app._broker
    assert isinstance(broker, KafkaBroker)
    await append_raw(
        broker, app.topics.commands, raw_batch(start("a", 0), start("not", 1, (NO_TEXT, b"v")), start("b", 2))
    )
    await append_raw(broker, app.topics.commands, beyond_reading(start("lost", 0)))
    for codec, (number, compress) in CODECS.items():
        records = [start(f"{codec} {at}", at) for at in range(2)]
        await append_raw(broker, app.topics.commands, raw_batch(*records, codec=number, compress=compress))
    names = ["a", "b", *(f"{codec} {at}" for codec in CODECS for at in range(2))]
    for name in names:
        await eventually(partial(app.get_instance, name), deadline_s=PATIENCE_S)
        assert await app.handle(name).result(timeout=PATIENCE_S) == f"it is {name}"
    letters = {letter.dlq_id: letter for letter in await app.dead_letters()}
    assert {each: letter.reason for each, letter in letters.items()} == {
        f"{app.topics.commands}/0/1": INVALID_UTF8,
        f"{app.topics.commands}/0/3": NOT_A_CLOUDEVENT,
    }
    assert await app.get_instance("not") is None
    assert "the engine failed" not in caplog.text
    await app.replay_dead_letter(f"{app.topics.commands}/0/1")  # its headers are texts now
    await eventually(lambda: app.get_instance("not"), deadline_s=PATIENCE_S)
    assert await app.handle("not").result(timeout=PATIENCE_S) == "it is not"


async def test_a_worker_goes_on_behind_a_task_that_cannot_be_read(app: App) -> None:
    broker = app._broker
    assert isinstance(broker, KafkaBroker)
    told: list[WireEvent] = []

    async def on_records(records: Sequence[Record]) -> None:
        told.extend(event for each in records if isinstance(event := decode(each), WireEvent))

    tail = broker.tail([app.topics.dead_letters], on_records)
    await tail.start()
    tasks = app.topics.tasks("default")
    await append_raw(broker, tasks, raw_batch(raw_record(b"v", [(NO_TEXT, b"v")])))
    await append_raw(broker, tasks, beyond_reading(raw_record(b"v")))
    handle = await app.start_by_name("greet", "Ada", instance_id="i")
    assert await handle.result(timeout=PATIENCE_S) == "it is Ada"
    await eventually(lambda: len(told) == 2, deadline_s=PATIENCE_S)
    await tail.stop()
    assert [(each.type, each.subject) for each in told] == [(w.DEAD_LETTER, f"{tasks}/0/{at}") for at in range(2)]
