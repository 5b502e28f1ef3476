"""Requests to run an attempt of an activity, and reports of what came of one: as values, which is all they are where
engine and worker are one process, and as the CloudEvents that carry them anywhere else. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from romancy_stream.engine.commit import ActivityKey
from romancy_stream.engine.projection import ActivityState, InstanceState
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import new_event_time
from romancy_stream.wire.event import WireEvent, whole_number
from romancy_stream.wire.value import value

NO_ARGUMENTS: Final = b'{"args":[],"kwargs":{}}'
PRIORITY: Final = 5
"""Of a task that names none. 1 is first, 9 last."""
OPTIONS_CACHE_LIMIT: Final = 256  # distinct options of one app's activities: a handful
NUMBERS_CACHE_LIMIT: Final = 256  # runs and attempts are 1, and then 2
_PRIORITIES: Final = frozenset("123456789")
_REQUIRED: Final = (w.X_RUN, w.X_ACTIVITY, w.X_ACTIVITY_ID, w.X_ATTEMPT)
OF_REPORT: Final = (w.X_RUN, w.X_ACTIVITY_ID, w.X_ATTEMPT)
_OF_REPORT: Final = frozenset(OF_REPORT)
_OPTIONS: Final = (w.X_TIMEOUT, w.X_HEARTBEAT, w.X_PRIORITY, w.X_RETRY_ON, w.X_NO_RETRY_ON)
_TRACE: Final = (w.X_TRACEPARENT, w.X_TRACESTATE)
_MAX_INT32: Final = 2**31 - 1


# -- options of a call ---------------------------------------------------------------------------------------------
class TaskOptions(NamedTuple):
    """`attributes`: the same as a task has it. `policy` says which classes of errors may be retried, nothing else."""

    attributes: Mapping[str, str]
    timeout_s: float | None
    heartbeat_timeout_s: float | None
    priority: int
    policy: RetryPolicy


@lru_cache(maxsize=OPTIONS_CACHE_LIMIT)
def _options(
    timeout: str | None, heartbeat: str | None, priority: str | None, retry_on: str | None, do_not_retry_on: str | None
) -> TaskOptions:
    """ValueError says what is wrong."""
    given = zip(_OPTIONS, (timeout, heartbeat, priority, retry_on, do_not_retry_on), strict=True)
    if priority is not None and priority not in _PRIORITIES:
        raise ValueError(f"{w.X_PRIORITY} must be 1 to 9")
    try:
        return TaskOptions(
            {name: text for name, text in given if text is not None},
            _seconds(timeout),
            _seconds(heartbeat),
            PRIORITY if priority is None else int(priority),
            RetryPolicy(
                retry_on=(Exception,) if retry_on is None else retry_on.split(","),
                do_not_retry_on=() if do_not_retry_on is None else do_not_retry_on.split(","),
            ),
        )
    except ValueError as error:
        raise ValueError(
            f"{w.X_TIMEOUT} and {w.X_HEARTBEAT} must be seconds above 0, {w.X_RETRY_ON} and {w.X_NO_RETRY_ON} lists of "
            "module:Name"
        ) from error


def _seconds(text: str | None) -> float | None:
    seconds = None if text is None else float(text)
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _options_of_call(attrs: Mapping[str, Any]) -> TaskOptions:
    """Classes of errors are named only where the call's policy restricts them."""
    if _OF_CALL.isdisjoint(attrs):
        return _NO_OPTIONS
    policy = attrs.get("policy", {})
    return _options(
        repr(attrs["timeout_s"]) if "timeout_s" in attrs else None,
        repr(attrs["heartbeat_timeout_s"]) if "heartbeat_timeout_s" in attrs else None,
        str(attrs["priority"]) if "priority" in attrs else None,
        _classes(policy.get("retry_on")),
        _classes(policy.get("do_not_retry_on")),
    )


_OF_CALL: Final = frozenset({"timeout_s", "heartbeat_timeout_s", "priority", "policy"})
_NO_OPTIONS: Final = _options(None, None, None, None, None)


def _classes(names: list[str] | None) -> str | None:
    return ",".join(names) if names and names != ["builtins:Exception"] else None


# -- tasks ---------------------------------------------------------------------------------------------------------
@value
class Task:
    """A request to run one attempt. `lapsed`: the worker process that had it before, where that is not heard of any
    more. `request_id` and `request_source` are those of its event."""

    key: ActivityKey
    attempt: int
    name: str
    args: bytes
    request_id: str
    request_source: str
    options: TaskOptions
    workflow: str | None
    trace: Mapping[str, str]
    lapsed: str | None = None

    @property
    def identity(self) -> tuple[ActivityKey, int]:
        return self.key, self.attempt

    @property
    def idempotency_key(self) -> str:
        return f"{self.key.instance_id}/{self.key.run}/{self.key.activity_id}"

    def __str__(self) -> str:
        return f"{self.idempotency_key}, attempt {self.attempt} of {self.name!r}"


_NO_TRACE: Final[Mapping[str, str]] = {}


def task_for(source: str, state: InstanceState, activity: ActivityState, lapsed: str | None = None) -> Task:
    """The attempt that is due."""
    instance_id, run, activity_id, attempt = state.instance_id, state.run, activity.activity_id, activity.attempt
    return Task(
        ActivityKey(instance_id, run, activity_id),
        attempt,
        activity.name,
        NO_ARGUMENTS if activity.args is None else activity.args,
        f"{instance_id}/{run}/{activity_id}/{attempt}",
        source,
        _options_of_call(activity.attrs),
        state.workflow,
        _NO_TRACE,
        lapsed,
    )


def task_event(task: Task, time: str) -> WireEvent:
    instance_id, run, activity_id = task.key
    extensions = {
        w.X_PARTITION_KEY: instance_id,
        w.X_RUN: str(run),
        w.X_ACTIVITY: task.name,
        w.X_ACTIVITY_ID: activity_id,
        w.X_ATTEMPT: str(task.attempt),
        w.X_IDEMPOTENCY_KEY: task.idempotency_key,
        **task.options.attributes,
        **task.trace,
    }
    if task.workflow is not None:
        extensions[w.X_WORKFLOW] = task.workflow
    if task.lapsed is not None:
        extensions[w.X_LAPSED] = task.lapsed
    return WireEvent(task.request_id, task.request_source, w.TASK, instance_id, task.args, time, extensions)


def problem_of_task(event: WireEvent) -> str | None:
    """Why an event is no task."""
    extensions = event.extensions
    if event.type != w.TASK:
        return f"{event.type} is not for workers: they read {w.TASK}"
    if not event.subject or not all(map(extensions.get, _REQUIRED)):
        return f"a task needs subject and {', '.join(_REQUIRED)}"
    for name in (w.X_RUN, w.X_ATTEMPT):
        if not (extensions[name].isdecimal() and int(extensions[name]) <= _MAX_INT32):
            return f"{name} must be a whole number"
    try:
        _options(*map(extensions.get, _OPTIONS))
    except ValueError as error:
        return str(error)
    return None


def task_of(event: WireEvent) -> Task:
    """Of an event with which there is no problem."""
    extensions = event.extensions
    assert event.subject is not None
    return Task(
        ActivityKey(event.subject, int(extensions[w.X_RUN]), extensions[w.X_ACTIVITY_ID]),
        int(extensions[w.X_ATTEMPT]),
        extensions[w.X_ACTIVITY],
        NO_ARGUMENTS if event.data is None else event.data,
        event.id,
        event.source,
        _options(*map(extensions.get, _OPTIONS)),
        extensions.get(w.X_WORKFLOW),
        {name: extensions[name] for name in _TRACE if name in extensions},
        extensions.get(w.X_LAPSED),
    )


# -- reports -------------------------------------------------------------------------------------------------------
@value
class Report:
    """What an attempt came to, by the type of its event. The rest is for that event: `task`, and `number`, by which
    its worker tells its reports apart; None for the one that the database holds, whoever sends it."""

    key: ActivityKey
    attempt: int
    type: str
    data: bytes | None
    worker: str | None
    duration_us: int | None
    at_us: int = 0
    number: int | None = None
    task: Task | None = None


def result_id(task: Task) -> str:
    """Of the event that the database's one result becomes."""
    return f"{task.idempotency_key}/result"


def report_event(report: Report, source: str, incarnation: str) -> WireEvent:
    """`incarnation`: of the worker whose numbers these are."""
    task = report.task
    assert task is not None, "a report that was read from an event"
    key, number = task.idempotency_key, report.number
    extensions = {
        w.X_PARTITION_KEY: report.key.instance_id,
        w.X_RUN: str(report.key.run),
        w.X_ACTIVITY: task.name,
        w.X_ACTIVITY_ID: report.key.activity_id,
        w.X_ATTEMPT: str(report.attempt),
        w.X_IDEMPOTENCY_KEY: key,
        w.X_CORRELATION: task.request_id,
        **task.trace,
    }
    if report.worker is not None:
        extensions[w.X_WORKER] = report.worker
    if report.duration_us is not None:
        extensions[w.X_DURATION] = str(report.duration_us)
    return WireEvent(
        result_id(task) if number is None else f"{key}/{report.attempt}/{incarnation}/{number}",
        source,
        report.type,
        report.key.instance_id,
        report.data,
        new_event_time(report.at_us),
        extensions,
    )


@lru_cache(maxsize=NUMBERS_CACHE_LIMIT)
def _number(text: str) -> int:
    return whole_number(text) or 0


def report_of(event: WireEvent) -> Report | None:
    """None: something is missing. What should be a number and is none is that of no attempt."""
    subject, extensions = event.subject, event.extensions
    if subject is None or not extensions.keys() >= _OF_REPORT:
        return None
    return Report(
        ActivityKey(subject, _number(extensions[w.X_RUN]), extensions[w.X_ACTIVITY_ID]),
        _number(extensions[w.X_ATTEMPT]),
        event.type,
        event.data,
        extensions.get(w.X_WORKER),
        whole_number(extensions.get(w.X_DURATION, "")),
    )
