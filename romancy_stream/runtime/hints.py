"""How far the database is, told to the broker: for lag tools, and for the embedded log's retention. Never the truth, so
nobody waits for it; to a broker it is as much work as a batch of records, so it is told once in a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping
from typing import Any, Final

from romancy_stream.broker.port import TP
from romancy_stream.store.database import first_done

log = logging.getLogger(__name__)

HINT_EVERY_S: Final = 1.0
"""Lag tools look less often."""
LONGEST_PAUSE_S: Final = 60.0
"""Between attempts, where the broker refuses again and again."""
LAST_LIMIT_S: Final = 1.0
"""How long who leaves waits for the broker to hear it."""
LAST_PAUSE_S: Final = 0.1
"""Between attempts then."""


class Hints:
    """`tell`: of the broker's; partition -> the next offset. `on_news`: from now on there is something to tell."""

    def __init__(
        self, tell: Callable[[Mapping[TP, int]], Coroutine[Any, Any, None]], on_news: Callable[[], None]
    ) -> None:
        self._tell = tell
        self._on_news = on_news
        self._untold: dict[TP, int] = {}
        self._telling: asyncio.Task[None] | None = None
        self._next_s = 0.0
        self._pause_s = HINT_EVERY_S
        self._is_refused = False

    @property
    def due_in_s(self) -> float | None:
        """None: there is nothing to tell."""
        return self._next_s - time.monotonic() if self._untold else None

    def add(self, offsets: Iterable[tuple[str, int, int]]) -> None:
        had_news = bool(self._untold)
        self._untold.update({TP(topic, part): offset for topic, part, offset in offsets})
        if self._untold and not had_news:
            self._on_news()

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
            self._telling = asyncio.create_task(self._told(untold), name="romancy-hint")

    async def _told(self, offsets: Mapping[TP, int]) -> None:
        try:
            await self._tell(offsets)
        except Exception as error:
            if not self._is_refused:
                log.warning("offsets were not told to the broker, and lag tools see too much until they are: %r", error)
                self._is_refused, self._pause_s = True, HINT_EVERY_S
            self._next_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            untold, self._untold = self._untold, {}
            self.add((*tp, offset) for tp, offset in {**offsets, **untold}.items())
        else:
            self._is_refused = False

    async def tell_last(self) -> None:
        """Else what was done a moment ago would look undone until something else happens."""
        give_up_at = time.monotonic() + LAST_LIMIT_S
        while True:
            if self._telling is not None:
                await first_done([self._telling], give_up_at - time.monotonic())
            if not self._untold or time.monotonic() >= give_up_at:
                return
            if self._is_refused:
                await asyncio.sleep(LAST_PAUSE_S)
            self._tell_soon()

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
