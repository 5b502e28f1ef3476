"""A part of a live instance: its signal, update and query handlers, and conditions that wait for what they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from romancy_stream.engine.history import HistoryEvent

if TYPE_CHECKING:
    from romancy_stream.engine.instance import LiveInstance


class Handlers:
    def __init__(self, live: LiveInstance) -> None:
        self._live = live


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {}
