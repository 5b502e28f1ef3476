"""The open timers of the owned partitions, soonest first. In memory; the table is what survives."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from romancy_stream.engine.commit import TimerRow
from romancy_stream.engine.inputs import TimerDue

Key = tuple[str, int, str]  # instance_id, run, timer_id

SLACK: Final = 1_000
"""Cancelled timers stay in the heap until they are due; it is made anew when they outnumber the open ones by this."""


class Timers:
    def __init__(self) -> None:
        self._open: dict[Key, tuple[int, int]] = {}  # -> due_us, part
        self._heap: list[tuple[int, Key]] = []

    def __len__(self) -> int:
        return len(self._open)

    def set(self, row: TimerRow) -> None:
        key = (row.instance_id, row.run, row.timer_id)
        self._open[key] = (row.due_us, row.part)
        heappush(self._heap, (row.due_us, key))

    def drop(self, key: Key) -> None:
        self._open.pop(key, None)
        if len(self._heap) > 2 * len(self._open) + SLACK:
            self._heap = [(due_us, key) for key, (due_us, _) in self._open.items()]
            heapify(self._heap)

    def drop_partition(self, part: int) -> None:
        for key in [key for key, (_, owner) in self._open.items() if owner == part]:
            self.drop(key)

    def next_due_us(self) -> int | None:
        self._skip_gone()
        return self._heap[0][0] if self._heap else None

    def due(self, now_us: int, limit: int) -> list[TimerDue]:
        """Takes out up to `limit` timers that are due, in order of due time."""
        fired: list[TimerDue] = []
        while len(fired) < limit:
            self._skip_gone()
            if not self._heap or self._heap[0][0] > now_us:
                break
            _, key = heappop(self._heap)
            _, part = self._open.pop(key)
            fired.append(TimerDue(part, *key))
        return fired

    def _skip_gone(self) -> None:
        heap = self._heap
        while heap and self._open.get(heap[0][1], (None,))[0] != heap[0][0]:
            heappop(heap)
