"""Whose turn it is to decide and commit: the batches of the broker, timers and sweepers take turns, until one of them
fails. Knows nothing of what is done in a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from romancy_stream.errors import EngineError


class Turns:
    """`async with` is one turn. Who leaves it with an error leaves inputs behind that this membership does not bring
    again: no later turn may go on behind them, whoever hears of the error."""

    def __init__(self, on_over: Callable[[], object]) -> None:
        self.lock = asyncio.Lock()
        """For those who only tidy up, also after the end."""
        self._over: BaseException | None = None
        self._on_over = on_over

    @property
    def are_over(self) -> bool:
        return self._over is not None

    async def __aenter__(self) -> None:
        await self.lock.acquire()
        if self._over is not None:
            self.lock.release()
            raise self._over if isinstance(self._over, Exception) else EngineError("the membership has ended")

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._over = error
            self._on_over()
        self.lock.release()
