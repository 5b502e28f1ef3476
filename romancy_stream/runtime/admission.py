"""Results come before commands where more comes than can be decided: what has begun goes on to its end before more
begins. Else a backlog would begin as a whole, and its instances push each other out of memory, to be replayed for each
step: one of 24,000 workflows that were started at once took twice the CPU time of one among 3,000. Decides when; the
broker holds back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from romancy_stream.broker.port import TP, BatchSource
from romancy_stream.engine.commit import SCHEDULED, ActivityRow, Commit
from romancy_stream.engine.inputs import Input, Received

UNDER_WAY_LIMIT: Final = 4_000
"""Attempts that are under way, from which on commands wait: those of two full commits, as one is written while the next
is decided."""
AWAITED_S: Final = 10.0
"""A result that takes longer is none that the engine has to hurry for."""
HELD_LIMIT_S: Final = 2.0
"""However many results there are: after this long a batch of commands is let in, before they can be held again."""
BACKLOG: Final = 500
"""Commands in one batch: more are likely to wait."""
LOOK_EVERY_S: Final = 0.02
IDLE_LOOKS: Final = 5
"""While commands wait. An engine that is idle at so many looks more than it is busy at lets them in."""


class Admission:
    """`topic`: of the commands. `source`: who brings them. `is_busy`: whether the engine is at work."""

    def __init__(self, topic: str, source: Callable[[], BatchSource | None], is_busy: Callable[[], bool]) -> None:
        self._topic = topic
        self._source = source
        self._is_busy = is_busy
        self._commands: frozenset[TP] = frozenset()
        self._awaited: deque[tuple[float, int]] = deque()  # (since when, how many results), oldest first
        self._sum = 0
        self._until_s = 0.0
        self._idle = 0
        self._timer: asyncio.TimerHandle | None = None

    def adopt(self, partitions: Iterable[TP]) -> None:
        """In place of those before."""
        self.let_in()
        self._commands = frozenset(tp for tp in partitions if tp.topic == self._topic)
        self._awaited.clear()
        self._sum = 0

    def note(self, inputs: Sequence[Input], commit: Commit) -> None:
        """It is about to be written, and is what came of these."""
        self._count(commit.activities)
        is_crowded = self._is_crowded()
        if self._timer is not None:
            if not is_crowded:
                self.let_in()
        elif is_crowded and self._is_backlog(inputs) and (source := self._source()) is not None:
            source.hold(*self._commands)
            self._until_s = time.monotonic() + HELD_LIMIT_S
            self._idle = 0
            self._look_later()

    def let_in(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if (source := self._source()) is not None:
                source.release(*self._commands)

    def _count(self, rows: Sequence[ActivityRow]) -> None:
        """Whose results have come makes no difference: those of the oldest."""
        begun = sum([row.status == SCHEDULED for row in rows])
        ended = len(rows) - begun
        if begun:
            self._awaited.append((time.monotonic(), begun))
            self._sum += begun
        while ended and self._awaited:
            since_s, count = self._awaited.popleft()
            came = min(ended, count)
            ended -= came
            self._sum -= came
            if count > came:
                self._awaited.appendleft((since_s, count - came))

    def _is_crowded(self) -> bool:
        forgotten_s = time.monotonic() - AWAITED_S
        while self._awaited and self._awaited[0][0] < forgotten_s:
            self._sum -= self._awaited.popleft()[1]
        return self._sum >= UNDER_WAY_LIMIT

    def _is_backlog(self, inputs: Sequence[Input]) -> bool:
        """Not what else begins instances, children or runs: to hold commands would not hold them, and after a hold a
        batch of commands comes before the next."""
        came = sum([isinstance(each, Received) and each.record.topic == self._topic for each in inputs])
        return bool(self._commands) and came >= BACKLOG

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._idle = max(0, self._idle + (-1 if self._is_busy() else 1))
        if self._idle >= IDLE_LOOKS or time.monotonic() >= self._until_s or not self._is_crowded():
            self.let_in()
        else:
            self._look_later()
