"""A part of a live instance: its turn. Code of a workflow whose runs take turns does not begin before the engine has
granted it a slot; what asks for one and waits is recorded like everything that code asks for. Handlers of signals and
updates that come before the code has begun, whatever it waits for, wait here for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine.history import HistoryEvent

if TYPE_CHECKING:
    from romancy_stream.engine.instance import LiveInstance

SLOT: Final = "slot"
"""The ref of both events: a run has one."""


Code = Callable[[], Coroutine[Any, Any, bytes]]
"""Called when its time has come: a coroutine that nobody awaits would be complained about."""


class Turns:
    def __init__(self, live: LiveInstance) -> None:
        self._live = live
        self._granted: asyncio.Future[None] | None = None
        self._held_back = 0  # for so many things the code waits before it begins
        self._patient: list[asyncio.Future[None]] = []

    async def in_turn(self, slot: dict[str, Any], code: Code) -> bytes:
        """`slot`: that of `workflow.started`."""
        self._granted = self._live.loop.create_future()
        self._live.emit(h.SLOT_ASKED, SLOT, slot)
        await self._granted
        self.let_go()
        return await code()

    # -- handlers, which wait for the code -------------------------------------------------------------------------
    @property
    def has_begun(self) -> bool:
        return self._held_back == 0

    def hold_back(self, times: int) -> None:
        """Until `let_go` was called so often."""
        self._held_back = times

    def let_go(self) -> None:
        """Just before the code goes on: it comes to its first wait before any handler begins."""
        self._held_back = max(0, self._held_back - 1)
        if self._held_back == 0:
            for future in self._patient:
                if not future.done():
                    future.set_result(None)

    async def once_begun(self, code: Code) -> bytes:
        begun: asyncio.Future[None] = self._live.loop.create_future()
        self._patient.append(begun)
        await begun
        return await code()

    # -- inputs --------------------------------------------------------------------------------------------------
    def granted(self) -> None:
        if self._granted is not None and not self._granted.done():
            self._granted.set_result(None)


def _granted(live: LiveInstance, event: HistoryEvent) -> None:
    live.turns.granted()


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {h.SLOT_GRANTED: _granted}
