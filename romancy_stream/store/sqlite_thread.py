"""A connection to a SQLite file in a thread of its own: a whole transaction costs one hop to that thread, where
SQLAlchemy's driver takes one for each statement. For the few calls that every workflow makes."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from romancy_stream.store.database import Database, connect_sqlite, finished

T = TypeVar("T")


class SqliteThread:
    """Starts when it is first used; after `close`, or beside it, it can be used again. One that is dropped without
    `close` is closed behind what was begun."""

    def __init__(self, db: Database, name: str) -> None:
        self._db = db
        self._name = name
        self._thread: _Connected | None = None
        self._dropped: weakref.finalize[[], SqliteThread] | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One at a time, each to its end even when the caller is cancelled, as with `finished`. Raises what `work`
        raises."""
        if self._thread is None:
            self._thread = _Connected(self._db, self._name)
            self._dropped = weakref.finalize(self, self._thread.end)
            self._dropped.atexit = False  # see the daemon below
        return await finished(self._thread.do(work))

    async def close(self) -> None:
        """Behind what was begun before."""
        thread, self._thread = self._thread, None
        dropped, self._dropped = self._dropped, None
        if thread is not None and dropped is not None:
            dropped.detach()
            await finished(thread.disconnect())


class _Connected:
    """A thread with the connection that only it may use; it does not know whose it is. Not an executor: handing over
    one call costs a third of it."""

    def __init__(self, db: Database, name: str) -> None:
        self._db = db
        self._connection: sqlite3.Connection | None = None
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()  # None is the last
        # As a daemon it never keeps a process alive that forgot to close it; SQLite undoes what is cut off.
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def do(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        return self._asked(lambda: work(self._opened()))

    def disconnect(self) -> asyncio.Future[None]:
        """Nothing may be asked after this."""
        closed = self._asked(self._close)
        self.end()
        return closed

    def end(self) -> None:
        """In any thread, and at any time: the collector may come in the middle of anything."""
        self._calls.put(None)

    def _asked(self, work: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        call = _Call(work, loop, loop.create_future())
        self._calls.put(call)
        return call.answer

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.end(*_outcome(call.work))
            del call  # and what it found: the next one may be long in coming
        self._close()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect_sqlite(self._db.sqlite_path, self._db.busy_timeout_s)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    work: Callable[[], T]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[T]

    def end(self, found: T | None, error: BaseException | None) -> None:
        """In the thread."""
        try:
            self.loop.call_soon_threadsafe(_settle, self.answer, found, error)
        except RuntimeError:
            if not self.loop.is_closed():
                raise


def _outcome(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """A function of its own: what an error holds by its frames must not lead to the future that holds the error."""
    try:
        return work(), None
    except BaseException as error:
        return None, error


def _settle(answer: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
    if answer.cancelled():
        return
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error)
