"""The worker in the hands of an engine of the same process: tasks come without the broker, and results go back without
it while the engine owns their partition. Of what it is given nothing is lost: history names this process, so that
whoever owns the partition next dispatches it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from romancy_stream.engine.commit import ActivityKey, EagerTask
from romancy_stream.engine.inputs import EagerRoom
from romancy_stream.engine.tasks import Report, Task

if TYPE_CHECKING:
    from romancy_stream.runtime.worker import ActivityWorker

AHEAD_S: Final = 0.25
"""Tasks are taken ahead as long as each would begin within this time, by how long the activities took lately: short
ones do not wait for a free slot to be seen, long ones go to whichever worker is free."""
AHEAD_LIMIT: Final = 2_000
"""Of them: what a crash would have dispatched again."""
UNSHARED_S: Final = 2.0
"""As AHEAD_S, while no other process reads the queues: one that joins needs longer than that to get its share."""
ALONE_LIMIT: Final = 10_000
"""Tasks that a worker takes ahead where no other process has any, or could have. Some 20 MB."""


class Engine(Protocol):
    """Who gets the reports."""

    def take_report(self, part: int, report: Report) -> bool: ...


class Eager:
    """A `local_results.LocalWorker`. `alone`: no other process can have a worker."""

    def __init__(self, worker: ActivityWorker, alone: bool) -> None:
        self.engine: Engine | None = None
        self._worker = worker
        self._alone = alone
        self._tasks: set[tuple[ActivityKey, int]] = set()

    @property
    def incarnation(self) -> str:
        return self._worker.incarnation

    def room(self) -> EagerRoom:
        worker, free = self._worker, self._worker.free
        queues = {queue.name for queue in worker.queues if queue.takes_ahead}
        if self._alone:
            return EagerRoom(self.incarnation, queues, free + ALONE_LIMIT)
        shared = any(queue.is_shared for queue in worker.queues)
        within_s, limit = (AHEAD_S, AHEAD_LIMIT) if shared else (UNSHARED_S, ALONE_LIMIT)
        spare_s = worker.pace.spare_s(within_s, [queue.names for queue in worker.queues])
        return EagerRoom(self.incarnation, queues, free, min(limit, free + limit), spare_s, worker.pace.expected_s)

    def run(self, tasks: Sequence[EagerTask]) -> None:
        self._tasks.update(each.task.identity for each in tasks)
        self._worker.take_ahead(tasks)

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
    def report(self, task: Task, report: Report) -> bool:
        """Whether the engine of this process has it."""
        if self.engine is None or task.identity not in self._tasks:
            return False
        return self.engine.take_report(self._worker.part_of(task.key.instance_id), report)

    def ended(self, task: Task) -> None:
        if self._tasks:
            self._tasks.discard(task.identity)

    def send(self, reports: Sequence[Report]) -> None:
        """To whoever owns their partitions now."""
        if reports:
            self._worker.send_reports(reports)
