"""The `Store` port: what the runtime asks of the database. One implementation on SQLAlchemy Core serves
PostgreSQL, MariaDB/MySQL and SQLite; it knows rows, never workflows.

Errors of every method: StoreUnavailableError when the database cannot be reached or takes no work; anything else is a
bug or bad data and passes through as SQLAlchemy's error. After StoreUnavailableError a `commit` has not happened
(CommitUnknownError says that it may have); every other method may be called again, whether it happened or not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from romancy_stream.engine.commit import (
    ActivityKey,
    ActivityRow,
    Commit,
    Heartbeat,
    InstanceRow,
    Mark,
    OutboxRow,
    RecordedResult,
    Rejection,
    StoredEntity,
    TimerRow,
    Tombstone,
)
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.wire.event import RESERVED_PREFIX


@dataclass(frozen=True, slots=True)
class Detached:
    """A long attempt that its worker has committed past on the task topic: from then on the worker's lease stands
    for it. `incarnation` names the worker process."""

    key: ActivityKey
    attempt: int
    part: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class PartitionSnapshot:
    """What a new owner starts from."""

    part: int
    epoch: int
    commit_no: int
    position: int
    offsets: Mapping[str, int]  # topic -> next offset; absent: from the beginning
    watermarks: Mapping[int, int]  # origin partition -> last position taken in
    timers: Sequence[TimerRow]
    outbox: Sequence[OutboxRow]  # not yet acknowledged, by position
    held: Mapping[str, Sequence[OutboxRow]]  # by key: a row that the broker refused, and those behind it
    parked: Sequence[str]  # instance ids
    eager: Sequence[Detached] = ()  # attempts that an engine process kept to itself
    stalls: int = 0  # takeovers in a row without a commit between them
    suspect: str | None = None  # see `mark_suspect`


@dataclass(frozen=True, slots=True)
class Known:
    """What the database holds about ids that a batch mentions."""

    instances: Mapping[str, InstanceRow]
    rejections: Mapping[str, Rejection]
    tombstones: Mapping[str, Tombstone] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerOutboxRow:
    """What a transactional activity's worker has to send: key (incarnation, seq)."""

    incarnation: str
    seq: int
    part: int
    at_us: int
    topic: str
    key: str
    headers: tuple[tuple[str, str], ...]
    value: bytes | None


@dataclass(frozen=True, slots=True)
class InstanceQuery:
    """Filters of list/find; they are ANDed. Name and id: case-insensitive substring, `%` and `_` mean themselves.
    Times: [after, before). `input`: dot path -> JSON scalar. `parent_id` exact; `finished_before_us` also says
    that it has ended, `finished` whether it has. `system`: with the engine's own workflows, which otherwise only
    their name shows."""

    workflow_name: str | None = None
    status: str | None = None
    instance_id: str | None = None
    started_after_us: int | None = None
    started_before_us: int | None = None
    input: Mapping[str, Any] | None = None
    parent_id: str | None = None
    parked: bool | None = None
    finished_before_us: int | None = None
    finished: bool | None = None
    system: bool = False
    limit: int = 50
    page_token: str | None = None

    @property
    def hides(self) -> bool:
        """Whether workflows whose names begin with RESERVED_PREFIX are left out."""
        return not self.system and not (self.workflow_name or "").lower().startswith(RESERVED_PREFIX)


@dataclass(frozen=True, slots=True)
class InstancePage:
    rows: Sequence[InstanceRow]
    next_page_token: str | None


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """`dlq_id` is "topic/partition/offset"."""

    dlq_id: str
    topic: str
    partition: int
    offset: int
    at_us: int
    reason: str
    message: str
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    raw: bytes | None
    event_source: str | None
    event_id: str | None
    replayed_us: int | None


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """Instances of one version of a workflow that have not ended. `parked`: those among them."""

    workflow: str
    version: str | None
    instances: int
    parked: int


@dataclass(frozen=True, slots=True)
class Oldest:
    """Of what grows old in some partitions, None where there is nothing: when the first item expires, and when the
    first message was taken in, the first instance deleted, the first one finished. `now_us`: the database's clock."""

    now_us: int
    expires_us: int | None
    intake_us: int | None
    tombstone_us: int | None
    finished_us: int | None


class Store(Protocol):
    # -- life cycle
    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def migrate(self) -> list[str]:
        """Applies what is missing, safely among concurrent starters; returns the names it applied."""
        ...

    async def prepare(self, namespace: str, partitions: int) -> None:
        """First use: records both and makes the partition rows. Later: NamespaceError or PartitionCountError,
        with the way out, when they differ."""
        ...

    async def make_searchable(self, paths: Sequence[str]) -> list[str]:
        """After `prepare`: searches by these paths of the input need not read all instances from here on. Returns those
        that are new; each owner is fenced off once for them. Nothing to do where every path has an index."""
        ...

    async def now_us(self) -> int:
        """The database's clock."""
        ...

    # -- ownership and commits
    async def take_over(self, parts: Sequence[int], owner: str) -> Mapping[int, int]:
        """Raises the epoch of each and returns the new ones. From here on the former owner's commits fail."""
        ...

    async def snapshot(self, parts: Sequence[int]) -> Sequence[PartitionSnapshot]:
        """In a new transaction, after `take_over`."""
        ...

    async def find_out(self, marks: Sequence[Mark], owner: str) -> bool:
        """After CommitUnknownError: whether the commit with these marks took effect. It cannot any more: each epoch is
        one higher than that of its mark, and who asks owns it still. FencedError: somebody else does. Who hears no
        answer may ask again with the same marks."""
        ...

    async def commit(self, commit: Commit) -> int:
        """All or nothing; returns the database's clock (us). FencedError: nothing was written, somebody else owns
        one of the partitions. CommitUnknownError: the connection broke at a moment that leaves it open. Not to be
        cancelled, which would cut it off at such a moment."""
        ...

    async def mark_suspect(self, part: int, epoch: int, suspect: str | None) -> None:
        """Remembers what a partition's owner is about to process, for a successor to find should it die of it."""
        ...

    async def topic_ids(self) -> Mapping[str, str]: ...
    async def record_topic_ids(self, ids: Mapping[str, str]) -> None: ...

    # -- prefetch
    async def known(self, ids: Sequence[str]) -> Known: ...
    async def histories(self, ids: Sequence[str]) -> Mapping[str, Sequence[HistoryEvent]]:
        """Of the current run of each, by seq. Unknown ids are absent."""
        ...

    async def entities(self, names: Sequence[str]) -> Mapping[str, StoredEntity]:
        """Unknown names are absent."""
        ...

    async def taken_in(self, keys: Sequence[tuple[int, str]]) -> set[tuple[int, str]]:
        """Which of these (part, digest) the intake table holds."""
        ...

    async def history_prefixes(
        self, ids: Sequence[tuple[str, int]]
    ) -> Mapping[tuple[str, int], Sequence[HistoryEvent]]:
        """Of these (instance_id, run), whatever became of them, by seq."""
        ...

    # -- long attempts
    async def beat(self, key: ActivityKey, attempt: int, details: bytes | None) -> bool:
        """A heartbeat, at the database's time. False: the engine has given up on the activity (it was cancelled, or
        ended otherwise), or a later attempt has begun, so this one may stop."""
        ...

    async def heartbeats(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, Heartbeat]: ...
    async def detach(self, attempts: Sequence[Detached], lease_s: float) -> None:
        """Records the attempts and renews the lease of their incarnation, in one transaction. Changes nothing where a
        later attempt is detached."""
        ...

    async def renew_lease(self, incarnation: str, lease_s: float) -> None: ...
    async def attach(self, attempts: Sequence[Detached]) -> None:
        """Forgets detached attempts: they have ended, or were dispatched again. Not where another worker, or another
        attempt, is in their place by now."""
        ...

    async def detached(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, Detached]: ...
    async def unwanted(self, attempts: Sequence[tuple[ActivityKey, int]]) -> set[tuple[ActivityKey, int]]:
        """Those of activities that the engine has closed, or that went with their instance, and those that a later
        attempt has followed which beats."""
        ...

    async def lapsed(self, parts: Sequence[int], limit: int) -> Sequence[Detached]:
        """Detached attempts whose worker's lease has run out, or is not there."""
        ...

    async def open_attempts(self, parts: Sequence[int]) -> bool:
        """Whether a worker may have an attempt of an instance there, or one is recorded as detached. Where not, none
        comes before the next commit of the partition's owner."""
        ...

    # -- what grows old: each at most `limit`, oldest first
    async def expired_items(self, parts: Sequence[int], limit: int) -> Sequence[tuple[int, str, int]]:
        """(part, entity, seq) of items whose time is over."""
        ...

    async def finished_before(self, parts: Sequence[int], before_us: int, limit: int) -> Sequence[tuple[int, str]]:
        """(part, instance_id), by the time of their start."""
        ...

    async def forget_intake(self, parts: Sequence[int], before_us: int, limit: int) -> int: ...
    async def forget_tombstones(self, parts: Sequence[int], before_us: int, limit: int) -> int: ...
    async def oldest(self, parts: Sequence[int]) -> Oldest: ...

    # -- activity results (see the rule "giving up on an activity")
    async def close_activities(self, keys: Sequence[ActivityKey], at_us: int) -> Mapping[ActivityKey, RecordedResult]:
        """Claims each key for the engine where no worker was first; returns what stands there now."""
        ...

    async def results(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, RecordedResult]: ...
    async def worker_outbox(self, parts: Sequence[int], older_than_us: int, limit: int) -> list[WorkerOutboxRow]: ...
    async def delete_worker_outbox(self, keys: Sequence[tuple[str, int]]) -> None: ...

    # -- readers
    async def get_instance(self, instance_id: str) -> InstanceRow | None: ...
    async def list_instances(self, query: InstanceQuery) -> InstancePage: ...
    async def open_versions(self) -> Sequence[OpenVersion]:
        """By workflow and version."""
        ...

    async def history(self, instance_id: str, run: int | None = None) -> Sequence[HistoryEvent]: ...
    async def activities(self, instance_id: str, run: int | None = None) -> Sequence[ActivityRow]: ...
    async def dead_letters(self, limit: int, before: str | None = None) -> Sequence[DeadLetterRow]: ...
    async def dead_letter(self, dlq_id: str) -> DeadLetterRow | None: ...
    async def mark_replayed(self, dlq_id: str, at_us: int) -> None: ...
    async def forget_rejection(self, event_source: str, event_id: str) -> None:
        """Before the start that was rejected is sent again: it would be taken for the one that was answered."""
        ...

    # -- verify and rebuild
    def scan_histories(self, page_instances: int = 500) -> AsyncIterator[Mapping[str, Sequence[HistoryEvent]]]:
        """Every instance with its whole history, page by page, in instance id order."""
        ...

    async def projected(
        self, ids: Sequence[str]
    ) -> tuple[Sequence[InstanceRow], Sequence[ActivityRow], Sequence[TimerRow]]: ...
    async def replace_projections(
        self,
        ids: Sequence[str],
        instances: Sequence[InstanceRow],
        activities: Sequence[ActivityRow],
        timers: Sequence[TimerRow],
    ) -> None: ...
