"""`KafkaTail`: reads topics without a group from their ends, every partition, for whoever waits for events. It may
talk to Kafka and wait.

It assigns partitions by hand and keeps the positions itself: aiokafka's groupless subscription would jump to the end
when partitions are added, and a consumer built anew after a failure must go on where the last one was. Where it cannot,
it goes on at the end and says that there is a gap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aiokafka import errors as kafka
from aiokafka.structs import TopicPartition

from romancy_stream.broker.kafka.consumer import Consumer
from romancy_stream.broker.kafka.faults import UNREADABLE, describe, translated
from romancy_stream.broker.kafka.metadata import TopicMetadataRequest
from romancy_stream.broker.kafka.settings import KafkaSettings
from romancy_stream.broker.kafka.watchdog import LOOKS_PER_LIMIT, StallDetector, waiting
from romancy_stream.broker.port import TP, OnGap, OnRecords, Record
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError

log = logging.getLogger(__name__)

POLL_S = 1.0
# With their headers some 600 objects, which are gone again before Python's cycle collector looks at 700 new ones: it
# looked at every event several times when there were 2,000, for a fifth of a client's time.
BATCH_LIMIT_RECORDS = 32
RETRY_PAUSE_S = 1.0
# What a broker that is away, or a topic that is being made again, explains. The log is there still.
OUTAGES = (kafka.KafkaError, OSError, TimeoutError, ConfigurationError)
# `start` of a tail whose topics were just created: until the broker we ask knows them.
TOPICS_LIMIT_S = 5.0


class KafkaTail:
    def __init__(
        self,
        topics: Sequence[str],
        on_records: OnRecords,
        on_gap: OnGap,
        *,
        bootstrap: str,
        client_id: str,
        settings: KafkaSettings,
    ) -> None:
        self._topics = sorted(topics)
        self._on_records = on_records
        self._on_gap = on_gap
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._settings = settings
        self._consumer: Consumer | None = None
        self._next: dict[TP, int] = {}
        self._logs: dict[TP, tuple[object, int]] = {}  # topic id, epoch of the leader
        self._may_be_others = False  # the cluster has changed since these were read
        self._cannot_read = False  # what stands at `_next`
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._detector = StallDetector(settings.stall_limit_ms / 1000)
        self._next_look_s = 0.0

    async def start(self) -> None:
        try:
            self._consumer = await self._connect()
            tps = await self._partitions(self._consumer)
            await self._compare(self._consumer)
            self._next = await _ends(self._consumer, tps)
            self._assign(self._consumer)
        except BaseException as error:
            await self._disconnect()
            if not isinstance(error, Exception):
                raise
            raise translated(error, self._what()) from error
        self._task = asyncio.create_task(self._run(), name=self._what())
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if self._closing is not None:
                await self._closing
            await self._disconnect()  # it may have been cancelled before it began
            if self._failure is not None:
                raise self._failure

    async def _run(self) -> None:
        try:
            while self._failure is None:
                try:
                    await self._read()
                except Exception as error:
                    self._cannot_read |= isinstance(error, UNREADABLE) or not isinstance(error, OUTAGES)
                    log.warning("%s: new consumer: %s", self._what(), describe(error))
                await self._disconnect()
                await asyncio.sleep(RETRY_PAUSE_S if self._failure is None else 0)
        finally:
            await self._disconnect()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """However it came: of itself it ends never."""
        if self._failure is None and not task.cancelled():
            self._failure = task.exception()
        if self._task is not None:
            error = self._failure or BrokerUnavailableError(f"{self._what()} was cancelled")
            log.error("%s ends: %r", self._what(), error)
            self._on_gap(error)

    async def _read(self) -> None:
        """Returns when the consumer hangs, and when the callback failed."""
        if self._consumer is None:
            self._consumer = await self._connect()
            tps = await self._partitions(self._consumer)
            if self._cannot_read:
                self._next = await _ends(self._consumer, tps)
            self._assign(self._consumer)
            if self._cannot_read:
                log.warning("%s passes by what it cannot read", self._what())
                self._cannot_read = False
                self._on_gap(None)
        consumer = self._consumer
        while True:
            if self._may_be_others:
                await self._compare(consumer)
            self._take_new_partitions(consumer)
            try:
                fetched = await consumer.getmany(timeout_ms=int(POLL_S * 1000), max_records=BATCH_LIMIT_RECORDS)
            except kafka.OffsetOutOfRangeError as error:
                await self._move_into_range(consumer, error)
                continue
            if not fetched:
                if await self._hangs(consumer):
                    return
                continue
            records = [
                Record(r.topic, r.partition, r.offset, r.key, r.value, r.headers, r.timestamp)
                for each in fetched.values()
                for r in each
            ]
            for tp, each in fetched.items():
                self._next[TP(*tp)] = each[-1].offset + 1
            try:
                await self._on_records(records)
            except Exception as error:
                self._failure = error
                return

    async def _connect(self) -> Consumer:
        consumer = Consumer(
            bootstrap_servers=self._bootstrap,
            client_id=f"{self._client_id}-tail",
            group_id=None,
            **self._settings.consumer(),
        )
        await consumer.start()
        consumer._client.cluster.add_listener(self._cluster_changed)
        self._may_be_others = True
        return consumer

    def _cluster_changed(self, _: object) -> None:
        """Also every METADATA_MAX_AGE_MS without a change."""
        self._may_be_others = True

    async def _compare(self, consumer: Consumer) -> None:
        """A log that was made again may be as long by now as the one before, and so may one whose new leader had not
        all of it, or whose broker lost what its disk had not: the positions look good, and there is a gap."""
        self._may_be_others = False
        client = consumer._client
        answer = await client.send(client.get_random_node(), TopicMetadataRequest(self._topics))
        now = {
            TP(name, number): (topic_id, epoch)
            for _, name, topic_id, _, partitions, *_ in answer.topics
            for _, number, leader, epoch, *_ in partitions
            if leader >= 0
        }
        changed = [tp for tp, found in now.items() if self._logs.get(tp, found) != found]
        self._logs.update(now)
        if changed:
            log.info("%s: another log or leader: %s", self._what(), ", ".join(f"{n}/{p}" for n, p in sorted(changed)))
            self._on_gap(None)

    async def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._detector.forget()
        if consumer is not None:
            # A cancellation in the middle would leave its connections open; `stop` waits for the end.
            self._closing = asyncio.ensure_future(consumer.stop())
            await asyncio.shield(self._closing)

    async def _partitions(self, consumer: Consumer) -> list[TopicPartition]:
        """All of all topics, once the consumer knows them."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + TOPICS_LIMIT_S
        consumer.assign([TopicPartition(name, 0) for name in self._topics])  # asks for the metadata of these topics
        while missing := [name for name in self._topics if not consumer.partitions_for_topic(name)]:
            if loop.time() > give_up_s:
                raise ConfigurationError(f"there is no topic {', '.join(missing)}: create it first")
            await consumer._client.force_metadata_update()
            await asyncio.sleep(POLL_S / 10)
        return [TopicPartition(name, each) for name in self._topics for each in consumer.partitions_for_topic(name)]

    def _assign(self, consumer: Consumer) -> None:
        consumer.assign([TopicPartition(*tp) for tp in self._next])
        for tp, offset in self._next.items():
            consumer.seek(TopicPartition(*tp), offset)

    def _take_new_partitions(self, consumer: Consumer) -> None:
        """Whatever they hold was appended after `start`."""
        now = {TP(name, each) for name in self._topics for each in consumer.partitions_for_topic(name) or ()}
        added = now - set(self._next)
        if added:
            self._next.update(dict.fromkeys(added, 0))
            self._assign(consumer)

    async def _move_into_range(self, consumer: Consumer, error: kafka.OffsetOutOfRangeError) -> None:
        """Behind the end it does not begin anew: what the log holds may have been seen long ago."""
        tps = list(error.args[0])
        first, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        for tp in tps:
            to = min(max(self._next[tp], first[tp]), ends[tp])
            log.warning("%s: offset %d of %s is not in the log, going on at %d", self._what(), self._next[tp], tp, to)
            self._next[TP(*tp)] = to
            consumer.seek(tp, to)
        self._on_gap(None)

    async def _hangs(self, consumer: Consumer) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_look_s:
            return False
        limit_s = self._settings.stall_limit_ms / 1000
        self._next_look_s = now_s + limit_s / LOOKS_PER_LIMIT
        try:
            async with asyncio.timeout(limit_s):
                seen = await waiting(consumer, self._next)
        except (kafka.KafkaError, TimeoutError):
            self._detector.forget()
            return False
        return bool(self._detector.observe(seen, now_s))

    def _what(self) -> str:
        return f"tail of {', '.join(self._topics)}"


async def _ends(consumer: Consumer, tps: Sequence[TopicPartition]) -> dict[TP, int]:
    return {TP(*tp): end for tp, end in (await consumer.end_offsets(tps)).items()}
