"""How an attempt is stopped before its end: the task that runs it is cancelled when its time is over, or when nobody
wants to know its result any more. Touches nothing else."""

from __future__ import annotations

import asyncio
from typing import Final

CANCEL_AGAIN_S: Final = 2.0
"""A cancellation can get lost on its way (`wait_for` before Python 3.12, a driver, a user's `except`): it is repeated
until the attempt ends. No sooner than that, so that cleaning up is left in peace."""


class Deadline:
    """Of the current task. Between `begin` and `end`; `expired` says whether the time ran out in between. `timeout_s`
    None: there is no end to it."""

    def __init__(self, timeout_s: float | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.timeout_s = timeout_s
        self.expired = False
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._cancels = 0
        self._over = False

    def begin(self) -> None:
        """The first call counts."""
        if self.timeout_s is not None and self._timer is None and not self._over:
            self._timer = self._loop.call_later(self.timeout_s, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self.cancel()

    def cancel(self) -> None:
        """Now, and again until the end."""
        if self._over:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._cancels += 1
        self._task.cancel()
        self._timer = self._loop.call_later(CANCEL_AGAIN_S, self.cancel)

    def end(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for _ in range(self._cancels):
            self._task.uncancel()
        self._cancels = 0
