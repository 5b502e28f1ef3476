"""What one batch does to the database, as a value. The core makes it, the store applies it in one transaction,
the simulator inspects it. Every operation names its row by key and no row is named twice, so a store may apply
the parts in any order, or all at once in one statement. Values only.

All JSON is raw text (`bytes`), all times are whole microseconds since 1970 UTC (`*_us`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from romancy_stream.engine.history import HistoryEvent
from romancy_stream.wire.value import value

if TYPE_CHECKING:
    from romancy_stream.engine.tasks import Task

RUNNING: Final = "running"
WAITING_FOR_TIMER: Final = "waiting_for_timer"
WAITING_FOR_EVENT: Final = "waiting_for_event"
WAITING_FOR_MESSAGE: Final = "waiting_for_message"
COMPENSATING: Final = "compensating"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
RECURRED: Final = "recurred"
RESET: Final = "reset"
FINISHED: Final = frozenset({COMPLETED, FAILED, CANCELLED})

SCHEDULED: Final = "scheduled"
BACKING_OFF: Final = "backing_off"


@dataclass(frozen=True, slots=True)
class Mark:
    """The fence of one partition, and what moves with it. The commit takes effect only where the partition's row
    still has this `epoch` and `commit_no`; it leaves `commit_no + 1` and `position` (the last outbox position
    given out) behind."""

    part: int
    epoch: int
    commit_no: int
    position: int


@value
class InstanceRow:
    """Projection of one instance. `seq` is its last history event; `parked` why it is halted, or None; `waiting_for`
    a JSON list of texts such as "event payment.completed", None when it waits for no such thing; `parent_id` the
    instance that started it as a child; `version` of its workflow's code, None for a workflow without versions."""

    instance_id: str
    run: int
    part: int
    workflow: str
    status: str
    seq: int
    input: bytes | None
    output: bytes | None
    error: bytes | None
    started_us: int
    updated_us: int
    finished_us: int | None
    parked: str | None
    event_source: str
    event_id: str
    parent_id: str | None = None
    waiting_for: bytes | None = None
    version: str | None = None


@value
class ActivityRow:
    """Projection of one activity: what it is doing now. `error` is the last attempt's; `eager` the engine process that
    kept the attempt to itself, without the broker."""

    instance_id: str
    run: int
    activity_id: str
    name: str
    queue: str
    status: str
    attempt: int
    scheduled_us: int
    updated_us: int
    finished_us: int | None
    next_attempt_us: int | None
    error: bytes | None
    eager: str | None = None


@value
class TimerRow:
    instance_id: str
    run: int
    timer_id: str
    part: int
    due_us: int


@value
class OutboxRow:
    """A record to send once this commit is durable. `position` rises by one per row within `part`, in commit
    order. `headers` and `value` are the record exactly as it goes out, so that a successor can send it again."""

    part: int
    position: int
    topic: str
    key: str
    to_partition: int | None
    headers: tuple[tuple[str, str], ...]
    value: bytes | None


@value
class EagerTask:
    """A task for a worker in the engine's own process, once this commit is durable."""

    part: int
    queue: str
    task: Task


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used, whole: `raw` value, key and headers as they were read."""

    topic: str
    partition: int
    offset: int
    at_us: int
    reason: str
    message: str
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    raw: bytes | None
    event_source: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A start that was refused, durable under the instance id. `reason`: "invalid_input" | "unknown_workflow" |
    "refused_by_database" | "kills_its_owner". `errors` is a JSON list."""

    instance_id: str
    part: int
    workflow: str
    reason: str
    message: str
    errors: bytes
    event_source: str
    event_id: str
    at_us: int


# -- entities: what lives on the partition of its own name, where those who wait and those who send meet ---------------
@value
class EntityRow:
    """`entity` is its name, at most ENTITY_CHARS; `kind` "event" | "channel" | "group" | "slots" | "rate"; `head` small
    JSON, what the kind keeps beside members and items."""

    entity: str
    part: int
    kind: str
    head: bytes
    updated_us: int


@value
class MemberRow:
    """An instance that waits at, subscribes to or holds something of an entity. `seq` rises in the order of joining;
    `attrs` is small JSON."""

    entity: str
    instance_id: str
    ref: str
    run: int
    seq: int
    attrs: bytes


@value
class ItemRow:
    """Something an entity keeps until it is delivered: a buffered event, a message. `attrs` is small JSON, `payload`
    the data; `expires_us` None: for ever."""

    entity: str
    seq: int
    part: int
    at_us: int
    expires_us: int | None
    attrs: bytes
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class StoredEntity:
    """An entity as it was last committed."""

    row: EntityRow
    members: Sequence[MemberRow]
    items: Sequence[ItemRow]


ENTITY_CHARS: Final = 220
"""Three key columns of an index together have 3,072 bytes on MySQL, 4 to a character."""


@value
class Tombstone:
    """What is left of a deleted instance: enough to know the event that started it, and never to use a run again."""

    instance_id: str
    part: int
    run: int
    event_source: str
    event_id: str
    at_us: int


@dataclass(slots=True)
class Commit:
    """Everything of one batch, for all partitions it touched."""

    marks: list[Mark] = field(default_factory=list)
    offsets: list[tuple[str, int, int]] = field(default_factory=list)  # topic, partition, next offset
    watermarks: list[tuple[int, int, int]] = field(default_factory=list)  # part, origin partition, position
    history: list[HistoryEvent] = field(default_factory=list)
    instances: list[InstanceRow] = field(default_factory=list)  # first seen in this batch, or a new run: whole rows
    updates: list[InstanceRow] = field(default_factory=list)  # known before: `input` and what never changes stay
    activities: list[ActivityRow] = field(default_factory=list)  # upsert
    timers: list[TimerRow] = field(default_factory=list)  # upsert
    timers_gone: list[tuple[str, int, str]] = field(default_factory=list)  # instance_id, run, timer_id
    outbox: list[OutboxRow] = field(default_factory=list)
    outbox_sent: list[tuple[int, int, int]] = field(default_factory=list)  # part, first, last position, inclusive
    outbox_refused: list[tuple[int, int, str]] = field(default_factory=list)  # part, position, reason
    dead_letters: list[DeadLetter] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)  # upsert by instance_id
    rejections_gone: list[str] = field(default_factory=list)  # instance_id: started after all
    closed: list[ActivityKey] = field(default_factory=list)  # claimed for the engine where no worker was first
    intake: list[tuple[int, str, int]] = field(default_factory=list)  # part, digest of (scope, source, id), at_us
    entities: list[EntityRow] = field(default_factory=list)  # upsert
    entities_gone: list[str] = field(default_factory=list)
    members: list[MemberRow] = field(default_factory=list)  # upsert
    members_gone: list[tuple[str, str, str]] = field(default_factory=list)  # entity, instance_id, ref
    items: list[ItemRow] = field(default_factory=list)  # upsert
    items_gone: list[tuple[str, int]] = field(default_factory=list)  # entity, seq
    eager: list[EagerTask] = field(default_factory=list)  # not written
    blobs: dict[str, bytes] = field(default_factory=dict)  # to be kept elsewhere before the rest is written
    deleted: list[Tombstone] = field(default_factory=list)  # every row of the instance goes, this one comes

    def happened(self) -> Iterator[HistoryEvent]:
        """The history without what a run that an operator has begun took over from another one."""
        copied: dict[tuple[str, int], int] = {}
        for event in self.history:
            run = (event.instance_id, event.run)
            if event.seq == 1 and "follows" in event.attrs:
                copied[run] = event.attrs["follows"]["copied"]
            if event.seq > copied.get(run, 0):
                yield event


class ActivityKey(NamedTuple):
    """A tuple, whose hash Python does not compute in Python: worker and tables look things up by it all the time."""

    instance_id: str
    run: int
    activity_id: str


@dataclass(frozen=True, slots=True)
class RecordedResult:
    """A row of activity_results: the one key that decides who was first. `outcome` "completed" was written by a
    worker inside its transaction, "closed" by the engine before it gave up on the activity."""

    key: ActivityKey
    attempt: int
    outcome: str
    result: bytes | None
    worker: str | None
    at_us: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last one of an activity, whichever attempt it came from. `details` is JSON."""

    key: ActivityKey
    attempt: int
    at_us: int
    details: bytes | None
