"""The CloudEvent of the hot path and the names on the wire. Values only: this module knows neither Kafka nor
workflows, and everything above may import it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from romancy_stream.wire.value import value


@value
class WireEvent:
    """A CloudEvent 1.0 whose data is JSON text that nobody has parsed yet.

    `data` is None where the event has no data. `extensions` holds every attribute beyond the named ones, as
    the strings that stood on the wire. Identity is (source, id).
    """

    id: str
    source: str
    type: str
    subject: str | None = None
    data: bytes | None = None
    time: str | None = None
    extensions: dict[str, str] = field(default_factory=dict)


# -- types -----------------------------------------------------------------------------------------------------
RESERVED_PREFIX: Final = "romancy."
START: Final = "romancy.workflow.start"
CANCEL: Final = "romancy.workflow.cancel"
SIGNAL: Final = "romancy.workflow.signal"
UPDATE: Final = "romancy.workflow.update"
RETRY: Final = "romancy.workflow.retry"
RESET: Final = "romancy.workflow.reset"
FORK: Final = "romancy.workflow.fork"
DELETE: Final = "romancy.workflow.delete"
CHANNEL_PUBLISH: Final = "romancy.channel.publish"

TASK: Final = "romancy.activity.requested"
ACTIVITY_COMPLETED: Final = "romancy.activity.completed"
ACTIVITY_FAILED: Final = "romancy.activity.failed"

STARTED: Final = "romancy.workflow.started"
COMPLETED: Final = "romancy.workflow.completed"
FAILED: Final = "romancy.workflow.failed"
CANCELLED: Final = "romancy.workflow.cancelled"
REJECTED: Final = "romancy.workflow.rejected"
RECURRED: Final = "romancy.workflow.recurred"
HISTORY_LARGE: Final = "romancy.workflow.history_large"
ANSWERED: Final = "romancy.command.answered"

# From partition to partition, over `results` only.
TO_INSTANCE: Final = "romancy.internal.instance"
TO_ENTITY: Final = "romancy.internal.entity"

DEAD_LETTER: Final = "romancy.record.deadlettered"

# -- extension attributes (CloudEvents allows lower-case letters and digits only) ------------------------------
X_WORKFLOW: Final = "romancyworkflow"
X_INSTANCE: Final = "romancyinstance"
X_RUN: Final = "romancyrun"
X_ACTIVITY: Final = "romancyactivity"
X_ACTIVITY_ID: Final = "romancyactivityid"
X_ATTEMPT: Final = "romancyattempt"
X_IDEMPOTENCY_KEY: Final = "romancyidempotencykey"
X_CONFLICT: Final = "romancyconflict"  # "fail": an existing instance rejects the start
X_ORIGIN: Final = "romancyorigin"  # "{partition}:{position}" of the outbox row that this message is
X_DURATION: Final = "romancyduration"  # of an attempt, whole microseconds
X_TIMEOUT: Final = "romancytimeout"  # of an attempt, seconds as a decimal number
X_RETRY_ON: Final = "romancyretryon"  # error classes of the call's retry policy, "module:Name,module:Name"
X_NO_RETRY_ON: Final = "romancynoretryon"
X_WORKER: Final = "romancyworker"
X_NAME: Final = "romancyname"  # of the signal's or update's handler
X_OP: Final = "romancyop"  # of an internal message: what is to be done
X_REF: Final = "romancyref"  # of an internal message: the wait, subscription, child it is about
X_META: Final = "romancymeta"  # of an internal message: bytes of its JSON of details, at the head of the data
X_ROUTE: Final = "romancyroute"  # of a user event that was handed on: for what
X_CHANNEL: Final = "romancychannel"
X_METADATA: Final = "romancymetadata"  # of a message to a channel: a JSON object
X_SENDER: Final = "romancysender"  # of a message to a channel: the instance that it comes from
X_BEGIN: Final = "romancybegin"  # of a start: not before this time, RFC 3339
X_REUSE: Final = "romancyreuse"  # of a start: what to do with a finished instance of this id
X_PRIORITY: Final = "romancypriority"  # of a task, 1 (first) to 9
X_HEARTBEAT: Final = "romancyheartbeat"  # of an attempt: it is given up after so many seconds without a heartbeat
X_LAPSED: Final = "romancylapsed"  # of a task that comes again: the worker process that is not heard of any more
X_CONTENT_TYPE: Final = "romancycontenttype"  # what the data was before it became a JSON string on arrival
X_CORRELATION: Final = "correlationid"
X_CAUSATION: Final = "causationid"
X_CAUSATION_SOURCE: Final = "causationsource"
X_SEQUENCE: Final = "sequence"
X_PARTITION_KEY: Final = "partitionkey"
X_TRACEPARENT: Final = "traceparent"  # W3C Trace Context, as the CloudEvents extension of that name
X_TRACESTATE: Final = "tracestate"


def whole_number(text: str) -> int | None:
    """Of an attribute that somebody else wrote: ASCII digits, as many as a BIGINT has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


# -- topics ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Topics:
    """The topic names of one namespace."""

    namespace: str

    @property
    def commands(self) -> str:
        return f"{self.namespace}.commands"

    @property
    def results(self) -> str:
        return f"{self.namespace}.results"

    @property
    def events(self) -> str:
        return f"{self.namespace}.events"

    @property
    def dead_letters(self) -> str:
        return f"{self.namespace}.dlq"

    def tasks(self, queue: str) -> str:
        return f"{self.namespace}.tasks.{queue}"
