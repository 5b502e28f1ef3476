"""The reader of fetched bytes, without a Kafka: whatever they are, it ends, in order and behind them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from aiokafka.codec import zstd_encode
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.errors import CorruptRecordException
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import ConsumerRecord, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from romancy_stream.broker.kafka.reading import UNPACKED_LIMIT_BYTES, Bytes, Fetched, Readable
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import INVALID_UTF8, Malformed
from romancy_stream.wire.record import Record
from tests.broker.kafka_kit import (
    APPEND_TIME,
    CONTROL,
    GZIP,
    LZ4,
    NO_TEXT,
    SNAPPY,
    TRANSACTIONAL,
    ZSTD,
    beyond_reading,
    raw_batch,
    raw_record,
)

BASE = 7


def fetched(data: bytes, offset: int = BASE, aborted: Sequence[tuple[int, int]] = ()) -> Readable:
    return Readable(TopicPartition("t", 0), Fetched(data), aborted, offset, None, None, True, READ_COMMITTED)


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


@pytest.mark.parametrize("deltas", [(0, 1_000), (1_000, 1), (-5, 1_000), (-5, 1), (1, 0)])
@pytest.mark.parametrize("before", [[], [(NO_TEXT, b"v")]])
def test_records_that_are_numbered_wrongly_are_those_that_they_are_by_their_place(
    deltas: tuple[int, int], before: list[tuple[bytes, bytes]]
) -> None:
    wrong = raw_batch(*(raw_record(b"%d" % delta, offset_delta=delta) for delta in deltas), base=BASE + 1)
    data = raw_batch(raw_record(b"a", before), base=BASE) + wrong + raw_batch(raw_record(b"z"), base=BASE + 3)
    expected = [b"a", *(b"%d" % delta for delta in deltas), b"z"]
    assert [(r.offset, r.value) for r in read(data)] == [(BASE + at, value) for at, value in enumerate(expected)]


def test_what_a_broker_has_compacted_away_is_no_fault() -> None:
    def left(*deltas: int, base: int, of: int) -> bytes:
        batch = bytearray(raw_batch(*(raw_record(b"v", offset_delta=each) for each in deltas), base=base))
        batch[23:27] = (of - 1).to_bytes(4)
        batch[17:21] = calc_crc32c(bytes(batch[21:])).to_bytes(4)
        return bytes(batch)

    reader = fetched(left(1, 3, base=BASE, of=5) + left(0, base=BASE + 5, of=2) + left(base=BASE + 7, of=9))
    assert [r.offset - BASE for r in reader] == [1, 3, 5]
    assert reader.next_fetch_offset == BASE + 16


def test_a_batch_that_was_cut_off_is_fetched_again() -> None:
    odd = raw_batch(raw_record(b"v", [(NO_TEXT, b"v")]), base=BASE)
    left = fetched(odd + raw_batch(raw_record(b"w"), base=BASE + 1)[:-1])
    assert [r.value for r in left] == [b"v"]
    assert left.next_fetch_offset == BASE + 1


def test_the_time_is_the_one_that_the_broker_gave() -> None:
    (record,) = read(raw_batch(raw_record(b"v", [(NO_TEXT, b"v")]), base=BASE, flags=APPEND_TIME))
    (usual,) = read(raw_batch(raw_record(b"v"), base=BASE, flags=APPEND_TIME))
    assert (record.timestamp, record.timestamp_type) == (usual.timestamp, usual.timestamp_type) == (0, 1)


@pytest.mark.parametrize("batch", [raw_batch(raw_record(b"v", headers)) for headers in ([], [(NO_TEXT, b"v")])])
def test_bytes_without_their_checksum_are_no_dead_letter(batch: bytes) -> None:
    """They may be whole when they are fetched again."""
    with pytest.raises(CorruptRecordException):
        read(batch[:-1] + bytes([batch[-1] ^ 1]), 0)


def test_a_batch_beyond_reading_is_one_record_at_its_end() -> None:
    batches = [beyond_reading(raw_record(b"v"), raw_record(b"w", offset_delta=1)), raw_batch(raw_record(b"x"), base=2)]
    assert [(r.offset, r.value) for r in read(b"".join(batches), 0)] == [(1, batches[0]), (2, b"x")]


@pytest.mark.parametrize("odd", [raw_record(b"v", [(NO_TEXT, b"v")]), raw_record(b"v", offset_delta=50)])
def test_what_was_aborted_stays_so(odd: bytes) -> None:
    """Its producer, its first offset, and the mark at its end, all before what is read with care."""
    aborted = raw_batch(raw_record(b"no"), flags=TRANSACTIONAL, producer=5)
    mark = raw_batch(raw_record(b"\0" * 6, key=b"\0" * 4), base=1, flags=TRANSACTIONAL | CONTROL, producer=5)
    committed = raw_batch(raw_record(b"yes"), base=3, flags=TRANSACTIONAL, producer=5)
    reader = fetched(aborted + mark + raw_batch(odd, base=2) + committed, 0, [(5, 0)])
    assert [r.offset for r in reader] == [2, 3]
    assert reader.next_fetch_offset == 4


@pytest.mark.parametrize("codec", [0, GZIP])
@pytest.mark.parametrize("magic", [0, 1])
def test_batches_of_old_formats(magic: int, codec: int) -> None:
    old = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
    for at in range(2):
        old.append(at, 0, b"k", b"%d" % at * 50)
    data = old.build()
    if codec:
        data[:8] = (1).to_bytes(8)  # as brokers do: the last offset in it
    data += raw_batch(raw_record(b"v", [(NO_TEXT, b"v")]), base=2)
    assert [(r.offset, r.value) for r in read(bytes(data), 0)] == [(0, b"0" * 50), (1, b"1" * 50), (2, b"v")]


@pytest.mark.parametrize("no_text", [False, True])
@pytest.mark.parametrize("where", ["value", "key", "header"])
def test_a_record_that_is_huge_once_it_is_uncompressed_goes_on_as_it_came(where: str, no_text: bool) -> None:
    def batch_of(size: int) -> bytes:
        large = bytes(size)
        odd = [(NO_TEXT, b"v")] * no_text
        records = [
            raw_record(b"a"),
            raw_record(large, odd, offset_delta=1)
            if where == "value"
            else raw_record(b"v", odd, key=large, offset_delta=1)
            if where == "key"
            else raw_record(b"v", [(b"h", large), *odd], offset_delta=1),
            raw_record(b"c", offset_delta=2),
        ]
        return raw_batch(*records, codec=ZSTD, compress=zstd_encode, base=BASE)

    huge, usual = batch_of(UNPACKED_LIMIT_BYTES), batch_of(1_000_000)
    assert [(r.offset - BASE, r.value) for r in read(huge)] == [(0, b"a"), (1, huge), (2, b"c")]
    assert [(r.key, r.headers) for r in read(huge)][1] == (None, ())
    assert [r.value for r in read(usual)][1] != usual


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
