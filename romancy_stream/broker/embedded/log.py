"""The log that all `EmbeddedBroker` objects of one process share for one folder: what the event loop knows of it,
and the way of records from `send` to the disk and on to readers.

One write is under way at a time. What is sent meanwhile gathers in memory and goes to the disk together as soon as
it is free (group commit); futures are resolved and readers woken when the transaction has been synced, never before.
The first error of the disk ends the log: nothing that was sent since is acknowledged, and everybody is told.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from romancy_stream.broker.embedded.chunks import Chunk, encode, size_of, split
from romancy_stream.broker.embedded.disk import ChunkRow, Disk, DiskState, PositionRow, ReadRequest, TrimRequest
from romancy_stream.broker.embedded.group import Group
from romancy_stream.broker.embedded.limits import (
    BUFFER_BYTES_LIMIT,
    CLOSE_LIMIT_S,
    DELIVERY_LIMIT_S,
    HINT_DELAY_S,
    PARTITION_SPAN,
    RECORD_BYTES_LIMIT,
    TAIL_BYTES_LIMIT,
    TAIL_RECORDS_LIMIT,
    TRIM_EVERY_CHUNKS,
)
from romancy_stream.broker.embedded.partition import Partition
from romancy_stream.broker.embedded.reader import Reader
from romancy_stream.broker.embedded.thread import DiskThread
from romancy_stream.broker.port import TP, OutRecord, TopicInfo, TopicSpec
from romancy_stream.errors import BrokerUnavailableError, RecordRefusedError
from romancy_stream.wire.partition import partition_for


class Topic:
    """Of a topic's config it honours `max.message.bytes` and `retention.ms`; the rest is kept for Kafka."""

    __slots__ = ("info", "partitions", "record_limit_bytes", "retention_ms")

    def __init__(self, info: TopicInfo, first_part: int, config: Mapping[str, str]) -> None:
        self.info = info
        self.partitions = [Partition(info.name, n, first_part + n) for n in range(info.partitions)]
        self.record_limit_bytes = int(config.get("max.message.bytes", RECORD_BYTES_LIMIT))
        self.retention_ms = int(config["retention.ms"]) if "retention.ms" in config else None


class _Write:
    """One transaction: `rows` and `positions` for the disk, `landed` for the readers, the futures for the senders."""

    __slots__ = ("acknowledged", "landed", "positions", "rows", "size_bytes", "waiters")

    def __init__(self) -> None:
        self.rows: list[ChunkRow] = []
        self.positions: list[PositionRow] = []
        self.landed: list[tuple[Partition, Chunk]] = []
        self.acknowledged: list[tuple[int, list[asyncio.Future[int]]]] = []
        self.waiters: list[asyncio.Future[None]] = []
        self.size_bytes = 0

    def run(self, disk: Disk) -> None:
        disk.write(self.rows, self.positions)


class Log:
    """Bound to the event loop it was made in."""

    def __init__(self, folder: Path, retention_s: float, retention_bytes: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        self.positions: dict[str, dict[TP, int]] = {}  # group -> next offsets, as last told
        self.readers: set[Reader] = set()
        self.failure: BrokerUnavailableError | None = None
        self._folder = folder
        self._retention_ms = int(retention_s * 1000)
        self._retention_bytes = retention_bytes
        self._disk = DiskThread(folder, self.loop)
        self._dirty: list[Partition] = []  # those with pending records
        self._buffered_bytes = 0
        self._space: deque[asyncio.Future[None]] = deque()
        self._new_positions: dict[tuple[str, TP], int] = {}
        self._position_waiters: list[asyncio.Future[None]] = []
        self._hint_timer: asyncio.TimerHandle | None = None
        self._writing: _Write | None = None
        self._writing_since_s = 0.0
        self._watch_timer: asyncio.TimerHandle | None = None
        self._flush_scheduled = False
        self._tail: deque[Partition] = deque()  # one entry for each chunk in memory, oldest first
        self._tail_records = 0
        self._tail_bytes = 0
        self._chunks_until_trim = TRIM_EVERY_CHUNKS
        self._creating = asyncio.Lock()

    # -- life cycle --------------------------------------------------------------------------------------------
    async def open(self) -> None:
        await self._disk.start()
        try:
            self._load(await self._disk.call(Disk.load))
        except BaseException as error:
            await self._disk.stop()
            if isinstance(error, Exception):
                raise self._unavailable("cannot be read", error) from error
            raise
        self._trim()

    def _load(self, state: DiskState) -> None:
        for row in state.topics:
            topic = Topic(TopicInfo(row.name, row.partitions, row.topic_id), row.first_part, row.config)
            self.topics[row.name] = topic
            for p in topic.partitions:
                extent = state.extents.get(p.part_no)
                if extent is not None:
                    p.start, p.end, p.last_timestamp_ms = extent
        for position in state.positions:
            self.positions.setdefault(position.group, {})[TP(position.topic, position.partition)] = position.next_offset

    async def close(self) -> None:
        """Writes what is buffered first. Sources that still run are told."""
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                while self.failure is None and (self._writing or self._dirty or self._new_positions):
                    waiter = self.loop.create_future()
                    self._position_waiters.append(waiter)
                    self._flush()
                    await asyncio.wait([waiter])
                    waiter.exception()  # who sent it is told by its own future
                self.fail(BrokerUnavailableError(f"the embedded broker in {self._folder} was closed"))
                await self._disk.stop()
        except TimeoutError:
            error = BrokerUnavailableError(f"the disk under {self._folder} did not answer within {CLOSE_LIMIT_S} s")
            self.fail(error)
            raise error from None

    def abandon(self) -> None:
        """Its event loop is gone: frees file and lock."""
        self._disk.abandon()

    def fail(self, error: BrokerUnavailableError) -> None:
        """From here on everything fails with the first error."""
        if self.failure is not None:
            return
        self.failure = error
        write, self._writing = self._writing, None
        lost = [future for _, futures in write.acknowledged for future in futures] if write else []
        lost += [future for p in self._dirty for future in p.futures]
        waiters = [*(write.waiters if write else ()), *self._position_waiters, *self._space]
        for future in (*lost, *waiters):
            if not future.done():
                future.set_exception(error)
        for p in self._dirty:
            p.pending, p.futures = [], []
        self._dirty.clear()
        self._position_waiters.clear()
        self._space.clear()
        for timer in (self._hint_timer, self._watch_timer):
            if timer is not None:
                timer.cancel()
        for reader in self.readers:
            reader.wake()

    def _unavailable(self, what: str, cause: BaseException) -> BrokerUnavailableError:
        error = BrokerUnavailableError(f"the embedded log in {self._folder} {what}: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return error

    # -- topics ------------------------------------------------------------------------------------------------
    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        self._check()
        async with self._creating:
            missing = {spec.name: spec for spec in specs if spec.name not in self.topics}
            if not missing:
                return []
            try:
                rows = await self._disk.call(lambda disk: disk.create_topics(list(missing.values())))
            except Exception as error:
                self.fail(self._unavailable("cannot be written", error))
                self._check()
                raise
            for row in rows:
                info = TopicInfo(row.name, row.partitions, row.topic_id)
                self.topics[row.name] = Topic(info, row.first_part, row.config)
        made = list(missing)
        for group in self.groups.values():
            group.topics_created(made)
        for reader in self.readers:
            reader.topics_created(made)
        return made

    def partition(self, tp: TP) -> Partition | None:
        topic = self.topics.get(tp.topic)
        if topic is None or not 0 <= tp.partition < len(topic.partitions):
            return None
        return topic.partitions[tp.partition]

    def group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(self.topics)
        return group

    # -- writing -----------------------------------------------------------------------------------------------
    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        self._check()
        if self._space or self._buffered_bytes >= BUFFER_BYTES_LIMIT:
            return await self._send_when_there_is_space(records)
        return self._enqueue(records)

    async def _send_when_there_is_space(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        turn: asyncio.Future[None] = self.loop.create_future()
        self._space.append(turn)
        try:
            await turn
            return self._enqueue(records)
        finally:
            if turn in self._space:
                self._space.remove(turn)
            self._admit()

    def _admit(self) -> None:
        """One at a time, in the order of their calls: the first stays in line until it has enqueued."""
        if self._space and not self._space[0].done() and self._buffered_bytes < BUFFER_BYTES_LIMIT:
            self._space[0].set_result(None)

    def _enqueue(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        create_future, topics, dirty = self.loop.create_future, self.topics, self._dirty
        futures = []
        size = 0
        for record in records:
            future: asyncio.Future[int] = create_future()
            futures.append(future)
            topic = topics.get(record.topic)
            if topic is None:
                future.set_exception(RecordRefusedError(f"there is no topic {record.topic!r}"))
                continue
            number = record.partition
            if number is None:
                number = partition_for(record.key, len(topic.partitions))
            elif not 0 <= number < len(topic.partitions):
                future.set_exception(RecordRefusedError(f"topic {record.topic!r} has no partition {number}"))
                continue
            cost = size_of(record)
            if cost > topic.record_limit_bytes and _too_large(record, topic, future):
                continue
            size += cost
            p = topic.partitions[number]
            if not p.pending:
                dirty.append(p)
            p.pending.append(record)
            p.futures.append(future)
        self._buffered_bytes += size
        if size and not self._flush_scheduled and self._writing is None:
            self._flush_soon()
        return futures

    def _flush_soon(self) -> None:
        # At the end of this loop iteration, so that everything it sends is one transaction.
        self._flush_scheduled = True
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._writing is not None or self.failure is not None:
            return
        write = _Write()
        self._take_pending(write)
        if self._new_positions or self._position_waiters:
            write.positions = [PositionRow(g, tp.topic, tp.partition, n) for (g, tp), n in self._new_positions.items()]
            write.waiters = self._position_waiters
            self._new_positions = {}
            self._position_waiters = []
        if not write.rows and not write.positions and not write.waiters:
            return
        self._writing = write
        self._writing_since_s = self.loop.time()
        if self._watch_timer is None:
            self._watch_timer = self.loop.call_later(DELIVERY_LIMIT_S, self._watch)
        self._disk.submit(write.run, lambda _, error: self._written(write, error))

    def _take_pending(self, write: _Write) -> None:
        now_ms = time.time_ns() // 1_000_000
        for p in self._dirty:
            at = p.last_timestamp_ms = max(now_ms, p.last_timestamp_ms)
            base = p.end
            write.acknowledged.append((base, p.futures))
            for records, size in split(p.pending):
                write.rows.append(ChunkRow(p.part_no * PARTITION_SPAN + base, len(records), at, encode(records)))
                write.landed.append((p, Chunk(base, at, records, size)))
                write.size_bytes += size
                base += len(records)
            p.pending, p.futures = [], []
        self._dirty.clear()

    def _written(self, write: _Write, error: BaseException | None) -> None:
        if self.failure is not None:
            return
        if error is not None:
            self.fail(self._unavailable("cannot be written", error))
            return
        self._writing = None
        self._buffered_bytes -= write.size_bytes
        self._land(write)
        if self._dirty or self._position_waiters:
            self._flush()
        for base, futures in write.acknowledged:
            for offset, future in enumerate(futures, base):
                if not future.done():
                    future.set_result(offset)
        for waiter in write.waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._space:
            self._admit()
        if self._chunks_until_trim <= 0:
            self._trim()

    def _land(self, write: _Write) -> None:
        for p, chunk in write.landed:
            p.append(chunk)
            self._tail.append(p)
            self._tail_records += chunk.end - chunk.base
            self._tail_bytes += chunk.size_bytes
            for reader in p.readers:
                reader.notify(p)
        self._chunks_until_trim -= len(write.landed)
        while self._tail_records > TAIL_RECORDS_LIMIT or self._tail_bytes > TAIL_BYTES_LIMIT:
            dropped = self._tail.popleft().drop_oldest()
            self._tail_records -= dropped.end - dropped.base
            self._tail_bytes -= dropped.size_bytes

    def _watch(self) -> None:
        self._watch_timer = None
        if self._writing is None:
            return
        waited_s = self.loop.time() - self._writing_since_s
        if waited_s >= DELIVERY_LIMIT_S:
            self.fail(BrokerUnavailableError(f"the disk under {self._folder} has not synced for {waited_s:.0f} s"))
        else:
            self._watch_timer = self.loop.call_later(DELIVERY_LIMIT_S - waited_s, self._watch)

    # -- positions of groups -----------------------------------------------------------------------------------
    def note(self, group: str, offsets: Mapping[TP, int]) -> None:
        """Remembered at once, on the disk with the next append or soon."""
        self.positions.setdefault(group, {}).update(offsets)
        for tp, offset in offsets.items():
            self._new_positions[group, tp] = offset
        if self._hint_timer is None and offsets and self.failure is None:
            self._hint_timer = self.loop.call_later(HINT_DELAY_S, self._hints_due)

    def _hints_due(self) -> None:
        self._hint_timer = None
        self._flush()

    async def commit(self, group: str, offsets: Mapping[TP, int]) -> None:
        """Returns when they are on the disk."""
        self._check()
        self.note(group, offsets)
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._position_waiters.append(waiter)
        if not self._flush_scheduled and self._writing is None:
            self._flush_soon()
        await waiter

    # -- reading what is no longer in memory -------------------------------------------------------------------
    async def read(self, requests: Sequence[ReadRequest]) -> dict[int, list[ChunkRow]]:
        self._check()
        try:
            return await self._disk.call(lambda disk: disk.read(requests))
        except Exception as error:
            self.fail(self._unavailable("cannot be read", error))
            self._check()
            raise

    def damaged(self, tp: TP, offset: int) -> BrokerUnavailableError:
        """Ends the log; the error is for raising."""
        what = f"{tp.topic}/{tp.partition} cannot be read at offset {offset}: broker.db is damaged or was altered"
        error = BrokerUnavailableError(f"the embedded log in {self._folder}: {what}")
        self.fail(error)
        return error

    # -- retention ---------------------------------------------------------------------------------------------
    def _trim(self) -> None:
        self._chunks_until_trim = TRIM_EVERY_CHUNKS
        now_ms = time.time_ns() // 1_000_000
        requests = []
        for topic in self.topics.values():
            before_ms = now_ms - topic.retention_ms if topic.retention_ms is not None else now_ms - self._retention_ms
            for p in topic.partitions:
                needed = self._needed(p)
                low = min(needed, default=p.end)
                if low > p.start:
                    requests.append(TrimRequest(p.part_no, low, before_ms, bool(needed)))
        limit_bytes = self._retention_bytes
        self._disk.submit(lambda disk: disk.trim(requests, limit_bytes), self._trimmed)

    def _needed(self, p: Partition) -> list[int]:
        """The next offset of every group that ever read the partition and of every reader of this process."""
        needed = [offsets[p.tp] for offsets in self.positions.values() if p.tp in offsets]
        return needed + [reader.positions[p] for reader in p.readers]

    def _trimmed(self, result: tuple[dict[int, int], bool] | None, error: BaseException | None) -> None:
        if self.failure is not None:
            return
        if error is not None or result is None:
            self.fail(self._unavailable("cannot be trimmed", error or RuntimeError("no result")))
            return
        starts, more = result
        for topic in self.topics.values():
            for p in topic.partitions:
                p.start = max(p.start, starts.get(p.part_no, 0))
        if more:
            self._trim()

    def _check(self) -> None:
        if self.failure is not None:
            # A new one each time: a raised exception keeps its traceback.
            raise BrokerUnavailableError(str(self.failure)) from self.failure.__cause__


def _too_large(record: OutRecord, topic: Topic, future: asyncio.Future[int]) -> bool:
    size = len(record.key) + (len(record.value) if record.value is not None else 0)
    if size <= topic.record_limit_bytes:
        return False
    future.set_exception(
        RecordRefusedError(
            f"a record of {size} bytes is over the limit of topic {record.topic!r} "
            f"({topic.record_limit_bytes} bytes; its max.message.bytes)"
        )
    )
    return True
