"""A set of partitions being read, each from a position: what a batch source, a task source and a tail have in
common. It finds the next records in memory, or in the file when they are no longer there, and can be waited for."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from romancy_stream.broker.embedded.chunks import decode
from romancy_stream.broker.embedded.disk import ChunkRow, ReadRequest
from romancy_stream.broker.embedded.limits import BATCH_BYTES_LIMIT, BATCH_RECORDS_LIMIT, PARTITION_SPAN
from romancy_stream.broker.embedded.partition import Partition
from romancy_stream.broker.port import TP, Record
from romancy_stream.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from romancy_stream.broker.embedded.log import Log

Batch = dict[TP, Sequence[Record]]


class Reader:
    """`positions` holds the next offset of every attached partition. `held` ones are not delivered. `retained`: where
    to go on when retention has deleted what was to be read next; it may refuse to."""

    def __init__(
        self,
        log: Log,
        on_topics: Callable[[Sequence[str]], None] | None = None,
        retained: Callable[[Partition, int], int] = lambda p, offset: p.start,
    ) -> None:
        self.positions: dict[Partition, int] = {}
        self._log = log
        self._on_topics = on_topics
        self._retained = retained
        self._held: set[TP] = set()
        self._ready: dict[Partition, None] = {}  # may have records; ordered, so that each gets its turn
        self._from_file: dict[Partition, list[Record]] = {}  # read ahead; bounded by what one read returns
        self._event = asyncio.Event()

    def open(self) -> None:
        """From here on the log tells about new topics and its failure."""
        self._log.readers.add(self)

    def close(self) -> None:
        self.detach()
        self._log.readers.discard(self)

    def attach(self, positions: Mapping[Partition, int]) -> None:
        """Replaces what was attached. Holds on partitions that are not among them end."""
        self.detach()
        self._held.intersection_update(p.tp for p in positions)
        self.add(positions)

    def add(self, positions: Mapping[Partition, int]) -> None:
        for p, offset in positions.items():
            self.positions[p] = offset
            p.readers.append(self)
            self._ready[p] = None
        self.wake()

    def detach(self) -> None:
        for p in self.positions:
            p.readers.remove(self)
        self.positions = {}
        self._ready = {}
        self._from_file = {}

    def notify(self, p: Partition) -> None:
        self._ready[p] = None
        self._event.set()

    def topics_created(self, names: Sequence[str]) -> None:
        if self._on_topics is not None:
            self._on_topics(names)

    def seek(self, p: Partition, offset: int) -> None:
        self.positions[p] = offset
        self._from_file.pop(p, None)
        self.notify(p)

    def hold(self, tps: Iterable[TP]) -> None:
        self._held.update(tps)

    def release(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            self._held.discard(tp)
            p = self._log.partition(tp)
            if p in self.positions:
                self.notify(p)

    def wake(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Until something may have changed since the last `poll`."""
        await self._event.wait()

    async def poll(self, records_limit: int = BATCH_RECORDS_LIMIT) -> Batch:
        """What there is now, and the positions move behind it; empty when there is nothing."""
        self._event.clear()
        self._check()
        cold = [
            ReadRequest(p.part_no, self.positions[p], p.end)
            for p in self._ready
            if self.positions[p] < p.tail_start and p not in self._from_file and p.tp not in self._held
        ]
        if cold:
            await self._read_file(cold)
        return self._take(records_limit)

    def _check(self) -> None:
        failure = self._log.failure
        if failure is not None:
            raise BrokerUnavailableError(str(failure)) from failure.__cause__

    def _take(self, records_limit: int) -> Batch:
        batch: Batch = {}
        bytes_left = BATCH_BYTES_LIMIT
        for p in list(self._ready):
            position = self.positions[p]
            if position < p.end and p.tp not in self._held:
                if records_limit <= 0 or bytes_left <= 0:
                    break
                records, size = self._next(p, position, records_limit, bytes_left)
                if not records:
                    continue  # rewound while the file was being read: the next poll finds it
                batch[p.tp] = records
                position = self.positions[p] = position + len(records)
                records_limit -= len(records)
                bytes_left -= size
            del self._ready[p]  # `notify` and `release` put it back
            if position < p.end and p.tp not in self._held:
                self._ready[p] = None  # at the end of the line
        return batch

    def _next(self, p: Partition, position: int, records_limit: int, bytes_limit: int) -> tuple[Sequence[Record], int]:
        if position >= p.tail_start:
            self._from_file.pop(p, None)
            return p.read(position, records_limit, bytes_limit)
        records = self._from_file.get(p)
        if not records:
            return (), 0
        skip = position - records[0].offset
        found = records[skip : skip + records_limit]
        if skip + len(found) >= len(records):
            del self._from_file[p]
        return found, 0  # the read from the file kept to the limit of bytes

    async def _read_file(self, requests: Sequence[ReadRequest]) -> None:
        rows = await self._log.read(requests)
        self._check()
        attached = {p.part_no: p for p in self.positions}
        for request in requests:
            p = attached.get(request.part_no)
            # Anything may have happened meanwhile: revoked, rewound, or read by another fetch.
            if p is None or self.positions[p] != request.offset:
                continue
            if request.offset < p.start:  # the trim was under way when it was attached
                self.seek(p, self._retained(p, request.offset))
            else:
                self._from_file[p] = self._decode(rows[request.part_no], p, request)

    def _decode(self, rows: Sequence[ChunkRow], p: Partition, request: ReadRequest) -> list[Record]:
        found: list[Record] = []
        try:
            for row in rows:
                base = row.chunk_no - p.part_no * PARTITION_SPAN
                records = decode(row.data, base, row.timestamp_ms, p.topic, p.number)
                found += records[max(0, request.offset - base) :]
        except (ValueError, struct.error, StopIteration) as error:
            raise self._log.damaged(p.tp, request.offset) from error
        if not found or found[0].offset != request.offset:
            raise self._log.damaged(p.tp, request.offset)
        return found
