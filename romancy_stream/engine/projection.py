"""The fold: history in, relational rows out. The live engine and `romancy rebuild` use this one function, so a
table can be dropped and made again from the log, row for row. Pure: no clock, no randomness, no workflow code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from romancy_stream.engine import history as h
from romancy_stream.engine.commit import (
    BACKING_OFF,
    COMPLETED,
    FAILED,
    FINISHED,
    RUNNING,
    SCHEDULED,
    WAITING_FOR_TIMER,
    ActivityRow,
    InstanceRow,
    TimerRow,
)
from romancy_stream.engine.history import HistoryEvent

ABANDONED = "abandoned"  # still open when its workflow ended
USER_TIMER = "timer:"
RETRY_TIMER = "retry:"
DEADLINE_TIMER = "deadline:"


@dataclass(slots=True)
class ActivityState:
    """An activity that has no outcome yet, with what a further attempt needs (`args`, `attrs`)."""

    activity_id: str
    name: str
    queue: str
    scheduled_us: int
    args: bytes | None
    attrs: dict[str, Any]
    status: str = SCHEDULED
    attempt: int = 1
    updated_us: int = 0
    finished_us: int | None = None
    next_attempt_us: int | None = None
    error: bytes | None = None


@dataclass(slots=True)
class InstanceState:
    """Current state of one run. `activities` and `timers` hold what is open; what changed since `take_changes`
    stands in `changed` and `timers_before` (timer id -> was it there before the batch?)."""

    instance_id: str
    run: int
    part: int
    workflow: str
    input: bytes | None
    started_us: int
    event_source: str
    event_id: str
    seq: int = 0
    updated_us: int = 0
    output: bytes | None = None
    error: bytes | None = None
    finished: str | None = None
    finished_us: int | None = None
    parked: str | None = None
    activities: dict[str, ActivityState] = field(default_factory=dict)
    timers: dict[str, int] = field(default_factory=dict)
    changed: dict[str, ActivityState] = field(default_factory=dict)
    timers_before: dict[str, bool] = field(default_factory=dict)

    @property
    def status(self) -> str:
        if self.finished is not None:
            return self.finished
        if not self.activities and any(timer.startswith(USER_TIMER) for timer in self.timers):
            return WAITING_FOR_TIMER
        return RUNNING

    def row(self) -> InstanceRow:
        return InstanceRow(
            self.instance_id,
            self.run,
            self.part,
            self.workflow,
            self.status,
            self.seq,
            self.input,
            self.output,
            self.error,
            self.started_us,
            self.updated_us,
            self.finished_us,
            self.parked,
            self.event_source,
            self.event_id,
        )

    def activity_row(self, a: ActivityState) -> ActivityRow:
        return ActivityRow(
            self.instance_id,
            self.run,
            a.activity_id,
            a.name,
            a.queue,
            a.status,
            a.attempt,
            a.scheduled_us,
            a.updated_us,
            a.finished_us,
            a.next_attempt_us,
            a.error,
        )

    def timer_row(self, timer_id: str) -> TimerRow:
        return TimerRow(self.instance_id, self.run, timer_id, self.part, self.timers[timer_id])

    def clear_changes(self) -> None:
        self.changed.clear()
        self.timers_before.clear()

    # -- changes, as events ask for them -------------------------------------------------------------------------
    def set_timer(self, timer_id: str, due_us: int) -> None:
        self.timers_before.setdefault(timer_id, timer_id in self.timers)
        self.timers[timer_id] = due_us

    def drop_timer(self, timer_id: str) -> None:
        if timer_id in self.timers:
            self.timers_before.setdefault(timer_id, True)
            del self.timers[timer_id]

    def end_activity(self, event: HistoryEvent, status: str) -> None:
        assert event.ref is not None
        activity = self.activities.pop(event.ref)
        activity.status = status
        activity.attempt = event.attrs.get("attempt", activity.attempt)
        activity.updated_us = activity.finished_us = event.at_us
        activity.next_attempt_us = None
        if status == FAILED:
            activity.error = event.payload
        self.changed[event.ref] = activity
        self.drop_timer(RETRY_TIMER + event.ref)
        self.drop_timer(DEADLINE_TIMER + event.ref)

    def end(self, event: HistoryEvent, status: str) -> None:
        self.finished, self.finished_us = status, event.at_us
        for activity in self.activities.values():
            activity.status = ABANDONED
            activity.updated_us = activity.finished_us = event.at_us
            activity.next_attempt_us = None
            self.changed[activity.activity_id] = activity
        self.activities.clear()
        for timer_id in list(self.timers):
            self.drop_timer(timer_id)


def begin(event: HistoryEvent, part: int) -> InstanceState:
    """The state after `workflow.started`."""
    return InstanceState(
        instance_id=event.instance_id,
        run=event.run,
        part=part,
        workflow=event.attrs["workflow"],
        input=event.payload,
        started_us=event.at_us,
        event_source=event.attrs["event_source"],
        event_id=event.attrs["event_id"],
        seq=event.seq,
        updated_us=event.at_us,
    )


def apply(state: InstanceState, event: HistoryEvent) -> None:
    """One event behind `workflow.started`."""
    state.seq, state.updated_us = event.seq, event.at_us
    handler = _APPLY.get(event.kind)
    if handler is None:
        raise ValueError(f"history of {event.instance_id} has an event of unknown kind {event.kind!r}")
    handler(state, event)


def fold(events: Iterable[HistoryEvent], part: int) -> InstanceState:
    """State after a whole history. Nothing counts as changed."""
    iterator = iter(events)
    state = begin(next(iterator), part)
    for event in iterator:
        apply(state, event)
    return state


def _scheduled(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    attrs = event.attrs
    activity = ActivityState(
        event.ref, attrs["name"], attrs["queue"], event.at_us, event.payload, attrs, updated_us=event.at_us
    )
    state.activities[event.ref] = state.changed[event.ref] = activity
    if "deadline_us" in attrs:
        state.set_timer(DEADLINE_TIMER + event.ref, attrs["deadline_us"])


def _attempt_failed(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    activity = state.activities[event.ref]
    activity.status = BACKING_OFF
    activity.error, activity.updated_us = event.payload, event.at_us
    activity.next_attempt_us = event.attrs["next_at_us"]
    state.changed[event.ref] = activity
    state.set_timer(RETRY_TIMER + event.ref, event.attrs["next_at_us"])


def _retried(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    activity = state.activities[event.ref]
    activity.status, activity.attempt = SCHEDULED, event.attrs["attempt"]
    activity.updated_us, activity.next_attempt_us = event.at_us, None
    state.changed[event.ref] = activity
    state.drop_timer(RETRY_TIMER + event.ref)


def _timer_started(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    state.set_timer(event.ref, event.attrs["due_us"])


def _timer_gone(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    state.drop_timer(event.ref)


def _completed(state: InstanceState, event: HistoryEvent) -> None:
    state.output = event.payload
    state.end(event, COMPLETED)


def _failed(state: InstanceState, event: HistoryEvent) -> None:
    state.error = event.payload
    state.end(event, FAILED)


def _parked(state: InstanceState, event: HistoryEvent) -> None:
    state.parked = event.attrs["message"]


def _resumed(state: InstanceState, event: HistoryEvent) -> None:
    state.parked = None


def _nothing(state: InstanceState, event: HistoryEvent) -> None:
    """A recorded step that no table shows."""


_APPLY = {
    h.ACTIVITY_SCHEDULED: _scheduled,
    h.ACTIVITY_ATTEMPT_FAILED: _attempt_failed,
    h.ACTIVITY_RETRIED: _retried,
    h.ACTIVITY_COMPLETED: lambda state, event: state.end_activity(event, COMPLETED),
    h.ACTIVITY_FAILED: lambda state, event: state.end_activity(event, FAILED),
    h.TIMER_STARTED: _timer_started,
    h.TIMER_FIRED: _timer_gone,
    h.TIMER_CANCELLED: _timer_gone,
    h.EVENT_PUBLISHED: _nothing,
    h.WORKFLOW_COMPLETED: _completed,
    h.WORKFLOW_FAILED: _failed,
    h.WORKFLOW_PARKED: _parked,
    h.WORKFLOW_RESUMED: _resumed,
}

assert {COMPLETED, FAILED} <= FINISHED
