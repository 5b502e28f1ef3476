"""The fold: history in, relational rows out. The live engine and `romancy rebuild` use this one function, so a
table can be dropped and made again from the log, row for row. Pure: no clock, no randomness, no workflow code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from romancy_stream.engine import history as h
from romancy_stream.engine.commit import (
    BACKING_OFF,
    CANCELLED,
    COMPENSATING,
    COMPLETED,
    FAILED,
    FINISHED,
    RECURRED,
    RESET,
    RUNNING,
    SCHEDULED,
    WAITING_FOR_EVENT,
    WAITING_FOR_MESSAGE,
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
HEARTBEAT_TIMER = "heartbeat:"
TURN_TIMER = "turn:"
CLAIMS_TIMER = "claims:"
"""Due at once: what is to be undone must first be known, see `unheard`."""
UNDO = "undo:"
"""Before the id of an activity: that of its compensation."""
WAITING_FOR_LIMIT = 20
"""Of what an instance waits for, in its row: for people to read."""


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
    eager: str | None = None


@dataclass(slots=True)
class Undo:
    """A compensation that is due should the workflow fail. `args` as those of an activity, `result` that of what it
    undoes (None where it was registered by hand), `attrs` those of its `activity.scheduled` to be, and
    `wants_result`."""

    ref: str
    args: bytes | None
    result: bytes | None
    attrs: dict[str, Any]


@dataclass(slots=True)
class InstanceState:
    """Current state of one run. `activities`, `timers`, `waits`, `receives`, `children` hold what is open, with the
    attrs of the event that opened it; what changed since `clear_changes` stands in `changed` and `timers_before`
    (timer id -> was it there before the batch?). `subscriptions`: channel -> mode, once the channel has agreed.
    `undo` stands in the order of completion: the last is undone first. `unheard`: activities that can be undone, and
    that a worker may have completed though nobody waits for them, with their `compensate`. `begun`: attrs of
    `workflow.started`. `slot`: attrs of `slot.asked`, kept to the end."""

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
    version: str | None = None
    parent: dict[str, Any] | None = None
    cancel: dict[str, Any] | None = None
    waits: dict[str, dict[str, Any]] = field(default_factory=dict)
    receives: dict[str, dict[str, Any]] = field(default_factory=dict)
    joining: dict[str, dict[str, Any]] = field(default_factory=dict)
    subscriptions: dict[str, str] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    children: dict[str, dict[str, Any]] = field(default_factory=dict)
    updates: dict[str, dict[str, Any]] = field(default_factory=dict)
    undo: list[Undo] = field(default_factory=list)
    unheard: dict[str, dict[str, Any]] = field(default_factory=dict)
    undo_failed: list[str] = field(default_factory=list)
    compensating: HistoryEvent | None = None
    begun: dict[str, Any] = field(default_factory=dict)
    slot: dict[str, Any] | None = None
    slot_granted: bool = False
    changed: dict[str, ActivityState] = field(default_factory=dict)
    timers_before: dict[str, bool] = field(default_factory=dict)

    @property
    def status(self) -> str:
        if self.finished is not None:
            return self.finished
        if self.compensating is not None:
            return COMPENSATING
        if self.activities or self.children or self.updates:
            return RUNNING
        if self.waits or self.receives or self.joining:
            if self.receives and not self.waits:
                return WAITING_FOR_MESSAGE
            return WAITING_FOR_EVENT if self.waits and not self.receives else RUNNING
        if any(timer.startswith(USER_TIMER) for timer in self.timers):
            return WAITING_FOR_TIMER
        return RUNNING

    @property
    def waiting_for(self) -> bytes | None:
        waits_its_turn = self.slot is not None and not self.slot_granted
        if not (self.waits or self.receives or self.children or waits_its_turn) or self.finished is not None:
            return None
        texts = [f"event {attrs['type']}" for attrs in self.waits.values()]
        texts += [f"message {attrs['channel']}" for attrs in self.receives.values()]
        texts += [f"child {attrs['id']}" for attrs in self.children.values()]
        texts += [f"slot {self.slot['of']}"] if self.slot is not None and waits_its_turn else []
        return orjson.dumps(texts[:WAITING_FOR_LIMIT])

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
            None if self.parent is None else self.parent["id"],
            self.waiting_for,
            self.version,
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
            a.eager,
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
        activity.next_attempt_us = activity.eager = None
        if status == FAILED:
            activity.error = event.payload
        self.changed[event.ref] = activity
        for prefix in (RETRY_TIMER, DEADLINE_TIMER, HEARTBEAT_TIMER, TURN_TIMER):
            self.drop_timer(prefix + event.ref)

    def end(self, event: HistoryEvent, status: str) -> None:
        self.finished, self.finished_us = status, event.at_us
        for activity in self.activities.values():
            activity.status = ABANDONED
            activity.updated_us = activity.finished_us = event.at_us
            activity.next_attempt_us = activity.eager = None
            self.changed[activity.activity_id] = activity
        self.activities.clear()
        for timer_id in list(self.timers):
            self.drop_timer(timer_id)
        for open_ in (self.waits, self.receives, self.joining, self.subscriptions, self.children, self.updates):
            open_.clear()
        self.groups.clear()


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
        version=event.attrs.get("version"),
        parent=event.attrs.get("parent"),
        subscriptions=dict(event.attrs.get("subscriptions", {})),
        groups=set(event.attrs.get("groups", ())),
        begun=event.attrs,
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
    _open_activity(state, event, event.ref)


def _open_activity(state: InstanceState, event: HistoryEvent, activity_id: str) -> None:
    attrs = event.attrs
    activity = ActivityState(
        activity_id, attrs["name"], attrs["queue"], event.at_us, event.payload, attrs, updated_us=event.at_us
    )
    activity.eager = attrs.get("eager")
    state.activities[activity_id] = state.changed[activity_id] = activity
    if "deadline_us" in attrs:
        state.set_timer(DEADLINE_TIMER + activity_id, attrs["deadline_us"])
    _expect_heartbeat(state, activity, event.at_us)


def _expect_heartbeat(state: InstanceState, activity: ActivityState, now_us: int) -> None:
    timeout_s = activity.attrs.get("heartbeat_timeout_s")
    if timeout_s is not None:
        state.set_timer(HEARTBEAT_TIMER + activity.activity_id, now_us + round(timeout_s * 1_000_000))


def _activity_completed(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    compensate = state.activities[event.ref].attrs.get("compensate")
    if compensate is not None:
        state.undo.append(Undo(event.ref, compensate["args"].encode(), event.payload, compensate["attrs"]))
    state.end_activity(event, COMPLETED)


def _activity_cancelled(state: InstanceState, event: HistoryEvent) -> None:
    """It may have ended already: code that was parked hears of things in the order in which they came, but late."""
    assert event.ref is not None
    if event.ref in state.activities:
        _may_be_completed(state, state.activities[event.ref])
        state.end_activity(event, CANCELLED)


def _may_be_completed(state: InstanceState, activity: ActivityState) -> None:
    """Nobody waits for it any more, while a worker may have done it."""
    compensate = activity.attrs.get("compensate")
    if compensate is not None:
        state.unheard[activity.activity_id] = compensate


def _attempt_failed(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    activity = state.activities[event.ref]
    activity.status = BACKING_OFF
    activity.error, activity.updated_us = event.payload, event.at_us
    activity.next_attempt_us, activity.eager = event.attrs["next_at_us"], None
    state.changed[event.ref] = activity
    state.set_timer(RETRY_TIMER + event.ref, event.attrs["next_at_us"])
    state.drop_timer(HEARTBEAT_TIMER + event.ref)


def _retried(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    activity = state.activities[event.ref]
    activity.status, activity.attempt = SCHEDULED, event.attrs["attempt"]
    activity.updated_us, activity.next_attempt_us = event.at_us, None
    activity.eager = event.attrs.get("eager")
    state.changed[event.ref] = activity
    state.drop_timer(RETRY_TIMER + event.ref)
    _expect_heartbeat(state, activity, event.at_us)


def _passed_on(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    activity = state.changed[event.ref] = state.activities[event.ref]
    activity.eager = None


def _heard(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    state.set_timer(HEARTBEAT_TIMER + event.ref, event.attrs["due_us"])


def _deferred(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    state.set_timer(TURN_TIMER + event.ref, event.attrs["due_us"])


def _released(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    state.drop_timer(TURN_TIMER + event.ref)


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


def _cancelled(state: InstanceState, event: HistoryEvent) -> None:
    state.error = event.payload
    state.end(event, CANCELLED)


def _recurred(state: InstanceState, event: HistoryEvent) -> None:
    state.end(event, RECURRED)


def _reset(state: InstanceState, event: HistoryEvent) -> None:
    state.end(event, RESET)


def _adopted(state: InstanceState, event: HistoryEvent) -> None:
    state.parent = event.attrs["parent"]


def _parked(state: InstanceState, event: HistoryEvent) -> None:
    state.parked = event.attrs["message"]


def _resumed(state: InstanceState, event: HistoryEvent) -> None:
    state.parked = None


def _cancel_requested(state: InstanceState, event: HistoryEvent) -> None:
    state.cancel = event.attrs


# -- compensation ----------------------------------------------------------------------------------------------------
def _registered(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    state.undo.append(Undo(event.ref, event.payload, None, event.attrs))


def _compensating(state: InstanceState, event: HistoryEvent) -> None:
    """What the code still had open is over; what it completed is undone from here on."""
    for activity in state.activities.values():
        _may_be_completed(state, activity)
    state.end(event, COMPENSATING)
    state.finished = state.finished_us = None
    state.compensating = event
    state.parked = None
    if state.unheard:
        state.set_timer(CLAIMS_TIMER, event.at_us)


def _found(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    compensate = state.unheard.pop(event.ref)
    state.undo.append(Undo(event.ref, compensate["args"].encode(), event.payload, compensate["attrs"]))


def _compensation_scheduled(state: InstanceState, event: HistoryEvent) -> None:
    """Always of the last one that is left."""
    assert event.ref is not None
    assert state.undo[-1].ref == event.ref
    state.undo.pop()
    state.drop_timer(CLAIMS_TIMER)
    _open_activity(state, event, UNDO + event.ref)


def _compensation_ended(status: str) -> Any:
    def end(state: InstanceState, event: HistoryEvent) -> None:
        assert event.ref is not None
        if status == FAILED:
            state.undo_failed.append(event.ref)
        named = HistoryEvent(
            event.instance_id,
            event.run,
            event.seq,
            event.at_us,
            event.kind,
            UNDO + event.ref,
            event.attrs,
            event.payload,
        )
        state.end_activity(named, status)

    return end


# -- what an instance waits for --------------------------------------------------------------------------------------
def _opens(name: str) -> Any:
    def open_(state: InstanceState, event: HistoryEvent) -> None:
        getattr(state, name)[event.ref] = event.attrs

    return open_


def _closes(name: str) -> Any:
    def close(state: InstanceState, event: HistoryEvent) -> None:
        getattr(state, name).pop(event.ref, None)

    return close


def _joined(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    del state.joining[event.ref]
    state.subscriptions[event.attrs["channel"]] = event.attrs["mode"]


def _unsubscribed(state: InstanceState, event: HistoryEvent) -> None:
    state.subscriptions.pop(event.attrs["channel"], None)
    _give_up_joining(state, "channel", event.attrs["channel"])


def _group_joined(state: InstanceState, event: HistoryEvent) -> None:
    assert event.ref is not None
    del state.joining[event.ref]
    state.groups.add(event.attrs["group"])


def _group_left(state: InstanceState, event: HistoryEvent) -> None:
    state.groups.discard(event.attrs["group"])
    _give_up_joining(state, "group", event.attrs["group"])


def _give_up_joining(state: InstanceState, what: str, name: str) -> None:
    """Code that waited to join has been cancelled: the answer will find nobody."""
    for ref in [ref for ref, attrs in state.joining.items() if attrs.get(what) == name]:
        del state.joining[ref]


def _slot_asked(state: InstanceState, event: HistoryEvent) -> None:
    state.slot = event.attrs


def _slot_granted(state: InstanceState, event: HistoryEvent) -> None:
    state.slot_granted = True


def _nothing(state: InstanceState, event: HistoryEvent) -> None:
    """A recorded step that no table shows."""


_APPLY = {
    h.WORKFLOW_COMPLETED: _completed,
    h.WORKFLOW_FAILED: _failed,
    h.WORKFLOW_CANCELLED: _cancelled,
    h.WORKFLOW_RECURRED: _recurred,
    h.WORKFLOW_RESET: _reset,
    h.WORKFLOW_ADOPTED: _adopted,
    h.WORKFLOW_PARKED: _parked,
    h.WORKFLOW_RESUMED: _resumed,
    h.WORKFLOW_CANCEL_REQUESTED: _cancel_requested,
    h.WORKFLOW_COMPENSATING: _compensating,
    h.ACTIVITY_SCHEDULED: _scheduled,
    h.ACTIVITY_ATTEMPT_FAILED: _attempt_failed,
    h.ACTIVITY_RETRIED: _retried,
    h.ACTIVITY_PASSED_ON: _passed_on,
    h.ACTIVITY_HEARD: _heard,
    h.ACTIVITY_DEFERRED: _deferred,
    h.ACTIVITY_RELEASED: _released,
    h.ACTIVITY_COMPLETED: _activity_completed,
    h.ACTIVITY_FAILED: lambda state, event: state.end_activity(event, FAILED),
    h.ACTIVITY_CANCELLED: _activity_cancelled,
    h.COMPENSATION_REGISTERED: _registered,
    h.COMPENSATION_FOUND: _found,
    h.COMPENSATION_SCHEDULED: _compensation_scheduled,
    h.COMPENSATION_COMPLETED: _compensation_ended(COMPLETED),
    h.COMPENSATION_FAILED: _compensation_ended(FAILED),
    h.TIMER_STARTED: _timer_started,
    h.TIMER_FIRED: _timer_gone,
    h.TIMER_CANCELLED: _timer_gone,
    h.EVENT_PUBLISHED: _nothing,
    h.WAIT_STARTED: _opens("waits"),
    h.WAIT_CANCELLED: _closes("waits"),
    h.EVENT_RECEIVED: _closes("waits"),
    h.CHANNEL_SUBSCRIBED: _opens("joining"),
    h.CHANNEL_JOINED: _joined,
    h.CHANNEL_REFUSED: _closes("joining"),
    h.CHANNEL_UNSUBSCRIBED: _unsubscribed,
    h.GROUP_JOINING: _opens("joining"),
    h.GROUP_JOINED: _group_joined,
    h.GROUP_REFUSED: _closes("joining"),
    h.GROUP_LEFT: _group_left,
    h.RECEIVE_STARTED: _opens("receives"),
    h.RECEIVE_CANCELLED: _closes("receives"),
    h.MESSAGE_RECEIVED: _closes("receives"),
    h.MESSAGE_SENT: _nothing,
    h.SIGNAL_RECEIVED: _nothing,
    h.UPDATE_ACCEPTED: _opens("updates"),
    h.UPDATE_COMPLETED: _closes("updates"),
    h.UPDATE_FAILED: _closes("updates"),
    h.CHILD_STARTED: _opens("children"),
    h.CHILD_COMPLETED: _closes("children"),
    h.CHILD_FAILED: _closes("children"),
    h.CHILD_CANCELLED: _closes("children"),
    h.CHILD_CANCEL_REQUESTED: _nothing,
    h.PATCH_MARKED: _nothing,
    h.SLOT_ASKED: _slot_asked,
    h.SLOT_GRANTED: _slot_granted,
}

assert {COMPLETED, FAILED, CANCELLED} <= FINISHED
assert {*_APPLY, h.WORKFLOW_STARTED} >= h.INPUTS | h.COMMANDS
