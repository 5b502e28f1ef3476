"""Commands and user events: which workflow they start, as which instance, and why not."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import orjson

from romancy_stream.engine import history as h
from romancy_stream.engine import outgoing
from romancy_stream.engine.batch import Batch
from romancy_stream.engine.commit import Rejection
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Received
from romancy_stream.engine.parameters import MAX_NAME_CHARS
from romancy_stream.errors import InvalidInputError, PayloadError
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

FIRST_RUN = 1


class Starts:
    def __init__(self, core: EngineCore) -> None:
        self._core = core

    def instance_id(self, event: WireEvent) -> str | None:
        """The instance that an event on `commands` is about; None: none."""
        workflow = self._workflow(event)
        if workflow is None:
            return None
        if event.type == w.START and event.subject:
            return event.subject
        return derived_id(workflow, event.source, event.id)

    def _workflow(self, event: WireEvent) -> str | None:
        if event.type == w.START:
            return event.extensions.get(w.X_WORKFLOW)
        definition = self._core.workflows.get(event.type)
        return event.type if definition is not None and definition.event_handler else None

    def command(self, batch: Batch, received: Received, event: WireEvent) -> None:
        workflow = self._workflow(event)
        if workflow is None:
            self._unwanted(batch, received, event)
            return
        instance_id = self.instance_id(event)
        assert instance_id is not None
        part = self._core.part_of(instance_id)
        if part != received.record.partition:
            batch.forward(received.record.partition, instance_id, event)
            return
        existing = self._core.exists(instance_id)
        if existing is not None:
            self._exists(batch, part, instance_id, workflow, event, existing)
            return
        self._start(batch, received, part, instance_id, workflow, event)

    def _unwanted(self, batch: Batch, received: Received, event: WireEvent) -> None:
        if event.type == w.START:
            reason, message = "missing_attribute", f"{w.START} needs the attribute {w.X_WORKFLOW}"
        elif event.type.startswith(w.RESERVED_PREFIX):
            reason, message = "unknown_command", f"no command is called {event.type}"
        else:
            self._core.stats["unwanted_event"] += 1
            return
        batch.dead_letter(received, reason, message, event.source, event.id)

    def _exists(
        self, batch: Batch, part: int, instance_id: str, workflow: str, event: WireEvent, existing: tuple[str, str]
    ) -> None:
        if event.extensions.get(w.X_CONFLICT) == "fail" and existing != (event.source, event.id):
            message = f"instance {instance_id} exists"
            self._tell(batch, part, instance_id, workflow, event, "instance_exists", message, b"[]")
        self._core.stats["duplicate_start"] += 1

    def _start(
        self, batch: Batch, received: Received, part: int, instance_id: str, workflow: str, event: WireEvent
    ) -> None:
        definition = self._core.workflows.get(workflow)
        if definition is None:
            message = f"no workflow named {workflow!r} is registered; known: {', '.join(sorted(self._core.workflows))}"
            self._reject(batch, received, instance_id, workflow, event, "unknown_workflow", message, b"[]")
            return
        try:
            arguments = definition.decode(self._core.opened(event.data))
            payload = self._core.sealed(batch, event.data or b"null", f"the input of {workflow}")
        except PayloadError as error:
            self._reject(batch, received, instance_id, workflow, event, "unreadable_input", str(error), b"[]")
            return
        except InvalidInputError as error:
            errors = orjson.dumps(error.errors)
            self._reject(batch, received, instance_id, workflow, event, "invalid_input", str(error), errors)
            return
        batch.rejections.pop(instance_id, None)
        if instance_id in self._core.loaded.rejections:
            batch.accepted.add(instance_id)
        attrs = {"workflow": workflow, "event_source": event.source, "event_id": event.id}
        for name, key in ((w.X_CORRELATION, "correlation_id"), ("traceparent", "traceparent")):
            if name in event.extensions:
                attrs[key] = event.extensions[name]
        started = HistoryEvent(instance_id, FIRST_RUN, 1, batch.now_us, h.WORKFLOW_STARTED, None, attrs, payload)
        self._core.begin(batch, started, part, arguments)

    def refuse(self, batch: Batch, received: Received, event: WireEvent, reason: str, message: str) -> None:
        """A message that cannot be dealt with, for a reason that is not its own."""
        instance_id, workflow = self.instance_id(event), self._workflow(event)
        part = received.record.partition
        if (
            instance_id is None
            or workflow is None
            or self._core.part_of(instance_id) != part
            or self._core.exists(instance_id) is not None
        ):
            batch.dead_letter(received, reason, message, event.source, event.id)
        else:
            self._reject(batch, received, instance_id, workflow, event, reason, message, b"[]")

    def _reject(
        self,
        batch: Batch,
        received: Received,
        instance_id: str,
        workflow: str,
        event: WireEvent,
        reason: str,
        message: str,
        errors: bytes,
    ) -> None:
        before = batch.rejections.get(instance_id) or self._core.loaded.rejections.get(instance_id)
        if before is not None and (before.event_source, before.event_id) == (event.source, event.id):
            self._core.stats["duplicate_start"] += 1
            return
        part = received.record.partition
        batch.rejections[instance_id] = Rejection(
            instance_id, part, workflow, reason, message, errors, event.source, event.id, batch.now_us
        )
        batch.dead_letter(received, reason, message, event.source, event.id)
        self._tell(batch, part, instance_id, workflow, event, reason, message, errors)

    def _tell(
        self,
        batch: Batch,
        part: int,
        instance_id: str,
        workflow: str,
        event: WireEvent,
        reason: str,
        message: str,
        errors: bytes,
    ) -> None:
        head = orjson.dumps({"reason": reason, "message": message})
        data = head[:-1] + b',"errors":' + errors + b"}"
        told = outgoing.rejected(batch.source, event, instance_id, workflow, data, batch.time)
        batch.send(part, batch.topics.events, instance_id, told, part)


def derived_id(workflow: str, source: str, event_id: str) -> str:
    """The instance that an event without a subject starts: always the same one, however often it comes."""
    digest = hashlib.sha256(f"{source}\0{event_id}".encode()).hexdigest()
    # Longer names are nobody's (checked_name), but a start of one is rejected under an id that has to be stored.
    return f"{workflow[:MAX_NAME_CHARS]}-{digest[:32]}"
