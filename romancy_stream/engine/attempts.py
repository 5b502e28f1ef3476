"""What becomes of activities: results of attempts, the decision to try again or to give up, heartbeats that are
missed, leases that lapse. Part of the core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine import saga
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import SCHEDULED, ActivityKey
from romancy_stream.engine.failure import exhausted, is_retryable, retry_after_s, silent, timed_out
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, LeaseLapsed, Received, Reported, TimerDue
from romancy_stream.engine.projection import DEADLINE_TIMER, HEARTBEAT_TIMER, RETRY_TIMER, UNDO, ActivityState
from romancy_stream.engine.retries import GiveUp, Retry, after_failure
from romancy_stream.engine.tasks import OF_REPORT, Report, report_of
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

LOOKS_PER_WAIT: Final = 8
"""An attempt that nobody has begun is looked after when it has waited an eighth longer: a hundred events in a day at
most, however short the heartbeat's timeout is; one that hangs after a long wait is found within an eighth of it."""


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
                continue
            failed = self._failure(each, now_us)
            if failed is not None and isinstance(self._verdict(*failed, now_us), GiveUp):
                entry, activity, _ = failed
                keys.append(self._key(entry, activity))
        return keys

    def _failure(self, each: Input, now_us: int) -> tuple[Entry, ActivityState, bytes] | None:
        """The attempt that has failed by this input, and its error."""
        if isinstance(each, TimerDue) and each.timer_id.startswith(HEARTBEAT_TIMER):
            entry = self._core.entry(each.instance_id)
            if entry is None or entry.state.run != each.run or each.timer_id not in entry.state.timers:
                return None
            activity = entry.state.activities[each.timer_id.removeprefix(HEARTBEAT_TIMER)]
            silent = self._awaited_us(entry, activity, now_us) is None
            return (entry, activity, _silence(activity)) if silent else None
        report = _failure_in(each)
        if report is None or (found := self._failed_attempt(report)) is None:
            return None
        return (*found, report.data or b"null")

    def beating(self, inputs: Sequence[Input]) -> list[ActivityKey]:
        """Activities that a heartbeat's timer of this batch is about."""
        return [
            ActivityKey(each.instance_id, each.run, each.timer_id.removeprefix(HEARTBEAT_TIMER))
            for each in inputs
            if isinstance(each, TimerDue) and each.timer_id.startswith(HEARTBEAT_TIMER)
        ]

    # -- workers that are not heard of ---------------------------------------------------------------------------
    def lapsed(self, batch: Batch, each: LeaseLapsed) -> None:
        """The same attempt again, for another worker. History tells of it only where it says that a process kept the
        attempt to itself: while that is the last word, each owner to come dispatches it once more."""
        entry = self._core.entry(each.instance_id)
        activity = None
        if entry is not None and entry.state.run == each.run:
            activity = entry.state.activities.get(each.activity_id)
        if entry is None or activity is None or activity.attempt != each.attempt or activity.status != SCHEDULED:
            self._core.stats["late_lapse"] += 1
            return
        self._core.stats["dispatched_again"] += 1
        if activity.eager is not None:
            batch.record(entry, h.ACTIVITY_PASSED_ON, activity.activity_id, {"attempt": activity.attempt})
        batch.request(entry.state, activity, each.incarnation)

    def _awaited_us(self, entry: Entry, activity: ActivityState, now_us: int) -> int | None:
        """Until when a heartbeat may come. None: it is missed."""
        timeout_us: int = round(activity.attrs["heartbeat_timeout_s"] * 1_000_000)
        heard = self._core.loaded.heartbeats.get(self._key(entry, activity))
        if heard is None or heard.attempt < activity.attempt:
            # No worker has begun it. It lies in its queue, or died with a worker, which others know by other means;
            # to give it up would make a long queue longer. Looked at ever more seldom: each look is an event.
            return now_us + max(timeout_us, (now_us - activity.updated_us) // LOOKS_PER_WAIT)
        due_us = heard.at_us + timeout_us
        return due_us if due_us > now_us else None

    # -- results -------------------------------------------------------------------------------------------------
    def result(self, batch: Batch, received: Received, event: WireEvent) -> None:
        report = report_of(event)
        if report is None:
            message = f"a result needs subject and {', '.join(OF_REPORT)}"
            batch.dead_letter(received, "missing_attribute", message, event.source, event.id)
            return
        instance_id = report.key.instance_id
        entry = self._core.entry(instance_id)
        part = self._core.part_of(instance_id) if entry is None else entry.state.part
        if part != received.record.partition:
            batch.forward(received.record.partition, instance_id, event)
            return
        if entry is None and instance_id not in self._core.loaded.instances:
            message = f"there is no instance {instance_id!r}"
            batch.dead_letter(received, "unknown_instance", message, event.source, event.id)
        else:
            self.reported(batch, report)

    def reported(self, batch: Batch, report: Report) -> None:
        """Of an instance that lives here, or has."""
        entry = self._core.entry(report.key.instance_id)
        if entry is None:
            self._core.stats["late_result"] += 1  # the instance has finished
        elif report.type == w.ACTIVITY_FAILED:
            self._attempt_failed(batch, report)
        else:
            self._attempt_completed(batch, entry, report)

    def _attempt_completed(self, batch: Batch, entry: Entry, report: Report) -> None:
        activity = _open_activity(entry, report)
        if activity is None:
            self._late(batch, entry, report)
            return
        attrs = {"attempt": report.attempt, **_attempt_facts(report)}
        self._ended(batch, entry, h.ACTIVITY_COMPLETED, activity.activity_id, attrs, report.data)

    def _late(self, batch: Batch, entry: Entry, report: Report) -> None:
        """Nobody waits for it; but what was cancelled and has happened all the same may have to be undone."""
        attempt, (_, run, ref) = report.attempt, report.key
        attrs = {"attempt": attempt, **_attempt_facts(report)}
        if attempt < 1 or not saga.found(batch, entry, run, ref, attrs, report.data):
            self._core.stats["late_result"] += 1

    def _attempt_failed(self, batch: Batch, report: Report) -> None:
        found = self._failed_attempt(report)
        if found is None:
            self._core.stats["late_result"] += 1
        else:
            self._failed(batch, *found, report.data or b"null", _attempt_facts(report))

    def _failed(
        self, batch: Batch, entry: Entry, activity: ActivityState, error: bytes, facts: Mapping[str, Any]
    ) -> None:
        verdict = self._verdict(entry, activity, error, batch.now_us)
        facts = {"attempt": activity.attempt, **facts}
        if isinstance(verdict, Retry):
            attrs = {**facts, "next_at_us": verdict.next_at_us}
            batch.record(entry, h.ACTIVITY_ATTEMPT_FAILED, activity.activity_id, attrs, error)
        else:
            self._give_up(batch, entry, activity, verdict.reason, error, facts)

    def _give_up(
        self, batch: Batch, entry: Entry, activity: ActivityState, reason: str, error: bytes, facts: Mapping[str, Any]
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

    def _failed_attempt(self, report: Report) -> tuple[Entry, ActivityState] | None:
        """The attempt that failed, if it is the one under way: an older one has been dealt with."""
        entry = self._core.entry(report.key.instance_id)
        activity = None if entry is None else _open_activity(entry, report)
        if entry is None or activity is None or activity.next_attempt_us is not None:
            return None
        return (entry, activity) if report.attempt == activity.attempt else None

    @staticmethod
    def _verdict(entry: Entry, activity: ActivityState, error: bytes, now_us: int) -> Retry | GiveUp:
        key = f"{entry.state.instance_id}/{entry.state.run}/{activity.activity_id}"
        return after_failure(key, activity, is_retryable(error), now_us, retry_after_s(error))

    @staticmethod
    def _key(entry: Entry, activity: ActivityState) -> ActivityKey:
        return ActivityKey(entry.state.instance_id, entry.state.run, activity.activity_id)

    # -- timers --------------------------------------------------------------------------------------------------
    def retry(self, batch: Batch, entry: Entry, due: TimerDue) -> None:
        activity = entry.state.activities[due.timer_id.removeprefix(RETRY_TIMER)]
        attrs = batch.placed(activity.queue, activity.name, {"attempt": activity.attempt + 1})
        batch.record(entry, h.ACTIVITY_RETRIED, activity.activity_id, attrs)

    def deadline(self, batch: Batch, entry: Entry, due: TimerDue) -> None:
        activity = entry.state.activities[due.timer_id.removeprefix(DEADLINE_TIMER)]
        error = timed_out(activity.activity_id, activity.attrs["total_timeout_s"], total=True)
        self._give_up(batch, entry, activity, "timeout", error, {})

    def heartbeat(self, batch: Batch, entry: Entry, due: TimerDue) -> None:
        activity = entry.state.activities[due.timer_id.removeprefix(HEARTBEAT_TIMER)]
        due_us = self._awaited_us(entry, activity, batch.now_us)
        if due_us is None:
            self._failed(batch, entry, activity, _silence(activity), {})
        else:
            batch.record(entry, h.ACTIVITY_HEARD, activity.activity_id, {"due_us": due_us})

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


def _heartbeat(core: EngineCore, batch: Batch, entry: Entry, due: TimerDue) -> None:
    core.attempts.heartbeat(batch, entry, due)


def _silence(activity: ActivityState) -> bytes:
    return silent(activity.activity_id, activity.attrs["heartbeat_timeout_s"])


TIMERS = {RETRY_TIMER: _retry, DEADLINE_TIMER: _deadline, HEARTBEAT_TIMER: _heartbeat}
TELL = {h.ACTIVITY_SCHEDULED: requested, h.ACTIVITY_RETRIED: requested}


def _failure_in(each: Input) -> Report | None:
    if isinstance(each, Reported):
        return each.report if each.report.type == w.ACTIVITY_FAILED else None
    if isinstance(each, Received) and isinstance(each.event, WireEvent) and each.event.type == w.ACTIVITY_FAILED:
        return report_of(each.event)
    return None


def _open_activity(entry: Entry, report: Report) -> ActivityState | None:
    _, run, activity_id = report.key
    if run != entry.state.run:
        return None
    activity = entry.state.activities.get(activity_id)
    return activity if activity is not None and 1 <= report.attempt <= activity.attempt else None


def _attempt_facts(report: Report) -> Mapping[str, Any]:
    facts: dict[str, Any] = {}
    if report.duration_us is not None:
        facts["duration_us"] = report.duration_us
    if report.worker is not None:
        facts["worker"] = report.worker
    return facts
