"""Every error that a user can see, in one tree. The docstring of a class is its meaning; `code` is stable and
goes into JSON, logs and the CLI, so that it can be matched without importing Python.

    RomancyError
    ├── ConfigurationError                 the app is set up wrongly; says what to change
    │   ├── PartitionCountError            topic and database disagree on the number of partitions
    │   ├── LogIdentityError               a topic was made again, or lost its tail
    │   ├── NamespaceError                 the database belongs to another app
    │   ├── EmbeddedBrokerInUseError       another process holds the embedded broker
    │   └── UnmockedActivityError          in a test: an activity ran that should have been mocked
    ├── InvalidInputError                  the input does not fit the workflow's parameters
    ├── UnknownWorkflowError               nobody registered a workflow of that name
    ├── StartRefusedError                  the engine could not take the start; see the dead letters
    ├── CommandRefusedError                the engine could not take the command; see the dead letters
    ├── InstanceExistsError                on_conflict="fail" and the id is taken
    ├── InstanceNotFoundError              no instance has this id
    ├── InstanceNotCancellableError        it has finished, and not by being cancelled
    ├── InstanceFinishedError              the instance has ended, or its code has
    ├── InstanceParkedError                the instance is halted; nothing can be asked of its code
    ├── UnknownHandlerError                the workflow has no such signal, query or update
    ├── UpdateRejectedError                an update's validator refused it; nothing was recorded
    ├── UpdateFailedError                  an update was accepted, and its handler raised
    ├── InvalidResetPointError             a history has no such event to go back to
    ├── NotRetryableError                  only a failed instance that was not compensated can be retried
    ├── NotDeletableError                  only a finished instance can be deleted
    ├── InvalidPageTokenError              a page token was not made by this query
    ├── InvalidPathError                   a JSON path of find_instances cannot be read
    ├── PayloadError                       a value cannot become JSON, or JSON the declared type; or it cannot be opened
    │   └── PayloadTooLargeError
    ├── WorkflowFailedError                what result() raises for a failed instance
    ├── WorkflowCancelledError             what result() raises for a cancelled instance
    ├── ChildWorkflowError                 what a parent sees of a child that failed; the cause is the child's error
    │   └── ChildCancelledError            or was cancelled
    ├── HistoryTooLongError                a run has more events than it may have: see ctx.recur
    ├── EventTimeoutError                  ctx.wait_event: no such event in time
    ├── ActivityError                      an activity's error whose class is not importable here
    │   ├── RetryExhaustedError
    │   ├── ActivityTimeoutError
    │   └── ActivityCancelledError         what ctx.heartbeat() raises in a plain activity that is to stop
    ├── TerminalError                      raise it in an activity: never retried
    ├── RetryLaterError                    raise it in an activity: not yet, try again after a while
    ├── DuplicateActivityIdError           two activities of one run under one manual id
    ├── ActivityContextError               ctx.session or an activity context where there is none
    ├── NotSubscribedError                 receive, without a subscription to the channel
    ├── MessageTimeoutError                no message came within the timeout of receive (a TimeoutError, too)
    ├── ChannelModeConflictError           the channel has another mode, which its first subscriber gave it
    ├── ChannelFullError                   the channel or the group has as many members as it may have
    ├── NonDeterminismError                replay went another way than history
    ├── ReadOnlyError                      a query, validator or condition that tries to change something
    ├── WorkflowIOError                    I/O, threads or processes inside workflow code
    ├── EngineError                        the engine stopped; see app.wait_failed()
    │   ├── FencedError                    another owner took the partition over
    │   └── CommitUnknownError             the connection broke during a commit
    ├── StuckError                         in a test: nothing is left that could end what is waited for
    ├── BrokenLogError                     the history of an instance cannot be read
    ├── StoreUnavailableError              the database, or the store of payloads, is away; retried
    ├── BrokerUnavailableError             the broker is away; retried
    └── RecordRefusedError                 the broker refuses a record for good
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from romancy_stream.spans import in_seconds

LONGEST_DELAY_S: Final = 366 * 86_400
"""Of a RetryLaterError: a year, which is past all reason and within what any clock holds."""


class RomancyError(Exception):
    """Base of everything that romancy_stream raises."""

    code = "romancy_error"


class ConfigurationError(RomancyError):
    code = "configuration"


class PartitionCountError(ConfigurationError):
    code = "partition_count"


class LogIdentityError(ConfigurationError):
    code = "log_identity"


class NamespaceError(ConfigurationError):
    code = "namespace"


class EmbeddedBrokerInUseError(ConfigurationError):
    code = "embedded_broker_in_use"


class UnmockedActivityError(ConfigurationError):
    code = "unmocked_activity"


class InvalidInputError(RomancyError):
    """`errors` is a list of {"loc": [...], "type": str, "msg": str}, as pydantic reports them."""

    code = "invalid_input"

    def __init__(self, message: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.errors = list(errors)


class UnknownWorkflowError(RomancyError):
    code = "unknown_workflow"


class StartRefusedError(RomancyError):
    code = "start_refused"


class CommandRefusedError(RomancyError):
    code = "command_refused"


class InstanceExistsError(RomancyError):
    code = "instance_exists"


class InstanceNotFoundError(RomancyError):
    code = "instance_not_found"


class InstanceNotCancellableError(RomancyError):
    code = "instance_not_cancellable"


class InstanceFinishedError(RomancyError):
    code = "instance_finished"


class InstanceParkedError(RomancyError):
    code = "instance_parked"


class UnknownHandlerError(RomancyError):
    code = "unknown_handler"


class UpdateRejectedError(RomancyError):
    """`__cause__` is what the validator raised."""

    code = "update_rejected"


class UpdateFailedError(RomancyError):
    """`__cause__` is what the handler raised."""

    code = "update_failed"


class InvalidResetPointError(RomancyError):
    code = "invalid_reset_point"


class NotRetryableError(RomancyError):
    code = "not_retryable"


class NotDeletableError(RomancyError):
    code = "not_deletable"


class InvalidPageTokenError(RomancyError):
    code = "invalid_page_token"


class InvalidPathError(RomancyError):
    code = "invalid_path"


class PayloadError(RomancyError):
    """`errors` as in InvalidInputError, where JSON did not fit a declared type."""

    code = "payload"

    def __init__(self, message: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.errors = list(errors)


class PayloadTooLargeError(PayloadError):
    code = "payload_too_large"


class WorkflowFailedError(RomancyError):
    """`error_type`, `message` and `stack` are those of the error that ended the workflow; `__cause__` is that
    error itself when its class can be imported here. `compensation_failed` are ids of activities that could not be
    undone."""

    code = "workflow_failed"

    def __init__(
        self,
        instance_id: str,
        error_type: str,
        message: str,
        stack: str | None = None,
        compensation_failed: Sequence[str] = (),
    ) -> None:
        super().__init__(
            f"workflow instance {instance_id} failed: {error_type}: {message}{_not_undone(compensation_failed)}"
        )
        self.instance_id = instance_id
        self.error_type = error_type
        self.message = message
        self.stack = stack
        self.compensation_failed = list(compensation_failed)


class WorkflowCancelledError(RomancyError):
    """`by` is the source of the command that asked for it, or "parent" and its id. `compensation_failed` as in
    WorkflowFailedError."""

    code = "workflow_cancelled"

    def __init__(
        self,
        instance_id: str,
        reason: str | None = None,
        by: str | None = None,
        compensation_failed: Sequence[str] = (),
    ) -> None:
        why = f": {reason}" if reason else ""
        super().__init__(f"workflow instance {instance_id} was cancelled{why}{_not_undone(compensation_failed)}")
        self.instance_id = instance_id
        self.reason = reason
        self.by = by
        self.compensation_failed = list(compensation_failed)


def _not_undone(refs: Sequence[str]) -> str:
    return f"; could not be undone: {', '.join(refs)}" if refs else ""


class ChildWorkflowError(RomancyError):
    """`__cause__` is the child's error when its class can be imported here, InstanceExistsError where its id was taken,
    UnknownWorkflowError where nobody has such a workflow."""

    code = "child_workflow"

    def __init__(self, message: str, *, child_id: str = "", workflow: str = "") -> None:
        super().__init__(message)
        self.child_id = child_id
        self.workflow = workflow


class ChildCancelledError(ChildWorkflowError):
    code = "child_cancelled"

    def __init__(self, message: str, *, child_id: str = "", workflow: str = "", reason: str | None = None) -> None:
        super().__init__(message, child_id=child_id, workflow=workflow)
        self.reason = reason


class HistoryTooLongError(RomancyError):
    """Replay reads all of a run's history. A workflow that goes on and on ends its runs with `ctx.recur`."""

    code = "history_too_long"


class EventTimeoutError(RomancyError):
    """The wait is withdrawn: an event that comes later finds another wait, or none."""

    code = "event_timeout"


class ActivityError(RomancyError):
    """`error_type` is the import path of the original class, `details` what was kept of its attributes."""

    code = "activity_error"

    def __init__(self, message: str, *, error_type: str = "", details: Any = None) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.details = details


class RetryExhaustedError(ActivityError):
    """All attempts failed. `attempts` counts them; `__cause__` is the last error."""

    code = "retry_exhausted"

    def __init__(self, message: str, *, attempts: int = 0) -> None:
        super().__init__(message, error_type="romancy_stream.errors:RetryExhaustedError")
        self.attempts = attempts


class ActivityTimeoutError(ActivityError):
    """One attempt took longer than `timeout=`, or was silent for longer than `heartbeat_timeout=`, or all of them took
    longer than `total_timeout=`."""

    code = "activity_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, error_type="romancy_stream.errors:ActivityTimeoutError")


class ActivityCancelledError(ActivityError):
    """Nobody wants to know the result of this attempt any more: let it through."""

    code = "activity_cancelled"

    def __init__(self, message: str) -> None:
        super().__init__(message, error_type="romancy_stream.errors:ActivityCancelledError")


class TerminalError(RomancyError):
    """Raise it in an activity for what no retry can mend. `TerminalError("why")` or `TerminalError(error)`."""

    code = "terminal"

    def __init__(self, error: str | BaseException = "") -> None:
        super().__init__(str(error))
        if isinstance(error, BaseException):
            self.__cause__ = error


class RetryLaterError(RomancyError):
    """Raise it in an activity that knows when it is worth trying again: `delay` (seconds, or a timedelta) takes the
    place of the retry policy's. The attempt counts as any other."""

    code = "retry_later"

    def __init__(self, delay: float | timedelta, message: str = "") -> None:
        delay_s = in_seconds(delay)
        if not isinstance(delay_s, int | float) or not 0 <= delay_s <= LONGEST_DELAY_S:
            raise ValueError(f"delay must be 0 to {LONGEST_DELAY_S:,} seconds, or a timedelta, not {delay!r}")
        super().__init__(message or f"to be tried again in {delay_s:g} s")
        self.delay_s = float(delay_s)


class DuplicateActivityIdError(RomancyError):
    code = "duplicate_activity_id"


class ActivityContextError(RomancyError):
    code = "activity_context"


class NotSubscribedError(RomancyError):
    code = "not_subscribed"


class MessageTimeoutError(RomancyError, TimeoutError):
    code = "message_timeout"


class ChannelModeConflictError(RomancyError):
    code = "channel_mode_conflict"


class ChannelFullError(RomancyError):
    code = "channel_full"


class NonDeterminismError(RomancyError):
    """`expected` is what history holds, `actual` what the code did instead."""

    code = "non_determinism"

    def __init__(self, instance_id: str, expected: str, actual: str) -> None:
        super().__init__(f"instance {instance_id}: history says {expected}, the code now does {actual}")
        self.instance_id = instance_id
        self.expected = expected
        self.actual = actual


class ReadOnlyError(RomancyError):
    code = "read_only"


class WorkflowIOError(RomancyError):
    code = "workflow_io"


class EngineError(RomancyError):
    code = "engine"


class FencedError(EngineError):
    code = "fenced"


class CommitUnknownError(EngineError):
    code = "commit_unknown"


class StuckError(RomancyError):
    """Of `romancy_stream.testing`: where an app would wait for ever. `waits_for` says for what, line by line."""

    code = "stuck"

    def __init__(self, message: str, waits_for: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *waits_for]))
        self.waits_for = list(waits_for)


class BrokenLogError(RomancyError):
    code = "broken_log"


class StoreUnavailableError(RomancyError):
    code = "store_unavailable"


class BrokerUnavailableError(RomancyError):
    code = "broker_unavailable"


class RecordRefusedError(RomancyError):
    code = "record_refused"
