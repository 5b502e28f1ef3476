"""The CloudEvents that the engine writes of what happened to instances; those about attempts are in `tasks`. Ids are
derived from (instance, run, sequence), so a message that is sent twice is the same event twice."""

from __future__ import annotations

import hashlib
from typing import Any

from romancy_stream.engine import history as h
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.intake import digest
from romancy_stream.engine.projection import InstanceState
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import MAX_ID_CHARS


def engine_source(namespace: str) -> str:
    return f"/romancy/{namespace}"


def short_id(event_id: str) -> str:
    """Ids of events have a limit that the parts of this one may exceed together."""
    return event_id if len(event_id) <= MAX_ID_CHARS else hashlib.sha256(event_id.encode()).hexdigest()


def child_event_id(parent_id: str, run: int, ref: str | None) -> str:
    """Of what started a child, together with the engine's source."""
    return short_id(f"{parent_id}/{run}/{ref}")


def began_child(event_id: str, parent_id: str, run: int, ref: str | None) -> bool:
    """Whether that run of the parent began a child by this event: with `ref`, or with another one, as far as an id that
    is not too long tells."""
    return event_id.rpartition("/")[0] == f"{parent_id}/{run}" or event_id == child_event_id(parent_id, run, ref)


def happened(source: str, type_: str, state: InstanceState, event: HistoryEvent, time: str) -> WireEvent:
    """An instance started, completed or failed."""
    data = event.payload if event.payload is not None else b"null"
    if type_ in _DATA_NAME:
        data = b'{"%s":%s}' % (_DATA_NAME[type_], data)
    extensions = {
        w.X_PARTITION_KEY: state.instance_id,
        w.X_WORKFLOW: state.workflow,
        w.X_INSTANCE: state.instance_id,
        w.X_RUN: str(state.run),
        w.X_SEQUENCE: str(event.seq),
        w.X_CAUSATION: state.event_id,
        w.X_CAUSATION_SOURCE: state.event_source,
    }
    return WireEvent(
        id=f"{state.instance_id}/{state.run}/{event.seq}",
        source=source,
        type=type_,
        subject=state.instance_id,
        data=data,
        time=time,
        extensions=extensions,
    )


def large(source: str, state: InstanceState, event: HistoryEvent, time: str) -> WireEvent:
    """The history of a run has become long."""
    return WireEvent(
        id=f"{state.instance_id}/{state.run}/{event.seq}/large",
        source=source,
        type=w.HISTORY_LARGE,
        subject=state.instance_id,
        data=b'{"events":%d}' % event.seq,
        time=time,
        extensions={
            w.X_PARTITION_KEY: state.instance_id,
            w.X_WORKFLOW: state.workflow,
            w.X_INSTANCE: state.instance_id,
            w.X_RUN: str(state.run),
            w.X_SEQUENCE: str(event.seq),
            w.X_CAUSATION: state.event_id,
            w.X_CAUSATION_SOURCE: state.event_source,
        },
    )


_DATA_NAME = {
    w.STARTED: b"input",
    w.COMPLETED: b"output",
    w.FAILED: b"error",
    w.RECURRED: b"input",
}
HAPPENED = {
    h.WORKFLOW_STARTED: w.STARTED,
    h.WORKFLOW_COMPLETED: w.COMPLETED,
    h.WORKFLOW_FAILED: w.FAILED,
    h.WORKFLOW_CANCELLED: w.CANCELLED,
    h.WORKFLOW_RECURRED: w.RECURRED,
}


def answered(source: str, command: WireEvent, instance_id: str, data: bytes, time: str) -> WireEvent:
    """What came of a command. Its id follows from the command's source and id, so a second look says the same."""
    return WireEvent(
        id=short_id(f"{instance_id}/answer/{digest('answer', command)}"),
        source=source,
        type=w.ANSWERED,
        subject=instance_id,
        data=data,
        time=time,
        extensions={
            w.X_PARTITION_KEY: instance_id,
            w.X_INSTANCE: instance_id,
            w.X_CAUSATION: command.id,
            w.X_CAUSATION_SOURCE: command.source,
        },
    )


def published(source: str, state: InstanceState, event: HistoryEvent, time: str) -> WireEvent:
    """An event that workflow code published."""
    attrs: dict[str, Any] = event.attrs
    return WireEvent(
        id=short_id(f"{state.instance_id}/{state.run}/{event.seq}"),
        source=attrs.get("source", source),
        type=attrs["type"],
        subject=attrs.get("subject"),
        data=event.payload,
        time=time,
        extensions={
            w.X_PARTITION_KEY: state.instance_id,
            w.X_INSTANCE: state.instance_id,
            w.X_CAUSATION: state.event_id,
            w.X_CAUSATION_SOURCE: state.event_source,
        },
    )


def rejected(source: str, command: WireEvent, instance_id: str, workflow: str, data: bytes, time: str) -> WireEvent:
    """A start that was refused. Its id follows from the command's source and id, so a second look says the
    same."""
    return WireEvent(
        id=short_id(f"{instance_id}/rejected/{digest('rejected', command)}"),
        source=source,
        type=w.REJECTED,
        subject=instance_id,
        data=data,
        time=time,
        extensions={
            w.X_PARTITION_KEY: instance_id,
            w.X_WORKFLOW: workflow,
            w.X_INSTANCE: instance_id,
            w.X_CAUSATION: command.id,
            w.X_CAUSATION_SOURCE: command.source,
        },
    )
