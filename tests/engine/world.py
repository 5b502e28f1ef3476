"""A world for the core without I/O: the test kit's tables, a broker that is a list, workers that answer at once. The
tables hold every commit to what commits must keep. `restart()` is a crash: a new core
is made from what was committed, and what was sent but not yet taken in comes again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from romancy_stream.engine import projection
from romancy_stream.engine.commit import ActivityRow, Commit, OutboxRow, TimerRow
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.inputs import EagerRoom, Input, Received, Unpark
from romancy_stream.retry import RetryPolicy
from romancy_stream.testing.tables import Tables
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode, encode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.partition import partition_for
from romancy_stream.wire.record import Record
from romancy_stream.workflow import Workflow

NAMESPACE = "shop"
START_US = 1_700_000_000_000_000
Answer = Callable[[dict[str, str], list[Any]], Any]
_open: list[World] = []
"""Made since `close_worlds`."""


class World(Tables):
    """`answers`: activity name -> function of (attributes, args) that returns a result or raises."""

    def __init__(
        self,
        *workflows: Workflow[Any, Any],
        answers: Mapping[str, Answer] | None = None,
        partitions: int = 1,
        cached: int = 1_000,
        policy: RetryPolicy | None = None,
        **config: Any,
    ) -> None:
        super().__init__(partitions)
        self.workflows = {each.name: each for each in workflows}
        self.answers: Mapping[str, Answer] = answers or {}
        self.config = CoreConfig(NAMESPACE, partitions, policy or RetryPolicy(), cached, **config)
        self.now_us = START_US
        self.eager: EagerRoom | None = None  # of a worker in the engine's process, which answers nothing
        self.events: list[WireEvent] = []
        self.pending: list[Record] = []
        self.attempts: list[tuple[str, int, int]] = []  # activity id, attempt, when
        self._offsets = itertools.count()
        self.said = itertools.count()  # see `saying`
        self.core = self._new_core()
        _open.append(self)

    # -- life ----------------------------------------------------------------------------------------------------
    def stop(self) -> None:
        """Ends the code of all instances; nothing is lost by it."""
        self.core.drop(self.core.owned)

    def _new_core(self) -> EngineCore:
        core = EngineCore(self.config, self.workflows)
        for start in self.starts():
            core.adopt(start)
        return core

    def restart(self, *workflows: Workflow[Any, Any]) -> None:
        """A new process, with other code where `workflows` are given."""
        self.workflows.update({each.name: each for each in workflows})
        self.stop()
        self.core = self._new_core()
        parked = [row for row in self.instances.values() if row.parked is not None]
        if parked:
            self.step([Unpark(row.part, row.instance_id) for row in parked])

    def part_of(self, instance_id: str) -> int:
        return partition_for(instance_id.encode(), self.config.partitions)

    # -- messages ------------------------------------------------------------------------------------------------
    def record(self, topic: str, part: int, event: WireEvent) -> Record:
        headers, value = encode(event)
        return Record(f"{NAMESPACE}.{topic}", part, next(self._offsets), None, value, headers, 0)

    def start(self, workflow: str, input: Any = None, instance_id: str | None = "i", **extensions: str) -> WireEvent:
        event = WireEvent(
            id=f"start-{next(self._offsets)}",
            source="/test",
            type=w.START,
            subject=instance_id,
            data=orjson.dumps(input),
            time="2026-01-01T00:00:00Z",
            extensions={w.X_WORKFLOW: workflow, **extensions},
        )
        self.send(event, 0 if instance_id is None else self.part_of(instance_id))
        return event

    def send(self, event: WireEvent, part: int = 0, topic: str = "commands") -> None:
        self.pending.append(self.record(topic, part, event))

    def result(self, task: OutboxRow, value: Any = None, error: BaseException | None = None, **changed: str) -> None:
        """A worker's answer to a task."""
        headers = {name.removeprefix("ce_"): text for name, text in task.headers if name.startswith("ce_")}
        extensions = {name: text for name, text in headers.items() if name.startswith("romancy")} | changed
        retryable = error is not None and RetryPolicy().is_retryable(error)
        event = WireEvent(
            id=f"result-{next(self._offsets)}",
            source="/worker",
            type=w.ACTIVITY_COMPLETED if error is None else w.ACTIVITY_FAILED,
            subject=headers["subject"],
            data=self.sealed(value) if error is None else encode_error(error, retryable=retryable),
            time="2026-01-01T00:00:00Z",
            extensions=extensions,
        )
        self.send(event, self.part_of(headers["subject"]), "results")

    def sealed(self, value: Any) -> bytes:
        """As a worker or a client sends it."""
        return self.config.sealing.seal(orjson.dumps(value), "a test's value", self.blobs)

    def opened(self, raw: bytes | None) -> Any:
        return orjson.loads(self.config.sealing.open(raw or b"null", self.blobs))

    # -- running -------------------------------------------------------------------------------------------------
    def run(self, *, restarts: bool = False, until_us: int | None = None, limit: int = 10_000) -> None:
        """Until nothing is left to do, skipping over the time that timers wait. `restarts`: crash before each step."""
        for _ in range(limit):
            if restarts:
                self.restart()
            due_us = self.core.timers.next_due_us()
            if not self.pending and (due_us is None or (until_us is not None and due_us > until_us)):
                return
            if not self.pending and due_us is not None:
                self.now_us = max(self.now_us, due_us)
            self.step()
        raise AssertionError("the world does not come to rest")

    def step(self, inputs: Iterable[Input] = ()) -> Commit:
        records, self.pending = self.pending, []
        inputs = [*inputs, *(Received(record, decode(record)) for record in records)]
        inputs += self.core.timers.due(self.now_us, 1_000)
        loaded = self.prefetch(self.core, inputs)
        closed = self.close(self.core.closings(inputs, self.now_us), self.now_us)
        blobs = {**loaded.blobs, **self.known_blobs(self.core.blobs((), results=closed.values()))}
        self.core.load(replace(loaded, closed=closed, blobs=blobs))
        commit = self.core.handle(inputs, self.now_us, (), self.eager)
        self.apply(commit)
        self.now_us += 1_000
        for row in commit.outbox:
            self._deliver(row)
        return commit

    def _deliver(self, row: OutboxRow) -> None:
        headers = [(name, value.encode()) for name, value in row.headers]
        record = Record(row.topic, row.to_partition or 0, next(self._offsets), row.key.encode(), row.value, headers, 0)
        if ".tasks." in row.topic:
            self._work(row)
        elif row.topic == f"{NAMESPACE}.results":
            self.pending.append(record)
        else:
            event = decode(record)
            assert isinstance(event, WireEvent)
            self.events.append(event)

    def _work(self, row: OutboxRow) -> None:
        headers = {name.removeprefix("ce_"): text for name, text in row.headers}
        self.attempts.append((headers[w.X_ACTIVITY_ID], int(headers[w.X_ATTEMPT]), self.now_us))
        answer = self.answers.get(headers[w.X_ACTIVITY])
        if answer is None:
            return
        try:
            value = answer(headers, self.opened(row.value or b"{}")["args"])
        except Exception as error:
            self.result(row, error=error)
        else:
            self.result(row, value)

    def apply(self, commit: Commit, now_us: int | None = None) -> None:
        super().apply(commit, self.now_us if now_us is None else now_us)

    # -- questions -----------------------------------------------------------------------------------------------
    def kinds(self, instance_id: str = "i") -> list[str]:
        """Of the current run."""
        events = self.run_of(instance_id, self.instances[instance_id].run)
        return [f"{event.kind} {event.ref}" if event.ref else event.kind for event in events]

    def output(self, instance_id: str = "i") -> Any:
        row = self.instances[instance_id]
        assert row.status == "completed", (row.status, row.error, row.parked)
        return self.opened(row.output)

    def error(self, instance_id: str = "i") -> dict[str, Any]:
        row = self.instances[instance_id]
        assert row.status == "failed", row
        described: dict[str, Any] = orjson.loads(row.error or b"{}")
        return described

    def check_projections(self) -> None:
        """What the tables hold is what the log folds to."""
        activities: dict[tuple[str, int, str], ActivityRow] = {}
        timers: dict[tuple[str, int, str], TimerRow] = {}
        for instance_id, run in sorted({(event.instance_id, event.run) for h in self.history.values() for event in h}):
            state = projection.fold(self.run_of(instance_id, run), self.part_of(instance_id))
            if run == self.instances[instance_id].run:
                assert state.row() == self.instances[instance_id]
            for activity in state.changed.values():
                activities[instance_id, state.run, activity.activity_id] = state.activity_row(activity)
            for timer_id in state.timers:
                timers[instance_id, state.run, timer_id] = state.timer_row(timer_id)
        assert activities == self.activities
        assert timers == self.timers


def close_worlds() -> None:
    """After each test, see `tidying`."""
    while _open:
        _open.pop().stop()
