"""A part of a live instance: the events that its code waits for, and those that came before their wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from romancy_stream.engine.history import HistoryEvent

if TYPE_CHECKING:
    from romancy_stream.engine.instance import LiveInstance


class Waits:
    def __init__(self, live: LiveInstance) -> None:
        self._live = live


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {}
