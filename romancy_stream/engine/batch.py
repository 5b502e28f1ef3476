"""Collects what one `EngineCore.handle` decides and makes the `Commit` of it: one row per key whatever happened in
between, outbox positions in the order of decision."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from zlib import crc32

from romancy_stream.engine import history as h
from romancy_stream.engine import mail as post
from romancy_stream.engine import outgoing, projection
from romancy_stream.engine.commit import Commit, DeadLetter, EagerTask, Mark, OutboxRow, Rejection
from romancy_stream.engine.config import HISTORY_WARNING
from romancy_stream.engine.entity import Entity
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import EagerRoom, Received
from romancy_stream.engine.instance import LiveInstance
from romancy_stream.engine.mail import Mail
from romancy_stream.engine.projection import ActivityState, InstanceState
from romancy_stream.engine.sealing import Blobs
from romancy_stream.engine.tasks import task_event, task_for
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import encode, encode_text, new_event_time
from romancy_stream.wire.dead_letter import dead_letter_event
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.partition import partition_for

log = logging.getLogger(__name__)

KEY_CHARS: Final = 255
"""Of an outbox row: the width of its column."""


@dataclass(slots=True)
class Partition:
    """What the owner keeps in memory of a partition beside its instances."""

    part: int
    epoch: int
    commit_no: int
    position: int
    watermarks: dict[int, int]


@dataclass(slots=True)
class Entry:
    """An instance in the cache. `live` None: nothing has asked its code yet; `history` is then what replay needs, and
    `blobs` what of it is kept elsewhere."""

    state: InstanceState
    live: LiveInstance | None = None
    history: list[HistoryEvent] | None = None
    blobs: Blobs = field(default_factory=dict)
    in_database: bool = True


@dataclass(slots=True)
class Batch:
    """`tell` and `let_go` are what the features make of history events; see `features`."""

    namespace: str
    partitions: int
    owned: dict[int, Partition]
    now_us: int
    tell: Mapping[str, Callable[[Batch, Entry, HistoryEvent], None]]
    let_go: Callable[[Batch, Entry, HistoryEvent], None]
    large_at: int = HISTORY_WARNING
    eager: EagerRoom | None = None
    rates: Mapping[str, int] = field(default_factory=dict)  # queue -> microseconds between two attempts
    grown: int = 0  # runs that reached `large_at`
    commit: Commit = field(default_factory=Commit)
    touched: dict[str, Entry] = field(default_factory=dict)
    marked: dict[int, Partition] = field(default_factory=dict)
    watermarks: dict[tuple[int, int], int] = field(default_factory=dict)
    rejections: dict[str, Rejection] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)  # rejected before, started now
    left: list[Entry] = field(default_factory=list)  # runs that another run of the same instance has followed
    entities: dict[str, Entity] = field(default_factory=dict)
    intake: dict[tuple[int, str], int] = field(default_factory=dict)
    received: Received | None = None  # what is being dealt with
    stats: Counter[str] = field(default_factory=Counter)  # what entities dropped; see `EngineCore.stats`
    topics: Topics = field(init=False)
    source: str = field(init=False)
    time: str = field(init=False)

    def __post_init__(self) -> None:
        self.topics = Topics(self.namespace)
        self.source = outgoing.engine_source(self.namespace)
        self.time = new_event_time(self.now_us)

    # -- history -------------------------------------------------------------------------------------------------
    def start(self, event: HistoryEvent, part: int) -> Entry:
        """Of a new instance, or of another run of one that has ended or recurred."""
        before = self.touched.get(event.instance_id)
        if before is not None:
            self.left.append(before)
        entry = Entry(projection.begin(event, part), in_database=False)
        self.commit.history.append(event)
        self.touched[event.instance_id] = entry
        self._tell(entry, event)
        return entry

    def renew(self, events: list[HistoryEvent], part: int) -> Entry:
        """Of another run that begins with a history. Nothing is told: the world has heard it of the run before."""
        before = self.touched.get(events[0].instance_id)
        if before is not None:
            self.left.append(before)
        state = projection.begin(events[0], part)
        for event in events[1:]:
            projection.apply(state, event)
        self.commit.history.extend(events)
        entry = self.touched[state.instance_id] = Entry(state, history=list(events), in_database=False)
        return entry

    def record(
        self,
        entry: Entry,
        kind: str,
        ref: str | None = None,
        attrs: dict[str, Any] | None = None,
        payload: bytes | None = None,
    ) -> HistoryEvent:
        state = entry.state
        event = HistoryEvent(state.instance_id, state.run, state.seq + 1, self.now_us, kind, ref, attrs or {}, payload)
        if kind in h.ENDS or kind in (h.WORKFLOW_COMPENSATING, h.WORKFLOW_RESET):
            self.let_go(self, entry, event)  # of what it still has open, which the fold is about to forget
        projection.apply(state, event)
        self.commit.history.append(event)
        if entry.history is not None:
            entry.history.append(event)
        self.touched[state.instance_id] = entry
        self._tell(entry, event)
        if event.seq == self.large_at:
            self._large(entry, event)
        return event

    def _large(self, entry: Entry, event: HistoryEvent) -> None:
        state = entry.state
        log.warning(
            "%s, run %d: its history has %d events, which every replay reads; end the run with ctx.recur",
            state.instance_id,
            state.run,
            event.seq,
        )
        self.grown += 1
        message = outgoing.large(self.source, state, event, self.time)
        self.send(state.part, self.topics.events, state.instance_id, message, state.part)

    def _tell(self, entry: Entry, event: HistoryEvent) -> None:
        """What the world outside hears of a history event."""
        tell = self.tell.get(event.kind)
        if tell is not None:
            tell(self, entry, event)
        # Of a run that follows another one, who heard of the end of that has heard of it.
        if event.kind in outgoing.HAPPENED and "recurred" not in event.attrs:
            state = entry.state
            message = outgoing.happened(self.source, outgoing.HAPPENED[event.kind], state, event, self.time)
            self.send(state.part, self.topics.events, state.instance_id, message, state.part)

    def placed(self, queue: str, activity: str, attrs: dict[str, Any]) -> dict[str, Any]:
        """What is recorded of an attempt that is due: that it stays in this process, where there is room for it. A
        successor then knows that no broker has it."""
        if self.eager is None or queue in self.rates or not self.eager.take(queue, activity):
            return attrs
        return {**attrs, "eager": self.eager.incarnation}

    def request(
        self, state: InstanceState, activity: ActivityState, lapsed: str | None = None, *, granted: bool = False
    ) -> None:
        """Asks a worker for the attempt that is due; after the worker process `lapsed`, another one. Where the queue
        has a rate, asks for its time first, unless that was `granted`."""
        every_us = self.rates.get(activity.queue)
        if every_us is not None and lapsed is None and not granted:
            meta = {"attempt": activity.attempt, "every_us": every_us}
            mail = Mail("ask", f"rate:{activity.queue}", state.instance_id, state.run, activity.activity_id, meta)
            self.to_entity(state.part, mail)
            return
        task = task_for(self.source, state, activity, lapsed)
        if activity.eager is not None and lapsed is None:
            self.commit.eager.append(EagerTask(state.part, activity.queue, task))
            return
        # Spread over the queue's partitions: the parallel activities of one instance are not one worker's. Not by the
        # hash of keys, which costs ten times as much: nobody has to find a task by its name.
        spread = crc32(f"{state.instance_id}/{activity.activity_id}".encode()) % self.partitions
        self.send(state.part, self.topics.tasks(activity.queue), state.instance_id, task_event(task, self.time), spread)

    # -- messages ------------------------------------------------------------------------------------------------
    def send(self, part: int, topic: str, key: str, message: WireEvent, to_partition: int | None = None) -> None:
        headers, value = encode_text(message)
        partition = self.mark(part)
        partition.position += 1
        self.commit.outbox.append(OutboxRow(part, partition.position, topic, key, to_partition, headers, value))

    def forward(self, part: int, key: str, message: WireEvent) -> None:
        """To the partition that owns `key`: over `results`, which outsiders cannot write, so that the origin can
        be trusted there."""
        origin = f"{part}:{self.mark(part).position + 1}"
        moved = WireEvent(
            message.id,
            message.source,
            message.type,
            message.subject,
            message.data,
            message.time or self.time,
            {**message.extensions, w.X_ORIGIN: origin},
        )
        self.send(part, self.topics.results, key, moved, partition_for(key.encode(), self.partitions))

    def to_instance(self, part: int, mail: Mail) -> None:
        """`part`: of the sender."""
        self._post(part, w.TO_INSTANCE, mail)

    def to_entity(self, part: int, mail: Mail) -> None:
        self._post(part, w.TO_ENTITY, mail)

    def _post(self, part: int, type_: str, mail: Mail) -> None:
        # Also within a partition: what a batch must have read from the database is known before it begins.
        position = self.mark(part).position + 1
        event = post.written(mail, type_, f"mail/{part}/{position}", self.source, self.time)
        event.extensions[w.X_ORIGIN] = f"{part}:{position}"
        self.send(part, self.topics.results, mail.to, event, partition_for(mail.to.encode(), self.partitions))

    def answer_command(self, part: int, command: WireEvent, key: str, data: bytes) -> None:
        """Tells who sent a command what came of it. `data`: JSON `{"ok": true, ...}` or `{"error": {...}}`."""
        told = outgoing.answered(self.source, command, key, data, self.time)
        self.send(part, self.topics.events, key, told, part)

    def deletes(self, instance_id: str) -> bool:
        deleted = self.commit.deleted
        return bool(deleted) and any(tombstone.instance_id == instance_id for tombstone in deleted)

    def mark(self, part: int) -> Partition:
        partition = self.marked.get(part)
        if partition is None:
            partition = self.marked[part] = self.owned[part]
        return partition

    def dead_letter(
        self, received: Received, reason: str, message: str, source: str | None = None, event_id: str | None = None
    ) -> None:
        """Keeps the record whole, in the table and on the topic."""
        record = received.record
        if not record.headers and isinstance(received.event, WireEvent):
            headers, value = encode(received.event)  # a result that came without the broker has no record yet
            record = replace(record, headers=headers, value=value)
        self.commit.dead_letters.append(
            DeadLetter(
                record.topic,
                record.partition,
                record.offset,
                self.now_us,
                reason,
                message,
                record.key,
                tuple(record.headers),
                record.value,
                source,
                event_id,
            )
        )
        told = dead_letter_event(self.source, record, reason, message, self.now_us, source, event_id)
        self.send(record.partition, self.topics.dead_letters, told.id[-KEY_CHARS:], told)

    # -- the result ----------------------------------------------------------------------------------------------
    def finish(self) -> Commit:
        commit = self.commit
        for entry in self.touched.values():
            self._rows_of(entry)
        for entry in self.left:
            self._details_of(entry)
        for entity in self.entities.values():
            self.mark(entity.part)
            entity.write(commit, self.now_us)
        commit.intake = [(part, digest, at_us) for (part, digest), at_us in self.intake.items()]
        commit.rejections = list(self.rejections.values())
        commit.rejections_gone = list(self.accepted)
        commit.watermarks = [(part, origin, position) for (part, origin), position in self.watermarks.items()]
        for partition in self.marked.values():
            commit.marks.append(Mark(partition.part, partition.epoch, partition.commit_no, partition.position))
            partition.commit_no += 1
        return commit

    def _rows_of(self, entry: Entry) -> None:
        commit, state = self.commit, entry.state
        self.mark(state.part)
        (commit.updates if entry.in_database else commit.instances).append(state.row())
        entry.in_database = True
        self._details_of(entry)

    def _details_of(self, entry: Entry) -> None:
        commit, state = self.commit, entry.state
        commit.activities.extend(state.activity_row(activity) for activity in state.changed.values())
        for timer_id, before in state.timers_before.items():
            if timer_id in state.timers:
                commit.timers.append(state.timer_row(timer_id))
            elif before:
                commit.timers_gone.append((state.instance_id, state.run, timer_id))
        state.clear_changes()
