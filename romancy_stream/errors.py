"""Every error that a user can see, in one tree. The docstring of a class is its meaning; `code` is stable and
goes into JSON, logs and the CLI, so that it can be matched without importing Python.

    RomancyError
    ├── ConfigurationError                 the app is set up wrongly; says what to change
    │   ├── PartitionCountError            topic and database disagree on the number of partitions
    │   ├── LogIdentityError               a topic was made again, or lost its tail
    │   ├── NamespaceError                 the database belongs to another app
    │   └── EmbeddedBrokerInUseError       another process holds the embedded broker
    ├── InvalidInputError                  the input does not fit the workflow's parameters
    ├── UnknownWorkflowError               nobody registered a workflow of that name
    ├── StartRefusedError                  the engine could not take the start; see the dead letters
    ├── InstanceExistsError                on_conflict="fail" and the id is taken
    ├── InstanceNotFoundError              no instance has this id
    ├── InvalidPageTokenError              a page token was not made by this query
    ├── InvalidPathError                   a JSON path of find_instances cannot be read
    ├── PayloadError                       a value cannot become JSON, or JSON cannot become the declared type
    │   └── PayloadTooLargeError
    ├── WorkflowFailedError                what result() raises for a failed instance
    ├── WorkflowCancelledError             what result() raises for a cancelled instance
    ├── ActivityError                      an activity's error whose class is not importable here
    │   ├── RetryExhaustedError
    │   └── ActivityTimeoutError
    ├── TerminalError                      raise it in an activity: never retried
    ├── DuplicateActivityIdError           two activities of one run under one manual id
    ├── ActivityContextError               ctx.session or an activity context where there is none
    ├── NonDeterminismError                replay went another way than history
    ├── WorkflowIOError                    I/O, threads or processes inside workflow code
    ├── EngineError                        the engine stopped; see app.wait_failed()
    │   ├── FencedError                    another owner took the partition over
    │   └── CommitUnknownError             the connection broke during a commit
    ├── BrokenLogError                     the history of an instance cannot be read
    ├── StoreUnavailableError              the database is away; retried
    ├── BrokerUnavailableError             the broker is away; retried
    └── RecordRefusedError                 the broker refuses a record for good
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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


class InstanceExistsError(RomancyError):
    code = "instance_exists"


class InstanceNotFoundError(RomancyError):
    code = "instance_not_found"


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
    error itself when its class can be imported here."""

    code = "workflow_failed"

    def __init__(self, instance_id: str, error_type: str, message: str, stack: str | None = None) -> None:
        super().__init__(f"workflow instance {instance_id} failed: {error_type}: {message}")
        self.instance_id = instance_id
        self.error_type = error_type
        self.message = message
        self.stack = stack


class WorkflowCancelledError(RomancyError):
    code = "workflow_cancelled"

    def __init__(self, instance_id: str, reason: str | None = None) -> None:
        super().__init__(f"workflow instance {instance_id} was cancelled" + (f": {reason}" if reason else ""))
        self.instance_id = instance_id
        self.reason = reason


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
    """One attempt took longer than `timeout=`, or all of them longer than `total_timeout=`."""

    code = "activity_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, error_type="romancy_stream.errors:ActivityTimeoutError")


class TerminalError(RomancyError):
    """Raise it in an activity for what no retry can mend. `TerminalError("why")` or `TerminalError(error)`."""

    code = "terminal"

    def __init__(self, error: str | BaseException = "") -> None:
        super().__init__(str(error))
        if isinstance(error, BaseException):
            self.__cause__ = error


class DuplicateActivityIdError(RomancyError):
    code = "duplicate_activity_id"


class ActivityContextError(RomancyError):
    code = "activity_context"


class NonDeterminismError(RomancyError):
    """`expected` is what history holds, `actual` what the code did instead."""

    code = "non_determinism"

    def __init__(self, instance_id: str, expected: str, actual: str) -> None:
        super().__init__(f"instance {instance_id}: history says {expected}, the code now does {actual}")
        self.instance_id = instance_id
        self.expected = expected
        self.actual = actual


class WorkflowIOError(RomancyError):
    code = "workflow_io"


class EngineError(RomancyError):
    code = "engine"


class FencedError(EngineError):
    code = "fenced"


class CommitUnknownError(EngineError):
    code = "commit_unknown"


class BrokenLogError(RomancyError):
    code = "broken_log"


class StoreUnavailableError(RomancyError):
    code = "store_unavailable"


class BrokerUnavailableError(RomancyError):
    code = "broker_unavailable"


class RecordRefusedError(RomancyError):
    code = "record_refused"
