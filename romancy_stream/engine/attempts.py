"""What becomes of activities: results of attempts, the decision to try again or to give up, heartbeats that are
missed, leases that lapse. Part of the core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from romancy_stream.engine import history as h
from romancy_stream.engine import saga
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import ActivityKey
from romancy_stream.engine.failure import exhausted, is_retryable, timed_out
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, LeaseLapsed, Received, TimerDue
from romancy_stream.engine.projection import DEADLINE_TIMER, RETRY_TIMER, UNDO, ActivityState
from romancy_stream.engine.retries import GiveUp, Retry, after_failure
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent, whole_number

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

_RESULT_ATTRIBUTES = (w.X_RUN, w.X_ACTIVITY_ID, w.X_ATTEMPT)


class Attempts:
    def __init__(self, core: EngineCore) -> None:
        self._core = core

    # -- before a batch ------------------------------------------------------------------------------------------
    def closings(self, inputs: Sequence[Input], now_us: int) -> list[ActivityKey]:
        """Activities that this batch may give up on: their keys must be claimed before it decides."""
        keys = []
        for each in inputs:
            if isinstance(each, TimerDue) and each.timer_id.startswith(DEADLINE_TIMER):
                keys.append(ActivityKey(each.instance_id, each.run, each.timer_id.removeprefix(DEADLINE_TIMER)))
            elif isinstance(each, Received) and isinstance(each.event, WireEvent):
                found = self._failed_attempt(each.event)
                if found is not None and isinstance(self._verdict(*found, each.event, now_us), GiveUp):
                    keys.append(self._key(*found))
        return keys

    def beating(self, inputs: Sequence[Input]) -> list[ActivityKey]:
        """Activities that a heartbeat's timer of this batch is about."""
        return []

    def lapsed(self, batch: Batch, each: LeaseLapsed) -> None:
        raise NotImplementedError

    # -- results -------------------------------------------------------------------------------------------------
    def result(self, batch: Batch, received: Received, event: WireEvent) -> None:
        instance_id = event.subject
        if instance_id is None or not all(name in event.extensions for name in _RESULT_ATTRIBUTES):
            message = f"a result needs subject and {', '.join(_RESULT_ATTRIBUTES)}"
            batch.dead_letter(received, "missing_attribute", message, event.source, event.id)
            return
        if self._core.part_of(instance_id) != received.record.partition:
            batch.forward(received.record.partition, instance_id, event)
            return
        entry = self._core.entry(instance_id)
        if entry is None:
            if instance_id not in self._core.loaded.instances:
                message = f"there is no instance {instance_id!r}"
                batch.dead_letter(received, "unknown_instance", message, event.source, event.id)
            else:
                self._core.stats["late_result"] += 1  # the instance has finished
            return
        if event.type == w.ACTIVITY_FAILED:
            self._attempt_failed(batch, event)
        else:
            self._attempt_completed(batch, entry, event)

    def _attempt_completed(self, batch: Batch, entry: Entry, event: WireEvent) -> None:
        activity = self._open_activity(entry, event)
        if activity is None:
            self._core.stats["late_result"] += 1
            return
        attrs = {"attempt": int(event.extensions[w.X_ATTEMPT]), **_attempt_facts(event)}
        self._ended(batch, entry, h.ACTIVITY_COMPLETED, activity.activity_id, attrs, event.data)

    def _attempt_failed(self, batch: Batch, event: WireEvent) -> None:
        found = self._failed_attempt(event)
        if found is None:
            self._core.stats["late_result"] += 1
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
        claimed = self._core.loaded.closed.get(self._key(entry, activity))
        if claimed is None:
            # Not foreseen by `closings`, so it is no answer to anything we asked for.
            self._core.stats["unexpected_result"] += 1
        elif claimed.outcome == "completed":
            attrs: dict[str, Any] = {"attempt": claimed.attempt, "worker": claimed.worker}
            self._ended(batch, entry, h.ACTIVITY_COMPLETED, activity.activity_id, attrs, claimed.result)
        else:
            if reason == "exhausted":
                error = exhausted(error, activity.attempt)
            attrs = {"attempt": activity.attempt, **facts, "reason": reason}
            self._ended(batch, entry, h.ACTIVITY_FAILED, activity.activity_id, attrs, error)

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
        entry = self._core.entry(event.subject)
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
    def retry(self, batch: Batch, entry: Entry, due: TimerDue) -> None:
        activity = entry.state.activities[due.timer_id.removeprefix(RETRY_TIMER)]
        batch.record(entry, h.ACTIVITY_RETRIED, activity.activity_id, {"attempt": activity.attempt + 1})

    def deadline(self, batch: Batch, entry: Entry, due: TimerDue) -> None:
        activity = entry.state.activities[due.timer_id.removeprefix(DEADLINE_TIMER)]
        error = timed_out(activity.activity_id, activity.attrs["total_timeout_s"], total=True)
        self._give_up(batch, entry, activity, "timeout", error, {})

    def _ended(
        self, batch: Batch, entry: Entry, kind: str, ref: str, attrs: dict[str, Any], payload: bytes | None
    ) -> None:
        if ref.startswith(UNDO):
            saga.undone(batch, entry, kind, ref.removeprefix(UNDO), attrs, payload)
        else:
            self._core.deliver(batch, entry, kind, ref, attrs, payload)


def requested(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """A scheduled or retried activity asks for a worker."""
    assert event.ref is not None
    batch.request(entry.state, entry.state.activities[event.ref])


def _retry(core: EngineCore, batch: Batch, entry: Entry, due: TimerDue) -> None:
    core.attempts.retry(batch, entry, due)


def _deadline(core: EngineCore, batch: Batch, entry: Entry, due: TimerDue) -> None:
    core.attempts.deadline(batch, entry, due)


TIMERS = {RETRY_TIMER: _retry, DEADLINE_TIMER: _deadline}
TELL = {h.ACTIVITY_SCHEDULED: requested, h.ACTIVITY_RETRIED: requested}


def _attempt_facts(event: WireEvent) -> Mapping[str, Any]:
    facts: dict[str, Any] = {}
    duration_us = whole_number(event.extensions.get(w.X_DURATION, ""))
    if duration_us is not None:
        facts["duration_us"] = duration_us
    if w.X_WORKER in event.extensions:
        facts["worker"] = event.extensions[w.X_WORKER]
    return facts
