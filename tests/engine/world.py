"""A world for the core without I/O: a database that is a few dicts, a broker that is a list, workers that answer at
once. It applies commits as a store would and checks what every commit must keep. `restart()` is a crash: a new core
is made from what was committed, and what was sent but not yet taken in comes again."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from romancy_stream.engine import projection
from romancy_stream.engine.commit import (
    ActivityKey,
    ActivityRow,
    Commit,
    DeadLetter,
    EntityRow,
    Heartbeat,
    InstanceRow,
    ItemRow,
    MemberRow,
    OutboxRow,
    RecordedResult,
    Rejection,
    StoredEntity,
    TimerRow,
    Tombstone,
)
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, Loaded, PartitionStart, Received, Unpark
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode, encode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.partition import partition_for
from romancy_stream.wire.record import Record
from romancy_stream.workflow import Workflow

NAMESPACE = "shop"
START_US = 1_700_000_000_000_000
Answer = Callable[[dict[str, str], list[Any]], Any]


class World:
    """`answers`: activity name -> function of (attributes, args) that returns a result or raises."""

    def __init__(
        self,
        *workflows: Workflow[Any, Any],
        answers: Mapping[str, Answer] | None = None,
        partitions: int = 1,
        cached: int = 1_000,
        policy: RetryPolicy | None = None,
        **config: Any,
    ) -> None:
        self.workflows = {each.name: each for each in workflows}
        self.answers: Mapping[str, Answer] = answers or {}
        self.config = CoreConfig(NAMESPACE, partitions, policy or RetryPolicy(), cached, **config)
        self.now_us = START_US
        self.history: dict[str, list[HistoryEvent]] = defaultdict(list)
        self.instances: dict[str, InstanceRow] = {}
        self.activities: dict[tuple[str, int, str], ActivityRow] = {}
        self.timers: dict[tuple[str, int, str], TimerRow] = {}
        self.rejections: dict[str, Rejection] = {}
        self.results: dict[ActivityKey, RecordedResult] = {}
        self.entities: dict[str, EntityRow] = {}
        self.members: dict[tuple[str, str, str], MemberRow] = {}
        self.items: dict[tuple[str, int], ItemRow] = {}
        self.intake: dict[tuple[int, str], int] = {}
        self.tombstones: dict[str, Tombstone] = {}
        self.heartbeats: dict[ActivityKey, Heartbeat] = {}
        self.dead_letters: list[DeadLetter] = []
        self.outbox: list[OutboxRow] = []
        self.events: list[WireEvent] = []
        self.watermarks: dict[tuple[int, int], int] = {}
        self.positions = dict.fromkeys(range(partitions), 0)
        self.commit_nos = dict.fromkeys(range(partitions), 0)
        self.pending: list[Record] = []
        self.attempts: list[tuple[str, int, int]] = []  # activity id, attempt, when
        self._offsets = itertools.count()
        self.core = self._new_core()

    # -- life ----------------------------------------------------------------------------------------------------
    def _new_core(self) -> EngineCore:
        core = EngineCore(self.config, self.workflows)
        for part in range(self.config.partitions):
            core.adopt(
                PartitionStart(
                    part,
                    1,
                    self.commit_nos[part],
                    self.positions[part],
                    {origin: position for (p, origin), position in self.watermarks.items() if p == part},
                    tuple(timer for timer in self.timers.values() if timer.part == part),
                )
            )
        return core

    def restart(self, *workflows: Workflow[Any, Any]) -> None:
        """A new process, with other code where `workflows` are given."""
        self.workflows.update({each.name: each for each in workflows})
        self.core.drop(self.core.owned)
        self.core = self._new_core()
        parked = [row for row in self.instances.values() if row.parked is not None]
        if parked:
            self.step([Unpark(row.part, row.instance_id) for row in parked])

    def part_of(self, instance_id: str) -> int:
        return partition_for(instance_id.encode(), self.config.partitions)

    # -- messages ------------------------------------------------------------------------------------------------
    def record(self, topic: str, part: int, event: WireEvent) -> Record:
        headers, value = encode(event)
        return Record(f"{NAMESPACE}.{topic}", part, next(self._offsets), None, value, headers, 0)

    def start(self, workflow: str, input: Any = None, instance_id: str | None = "i", **extensions: str) -> WireEvent:
        event = WireEvent(
            id=f"start-{next(self._offsets)}",
            source="/test",
            type=w.START,
            subject=instance_id,
            data=orjson.dumps(input),
            time="2026-01-01T00:00:00Z",
            extensions={w.X_WORKFLOW: workflow, **extensions},
        )
        self.send(event, 0 if instance_id is None else self.part_of(instance_id))
        return event

    def send(self, event: WireEvent, part: int = 0, topic: str = "commands") -> None:
        self.pending.append(self.record(topic, part, event))

    def result(self, task: OutboxRow, value: Any = None, error: BaseException | None = None, **changed: str) -> None:
        """A worker's answer to a task."""
        headers = {name.removeprefix("ce_"): text for name, text in task.headers if name.startswith("ce_")}
        extensions = {name: text for name, text in headers.items() if name.startswith("romancy")} | changed
        retryable = error is not None and RetryPolicy().is_retryable(error)
        event = WireEvent(
            id=f"result-{next(self._offsets)}",
            source="/worker",
            type=w.ACTIVITY_COMPLETED if error is None else w.ACTIVITY_FAILED,
            subject=headers["subject"],
            data=orjson.dumps(value) if error is None else encode_error(error, retryable=retryable),
            time="2026-01-01T00:00:00Z",
            extensions=extensions,
        )
        self.send(event, self.part_of(headers["subject"]), "results")

    # -- running -------------------------------------------------------------------------------------------------
    def run(self, *, restarts: bool = False, until_us: int | None = None, limit: int = 10_000) -> None:
        """Until nothing is left to do, skipping over the time that timers wait. `restarts`: crash before each step."""
        for _ in range(limit):
            if restarts:
                self.restart()
            due_us = self.core.timers.next_due_us()
            if not self.pending and (due_us is None or (until_us is not None and due_us > until_us)):
                return
            if not self.pending and due_us is not None:
                self.now_us = max(self.now_us, due_us)
            self.step()
        raise AssertionError("the world does not come to rest")

    def step(self, inputs: Iterable[Input] = ()) -> Commit:
        records, self.pending = self.pending, []
        inputs = [*inputs, *(Received(record, decode(record)) for record in records)]
        inputs += self.core.timers.due(self.now_us, 1_000)
        loaded = self._loaded(inputs)
        self.core.load(loaded)
        prefixes = {(i, run): self.run_of(i, run) for i, run in self.core.prefixes(inputs)}
        heartbeats = {key: self.heartbeats[key] for key in self.core.beating(inputs) if key in self.heartbeats}
        loaded = replace(loaded, histories={}, entities={}, prefixes=prefixes, heartbeats=heartbeats)
        self.core.load(loaded)
        closed = {}
        for key in self.core.closings(inputs, self.now_us):
            closed[key] = self.results.setdefault(key, RecordedResult(key, 0, "closed", None, None, self.now_us))
        self.core.load(replace(loaded, closed=closed))
        commit = self.core.handle(inputs, self.now_us)
        self.apply(commit)
        self.now_us += 1_000
        for row in commit.outbox:
            self._deliver(row)
        return commit

    def _loaded(self, inputs: Sequence[Input]) -> Loaded:
        missing = self.core.missing(inputs)
        known = {i: self.instances[i] for i in missing if i in self.instances}
        return Loaded(
            known,
            {i: self.rejections[i] for i in missing if i in self.rejections},
            {i: self.run_of(i, row.run) for i, row in known.items() if row.finished_us is None},
            tombstones={i: self.tombstones[i] for i in missing if i in self.tombstones},
            entities={name: self._entity(name) for name in self.core.missing_entities(inputs) if name in self.entities},
            taken_in=frozenset(key for key in self.core.intake_keys(inputs) if key in self.intake),
        )

    def _entity(self, name: str) -> StoredEntity:
        members = [row for (entity, *_), row in self.members.items() if entity == name]
        return StoredEntity(
            self.entities[name], members, [row for (entity, _), row in self.items.items() if entity == name]
        )

    def _deliver(self, row: OutboxRow) -> None:
        headers = [(name, value.encode()) for name, value in row.headers]
        record = Record(row.topic, row.to_partition or 0, next(self._offsets), row.key.encode(), row.value, headers, 0)
        if ".tasks." in row.topic:
            self._work(row)
        elif row.topic == f"{NAMESPACE}.results":
            self.pending.append(record)
        else:
            event = decode(record)
            assert isinstance(event, WireEvent)
            self.events.append(event)

    def _work(self, row: OutboxRow) -> None:
        headers = {name.removeprefix("ce_"): text for name, text in row.headers}
        self.attempts.append((headers[w.X_ACTIVITY_ID], int(headers[w.X_ATTEMPT]), self.now_us))
        answer = self.answers.get(headers[w.X_ACTIVITY])
        if answer is None:
            return
        try:
            value = answer(headers, orjson.loads(row.value or b"{}")["args"])
        except Exception as error:
            self.result(row, error=error)
        else:
            self.result(row, value)

    # -- the database --------------------------------------------------------------------------------------------
    def apply(self, commit: Commit) -> None:
        for mark in commit.marks:
            assert mark.commit_no == self.commit_nos[mark.part]
            self.commit_nos[mark.part] += 1
            new = [row.position for row in commit.outbox if row.part == mark.part]
            assert new == list(range(self.positions[mark.part] + 1, mark.position + 1))
            self.positions[mark.part] = mark.position
        for event in commit.history:
            assert event.seq == len(self.run_of(event.instance_id, event.run)) + 1
            self.history[event.instance_id].append(event)
        self._rows(commit)
        self.outbox.extend(commit.outbox)
        self.dead_letters.extend(commit.dead_letters)
        self.rejections.update({each.instance_id: each for each in commit.rejections})
        for instance_id in commit.rejections_gone:
            del self.rejections[instance_id]
        for part, origin, position in commit.watermarks:
            self.watermarks[part, origin] = position
        self._entities(commit)
        for part, digest, at_us in commit.intake:
            self.intake[part, digest] = at_us
        for key in commit.closed:
            self.results.setdefault(key, RecordedResult(key, 0, "closed", None, None, self.now_us))
        for tombstone in commit.deleted:
            self._delete(tombstone)

    def _entities(self, commit: Commit) -> None:
        names = [row.entity for row in commit.entities]
        assert len({*names, *commit.entities_gone}) == len(names) + len(commit.entities_gone)
        self.entities.update({row.entity: row for row in commit.entities})
        for name in commit.entities_gone:
            del self.entities[name]
        member_keys = [(row.entity, row.instance_id, row.ref) for row in commit.members]
        assert len({*member_keys, *commit.members_gone}) == len(member_keys) + len(commit.members_gone)
        self.members.update(zip(member_keys, commit.members, strict=True))
        for member in commit.members_gone:
            del self.members[member]
        item_keys = [(row.entity, row.seq) for row in commit.items]
        assert len({*item_keys, *commit.items_gone}) == len(item_keys) + len(commit.items_gone)
        self.items.update(zip(item_keys, commit.items, strict=True))
        for item in commit.items_gone:
            del self.items[item]
        for key in (*self.members, *self.items):
            assert key[0] in self.entities

    def _delete(self, tombstone: Tombstone) -> None:
        gone = tombstone.instance_id
        self.tombstones[gone] = tombstone
        self.instances.pop(gone, None)
        self.history.pop(gone, None)
        self.activities = {key: row for key, row in self.activities.items() if key[0] != gone}
        self.timers = {key: row for key, row in self.timers.items() if key[0] != gone}
        self.members = {key: row for key, row in self.members.items() if key[1] != gone}
        self.results = {key: row for key, row in self.results.items() if key.instance_id != gone}

    def _rows(self, commit: Commit) -> None:
        ids = [row.instance_id for row in (*commit.instances, *commit.updates)]
        assert len(ids) == len(set(ids))
        for row in commit.instances:
            before = self.instances.get(row.instance_id)
            assert before is None or before.run < row.run
            self.instances[row.instance_id] = row
        for row in commit.updates:
            assert row.instance_id in self.instances
            self.instances[row.instance_id] = row
        keys = [(a.instance_id, a.run, a.activity_id) for a in commit.activities]
        assert len(keys) == len(set(keys))
        self.activities.update(zip(keys, commit.activities, strict=True))
        set_keys = [(t.instance_id, t.run, t.timer_id) for t in commit.timers]
        assert len({*set_keys, *commit.timers_gone}) == len(set_keys) + len(commit.timers_gone)
        self.timers.update(zip(set_keys, commit.timers, strict=True))
        for key in commit.timers_gone:
            del self.timers[key]

    def run_of(self, instance_id: str, run: int) -> list[HistoryEvent]:
        return [event for event in self.history[instance_id] if event.run == run]

    # -- questions -----------------------------------------------------------------------------------------------
    def kinds(self, instance_id: str = "i") -> list[str]:
        """Of the current run."""
        events = self.run_of(instance_id, self.instances[instance_id].run)
        return [f"{event.kind} {event.ref}" if event.ref else event.kind for event in events]

    def output(self, instance_id: str = "i") -> Any:
        row = self.instances[instance_id]
        assert row.status == "completed", (row.status, row.error, row.parked)
        return orjson.loads(row.output or b"null")

    def error(self, instance_id: str = "i") -> dict[str, Any]:
        row = self.instances[instance_id]
        assert row.status == "failed", row
        described: dict[str, Any] = orjson.loads(row.error or b"{}")
        return described

    def check_projections(self) -> None:
        """What the tables hold is what the log folds to."""
        activities: dict[tuple[str, int, str], ActivityRow] = {}
        timers: dict[tuple[str, int, str], TimerRow] = {}
        for instance_id, run in sorted({(event.instance_id, event.run) for h in self.history.values() for event in h}):
            state = projection.fold(self.run_of(instance_id, run), self.part_of(instance_id))
            if run == self.instances[instance_id].run:
                assert state.row() == self.instances[instance_id]
            for activity in state.changed.values():
                activities[instance_id, state.run, activity.activity_id] = state.activity_row(activity)
            for timer_id in state.timers:
                timers[instance_id, state.run, timer_id] = state.timer_row(timer_id)
        assert activities == self.activities
        assert timers == self.timers
