"""Makes a Faust app hand over whole per-partition batches at positions that the handler owns, instead of single events
whose offsets Faust commits. It subclasses Faust's Kafka transport and uses private names of faust-streaming 0.15.3,
which tests/broker/test_kafka_private_names.py lists; it knows nothing of workflows.

What holds: calls of the handler never overlap; no record is delivered before the seek to the positions that
`on_assigned` returned; whatever was fetched under another assignment, before a rewind or for a held partition is
dropped and read again. `_next` is the truth about what to deliver; aiokafka's positions are brought back to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import faust
from aiokafka import errors as kafka
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP as FaustTP
from mode import Service
from mode.utils.futures import maybe_async

from romancy_stream.broker.kafka.consumer import Consumer
from romancy_stream.broker.kafka.membership import confirmed, kept_alive
from romancy_stream.broker.kafka.settings import KafkaSettings
from romancy_stream.broker.kafka.watchdog import waiting
from romancy_stream.broker.port import TP, BatchHandler, Record
from romancy_stream.errors import LogIdentityError

log = logging.getLogger(__name__)

# Nothing to fetch from: look again this often although an event should wake us.
IDLE_WAIT_S = 1.0
# A hint to lag tools is not worth more.
HINT_LIMIT_S = 5.0


class InlineConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer "thread" without a thread: a hop between threads costs 1 ms of CPU per round trip."""

    wait_for_shutdown = False
    consumer: BatchConsumer

    def __init__(self, consumer: BatchConsumer, *, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:
        super().__init__(consumer, loop=loop, thread_loop=loop, **kwargs)

    async def start(self) -> None:
        self._thread_started.set()
        await Service.start(self)

    async def stop(self) -> None:
        if self._started.is_set() and not self._stopped.is_set():
            self._stopped.set()
            await self.on_thread_stop()
            await self._default_stop_futures()

    async def crash(self, exc: BaseException) -> None:
        await Service.crash(self, exc)

    async def call_thread(self, fun: Any, *args: Any, **kwargs: Any) -> Any:
        return await maybe_async(fun(*args, **kwargs))

    async def on_partitions_revoked(self, revoked: set[FaustTP]) -> None:
        await self.consumer.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[FaustTP], generation_id: int = 0) -> None:
        await self.consumer.on_partitions_assigned(assigned, generation_id)

    def _create_worker_consumer(self, transport: Any) -> Consumer:
        """Ours: Faust leaves some settings to aiokafka, and would pick an assignor that does not co-partition."""
        settings: KafkaSettings = transport.settings
        return Consumer(
            bootstrap_servers=transport.bootstrap,
            client_id=transport.client_id,
            group_id=self.app.conf.id,
            partition_assignment_strategy=[RangePartitionAssignor],
            max_poll_records=settings.batch_limit_records,
            **settings.member(),
        )


class BatchConsumer(driver.Consumer):
    transport: BatchTransport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._next: dict[TP, int] = {}  # what we own: next offset to deliver
        self._epoch = 0  # whatever was fetched in an older one is void
        self._busy = asyncio.Lock()  # one call of the handler at a time
        self._generation = -1  # of the assignment that the handler knows
        self._something_to_fetch = asyncio.Event()
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> InlineConsumerThread:
        return InlineConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _aio(self) -> Consumer:
        consumer = self._thread._ensure_consumer()
        assert isinstance(consumer, Consumer)
        return consumer

    # -- for the source ------------------------------------------------------

    def hold(self, tps: Iterable[TP]) -> None:
        self.pause_partitions({FaustTP(*tp) for tp in tps})

    def release(self, tps: Iterable[TP]) -> None:
        mine = {FaustTP(*tp) for tp in tps if tp in self._next}
        if not mine:
            return  # before it has started, or after it was revoked
        super().resume_partitions(mine)
        self._something_to_fetch.set()
        fetcher = self._aio._fetcher
        for waiter in list(fetcher._fetch_waiters):  # one under way does not look at what was buffered meanwhile
            fetcher._notify(waiter)

    def rewind(self, tp: TP, offset: int) -> None:
        if tp in self._next:
            self._epoch += 1
            self._next[tp] = offset
            self._put_back([tp])

    async def commit_hint(self, offsets: Mapping[TP, int]) -> None:
        ours = self._aio.assignment()  # those that are being revoked, too
        hints = {TopicPartition(*tp): OffsetAndMetadata(to, "") for tp, to in offsets.items() if tp in ours}
        if hints:  # not Faust's commit, which crashes the consumer on most errors
            await self._aio.commit_within(HINT_LIMIT_S, hints, "hint of offsets")

    async def confirm_membership(self) -> bool:
        """See the port. BrokerUnavailableError when the coordinator does not answer within a session."""
        return await confirmed(self._aio, self._generation, self.transport.settings.session_timeout_ms / 1000)

    async def waiting(self) -> dict[TP, tuple[int, int]]:
        """(position, end) of what should be moving now: nothing while the handler works or the group rebalances."""
        if self._busy.locked() or not self.flow_active:
            return {}
        return await waiting(self._aio, [tp for tp in self._next if tp not in self.transport.held])

    # -- rebalance -----------------------------------------------------------

    async def on_partitions_assigned(self, assigned: set[FaustTP], generation_id: int = 0) -> None:
        tps = {TP(tp.topic, tp.partition) for tp in assigned}
        self.transport.held &= tps
        if not self.should_stop:
            self._generation = generation_id
            try:
                async with self._busy, kept_alive(self._aio, self.transport.settings.heartbeat_interval_ms / 1000):
                    positions = {TP(*tp): to for tp, to in (await self.transport.handler.on_assigned(set(tps))).items()}
                    await self._check(tps, positions)
                    self._next = {tp: positions[tp] for tp in tps}
                    self._epoch += 1
                    self._put_back(tps)
            except Exception as error:  # aiokafka would log it and read on from *its* offsets
                return await self._fatal(error)
        await super().on_partitions_assigned(assigned, generation_id)

    async def _check(self, tps: set[TP], positions: Mapping[TP, int]) -> None:
        missing = tps - set(positions)
        if missing:
            raise ValueError(f"on_assigned returned no position for {sorted(missing)}")
        if tps:
            wanted = [TopicPartition(*tp) for tp in tps]
            first, end = await self._aio.beginning_offsets(wanted), await self._aio.end_offsets(wanted)
            for tp in sorted(tps):
                check_position(tp, positions[tp], first[tp], end[tp])

    async def on_partitions_revoked(self, revoked: set[FaustTP]) -> None:
        await self._give_up()
        await super().on_partitions_revoked(revoked)

    async def _give_up(self) -> None:
        """Everything: the protocol is the eager one."""
        self._epoch += 1
        async with self._busy:
            owned, self._next = set(self._next), {}
            self._generation = -1
            try:
                if owned:
                    await self.transport.handler.on_revoked(owned)
            except Exception as error:
                await self._fatal(error)

    def _put_back(self, tps: Iterable[TP]) -> None:
        consumer = self._aio
        for tp in consumer.assignment() & {TopicPartition(*tp) for tp in tps}:
            if tp in self._next:
                consumer.seek(tp, self._next[tp])

    async def perform_seek(self) -> None:
        """Faust would go to the offsets that Kafka has; ours are set."""

    def resume_partitions(self, tps: Iterable[FaustTP]) -> None:
        """Faust resumes everything after a rebalance."""
        super().resume_partitions({ensure_TP(tp) for tp in tps} - self.transport.held)

    def resume_flow(self) -> None:
        super().resume_flow()
        self._something_to_fetch.set()

    # -- delivery ------------------------------------------------------------

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        """Returns no records: they are delivered here."""
        # Faust does not ask, and a coordinator with an error that nobody takes neither beats nor rejoins.
        self._aio._coordinator.check_errors()
        if self.flow_active and not self._get_active_partitions():
            self._something_to_fetch.clear()
            await self.wait_first(self._something_to_fetch.wait(), timeout=IDLE_WAIT_S)
            return None, None
        epoch = self._epoch
        try:
            records, _ = await super()._wait_next_records(timeout)
        except kafka.NoOffsetForPartitionError:
            return None, None  # aiokafka looked for an offset before our seek
        except kafka.OffsetOutOfRangeError as error:
            await self._fatal(await self._out_of_range(error))
            return None, None
        if records:
            # Shielded: stopping cancels the fetcher, and would cancel on_batch midway.
            await asyncio.shield(self._deliver(epoch, records))
        return None, None

    async def _deliver(self, epoch: int, fetched: Mapping[Any, list[Any]]) -> None:
        async with self._busy:
            batch: dict[TP, list[Record]] = {}
            void: list[TP] = []
            for each, records in fetched.items():
                tp = TP(each.topic, each.partition)
                if epoch != self._epoch or not self.flow_active or tp in self.transport.held or tp not in self._next:
                    void.append(tp)
                else:
                    batch[tp] = [
                        Record(r.topic, r.partition, r.offset, r.key, r.value, r.headers, r.timestamp) for r in records
                    ]
                    self._next[tp] = records[-1].offset + 1  # before the call, which may rewind
            self._put_back(void)  # fetching them has moved aiokafka's positions
            try:
                if batch:
                    await self.transport.handler.on_batch(batch)
            except Exception as error:
                await self._fatal(error)

    async def _out_of_range(self, error: kafka.OffsetOutOfRangeError) -> Exception:
        """What to report: the log has changed under us."""
        try:
            await self._check({TP(*tp) for tp in error.args[0]} & set(self._next), self._next)
        except (LogIdentityError, kafka.KafkaError) as found:
            return found
        return error  # type: ignore[no-any-return]

    # -- start and end -------------------------------------------------------

    async def on_start(self) -> None:
        # Not at import time: the conductor would be bound to a loop that never runs.
        for name in self.transport.batch_topics:
            self.app.topics.add(self.app.topic(name, value_serializer="raw", acks=False))
        await super().on_start()

    async def _fatal(self, error: Exception) -> None:
        self._next = {}
        self.stop_flow()
        await self.app.crash(error)

    async def on_stop(self) -> None:
        await self._give_up()  # neither Faust nor aiokafka revokes at the end
        await super().on_stop()

    def close(self) -> None:
        """Faust's short cut when a rebalance meets a stop; it would leave connections open."""

    def verify_event_path(self, now: float, tp: FaustTP) -> None:
        """Faust's own watchdog takes batches for "stopped processing"; ours is in the source."""


class BatchTransport(driver.Transport):
    Consumer = BatchConsumer
    handler: BatchHandler
    batch_topics: frozenset[str]
    held: set[TP]  # outlives the app
    bootstrap: str
    client_id: str
    settings: KafkaSettings


class ConsumerOnly(BootStrategy):
    enable_kafka_producer = False
    enable_web = False


class NoTables(TableManager):
    """Faust waits a second for tables to be declared."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class BatchApp(faust.App):
    BootStrategy = ConsumerOnly


def check_position(tp: TP, position: int, first: int, end: int) -> None:
    if position > end:
        raise LogIdentityError(
            f"{tp.topic}[{tp.partition}] ends at offset {end}, but offset {position} is the next to process: the "
            f"topic was deleted and made again, or has lost its tail. Restore it, or start over with "
            f"a new namespace or an empty database"
        )
    if position < first:
        raise LogIdentityError(
            f"{tp.topic}[{tp.partition}] begins at offset {first}, but offset {position} is the next to process: "
            f"retention deleted records that were not processed. Raise the topic's retention.ms and retention.bytes; "
            f"to go on without those records, set the stored offset of this partition to {first}"
        )
