"""What activity workers read and write: a task out of a record, the report of an attempt, the events that it
published. Values in, values out; no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from romancy_stream.engine.commit import RecordedResult
from romancy_stream.engine.definitions import Publication
from romancy_stream.engine.messages import channel_entity
from romancy_stream.engine.outgoing import short_id
from romancy_stream.engine.tasks import Report, Task, problem_of_task, report_event, task_of
from romancy_stream.wire import event as w
from romancy_stream.wire import malformed as m
from romancy_stream.wire.codec import Headers, decode, encode_text, header_bytes, new_event_time, require_sendable
from romancy_stream.wire.dead_letter import dead_letter_event
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.partition import partition_for
from romancy_stream.wire.record import OutRecord, Record
from romancy_stream.wire.value import value


def read_task(record: Record) -> Task | Malformed:
    event = decode(record)
    if isinstance(event, Malformed):
        return event
    problem = problem_of_task(event)
    if problem is not None:
        return Malformed(m.BAD_ATTRIBUTE, problem).of(event.source, event.id)
    return task_of(event)


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

    # -- reports -------------------------------------------------------------------------------------------------
    def completed(self, task: Task, result: bytes, duration_us: int, now_us: int) -> Report:
        """Of an attempt that left nothing in the database: another one may say something else, so each has an id of
        its own."""
        return self._report(w.ACTIVITY_COMPLETED, task, result, duration_us, now_us)

    def failed(self, task: Task, error: bytes, duration_us: int, now_us: int) -> Report:
        return self._report(w.ACTIVITY_FAILED, task, error, duration_us, now_us)

    def _report(self, type_: str, task: Task, data: bytes, duration_us: int, now_us: int) -> Report:
        self._reports += 1
        return Report(task.key, task.attempt, type_, data, self.worker_id, duration_us, now_us, self._reports, task)

    def recorded(self, task: Task, recorded: RecordedResult, duration_us: int | None) -> Report:
        """Of the one result that activity_results holds: whoever sends it, it is the same event."""
        worker, at_us = recorded.worker or self.worker_id, recorded.at_us
        attempt, data = recorded.attempt, recorded.result
        return Report(task.key, attempt, w.ACTIVITY_COMPLETED, data, worker, duration_us, at_us, None, task)

    def to_engine(self, report: Report) -> Message:
        """The message for whoever owns the instance's partition."""
        instance_id = report.key.instance_id
        headers, value = encode_text(report_event(report, self._source, self.incarnation))
        return Message(self._results, instance_id, headers, value, self.part_of(instance_id))

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
