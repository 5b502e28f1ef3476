"""What starts workflows and reads about them, without running any: a `Client` needs the broker and the database and
nothing else. The app offers the same methods; it is a client with an engine beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from cloudevents.core.base import BaseCloudEvent

from romancy_stream.broker.port import Broker
from romancy_stream.engine.payload import encode_data
from romancy_stream.errors import (
    ConfigurationError,
    PayloadError,
)
from romancy_stream.handle import Handle
from romancy_stream.ids import uuid7_hex
from romancy_stream.instances import (
    ActivityView,
    DeadLetter,
    HistoryEntry,
    Page,
    WorkflowInstance,
    microseconds_or_none,
)
from romancy_stream.operating import Operating
from romancy_stream.publishing import Publishing
from romancy_stream.registry import Registry
from romancy_stream.runtime.hub import ResultHub
from romancy_stream.runtime.sealer import OPEN, Sealer
from romancy_stream.scheduling import Scheduling
from romancy_stream.store.port import InstanceQuery, Store
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import new_event_time
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import OutRecord
from romancy_stream.wire.sdk import from_cloudevent
from romancy_stream.workflow import Startable, Workflow

T = TypeVar("T")

_PARTS: Final = ("_broker", "_store", "_hub")
"""Of a client, while it is entered."""


class BaseClient(Scheduling, Publishing, Operating):
    """The methods that an app and a client share. They are usable between entering and leaving."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _PARTS:
                raise ConfigurationError(
                    f"{self!r} is not entered: use it inside `async with app:`, or without an engine in this process "
                    "inside `async with app.client() as client:`"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # -- sending -------------------------------------------------------------------------------------------------
    @overload
    async def send_event(self, event: BaseCloudEvent, /) -> str: ...
    @overload
    async def send_event(
        self,
        /,
        *,
        type: str,
        data: Any = None,
        subject: str | None = None,
        source: str | None = None,
        id: str | None = None,
        extensions: Mapping[str, str] | None = None,
    ) -> str: ...
    async def send_event(
        self,
        event: BaseCloudEvent | None = None,
        /,
        *,
        type: str = "",
        data: Any = None,
        subject: str | None = None,
        source: str | None = None,
        id: str | None = None,
        extensions: Mapping[str, str] | None = None,
    ) -> str:
        """A CloudEvent to the engine, as any producer could send it; returns its id when it is durable. An event of
        the same (source, id) again changes nothing. PayloadError for what is no valid event."""
        if event is not None:
            wire = from_cloudevent(event)
        else:
            encoded = encode_data(data, f"data of event {type!r}")
            wire = WireEvent(
                id or uuid7_hex(), source or self._source, type, subject, encoded, None, dict(extensions or {})
            )
        if wire.time is None:
            now = new_event_time(self._now_us())
            wire = WireEvent(wire.id, wire.source, wire.type, wire.subject, wire.data, now, wire.extensions)
        await self._send(wire, wire.extensions.get(w.X_INSTANCE) or wire.subject or wire.id)
        return wire.id

    def handle(self, instance_id: str, workflow: Startable[..., T] | None = None) -> Handle[T]:
        """To wait for an instance that somebody else started, and to talk to it."""
        if workflow is None:
            return Handle(self, instance_id, None, None)
        known = Workflow.of(workflow)
        return Handle(self, instance_id, known, None, known.name)

    # -- reading -------------------------------------------------------------------------------------------------
    async def get_instance(self, instance_id: str) -> WorkflowInstance | None:
        """None for an unknown id."""
        row = await self._store.get_instance(instance_id)
        return None if row is None else WorkflowInstance.of(await self._sealer.shown(row))

    async def list_instances(
        self,
        *,
        workflow_name: str | None = None,
        status: str | None = None,
        instance_id: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        parent_id: str | None = None,
        system: bool = False,
        limit: int = 50,
        page_token: str | None = None,
    ) -> Page:
        """Newest first. `workflow_name` and `instance_id` match any part, whatever the case; `status` exactly; start
        times in [after, before). `parent_id`: children of that instance. `system`: the engine's own workflows too
        (schedules), which otherwise only a `workflow_name` that begins with "romancy." shows. Inputs and outputs that
        are kept in a store of payloads are not read: `get_instance` does that. InvalidPageTokenError."""
        return await self._page(
            InstanceQuery(
                workflow_name,
                status,
                instance_id,
                microseconds_or_none(started_after),
                microseconds_or_none(started_before),
                parent_id=parent_id,
                system=system,
                limit=limit,
                page_token=page_token,
            )
        )

    async def find_instances(
        self,
        input: Mapping[str, Any],
        *,
        status: str | None = None,
        workflow_name: str | None = None,
        limit: int = 50,
        page_token: str | None = None,
    ) -> Page:
        """By values in the input: `{"customer.id": "c1", "items.0.sku": "A"}`, all of them. A string matches itself,
        a number any equal number, True and False only themselves, None a null that is there. Inputs that are encoded or
        kept elsewhere are not found. InvalidPathError, InvalidPageTokenError."""
        return await self._page(
            InstanceQuery(workflow_name, status, input=dict(input), limit=limit, page_token=page_token)
        )

    async def _page(self, query: InstanceQuery) -> Page:
        page = await self._store.list_instances(query)
        return Page([WorkflowInstance.of(self._sealer.listed(row)) for row in page.rows], page.next_page_token)

    async def history(self, instance_id: str, *, run: int | None = None) -> Sequence[HistoryEntry]:
        """The log of a run, of the current one by default; empty for an unknown id."""
        events = await self._sealer.shown_history(await self._store.history(instance_id, run))
        return [HistoryEntry.of(event) for event in events]

    async def activities(self, instance_id: str, *, run: int | None = None) -> Sequence[ActivityView]:
        return [ActivityView.of(row) for row in await self._store.activities(instance_id, run)]

    # -- dead letters --------------------------------------------------------------------------------------------
    async def dead_letters(self, *, limit: int = 50, before: str | None = None) -> Sequence[DeadLetter]:
        """Newest first; `before` is the dlq_id of the last one seen."""
        return [DeadLetter.of(row) for row in await self._store.dead_letters(limit, before)]

    async def dead_letter(self, dlq_id: str) -> DeadLetter | None:
        row = await self._store.dead_letter(dlq_id)
        return None if row is None else DeadLetter.of(row)

    async def replay_dead_letter(self, dlq_id: str) -> None:
        """Sends the record again, as it was; a command that was handed on between partitions goes back to `commands`.
        What still cannot be used becomes a new dead letter. LookupError for an unknown id."""
        row = await self._store.dead_letter(dlq_id)
        if row is None:
            raise LookupError(f"there is no dead letter {dlq_id!r}")
        # Where it was handed on from is known as taken in: with this mark it would count as a duplicate.
        origin = f"ce_{w.X_ORIGIN}"
        headers = [(name, value) for name, value in row.headers if value is not None and name.lower() != origin]
        is_result = dict(headers).get("ce_type") in (w.ACTIVITY_COMPLETED.encode(), w.ACTIVITY_FAILED.encode())
        topic = row.topic if is_result or row.topic != self.topics.results else self.topics.commands
        if row.event_source is not None and row.event_id is not None:
            await self._store.forget_rejection(row.event_source, row.event_id)
        [sent] = await self._broker.send([OutRecord(topic, row.key or dlq_id.encode(), row.raw, headers)])
        await sent
        await self._store.mark_replayed(dlq_id, await self._store.now_us())


class Client(BaseClient):
    """Made by `app.client()`; an async context manager."""

    def __init__(
        self,
        namespace: str,
        broker: Callable[[], Broker],
        store: Callable[[], Store],
        *,
        poll_interval: float | None = None,
        registry: Registry | None = None,
        sealer: Sealer = OPEN,
    ) -> None:
        self.namespace = namespace
        self.registry = registry or Registry()
        self._make_broker, self._make_store = broker, store
        self._poll_interval_s = poll_interval
        self._sealer = sealer

    def __repr__(self) -> str:
        return f"<Client {self.namespace}>"

    async def __aenter__(self) -> Self:
        self._store, self._broker = self._make_store(), self._make_broker()
        await self._store.open()
        try:
            await self._broker.open()
        except BaseException:
            await self._store.close()
            raise
        self._hub = ResultHub(self._store, self._broker, self.topics, lambda _: False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hub, broker, store = self._hub, self._broker, self._store
        del self._hub, self._broker, self._store
        await hub.close()
        await broker.close()
        await store.close()


__all__ = ["BaseClient", "Client", "Handle", "PayloadError"]
