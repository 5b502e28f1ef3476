"""Durable workflows on an event log.

Definitions are imported here and now, and cheaply: no database, broker or pydantic is loaded for them. (Nor could
they come later: `workflow` and `activity` are modules too, and whoever is bound last has the name.)
"""

from typing import TYPE_CHECKING, Any

from romancy_stream.activity import Activity, ActivityContext, ActivityInfo, activity, activity_context
from romancy_stream.child import ChildHandle
from romancy_stream.context import WorkflowContext
from romancy_stream.errors import (
    ActivityCancelledError,
    ActivityContextError,
    ActivityError,
    ActivityTimeoutError,
    BrokerUnavailableError,
    ChannelFullError,
    ChannelModeConflictError,
    ChildCancelledError,
    ChildWorkflowError,
    CommandRefusedError,
    CommitUnknownError,
    ConfigurationError,
    DuplicateActivityIdError,
    EmbeddedBrokerInUseError,
    EngineError,
    EventTimeoutError,
    FencedError,
    HistoryTooLongError,
    InstanceExistsError,
    InstanceFinishedError,
    InstanceNotCancellableError,
    InstanceNotFoundError,
    InstanceParkedError,
    InvalidInputError,
    InvalidPageTokenError,
    InvalidPathError,
    InvalidResetPointError,
    LogIdentityError,
    MessageTimeoutError,
    NamespaceError,
    NonDeterminismError,
    NotDeletableError,
    NotRetryableError,
    NotSubscribedError,
    PartitionCountError,
    PayloadError,
    PayloadTooLargeError,
    ReadOnlyError,
    RecordRefusedError,
    RetryExhaustedError,
    RetryLaterError,
    RomancyError,
    StartRefusedError,
    StoreUnavailableError,
    TerminalError,
    UnknownHandlerError,
    UnknownWorkflowError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowIOError,
)
from romancy_stream.events import EventType, ReceivedEvent
from romancy_stream.interaction import Query, Signal, Update, query, signal, update
from romancy_stream.listening import Happening, Listener
from romancy_stream.messaging import ReceivedMessage
from romancy_stream.queues import Concurrency, RateLimit
from romancy_stream.registry import Registry
from romancy_stream.retry import RetryPolicy
from romancy_stream.workflow import Workflow, WorkflowHandle, workflow

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.client import Client
    from romancy_stream.handle import Handle
    from romancy_stream.instances import DeadLetter, HistoryEntry, Page, WorkflowInstance
    from romancy_stream.operating import BulkResult
    from romancy_stream.payloads import BlobStore, Encryption, PayloadCodec, Payloads
    from romancy_stream.runtime.statistics import Stats
    from romancy_stream.schedule import ScheduleInfo

__all__ = [
    "Activity",
    "ActivityCancelledError",
    "ActivityContext",
    "ActivityContextError",
    "ActivityError",
    "ActivityInfo",
    "ActivityTimeoutError",
    "App",
    "BlobStore",
    "BrokerUnavailableError",
    "BulkResult",
    "ChannelFullError",
    "ChannelModeConflictError",
    "ChildCancelledError",
    "ChildHandle",
    "ChildWorkflowError",
    "Client",
    "CommandRefusedError",
    "CommitUnknownError",
    "Concurrency",
    "ConfigurationError",
    "DeadLetter",
    "DuplicateActivityIdError",
    "EmbeddedBrokerInUseError",
    "Encryption",
    "EngineError",
    "EventTimeoutError",
    "EventType",
    "FencedError",
    "Handle",
    "Happening",
    "HistoryEntry",
    "HistoryTooLongError",
    "InstanceExistsError",
    "InstanceFinishedError",
    "InstanceNotCancellableError",
    "InstanceNotFoundError",
    "InstanceParkedError",
    "InvalidInputError",
    "InvalidPageTokenError",
    "InvalidPathError",
    "InvalidResetPointError",
    "Listener",
    "LogIdentityError",
    "MessageTimeoutError",
    "NamespaceError",
    "NonDeterminismError",
    "NotDeletableError",
    "NotRetryableError",
    "NotSubscribedError",
    "Page",
    "PartitionCountError",
    "PayloadCodec",
    "PayloadError",
    "PayloadTooLargeError",
    "Payloads",
    "Query",
    "RateLimit",
    "ReadOnlyError",
    "ReceivedEvent",
    "ReceivedMessage",
    "RecordRefusedError",
    "Registry",
    "RetryExhaustedError",
    "RetryLaterError",
    "RetryPolicy",
    "RomancyError",
    "ScheduleInfo",
    "Signal",
    "StartRefusedError",
    "Stats",
    "StoreUnavailableError",
    "TerminalError",
    "UnknownHandlerError",
    "UnknownWorkflowError",
    "Update",
    "UpdateFailedError",
    "UpdateRejectedError",
    "Workflow",
    "WorkflowCancelledError",
    "WorkflowContext",
    "WorkflowFailedError",
    "WorkflowHandle",
    "WorkflowIOError",
    "WorkflowInstance",
    "activity",
    "activity_context",
    "query",
    "signal",
    "update",
    "workflow",
]

_LATER = {
    "App": "app",
    "BulkResult": "operating",
    "BlobStore": "payloads",
    "Client": "client",
    "DeadLetter": "instances",
    "Encryption": "payloads",
    "Handle": "handle",
    "HistoryEntry": "instances",
    "Page": "instances",
    "PayloadCodec": "payloads",
    "Payloads": "payloads",
    "ScheduleInfo": "schedule",
    "Stats": "runtime.statistics",
    "WorkflowInstance": "instances",
}


def __getattr__(name: str) -> Any:
    """What needs a database or a broker is loaded when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return value
