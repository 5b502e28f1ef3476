"""The worker in the hands of an engine of the same process: tasks come without the broker, and results go back without
it while the engine owns their partition. Of what it is given nothing is lost: history names this process, so that
whoever owns the partition next dispatches it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from romancy_stream.broker.port import Record
from romancy_stream.engine.commit import ActivityKey, EagerTask
from romancy_stream.engine.inputs import Received
from romancy_stream.runtime.worker_messages import Message, Task, read_task
from romancy_stream.runtime.worker_queue import Waiting
from romancy_stream.wire.codec import Headers, header_bytes
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import Malformed

if TYPE_CHECKING:
    from romancy_stream.runtime.worker import ActivityWorker

RECENT_S: Final = 0.1
"""A worker takes as many tasks ahead as it has ended in this time: short ones do not wait for a free slot to be seen,
long ones go to whichever worker is free."""
AHEAD_LIMIT: Final = 1_000
"""Of them: what a crash would have dispatched again."""


class Engine(Protocol):
    """Who gets the results."""

    def take_result(self, part: int, headers: Headers, value: bytes | None) -> bool: ...


class Eager:
    """A `processor.LocalWorker`."""

    def __init__(self, worker: ActivityWorker, now_s: Callable[[], float]) -> None:
        self.engine: Engine | None = None
        self._worker = worker
        self._now_s = now_s
        self._tasks: set[tuple[ActivityKey, int]] = set()
        self._ends: deque[float] = deque(maxlen=AHEAD_LIMIT)

    @property
    def incarnation(self) -> str:
        return self._worker.incarnation

    def room(self) -> dict[str, int]:
        worker = self._worker
        since_s = self._now_s() - RECENT_S
        while self._ends and self._ends[0] < since_s:
            self._ends.popleft()
        ahead = max(0, worker.free + len(self._ends))
        return {queue.name: ahead for queue in worker.queues if not queue.allowance.limited}

    def run(self, tasks: Sequence[EagerTask]) -> None:
        for each in tasks:
            headers = header_bytes(each.headers)
            task = read_task(Record(each.queue, each.part, 0, None, each.value, headers, 0))
            assert not isinstance(task, Malformed), task
            self._tasks.add(task.identity)
            self._worker.take_ahead(each.queue, Waiting(task, None, 0))

    def is_running(self, key: ActivityKey, attempt: int) -> bool:
        return (key, attempt) in self._tasks

    async def leave(self, parts: frozenset[int]) -> None:
        """Partitions go to somebody else: what is under way stays ours, what was not begun is dispatched again."""
        part_of = self._worker.part_of
        lost = {identity for identity in self._tasks if part_of(identity[0].instance_id) in parts}
        if lost:
            self._tasks -= self._worker.drop_waiting(lost)
            await self._worker.keep(lost)

    # -- for the worker ------------------------------------------------------------------------------------------
    def report(self, task: Task, result: Message) -> bool:
        """Whether the engine of this process has the result."""
        if task.identity not in self._tasks or self.engine is None:
            return False
        return self.engine.take_result(self._worker.part_of(task.key.instance_id), result.headers, result.value)

    def ended(self, task: Task) -> None:
        if task.identity in self._tasks:
            self._tasks.discard(task.identity)
            self._ends.append(self._now_s())

    def send(self, results: Sequence[Received]) -> None:
        """To whoever owns their partitions now."""
        messages = []
        for record, event in ((each.record, each.event) for each in results):
            assert isinstance(event, WireEvent)
            headers = tuple((name, value.decode()) for name, value in record.headers if value is not None)
            messages.append(Message(record.topic, event.subject or "", headers, record.value, record.partition))
        if messages:
            self._worker.send_results(messages)
