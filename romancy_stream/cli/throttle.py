"""Keeps a process's log readable while Kafka is away: the client libraries report every attempt to reach it, some
hundred lines a second. Touches only what those libraries log."""

from __future__ import annotations

import logging
from typing import Final

LIBRARIES: Final = ("aiokafka", "faust", "mode")
WINDOW_S: Final = 30.0
PER_WINDOW: Final = 5
"""Records of one kind, that is of one logger and one message before its values are filled in. An outage shows, and so
does the rebalance of a busy group."""
KINDS_LIMIT: Final = 500
"""The libraries have some two hundred; after this many the count begins anew."""


class Throttle(logging.Filter):
    """For a handler. The first record after a window in which some were left out says how many."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, object], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in LIBRARIES:
            return True
        kind = record.name, record.msg
        window = self._kinds.get(kind)
        if window is None or record.created - window.since_s >= WINDOW_S:
            if window is not None and window.left_out:
                record.msg = f"{record.msg} ({window.left_out} more like this were left out)"
            if len(self._kinds) >= KINDS_LIMIT:
                self._kinds.clear()
            window = self._kinds[kind] = _Window(record.created)
        window.seen += 1
        return window.seen <= PER_WINDOW


class _Window:
    __slots__ = ("seen", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.seen = 0

    @property
    def left_out(self) -> int:
        return max(0, self.seen - PER_WINDOW)
