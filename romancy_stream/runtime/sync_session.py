"""Plain `def` activities: threads for them to run in, and the bridge over which such a thread uses the database of the
event loop. SQLAlchemy's asyncio drivers hand what they wait for to the parent of the current greenlet; here that
parent is the thread, which lets the loop wait and sleeps meanwhile. So the loop is never blocked, and the session of
the thread is on the same transaction as everything else in the attempt. Knows nothing of workflows.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from greenlet import getcurrent, greenlet

from romancy_stream.errors import ActivityContextError

P = ParamSpec("P")
T = TypeVar("T")


class _ThreadGreenlet(greenlet):
    """Where SQLAlchemy may wait. The name of the attribute is SQLAlchemy's."""

    __sqlalchemy_greenlet_provider__ = True


class LoopBridge:
    """One attempt's way from its threads into the event loop; made in the loop. When it is closed, what is under way
    is the last thing that the loop does for it. `on_late_end` is called, in the thread, by each thread that ends
    after that."""

    def __init__(self, on_late_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_late_end = on_late_end
        self._lock = threading.Lock()
        self._closed = False
        self._threads = 0
        self._in_flight = 0
        self._quiet: asyncio.Event | None = None

    # -- in the thread -------------------------------------------------------------------------------------------
    def call(self, function: Callable[[], T]) -> T:
        with self._lock:
            self._refuse_when_closed()
            self._threads += 1
        try:
            return self._drive(function)
        finally:
            with self._lock:
                self._threads -= 1
                late = self._closed
            if late:
                self._on_late_end()

    def _drive(self, function: Callable[[], T]) -> T:
        inner = _ThreadGreenlet(function)
        inner.gr_context = contextvars.copy_context()
        # Code of a driver that ends a broken connection asks for the loop of its thread.
        asyncio.set_event_loop(self._loop)
        try:
            value: Any = inner.switch()
            while not inner.dead:
                try:
                    answer = self._wait(value)
                except BaseException:
                    value = inner.throw(*sys.exc_info())
                else:
                    value = inner.switch(answer)
        finally:
            asyncio.set_event_loop(None)
        result: T = value
        return result

    def _wait(self, awaitable: Awaitable[Any]) -> Any:
        with self._lock:
            if self._closed and asyncio.iscoroutine(awaitable):
                awaitable.close()
            self._refuse_when_closed()
            future = asyncio.run_coroutine_threadsafe(self._in_loop(awaitable), self._loop)
            self._in_flight += 1
        return future.result()

    async def _in_loop(self, awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        finally:
            with self._lock:
                self._in_flight -= 1
                if self._quiet is not None and not self._in_flight:
                    self._quiet.set()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise ActivityContextError("this attempt has ended; its session and its transaction with it")

    # -- in the loop ---------------------------------------------------------------------------------------------
    def close(self) -> int:
        """Returns how many threads still run code of the attempt."""
        with self._lock:
            running = 0 if self._closed else self._threads
            self._closed = True
            return running

    async def quiet(self) -> None:
        """After `close`: until the loop does nothing for a thread any more."""
        with self._lock:
            if not self._in_flight:
                return
            self._quiet = asyncio.Event()
        await self._quiet.wait()


def in_bridge() -> bool:
    """Whether this code runs inside `LoopBridge.call`."""
    return isinstance(getcurrent(), _ThreadGreenlet)


def wait_in_thread(awaitable: Awaitable[T]) -> T:
    """Inside `LoopBridge.call` only: lets the loop wait for it."""
    parent = getcurrent().parent
    assert parent is not None
    result: T = parent.switch(awaitable)
    return result


class DaemonThreads(Executor):
    """A pool of at most `limit` threads that do not keep the process alive: user code that hangs cannot be ended, and
    must not stop the worker from ending either. For a thread that was given up (`abandon`) another one may be
    started, up to `limit` of them: after that the queue waits."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._jobs: deque[Callable[[], Callable[[], object]]] = deque()
        self._changed = threading.Condition()  # guards all that follows
        self._threads = 0
        self._idle = 0  # of them: those that take a job from the queue, or are on their way to it
        self._started = 0
        self._abandoned = 0
        self._closed = False

    @property
    def abandoned(self) -> int:
        """Threads that still run something nobody waits for."""
        return self._abandoned

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        job = partial(_run, future, partial(fn, *args, **kwargs))
        with self._changed:
            if self._closed:
                raise RuntimeError("the thread pool is closed")
            self._jobs.append(job)
            self._grow()
            self._changed.notify()
        return future

    def _grow(self) -> None:
        """A thread for a job that no idle one will take, if there may be one more."""
        if len(self._jobs) > self._idle and self._threads < self._allowed:
            self._threads += 1
            self._idle += 1
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()

    @property
    def _allowed(self) -> int:
        return self._limit + min(self._abandoned, self._limit)

    def _work(self) -> None:
        staying = True
        while staying and (job := self._next_job()) is not None:
            settle = job()
            # Idle before anybody knows the result: who waited for it and submits the next job finds this thread.
            staying = self._is_free()
            settle()
            del job, settle  # not kept alive, with all they refer to, until the next one comes

    def _next_job(self) -> Callable[[], Callable[[], object]] | None:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            self._idle -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._threads -= 1
            return None

    def _is_free(self) -> bool:
        """False when there are too many of us, since an abandoned thread returned: then this one ends."""
        with self._changed:
            staying = self._threads <= self._allowed
            if staying:
                self._idle += 1
            else:
                self._threads -= 1
            return staying

    def abandon(self) -> None:
        with self._changed:
            self._abandoned += 1
            self._grow()

    def returned(self) -> None:
        """An abandoned thread has come to its end after all."""
        with self._changed:
            self._abandoned -= 1

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Never waits; see above. What is queued is still done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _run(future: Future[T], call: Callable[[], T]) -> Callable[[], object]:
    """Returns what tells the future of the outcome."""
    if not future.set_running_or_notify_cancel():
        return _nobody_waits
    try:
        return partial(future.set_result, call())
    except BaseException as error:
        try:
            return partial(future.set_exception, error)
        finally:
            del future  # of this frame, which the error has: a circle


def _nobody_waits() -> None:
    """The future was cancelled before its job began."""
