"""How far a worker is in a partition of a task queue: tasks end in any order, and what may be committed is the offset
up to which all have ended. Pure bookkeeping.
"""

from __future__ import annotations

from romancy_stream.broker.port import TP, AssignedRange


class Progress:
    """One partition for as long as it is assigned to us. What lies before `end` may have been worked on before."""

    __slots__ = ("_next", "_open", "committed", "end", "tp")

    def __init__(self, tp: TP, assigned: AssignedRange) -> None:
        self.tp = tp
        self.end = assigned.end
        self.committed = assigned.committed
        self._next = assigned.committed
        self._open: dict[int, None] = {}  # in the order of delivery, which is that of the offsets

    def taken(self, offset: int) -> None:
        self._open[offset] = None
        self._next = offset + 1

    def done(self, offset: int) -> None:
        self._open.pop(offset, None)

    @property
    def low(self) -> int:
        """The next offset to read for somebody who takes over now."""
        return next(iter(self._open), self._next)

    @property
    def open(self) -> int:
        return len(self._open)
