"""The shell of an engine that has no broker and no database: messages in a list, rows in dicts, a clock that is set. It
feeds the core one batch after the other and says what came out. Crashes and disorder are made here, where messages
wait. The only thing that it may wait for is the claim on an activity that the core gives up on.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from romancy_stream.engine.commit import ActivityKey, Commit, OutboxRow, RecordedResult
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.definitions import Registry
from romancy_stream.engine.inputs import Input, Received
from romancy_stream.testing.tables import Tables
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.partition import partition_for
from romancy_stream.wire.record import OutRecord, Record

TIMERS_PER_STEP: Final = 1_000
DOUBLED: Final = 0.2
"""How many of all messages come twice in disorder."""

Closer = Callable[[Sequence[ActivityKey], int], Awaitable[dict[ActivityKey, RecordedResult]]]


class Shell:
    """`crashes`: every live instance is dropped before each step, and replayed when something happens to it.
    `disorder`: chooses which messages come next and which come twice, within what a broker may do. `closer` claims
    activities; `on_commit` and `on_row` hear what a commit held."""

    def __init__(
        self,
        config: CoreConfig,
        workflows: Registry,
        *,
        now_us: int,
        closer: Closer,
        on_commit: Callable[[Commit], None],
        on_row: Callable[[OutboxRow], None],
        crashes: bool = False,
        disorder: Random | None = None,
    ) -> None:
        self.config = config
        self.tables = Tables(config.partitions)
        self.now_us = now_us
        self.crashes = crashes
        self.steps = 0
        self._workflows = workflows
        self._closer = closer
        self._on_commit = on_commit
        self._on_row = on_row
        self._disorder = disorder
        self._topics = w.Topics(config.namespace)
        self._pending: list[Record] = []
        self._lanes: dict[int, object] = {}  # offset of a pending record -> what it keeps its place among
        self._offsets = itertools.count()
        self.core = self._new_core()

    # -- life ----------------------------------------------------------------------------------------------------
    def _new_core(self) -> EngineCore:
        core = EngineCore(self.config, self._workflows)
        for start in self.tables.starts():
            core.adopt(start)
        return core

    def restart(self) -> None:
        """A crash: whatever was in memory is gone, what was committed is there."""
        self.close()
        self.core = self._new_core()

    def close(self) -> None:
        self.core.drop(self.core.owned)

    # -- messages ------------------------------------------------------------------------------------------------
    def send(self, out: OutRecord, lane: object = None) -> int:
        """Returns the offset. Messages of one lane keep their order, also in disorder; None: it is bound to none."""
        partition = out.partition
        if partition is None:
            partition = partition_for(out.key, self.config.partitions)
        record = Record(out.topic, partition, next(self._offsets), out.key, out.value, out.headers, 0)
        self._put(record, _ALONE if lane is None else (lane, partition))
        return record.offset

    def _put(self, record: Record, lane: object) -> None:
        if record.topic in (self._topics.commands, self._topics.results):
            self._pending.append(record)
            self._lanes[record.offset] = lane

    @property
    def has_work(self) -> bool:
        due_us = self.core.timers.next_due_us()
        return bool(self._pending) or (due_us is not None and due_us <= self.now_us)

    def _take(self) -> list[Record]:
        if self._disorder is None or not self._pending:
            taken, self._pending = self._pending, []
        else:
            taken = self._some(self._disorder)
        lanes = [self._lanes.pop(record.offset) for record in taken]
        if self._disorder is not None:
            for record, lane in zip(taken, lanes, strict=True):
                if lane is not _TWICE and self._disorder.random() < DOUBLED:
                    self._put(replace(record, offset=next(self._offsets)), _TWICE)
        return taken

    def _some(self, chance: Random) -> list[Record]:
        """The first few of one lane."""
        lanes: dict[object, list[Record]] = defaultdict(list)
        for record in self._pending:
            lane = self._lanes[record.offset]
            lanes[record.offset if lane in (_ALONE, _TWICE) else lane].append(record)
        lane = chance.choice(list(lanes.values()))
        taken = lane[: chance.randint(1, len(lane))]
        gone = {record.offset for record in taken}
        self._pending = [record for record in self._pending if record.offset not in gone]
        return taken

    # -- a step --------------------------------------------------------------------------------------------------
    async def step(self) -> None:
        if self.crashes:
            self.restart()
        self.steps += 1
        core, now_us = self.core, self.now_us
        inputs: list[Input] = [Received(record, decode(record)) for record in self._take()]
        inputs += core.timers.due(now_us, TIMERS_PER_STEP)
        inputs += self.tables.expired(now_us)
        loaded = self.tables.prefetch(core, inputs)
        if keys := core.closings(inputs, now_us):
            closed = await self._closer(keys, now_us)
            blobs = {**loaded.blobs, **self.tables.known_blobs(core.blobs((), results=closed.values()))}
            core.load(replace(loaded, closed=closed, blobs=blobs))
        commit = core.handle(inputs, now_us)
        if commit.closed:
            await self._closer(commit.closed, now_us)
        self.tables.apply(commit, now_us)
        self._on_commit(commit)
        for row in commit.outbox:
            self._on_row(row)


_ALONE: Final = "alone"
_TWICE: Final = "twice"
"""Lanes of messages that keep no order among themselves; those of the second come for the second time."""
