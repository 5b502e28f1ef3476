"""`KafkaTail`: reads topics without a group from their ends, every partition, for whoever waits for events. It may
talk to Kafka and wait.

It assigns partitions by hand and keeps the positions itself: aiokafka's groupless subscription would jump to the end
when partitions are added, and a consumer built anew after a failure must go on where the last one was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aiokafka import errors as kafka
from aiokafka.structs import TopicPartition

from romancy_stream.broker.kafka.consumer import Consumer
from romancy_stream.broker.kafka.faults import describe, translated
from romancy_stream.broker.kafka.settings import KafkaSettings
from romancy_stream.broker.kafka.watchdog import LOOKS_PER_LIMIT, StallDetector, waiting
from romancy_stream.broker.port import TP, OnRecords, Record
from romancy_stream.errors import ConfigurationError

log = logging.getLogger(__name__)

POLL_S = 1.0
# With their headers some 600 objects, which are gone again before Python's cycle collector looks at 700 new ones: it
# looked at every event several times when there were 2,000, for a fifth of a client's time.
BATCH_LIMIT_RECORDS = 32
RETRY_PAUSE_S = 1.0
# `start` of a tail whose topics were just created: until the broker we ask knows them.
TOPICS_LIMIT_S = 5.0


class KafkaTail:
    def __init__(
        self, topics: Sequence[str], on_records: OnRecords, *, bootstrap: str, client_id: str, settings: KafkaSettings
    ) -> None:
        self._topics = sorted(topics)
        self._on_records = on_records
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._settings = settings
        self._consumer: Consumer | None = None
        self._next: dict[TP, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._detector = StallDetector(settings.stall_limit_ms / 1000)
        self._next_look_s = 0.0

    async def start(self) -> None:
        try:
            self._consumer = await self._connect()
            tps = await self._partitions(self._consumer)
            self._next = {TP(*tp): end for tp, end in (await self._consumer.end_offsets(tps)).items()}
            self._assign(self._consumer)
        except BaseException as error:
            await self._disconnect()
            if not isinstance(error, Exception):
                raise
            raise translated(error, self._what()) from error
        self._task = asyncio.create_task(self._run(), name=self._what())

    async def stop(self) -> None:
        """Raises what `on_records` raised, which has ended the tail."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if self._closing is not None:
                await self._closing
            if self._failure is not None:
                raise self._failure

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._read()
                except (kafka.KafkaError, OSError, TimeoutError, ConfigurationError) as error:
                    log.warning("%s: new consumer: %s", self._what(), describe(error))
                await self._disconnect()
                await asyncio.sleep(RETRY_PAUSE_S)
        except Exception as error:
            self._failure = error
            log.error("%s ends: %r", self._what(), error)
        finally:
            await self._disconnect()

    async def _read(self) -> None:
        """Returns when the consumer hangs."""
        if self._consumer is None:
            self._consumer = await self._connect()
            await self._partitions(self._consumer)
            self._assign(self._consumer)
        consumer = self._consumer
        while True:
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
            await self._on_records(records)

    async def _connect(self) -> Consumer:
        consumer = Consumer(
            bootstrap_servers=self._bootstrap,
            client_id=f"{self._client_id}-tail",
            group_id=None,
            **self._settings.consumer(),
        )
        await consumer.start()
        return consumer

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
        for tp, first in (await consumer.beginning_offsets(list(error.args[0]))).items():
            log.warning(
                "%s: offset %d of %s is no longer in the log, going on at %d", self._what(), self._next[tp], tp, first
            )
            self._next[TP(*tp)] = first
            consumer.seek(tp, first)

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
