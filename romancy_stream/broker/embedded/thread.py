"""The one thread that touches the log's file. Jobs run one after another; what each did is reported to the event
loop by a callback. The thread holds the folder's lock as long as the file is open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from romancy_stream.broker.embedded.disk import Disk
from romancy_stream.broker.embedded.limits import CLOSE_LIMIT_S
from romancy_stream.broker.embedded.lock import FolderLock

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]


class DiskThread:
    """Not bounded by itself: the log has one write under way, each reader one read, and `create_topics` one job."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._folder = folder
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[Disk], Any], Done] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] = loop.create_future()

    async def start(self) -> None:
        """Takes the lock and opens the file; their errors."""
        opened: asyncio.Future[None] = self._loop.create_future()
        # A daemon: a program that forgets `close` still ends. What was acknowledged is on the disk.
        self._thread = threading.Thread(target=self._main, args=(opened,), name="romancy-log", daemon=True)
        self._thread.start()
        await asyncio.shield(opened)

    async def stop(self) -> None:
        """Returns when all jobs are done, the file is closed and the lock is free."""
        self._jobs.put(None)
        await asyncio.shield(self._ended)

    def abandon(self) -> None:
        """For an event loop that was closed: the same as `stop`, without it."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(CLOSE_LIMIT_S)

    def submit(self, job: Callable[[Disk], T], done: Callable[[T, BaseException | None], None]) -> None:
        """`done(result, None)` or `done(None, error)` is called in the event loop."""
        self._jobs.put((job, done))

    async def call(self, job: Callable[[Disk], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, lambda result, error: _resolve(future, result, error)))
        return await future

    def _main(self, opened: asyncio.Future[None]) -> None:
        try:
            lock = FolderLock(self._folder)
            try:
                disk = Disk(self._folder / "broker.db")
            except BaseException:
                lock.release()
                raise
        except Exception as error:  # start() raises it
            self._report(_resolve, opened, None, error)
            return
        try:
            self._report(_resolve, opened, None, None)
            self._serve(disk)
        finally:
            disk.close()
            lock.release()
            self._report(_resolve, self._ended, None, None)

    def _serve(self, disk: Disk) -> None:
        alive = True
        while alive and (item := self._jobs.get()) is not None:
            job, done = item
            try:
                result = job(disk)
            except Exception as error:
                alive = self._report(done, None, error)
            else:
                alive = self._report(done, result, None)

    def _report(self, callback: Callable[..., None], *args: object) -> bool:
        """False: the loop was closed under us, nobody is left to tell."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return False
        return True


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
