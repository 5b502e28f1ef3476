"""The engine as a function: a batch of inputs for the owned partitions, and the time, in; one `Commit` out. The
shell prefetches what `missing` and `closings` name, calls `handle`, and lets nothing of the Commit out of the
process before it is durable.

A batch that could not be written is written again as it is; if its outcome is unknown, or somebody else took the
partition, the shell drops the partition here (`drop`) and adopts it anew from the database.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine import ordered, projection
from romancy_stream.engine.batch import Batch, Entry, Partition
from romancy_stream.engine.commit import ActivityKey, Commit
from romancy_stream.engine.definitions import Registry
from romancy_stream.engine.failure import exhausted, is_retryable, timed_out
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, Loaded, PartitionStart, Received, Refused, TimerDue, Unpark
from romancy_stream.engine.instance import LiveInstance, deliver_late, replay
from romancy_stream.engine.loop import StepTooLong, stepping_aside
from romancy_stream.engine.projection import DEADLINE_TIMER, RETRY_TIMER, ActivityState
from romancy_stream.engine.retries import GiveUp, Retry, after_failure
from romancy_stream.engine.starts import Starts
from romancy_stream.engine.timers import Timers
from romancy_stream.errors import InvalidInputError, NonDeterminismError
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.partition import partition_for

CACHED_INSTANCES: Final = 10_000
"""Live coroutines kept by one process: about 10 KB each, so 100 MB. Beyond it the least recently used is evicted
and replayed when something happens to it."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    namespace: str
    partitions: int
    default_policy: RetryPolicy
    cached_instances: int = CACHED_INSTANCES


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
        self._loaded = Loaded()
        self._starts = Starts(self)

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
        with stepping_aside():
            for instance_id in [i for i, entry in self._cache.items() if entry.state.part in gone]:
                self._evict(self._cache.pop(instance_id))

    def owned_epoch(self, part: int, epoch: int) -> None:
        """A partition that was taken over from ourselves."""
        self._owned[part].epoch = epoch

    @property
    def owned(self) -> frozenset[int]:
        return frozenset(self._owned)

    @property
    def cached(self) -> int:
        return len(self._cache)

    def part_of(self, instance_id: str) -> int:
        return partition_for(instance_id.encode(), self.config.partitions)

    # -- before a batch ------------------------------------------------------------------------------------------
    def missing(self, inputs: Sequence[Input]) -> list[str]:
        """Ids of instances that the batch is about and that must be looked up in the database first."""
        wanted = dict.fromkeys(self._target(each) for each in inputs)
        return [i for i in wanted if i is not None and i not in self._cache and self.part_of(i) in self._owned]

    def _target(self, each: Input) -> str | None:
        if isinstance(each, Refused):
            each = each.received
        if not isinstance(each, Received):
            return each.instance_id
        event = each.event
        if not isinstance(event, WireEvent):
            return None
        if event.type in (w.ACTIVITY_COMPLETED, w.ACTIVITY_FAILED):
            return event.subject
        return self._starts.instance_id(event)

    def load(self, loaded: Loaded) -> None:
        """Takes in what was prefetched: open instances go into the cache, the rest serves this batch only."""
        self._loaded = loaded
        for instance_id, events in loaded.histories.items():
            part = self.part_of(instance_id)
            state = projection.fold(events, part)
            state.clear_changes()
            if state.finished is None:
                self._cache[instance_id] = Entry(state, history=list(events))

    def closings(self, inputs: Sequence[Input], now_us: int) -> list[ActivityKey]:
        """Activities that this batch may give up on: their keys must be claimed before `handle` decides."""
        keys = []
        for each in inputs:
            if isinstance(each, TimerDue) and each.timer_id.startswith(DEADLINE_TIMER):
                keys.append(ActivityKey(each.instance_id, each.run, each.timer_id.removeprefix(DEADLINE_TIMER)))
            elif isinstance(each, Received) and isinstance(each.event, WireEvent):
                found = self._failed_attempt(each.event)
                if found is not None and isinstance(self._verdict(*found, each.event, now_us), GiveUp):
                    keys.append(self._key(*found))
        return list(dict.fromkeys(keys))

    # -- the batch -----------------------------------------------------------------------------------------------
    def handle(self, inputs: Sequence[Input], now_us: int, touch: Iterable[int] = ()) -> Commit:
        """`now_us` never goes back within a partition. `touch` names partitions whose fence must be in the Commit
        whatever the inputs do to them."""
        batch = Batch(self.config.namespace, self.config.partitions, self._owned, now_us)
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

    def _input(self, batch: Batch, each: Input) -> None:
        if isinstance(each, Received):
            batch.mark(each.record.partition)
            self._received(batch, each)
        elif isinstance(each, Refused):
            batch.mark(each.received.record.partition)
            self._refused(batch, each)
        elif isinstance(each, TimerDue):
            self._timer(batch, each)
        else:
            self._unpark(batch, each)

    def _received(self, batch: Batch, received: Received) -> None:
        event = received.event
        if not isinstance(event, WireEvent):
            batch.dead_letter(received, event.reason, event.message, event.event_source, event.event_id)
            return
        internal = received.record.topic == self._topics.results
        if internal and w.X_ORIGIN in event.extensions and not self._first_time(batch, received, event):
            return
        if event.type in (w.ACTIVITY_COMPLETED, w.ACTIVITY_FAILED):
            if internal:
                self._result(batch, received, event)
            else:
                batch.dead_letter(
                    received, "wrong_topic", f"{event.type} belongs on {self._topics.results}", event.source, event.id
                )
        else:
            self._starts.command(batch, received, event)

    def _refused(self, batch: Batch, refused: Refused) -> None:
        """Keeps the message, and tells those who would wait for it for ever: a starter gets a rejection, an instance
        that loses a result is parked until somebody has looked at it."""
        received, event = refused.received, refused.received.event
        if not isinstance(event, WireEvent):
            batch.dead_letter(received, refused.reason, refused.message, event.event_source, event.event_id)
        elif event.type in (w.ACTIVITY_COMPLETED, w.ACTIVITY_FAILED):
            batch.dead_letter(received, refused.reason, refused.message, event.source, event.id)
            entry = self._cache.get(event.subject or "")
            if entry is not None and entry.state.parked is None:
                self._park(batch, entry, RuntimeError(f"{refused.reason}: {refused.message}"), [])
        else:
            self._starts.refuse(batch, received, event, refused.reason, refused.message)

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

    # -- activities ----------------------------------------------------------------------------------------------
    def _result(self, batch: Batch, received: Received, event: WireEvent) -> None:
        instance_id = event.subject
        if instance_id is None or not all(name in event.extensions for name in _RESULT_ATTRIBUTES):
            message = f"a result needs subject and {', '.join(_RESULT_ATTRIBUTES)}"
            batch.dead_letter(received, "missing_attribute", message, event.source, event.id)
            return
        if self.part_of(instance_id) != received.record.partition:
            batch.forward(received.record.partition, instance_id, event)
            return
        entry = self._cache.get(instance_id)
        if entry is None:
            if instance_id not in self._loaded.instances:
                message = f"there is no instance {instance_id!r}"
                batch.dead_letter(received, "unknown_instance", message, event.source, event.id)
            else:
                self.stats["late_result"] += 1  # the instance has finished
            return
        if event.type == w.ACTIVITY_FAILED:
            self._attempt_failed(batch, event)
        else:
            self._attempt_completed(batch, entry, event)

    def _attempt_completed(self, batch: Batch, entry: Entry, event: WireEvent) -> None:
        activity = self._open_activity(entry, event)
        if activity is None:
            self.stats["late_result"] += 1
            return
        attrs = {"attempt": int(event.extensions[w.X_ATTEMPT]), **_attempt_facts(event)}
        self._deliver(batch, entry, h.ACTIVITY_COMPLETED, activity.activity_id, attrs, event.data)

    def _attempt_failed(self, batch: Batch, event: WireEvent) -> None:
        found = self._failed_attempt(event)
        if found is None:
            self.stats["late_result"] += 1
            return
        entry, activity = found
        error = event.data or b"null"
        verdict = self._verdict(entry, activity, event, batch.now_us)
        facts = {"attempt": activity.attempt, **_attempt_facts(event)}
        if isinstance(verdict, Retry):
            attrs = {**facts, "next_at_us": verdict.next_at_us}
            batch.record(entry, h.ACTIVITY_ATTEMPT_FAILED, activity.activity_id, attrs, error)
        else:
            self._give_up(batch, entry, activity, verdict.reason, error, facts)

    def _give_up(
        self, batch: Batch, entry: Entry, activity: ActivityState, reason: str, error: bytes, facts: dict[str, Any]
    ) -> None:
        """The key in activity_results was claimed before: what stands there decides."""
        claimed = self._loaded.closed.get(self._key(entry, activity))
        if claimed is None:
            # Not foreseen by `closings`, so it is no answer to anything we asked for.
            self.stats["unexpected_result"] += 1
        elif claimed.outcome == "completed":
            attrs: dict[str, Any] = {"attempt": claimed.attempt, "worker": claimed.worker}
            self._deliver(batch, entry, h.ACTIVITY_COMPLETED, activity.activity_id, attrs, claimed.result)
        else:
            if reason == "exhausted":
                error = exhausted(error, activity.attempt)
            attrs = {"attempt": activity.attempt, **facts, "reason": reason}
            self._deliver(batch, entry, h.ACTIVITY_FAILED, activity.activity_id, attrs, error)

    def _open_activity(self, entry: Entry, event: WireEvent) -> ActivityState | None:
        if event.extensions.get(w.X_RUN) != str(entry.state.run):
            return None
        activity = entry.state.activities.get(event.extensions.get(w.X_ACTIVITY_ID, ""))
        attempt = whole_number(event.extensions.get(w.X_ATTEMPT, ""))
        if activity is None or attempt is None or not 1 <= attempt <= activity.attempt:
            return None
        return activity

    def _failed_attempt(self, event: WireEvent) -> tuple[Entry, ActivityState] | None:
        """The attempt that failed, if it is the one under way: an older one has been dealt with."""
        if event.type != w.ACTIVITY_FAILED or event.subject is None:
            return None
        entry = self._cache.get(event.subject)
        activity = None if entry is None else self._open_activity(entry, event)
        if entry is None or activity is None or activity.next_attempt_us is not None:
            return None
        return (entry, activity) if int(event.extensions[w.X_ATTEMPT]) == activity.attempt else None

    def _verdict(self, entry: Entry, activity: ActivityState, event: WireEvent, now_us: int) -> Retry | GiveUp:
        retryable = is_retryable(event.data)
        key = f"{entry.state.instance_id}/{entry.state.run}/{activity.activity_id}"
        return after_failure(key, activity, retryable, now_us)

    @staticmethod
    def _key(entry: Entry, activity: ActivityState) -> ActivityKey:
        return ActivityKey(entry.state.instance_id, entry.state.run, activity.activity_id)

    # -- timers --------------------------------------------------------------------------------------------------
    def _timer(self, batch: Batch, due: TimerDue) -> None:
        entry = self._cache.get(due.instance_id)
        if entry is None or entry.state.run != due.run or due.timer_id not in entry.state.timers:
            self.stats["stale_timer"] += 1
        elif due.timer_id.startswith(RETRY_TIMER):
            activity = entry.state.activities[due.timer_id.removeprefix(RETRY_TIMER)]
            batch.record(entry, h.ACTIVITY_RETRIED, activity.activity_id, {"attempt": activity.attempt + 1})
        elif due.timer_id.startswith(DEADLINE_TIMER):
            activity = entry.state.activities[due.timer_id.removeprefix(DEADLINE_TIMER)]
            seconds = activity.attrs["total_timeout_s"]
            error = timed_out(activity.activity_id, seconds, total=True)
            self._give_up(batch, entry, activity, "timeout", error, {})
        else:
            self._deliver(batch, entry, h.TIMER_FIRED, due.timer_id, {}, None)

    # -- workflow code -------------------------------------------------------------------------------------------
    def begin(self, batch: Batch, event: HistoryEvent, part: int, arguments: Any) -> None:
        """A start that was accepted. `arguments` is its input as the workflow's `decode` gave it."""
        definition = self._workflows[event.attrs["workflow"]]
        entry = batch.start(event, part)
        entry.live = LiveInstance(definition, event.instance_id, event.run, self.config.default_policy)
        entry.live.arguments = arguments
        self._cache[event.instance_id] = entry
        self._step(batch, entry, event)

    def _deliver(
        self, batch: Batch, entry: Entry, kind: str, ref: str, attrs: dict[str, Any], payload: bytes | None
    ) -> None:
        problem = None
        if entry.state.parked is None and entry.live is None:
            problem = self._wake(entry)
        event = batch.record(entry, kind, ref, attrs, payload)
        if problem is not None:
            self._park(batch, entry, problem, [event.seq])
        elif entry.state.parked is None:
            self._step(batch, entry, event)

    def _step(self, batch: Batch, entry: Entry, event: HistoryEvent) -> None:
        assert entry.live is not None
        try:
            commands = entry.live.deliver(event)
        except StepTooLong as error:
            self._park(batch, entry, error, [event.seq])
        else:
            batch.answer(entry, commands)

    def _wake(self, entry: Entry) -> BaseException | None:
        """Replays an instance that is not in memory; returns why that cannot be done."""
        state = entry.state
        definition = self._workflows.get(state.workflow)
        if definition is None:
            return LookupError(f"no workflow named {state.workflow!r} is registered in this process")
        assert entry.history is not None
        live = LiveInstance(definition, state.instance_id, state.run, self.config.default_policy)
        try:
            replay(live, entry.history)
        except (NonDeterminismError, InvalidInputError, StepTooLong) as error:
            live.evict()
            return error
        entry.live, entry.history = live, None
        return None

    def _park(self, batch: Batch, entry: Entry, problem: BaseException, undelivered: list[int]) -> None:
        """Halts an instance for a human, with what it has not seen yet. Its history stays as it is."""
        attrs: dict[str, Any] = {
            "code": getattr(problem, "code", "step_too_long" if isinstance(problem, StepTooLong) else "unknown"),
            "message": str(problem) or "workflow code went round without waiting for anything (a sleep(0) loop?)",
            "undelivered": undelivered,
        }
        if isinstance(problem, NonDeterminismError):
            attrs |= {"expected": problem.expected, "actual": problem.actual}
        batch.record(entry, h.WORKFLOW_PARKED, None, attrs)
        self._evict(entry)

    def park(self, instance_id: str, batch_now_us: int, reason: str) -> Commit:
        """Parks a loaded instance on behalf of the shell: the database refuses what its code does."""
        batch = Batch(self.config.namespace, self.config.partitions, self._owned, batch_now_us)
        entry = self._cache[instance_id]
        with stepping_aside():
            self._park(batch, entry, RuntimeError(reason), [])
            commit = batch.finish()
            self._after(batch)
        return commit

    def _unpark(self, batch: Batch, unpark: Unpark) -> None:
        entry = self._cache.get(unpark.instance_id)
        if entry is None or entry.state.parked is None:
            return
        definition = self._workflows.get(entry.state.workflow)
        if definition is None:
            return
        assert entry.history is not None
        live = LiveInstance(definition, entry.state.instance_id, entry.state.run, self.config.default_policy)
        try:
            kept = replay(live, entry.history)
            commands = deliver_late(live, kept, batch.now_us)
        except (NonDeterminismError, InvalidInputError, StepTooLong):
            live.evict()  # still the wrong code: it stays parked with what is recorded of it
            return
        batch.record(entry, h.WORKFLOW_RESUMED)
        entry.live, entry.history = live, None
        batch.answer(entry, commands)

    # -- the cache -----------------------------------------------------------------------------------------------
    def exists(self, instance_id: str) -> tuple[str, str] | None:
        """(source, id) of the event that started an instance, or None."""
        entry = self._cache.get(instance_id)
        if entry is not None:
            return entry.state.event_source, entry.state.event_id
        row = self._loaded.instances.get(instance_id)
        return None if row is None else (row.event_source, row.event_id)

    @property
    def workflows(self) -> Registry:
        return self._workflows

    @property
    def loaded(self) -> Loaded:
        return self._loaded

    def _after(self, batch: Batch) -> None:
        """Finished and parked instances leave; the cache goes back to its size."""
        for instance_id, entry in batch.touched.items():
            if entry.state.finished is not None or entry.state.parked is not None:
                self._evict(entry)
                self._cache.pop(instance_id, None)
            else:
                self._cache.move_to_end(instance_id)
        while len(self._cache) > self.config.cached_instances:
            self._evict(self._cache.popitem(last=False)[1])
        self._loaded = Loaded()

    @staticmethod
    def _evict(entry: Entry) -> None:
        if entry.live is not None:
            entry.live.evict()
            entry.live = None


_RESULT_ATTRIBUTES = (w.X_RUN, w.X_ACTIVITY_ID, w.X_ATTEMPT)


def whole_number(text: str) -> int | None:
    """Of an attribute that somebody else wrote: ASCII digits, as many as a BIGINT has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _attempt_facts(event: WireEvent) -> Mapping[str, Any]:
    facts: dict[str, Any] = {}
    duration_us = whole_number(event.extensions.get(w.X_DURATION, ""))
    if duration_us is not None:
        facts["duration_us"] = duration_us
    if w.X_WORKER in event.extensions:
        facts["worker"] = event.extensions[w.X_WORKER]
    return facts
