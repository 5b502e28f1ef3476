"""A partition as the event loop sees it: where it ends, what waits for the disk, and its newest chunks. No I/O."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from romancy_stream.broker.embedded.chunks import Chunk
from romancy_stream.broker.port import TP, OutRecord, Record

if TYPE_CHECKING:
    from romancy_stream.broker.embedded.reader import Reader

# Dropped heads of the chunk list are closed up when that many have gathered: a list shifts all of it.
_COMPACT_AFTER: Final = 256


class Partition:
    """`start` and `end` bound what readers may see: [start, end), all of it on the disk. `pending` comes after."""

    __slots__ = (
        "_bases",
        "_chunks",
        "_head",
        "end",
        "futures",
        "last_timestamp_ms",
        "number",
        "part_no",
        "pending",
        "readers",
        "start",
        "topic",
        "tp",
    )

    def __init__(self, topic: str, number: int, part_no: int) -> None:
        self.topic = topic
        self.number = number
        self.part_no = part_no
        self.tp = TP(topic, number)
        self.start = 0
        self.end = 0
        self.last_timestamp_ms = 0
        self.pending: list[OutRecord] = []
        self.futures: list[asyncio.Future[int]] = []
        self.readers: list[Reader] = []
        self._bases: list[int] = []
        self._chunks: list[Chunk | None] = []
        self._head = 0

    @property
    def tail_start(self) -> int:
        """Records from here on are in memory."""
        return self._bases[self._head] if self._head < len(self._bases) else self.end

    def append(self, chunk: Chunk) -> None:
        self._bases.append(chunk.base)
        self._chunks.append(chunk)
        self.end = chunk.end

    def drop_oldest(self) -> Chunk:
        """Out of memory; it stays on the disk."""
        chunk = self._chunks[self._head]
        assert chunk is not None
        self._chunks[self._head] = None
        self._head += 1
        if self._head >= _COMPACT_AFTER and self._head * 2 >= len(self._bases):
            del self._bases[: self._head], self._chunks[: self._head]
            self._head = 0
        return chunk

    def read(self, offset: int, records_limit: int, bytes_limit: int) -> tuple[Sequence[Record], int]:
        """Records from `offset` on (which is at least `tail_start` and before `end`) and their size. Whole chunks, so
        that the size may be passed by one; never more records than the limit."""
        at = bisect_right(self._bases, offset, self._head) - 1
        found: list[Record] = []
        size = 0
        while at < len(self._chunks) and len(found) < records_limit and size < bytes_limit:
            chunk = self._chunks[at]
            assert chunk is not None
            records = chunk.records(self.topic, self.number)
            room = records_limit - len(found)
            skip = offset - chunk.base
            if skip or room < len(records):
                records = records[skip : skip + room]
            found = found + records if found else records
            offset += len(records)
            size += chunk.size_bytes
            at += 1
        return found, size
