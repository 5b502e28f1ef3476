"""What activity workers read and write: a task out of a record, the result of an attempt, the events that it
published. Values in, values out; no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.engine.definitions import Publication
from romancy_stream.engine.messages import channel_entity
from romancy_stream.engine.outgoing import short_id
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire import malformed as m
from romancy_stream.wire.codec import Headers, decode, encode_text, header_bytes, new_event_time, require_sendable
from romancy_stream.wire.dead_letter import dead_letter_event
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.partition import partition_for
from romancy_stream.wire.record import OutRecord, Record
from romancy_stream.wire.value import value

NO_ARGUMENTS: Final = b'{"args":[],"kwargs":{}}'
OPTIONS_CACHE_LIMIT: Final = 256  # distinct options of one app's activities: a handful
_REQUIRED: Final = (w.X_RUN, w.X_ACTIVITY, w.X_ACTIVITY_ID, w.X_ATTEMPT)
_TRACE: Final = (w.X_TRACEPARENT, w.X_TRACESTATE)
_MAX_INT32: Final = 2**31 - 1
PRIORITY: Final = 5
"""Of a task that names none. 1 is first, 9 last."""
_PRIORITIES: Final = frozenset("123456789")


@value
class Task:
    """A request to run one attempt. `policy` says which classes of errors may be retried, nothing else. `lapsed`: the
    worker process that had it before, where that is not heard of any more."""

    key: ActivityKey
    attempt: int
    name: str
    args: bytes
    request_id: str
    request_source: str
    timeout_s: float | None
    policy: RetryPolicy
    workflow: str | None
    trace: dict[str, str]
    heartbeat_timeout_s: float | None = None
    priority: int = PRIORITY
    lapsed: str | None = None

    @property
    def identity(self) -> tuple[ActivityKey, int]:
        return self.key, self.attempt

    @property
    def idempotency_key(self) -> str:
        return f"{self.key.instance_id}/{self.key.run}/{self.key.activity_id}"

    def __str__(self) -> str:
        return f"{self.idempotency_key}, attempt {self.attempt} of {self.name!r}"


def read_task(record: Record) -> Task | Malformed:
    event = decode(record)
    if isinstance(event, Malformed):
        return event
    problem = _problem(event)
    if problem is not None:
        return Malformed(m.BAD_ATTRIBUTE, problem).of(event.source, event.id)
    return task_of(event)


def task_of(event: WireEvent) -> Task:
    """Of an event that the engine of this process made, or that was checked."""
    extensions = event.extensions
    options = _options(*map(extensions.get, _OPTIONS))
    assert event.subject is not None
    return Task(
        key=ActivityKey(event.subject, int(extensions[w.X_RUN]), extensions[w.X_ACTIVITY_ID]),
        attempt=int(extensions[w.X_ATTEMPT]),
        name=extensions[w.X_ACTIVITY],
        args=NO_ARGUMENTS if event.data is None else event.data,
        request_id=event.id,
        request_source=event.source,
        timeout_s=options.timeout_s,
        policy=options.policy,
        workflow=extensions.get(w.X_WORKFLOW),
        trace={name: extensions[name] for name in _TRACE if name in extensions},
        heartbeat_timeout_s=options.heartbeat_timeout_s,
        priority=options.priority,
        lapsed=extensions.get(w.X_LAPSED),
    )


def _problem(event: WireEvent) -> str | None:
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


class _Options(NamedTuple):
    timeout_s: float | None
    heartbeat_timeout_s: float | None
    priority: int
    policy: RetryPolicy


_OPTIONS: Final = (w.X_TIMEOUT, w.X_HEARTBEAT, w.X_PRIORITY, w.X_RETRY_ON, w.X_NO_RETRY_ON)


@lru_cache(maxsize=OPTIONS_CACHE_LIMIT)
def _options(
    timeout: str | None, heartbeat: str | None, priority: str | None, retry_on: str | None, do_not_retry_on: str | None
) -> _Options:
    """The engine names classes only where the call's policy restricts them. ValueError says what is wrong."""
    if priority is not None and priority not in _PRIORITIES:
        raise ValueError(f"{w.X_PRIORITY} must be 1 to 9")
    try:
        return _Options(
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


@value
class Message:
    """A record to send, its headers still text, as it waits in an outbox row."""

    topic: str
    key: str
    headers: Headers
    value: bytes | None
    partition: int | None

    @property
    def id(self) -> str | None:
        return next((text for name, text in self.headers if name == "ce_id"), None)

    def record(self) -> OutRecord:
        return OutRecord(self.topic, self.key.encode(), self.value, header_bytes(self.headers), self.partition)


class Messages:
    """Makes the messages of one worker."""

    def __init__(self, namespace: str, partitions: int, worker_id: str, incarnation: str) -> None:
        self.topics = Topics(namespace)
        self.partitions = partitions
        self.worker_id = worker_id
        self.incarnation = incarnation
        self._source = f"/romancy/{namespace}"
        self._results = self.topics.results
        self._reports = 0

    def part_of(self, instance_id: str) -> int:
        return partition_for(instance_id.encode(), self.partitions)

    # -- results -------------------------------------------------------------------------------------------------
    def completed(self, task: Task, result: bytes, duration_us: int, now_us: int) -> WireEvent:
        """Of an attempt that left nothing in the database: another one may say something else, so each has an id of
        its own."""
        id_ = self._report_id(task)
        return self._result(w.ACTIVITY_COMPLETED, task, id_, result, task.attempt, duration_us, now_us)

    def failed(self, task: Task, error: bytes, duration_us: int, now_us: int) -> WireEvent:
        id_ = self._report_id(task)
        return self._result(w.ACTIVITY_FAILED, task, id_, error, task.attempt, duration_us, now_us)

    def recorded(self, task: Task, recorded: RecordedResult, duration_us: int | None) -> WireEvent:
        """Of the one result that activity_results holds: whoever sends it, it is the same event."""
        return self._result(
            w.ACTIVITY_COMPLETED,
            task,
            f"{task.idempotency_key}/result",
            recorded.result,
            recorded.attempt,
            duration_us,
            recorded.at_us,
            recorded.worker,
        )

    def _report_id(self, task: Task) -> str:
        self._reports += 1
        return f"{task.idempotency_key}/{task.attempt}/{self.incarnation}/{self._reports}"

    def _result(
        self,
        type_: str,
        task: Task,
        id_: str,
        data: bytes | None,
        attempt: int,
        duration_us: int | None,
        at_us: int,
        worker_id: str | None = None,
    ) -> WireEvent:
        instance_id = task.key.instance_id
        extensions = {
            w.X_PARTITION_KEY: instance_id,
            w.X_RUN: str(task.key.run),
            w.X_ACTIVITY: task.name,
            w.X_ACTIVITY_ID: task.key.activity_id,
            w.X_ATTEMPT: str(attempt),
            w.X_IDEMPOTENCY_KEY: task.idempotency_key,
            w.X_WORKER: worker_id or self.worker_id,
            w.X_CORRELATION: task.request_id,
            **task.trace,
        }
        if duration_us is not None:
            extensions[w.X_DURATION] = str(duration_us)
        return WireEvent(id_, self._source, type_, instance_id, data, new_event_time(at_us), extensions)

    def to_engine(self, result: WireEvent) -> Message:
        """The message for whoever owns the instance's partition."""
        assert result.subject is not None
        headers, value = encode_text(result)
        return Message(self._results, result.subject, headers, value, self.part_of(result.subject))

    # -- events --------------------------------------------------------------------------------------------------
    def published(self, task: Task, n: int, publication: Publication, now_us: int) -> Message:
        """The n-th event (from 1) that the attempt publishes. In another attempt the n-th has the same id. Raises
        PayloadTooLargeError or PayloadError for what readers would refuse."""
        instance_id = task.key.instance_id
        key, topic, about = instance_id, publication.topic or self.topics.events, {w.X_INSTANCE: instance_id}
        if publication.channel is not None:
            key, topic = channel_entity(publication.channel), self.topics.commands
            about = {w.X_CHANNEL: publication.channel, w.X_SENDER: instance_id}
            if publication.metadata is not None:
                about[w.X_METADATA] = publication.metadata
        event = WireEvent(
            id=short_id(f"{task.idempotency_key}/{n}"),
            source=publication.source or self._source,
            type=publication.type,
            subject=publication.subject,
            data=publication.data,
            time=new_event_time(now_us),
            extensions={
                w.X_PARTITION_KEY: key,
                **about,
                w.X_CAUSATION: task.request_id,
                w.X_CAUSATION_SOURCE: task.request_source,
                **task.trace,
            },
        )
        require_sendable(event)
        headers, value = encode_text(event)
        return Message(topic, key, headers, value, None)

    # -- what cannot be read -------------------------------------------------------------------------------------
    def dead_letter(self, record: Record, problem: Malformed, now_us: int) -> Message:
        """The record, as the engine tells of its own."""
        told = dead_letter_event(
            self._source, record, problem.reason, problem.message, now_us, problem.event_source, problem.event_id
        )
        headers, value = encode_text(told)
        return Message(self.topics.dead_letters, told.id, headers, value, None)


def records(messages: Sequence[Message]) -> list[OutRecord]:
    return [message.record() for message in messages]
