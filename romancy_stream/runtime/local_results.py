"""The worker in the engine's own process: what the processor asks of it, and its results, which never leave it. They
wait here for a batch, as records of `results` would wait in the broker. Values in memory; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeGuard

from romancy_stream.engine.commit import ActivityKey, EagerTask
from romancy_stream.engine.inputs import EagerRoom, Input, Received
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import Record

LOCAL_OFFSET: Final = -1
"""Of a result that came without the broker: it moves no position."""


class LocalWorker(Protocol):
    """A worker in this process, which gets tasks without the broker. `incarnation`: of its process."""

    @property
    def incarnation(self) -> str: ...
    def room(self) -> EagerRoom:
        """For tasks that would come now; the caller's to change."""
        ...

    def run(self, tasks: Sequence[EagerTask]) -> None: ...
    def is_running(self, key: ActivityKey, attempt: int) -> bool: ...
    async def leave(self, parts: frozenset[int]) -> None:
        """They are about to be somebody else's."""
        ...

    def send(self, results: Sequence[WireEvent]) -> None:
        """By the broker after all."""
        ...


class LocalResults:
    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._waiting: list[Received] = []

    def waits(self, owned: frozenset[int]) -> bool:
        return any(each.record.partition in owned for each in self._waiting)

    def add(self, part: int, result: WireEvent) -> None:
        self._waiting.append(Received(Record(self._topic, part, LOCAL_OFFSET, None, None, (), 0), result))

    def take(self, owned: frozenset[int], limit: int) -> list[Received]:
        """Of these partitions, in order. Who takes them gives back what does not become durable."""
        taken = [each for each in self._waiting if each.record.partition in owned][:limit]
        if len(taken) == len(self._waiting):
            self._waiting = []
        elif taken:
            gone = set(map(id, taken))
            self._waiting = [each for each in self._waiting if id(each) not in gone]
        return taken

    def give_back(self, inputs: Iterable[Input]) -> None:
        """Those of these inputs that came from here."""
        self._waiting[:0] = [each for each in inputs if is_local(each)]

    def leave(self, owned: frozenset[int]) -> list[WireEvent]:
        """All that belong to other partitions; they are forgotten here."""
        gone = [each for each in self._waiting if each.record.partition not in owned]
        self._waiting = [each for each in self._waiting if each.record.partition in owned]
        return [each.event for each in gone if isinstance(each.event, WireEvent)]


def is_local(one: Input) -> TypeGuard[Received]:
    return isinstance(one, Received) and one.record.offset == LOCAL_OFFSET
