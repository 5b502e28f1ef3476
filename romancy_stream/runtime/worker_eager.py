"""The worker in the hands of an engine of the same process: tasks come without the broker, and results go back without
it while the engine owns their partition. Of what it is given nothing is lost: history names this process, so that
whoever owns the partition next dispatches it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from romancy_stream.engine.commit import ActivityKey, EagerTask
from romancy_stream.runtime.worker_messages import Task, task_of
from romancy_stream.runtime.worker_queue import Waiting
from romancy_stream.wire.event import WireEvent

if TYPE_CHECKING:
    from romancy_stream.runtime.worker import ActivityWorker

RECENT_S: Final = 0.1
"""A worker takes as many tasks ahead as it has ended in this time: short ones do not wait for a free slot to be seen,
long ones go to whichever worker is free."""
RECENT_LIMIT: Final = 1_000
"""Of them: what a crash would have dispatched again."""
ALONE_LIMIT: Final = 10_000
"""Tasks that a worker takes ahead where no other process could have them. Some 20 MB."""


class Engine(Protocol):
    """Who gets the results."""

    def take_result(self, part: int, result: WireEvent) -> bool: ...


class Eager:
    """A `local_results.LocalWorker`. `alone`: no other process can have a worker."""

    def __init__(self, worker: ActivityWorker, now_s: Callable[[], float], alone: bool) -> None:
        self.engine: Engine | None = None
        self._worker = worker
        self._alone = alone
        self._now_s = now_s
        self._tasks: set[tuple[ActivityKey, int]] = set()
        self._ends: deque[float] = deque(maxlen=RECENT_LIMIT)

    @property
    def incarnation(self) -> str:
        return self._worker.incarnation

    def room(self) -> dict[str, int]:
        worker = self._worker
        if self._alone:
            ahead = worker.free + ALONE_LIMIT
        else:
            since_s = self._now_s() - RECENT_S
            while self._ends and self._ends[0] < since_s:
                self._ends.popleft()
            ahead = worker.free + len(self._ends)
        return {queue.name: max(0, ahead) for queue in worker.queues if queue.takes_ahead}

    def run(self, tasks: Sequence[EagerTask]) -> None:
        for each in tasks:
            task = task_of(each.event)
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
    def report(self, task: Task, result: WireEvent) -> bool:
        """Whether the engine of this process has the result."""
        if task.identity not in self._tasks or self.engine is None:
            return False
        return self.engine.take_result(self._worker.part_of(task.key.instance_id), result)

    def ended(self, task: Task) -> None:
        if task.identity in self._tasks:
            self._tasks.discard(task.identity)
            self._ends.append(self._now_s())

    def send(self, results: Sequence[WireEvent]) -> None:
        """To whoever owns their partitions now."""
        if results:
            self._worker.send_results(results)
