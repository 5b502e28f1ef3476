"""The event log's vocabulary. An instance *is* the fold of these events (see `projection`); whatever else the
database holds about it can be thrown away and made again. Values only.

Events are of three sorts. *Inputs* drive workflow code: what happened to it. *Commands* are what the code asked for in
answer. On replay an input is delivered and the commands behind it must come out again, in order. The rest (failed
attempts, retries, compensations, parking) is the engine's own bookkeeping, invisible to the code.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Final

from romancy_stream.wire.value import value

# -- inputs ----------------------------------------------------------------------------------------------------------
WORKFLOW_STARTED: Final = "workflow.started"
WORKFLOW_CANCEL_REQUESTED: Final = "workflow.cancel_requested"
ACTIVITY_COMPLETED: Final = "activity.completed"
ACTIVITY_FAILED: Final = "activity.failed"
TIMER_FIRED: Final = "timer.fired"
EVENT_RECEIVED: Final = "event.received"
MESSAGE_RECEIVED: Final = "message.received"
CHANNEL_JOINED: Final = "channel.joined"
CHANNEL_REFUSED: Final = "channel.refused"
GROUP_JOINED: Final = "group.joined"
GROUP_REFUSED: Final = "group.refused"
SIGNAL_RECEIVED: Final = "signal.received"
UPDATE_ACCEPTED: Final = "update.accepted"
CHILD_COMPLETED: Final = "child.completed"
CHILD_FAILED: Final = "child.failed"
CHILD_CANCELLED: Final = "child.cancelled"
SLOT_GRANTED: Final = "slot.granted"
# -- commands --------------------------------------------------------------------------------------------------------
WORKFLOW_COMPLETED: Final = "workflow.completed"
WORKFLOW_FAILED: Final = "workflow.failed"
WORKFLOW_CANCELLED: Final = "workflow.cancelled"
WORKFLOW_RECURRED: Final = "workflow.recurred"
ACTIVITY_SCHEDULED: Final = "activity.scheduled"
ACTIVITY_CANCELLED: Final = "activity.cancelled"
TIMER_STARTED: Final = "timer.started"
TIMER_CANCELLED: Final = "timer.cancelled"
EVENT_PUBLISHED: Final = "event.published"
WAIT_STARTED: Final = "wait.started"
WAIT_CANCELLED: Final = "wait.cancelled"
CHANNEL_SUBSCRIBED: Final = "channel.subscribed"
CHANNEL_UNSUBSCRIBED: Final = "channel.unsubscribed"
GROUP_JOINING: Final = "group.joining"
GROUP_LEFT: Final = "group.left"
RECEIVE_STARTED: Final = "receive.started"
RECEIVE_CANCELLED: Final = "receive.cancelled"
MESSAGE_SENT: Final = "message.sent"
UPDATE_COMPLETED: Final = "update.completed"
UPDATE_FAILED: Final = "update.failed"
CHILD_STARTED: Final = "child.started"
CHILD_CANCEL_REQUESTED: Final = "child.cancel_requested"
COMPENSATION_REGISTERED: Final = "compensation.registered"
PATCH_MARKED: Final = "patch.marked"
SLOT_ASKED: Final = "slot.asked"
# -- bookkeeping -----------------------------------------------------------------------------------------------------
WORKFLOW_PARKED: Final = "workflow.parked"
WORKFLOW_RESUMED: Final = "workflow.resumed"
WORKFLOW_COMPENSATING: Final = "workflow.compensating"
WORKFLOW_RESET: Final = "workflow.reset"
WORKFLOW_ADOPTED: Final = "workflow.adopted"
ACTIVITY_ATTEMPT_FAILED: Final = "activity.attempt_failed"
ACTIVITY_RETRIED: Final = "activity.retried"
ACTIVITY_PASSED_ON: Final = "activity.passed_on"
ACTIVITY_HEARD: Final = "activity.heard"
ACTIVITY_DEFERRED: Final = "activity.deferred"
ACTIVITY_RELEASED: Final = "activity.released"
COMPENSATION_FOUND: Final = "compensation.found"
COMPENSATION_SCHEDULED: Final = "compensation.scheduled"
COMPENSATION_COMPLETED: Final = "compensation.completed"
COMPENSATION_FAILED: Final = "compensation.failed"

INPUTS: Final = frozenset(
    {
        WORKFLOW_STARTED,
        WORKFLOW_CANCEL_REQUESTED,
        ACTIVITY_COMPLETED,
        ACTIVITY_FAILED,
        TIMER_FIRED,
        EVENT_RECEIVED,
        MESSAGE_RECEIVED,
        CHANNEL_JOINED,
        CHANNEL_REFUSED,
        GROUP_JOINED,
        GROUP_REFUSED,
        SIGNAL_RECEIVED,
        UPDATE_ACCEPTED,
        CHILD_COMPLETED,
        CHILD_FAILED,
        CHILD_CANCELLED,
        SLOT_GRANTED,
    }
)
COMMANDS: Final = frozenset(
    {
        WORKFLOW_COMPLETED,
        WORKFLOW_FAILED,
        WORKFLOW_CANCELLED,
        WORKFLOW_RECURRED,
        ACTIVITY_SCHEDULED,
        ACTIVITY_CANCELLED,
        TIMER_STARTED,
        TIMER_CANCELLED,
        EVENT_PUBLISHED,
        WAIT_STARTED,
        WAIT_CANCELLED,
        CHANNEL_SUBSCRIBED,
        CHANNEL_UNSUBSCRIBED,
        GROUP_JOINING,
        GROUP_LEFT,
        RECEIVE_STARTED,
        RECEIVE_CANCELLED,
        MESSAGE_SENT,
        UPDATE_COMPLETED,
        UPDATE_FAILED,
        CHILD_STARTED,
        CHILD_CANCEL_REQUESTED,
        COMPENSATION_REGISTERED,
        PATCH_MARKED,
        SLOT_ASKED,
    }
)
ENDS: Final = frozenset({WORKFLOW_COMPLETED, WORKFLOW_FAILED, WORKFLOW_CANCELLED, WORKFLOW_RECURRED})
"""After one of these nothing follows in the run."""

RULES: Final = 3
"""What the engine asks of code, by number, in `workflow.started`: a run keeps those that it began with, so that its
history replays. 1, or none: an activity whose future is cancelled stays open. 2: `activity.cancelled` is recorded.
3: signals and updates that come before the code has begun wait until it has."""


@value
class HistoryEvent:
    """One row of the log. `seq` is dense from 1 within (instance_id, run). `at_us` is the log time in whole
    microseconds since 1970 UTC, the same for all events of one step; it is what `ctx.now()` shows.

    `ref` names the activity, timer, wait, child or publication. `payload` is raw JSON: the input, the arguments
    `{"args": [...], "kwargs": {...}}`, a result, an error (see `failure`), an event's or a message's data.
    `attrs` is small and JSON-able:

    workflow.started         workflow, event_id, event_source, rules; correlation_id, traceparent, version, begin_us,
                             parent {id, run, ref, close} where given; of a run that follows another: recurred, and
                             what that left behind: mailbox, subscriptions, groups; of a run that an operator has
                             begun: follows {command, by, event_id, run, copied: how many events, since: the first
                             run of those that followed one another so, seed: of the code's random numbers}
                             slot {entity, limit, of}: what the run needs before its code begins
    workflow.cancel_requested  reason, by (source of the command), event_id
    workflow.cancelled       payload {"reason", "by"}
    workflow.failed, .cancelled  compensation_failed: [activity ids], where there are any; by_engine where the code
                             had no part in it
    workflow.recurred        payload: the new input; mailbox, subscriptions, groups
    workflow.reset           by, event_id (of the command): another run takes over
    workflow.adopted         parent {id, run, ref, close}: a later run of the parent waits for it
    workflow.compensating    outcome "failed" | "cancelled"; payload as that of the end
    workflow.parked          code, message, undelivered, and expected/actual for a divergence
    activity.scheduled       name, queue; policy (RetryPolicy.to_json), timeout_s, total_timeout_s,
                             deadline_us, heartbeat_timeout_s, priority where set; eager: the engine process
                             that kept the attempt to itself; compensate
                             {"args": JSON text, "attrs": as compensation.registered}
    activity.attempt_failed  attempt, next_at_us, duration_us
    activity.retried         attempt; eager as above
    activity.passed_on       attempt, of the engine process that kept it to itself and is gone: the broker has it now
    activity.heard           due_us: when the next heartbeat is missed
    activity.deferred        due_us: when the attempt may begin, by the rate of its queue; then activity.released
    activity.completed       attempt, duration_us, worker
    activity.failed          attempt, reason: "terminal" | "exhausted" | "timeout"
    compensation.registered  as activity.scheduled, and wants_result; payload: the arguments
    compensation.found       attempt, worker; payload: result of a cancelled activity that a worker had completed
    compensation.scheduled, .completed, .failed  as those of activities; ref: that of the activity it undoes
    timer.started            due_us
    event.published          type, source, subject, topic, id
    wait.started             type, entity (where events for it are), match where given
    wait.cancelled           type, entity
    event.received           type, source, id; subject, time, extensions where given; ref: the wait, None: for the
                             mailbox, where it stays until_us
    channel.subscribed       channel, mode; ref: the subscription
    channel.joined           channel, mode
    channel.refused          channel, mode; code, message
    channel.unsubscribed     channel, mode
    group.joining, .joined, .left  group; ref: the joining
    group.refused            group, code, message
    receive.started, .cancelled  channel
    message.sent             channel; one of: to (instance id), group; metadata (JSON text)
    message.received         channel, id, sent_us; sender (instance id), metadata where given; ref: the receive,
                             None: for the mailbox
    signal.received          name, event_id, event_source
    update.accepted          name, event_id, event_source; ref: the update
    update.completed, .failed  name, event_id, event_source; payload: the result or the error
    patch.marked             ref: the patch
    child.started            id, workflow, close "cancel" | "abandon"; derived where the engine made the id, begin_us;
                             payload: the input
    child.cancel_requested   id, reason
    slot.asked               entity, limit, of (for people: the field and value that runs share)
    child.completed, .failed, .cancelled  payload: output, error, {"reason"}
    """

    instance_id: str
    run: int
    seq: int
    at_us: int
    kind: str
    ref: str | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    payload: bytes | None = None
