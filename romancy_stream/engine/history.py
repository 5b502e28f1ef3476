"""The event log's vocabulary. An instance *is* the fold of these events (see `projection`); whatever else the
database holds about it can be thrown away and made again. Values only.

Events are of two sorts. *Inputs* drive workflow code: started, activity completed/failed, timer fired.
*Commands* are what the code asked for in answer: activity scheduled, timer started/cancelled, event published,
workflow completed/failed. On replay an input is delivered and the commands behind it must come out again, in
order. The rest (failed attempts, retries, parking) is the engine's own bookkeeping, invisible to the code.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Final

from romancy_stream.wire.value import value

WORKFLOW_STARTED: Final = "workflow.started"
WORKFLOW_COMPLETED: Final = "workflow.completed"
WORKFLOW_FAILED: Final = "workflow.failed"
WORKFLOW_PARKED: Final = "workflow.parked"
WORKFLOW_RESUMED: Final = "workflow.resumed"
ACTIVITY_SCHEDULED: Final = "activity.scheduled"
ACTIVITY_ATTEMPT_FAILED: Final = "activity.attempt_failed"
ACTIVITY_RETRIED: Final = "activity.retried"
ACTIVITY_COMPLETED: Final = "activity.completed"
ACTIVITY_FAILED: Final = "activity.failed"
TIMER_STARTED: Final = "timer.started"
TIMER_FIRED: Final = "timer.fired"
TIMER_CANCELLED: Final = "timer.cancelled"
EVENT_PUBLISHED: Final = "event.published"

INPUTS: Final = frozenset({WORKFLOW_STARTED, ACTIVITY_COMPLETED, ACTIVITY_FAILED, TIMER_FIRED})
COMMANDS: Final = frozenset(
    {ACTIVITY_SCHEDULED, TIMER_STARTED, TIMER_CANCELLED, EVENT_PUBLISHED, WORKFLOW_COMPLETED, WORKFLOW_FAILED}
)


@value
class HistoryEvent:
    """One row of the log. `seq` is dense from 1 within (instance_id, run). `at_us` is the log time in whole
    microseconds since 1970 UTC, the same for all events of one step; it is what `ctx.now()` shows.

    `ref` names the activity, timer or publication. `payload` is raw JSON: the input, the arguments
    `{"args": [...], "kwargs": {...}}`, a result, an error (see `failure`), or a published event's data.
    `attrs` is small and JSON-able:

    workflow.started         workflow, event_id, event_source; correlation_id, traceparent where given
    workflow.parked          code, message, and expected/actual for a divergence
    activity.scheduled       name, queue; policy (RetryPolicy.to_json), timeout_s, total_timeout_s,
                             deadline_us where set
    activity.attempt_failed  attempt, next_at_us, duration_us
    activity.retried         attempt
    activity.completed       attempt, duration_us, worker
    activity.failed          attempt, reason: "terminal" | "exhausted" | "timeout"
    timer.started            due_us
    event.published          type, source, subject, topic, id
    """

    instance_id: str
    run: int
    seq: int
    at_us: int
    kind: str
    ref: str | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    payload: bytes | None = None
