"""The `Broker` port: a partitioned, durable, ordered log. Kafka and the embedded log implement it; one test
suite runs over both. It knows records and offsets, never workflows.

Delivery to the engine is by whole per-partition batches with positions that the handler owns (they live in the
database, in the same transaction as what the batch did). Everything here runs in one asyncio event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from romancy_stream.errors import BrokerUnavailableError, RecordRefusedError
from romancy_stream.wire.record import TP, OutRecord, Record

__all__ = [
    "TP",
    "AssignedRange",
    "BatchHandler",
    "BatchSource",
    "Broker",
    "OnGap",
    "OnRecords",
    "OutRecord",
    "Record",
    "Tail",
    "TaskHandler",
    "TaskSource",
    "TopicInfo",
    "TopicSpec",
    "acknowledged",
    "nobody_asked",
]


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What the manifest wants of a topic."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What the broker has. `topic_id` changes when a topic is deleted and made again."""

    name: str
    partitions: int
    topic_id: str


class BatchHandler(Protocol):
    """Calls never overlap: a running `on_batch` ends before `on_revoked` begins. An exception is fatal to the
    source: `BatchSource.run` raises it."""

    async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        """The next offset to deliver, for each of `partitions`: the whole assignment, not a difference."""
        ...

    async def on_batch(self, batch: Mapping[TP, Sequence[Record]]) -> None:
        """Returning means: done, go on behind the last record of each."""
        ...

    async def on_revoked(self, partitions: set[TP]) -> None: ...


class BatchSource(Protocol):
    """Membership in a group whose members share co-partitioned topics: partition n of each goes to one member."""

    async def run(self) -> None:
        """Until `stop`; raises what went wrong."""
        ...

    async def stop(self) -> None: ...

    def hold(self, *tps: TP) -> None:
        """Backpressure: deliver no more of these (outlives a rebalance that leaves them here)."""
        ...

    def release(self, *tps: TP) -> None: ...

    async def rewind(self, tp: TP, offset: int) -> None:
        """Deliver from `offset` again."""
        ...

    async def commit_hint(self, offsets: Mapping[TP, int]) -> None:
        """Tell lag tools how far we are; never the truth. BrokerUnavailableError where they may not have heard it."""
        ...

    async def confirm_membership(self) -> bool:
        """Asks the group coordinator: is this member's generation still the current one?"""
        ...


@dataclass(frozen=True, slots=True)
class AssignedRange:
    """A partition of a task queue as it was handed over: [committed, end) may have been worked on before."""

    committed: int
    end: int


class TaskHandler(Protocol):
    async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None: ...
    async def on_revoked(self, partitions: set[TP]) -> None: ...


class TaskSource(Protocol):
    """A competing consumer with committed offsets in the broker."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def fetch(self, limit: int) -> list[Record]:
        """Waits for at least one record. Heartbeats go on while nobody fetches."""
        ...

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        """Next offsets to read. Partitions that are no longer ours are left out silently."""
        ...


class Tail(Protocol):
    """Reads topics without a group, from their ends at the time of `start`; goes on by itself after an outage. What
    `on_records` raises ends it, and comes out of `stop`."""

    async def start(self) -> None:
        """Returns when every record appended from now on will be seen."""
        ...

    async def stop(self) -> None: ...


OnRecords = Callable[[Sequence[Record]], Awaitable[None]]

OnGap = Callable[[BaseException | None], None]
"""Records may have been passed by: the log was cut, was made again or may have lost its end, or holds what cannot be
read. Called when everything that is appended from now on will be seen again; with an error when nothing will, as the
tail has ended without having been stopped. That is called once, and last. More calls than gaps do no harm."""


def nobody_asked(_: BaseException | None) -> None:
    """For tails whose gaps concern nobody."""


class Broker(Protocol):
    @property
    def is_shared(self) -> bool:
        """Whether other processes may use it at the same time."""
        ...

    async def open(self) -> None:
        """Raises BrokerUnavailableError when nobody answers within the connect limit."""
        ...

    async def close(self) -> None: ...

    async def topics(self) -> Mapping[str, TopicInfo]: ...

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Creates what is missing, safe among concurrent starters; returns the names it made. Never alters."""
        ...

    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        """Appends in order and returns futures of their offsets, waiting only for buffer space.

        Records for one partition keep their order. A future fails with RecordRefusedError when the broker will
        never take that record (too large, no such topic, not allowed), with BrokerUnavailableError when it was
        not acknowledged within the delivery limit (it may still arrive).
        """
        ...

    def batches(self, topics: Sequence[str], group: str, handler: BatchHandler) -> BatchSource: ...
    def tasks(self, topics: Sequence[str], group: str, handler: TaskHandler) -> TaskSource: ...
    def tail(self, topics: Sequence[str], on_records: OnRecords, on_gap: OnGap = nobody_asked) -> Tail: ...


async def acknowledged(sent: Sequence[asyncio.Future[int]]) -> list[RecordRefusedError | BrokerUnavailableError | None]:
    """Waits until the broker has answered for all; None where it has the record. One after another: most are answered
    for together, and a future that is done costs no turn of the loop. When the caller is cancelled they are too, as
    nobody is left to hear."""
    answers: list[RecordRefusedError | BrokerUnavailableError | None] = []
    try:
        for each in sent:
            try:
                await each
            except (RecordRefusedError, BrokerUnavailableError) as error:
                answers.append(error)
            else:
                answers.append(None)
    except asyncio.CancelledError:
        for each in sent:
            each.cancel()
        raise
    return answers
