"""Appends records to Kafka in order, each answered by a future of its offset. It may talk to Kafka and wait.

One lane per partition has at most one batch on its way: while that is not acknowledged, the lane collects the next one,
so batches grow under load and nothing lingers at rest. aiokafka's idempotent producer does the sending; its sequence
numbers are broken for good by the first batch that a broker refuses, so a producer that failed is replaced (`Session`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from romancy_stream.broker.kafka.admin import Admin
from romancy_stream.broker.kafka.faults import concerns_topic, describe, is_refusal, translated
from romancy_stream.broker.kafka.settings import CONNECT_LIMIT_S, METADATA_MAX_AGE_MS, KafkaSettings
from romancy_stream.broker.port import OutRecord
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError, RecordRefusedError, RomancyError
from romancy_stream.wire.partition import partition_for

log = logging.getLogger(__name__)

# A topic that was just created is unknown to some brokers for a moment; after this it is a mistake.
UNKNOWN_TOPIC_LIMIT_S = 5.0
# An unacknowledged batch makes us ask this often whether its topic still exists: aiokafka would retry for ever.
EXISTENCE_CHECK_S = 5.0
RETRY_PAUSE_S = 0.1
# How long a replaced producer may finish what other partitions have given it.
RETIRE_LIMIT_S = 10.0
# What is still unacknowledged when the broker is closed gets this long.
CLOSE_LIMIT_S = 3.0

estimate_size_bytes = DefaultRecordBatchBuilder.estimate_size_in_bytes


class Entry:
    """A record on its way."""

    __slots__ = ("deadline_s", "future", "headers", "record", "size_bytes")

    def __init__(
        self,
        record: OutRecord,
        headers: list[tuple[str, bytes]],
        future: asyncio.Future[int],
        size_bytes: int,
        deadline_s: float,
    ) -> None:
        self.record = record
        self.headers = headers  # aiokafka takes no other kind of sequence
        self.future = future
        self.size_bytes = size_bytes
        self.deadline_s = deadline_s  # on the loop's clock


@dataclass(slots=True)
class Lane:
    topic: str
    partition: int
    queue: deque[Entry] = field(default_factory=deque)
    running: bool = False


@dataclass(slots=True)
class TopicState:
    """`partitions` 0: not known yet, and `waiting` holds what wants to know."""

    partitions: int = 0
    known_at_s: float = 0.0
    waiting: list[Entry] = field(default_factory=list)


class Session:
    """One aiokafka producer from birth to replacement."""

    def __init__(self, bootstrap: str, client_id: str, settings: KafkaSettings) -> None:
        self.producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            compression_type=settings.compression,
            linger_ms=0,  # the lanes collect while a batch is on its way
            max_batch_size=settings.batch_limit_bytes,
            max_request_size=settings.record_limit_bytes,
            **settings.client(),
        )

    async def start(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):  # not wait_for: in Python 3.11 it can swallow a cancellation
                await self.producer.start()
        except BaseException:
            await self.producer.stop()
            raise

    async def retire(self) -> None:
        """Lets batches of other lanes finish, for a while."""
        try:
            async with asyncio.timeout(RETIRE_LIMIT_S):
                await self.producer.flush()
        except TimeoutError:
            log.info("a replaced Kafka producer did not finish in %s s", RETIRE_LIMIT_S)
        await self.discard()

    async def discard(self) -> None:
        """Ends it now; batches that are not acknowledged fail."""
        accumulator = self.producer._message_accumulator
        accumulator.fail_all(kafka.ProducerClosed())
        for batch in [*chain.from_iterable(accumulator._batches.values()), *accumulator._pending_batches]:
            for future in (batch.future, batch._drain_waiter):
                future.exception()  # perhaps nobody else asks, and asyncio would complain
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self.producer.stop()
        except TimeoutError:
            log.info("a discarded Kafka producer did not stop in %s s", CLOSE_LIMIT_S)
        except Exception as error:  # of aiokafka's sender, which finds its batches gone
            log.info("a discarded Kafka producer did not stop in order: %s", describe(error))
        finally:
            await self.producer.client.close()


class Producer:
    def __init__(self, bootstrap: str, client_id: str, settings: KafkaSettings, admin: Admin) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._settings = settings
        self._admin = admin
        self._session: Session | None = None
        self._replacing = asyncio.Lock()
        self._turn = asyncio.Lock()  # senders that wait for space keep their order
        self._space = asyncio.Event()
        self._buffered_bytes = 0
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._topics: dict[str, TopicState] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = True

    async def open(self) -> None:
        session = Session(self._bootstrap, self._client_id, self._settings)
        try:
            await session.start()
        except Exception as error:
            raise translated(error, "no Kafka producer") from error
        self._session, self._closing = session, False

    async def close(self) -> None:
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_LIMIT_S)
        for task in list(self._tasks):
            task.cancel()
        session, self._session = self._session, None
        ending = [*self._tasks, *self._retiring]
        if session is not None:
            ending.append(asyncio.create_task(session.discard()))
        if ending:
            await asyncio.wait(ending)
        error = BrokerUnavailableError("the broker was closed before the record was acknowledged")
        for lane in self._lanes.values():
            self._fail(lane.queue, error)
        for state in self._topics.values():
            self._fail(deque(state.waiting), error)

    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        if self._closing:
            raise BrokerUnavailableError("the broker is not open")
        loop = asyncio.get_running_loop()
        limit_bytes = self._settings.record_limit_bytes
        futures: list[asyncio.Future[int]] = []
        async with self._turn:
            deadline_s = loop.time() + self._settings.delivery_limit_ms / 1000
            for record in records:
                future: asyncio.Future[int] = loop.create_future()
                futures.append(future)
                headers = list(record.headers)
                size_bytes = estimate_size_bytes(record.key, record.value, headers)
                if size_bytes > limit_bytes:
                    future.set_exception(
                        RecordRefusedError(
                            f"{record.topic}: a record of {size_bytes} bytes; the limit is {limit_bytes}"
                        )
                    )
                    continue
                if self._buffered_bytes and self._buffered_bytes + size_bytes > self._settings.buffer_limit_bytes:
                    await self._wait_for_space(size_bytes)
                    if self._closing:
                        raise BrokerUnavailableError("the broker was closed")
                    deadline_s = loop.time() + self._settings.delivery_limit_ms / 1000
                self._buffered_bytes += size_bytes
                self._route(Entry(record, headers, future, size_bytes, deadline_s))
        return futures

    async def _wait_for_space(self, size_bytes: int) -> None:
        while self._buffered_bytes and self._buffered_bytes + size_bytes > self._settings.buffer_limit_bytes:
            self._space.clear()
            await self._space.wait()

    def _route(self, entry: Entry) -> None:
        topic = entry.record.topic
        state = self._topics.get(topic)
        if state is None:
            state = self._topics[topic] = TopicState()
        if (entry.record.partition or 0) < state.partitions and not state.waiting:
            self._enqueue(entry, state)
            return
        state.waiting.append(entry)
        if len(state.waiting) == 1:
            self._spawn(self._find_topic(topic, state))

    def _enqueue(self, entry: Entry, state: TopicState) -> None:
        record = entry.record
        partition = record.partition
        if partition is None:
            partition = partition_for(record.key, self._count(record.topic, state))
        elif partition >= state.partitions:
            reason = f"{record.topic} has {state.partitions} partitions, none has the number {partition}"
            self._fail(deque([entry]), RecordRefusedError(reason))
            return
        lane = self._lanes.get((record.topic, partition))
        if lane is None:
            lane = self._lanes[record.topic, partition] = Lane(record.topic, partition)
        lane.queue.append(entry)
        if not lane.running:
            lane.running = True
            self._spawn(self._run_lane(lane))

    def _count(self, topic: str, state: TopicState) -> int:
        """The number of partitions, as fresh as the metadata of aiokafka."""
        now_s = asyncio.get_running_loop().time()
        if now_s - state.known_at_s > METADATA_MAX_AGE_MS / 1000 and self._session is not None:
            known = self._session.producer.client.cluster.partitions_for_topic(topic)
            state.partitions = max(state.partitions, len(known or ()))
            state.known_at_s = now_s
        return state.partitions

    async def _find_topic(self, topic: str, state: TopicState) -> None:
        """Asks Kafka without creating the topic, which the metadata requests of aiokafka could do."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + UNKNOWN_TOPIC_LIMIT_S
        while True:
            error: RomancyError
            try:
                async with asyncio.timeout_at(state.waiting[0].deadline_s):
                    found = await self._admin.topics([topic])
            except ConfigurationError as failure:
                error = RecordRefusedError(str(failure))
                break
            except (RomancyError, TimeoutError) as failure:
                error = BrokerUnavailableError(f"cannot ask Kafka for topic {topic}: {describe(failure)}")
                break
            if topic in found:
                state.partitions, state.known_at_s = found[topic].partitions, loop.time()
                waiting, state.waiting = state.waiting, []
                for entry in waiting:
                    self._enqueue(entry, state)
                return
            if loop.time() > give_up_s:
                error = RecordRefusedError(f"there is no topic {topic}")
                break
            await asyncio.sleep(RETRY_PAUSE_S)
        self._topics.pop(topic, None)
        self._fail(deque(state.waiting), error)

    async def _run_lane(self, lane: Lane) -> None:
        try:
            while lane.queue:
                await self._deliver_some(lane)
        except Exception as error:  # a mistake, ours or the caller's: nobody may wait for ever
            log.exception("cannot send to %s[%d]", lane.topic, lane.partition)
            self._fail(lane.queue, RecordRefusedError(f"{lane.topic}: {describe(error)}"))
        finally:
            lane.running = False

    async def _deliver_some(self, lane: Lane, limit_records: int | None = None) -> None:
        """One batch from the head of the lane to its end: acknowledged, refused, or given up with all behind it."""
        deadline_s = lane.queue[0].deadline_s
        session = self._session
        count = 0
        try:
            async with asyncio.timeout_at(deadline_s):
                if session is None:
                    raise kafka.ProducerClosed
                builder = session.producer.create_batch()
                count = _fill(builder, lane.queue, limit_records)
                acknowledged = await session.producer.send_batch(builder, lane.topic, partition=lane.partition)
                metadata = await self._acknowledgement(acknowledged, lane)
        except (RecordRefusedError, TimeoutError, kafka.KafkaError, AssertionError) as error:
            await self._failed(lane, session, count, deadline_s, error)
            return
        for index in range(count):
            entry = lane.queue.popleft()
            self._buffered_bytes -= entry.size_bytes
            if not entry.future.done():
                # Kafka has it from an earlier try but forgot where: -1
                entry.future.set_result(metadata.offset + index if metadata.offset >= 0 else -1)
        self._space.set()

    async def _acknowledgement(self, acknowledged: asyncio.Future[Any], lane: Lane) -> Any:
        try:
            while True:
                done, _ = await asyncio.wait({acknowledged}, timeout=EXISTENCE_CHECK_S)
                if done:
                    return acknowledged.result()
                if await self._is_gone(lane):
                    raise _gone(lane)
        finally:
            acknowledged.cancel()

    async def _is_gone(self, lane: Lane) -> bool:
        try:
            async with asyncio.timeout(EXISTENCE_CHECK_S):
                found = await self._admin.topics([lane.topic])
        except (RomancyError, TimeoutError):
            return False  # who does not answer does not deny it
        if lane.topic in found and found[lane.topic].partitions > lane.partition:
            return False
        self._topics.pop(lane.topic, None)
        return True

    async def _failed(
        self, lane: Lane, session: Session | None, count: int, deadline_s: float, error: BaseException
    ) -> None:
        if isinstance(error, RecordRefusedError):
            self._fail(lane.queue, error)
            await self._replace(session, at_once=True)
        elif is_refusal(error) and (count == 1 or concerns_topic(error)):
            self._fail(lane.queue, RecordRefusedError(f"{lane.topic}: {describe(error)}"), count)
            await self._replace(session)
        elif is_refusal(error):
            # One of these cannot be taken: alone, each shows whether it is the one.
            await self._replace(session)
            for _ in range(count):
                if lane.queue:
                    await self._deliver_some(lane, limit_records=1)
        elif isinstance(error, TimeoutError) or asyncio.get_running_loop().time() >= deadline_s:
            # What follows must not overtake it.
            limit_s = self._settings.delivery_limit_ms / 1000
            late = BrokerUnavailableError(f"{lane.topic}: not acknowledged within {limit_s:g} s")
            self._fail(lane.queue, _gone(lane) if await self._is_gone(lane) else late)
            await self._replace(session, at_once=True)
        else:
            log.warning("Kafka producer replaced, %s[%d]: %s", lane.topic, lane.partition, describe(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s):
                    await self._replace(session)
                    await asyncio.sleep(RETRY_PAUSE_S)

    async def _replace(self, session: Session | None, at_once: bool = False) -> None:
        """Leaves no session when Kafka is away: then the next attempt tries again."""
        async with self._replacing:
            if self._session is not session or self._closing:
                return
            if session is not None:
                ending = session.discard() if at_once else session.retire()
                self._spawn(ending, self._retiring)
            self._session = None
            fresh = Session(self._bootstrap, self._client_id, self._settings)
            try:
                await fresh.start()
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                log.info("no Kafka producer yet: %s", describe(error))
                return
            self._session = fresh

    def _fail(self, entries: deque[Entry], error: RomancyError, count: int | None = None) -> None:
        """The first `count` of them, or all."""
        for _ in range(len(entries) if count is None else count):
            entry = entries.popleft()
            self._buffered_bytes -= entry.size_bytes
            if not entry.future.done():
                entry.future.set_exception(type(error)(str(error)))
                entry.future.exception()  # who was cancelled meanwhile does not ask, and asyncio would complain
        self._space.set()

    def _spawn(self, work: Coroutine[Any, Any, None], into: set[asyncio.Task[None]] | None = None) -> None:
        tasks = self._tasks if into is None else into
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _fill(builder: Any, queue: deque[Entry], limit_records: int | None) -> int:
    count = 0
    for entry in queue:
        record = entry.record
        if count == limit_records or not builder.append(
            timestamp=None, key=record.key, value=record.value, headers=entry.headers
        ):
            break
        count += 1
    return count


def _gone(lane: Lane) -> RecordRefusedError:
    return RecordRefusedError(f"there is no topic {lane.topic} with a partition {lane.partition} any more")
