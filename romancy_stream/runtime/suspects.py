"""What to do about an input that kills its owner: a step that never returns, or takes the whole process down. Such an
input would kill every owner in turn. So when a partition changes hands twice without a commit in between, its inputs
are processed one at a time, each named in the database before it is touched. The one that stands there after two more
ends is set aside: once may be chance, an owner can lose its partition at any moment. It stays named behind the next:
what is set aside may come again with the next owner, as instances that are parked do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from romancy_stream.engine.inputs import Input, Received, Refused, Reported
from romancy_stream.store.port import PartitionSnapshot, Store

STALLS: Final = 2
"""Takeovers without a commit that make an owner careful. Idle partitions get there too; it costs them nothing."""
ENDS: Final = 2
"""Owners that must have ended over an input, alone, before it is set aside."""
GUILTY_LIMIT: Final = 100
"""Named in the database at a time. Each has ended two owners."""
CAREFUL_INPUTS: Final = 200
"""Processed one at a time before a partition is trusted again: more than one fetch usually brings after a crash."""


def name_of(one: Input) -> str:
    if isinstance(one, Received):
        return f"{one.record.topic}/{one.record.partition}/{one.record.offset}"
    if isinstance(one, Reported):
        return f"report of {one.report.key}, attempt {one.report.attempt}"
    return f"{type(one).__name__} {one}"


def part_of(one: Input) -> int:
    if isinstance(one, Refused):
        one = one.received
    return one.record.partition if isinstance(one, Received) else one.part


class Suspects:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._left: dict[int, int] = {}  # partition -> inputs to process one at a time
        self._found: dict[int, dict[str, int]] = {}  # partition -> what was under way at an end: how often
        self._epoch: dict[int, int] = {}

    def adopt(self, snapshot: PartitionSnapshot) -> None:
        self._epoch[snapshot.part] = snapshot.epoch
        if snapshot.stalls >= STALLS or snapshot.suspect is not None:
            self._left[snapshot.part] = CAREFUL_INPUTS
            lines = [line.partition(" ") for line in (snapshot.suspect or "0 ").split("\n")]
            self._found[snapshot.part] = {name: int(count) for count, _, name in lines}

    def owned_epoch(self, part: int, epoch: int) -> None:
        """A partition that was taken over from ourselves."""
        self._epoch[part] = epoch

    def drop(self, parts: Iterable[int]) -> None:
        for part in parts:
            self._left.pop(part, None)
            self._found.pop(part, None)

    def split(self, inputs: Sequence[Input]) -> tuple[list[Input], list[Input]]:
        """Those to process alone, in order, and the rest."""
        if not self._left:
            return [], list(inputs)
        careful = [one for one in inputs if part_of(one) in self._left]
        return careful, [one for one in inputs if part_of(one) not in self._left]

    def is_guilty(self, one: Input) -> bool:
        """It was under way when the last owners ended."""
        return self._ends(one) >= ENDS

    def _ends(self, one: Input) -> int:
        return self._found.get(part_of(one), {}).get(name_of(one), 0)

    def _guilty(self, part: int) -> list[str]:
        found = self._found.get(part, {})
        return [f"{ends} {name}" for name, ends in found.items() if ends >= ENDS][-GUILTY_LIMIT:]

    async def touch(self, one: Input) -> None:
        """Just before it is processed."""
        part = part_of(one)
        lines = [*self._guilty(part), f"{self._ends(one) + 1} {name_of(one)}"]
        await self._store.mark_suspect(part, self._epoch[part], "\n".join(lines))

    async def acquit(self, one: Input) -> None:
        """It could not be processed, and its owner lives."""
        part = part_of(one)
        await self._store.mark_suspect(part, self._epoch[part], "\n".join(self._guilty(part)) or None)

    async def survived(self, one: Input) -> None:
        part = part_of(one)
        if part not in self._left:
            return  # the partition was given up meanwhile
        self._left[part] -= 1
        if self._left[part] <= 0:
            self.drop([part])
            await self._store.mark_suspect(part, self._epoch[part], None)

    async def release(self, parts: Iterable[int]) -> None:
        """A clean end of an ownership: nobody died."""
        for part in [part for part in parts if part in self._left]:
            await self._store.mark_suspect(part, self._epoch[part], None)
