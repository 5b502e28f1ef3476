"""Records as they stand in the file and in memory: a chunk is a run of consecutive records of one partition that
were appended together. Pure functions and values; no I/O.

A chunk in the file: two unsigned 32-bit numbers, how many records and how many parts; then the length of each part
as a signed 32-bit number (-1: null); then the parts, end to end. A record's parts are its key, its value, its header
names as a JSON array, and one part for each header value. All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import pack, unpack_from
from typing import Final

import orjson

from romancy_stream.broker.embedded.limits import (
    CHUNK_BYTES_LIMIT,
    CHUNK_RECORDS_LIMIT,
    HEADER_NAMES_CACHE_LIMIT,
    RECORD_OVERHEAD_BYTES,
)
from romancy_stream.broker.port import OutRecord, Record

_HEAD_BYTES: Final = 8


class Chunk:
    """`records` are made when somebody reads them: most chunks of a topic without readers never are."""

    __slots__ = ("_out", "_records", "base", "end", "size_bytes", "timestamp_ms")

    def __init__(self, base: int, timestamp_ms: int, out: Sequence[OutRecord], size_bytes: int) -> None:
        self.base = base
        self.end = base + len(out)
        self.timestamp_ms = timestamp_ms
        self.size_bytes = size_bytes
        self._out: Sequence[OutRecord] = out
        self._records: list[Record] | None = None

    def records(self, topic: str, partition: int) -> list[Record]:
        records = self._records
        if records is None:
            at = self.timestamp_ms
            records = self._records = [
                Record(topic, partition, offset, r.key, r.value, r.headers, at)
                for offset, r in enumerate(self._out, self.base)
            ]
            self._out = ()
        return records


@lru_cache(maxsize=HEADER_NAMES_CACHE_LIMIT)
def _names_part(names: tuple[str, ...]) -> bytes:
    return orjson.dumps(names)


def encode(records: Sequence[OutRecord]) -> bytes:
    parts: list[bytes | None] = []
    for r in records:
        headers = r.headers
        parts += (r.key, r.value, _names_part(tuple([h[0] for h in headers])))
        parts += [h[1] for h in headers]
    lengths = [-1 if part is None else len(part) for part in parts]
    head = pack(f"<II{len(lengths)}i", len(records), len(lengths), *lengths)
    return b"".join([head, *[part for part in parts if part]])


def decode(data: bytes, base: int, timestamp_ms: int, topic: str, partition: int) -> list[Record]:
    """ValueError, struct.error or StopIteration when `data` is not what `encode` made."""
    count, part_count = unpack_from("<II", data)
    lengths = unpack_from(f"<{part_count}i", data, _HEAD_BYTES)
    parts = _cut(data, _HEAD_BYTES + 4 * part_count, lengths)
    records = []
    for offset in range(base, base + count):
        key, value = next(parts), next(parts)
        names = orjson.loads(next(parts) or b"")
        headers = [(name, next(parts)) for name in names]
        records.append(Record(topic, partition, offset, key, value, headers, timestamp_ms))
    return records


def _cut(data: bytes, at: int, lengths: Sequence[int]) -> Iterator[bytes | None]:
    for length in lengths:
        if length < 0:
            yield None
        else:
            yield data[at : at + length]
            at += length


def split(records: list[OutRecord]) -> Iterator[tuple[list[OutRecord], int]]:
    """Runs that keep to the chunk limits (a single record may be larger), with their size in memory."""
    run: list[OutRecord] = []
    size = 0
    for record in records:
        cost = size_of(record)
        if run and (size + cost > CHUNK_BYTES_LIMIT or len(run) == CHUNK_RECORDS_LIMIT):
            yield run, size
            run, size = [], 0
        run.append(record)
        size += cost
    if run:
        yield run, size


def size_of(record: OutRecord) -> int:
    """What `record` takes in memory, nearly."""
    value = record.value
    return len(record.key) + (len(value) if value is not None else 0) + RECORD_OVERHEAD_BYTES
