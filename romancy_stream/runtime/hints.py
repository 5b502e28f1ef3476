"""How far the database is, told to the broker: for lag tools, and for the embedded log's retention. Never the truth, so
nobody waits for it; to a broker it is as much work as a batch of records, so it is told once in a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping
from typing import Any, Final

from romancy_stream.broker.port import TP
from romancy_stream.store.database import first_done, seen

HINT_EVERY_S: Final = 1.0
"""Lag tools look less often."""
LAST_LIMIT_S: Final = 0.5
"""How long who leaves waits for the broker to hear it."""


class Hints:
    """`tell`: of the broker's; partition -> the next offset."""

    def __init__(self, tell: Callable[[Mapping[TP, int]], Coroutine[Any, Any, None]]) -> None:
        self._tell = tell
        self._untold: dict[TP, int] = {}
        self._telling: asyncio.Task[None] | None = None
        self._next_s = 0.0

    @property
    def due_in_s(self) -> float | None:
        """None: there is nothing to tell."""
        return self._next_s - time.monotonic() if self._untold else None

    def add(self, offsets: Iterable[tuple[str, int, int]]) -> None:
        self._untold.update({TP(topic, part): offset for topic, part, offset in offsets})

    def drop(self, parts: Container[int]) -> None:
        self._untold = {tp: offset for tp, offset in self._untold.items() if tp.partition not in parts}

    def tell_if_due(self) -> None:
        if (due_in_s := self.due_in_s) is not None and due_in_s <= 0:
            self._tell_soon()

    def _tell_soon(self) -> None:
        """After the one that is under way, if there is one, it falls due again."""
        self._next_s = time.monotonic() + HINT_EVERY_S
        if self._telling is None or self._telling.done():
            untold, self._untold = self._untold, {}
            self._telling = asyncio.create_task(self._tell(untold), name="romancy-hint")
            self._telling.add_done_callback(seen)

    async def tell_last(self) -> None:
        """Else what was done a moment ago would look undone until something else happens."""
        for _ in range(2):  # one that is under way, and the last
            if self._telling is not None:
                await first_done([self._telling], LAST_LIMIT_S)
            if not self._untold:
                return
            self._tell_soon()

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
