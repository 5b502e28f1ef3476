"""The engine as a function: a batch of inputs for the owned partitions, and the time, in; one `Commit` out. The
shell prefetches what `missing` and `closings` name, calls `handle`, and lets nothing of the Commit out of the
process before it is durable.

A batch that could not be written is written again as it is; if its outcome is unknown, or somebody else took the
partition, the shell drops the partition here (`drop`) and adopts it anew from the database.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from romancy_stream.engine import (
    channels,
    correlation,
    features,
    opening,
    operations,
    ordered,
    projection,
    refusals,
    runs,
    saga,
)
from romancy_stream.engine import history as h
from romancy_stream.engine.attempts import Attempts
from romancy_stream.engine.batch import Batch, Entry, Partition
from romancy_stream.engine.commit import ActivityKey, Commit, RecordedResult
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.definitions import Registry, WorkflowDef, begun_as, definition_of, no_code
from romancy_stream.engine.entity import Entity
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import (
    EagerRoom,
    Input,
    ItemExpired,
    LeaseLapsed,
    Loaded,
    PartitionStart,
    Received,
    Refused,
    Reported,
    TimerDue,
    Unpark,
)
from romancy_stream.engine.instance import Command, LiveInstance, deliver_late, replay
from romancy_stream.engine.intake import digest
from romancy_stream.engine.loop import StepTooLong, stepping_aside
from romancy_stream.engine.mail import read
from romancy_stream.engine.opening import NO_BLOBS
from romancy_stream.engine.projection import USER_TIMER
from romancy_stream.engine.sealing import Blobs, is_sealed
from romancy_stream.engine.starts import Starts
from romancy_stream.engine.timers import Timers
from romancy_stream.errors import InvalidInputError, NonDeterminismError, PayloadError
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent, whole_number
from romancy_stream.wire.partition import partition_for

CACHED_ENTITIES: Final = 10_000
"""With what they keep; most are a waiter or two."""

_DISAGREES: Final = (NonDeterminismError, InvalidInputError, PayloadError, StepTooLong)
"""What replay raises of code that cannot go on from a history."""
_INTERNAL_TYPES: Final = frozenset({w.TO_INSTANCE, w.TO_ENTITY, w.ACTIVITY_COMPLETED, w.ACTIVITY_FAILED})
_TO_ONE_INSTANCE: Final = frozenset({w.TO_INSTANCE, w.ACTIVITY_COMPLETED, w.ACTIVITY_FAILED, *features.COMMANDS})


class EngineCore:
    """`stats` counts what was dropped on purpose: duplicates, unwanted events, late results."""

    def __init__(self, config: CoreConfig, workflows: Registry) -> None:
        ordered.install()
        self.config = config
        self.stats: Counter[str] = Counter()
        self.timers = Timers()
        self._workflows = workflows
        self._owned: dict[int, Partition] = {}
        self._cache: OrderedDict[str, Entry] = OrderedDict()
        self._topics = w.Topics(config.namespace)
        self.loaded = Loaded()
        self._new_blobs: Blobs = NO_BLOBS
        self.starts = Starts(self)
        self.attempts = Attempts(self)
        self._entities: OrderedDict[str, Entity] = OrderedDict()

    # -- ownership -----------------------------------------------------------------------------------------------
    def adopt(self, start: PartitionStart) -> None:
        self._owned[start.part] = Partition(
            start.part, start.epoch, start.commit_no, start.position, dict(start.watermarks)
        )
        for timer in start.timers:
            self.timers.set(timer)

    def drop(self, parts: Iterable[int]) -> None:
        """Forgets partitions and everything about their instances."""
        gone = set(parts)
        for part in gone & set(self._owned):
            del self._owned[part]
            self.timers.drop_partition(part)
        for name in [name for name, entity in self._entities.items() if entity.part in gone]:
            del self._entities[name]
        with stepping_aside():
            for instance_id in [i for i, entry in self._cache.items() if entry.state.part in gone]:
                self.evict(self._cache.pop(instance_id))

    def owned_epoch(self, part: int, epoch: int) -> None:
        """A partition that was taken over from ourselves."""
        self._owned[part].epoch = epoch

    def epoch_of(self, part: int) -> int:
        return self._owned[part].epoch

    @property
    def owned(self) -> frozenset[int]:
        return frozenset(self._owned)

    @property
    def cached(self) -> int:
        return len(self._cache)

    def part_of(self, instance_id: str) -> int:
        return partition_for(instance_id.encode(), self.config.partitions)

    # -- before a batch ------------------------------------------------------------------------------------------
    def asking(self, inputs: Sequence[Input]) -> Sequence[Input]:
        """Those whose decision may need more than what is in memory: the usual result does not. What is asked below
        is only to be asked of these."""
        return [each for each in inputs if not self._is_plain_result(each)]

    def _is_plain_result(self, each: Input) -> bool:
        if isinstance(each, Reported):
            return each.report.type == w.ACTIVITY_COMPLETED and each.instance_id in self._cache
        if not isinstance(each, Received):
            return False
        event = each.event
        return isinstance(event, WireEvent) and event.type == w.ACTIVITY_COMPLETED and event.subject in self._cache

    def missing(self, inputs: Sequence[Input]) -> list[str]:
        """Ids of instances that the batch is about and that must be looked up in the database first."""
        wanted = dict.fromkeys(i for each in inputs for i in self._targets(each))
        return [i for i in wanted if i not in self._cache and self.part_of(i) in self._owned]

    def _targets(self, each: Input) -> Iterable[str]:
        if isinstance(each, Refused):
            each = each.received
        if isinstance(each, ItemExpired):
            return ()
        if not isinstance(each, Received):
            return (each.instance_id,)
        event = each.event
        if not isinstance(event, WireEvent) or event.type == w.TO_ENTITY:
            return ()
        if event.type in _TO_ONE_INSTANCE:
            return (event.subject,) if event.subject else ()
        if event.type == w.CHANNEL_PUBLISH:
            return channels.targets_of(event)
        started = self.starts.instance_id(event)
        aimed = correlation.aimed_at(event)
        return [i for i in (started, aimed) if i is not None]

    def missing_entities(self, inputs: Sequence[Input]) -> list[str]:
        """Names of entities that the batch is about and that must be read from the database first."""
        wanted = dict.fromkeys(name for each in inputs for name in self._entities_of(each))
        return [name for name in wanted if name not in self._entities and self.part_of(name) in self._owned]

    def _entities_of(self, each: Input) -> Iterable[str]:
        if isinstance(each, ItemExpired):
            return (each.entity,)
        if not isinstance(each, Received) or not isinstance(each.event, WireEvent):
            return ()
        if each.event.type == w.TO_ENTITY:
            return (each.event.subject,) if each.event.subject else ()
        return features.entities_of(self.config, each.event)

    def intake_keys(self, inputs: Sequence[Input]) -> list[tuple[int, str]]:
        """What would be found in the intake table if the batch's messages from outside had come before."""
        keys = []
        for each in inputs:
            if isinstance(each, Received) and isinstance(each.event, WireEvent):
                part = each.record.partition
                keys += [(part, digest) for digest in features.digests_of(each.event)]
        return list(dict.fromkeys(keys))

    def prefixes(self, inputs: Sequence[Input]) -> list[tuple[str, int]]:
        """Whole histories, of any run, that the batch must see: (instance_id, run). Call it after `load`."""
        return list(dict.fromkeys(operations.prefixes(self, inputs)))

    def beating(self, inputs: Sequence[Input]) -> list[ActivityKey]:
        """Activities whose last heartbeat decides what a timer of this batch means."""
        return list(dict.fromkeys(self.attempts.beating(inputs)))

    def load(self, loaded: Loaded) -> None:
        """Takes in what was prefetched: open instances and entities go into the cache, the rest serves this batch
        only. May be called again with more: what is not given anew is kept."""
        self.loaded = loaded
        for instance_id, events in loaded.histories.items():
            part = self.part_of(instance_id)
            state = projection.fold(events, part)
            state.clear_changes()
            if state.finished is None and instance_id not in self._cache:
                kept = opening.kept(self.config.sealing, events, loaded.blobs)
                self._cache[instance_id] = Entry(state, history=list(events), blobs=kept)
        for name, stored in loaded.entities.items():
            if name not in self._entities:
                entity = self._new_entity(name)
                entity.load(stored.row, list(stored.members), list(stored.items))
                self._entities[name] = entity

    def blobs(
        self,
        inputs: Sequence[Input],
        histories: Iterable[Sequence[HistoryEvent]] = (),
        results: Iterable[RecordedResult] = (),
    ) -> list[str]:
        """Payloads kept elsewhere that the batch will need, by name: those in its messages and in what was loaded, of
        histories and of keys that were claimed."""
        return opening.needed(self.config.sealing, self._topics.results, inputs, histories, results)

    def opened(self, raw: bytes | None) -> bytes | None:
        """Of what anybody may have sent. PayloadError."""
        return opening.opened(self.config.sealing, raw, self._known)

    @property
    def _known(self) -> Blobs:
        """What was read for this batch, and what it has made: the input of a run that follows, a message."""
        return {**self.loaded.blobs, **self._new_blobs} if self._new_blobs else self.loaded.blobs

    def sealed(self, batch: Batch, raw: bytes, what: str) -> bytes:
        """For what came in, open or sealed. PayloadTooLargeError."""
        return raw if is_sealed(raw) else self.config.sealing.seal(raw, what, batch.commit.blobs)

    def closings(self, inputs: Sequence[Input], now_us: int) -> list[ActivityKey]:
        """Activities that this batch may give up on: their keys must be claimed before `handle` decides."""
        return list(dict.fromkeys([*self.attempts.closings(inputs, now_us), *saga.closings(self, inputs)]))

    # -- the batch -----------------------------------------------------------------------------------------------
    def handle(
        self, inputs: Sequence[Input], now_us: int, touch: Iterable[int] = (), eager: EagerRoom | None = None
    ) -> Commit:
        """`now_us` never goes back within a partition. `touch` names partitions whose fence must be in the Commit
        whatever the inputs do to them. `eager`: the worker in this process, which may get tasks at once."""
        batch = self._batch(now_us)
        batch.eager = eager
        for part in touch:
            batch.mark(part)
        with stepping_aside():
            for each in inputs:
                self._input(batch, each)
            commit = batch.finish()
            self._after(batch)
        for timer in commit.timers:
            self.timers.set(timer)
        for key in commit.timers_gone:
            self.timers.drop(key)
        return commit

    def _batch(self, now_us: int) -> Batch:
        config = self.config
        batch = Batch(
            config.namespace,
            config.partitions,
            self._owned,
            now_us,
            features.TELL,
            features.let_go,
            config.history_warning,
            rates=config.queue_rates,
        )
        self._new_blobs = batch.commit.blobs
        return batch

    def _input(self, batch: Batch, each: Input) -> None:
        if isinstance(each, Received):
            batch.mark(each.record.partition)
            self._received(batch, each)
        elif isinstance(each, Reported):
            batch.mark(each.part)
            self.attempts.reported(batch, each.report)
        elif isinstance(each, Refused):
            batch.mark(each.received.record.partition)
            refusals.refused(self, batch, each)
        elif isinstance(each, TimerDue):
            self._timer(batch, each)
        elif isinstance(each, Unpark):
            self._unpark(batch, each)
        elif isinstance(each, ItemExpired):
            batch.mark(each.part)
            self.entity(batch, each.entity).expired(batch, each.seq)
        elif isinstance(each, LeaseLapsed):
            self.attempts.lapsed(batch, each)
        else:
            operations.outlived(self, batch, each)

    def _received(self, batch: Batch, received: Received) -> None:
        event = received.event
        if not isinstance(event, WireEvent):
            batch.dead_letter(received, event.reason, event.message, event.event_source, event.event_id)
            return
        internal = received.record.topic == self._topics.results
        if internal and w.X_ORIGIN in event.extensions and not self._first_time(batch, received, event):
            return
        batch.received = received
        if event.type in _INTERNAL_TYPES:
            if internal:
                self._internal(batch, received, event)
            else:
                message = f"{event.type} belongs on {self._topics.results}"
                batch.dead_letter(received, "wrong_topic", message, event.source, event.id)
        elif event.type in features.COMMANDS:
            self._command(batch, received, event)
        elif event.type == w.CHANNEL_PUBLISH:
            channels.outside(self, batch, received, event)
        elif event.type == w.START or event.type.startswith(w.RESERVED_PREFIX):
            self.starts.command(batch, received, event)
        else:
            correlation.user_event(self, batch, received, event)

    def _internal(self, batch: Batch, received: Received, event: WireEvent) -> None:
        if event.type == w.TO_ENTITY:
            mail = read(event)
            self.entity(batch, mail.to).told(batch, mail)
        elif event.type == w.TO_INSTANCE:
            mail = read(event)
            features.OPS[mail.op](self, batch, self._cache.get(mail.to), mail)
        else:
            self.attempts.result(batch, received, event)

    def _command(self, batch: Batch, received: Received, event: WireEvent) -> None:
        """A command to one instance, from anybody."""
        part = received.record.partition
        if not event.subject:
            message = f"{event.type} needs the attribute subject, the id of an instance"
            batch.dead_letter(received, "missing_attribute", message, event.source, event.id)
        elif self.part_of(event.subject) != part:
            batch.forward(part, event.subject, event)
        else:
            new = self.first_seen(batch, part, digest("command", event))
            command = features.COMMANDS[event.type] if new else features.AGAIN.get(event.type)
            if command is not None:
                command(self, batch, received, event, self._cache.get(event.subject))

    def first_seen(self, batch: Batch, part: int, digest: str) -> bool:
        """Whether a message from outside comes for the first time, as far back as the intake table goes."""
        if (part, digest) in self.loaded.taken_in or (part, digest) in batch.intake:
            self.stats["duplicate_message"] += 1
            return False
        batch.intake[part, digest] = batch.now_us
        return True

    # -- entities ------------------------------------------------------------------------------------------------
    def entity(self, batch: Batch, name: str) -> Entity:
        """To be changed by the batch."""
        entity = self._entities.get(name)
        if entity is None:
            entity = self._entities[name] = self._new_entity(name)
        batch.entities[name] = entity
        return entity

    def _new_entity(self, name: str) -> Entity:
        return features.ENTITIES[name.partition(":")[0]](name, self.part_of(name), self.config)

    def _first_time(self, batch: Batch, received: Received, event: WireEvent) -> bool:
        """Messages from partition to partition come in the order of their positions, some of them twice."""
        origin_text, _, position_text = event.extensions[w.X_ORIGIN].partition(":")
        origin, position = whole_number(origin_text), whole_number(position_text)
        if origin is None or position is None:
            batch.dead_letter(received, "bad_attribute", f"{w.X_ORIGIN} must be partition:position")
            return False
        part = received.record.partition
        seen = self._owned[part].watermarks
        if position <= seen.get(origin, 0):
            self.stats["duplicate_forward"] += 1
            return False
        seen[origin] = batch.watermarks[part, origin] = position
        return True

    def _timer(self, batch: Batch, due: TimerDue) -> None:
        entry = self._cache.get(due.instance_id)
        if entry is None or entry.state.run != due.run or due.timer_id not in entry.state.timers:
            self.stats["stale_timer"] += 1
            return
        prefix = due.timer_id.partition(":")[0] + ":"
        if prefix == USER_TIMER:
            self.deliver(batch, entry, h.TIMER_FIRED, due.timer_id, {}, None)
        else:
            features.TIMERS[prefix](self, batch, entry, due)

    # -- workflow code -------------------------------------------------------------------------------------------
    def begin(self, batch: Batch, event: HistoryEvent, part: int, arguments: Any) -> None:
        """A start that was accepted. `arguments` is its input as the workflow's `decode` gave it."""
        definition = begun_as(self._workflows, event.attrs)
        assert definition is not None, "who begins a run has decoded its input"
        entry = batch.start(event, part)
        entry.live = self._live(definition, event.instance_id, event.run)
        entry.live.arguments = arguments
        self._cache[event.instance_id] = entry
        self._step(batch, entry, event)

    def renew(self, batch: Batch, events: list[HistoryEvent], part: int) -> Entry:
        """Another run, whose history begins with these events as if it had lived through them."""
        entry = batch.renew(events, part)
        self._cache[entry.state.instance_id] = entry
        return entry

    def restart(self, batch: Batch, event: HistoryEvent, part: int) -> None:
        """Another run from the beginning. `event` is its `workflow.started`; its input was taken once before."""
        entry = self._cache[event.instance_id] = batch.start(event, part)
        definition = begun_as(self._workflows, event.attrs)
        try:
            if definition is None:
                raise no_code(self._workflows, event.attrs["workflow"], event.attrs.get("version"))
            arguments = definition.decode(self.opened(event.payload))
        except (LookupError, InvalidInputError, PayloadError) as error:
            self.halt(batch, entry, error, [event.seq])
            return
        entry.live = self._live(definition, event.instance_id, event.run)
        entry.live.arguments = arguments
        self._step(batch, entry, event)

    def awake(self, batch: Batch, entry: Entry) -> None:
        """Makes an instance live, or parks it."""
        problem = self._wake(entry) if entry.live is None and entry.state.parked is None else None
        if problem is not None:
            self.halt(batch, entry, problem)

    def next_run(self, batch: Batch, instance_id: str) -> int:
        """The number of another run of an instance, which may be gone: none is used twice."""
        entry, row = batch.touched.get(instance_id) or self.entry(instance_id), self.loaded.instances.get(instance_id)
        tombstone = self.loaded.tombstones.get(instance_id)
        runs_so_far = [0 if entry is None else entry.state.run, 0 if row is None else row.run]
        return max(*runs_so_far, 0 if tombstone is None else tombstone.run) + 1

    def _live(self, definition: WorkflowDef, instance_id: str, run: int, blobs: Blobs = NO_BLOBS) -> LiveInstance:
        live = LiveInstance(definition, instance_id, run, self.config.default_policy, self.config.sealing)
        live.known = {**blobs, **self._known} if blobs else self._known
        live.event_keys, live.event_models = self.config.event_keys, self.config.event_models
        return live

    def deliver(
        self,
        batch: Batch,
        entry: Entry,
        kind: str,
        ref: str | None,
        attrs: dict[str, Any],
        payload: bytes | None,
    ) -> None:
        """Records an input and lets the code answer it. Dropped where the code is over."""
        if entry.state.finished is not None or entry.state.compensating is not None:
            self.stats["late_input"] += 1
            return
        problem = None
        if entry.state.parked is None and entry.live is None:
            problem = self._wake(entry)
        event = batch.record(entry, kind, ref, attrs, payload)
        if problem is not None:
            self.halt(batch, entry, problem, [event.seq])
        elif entry.state.parked is None:
            self._step(batch, entry, event)

    def _step(self, batch: Batch, entry: Entry, event: HistoryEvent) -> None:
        assert entry.live is not None
        entry.live.known = self._known
        try:
            commands = entry.live.deliver(event)
        except (StepTooLong, PayloadError) as error:
            self.halt(batch, entry, error, [event.seq])
        else:
            entry.live.known = NO_BLOBS  # they belong to this batch
            self.answer(batch, entry, commands)

    def answer(self, batch: Batch, entry: Entry, commands: Sequence[Command]) -> None:
        """Records what the code asked for."""
        if entry.live is not None and entry.live.blobs:
            batch.commit.blobs.update(entry.live.blobs)
            entry.live.blobs = {}
        for command in commands:
            ending = features.ENDINGS.get(command.kind)
            if ending is None:
                attrs = command.attrs
                if command.kind == h.ACTIVITY_SCHEDULED:
                    attrs = batch.placed(attrs["queue"], attrs["name"], attrs)
                batch.record(entry, command.kind, command.ref, attrs, command.payload)
            else:
                ending(self, batch, entry, command)
        state = entry.state
        if state.seq >= self.config.history_limit and state.finished is None and state.compensating is None:
            runs.too_long(self, batch, entry)

    def _wake(self, entry: Entry) -> BaseException | None:
        """Replays an instance that is not in memory; returns why that cannot be done."""
        state = entry.state
        definition = definition_of(self._workflows, state.workflow, state.version)
        if definition is None:
            return no_code(self._workflows, state.workflow, state.version)
        try:
            self._replay(entry, definition)
        except _DISAGREES as error:
            return error
        return None

    def _replay(self, entry: Entry, definition: WorkflowDef, late_us: int | None = None) -> list[Command]:
        """Makes an instance live; with `late_us` also gives its code what came while it was parked, and returns what
        that asked for. Raises one of _DISAGREES, and the entry stays as it was."""
        assert entry.history is not None
        live = self._live(definition, entry.state.instance_id, entry.state.run, entry.blobs)
        try:
            kept = replay(live, entry.history)
            commands = [] if late_us is None else deliver_late(live, kept, late_us)
        except _DISAGREES:
            live.evict()
            raise
        entry.live, entry.history, entry.blobs, live.known = live, None, NO_BLOBS, NO_BLOBS
        return commands

    def halt(self, batch: Batch, entry: Entry, problem: BaseException, undelivered: Sequence[int] = ()) -> None:
        """Halts an instance for a human, with what it has not seen yet. Its history stays as it is."""
        attrs: dict[str, Any] = {
            "code": getattr(problem, "code", "step_too_long" if isinstance(problem, StepTooLong) else "unknown"),
            "message": str(problem) or "workflow code went round without waiting for anything (a sleep(0) loop?)",
            "undelivered": list(undelivered),
        }
        if isinstance(problem, NonDeterminismError):
            attrs |= {"expected": problem.expected, "actual": problem.actual}
        batch.record(entry, h.WORKFLOW_PARKED, None, attrs)
        self.evict(entry)

    def park(self, instance_id: str, batch_now_us: int, reason: str) -> Commit:
        """Parks a loaded instance on behalf of the shell: the database refuses what its code does."""
        batch = self._batch(batch_now_us)
        entry = self._cache[instance_id]
        with stepping_aside():
            self.halt(batch, entry, RuntimeError(reason))
            commit = batch.finish()
            self._after(batch)
        return commit

    def _unpark(self, batch: Batch, unpark: Unpark) -> None:
        entry = self._cache.get(unpark.instance_id)
        if entry is None or entry.state.parked is None:
            return
        if entry.state.compensating is not None:
            batch.record(entry, h.WORKFLOW_RESUMED)  # no code has to agree to anything any more
            return
        definition = definition_of(self._workflows, entry.state.workflow, entry.state.version)
        if definition is None:
            return
        try:
            commands = self._replay(entry, definition, batch.now_us)
        except _DISAGREES:
            return  # still the wrong code: it stays parked with what is recorded of it
        batch.record(entry, h.WORKFLOW_RESUMED)
        self.answer(batch, entry, commands)

    # -- the cache -----------------------------------------------------------------------------------------------
    def exists(self, instance_id: str) -> tuple[str, str] | None:
        """(source, id) of the event that started an instance, or None."""
        entry = self._cache.get(instance_id)
        if entry is not None:
            return entry.state.event_source, entry.state.event_id
        row = self.loaded.instances.get(instance_id)
        return None if row is None else (row.event_source, row.event_id)

    @property
    def workflows(self) -> Registry:
        return self._workflows

    def entry(self, instance_id: str) -> Entry | None:
        """An instance that is open."""
        return self._cache.get(instance_id)

    def _after(self, batch: Batch) -> None:
        """Finished and parked instances leave; the cache goes back to its size."""
        self.stats["history_large"] += batch.grown
        self.stats.update(batch.stats)
        for instance_id, entry in batch.touched.items():
            if entry.state.finished is not None or entry.state.parked is not None:
                self.evict(entry)
                self._cache.pop(instance_id, None)
            else:
                self._cache.move_to_end(instance_id)
        for entry in batch.left:
            self.evict(entry)
        while len(self._cache) > self.config.cached_instances:
            self.evict(self._cache.popitem(last=False)[1])
        for name in batch.entities:
            self._entities.move_to_end(name)
        while len(self._entities) > CACHED_ENTITIES:
            self._entities.popitem(last=False)
        self.loaded, self._new_blobs = Loaded(), NO_BLOBS

    @staticmethod
    def evict(entry: Entry) -> None:
        """Its code is not needed, or not any more."""
        if entry.live is not None:
            entry.live.evict()
            entry.live = None
