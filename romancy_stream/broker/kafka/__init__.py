"""`KafkaBroker`: the `Broker` port on Apache Kafka (2.8 to 4.x), with Faust for the stream processor's batches and
aiokafka for everything else. The parts import nothing of each other but `settings`, `faults` and `admin`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from romancy_stream.broker.kafka.settings import KafkaSettings, from_url
from romancy_stream.broker.port import (
    BatchHandler,
    BatchSource,
    OnGap,
    OnRecords,
    OutRecord,
    Tail,
    TaskHandler,
    TaskSource,
    TopicInfo,
    TopicSpec,
    nobody_asked,
)
from romancy_stream.errors import BrokerUnavailableError

if TYPE_CHECKING:
    import asyncio

    from romancy_stream.broker.kafka.admin import Admin
    from romancy_stream.broker.kafka.producer import Producer

__all__ = ["KafkaBroker", "KafkaSettings"]


class KafkaBroker:
    """`bootstrap`: `kafka://host:port,host:port`, see `settings.from_url`. Bound to no loop until `open`."""

    def __init__(self, bootstrap: str, *, client_id: str, settings: KafkaSettings | None = None) -> None:
        self.bootstrap, self.settings = from_url(bootstrap, settings)
        self._client_id = client_id
        self._admin: Admin | None = None
        self._producer: Producer | None = None

    @property
    def is_shared(self) -> bool:
        return True

    async def open(self) -> None:
        from romancy_stream.broker.kafka.admin import Admin
        from romancy_stream.broker.kafka.producer import Producer

        admin = Admin(self.bootstrap, self._client_id, self.settings)
        await admin.open()
        producer = Producer(self.bootstrap, self._client_id, self.settings, admin)
        try:
            await producer.open()
        except BaseException:
            await admin.close()
            raise
        self._admin, self._producer = admin, producer

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        admin, self._admin = self._admin, None
        if producer is not None:
            await producer.close()
        if admin is not None:
            await admin.close()

    async def topics(self) -> Mapping[str, TopicInfo]:
        return await self._opened()[0].topics()

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        return await self._opened()[0].create_topics(specs)

    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        return await self._opened()[1].send(records)

    def batches(self, topics: Sequence[str], group: str, handler: BatchHandler) -> BatchSource:
        # Faust takes most of a second to import: only the stream processor pays for it.
        from romancy_stream.broker.kafka.source import FaustBatchSource

        return FaustBatchSource(
            topics, group, handler, bootstrap=self.bootstrap, client_id=self._client_id, settings=self.settings
        )

    def tasks(self, topics: Sequence[str], group: str, handler: TaskHandler) -> TaskSource:
        from romancy_stream.broker.kafka.tasks import KafkaTaskSource

        return KafkaTaskSource(
            topics, group, handler, bootstrap=self.bootstrap, client_id=self._client_id, settings=self.settings
        )

    def tail(self, topics: Sequence[str], on_records: OnRecords, on_gap: OnGap = nobody_asked) -> Tail:
        from romancy_stream.broker.kafka.tail import KafkaTail

        return KafkaTail(
            topics, on_records, on_gap, bootstrap=self.bootstrap, client_id=self._client_id, settings=self.settings
        )

    def _opened(self) -> tuple[Admin, Producer]:
        if self._admin is None or self._producer is None:
            raise BrokerUnavailableError("the broker is not open")
        return self._admin, self._producer
