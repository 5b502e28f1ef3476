"""What users see of instances: values made of the projected rows and of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from romancy_stream.engine.commit import ActivityRow, InstanceRow
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.payload import load_plain
from romancy_stream.store.port import DeadLetterRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def microseconds(when: datetime) -> int:
    """Raises ValueError for a naive datetime."""
    if when.utcoffset() is None:
        raise ValueError(f"{when!r} has no time zone; use for example datetime.now(UTC)")
    return (when - _EPOCH) // timedelta(microseconds=1)


def microseconds_or_none(when: datetime | None) -> int | None:
    return None if when is None else microseconds(when)


def _json(raw: bytes | None) -> Any:
    return None if raw is None else load_plain(raw, "a stored value")


@dataclass(frozen=True, slots=True)
class WorkflowInstance:
    """One instance as projected. `input`, `output` and `error` are plain JSON values; `error` is an object with
    type, message and stack. `parked` says why the instance is halted, or is None; `parent_id` whose child it is;
    `waiting_for` what it waits for, as "event payment.completed" or "slot customer=ada", the first twenty; `version` is
    that of its workflow's code, None for a workflow without versions."""

    instance_id: str
    run: int
    workflow_name: str
    status: str
    input: Any
    output: Any
    error: Any
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    partition: int
    parked: str | None
    parent_id: str | None = None
    waiting_for: Sequence[str] = ()
    version: str | None = None

    @classmethod
    def of(cls, row: InstanceRow) -> WorkflowInstance:
        return cls(
            row.instance_id,
            row.run,
            row.workflow,
            row.status,
            _json(row.input),
            _json(row.output),
            _json(row.error),
            moment(row.started_us),
            moment(row.updated_us),
            None if row.finished_us is None else moment(row.finished_us),
            row.part,
            row.parked,
            row.parent_id,
            tuple(_json(row.waiting_for) or ()),
            row.version,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """`next_page_token` is None on the last page."""

    instances: Sequence[WorkflowInstance]
    next_page_token: str | None

    @property
    def has_more(self) -> bool:
        return self.next_page_token is not None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event of the log. `ref` names the activity, timer or publication; `payload` is a plain JSON value."""

    seq: int
    at: datetime
    kind: str
    ref: str | None
    attrs: dict[str, Any] = field(default_factory=dict)
    payload: Any = None

    @classmethod
    def of(cls, event: HistoryEvent) -> HistoryEntry:
        return cls(event.seq, moment(event.at_us), event.kind, event.ref, event.attrs, _json(event.payload))


@dataclass(frozen=True, slots=True)
class ActivityView:
    """What an activity is doing now, or did. `status`: scheduled, backing_off, completed, failed,
    cancelled or abandoned."""

    activity_id: str
    name: str
    queue: str
    status: str
    attempt: int
    scheduled_at: datetime
    finished_at: datetime | None
    next_attempt_at: datetime | None
    error: Any

    @classmethod
    def of(cls, row: ActivityRow) -> ActivityView:
        return cls(
            row.activity_id,
            row.name,
            row.queue,
            row.status,
            row.attempt,
            moment(row.scheduled_us),
            None if row.finished_us is None else moment(row.finished_us),
            None if row.next_attempt_us is None else moment(row.next_attempt_us),
            _json(row.error),
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used, whole. `dlq_id` is topic/partition/offset."""

    dlq_id: str
    at: datetime
    reason: str
    message: str
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    value: bytes | None
    event_source: str | None
    event_id: str | None
    replayed_at: datetime | None

    @classmethod
    def of(cls, row: DeadLetterRow) -> DeadLetter:
        return cls(
            row.dlq_id,
            moment(row.at_us),
            row.reason,
            row.message,
            row.key,
            row.headers,
            row.raw,
            row.event_source,
            row.event_id,
            None if row.replayed_us is None else moment(row.replayed_us),
        )
