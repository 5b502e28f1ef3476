"""The worker in the engine's own process: what the processor asks of it, and its reports, which never leave it. They
wait here for a batch, as records of `results` would wait in the broker. Values in memory; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from romancy_stream.engine.commit import ActivityKey, EagerTask
from romancy_stream.engine.inputs import EagerRoom, Input, Reported
from romancy_stream.engine.tasks import Report


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

    def send(self, reports: Sequence[Report]) -> None:
        """By the broker after all."""
        ...


class LocalResults:
    def __init__(self) -> None:
        self._waiting: list[Reported] = []

    def waits(self, owned: frozenset[int]) -> bool:
        return any(each.part in owned for each in self._waiting)

    def add(self, part: int, report: Report) -> None:
        self._waiting.append(Reported(part, report))

    def take(self, owned: frozenset[int], limit: int) -> list[Reported]:
        """Of these partitions, in order. Who takes them gives back what does not become durable."""
        taken = [each for each in self._waiting if each.part in owned][:limit]
        if len(taken) == len(self._waiting):
            self._waiting = []
        elif taken:
            gone = set(map(id, taken))
            self._waiting = [each for each in self._waiting if id(each) not in gone]
        return taken

    def give_back(self, inputs: Iterable[Input]) -> None:
        """Those of these inputs that came from here."""
        self._waiting[:0] = [each for each in inputs if isinstance(each, Reported)]

    def leave(self, owned: frozenset[int]) -> list[Report]:
        """All that belong to other partitions; they are forgotten here."""
        gone = [each.report for each in self._waiting if each.part not in owned]
        self._waiting = [each for each in self._waiting if each.part in owned]
        return gone
