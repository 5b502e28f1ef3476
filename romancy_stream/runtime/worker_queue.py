"""One queue in the hands of a worker: its membership in the queue's group, how far it has come, and the tasks that it
has fetched and not begun, the most urgent first. It begins nothing by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from romancy_stream.broker.port import TP, AssignedRange, Broker, Record, TaskSource
from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.engine.tasks import Task
from romancy_stream.errors import BrokerUnavailableError
from romancy_stream.queues import QueueOptions
from romancy_stream.runtime.worker_limits import Allowance
from romancy_stream.runtime.worker_offsets import Progress
from romancy_stream.runtime.worker_pace import leave
from romancy_stream.wire.event import Topics
from romancy_stream.wire.value import value

log = logging.getLogger(__name__)

LOOK_AHEAD: Final = 500
"""Tasks of a queue that are fetched before their turn: as far as an urgent one can overtake the others."""
LOOK_AHEAD_BYTES: Final = 32 * 2**20
"""Of their arguments. Nothing more is fetched above it; one fetch may exceed it."""


@value
class Waiting:
    """`progress`: where it was read; None: an engine of this process gave it. `found`: its recorded result. `details`:
    those of an earlier heartbeat."""

    task: Task
    progress: Progress | None
    offset: int
    found: RecordedResult | None = None
    details: bytes | None = None


class TaskQueue:
    """A `TaskHandler`, member of the group `{namespace}.workers.{queue}`. `lost` is told of partitions before somebody
    else gets them."""

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        partitions: int,
        name: str,
        options: QueueOptions,
        lost: Callable[[Sequence[Progress]], Awaitable[None]],
    ) -> None:
        self.name = name
        self.allowance = Allowance(options)
        self.progress: dict[TP, Progress] = {}
        self.space = asyncio.Event()
        self.names: Counter[str] = Counter()  # of the activities of tasks in waiting
        self.wake: asyncio.TimerHandle | None = None  # when its rate allows another start
        self._broker = broker
        self._topics = topics
        self._partitions = partitions
        self._lost = lost
        self._source: TaskSource | None = None
        self._heap: list[tuple[int, int, Waiting]] = []
        self._bytes = 0
        self._fetched = 0  # of those: the others came from an engine of this process

    # -- TaskHandler -------------------------------------------------------------------------------------------------
    async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
        self.progress = {tp: Progress(tp, assigned) for tp, assigned in ranges.items()}

    async def on_revoked(self, partitions: set[TP]) -> None:
        """Attempts under way go on; what they come to is sent, but their offsets are somebody else's now. So is what
        was not begun."""
        lost = [self.progress.pop(tp) for tp in partitions if tp in self.progress]
        self._keep([entry for entry in self._heap if entry[2].progress not in lost])
        await self._lost(lost)
        await self.commit(lost)

    # -- tasks in waiting --------------------------------------------------------------------------------------------
    @property
    def waiting(self) -> int:
        return len(self._heap)

    @property
    def room(self) -> int:
        """For so many more from the broker, where nobody else gets those of our partitions: however many this process
        has for itself."""
        return max(0, LOOK_AHEAD - self._fetched) if self._bytes < LOOK_AHEAD_BYTES else 0

    @property
    def is_shared(self) -> bool:
        """Whether other processes read some of its partitions, or will when a rebalance is over."""
        return len(self.progress) < self._partitions

    @property
    def takes_ahead(self) -> bool:
        """Whether tasks may come from the engine of this process."""
        return not self.allowance.limited and self._bytes < LOOK_AHEAD_BYTES

    def add(self, waiting: Waiting, number: int) -> None:
        """`number` rises from task to task."""
        self._bytes += len(waiting.task.args)
        self._fetched += waiting.progress is not None
        self.names[waiting.task.name] += 1
        heappush(self._heap, (waiting.task.options.priority, number, waiting))

    def first(self) -> tuple[int, int] | None:
        """The place of the task that is next, as far as this queue may begin any. The lower, the sooner."""
        if not self._heap or self.allowance.full:
            return None
        return self._heap[0][:2]

    def take(self) -> Waiting:
        waiting = heappop(self._heap)[2]
        self._bytes -= len(waiting.task.args)
        self._fetched -= waiting.progress is not None
        leave(self.names, waiting.task.name)
        self.space.set()
        return waiting

    def drop(self, identities: Container[tuple[ActivityKey, int]]) -> set[tuple[ActivityKey, int]]:
        """Those of these tasks that were not begun; they are forgotten."""
        dropped = {entry[2].task.identity for entry in self._heap if entry[2].task.identity in identities}
        self._keep([entry for entry in self._heap if entry[2].task.identity not in dropped])
        return dropped

    def clear(self) -> None:
        """What was not begun comes again, here or elsewhere."""
        self._keep([])
        if self.wake is not None:
            self.wake.cancel()

    def _keep(self, entries: list[tuple[int, int, Waiting]]) -> None:
        heapify(entries)
        self._heap = entries
        self._bytes = sum(len(entry[2].task.args) for entry in entries)
        self._fetched = sum(entry[2].progress is not None for entry in entries)
        self.names = Counter(entry[2].task.name for entry in entries)
        self.space.set()

    # -- the source --------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        group = f"{self._topics.namespace}.workers.{self.name}"
        source = self._broker.tasks([self._topics.tasks(self.name)], group, self)
        await source.start()
        self._source = source

    async def close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            try:
                await source.stop()
            except BrokerUnavailableError as error:
                log.warning("queue %r: left without a word: %s", self.name, error)

    async def fetch(self, limit: int) -> list[Record]:
        if self._source is None:
            await self.open()
        assert self._source is not None
        return await self._source.fetch(limit)

    async def commit(self, progresses: Iterable[Progress]) -> None:
        """As far as it can: what is not committed is done again, no more."""
        behind = {each.tp: each.low for each in progresses if each.low > each.committed}
        if not behind or self._source is None:
            return
        try:
            await self._source.commit(behind)
        except BrokerUnavailableError as error:
            log.warning("queue %r: offsets cannot be committed now: %s", self.name, error)
            return
        for tp, low in behind.items():
            if tp in self.progress:
                self.progress[tp].committed = max(self.progress[tp].committed, low)
