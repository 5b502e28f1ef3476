"""`KafkaTaskSource`: competing consumers of task queues with offsets committed in Kafka, on aiokafka alone. It may talk
to Kafka and wait.

Rebalances run in aiokafka's background task, also while nobody fetches; so do the heartbeats. What a listener of
aiokafka raises is only logged there: here it is kept and raised by the next `fetch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from aiokafka import ConsumerRebalanceListener
from aiokafka import errors as kafka
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from romancy_stream.broker.kafka.consumer import Consumer
from romancy_stream.broker.kafka.faults import describe, translated
from romancy_stream.broker.kafka.membership import kept_alive
from romancy_stream.broker.kafka.settings import KafkaSettings
from romancy_stream.broker.kafka.watchdog import LOOKS_PER_LIMIT, StallDetector, waiting
from romancy_stream.broker.port import TP, AssignedRange, Record, TaskHandler

log = logging.getLogger(__name__)

# How long one look for records lasts before `fetch` checks for errors and for a hang.
POLL_S = 1.0
# A commit that takes longer is reported as failed; the next one covers it. Whoever leaves waits for one or two.
COMMIT_LIMIT_S = 3.0


class KafkaTaskSource:
    def __init__(
        self,
        topics: Sequence[str],
        group: str,
        handler: TaskHandler,
        *,
        bootstrap: str,
        client_id: str,
        settings: KafkaSettings,
    ) -> None:
        self._topics = sorted(topics)
        self._group = group
        self._handler = handler
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._settings = settings
        self._consumer: Consumer | None = None
        self._next: dict[TP, int] = {}  # what we own: next offset to hand out
        self._epoch = 0  # of the assignment
        self._assigned = asyncio.Event()
        self._busy = asyncio.Lock()  # one call of the handler at a time
        self._stopping = False
        self._failure: BaseException | None = None
        self._detector = StallDetector(settings.stall_limit_ms / 1000)
        self._next_look_s = 0.0

    async def start(self) -> None:
        """Returns when connected; partitions come with the first rebalance."""
        consumer = Consumer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            group_id=self._group,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            **self._settings.member(),
        )
        try:
            await consumer.start()
        except Exception as error:
            raise translated(error, self._what()) from error
        self._failure, self._stopping = None, False
        self._assigned.clear()
        self._consumer = consumer
        consumer.subscribe(self._topics, listener=_Listener(self, consumer))

    async def stop(self) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        self._stopping = True
        try:
            async with self._busy:
                await self._revoked()  # aiokafka does not revoke at the end
        finally:
            self._consumer = None
            self._assigned.set()  # a fetch that waits for partitions is to see it
            await consumer.stop()

    async def fetch(self, limit: int) -> list[Record]:
        while True:
            if self._failure is not None:
                ours = translated(self._failure, self._what())
                raise ours from (self._failure if ours is not self._failure else ours.__cause__)
            if self._consumer is None:
                raise RuntimeError("the task source is not started")
            if not self._assigned.is_set():
                await self._assigned.wait()
                continue
            records = await self._poll(self._consumer, limit)
            if records:
                return records
            await self._look_for_hang(self._consumer)

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        ours = {TopicPartition(*tp): OffsetAndMetadata(to, "") for tp, to in offsets.items() if tp in self._next}
        if self._consumer is None or not ours:
            return
        await self._consumer.commit_within(COMMIT_LIMIT_S, ours, f"{self._what()}: commit")

    async def _poll(self, consumer: Consumer, limit: int) -> list[Record]:
        epoch = self._epoch
        try:
            fetched = await consumer.getmany(timeout_ms=int(POLL_S * 1000), max_records=limit)
        except kafka.NoOffsetForPartitionError:
            return []  # aiokafka looked for an offset before our seek
        except kafka.OffsetOutOfRangeError as error:
            await self._move_into_range(consumer, error)
            return []
        except kafka.KafkaError as error:
            self._failure = error
            return []
        if epoch != self._epoch or not self._assigned.is_set():
            # Fetched under another assignment, but it has moved the positions of this one: put them back.
            self._seek(consumer, fetched)
            return []
        for tp, records in fetched.items():
            self._next[TP(*tp)] = records[-1].offset + 1
        return [
            Record(r.topic, r.partition, r.offset, r.key, r.value, r.headers, r.timestamp)
            for records in fetched.values()
            for r in records
        ]

    def _seek(self, consumer: Consumer, tps: Iterable[TopicPartition]) -> None:
        for tp in consumer.assignment() & set(tps):
            if tp in self._next:
                consumer.seek(tp, self._next[tp])

    async def _move_into_range(self, consumer: Consumer, error: kafka.OffsetOutOfRangeError) -> None:
        """Tasks that retention took are dispatched again by the engine; the rest of the log is still to be done."""
        tps = [tp for tp in error.args[0] if tp in self._next]
        for tp, first in (await consumer.beginning_offsets(tps)).items():
            log.error("%s: offset %d of %s is not in the log, going on at %d", self._what(), self._next[tp], tp, first)
            self._next[TP(*tp)] = first
        self._seek(consumer, tps)

    # -- rebalance, called by aiokafka ---------------------------------------

    async def _on_rebalance(self, consumer: Consumer, assigned: set[TopicPartition] | None) -> None:
        interval_s = self._settings.heartbeat_interval_ms / 1000
        try:
            async with self._busy, kept_alive(consumer, interval_s):
                if self._stopping or consumer is not self._consumer:
                    return
                if assigned is None:
                    await self._revoked()
                else:
                    await self._now_assigned(consumer, assigned)
        except Exception as error:
            self._failure, self._next = error, {}
            self._assigned.set()  # the fetch that waits is to raise it

    async def _revoked(self) -> None:
        self._epoch += 1
        self._assigned.clear()
        try:
            if self._next:
                await self._handler.on_revoked(set(self._next))  # may still commit
        finally:
            self._next = {}

    async def _now_assigned(self, consumer: Consumer, tps: set[TopicPartition]) -> None:
        ranges: dict[TP, AssignedRange] = {}
        if tps:
            first, end = await consumer.beginning_offsets(list(tps)), await consumer.end_offsets(list(tps))
            for tp, committed in zip(tps, await asyncio.gather(*map(consumer.committed, tps)), strict=True):
                if committed is None or not first[tp] <= committed <= end[tp]:
                    committed = first[tp]
                ranges[TP(*tp)] = AssignedRange(committed, end[tp])
        self._next = {tp: each.committed for tp, each in ranges.items()}
        self._seek(consumer, tps)
        await self._handler.on_assigned(ranges)  # may already commit
        self._epoch += 1
        self._assigned.set()

    # -- watchdog ------------------------------------------------------------

    async def _look_for_hang(self, consumer: Consumer) -> None:
        """Only a fetch that waits can tell."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_look_s:
            return
        limit_s = self._settings.stall_limit_ms / 1000
        self._next_look_s = now_s + limit_s / LOOKS_PER_LIMIT
        try:
            async with asyncio.timeout(limit_s):
                seen = await waiting(consumer, self._next)
        except (kafka.KafkaError, TimeoutError) as error:
            log.info("%s: cannot compare positions with the log: %s", self._what(), describe(error))
            self._detector.forget()
            return
        if self._detector.observe(seen, now_s) and self._consumer is consumer:
            log.warning("%s: no progress for %g s although records wait: new consumer", self._what(), limit_s)
            await self.stop()
            await self.start()

    def _what(self) -> str:
        return f"task source of {', '.join(self._topics)}"


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, source: KafkaTaskSource, consumer: Consumer) -> None:
        self._source = source
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._source._on_rebalance(self._consumer, None)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        await self._source._on_rebalance(self._consumer, assigned)
