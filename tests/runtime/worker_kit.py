"""What the tests of the activity worker share: an embedded broker, a real database with one table of a user's, and
the part of the engine: it sends tasks and reads results.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Integer, String, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from romancy_stream.activity import Activity
from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.broker.port import Broker, TopicSpec
from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.runtime.worker import ActivityWorker
from romancy_stream.store import tables
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode, encode
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.record import OutRecord, Record
from tests.support import eventually

NAMESPACE = "shop"
PARTITIONS = 2
QUEUE = "default"
TIME = "2026-01-31T12:00:00.000001Z"


class Base(DeclarativeBase):
    pass


class OrderRow(Base):
    __tablename__ = "shop_orders"
    order_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    amount: Mapped[int] = mapped_column(Integer)


@dataclass(frozen=True)
class Seen:
    """An event with the topic and offset that it was read at."""

    topic: str
    offset: int
    event: WireEvent

    @property
    def type(self) -> str:
        return self.event.type

    @property
    def data(self) -> Any:
        return orjson.loads(self.event.data) if self.event.data is not None else None


@dataclass
class Bench:
    broker: Broker
    store: SqlStore
    topics: Topics = field(default_factory=lambda: Topics(NAMESPACE))
    namespace: str = NAMESPACE
    seen: list[Seen] = field(default_factory=list)
    dead: list[Record] = field(default_factory=list)
    workers: list[ActivityWorker] = field(default_factory=list)

    # -- the engine's part -------------------------------------------------------------------------------------------
    async def request(
        self,
        name: str,
        *args: Any,
        instance: str = "i1",
        run: int = 1,
        activity_id: str | None = None,
        attempt: int = 1,
        queue: str = QUEUE,
        data: bytes | None = None,
        partition: int | None = None,
        ext: Mapping[str, str] | None = None,
    ) -> None:
        activity_id = activity_id or f"{name}:1"
        event = WireEvent(
            id=f"{instance}/{run}/{activity_id}/{attempt}",
            source=f"/romancy/{self.namespace}",
            type=w.TASK,
            subject=instance,
            data=data or orjson.dumps({"args": args, "kwargs": {}}),
            time=TIME,
            extensions={
                w.X_PARTITION_KEY: instance,
                w.X_RUN: str(run),
                w.X_ACTIVITY: name,
                w.X_ACTIVITY_ID: activity_id,
                w.X_ATTEMPT: str(attempt),
                w.X_IDEMPOTENCY_KEY: f"{instance}/{run}/{activity_id}",
                **(ext or {}),
            },
        )
        headers, value = encode(event)
        await self.send(OutRecord(self.topics.tasks(queue), instance.encode(), value, headers, partition))

    async def send(self, *records: OutRecord) -> None:
        for future in await self.broker.send(records):
            await future

    async def on_records(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.topic == self.topics.dead_letters:
                self.dead.append(record)
                continue
            event = decode(record)
            assert isinstance(event, WireEvent), event
            self.seen.append(Seen(record.topic, record.offset, event))

    # -- what came of it ---------------------------------------------------------------------------------------------
    @property
    def results(self) -> list[Seen]:
        return [each for each in self.seen if each.topic == self.topics.results]

    @property
    def events(self) -> list[Seen]:
        return [each for each in self.seen if each.topic == self.topics.events]

    async def results_of(self, count: int, deadline_s: float = 90) -> list[Seen]:
        await eventually(lambda: len(self.results) >= count, deadline_s, message=f"{count} results: {self.results}")
        assert len(self.results) == count
        return self.results

    async def result(self) -> Seen:
        return (await self.results_of(1))[0]

    # -- the database ------------------------------------------------------------------------------------------------
    async def count(self, table: Any) -> int:
        async with self.store.db.reading("count") as connection:
            return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())

    async def orders(self) -> list[tuple[str, int]]:
        async with self.store.db.reading("orders") as connection:
            rows = await connection.execute(select(OrderRow.order_id, OrderRow.amount).order_by(OrderRow.order_id))
            return [(row.order_id, row.amount) for row in rows]

    async def recorded(self, activity_id: str, instance: str = "i1") -> RecordedResult | None:
        key = ActivityKey(instance, 1, activity_id)
        return (await self.store.results([key])).get(key)

    async def outbox(self) -> list[Any]:
        async with self.store.db.reading("outbox") as connection:
            statement = select(tables.worker_outbox).order_by(tables.worker_outbox.c.seq)
            return list(await connection.execute(statement))

    async def no_outbox(self) -> None:
        async def empty() -> bool:
            return not await self.outbox()

        await eventually(empty, message="sent rows are deleted")

    # -- workers -----------------------------------------------------------------------------------------------------
    async def worker(
        self, *activities: Activity[Any, Any], broker: Broker | None = None, **options: Any
    ) -> ActivityWorker:
        worker = ActivityWorker(
            broker or self.broker,
            self.store,
            {each.name: each for each in activities},
            namespace=self.namespace,
            partitions=PARTITIONS,
            **{"queues": [QUEUE], "worker_id": f"w{len(self.workers) + 1}", **options},
        )
        await worker.start()
        self.workers.append(worker)
        return worker

    async def stop(self, worker: ActivityWorker, drain_s: float = 5) -> None:
        self.workers.remove(worker)
        await worker.stop(drain_s)


def specs(topics: Topics, queues: Sequence[str] = (QUEUE, "other")) -> list[TopicSpec]:
    names = [topics.results, topics.events, *(topics.tasks(queue) for queue in queues), "audit"]
    return [TopicSpec(name, PARTITIONS) for name in names] + [TopicSpec(topics.dead_letters, 1)]


@contextlib.asynccontextmanager
async def opened_store(url: str) -> AsyncIterator[SqlStore]:
    store = SqlStore(url)
    await store.open()
    try:
        await store.migrate()
        async with store.db.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def bench_on(broker: Broker, url: str, namespace: str = NAMESPACE) -> AsyncIterator[Bench]:
    await broker.open()
    try:
        async with opened_store(url) as store:
            bench = Bench(broker, store, Topics(namespace), namespace)
            await broker.create_topics(specs(bench.topics))
            watched = [bench.topics.results, bench.topics.events, bench.topics.dead_letters, "audit"]
            tail = broker.tail(watched, bench.on_records)
            await tail.start()
            try:
                yield bench
            finally:
                for worker in bench.workers:
                    await worker.stop(5)
                await tail.stop()
    finally:
        await broker.close()


def embedded(tmp_path: Path) -> EmbeddedBroker:
    return EmbeddedBroker(tmp_path / "broker")


async def wait_on_server(session: Any, dialect: str, seconds: float) -> None:
    """A statement that takes its time, where the database has one."""
    if dialect == "postgresql":
        await session.execute(text(f"SELECT pg_sleep({seconds})"))
    elif dialect == "mysql":
        await session.execute(text(f"SELECT SLEEP({seconds})"))
