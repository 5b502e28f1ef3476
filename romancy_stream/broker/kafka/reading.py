"""Reads on where aiokafka's parser would stop for ever: at what brokers accept and it does not, such as the name of a
header that is no UTF-8. It uses private names of aiokafka 0.14, which tests/broker/test_kafka_private_names.py lists,
and touches nothing but the fetcher that it is given.

Records go through aiokafka's own parser, in C. Only when that fails, what is left of the fetched bytes is looked at
batch by batch, and the one that it cannot read is read here. When that fails too, the whole batch is handed on as the
value of one record: nobody takes it for an event, so it is kept as a dead letter.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any, Final

from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
from aiokafka.record.default_records import DefaultRecord, _DefaultRecordBatchPy
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
# Of 7 bits each: a number of 64 bits.
VARINT_LIMIT_BYTES: Final = 10


class Fetched(MemoryRecords):  # type: ignore[misc]
    """What a broker sent for one partition, batch by batch, as aiokafka reads it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self.end = 0  # of the batch that is being read

    def next_batch(self) -> Any:
        batch = super().next_batch()
        self.end = batch.next_offset
        return batch


class Careful:
    """The same from `offset` on, where aiokafka has failed."""

    def __init__(self, data: bytes, offset: int, place: str) -> None:
        self.end = 0
        self._place = place
        self._pieces = [piece for piece in _pieces(data) if MemoryRecords(piece).next_batch().next_offset > offset]
        self._pieces.reverse()

    def has_next(self) -> bool:
        return bool(self._pieces)

    def next_batch(self) -> Any:
        piece = self._pieces.pop()
        batch = MemoryRecords(piece).next_batch()
        self.end = batch.next_offset
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
            if record.offset < self._records.end:
                return record
            error: Exception = ValueError(f"a record says that its offset is {record.offset}")
        except StopIteration:
            self._records_iterator = None
            raise
        except Exception as failure:
            if not isinstance(self._records, Fetched):
                raise  # bytes that do not have their checksum, which may come whole the next time
            error = failure
        place = f"{self._tp.topic}/{self._tp.partition}"
        log.info("%s: with care from offset %d on: %s", place, before, describe(error))
        self.next_fetch_offset = before
        self._records = Careful(self._records.data, before, place)
        self._records_iterator = self._unpack_records()
        return next(self)


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
        return DefaultRecord(offset, timestamp, self.timestamp_type, key, value, headers)


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


def _pieces(data: bytes) -> Iterator[bytes]:
    """Whole batches. The last one is often cut off."""
    at = 0
    while at + OVERHEAD_BYTES <= len(data):
        (length,) = struct.unpack_from(">i", data, at + LENGTH_AT)
        piece = data[at : at + OVERHEAD_BYTES + length]
        if len(piece) < OVERHEAD_BYTES + length:
            return
        yield piece
        at += len(piece)


def _is_usual(piece: bytes) -> bool:
    batch = MemoryRecords(piece).next_batch()
    try:
        _require_in_order(batch, list(batch))
    except Exception:  # it will be met again where it matters
        return False
    return True


def _require_in_order(batch: Any, records: list[Any]) -> None:
    """Brokers number records that are compressed, and believe the numbers of others."""
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
