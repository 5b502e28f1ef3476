"""One process's share of an app, put together and taken apart in order: database, broker, topics, engine, activity
worker, waiters. Everything bound to an event loop lives here, and nothing outlives `stop`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from romancy_stream.broker.port import Broker
from romancy_stream.engine.commit import Commit
from romancy_stream.engine.config import CHANNEL_RETENTION_S, EVENT_TTL_S, CoreConfig
from romancy_stream.errors import ConfigurationError, LogIdentityError, PartitionCountError
from romancy_stream.listening import Listener
from romancy_stream.queues import QueueOptions
from romancy_stream.registry import Registry
from romancy_stream.retry import RetryPolicy
from romancy_stream.runtime.expiry import DEDUP_WINDOW_S
from romancy_stream.runtime.forwarder import Forwarder
from romancy_stream.runtime.hub import ResultHub
from romancy_stream.runtime.listeners import Listeners
from romancy_stream.runtime.roles import Role
from romancy_stream.runtime.sealer import OPEN, Sealer
from romancy_stream.runtime.service import EngineService
from romancy_stream.runtime.statistics import Stats
from romancy_stream.runtime.worker import ActivityWorker
from romancy_stream.store.migrate import require_migrated
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.event import Topics
from romancy_stream.wire.manifest import topic_specs
from romancy_stream.wire.partition import partition_for

log = logging.getLogger(__name__)

DRAIN_S: Final = 10.0
"""How long leaving waits for activities that are under way; what is not done by then is done elsewhere again."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    namespace: str
    partitions: int
    worker_id: str
    default_policy: RetryPolicy
    event_topics: tuple[str, ...]
    queues: tuple[str, ...]  # served by this process
    all_queues: tuple[str, ...]  # of the app: their topics must be there for the engine
    concurrency: int
    roles: tuple[Role, ...]
    initialise: bool
    limits: Mapping[str, QueueOptions] = field(default_factory=dict)  # by queue
    eager: bool = True  # tasks stay in this process where it has a free worker for them
    event_ttl_s: float = EVENT_TTL_S
    channel_retention_s: float = CHANNEL_RETENTION_S
    dedup_window_s: float = DEDUP_WINDOW_S
    retention_s: float | None = None
    searchable: tuple[str, ...] = ()  # paths of inputs
    listeners: tuple[Listener, ...] = ()
    sealer: Sealer = OPEN


class Node:
    def __init__(self, config: NodeConfig, registry: Registry, broker: Broker, store: SqlStore) -> None:
        self.config = config
        self.broker = broker
        self.store = store
        self.topics = Topics(config.namespace)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.engine: EngineService | None = None
        self.worker: ActivityWorker | None = None
        self._registry = registry
        self._tasks: list[asyncio.Task[None]] = []
        self._hub: ResultHub | None = None
        self.listeners = Listeners(())

    @property
    def hub(self) -> ResultHub:
        assert self._hub is not None, "the node is not started"
        return self._hub

    def _is_local(self, instance_id: str) -> bool:
        return self.engine is not None and partition_for(instance_id.encode(), self.config.partitions) in (
            self.engine.owned
        )

    # -- life cycle ----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        self._registry.resolve()
        await self.store.open()
        try:
            await self.broker.open()
            if self.config.initialise:
                await initialise(self.config, self.broker, self.store)
            await check(self.config, self.broker, self.store)
            self.listeners = Listeners(self.config.listeners)
            self._hub = ResultHub(self.store, self.broker, self.topics, self._is_local)
            await self._start_roles()
        except BaseException:
            await self.stop()
            raise

    async def _start_roles(self) -> None:
        config = self.config
        if "worker" in config.roles:
            self.worker = ActivityWorker(
                self.broker,
                self.store,
                self._registry.activities,
                namespace=config.namespace,
                queues=config.queues,
                partitions=config.partitions,
                concurrency=config.concurrency,
                worker_id=config.worker_id,
                limits=config.limits,
                listeners=self.listeners if self.listeners.hears_attempts else None,
                sealer=config.sealer,
            )
            await self.worker.start()
            self._watch(self.worker.run(), "worker")
        if "engine" in config.roles:
            self.engine = EngineService(
                self.broker,
                self.store,
                core_config(config, self._registry),
                self._registry.workflows,
                worker_id=config.worker_id,
                dedup_window_s=config.dedup_window_s,
                retention_s=config.retention_s,
                on_commit=self._committed,
                on_ownership=self.hub.on_ownership,
                eager=self.worker.eager if self.worker is not None and config.eager else None,
                vault=config.sealer.vault,
            )
            self._watch(self.engine.run(), "engine")
            if config.event_topics:
                self._watch(Forwarder(self.broker, config.event_topics, self.topics).run(), "forwarder")

    def _committed(self, commit: Commit) -> None:
        self.hub.on_commit(commit)
        self.listeners.on_commit(commit)

    def stats(self) -> Stats:
        worker = None if self.worker is None else self.worker.statistics()
        missed = self.listeners.dropped
        if self.engine is None:
            return Stats(worker=worker, listeners_dropped=missed)
        core, (unsent, held) = self.engine.core, self.engine.unsent
        return Stats(
            len(self.engine.owned), core.cached, len(core.timers), dict(core.stats), unsent, held, worker, missed
        )

    def beside(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs something until it is done, or the node stops. Its failure is one of the node."""
        return self._watch(work, name)

    def _watch(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"romancy-{name}")
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.failed.done():
            return
        error = task.exception()
        if error is not None:
            log.critical("%s stopped: %s", task.get_name(), error)
            self.failed.set_exception(error)

    async def stop(self) -> None:
        if self.worker is not None:
            await self.worker.stop(DRAIN_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.listeners.close()
        if self._hub is not None:
            await self._hub.close()
        await self.broker.close()
        await self.store.close()
        if not self.failed.done():
            self.failed.cancel()
        elif not self.failed.cancelled():
            self.failed.exception()  # logged when it happened; wait_failed() raises it to who asks


def core_config(config: NodeConfig, registry: Registry) -> CoreConfig:
    events = registry.events
    return CoreConfig(
        config.namespace,
        config.partitions,
        config.default_policy,
        event_keys={name: event.key for name, event in events.items()},
        event_models={name: event.model for name, event in events.items() if event.model is not None},
        event_ttl_s=config.event_ttl_s,
        channel_retention_s=config.channel_retention_s,
        queue_rates={name: each.global_rate.every_us for name, each in config.limits.items() if each.global_rate},
        sealing=config.sealer.sealing,
    )


# -- what a database and a broker must have before anything runs --------------------------------------------------
async def initialise(config: NodeConfig, broker: Broker, store: SqlStore) -> tuple[Sequence[str], Sequence[str]]:
    """Migrations and topics that are missing; returns their names. Safe among processes that start together."""
    migrations = await store.migrate()
    await store.prepare(config.namespace, config.partitions)
    await store.make_searchable(config.searchable)
    topics = await broker.create_topics(topic_specs(config.namespace, config.partitions, config.all_queues))
    return migrations, topics


async def check(config: NodeConfig, broker: Broker, store: SqlStore) -> None:
    """Refuses to run on topics that cannot be the ones the database belongs to. PartitionCountError,
    LogIdentityError, NamespaceError."""
    await require_migrated(store.db)
    await store.prepare(config.namespace, config.partitions)
    found = await broker.topics()
    for spec in topic_specs(config.namespace, config.partitions, config.all_queues):
        topic = found.get(spec.name)
        if topic is None:
            raise ConfigurationError(
                f"topic {spec.name!r} does not exist: run `romancy topics create`, or start without --no-init"
            )
        if topic.partitions != spec.partitions:
            raise PartitionCountError(
                f"topic {spec.name!r} has {topic.partitions} partitions, this app is set up for {spec.partitions}. An "
                f"instance belongs to a partition for good: use App(partitions={topic.partitions}), or for another "
                "number start with a new name and a new database."
            )
    await _check_identity(config, {name: topic.topic_id for name, topic in found.items()}, store)


async def _check_identity(config: NodeConfig, found: dict[str, str], store: SqlStore) -> None:
    topics = Topics(config.namespace)
    ids = {name: found[name] for name in (topics.commands, topics.results)}
    recorded = await store.topic_ids()
    for name, topic_id in ids.items():
        if recorded.get(name, topic_id) != topic_id:
            raise LogIdentityError(
                f"topic {name!r} is not the one this database was filled from (it was deleted and made again): "
                "offsets in the database mean nothing there. Bring the topic back, or go on with the new one after "
                f"`romancy doctor --accept-topics`, which starts it from its beginning."
            )
    if any(name not in recorded for name in ids):
        await store.record_topic_ids(ids)
