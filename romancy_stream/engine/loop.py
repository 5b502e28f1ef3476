"""The event loop that workflow code runs on: asyncio's own tasks and futures over a FIFO ready queue and the
time of the log. Given the same inputs it takes the same steps, which is what makes replay possible. `sleep`,
`timeout` and every other timer become durable timers of the instance; sockets, threads and processes are
refused with the remedy in the message. Nothing here waits: `run_until_idle` returns when no callback is ready.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from asyncio import events, tasks
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context
from inspect import CORO_CREATED, getcoroutinestate
from traceback import walk_tb
from types import AsyncGeneratorType, CoroutineType
from typing import Any, Final, NoReturn, Protocol, TypeVar
from zlib import crc32

from romancy_stream.errors import ReadOnlyError, WorkflowIOError

log = logging.getLogger(__name__)
T = TypeVar("T")

NUMBER_BITS: Final = 20
"""A future's number counts from here down, and above stands the instance: asyncio also keeps the tasks of all loops in
one set, where equal numbers would be looked through one by one."""
STEP_LIMIT: Final = 1_000_000
"""Callbacks in one step. 10,000 parallel activities need about 50,000; a `sleep(0)` loop needs them all."""
LOOKED_THROUGH: Final = 1_000
"""Members of a list in which coroutines are looked for that were never awaited: whoever has more has data in it."""

LATEST_US: Final = 253_402_300_799_000_000
"""The last second of the year 9999: what is due later is due then. Neither datetime nor a BIGINT goes much further."""


class Evicted(BaseException):
    """Ends the coroutines of an instance that leaves the cache. Not an Exception: user code must not catch it."""


class StepTooLong(BaseException):
    """Workflow code went round more than STEP_LIMIT times without waiting for anything."""


class TimerHost(Protocol):
    """Who keeps the timers of a loop: the instance, which records them."""

    def timer_started(self, handle: WorkflowTimer) -> None: ...
    def timer_cancelled(self, handle: WorkflowTimer) -> None: ...


class WorkflowTimer(asyncio.TimerHandle):
    """`timer_id` is given by the host; None once fired or cancelled."""

    timer_id: str | None = None
    due_us: int = 0


class _Future(asyncio.Future[T]):
    """Hashes by its number in the instance: asyncio keeps futures in sets, and the order of a set must not depend on
    addresses."""

    number: int

    def __hash__(self) -> int:
        return self.number


class _Task(asyncio.Task[T]):
    def __init__(self, number: int, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **kwargs: Any) -> None:
        self.number = number  # first: asyncio puts the task into that set before its __init__ returns
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self.number


@contextmanager
def stepping_aside() -> Iterator[None]:
    """Takes the outer loop and its current task off this thread, so that workflow loops can run on it. Python 3.14
    keeps the current task per thread, earlier ones per loop; leaving it explicitly is right for both."""
    outer = asyncio._get_running_loop()
    task = asyncio.current_task(outer) if outer is not None else None
    # Else the outer loop would end the workflow's asynchronous generators: later, and outside of the workflow.
    hooks = sys.get_asyncgen_hooks()
    if outer is not None and task is not None:
        tasks._leave_task(outer, task)
    events._set_running_loop(None)
    sys.set_asyncgen_hooks(None, None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)
        events._set_running_loop(outer)
        if outer is not None and task is not None:
            tasks._enter_task(outer, task)


class WorkflowLoop(asyncio.AbstractEventLoop):
    """One per live instance, which `name` names. `now_us` is the log time of the step."""

    __slots__ = (
        *("_evicting", "_first_number", "_generators", "_host", "_ready", "_sequence", "_tasks"),
        *("now_us", "read_only"),
    )

    def __init__(self, host: TimerHost, name: str) -> None:
        self._host = host
        self._first_number = crc32(name.encode()) << NUMBER_BITS
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: list[_Task[Any]] = []
        self._generators: list[AsyncGeneratorType[Any, Any]] = []
        self._sequence = 0
        self._evicting = False
        self.now_us = 0
        self.read_only = False  # code runs that may look at everything and change nothing

    # -- running ---------------------------------------------------------------------------------------------
    def run_until_idle(self) -> None:
        """Call it inside `stepping_aside`. Raises StepTooLong."""
        ready, left = self._ready, STEP_LIMIT
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._keep)
        try:
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    self._run(handle)
                left -= 1
                if left == 0:
                    raise StepTooLong
        finally:
            sys.set_asyncgen_hooks(firstiter=None)
            events._set_running_loop(None)

    def _keep(self, generator: Any) -> None:
        """Until the eviction: one that the code lets go of in the middle must not end when the garbage collector
        happens to come by, which no replay could repeat."""
        self._generators.append(generator)
        if len(self._generators) & 63 == 0:
            self._generators = [kept for kept in self._generators if kept.ag_frame is not None]

    @staticmethod
    def _run(handle: asyncio.Handle) -> None:
        try:
            handle._run()
        except SystemExit:
            # The task holds it already; a workflow that calls sys.exit() fails, the engine does not.
            log.warning("workflow code raised SystemExit")

    def fire(self, handle: WorkflowTimer) -> None:
        self._ready.append(handle)

    def evict(self) -> None:
        """Ends every coroutine of this loop. What their `finally` blocks ask for is refused with Evicted."""
        self._evicting = True
        met: set[CoroutineType[Any, Any, Any]] = set()
        events._set_running_loop(self)
        try:
            for task in self._tasks:  # and those that a `finally` makes now: see `create_task`
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if not task.done():
                    tasks._enter_task(self, task)  # `asyncio.timeout` and TaskGroup look for it
                    try:
                        _close(task.get_coro(), met)
                    finally:
                        tasks._leave_task(self, task)
            for generator in self._generators:
                if generator.ag_frame is not None:
                    _close_generator(generator, met)
            for coro in met:
                # As one that was given to `asyncio.wait_for`: nobody comes to await it, of which Python would warn.
                if getcoroutinestate(coro) == CORO_CREATED:
                    coro.close()  # none of its code runs
        finally:
            events._set_running_loop(None)
            self._ready.clear()
            self._tasks.clear()
            self._generators.clear()
            del self._host  # who holds this loop: the two of them need no garbage collector to go

    def refuse_if_evicting(self) -> None:
        if self._evicting:
            raise Evicted

    def _refuse(self) -> None:
        self.refuse_if_evicting()
        if self.read_only:
            raise ReadOnlyError("queries, validators and conditions may only look at a workflow")

    @property
    def is_idle(self) -> bool:
        return not self._ready

    # -- what asyncio asks of a loop ---------------------------------------------------------------------------
    def time(self) -> float:
        return self.now_us / 1_000_000

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at_us(self.now_us + _microseconds(delay), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at_us(_microseconds(when), callback, *args, context=context)

    def call_at_us(
        self, due_us: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> WorkflowTimer:
        self._refuse()
        due_us = min(due_us, LATEST_US)
        handle = WorkflowTimer(due_us / 1_000_000, callback, args, self, context)
        handle.due_us = due_us
        self._host.timer_started(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, WorkflowTimer) and handle.timer_id is not None and not self._evicting:
            self._host.timer_cancelled(handle)

    def create_future(self) -> asyncio.Future[Any]:
        self._refuse()
        future: _Future[Any] = _Future(loop=self)
        self._sequence += 1
        future.number = self._first_number + self._sequence
        return future

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **kwargs: Any,
    ) -> asyncio.Task[T]:
        """Not refused to who is evicted: Python would warn that the coroutine was never awaited. It is closed then."""
        if not self._evicting:
            self._refuse()
        self._sequence += 1
        # The name must not come from asyncio's process-wide counter: code can see it.
        number = self._first_number + self._sequence
        task: _Task[T] = _Task(
            number, coro, loop=self, name=name or f"task:{self._sequence}", context=context, **kwargs
        )
        self._tasks.append(task)
        if len(self._tasks) & 63 == 0 and not self._evicting:
            self._tasks = [kept for kept in self._tasks if not kept.done()]
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._evicting:
            log.warning("in workflow code: %s", context.get("message"), exc_info=context.get("exception"))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _close(coro: Any, met: set[CoroutineType[Any, Any, Any]]) -> None:
    """Ends a suspended coroutine. A `finally` may await something already pending; a few more rounds end that too.
    Not with `coro.close()`: before Python 3.13 that would not reach into a generator which the coroutine waits for.
    `met` gets the coroutines that its frames knew."""
    for _ in range(8):
        try:
            coro.throw(Evicted())
        except StopIteration:
            return
        except BaseException as error:
            met.update(_coroutines_in(error))
            if not _is_eviction(error):
                log.warning("workflow code raised %r while its instance left the cache", error)
            return
    log.error("a coroutine of an evicted instance would not end: %r", coro)


def _coroutines_in(error: BaseException) -> Iterator[CoroutineType[Any, Any, Any]]:
    """That were in the hands of the code when it ended: frames live for as long as the error that went through them.
    By exact types: to ask what else the values of locals are would run code of theirs, as of a dead weak proxy."""
    raised: BaseException | None = error
    seen: set[int] = set()
    while raised is not None and id(raised) not in seen:  # code may have made a circle of them
        seen.add(id(raised))
        for frame, _ in walk_tb(raised.__traceback__):
            for local in list(frame.f_locals.values()):
                few = type(local) in (list, tuple) and len(local) <= LOOKED_THROUGH
                yield from (each for each in (local if few else (local,)) if type(each) is CoroutineType)
        raised = raised.__context__


def _is_eviction(error: BaseException) -> bool:
    """Also as a TaskGroup hands it on."""
    return isinstance(error, Evicted) or (isinstance(error, BaseExceptionGroup) and error.split(Evicted)[1] is None)


def _close_generator(generator: AsyncGeneratorType[Any, Any], met: set[CoroutineType[Any, Any, Any]]) -> None:
    closing: Any = generator.aclose()
    try:
        closing.send(None)
        closing.throw(Evicted())  # a `finally` that awaits something already pending
    except StopIteration:
        return
    except BaseException as error:
        met.update(_coroutines_in(error))
        if not _is_eviction(error):
            log.warning("an asynchronous generator raised %r while its instance left the cache", error)
        return
    log.error("an asynchronous generator of an evicted instance would not end: %r", generator)


def _microseconds(seconds: float) -> int:
    return LATEST_US if seconds == math.inf else round(seconds * 1_000_000)


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(self: WorkflowLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise WorkflowIOError(
            f"workflow code called loop.{name}(): I/O, threads and processes are not replayed. "
            "Do it in an activity and await the activity."
        )

    return refuse


_ALLOWED: Final = {"get_task_factory", "set_task_factory"}
for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in WorkflowLoop.__dict__ and _name not in _ALLOWED:
        setattr(WorkflowLoop, _name, _refused(_name))
