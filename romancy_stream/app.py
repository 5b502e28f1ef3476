"""The app: workflows and activities by name, where the log and the tables are, and the process's share of the work
between entering and leaving. An app holds nothing bound to an event loop until it is entered."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from romancy_stream.activity import DEFAULT_QUEUE, ActivityDefiner, checked_queue, define_activity
from romancy_stream.broker.port import Broker
from romancy_stream.client import BaseClient, Client
from romancy_stream.engine.config import CHANNEL_RETENTION_S, EVENT_TTL_S
from romancy_stream.errors import ConfigurationError, InvalidPathError
from romancy_stream.events import EventType
from romancy_stream.listening import Listener
from romancy_stream.payloads import Payloads
from romancy_stream.queues import QueueOptions, RateLimit
from romancy_stream.registry import Registry
from romancy_stream.retry import RetryPolicy
from romancy_stream.runtime.expiry import DEDUP_WINDOW_S
from romancy_stream.runtime.node import Node, NodeConfig
from romancy_stream.runtime.roles import ROLES, Role
from romancy_stream.runtime.sealer import Sealer
from romancy_stream.runtime.statistics import Stats
from romancy_stream.runtime.vault import NO_VAULT
from romancy_stream.schedule import CATCH_UP, Overlap, Schedule, whole_seconds
from romancy_stream.schedule_workflow import ScheduleWorkflow
from romancy_stream.scheduling import Declared, first_state
from romancy_stream.spans import in_seconds
from romancy_stream.store.paths import parse_path
from romancy_stream.store.searchable import SEARCHABLE_CHARS, SEARCHABLE_MAX
from romancy_stream.store.sql import SqlStore
from romancy_stream.workflow import I, Startable, Workflow, WorkflowDefiner, decorated, define_workflow

DEFAULT_PARTITIONS: Final = 8
"""Of a new namespace, for good. One engine process can own them all, eight can own one each."""
DEFAULT_CONCURRENCY: Final = 100
"""Activity attempts under way in one process."""
HOME: Final = Path(".romancy")
LONGEST_S: Final = 10 * 366 * 86_400
"""What App takes as a time to keep something."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)

M = TypeVar("M")


class App(BaseClient):
    """`name` is the namespace of topics, consumer groups and tables' owner.

    `broker`: "embedded://[path]" (default, ./.romancy/{name}) or "kafka://host:port[,host:port]". `database`:
    "sqlite:///file" (default, beside the embedded log), "postgresql://..." or "mysql://...". Without them
    ROMANCY_BROKER, ROMANCY_DATABASE and ROMANCY_NAMESPACE are read.

    `event_ttl`: how long an event is kept that nobody waits for yet, `channel_retention`: a message of a competing
    channel that nobody takes, `dedup_window`: how long an event is known by its source and id, `retention`: how long
    finished instances are kept, None for ever; in seconds, or a timedelta.

    `searchable`: paths of inputs, such as "customer.id", that `find_instances` finds by an index on SQLite and MariaDB
    too; PostgreSQL has one of all paths.

    `payloads`: encrypts payloads, and keeps large ones elsewhere; the same in every process, clients too.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        broker: str | None = None,
        database: str | None = None,
        partitions: int = DEFAULT_PARTITIONS,
        worker_id: str | None = None,
        default_retry_policy: RetryPolicy | None = None,
        event_topics: Sequence[str] = (),
        queues: Sequence[str] = (),
        concurrency: int = DEFAULT_CONCURRENCY,
        eager: bool = True,
        event_ttl: float | timedelta = EVENT_TTL_S,
        channel_retention: float | timedelta = CHANNEL_RETENTION_S,
        dedup_window: float | timedelta = DEDUP_WINDOW_S,
        retention: float | timedelta | None = None,
        searchable: Sequence[str] = (),
        payloads: Payloads | None = None,
    ) -> None:
        self.namespace = name or os.environ.get("ROMANCY_NAMESPACE") or ""
        if not _NAME.fullmatch(self.namespace):
            raise ConfigurationError(
                f"an app needs a name of letters, digits, '.', '_' and '-' (or ROMANCY_NAMESPACE), not {name!r}"
            )
        if not 1 <= partitions <= 1_000:
            raise ConfigurationError(f"partitions must be 1 to 1,000, not {partitions}")
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be 1 or more, not {concurrency}")
        self.broker_url = broker or os.environ.get("ROMANCY_BROKER") or f"embedded://{HOME / self.namespace}"
        self.database_url = (
            database or os.environ.get("ROMANCY_DATABASE") or f"sqlite:///{HOME / self.namespace / 'state.db'}"
        )
        self.partitions = partitions
        self.worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}"
        self.default_retry_policy = default_retry_policy or RetryPolicy()
        self.event_topics = tuple(event_topics)
        self.registry = Registry()
        self._queues = {queue: QueueOptions() for queue in queues}
        self._concurrency = concurrency
        self._eager = eager
        self._event_ttl_s = _seconds("event_ttl", event_ttl, 0)
        self._channel_retention_s = _seconds("channel_retention", channel_retention, 1)
        self._dedup_window_s = _seconds("dedup_window", dedup_window, 1)
        self._retention_s = None if retention is None else _seconds("retention", retention, 0)
        self.searchable = _searchable(searchable)
        if payloads is not None:
            if not isinstance(payloads, Payloads):
                raise ConfigurationError(f"payloads must be Payloads(...), not {payloads!r}")
            self._sealer = Sealer(payloads, payloads.store or NO_VAULT)
        self._node: Node | None = None
        self._schedules: dict[str, Declared] = {}
        self._listeners: list[Listener] = []
        self.registry.add_workflow(Workflow.of(ScheduleWorkflow))

    def __repr__(self) -> str:
        return f"<App {self.namespace}>"

    # -- defining ------------------------------------------------------------------------------------------------
    if TYPE_CHECKING:  # typed as the decorators that belong to no app
        workflow: WorkflowDefiner
        activity: ActivityDefiner
    else:

        def workflow(self, function: Any = None, /, **options: Any) -> Any:
            """As `romancy_stream.workflow`, registered with this app."""

            def decorate(function: Any) -> Any:
                return decorated(function, self._add(define_workflow(function, **options)))

            return decorate if function is None else decorate(function)

        def activity(self, function: Any = None, /, **options: Any) -> Any:
            """As `romancy_stream.activity`, registered with this app."""

            def decorate(function: Any) -> Any:
                return self.registry.add_activity(define_activity(function, **options))

            return decorate if function is None else decorate(function)

    @overload
    def event(self, type: str, *, key: str | None = None, model: type[M]) -> EventType[M]: ...
    @overload
    def event(self, type: str, *, key: str | None = None, model: Any = None) -> EventType[Any]: ...
    def event(self, type: str, *, key: str | None = None, model: Any = None) -> EventType[Any]:
        """Declares events of a type. `key`: the one field of their data by which they find who waits for them; `model`:
        the type of that data. ConfigurationError when another declaration of the type differs. Declare the key before
        the first wait for such an event: waits that are open already stay where events do not go any more."""
        return self.registry.add_event(EventType(type, key, model))

    def include(self, source: ModuleType | Registry) -> None:
        """Registers what a module or another registry holds."""
        self.registry.include(source)
        for each in self.registry.workflows.all():
            each.bind(self)

    def _add(self, workflow: Workflow[Any, Any]) -> Workflow[Any, Any]:
        workflow.bind(self)
        return self.registry.add_workflow(workflow)

    def queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        rate_limit: RateLimit | None = None,
        global_rate: RateLimit | None = None,
    ) -> str:
        """Declares a queue of activities; returns its name, for `queue=`. `concurrency`: attempts of it at a time, in
        each worker process; `rate_limit`: starts of them, likewise; `global_rate`: starts of them in all processes
        together, evenly spread. ValueError."""
        self._queues[checked_queue(name)] = QueueOptions(concurrency, rate_limit, global_rate)
        return name

    @overload
    def schedule(
        self,
        name: str,
        workflow: Startable[[], Any],
        /,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catch_up: float | timedelta = CATCH_UP,
        start_paused: bool = False,
    ) -> None: ...
    @overload
    def schedule(
        self,
        name: str,
        workflow: Startable[[I], Any],
        input: I,
        /,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catch_up: float | timedelta = CATCH_UP,
        start_paused: bool = False,
    ) -> None: ...
    @overload
    def schedule(
        self,
        name: str,
        workflow: Startable[..., Any],
        input: Mapping[str, Any],
        /,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catch_up: float | timedelta = CATCH_UP,
        start_paused: bool = False,
    ) -> None: ...
    def schedule(
        self,
        name: str,
        workflow: Any,
        /,
        *input: Any,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catch_up: float | timedelta = CATCH_UP,
        start_paused: bool = False,
    ) -> None:
        """Declares a schedule: whenever an engine of this app starts, it sees to it that there is one of this name that
        does this. `input` as for `start`; for named parameters a mapping of them. Either `cron` (five fields, in
        `timezone`) or `every` (seconds, or a timedelta; whole seconds). `overlap`: what to do with a time at which the
        instance before it still runs: "skip" it, "buffer" one, or "allow" both. A time that has passed more than
        `catch_up` ago, because no engine ran, is missed. ConfigurationError, ValueError."""
        if self._node is not None:
            raise ConfigurationError(f"schedule {name!r}: declare it before the app is entered")
        if name in self._schedules:
            raise ConfigurationError(f"two schedules are called {name!r}")
        definition: Workflow[..., Any] = Workflow.of(workflow)
        named = len(definition.parameters.names) > 1 and len(input) == 1
        self._schedules[name] = Declared(
            Schedule(
                name,
                definition.name,
                None,
                cron,
                None if every is None else whole_seconds(every),
                timezone,
                overlap,
                float(in_seconds(catch_up)),
            ),
            definition,
            () if named else input,
            dict(input[0]) if named else {},
            start_paused,
        )

    def add_listener(self, listener: Listener) -> None:
        """Tells it what the engine and the workers of this process do. ConfigurationError when the app is entered."""
        if self._node is not None:
            raise ConfigurationError(f"{listener!r}: add listeners before the app is entered")
        if not isinstance(listener, Listener):
            raise TypeError(f"a listener is a Listener, not {listener!r}")
        self._listeners.append(listener)

    @property
    def queues(self) -> tuple[str, ...]:
        """Those that were named and those of the registered activities."""
        known = {*self._queues, *(each.queue for each in self.registry.activities.values()), DEFAULT_QUEUE}
        return tuple(sorted(known))

    # -- running -------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        """Engine and activity workers in this process, in the running event loop."""
        if self._node is not None:
            raise ConfigurationError(f"app {self.namespace!r} is entered already")
        await self._enter(ROLES, self.queues, initialise=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    @asynccontextmanager
    async def running(
        self, *, roles: Sequence[Role] = ROLES, queues: Sequence[str] | None = None, initialise: bool = True
    ) -> AsyncIterator[Self]:
        """As entering the app, with a part of the work: `roles` of ("engine", "worker"), activities of `queues`
        only. `initialise` False: topics and tables must be there."""
        unknown = set(roles) - set(ROLES)
        if unknown or not roles:
            raise ConfigurationError(f"roles are {', '.join(ROLES)}, not {', '.join(sorted(unknown)) or 'none'}")
        await self._enter(tuple(roles), self.queues if queues is None else tuple(queues), initialise)
        try:
            yield self
        finally:
            await self._leave()

    async def _enter(self, roles: tuple[Role, ...], queues: tuple[str, ...], initialise: bool) -> None:
        declared = self.declared_schedules()
        self._node = node = Node(
            self.node_config(roles, queues, initialise), self.registry, self.make_broker(), self.make_store()
        )
        try:
            await node.start()
        except BaseException:
            self._node = None
            raise
        self._broker, self._store, self._hub = node.broker, node.store, node.hub
        if declared and node.engine is not None:
            self._declaring = node.beside(self._declare_all(declared), "schedules")

    async def _leave(self) -> None:
        node, self._node, self._declaring = self._node, None, None
        if node is not None:
            try:
                await node.stop()
            finally:
                del self._broker, self._store, self._hub

    async def wait_failed(self) -> None:
        """Returns never; raises what stopped the engine or a worker for good."""
        if self._node is None:
            raise ConfigurationError(f"app {self.namespace!r} is not entered")
        await asyncio.shield(self._node.failed)

    def stats(self) -> Stats:
        """What this process has done and has before it, now."""
        if self._node is None:
            raise ConfigurationError(f"app {self.namespace!r} is not entered")
        return self._node.stats()

    async def wait_assigned(self) -> None:
        """Until this process owns partitions."""
        if self._node is None or self._node.engine is None:
            raise ConfigurationError(f"no engine of app {self.namespace!r} runs in this process")
        await self._node.engine.assigned()

    def client(self, *, poll_interval: float | None = None) -> Client:
        """Starts, sends, queries and waits, without an engine or a worker; an async context manager.
        `poll_interval` (seconds): for clients that may not read the events topic."""
        return Client(
            self.namespace,
            self.make_broker,
            self.make_store,
            poll_interval=poll_interval,
            registry=self.registry,
            sealer=self._sealer,
        )

    # -- parts, also for the command line ------------------------------------------------------------------------
    def declared_schedules(self) -> list[tuple[Schedule, bool]]:
        """And whether a new one begins paused. TypeError for a wrong input, PayloadError, PayloadTooLargeError."""
        declared = [(each.ready(), each.start_paused) for each in self._schedules.values()]
        for schedule, paused in declared:
            raw = first_state(schedule, paused)
            self._sealer.sealing.seal(raw, f"the input of schedule {schedule.name!r}", {})
        return declared

    def node_config(
        self, roles: tuple[Role, ...] = ROLES, queues: tuple[str, ...] | None = None, initialise: bool = True
    ) -> NodeConfig:
        return NodeConfig(
            self.namespace,
            self.partitions,
            self.worker_id,
            self.default_retry_policy,
            self.event_topics,
            self.queues if queues is None else queues,
            tuple(sorted({*self.queues, *(queues or ())})),
            self._concurrency,
            roles,
            initialise,
            dict(self._queues),
            eager=self._eager,
            event_ttl_s=self._event_ttl_s,
            channel_retention_s=self._channel_retention_s,
            dedup_window_s=self._dedup_window_s,
            retention_s=self._retention_s,
            searchable=self.searchable,
            listeners=tuple(self._listeners),
            sealer=self._sealer,
        )

    def make_store(self) -> SqlStore:
        return SqlStore(self.database_url)

    def make_broker(self) -> Broker:
        scheme, _, rest = self.broker_url.partition("://")
        if scheme == "embedded":
            from romancy_stream.broker.embedded import EmbeddedBroker

            return EmbeddedBroker(rest or HOME / self.namespace)
        if scheme == "kafka" and rest:
            from romancy_stream.broker.kafka import KafkaBroker

            return KafkaBroker(self.broker_url, client_id=f"{self.namespace}-{self.worker_id}")
        raise ConfigurationError(
            f'broker must be "embedded://folder" or "kafka://host:port[,host:port]", not {self.broker_url!r}'
        )


def _searchable(paths: Sequence[str]) -> tuple[str, ...]:
    if isinstance(paths, str) or len(paths) > SEARCHABLE_MAX:
        raise ConfigurationError(f"searchable is a list of at most {SEARCHABLE_MAX} paths, not {paths!r}")
    for path in paths:
        try:
            parse_path(path)
        except InvalidPathError as error:
            raise ConfigurationError(f"searchable: {error}") from None
        if len(path) > SEARCHABLE_CHARS:
            raise ConfigurationError(f"searchable: {path[:40]!r}… is longer than {SEARCHABLE_CHARS} characters")
    return tuple(dict.fromkeys(paths))


def _seconds(name: str, given: float | timedelta, least: int) -> float:
    seconds = in_seconds(given)
    if not isinstance(seconds, int | float) or not least <= seconds <= LONGEST_S:
        raise ConfigurationError(f"{name} must be {least} to {LONGEST_S:,} seconds, or a timedelta, not {given!r}")
    return float(seconds)
