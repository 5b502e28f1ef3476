"""The reader of fetched bytes, without a Kafka: whatever they are, it ends, in order and behind them."""

from __future__ import annotations

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.errors import CorruptRecordException
from aiokafka.structs import ConsumerRecord, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from romancy_stream.broker.kafka.reading import Bytes, Fetched, Readable
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import INVALID_UTF8, Malformed
from romancy_stream.wire.record import Record
from tests.broker.kafka_kit import GZIP, LZ4, NO_TEXT, SNAPPY, ZSTD, beyond_reading, raw_batch, raw_record

BASE = 7


def fetched(data: bytes, offset: int = BASE) -> Readable:
    return Readable(TopicPartition("t", 0), Fetched(data), [], offset, None, None, True, READ_COMMITTED)


def read(data: bytes, offset: int = BASE) -> list[ConsumerRecord]:
    return list(fetched(data, offset))


def test_a_batch_is_read_on_from_the_middle() -> None:
    records = [raw_record(b"%d" % at, [(NO_TEXT, b"v")] * (at == 2), offset_delta=at) for at in range(4)]
    data = raw_batch(*records, base=BASE) + raw_batch(raw_record(b"4"), base=BASE + 4)
    assert [r.value for r in read(data, BASE + 1)] == [b"1", b"2", b"3", b"4"]
    assert [r.value for r in read(data, BASE + 3)] == [b"3", b"4"]
    whole = fetched(data)
    assert [(r.offset, r.value) for r in whole] == [(BASE + at, b"%d" % at) for at in range(5)]
    assert whole.next_fetch_offset == BASE + 5


def test_it_is_a_dead_letter_also_as_a_whole_event() -> None:
    attributes = [(b"ce_specversion", b"1.0"), (b"ce_id", b"1"), (b"ce_source", b"/s"), (b"ce_type", b"t")]
    usual = read(raw_batch(raw_record(b"1", attributes)), 0)
    odd = read(raw_batch(raw_record(b"1", [*attributes, (NO_TEXT, b"v")])), 0)
    events = [decode(Record("t", 0, r.offset, r.key, r.value, r.headers, r.timestamp)) for r in (*usual, *odd)]
    assert isinstance(events[0], WireEvent)
    assert isinstance(events[1], Malformed)
    assert events[1].reason == INVALID_UTF8


def test_a_batch_that_was_cut_off_is_fetched_again() -> None:
    odd = raw_batch(raw_record(b"v", [(NO_TEXT, b"v")]), base=BASE)
    left = fetched(odd + raw_batch(raw_record(b"w"), base=BASE + 1)[:-1])
    assert [r.value for r in left] == [b"v"]
    assert left.next_fetch_offset == BASE + 1


def test_the_time_is_the_one_that_the_broker_gave() -> None:
    (record,) = read(raw_batch(raw_record(b"v", [(NO_TEXT, b"v")]), base=BASE, append_time=True))
    (usual,) = read(raw_batch(raw_record(b"v"), base=BASE, append_time=True))
    assert (record.timestamp, record.timestamp_type) == (usual.timestamp, usual.timestamp_type) == (0, 1)


@pytest.mark.parametrize("batch", [raw_batch(raw_record(b"v", headers)) for headers in ([], [(NO_TEXT, b"v")])])
def test_bytes_without_their_checksum_are_no_dead_letter(batch: bytes) -> None:
    """They may be whole when they are fetched again."""
    with pytest.raises(CorruptRecordException):
        read(batch[:-1] + bytes([batch[-1] ^ 1]), 0)


def test_a_batch_beyond_reading_is_one_record_at_its_end() -> None:
    batches = [beyond_reading(raw_record(b"v"), raw_record(b"w", offset_delta=1)), raw_batch(raw_record(b"x"), base=2)]
    assert [(r.offset, r.value) for r in read(b"".join(batches), 0)] == [(1, batches[0]), (2, b"x")]


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary(max_size=60) | st.binary(max_size=40).map(lambda more: raw_record(b"v", [(NO_TEXT, b"v")]) + more),
    count=st.integers(1, 3),
    codec=st.sampled_from([0, 0, 0, GZIP, SNAPPY, LZ4, ZSTD, 5]),
)
def test_any_bytes_are_read_to_their_end(body: bytes, count: int, codec: int) -> None:
    junk = raw_batch(*[b""] * count, codec=codec, compress=lambda _: body, base=BASE)
    reader = fetched(junk + raw_batch(raw_record(b"good"), base=BASE + count))
    records = list(reader)
    offsets = [r.offset for r in records]
    assert offsets == sorted(set(offsets))
    assert offsets[0] >= BASE
    assert (offsets[-1], records[-1].value) == (BASE + count, b"good")
    assert reader.next_fetch_offset == BASE + count + 1


@pytest.mark.parametrize(("raw", "number"), [(b"\x00", 0), (b"\x01", -1), (b"\x80\x01", 64), (b"\xff\x01", -128)])
def test_numbers(raw: bytes, number: int) -> None:
    assert Bytes(raw).number() == number


def test_a_number_that_does_not_end() -> None:
    with pytest.raises(ValueError, match="does not end"):
        Bytes(b"\x80" * 20).number()
