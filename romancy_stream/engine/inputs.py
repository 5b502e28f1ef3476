"""What the shell hands to the core. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from romancy_stream.engine.commit import (
    ActivityKey,
    Heartbeat,
    InstanceRow,
    RecordedResult,
    Rejection,
    StoredEntity,
    TimerRow,
    Tombstone,
)
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.tasks import Report
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.record import Record
from romancy_stream.wire.value import value


@value
class Received:
    """A record of `commands` or `results`, decoded."""

    record: Record
    event: WireEvent | Malformed


@value
class Reported:
    """By a worker in this process, of an instance that lives in this partition."""

    part: int
    report: Report

    @property
    def instance_id(self) -> str:
        return self.report.key.instance_id


@dataclass(frozen=True, slots=True)
class TimerDue:
    part: int
    instance_id: str
    run: int
    timer_id: str


@dataclass(frozen=True, slots=True)
class Unpark:
    """Try a parked instance again: this process may have the code that agrees with its history."""

    part: int
    instance_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that the shell found to spoil its batch. `reason` is a short code, `message` says what happened."""

    received: Received
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ItemExpired:
    """The time of something that an entity keeps is over."""

    part: int
    entity: str
    seq: int


@dataclass(frozen=True, slots=True)
class Outlived:
    """A finished instance that is older than `before_us`, the end of the time for which finished ones are kept."""

    part: int
    instance_id: str
    before_us: int


@dataclass(frozen=True, slots=True)
class LeaseLapsed:
    """The worker of a long attempt has not been heard of for longer than its lease."""

    part: int
    instance_id: str
    run: int
    activity_id: str
    attempt: int
    incarnation: str


Input = Received | Reported | TimerDue | Unpark | Refused | ItemExpired | Outlived | LeaseLapsed


@dataclass(slots=True)
class EagerRoom:
    """Which tasks of `queues` a worker in this process, of the life `incarnation`, takes without the broker: as many as
    are `free` whatever they are, and then up to `ahead`, as long as all of them take no more than `spare_s` seconds.
    `expected_s`: activity -> how long an attempt takes; one that is not in it is not taken ahead."""

    incarnation: str
    queues: Set[str]
    free: int
    ahead: int = 0
    spare_s: float = 0.0
    expected_s: Mapping[str, float] = field(default_factory=dict)

    def take(self, queue: str, activity: str) -> bool:
        if queue not in self.queues:
            return False
        if self.free > 0:
            self.free -= 1
            return True
        takes_s = self.expected_s.get(activity)
        if takes_s is None or takes_s > self.spare_s or self.ahead <= 0:
            return False
        self.ahead -= 1
        self.spare_s -= takes_s
        return True


@dataclass(frozen=True, slots=True)
class PartitionStart:
    """What a partition begins with after it was taken over."""

    part: int
    epoch: int
    commit_no: int
    position: int
    watermarks: Mapping[int, int] = field(default_factory=dict)
    timers: tuple[TimerRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was prefetched for one batch, for the ids that `EngineCore.missing` named."""

    instances: Mapping[str, InstanceRow] = field(default_factory=dict)
    rejections: Mapping[str, Rejection] = field(default_factory=dict)
    histories: Mapping[str, list[HistoryEvent]] = field(default_factory=dict)
    closed: Mapping[ActivityKey, RecordedResult] = field(default_factory=dict)
    tombstones: Mapping[str, Tombstone] = field(default_factory=dict)
    entities: Mapping[str, StoredEntity] = field(default_factory=dict)
    taken_in: frozenset[tuple[int, str]] = frozenset()
    heartbeats: Mapping[ActivityKey, Heartbeat] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    prefixes: Mapping[tuple[str, int], Sequence[HistoryEvent]] = field(default_factory=dict)
