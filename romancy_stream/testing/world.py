"""Everything around the engine of an environment, put together and taken apart: shell, attempts, their database, the
driver and the waiters; and the ways that messages take between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from romancy_stream.engine import history as h
from romancy_stream.engine import projection
from romancy_stream.engine.commit import ActivityKey, OutboxRow, RecordedResult
from romancy_stream.engine.config import CoreConfig
from romancy_stream.errors import NonDeterminismError, StuckError
from romancy_stream.registry import Registry
from romancy_stream.runtime.sealer import Sealer
from romancy_stream.runtime.worker_messages import Message, Messages
from romancy_stream.testing import waiting
from romancy_stream.testing.crew import WORKER, Crew
from romancy_stream.testing.driver import Driver, MemoryBroker, WatchedHub
from romancy_stream.testing.sessions import AttemptStore
from romancy_stream.testing.shell import Shell
from romancy_stream.testing.store import MemoryStore
from romancy_stream.testing.tables import MemoryVault
from romancy_stream.wire.codec import decode, header_bytes
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.record import OutRecord, Record

if TYPE_CHECKING:
    from sqlalchemy import MetaData


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """A CloudEvent that left. `data` is plain JSON."""

    type: str
    data: Any
    source: str
    subject: str | None
    id: str
    topic: str


@dataclass(frozen=True, slots=True)
class Settings:
    """As `WorkflowEnvironment` takes them."""

    core: CoreConfig
    registry: Registry
    start_us: int
    auto_skip: bool
    metadata: MetaData | None
    database: str | None
    crashes: bool
    disorder: Random | None
    mocks_only: bool


class World:
    """Made in the event loop in which it is to live. `broker`, `store` and `hub` are what a client needs."""

    def __init__(self, settings: Settings) -> None:
        core = settings.core
        self.published: list[PublishedEvent] = []
        self._topics = topics = Topics(core.namespace)
        self.shell = shell = Shell(
            core,
            settings.registry.workflows,
            now_us=settings.start_us,
            closer=self._claim,
            on_commit=lambda commit: self.hub.on_commit(commit),
            on_row=self._sent,
            crashes=settings.crashes,
            disorder=settings.disorder,
        )
        self.sealer = Sealer(core.sealing, MemoryVault(shell.tables.blobs))
        self.sessions = AttemptStore(settings.database, settings.metadata, shell.tables, self.now_us)
        self.crew = Crew(
            Messages(core.namespace, core.partitions, WORKER, WORKER),
            settings.registry.activities,
            self.sessions,
            self.now_us,
            send=self._said,
            changed=lambda: self.driver.wake(),
            failed=lambda error: self.driver.fail(error),
            mocks_only=settings.mocks_only,
            sealer=self.sealer,
        )
        self.driver = Driver(shell, self.crew, self._explained, settings.auto_skip)
        self.broker = MemoryBroker(shell, self.driver)
        self.store = MemoryStore(shell.tables, self.driver.settled, self.now_us)
        self.hub = WatchedHub(self.store, self.broker, topics, self.driver, self._is_halted)

    async def close(self) -> None:
        await self.driver.close()
        await self.crew.close()
        await self.hub.close()
        self.shell.close()
        await self.sessions.close()

    def now_us(self) -> int:
        return self.shell.now_us

    # -- messages ------------------------------------------------------------------------------------------------
    async def _claim(self, keys: Sequence[ActivityKey], now_us: int) -> dict[ActivityKey, RecordedResult]:
        found = await self.sessions.claim(keys, now_us)
        self.crew.give_up(key for key in keys if found[key].outcome == "closed")
        return found

    def _sent(self, row: OutboxRow) -> None:
        """By a commit."""
        tasks = self._topics.tasks("")
        if row.topic.startswith(tasks):
            self.crew.take(row, row.topic.removeprefix(tasks))
        elif row.topic in (self._topics.commands, self._topics.results):
            headers = header_bytes(row.headers)
            self.shell.send(OutRecord(row.topic, row.key.encode(), row.value, headers, row.to_partition), row.part)
        else:
            self._note(row.topic, row.key, row.value, row.headers)

    def _said(self, message: Message) -> None:
        """By an attempt."""
        if message.topic in (self._topics.commands, self._topics.results):
            self.shell.send(message.record())
        else:
            self._note(message.topic, message.key, message.value, message.headers)

    def _note(self, topic: str, key: str, value: bytes | None, headers: Any) -> None:
        event = decode(Record(topic, 0, 0, key.encode(), value, header_bytes(headers), 0))
        assert isinstance(event, WireEvent), event
        data = None if event.data is None else orjson.loads(event.data)
        self.published.append(PublishedEvent(event.type, data, event.source, event.subject, event.id, topic))

    # -- why nothing moves ---------------------------------------------------------------------------------------
    def _is_halted(self, instance_id: str) -> bool:
        row = self.shell.tables.instances.get(instance_id)
        return row is not None and row.parked is not None

    def _explained(self, instance_id: str, why: str) -> BaseException:
        tables = self.shell.tables
        row = tables.instances.get(instance_id)
        if row is None:
            return StuckError(f"no instance {instance_id!r} was started, and {why}")
        events = tables.run_of(instance_id, row.run)
        if row.parked is not None:
            attrs = next(event.attrs for event in reversed(events) if event.kind == h.WORKFLOW_PARKED)
            if attrs["code"] == NonDeterminismError.code:
                return NonDeterminismError(instance_id, attrs["expected"], attrs["actual"])
            return StuckError(f"instance {instance_id} is parked: {attrs['message']}")
        state = projection.fold(events, row.part)
        return StuckError(f"instance {instance_id} ({row.workflow}) is {row.status}, and {why}", waiting.texts(state))
