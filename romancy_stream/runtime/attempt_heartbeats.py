"""The heartbeats of one attempt, on their way to the database: few, however many the activity gives, and none that is
lost when the attempt fails. Each brings back whether anybody still wants the attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from romancy_stream.engine.tasks import Task
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.store.database import finished
from romancy_stream.store.port import Store

log = logging.getLogger(__name__)

BEAT_EVERY_S: Final = 5.0
"""One write of a row in this time, for each attempt. Closer together where the heartbeat's timeout is short: a third of
it, so that one may be late and the next one with it."""
BEATS_PER_TIMEOUT: Final = 3
LAST_LIMIT_S: Final = 5.0
"""How long a failed attempt's report waits for its last heartbeat. What is not written by then is not found by the next
attempt, which begins further back."""


class Heartbeats:
    """`details`: those that an earlier attempt left. `unwanted` is called when the engine has given the attempt up.
    `spawn` runs a write in the background. Belongs to the event loop, but for `beat_from_thread`; it may be made in a
    thread."""

    def __init__(
        self,
        store: Store,
        task: Task,
        details: bytes | None,
        unwanted: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        timeout_s = task.options.heartbeat_timeout_s
        self.every_s = BEAT_EVERY_S if timeout_s is None else min(BEAT_EVERY_S, timeout_s / BEATS_PER_TIMEOUT)
        self._store = store
        self._task = task
        self._details = details
        self._unwanted = unwanted
        self._spawn = spawn
        self._loop = loop
        self._pending = False  # something is to be written
        self._writing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._of_thread: bytes | None = None
        self._called = False

    # -- beating ---------------------------------------------------------------------------------------------------
    def beat(self, details: bytes | None) -> None:
        """None: what stands there stays."""
        if details is not None:
            self._details = details
        if self._over:
            return
        self._pending = True
        if self._writing is None and self._timer is None:
            self._write_now()

    def beat_from_thread(self, details: bytes | None) -> None:
        """Any number of times: the loop hears of the last one only."""
        if details is not None:
            self._of_thread = details
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._beaten)

    def _beaten(self) -> None:
        self._called = False  # first: a thread that beats from here on calls again
        self.beat(self._of_thread)

    # -- writing ---------------------------------------------------------------------------------------------------
    def _write_now(self) -> None:
        self._pending = False
        self._timer = self._loop.call_later(self.every_s, self._window_over)
        self._writing = self._loop.create_future()
        self._spawn(self._write(self._writing))

    def _window_over(self) -> None:
        self._timer = None
        if self._pending and self._writing is None and not self._over:
            self._write_now()

    async def _write(self, written: asyncio.Future[None]) -> None:
        wanted = True
        try:
            wanted = await self._store.beat(self._task.key, self._task.attempt, self._details)
        except StoreUnavailableError as error:
            log.info("%s: a heartbeat waits for the database: %s", self._task, error)
            self._pending = True
        finally:
            self._writing = None
            written.set_result(None)
        if not wanted:
            self._unwanted()
        elif self._pending and self._timer is None and not self._over:  # the window ended meanwhile
            self._write_now()

    # -- the end of the attempt ------------------------------------------------------------------------------------
    async def end(self, *, failed: bool) -> None:
        """The last one is written for the next attempt, if there may be one."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._called:
            self._beaten_last()
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=LAST_LIMIT_S)
        if failed and self._pending:
            try:
                await finished(self._store.beat(self._task.key, self._task.attempt, self._details), LAST_LIMIT_S)
            except StoreUnavailableError as error:
                log.warning("%s: its last heartbeat is lost: %s", self._task, error)

    def _beaten_last(self) -> None:
        """What a thread said just before it ended."""
        if self._of_thread is not None:
            self._details = self._of_thread
        self._pending = True
