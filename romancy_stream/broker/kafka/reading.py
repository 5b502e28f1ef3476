"""Reads on where aiokafka's parser would stop for ever: at what brokers accept and it does not, such as the name of a
header that is no UTF-8. It uses private names of aiokafka 0.14, which tests/broker/test_kafka_private_names.py lists,
and touches nothing but the fetcher that it is given.

Records go through aiokafka's own parser, in C. Only when that fails, what is left of the fetched bytes is looked at
batch by batch, and the one that it cannot read is read here. When that fails too, the whole batch is handed on as the
value of one record: nobody takes it for an event, so it is kept as a dead letter. So it is with a record that is huge
where it is not compressed.
"""

from __future__ import annotations

import logging
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any, Final

from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord

from romancy_stream.broker.kafka.faults import describe

log = logging.getLogger(__name__)

# What all formats of batches have in common: 8 bytes of offset, 4 bytes of length; what the length counts begins with
# 4 bytes and the number of the format.
LENGTH_AT: Final = 8
OVERHEAD_BYTES: Final = 12
MAGIC_AT: Final = 16
NEWEST_MAGIC: Final = 2
# What brokers limit is the compressed size: 2 KB may be a record of 40 MB. No event is read that has more than 1.4 MB,
# and MariaDB takes 16 MB, in which a byte may be two.
UNPACKED_LIMIT_BYTES: Final = 4 * 1_048_576
# Of 7 bits each: a number of 64 bits.
VARINT_LIMIT_BYTES: Final = 10


class Fetched(MemoryRecords):  # type: ignore[misc]
    """What a broker sent for one partition, batch by batch, as aiokafka reads it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self.start = self.end = 0  # of the batch that is being read
        self.is_packed = False

    def next_batch(self) -> Any:
        batch = super().next_batch()
        self.start, self.end, self.is_packed = _promises(batch)
        return batch


class Careful:
    """The same from `offset` on, where aiokafka has failed."""

    def __init__(self, data: bytes, offset: int, place: str) -> None:
        self.data = data
        self.start = self.end = 0
        self.is_packed = False
        self._place = place
        self._pieces = _pieces(data, offset)
        self._pieces.reverse()

    def has_next(self) -> bool:
        return bool(self._pieces)

    def next_batch(self) -> Any:
        piece = self._pieces.pop()
        batch = MemoryRecords(piece).next_batch()
        self.start, self.end, self.is_packed = _promises(batch)
        if piece[MAGIC_AT] < NEWEST_MAGIC or _is_usual(piece):
            return batch
        return UnusualBatch(piece, self._place)


class Readable(PartitionRecords):  # type: ignore[misc]
    """The records of one partition that were fetched together."""

    next_fetch_offset: int
    _records: Any
    _records_iterator: Any

    def __next__(self) -> ConsumerRecord:
        before = self.next_fetch_offset
        try:
            record = next(self._records_iterator)
            if record.offset != before:
                self._require_expected(record.offset, before)
        except StopIteration:
            self._records_iterator = None
            raise
        except Exception as error:
            if not isinstance(self._records, Fetched):
                raise  # bytes that do not have their checksum, which may come whole the next time
            log.info("%s: with care from offset %d on: %s", self._place, self.next_fetch_offset, describe(error))
        else:
            return self._limited(record) if self._records.is_packed else record
        # What was read is not read again: nobody remembers now which transactions of it were aborted.
        self._records = Careful(self._records.data, self.next_fetch_offset, self._place)
        self._records_iterator = self._unpack_records()
        return next(self)

    def _require_expected(self, offset: int, before: int) -> None:
        """Numbers within a batch have gaps where its topic is compacted, as ours are not, or where they are wrong: then
        ValueError, until it was looked at with care."""
        expected = max(before, self._records.start)
        if offset >= self._records.end or (offset > expected and isinstance(self._records, Fetched)):
            self.next_fetch_offset = expected
            raise ValueError(f"a record says that its offset is {offset}, where {expected} comes next")

    def _limited(self, record: ConsumerRecord) -> ConsumerRecord:
        """One that is too large for any database is handed on as it came: its batch, compressed."""
        texts = sum([len(name) + len(value or b"") for name, value in record.headers])
        size = texts + record.serialized_key_size + record.serialized_value_size
        if size <= UNPACKED_LIMIT_BYTES:
            return record
        log.warning("%s@%d has %d bytes, and goes on as its compressed batch", self._place, record.offset, size)
        packed = _pieces(self._records.data, record.offset)[0]
        return replace(
            record, key=None, value=packed, headers=(), serialized_key_size=-1, serialized_value_size=len(packed)
        )

    @property
    def _place(self) -> str:
        return f"{self._tp.topic}/{self._tp.partition}"


class UnusualBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    """Which aiokafka cannot read. Names of headers have lone surrogates where they are no UTF-8."""

    def __init__(self, piece: bytes, place: str) -> None:
        super().__init__(piece)
        self._piece = piece
        self._place = place

    def __iter__(self) -> Iterator[Any]:
        try:
            records = self._all()
        except Exception as error:  # of four libraries that uncompress
            last = self.next_offset - 1
            place = f"{self._place}@{self.base_offset} to {last}"
            log.warning("%s is a batch that cannot be read, and goes on as one record: %s", place, describe(error))
            records = [self._record(last, self.max_timestamp, None, self._piece, [])]
        return iter(records)

    def _all(self) -> list[Any]:
        self._maybe_uncompress()
        rest = Bytes(bytes(self._buffer), self._pos)
        records = [self._next(rest) for _ in range(self._num_records)]
        rest.require_end()
        if len(records) == self.last_offset_delta + 1:  # none was compacted away: each one's place is its number
            records = [replace(record, offset=self.base_offset + at) for at, record in enumerate(records)]
        _require_in_order(self, records)
        return records

    def _next(self, batch: Bytes) -> Any:
        rest = Bytes(batch.take(batch.number()))
        rest.take(1)  # attributes, of which there are none
        timestamp = self.first_timestamp + rest.number()
        if self.timestamp_type == self.LOG_APPEND_TIME:
            timestamp = self.max_timestamp
        offset = self.base_offset + rest.number()
        key, value = rest.take_or_none(), rest.take_or_none()
        headers = [
            (rest.take(rest.number()).decode(errors="surrogateescape"), rest.take_or_none())
            for _ in range(rest.number())
        ]
        rest.require_end()
        return self._record(offset, timestamp, key, value, headers)

    def _record(self, offset: int, timestamp: int, key: bytes | None, value: bytes | None, headers: list[Any]) -> Any:
        return _DefaultRecordPy(offset, timestamp, self.timestamp_type, key, value, headers)


class Bytes:
    """Takes them from the front. Raises ValueError where there are not enough, or too many."""

    __slots__ = ("_at", "_raw")

    def __init__(self, raw: bytes, at: int = 0) -> None:
        self._raw = raw
        self._at = at

    def take(self, count: int) -> bytes:
        taken = self._raw[self._at : self._at + count]
        if count < 0 or len(taken) < count:
            raise ValueError(f"{count} bytes at {self._at} of {len(self._raw)}")
        self._at += count
        return taken

    def take_or_none(self) -> bytes | None:
        count = self.number()
        return None if count < 0 else self.take(count)

    def number(self) -> int:
        """Seven bits in each byte, the lowest ones first; the sign is the lowest of all."""
        folded = 0
        for place in range(VARINT_LIMIT_BYTES):
            byte = self.take(1)[0]
            folded |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return (folded >> 1) ^ -(folded & 1)
        raise ValueError("a number does not end")

    def require_end(self) -> None:
        if self._at < len(self._raw):
            raise ValueError(f"{len(self._raw) - self._at} bytes more than declared")


def _pieces(data: bytes, offset: int) -> list[bytes]:
    """The batches that hold `offset` and what is behind it. The last one fetched is often cut off, and left out."""
    pieces, at = [], 0
    while at + OVERHEAD_BYTES <= len(data):
        (length,) = struct.unpack_from(">i", data, at + LENGTH_AT)
        piece = data[at : at + OVERHEAD_BYTES + length]
        if len(piece) < OVERHEAD_BYTES + length:
            break
        if MemoryRecords(piece).next_batch().next_offset > offset:
            pieces.append(piece)
        at += len(piece)
    return pieces


def _promises(batch: Any) -> tuple[int, int, bool]:
    """(first offset, end of its offsets, whether its records may be larger than brokers allow). Older formats promise
    nothing."""
    if isinstance(batch, DefaultRecordBatch):
        return batch.base_offset, batch.next_offset, batch.compression_type != batch.CODEC_NONE
    return 0, sys.maxsize, True


def _is_usual(piece: bytes) -> bool:
    batch = MemoryRecords(piece).next_batch()
    try:
        _require_in_order(batch, list(batch))
    except Exception:  # it will be met again where it matters
        return False
    return True


def _require_in_order(batch: Any, records: list[Any]) -> None:
    """Brokers check the numbers of records that are compressed, and believe those of others."""
    offsets = [batch.base_offset - 1, *(record.offset for record in records), batch.next_offset]
    if any(following <= offset for offset, following in pairwise(offsets)):
        raise ValueError("offsets of records that are not those of their batch")


# The method of aiokafka's in which it makes these two, for our fetchers alone: the module has its own still.
_original: Final = Fetcher._proc_fetch_request
_READING: Final = FunctionType(
    _original.__code__, {**_original.__globals__, "MemoryRecords": Fetched, "PartitionRecords": Readable}
)


def read_all(fetcher: Fetcher) -> None:
    """From its next answer on, it reads whatever brokers take."""
    fetcher._proc_fetch_request = MethodType(_READING, fetcher)
