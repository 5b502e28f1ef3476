"""Commands and user events: which workflow they start, as which instance, and why not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import orjson

from romancy_stream.engine import answers, outgoing, slots
from romancy_stream.engine import history as h
from romancy_stream.engine.batch import Batch
from romancy_stream.engine.commit import CANCELLED, COMPLETED, FAILED, FINISHED, InstanceRow, Rejection
from romancy_stream.engine.definitions import WorkflowDef
from romancy_stream.engine.failure import rejection_of
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Received
from romancy_stream.engine.intake import digest
from romancy_stream.engine.loop import LATEST_US
from romancy_stream.engine.mail import Mail
from romancy_stream.engine.parameters import MAX_NAME_CHARS
from romancy_stream.errors import InvalidInputError, PayloadError
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import parse_time
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import BAD_ATTRIBUTE

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
REJECT_DUPLICATE: Final = "reject_duplicate"
_REUSED: Final[Mapping[str, frozenset[str]]] = {
    "allow_failed": frozenset({FAILED, CANCELLED}),
    "allow_finished": frozenset({COMPLETED, FAILED, CANCELLED}),
}
"""Value of the attribute X_REUSE -> how an instance must have ended for a start to begin another run of it."""


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
        if batch.deletes(instance_id):  # one commit cannot do both: afterwards
            batch.forward(part, instance_id, event)
            return
        if self._core.exists(instance_id) is None and self._deleted(instance_id, event):
            self._core.stats["duplicate_start"] += 1
        elif self._stands(batch, part, instance_id, workflow, event):
            self._start(batch, received, part, instance_id, workflow, event)

    def _deleted(self, instance_id: str, event: WireEvent) -> bool:
        """Whether this very event started an instance that is gone."""
        tombstone = self._core.loaded.tombstones.get(instance_id)
        return tombstone is not None and (tombstone.event_source, tombstone.event_id) == (event.source, event.id)

    # -- an id that may be taken ---------------------------------------------------------------------------------
    def _stands(self, batch: Batch, part: int, instance_id: str, workflow: str, event: WireEvent) -> bool:
        """Whether the id is there for this start to take."""
        reuse = event.extensions.get(w.X_REUSE)
        # Events of earlier runs are in no row any more.
        again = reuse is not None and not self._core.first_seen(batch, part, digest("start", event))
        row = self._row(instance_id)
        if row is None:
            return not again
        refusal = None
        if again or (row.event_source, row.event_id) == (event.source, event.id):
            self._core.stats["duplicate_start"] += 1
        elif row.workflow != workflow:
            refusal = f"instance {instance_id} exists and is one of workflow {row.workflow!r}, not {workflow!r}"
        elif row.status in FINISHED and row.status in _REUSED.get(reuse or "", ()):
            return True
        elif row.status in FINISHED and reuse == REJECT_DUPLICATE:
            refusal = f"instance {instance_id} exists: it is {row.status}"
        elif event.extensions.get(w.X_CONFLICT) == "fail":
            refusal = f"instance {instance_id} exists"
        else:
            self._core.stats["duplicate_start"] += 1
        if refusal is not None:
            self._tell(batch, part, instance_id, workflow, event, "instance_exists", refusal, b"[]")
        elif reuse is not None:
            answers.done(batch, part, event, run=row.run, started=False)
        return False

    def _row(self, instance_id: str) -> InstanceRow | None:
        entry = self._core.entry(instance_id)
        return self._core.loaded.instances.get(instance_id) if entry is None else entry.state.row()

    def _unwanted(self, batch: Batch, received: Received, event: WireEvent) -> None:
        if event.type == w.START:
            reason, message = "missing_attribute", f"{w.START} needs the attribute {w.X_WORKFLOW}"
        elif event.type.startswith(w.RESERVED_PREFIX):
            reason, message = "unknown_command", f"no command is called {event.type}"
        else:
            self._core.stats["unwanted_event"] += 1
            return
        batch.dead_letter(received, reason, message, event.source, event.id)

    # -- starting ------------------------------------------------------------------------------------------------
    def _start(
        self, batch: Batch, received: Received, part: int, instance_id: str, workflow: str, event: WireEvent
    ) -> None:
        refused = self._refusal(event, workflow)
        if refused is not None:
            self._reject(batch, received, instance_id, workflow, event, *refused, b"[]")
            return
        attrs: dict[str, Any] = {"event_source": event.source, "event_id": event.id}
        for name, key in ((w.X_CORRELATION, "correlation_id"), ("traceparent", "traceparent")):
            if name in event.extensions:
                attrs[key] = event.extensions[name]
        if w.X_BEGIN in event.extensions:
            attrs["begin_us"] = begin_us(event.extensions[w.X_BEGIN])
        try:
            run = self._begin(batch, part, instance_id, workflow, event.data, attrs)
        except PayloadError as error:
            self._reject(batch, received, instance_id, workflow, event, "unreadable_input", str(error), b"[]")
        except InvalidInputError as error:
            errors = orjson.dumps(error.errors)
            self._reject(batch, received, instance_id, workflow, event, "invalid_input", str(error), errors)
        else:
            if w.X_REUSE in event.extensions:
                answers.done(batch, part, event, run=run, started=True)

    def _refusal(self, event: WireEvent, workflow: str) -> tuple[str, str] | None:
        """Reason and message."""
        if workflow not in self._core.workflows:
            return "unknown_workflow", self.nobody_has(workflow)
        begin, reuse = event.extensions.get(w.X_BEGIN), event.extensions.get(w.X_REUSE)
        if begin is not None and begin_us(begin) is None:
            return BAD_ATTRIBUTE, f"{w.X_BEGIN} must be a time with its offset (RFC 3339), not {begin!r}"
        if reuse is not None and reuse not in (*_REUSED, REJECT_DUPLICATE):
            return BAD_ATTRIBUTE, f"{w.X_REUSE} must be one of {', '.join((*_REUSED, REJECT_DUPLICATE))}, not {reuse!r}"
        return None

    def nobody_has(self, workflow: str) -> str:
        known = sorted(name for name in self._core.workflows if not name.startswith(w.RESERVED_PREFIX))
        return f"no workflow named {workflow!r} is registered; known: {', '.join(known)}"

    def child(
        self, batch: Batch, mail: Mail, workflow: str, parent: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        """A start by a parent, of a workflow that is known and an id that is free. InvalidInputError, PayloadError."""
        event_id = outgoing.child_event_id(parent["id"], parent["run"], parent["ref"])
        attrs = {"event_source": batch.source, "event_id": event_id, "parent": parent, **given}
        self._begin(batch, self._core.part_of(mail.to), mail.to, workflow, mail.payload, attrs)

    def _begin(
        self, batch: Batch, part: int, instance_id: str, workflow: str, data: bytes | None, given: Mapping[str, Any]
    ) -> int:
        """The first run, or one more of an instance that has ended or is gone. InvalidInputError, PayloadError: it
        does not begin."""
        core = self._core
        definition, opened = core.workflows[workflow], core.opened(data)
        arguments = definition.decode(opened)
        payload = None if data is None else core.sealed(batch, data, f"the input of {workflow}")
        batch.rejections.pop(instance_id, None)
        if instance_id in core.loaded.rejections:
            batch.accepted.add(instance_id)
        attrs = {"workflow": workflow, **begun_with(definition), **slots.begun(core, definition, opened), **given}
        run = core.next_run(batch, instance_id)
        started = HistoryEvent(instance_id, run, 1, batch.now_us, h.WORKFLOW_STARTED, None, attrs, payload)
        core.begin(batch, started, part, arguments)
        return run

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
        if w.X_REUSE in event.extensions:
            answers.refused(batch, part, event, rejection_of(reason, message, orjson.loads(errors)))
        told = outgoing.rejected(batch.source, event, instance_id, workflow, data, batch.time)
        batch.send(part, batch.topics.events, instance_id, told, part)


def begun_with(definition: WorkflowDef) -> dict[str, Any]:
    """Attributes of `workflow.started` that come from the code: a run keeps to them."""
    version = {} if definition.version is None else {"version": definition.version}
    return {"rules": h.RULES, **version}


def begin_us(text: str) -> int | None:
    """Of an attribute that somebody else wrote."""
    moment = parse_time(text)
    if moment is None:
        return None
    return min((moment - _EPOCH) // timedelta(microseconds=1), LATEST_US)


def derived_id(workflow: str, source: str, event_id: str) -> str:
    """The instance that an event without a subject starts: always the same one, however often it comes."""
    digest = hashlib.sha256(f"{source}\0{event_id}".encode()).hexdigest()
    # Longer names are nobody's (checked_name), but a start of one is rejected under an id that has to be stored.
    return f"{workflow[:MAX_NAME_CHARS]}-{digest[:32]}"
