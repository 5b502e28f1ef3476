"""The one clock: the database's, carried forward between commits by this machine's monotonic clock."""

from __future__ import annotations

import time


class DatabaseClock:
    """Never goes back within a process. Each commit brings the database's time along, so drift is corrected
    without asking."""

    def __init__(self) -> None:
        self._offset_us: int | None = None
        self._last_us = 0

    def learn(self, database_us: int) -> None:
        self._offset_us = database_us - time.monotonic_ns() // 1_000

    def now_us(self) -> int:
        if self._offset_us is None:
            raise RuntimeError("the clock was read before the database was asked for the time")
        self._last_us = max(self._last_us, time.monotonic_ns() // 1_000 + self._offset_us)
        return self._last_us
