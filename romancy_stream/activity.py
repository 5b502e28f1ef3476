"""Defining activities: the `activity` decorator, the `Activity` object it makes, and the `ctx` that an activity's
code gets. A call does one of three things: in workflow code it is recorded and dispatched; in another activity it
runs as a part of that one; anywhere else it runs the function itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from romancy_stream.context import publication
from romancy_stream.engine.definitions import ActivityCall, Publication, Scope, UndoCall, current_scope
from romancy_stream.engine.parameters import Parameters, checked_name, is_context_parameter, signature
from romancy_stream.engine.payload import TypeCodec, encode_data, load_plain
from romancy_stream.engine.undoing import RESULT, named_call, shared_names
from romancy_stream.errors import ActivityContextError, PayloadTooLargeError
from romancy_stream.messaging import message_publication
from romancy_stream.retry import RetryPolicy
from romancy_stream.spans import seconds_above_0
from romancy_stream.wire.value import value

if TYPE_CHECKING:
    from types import CoroutineType

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

DEFAULT_QUEUE: Final = "default"
PRIORITIES: Final = range(1, 10)
HEARTBEAT_LIMIT_BYTES: Final = 100_000
"""Of details: a row that is written every few seconds is for a cursor, not for the work."""


@value
class ActivityInfo:
    """One attempt. `workflow_name` is None where the worker was not told."""

    instance_id: str
    run: int
    activity_id: str
    activity_name: str
    attempt: int = 1
    queue: str = DEFAULT_QUEUE
    workflow_name: str | None = None

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt, and in no other activity: what to hand to services that deduplicate."""
        return f"{self.instance_id}/{self.run}/{self.activity_id}"


class AttemptBackend(Protocol):
    """What the worker does for one attempt. Sessions belong to the attempt's one transaction, which is opened at
    the first `session`, `sync_session` or `publish`; all raise ActivityContextError where there can be none."""

    def session(self) -> AsyncSession: ...
    def sync_session(self) -> Session:
        """On the same transaction, for the thread of a plain function: inside `call_plain` only."""
        ...

    def publish(self, publication: Publication) -> None:
        """Leaves with the commit, or not at all."""
        ...

    def on_commit(self, callback: Callable[[], Awaitable[None] | None]) -> None: ...
    def heartbeat(self, details: bytes | None) -> None:
        """In any thread. None: the details stay. Raises ActivityCancelledError outside the event loop."""
        ...

    @property
    def heartbeat_details(self) -> bytes | None: ...
    @property
    def cancelled(self) -> bool: ...
    def call_plain(self, function: Callable[[], T]) -> T:
        """Called in the executor's thread, around a plain function."""
        ...


class ActivityContext:
    """What an activity may know of the attempt it is, and use of its transaction."""

    __slots__ = ("_backend", "_plain", "info")

    def __init__(self, info: ActivityInfo, backend: AttemptBackend, *, plain: bool = False) -> None:
        self.info = info
        self._backend = backend
        self._plain = plain

    @property
    def instance_id(self) -> str:
        return self.info.instance_id

    @property
    def run(self) -> int:
        return self.info.run

    @property
    def workflow_name(self) -> str | None:
        return self.info.workflow_name

    @property
    def activity_id(self) -> str:
        return self.info.activity_id

    @property
    def activity_name(self) -> str:
        return self.info.activity_name

    @property
    def attempt(self) -> int:
        """From 1."""
        return self.info.attempt

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt of this activity, and in no other."""
        return self.info.idempotency_key

    @property
    def session(self) -> AsyncSession:
        """The session of this attempt's transaction: the engine commits it with the activity's result. In a plain
        `def` activity it is the synchronous one, see `sync_session`. ActivityContextError where there is none."""
        if self._plain:
            return self._backend.sync_session()  # type: ignore[return-value]  # typed for the usual case
        return self._backend.session()

    @property
    def sync_session(self) -> Session:
        """`session` of a plain `def` activity, typed as what it is. ActivityContextError in an `async def` one."""
        if not self._plain:
            raise ActivityContextError("sync_session is for plain `def` activities; use ctx.session")
        return self._backend.sync_session()

    def publish_event(
        self,
        *,
        type: str,
        data: Any = None,
        source: str | None = None,
        subject: str | None = None,
        topic: str | None = None,
    ) -> None:
        """A CloudEvent that leaves when this attempt commits, or not at all. ValueError, PayloadError."""
        self._backend.publish(publication(type, data, source, subject, topic))

    def publish(self, channel: str, data: Any = None, metadata: Mapping[str, Any] | None = None) -> None:
        """A message to the subscribers of a channel, which leaves when this attempt commits, or not at all. ValueError,
        PayloadError."""
        self._backend.publish(message_publication(channel, data, metadata))

    def on_commit(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        """Called after the commit; a process that dies in between never calls it."""
        self._backend.on_commit(callback)

    # -- long activities -----------------------------------------------------------------------------------
    def heartbeat(self, details: Any = None) -> Awaitable[None]:
        """A sign of life, and how far the work is: `await` it in an `async def` activity, in a plain one just call it.
        Cheap; the database hears of it every few seconds. `details` (any JSON; None: as before) are what a later
        attempt finds in `heartbeat_details`. In a plain activity that is to stop it raises ActivityCancelledError; an
        `async def` one is cancelled. PayloadError, PayloadTooLargeError."""
        raw = encode_data(details, "heartbeat details")
        if raw is not None and len(raw) > HEARTBEAT_LIMIT_BYTES:
            raise PayloadTooLargeError(
                f"heartbeat details: {len(raw):,} bytes of JSON, the limit is {HEARTBEAT_LIMIT_BYTES:,}"
            )
        self._backend.heartbeat(raw)
        return _Done() if self._plain else asyncio.sleep(0)

    @property
    def heartbeat_details(self) -> Any:
        """Those of the last heartbeat of an attempt before this one, as plain JSON; None: there were none."""
        raw = self._backend.heartbeat_details
        return None if raw is None else load_plain(raw, "heartbeat details")

    def heartbeat_details_as(self, model: type[T]) -> T | None:
        """The same as a value of that type. PayloadError where they do not fit."""
        raw = self._backend.heartbeat_details
        if raw is None:
            return None
        details: T = TypeCodec(model, "heartbeat details").decode(raw)
        return details

    @property
    def cancelled(self) -> bool:
        """Whether this attempt is to stop: nobody wants its result any more, or the worker leaves. For plain
        activities; an `async def` one is cancelled."""
        return self._backend.cancelled

    def _for(self, plain: bool) -> ActivityContext:
        return self if plain == self._plain else ActivityContext(self.info, self._backend, plain=plain)

    def _call_plain(self, function: Callable[[], T]) -> T:
        return self._backend.call_plain(function)


class _Done:
    """An awaitable that nobody has to await."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


@value
class _Attempt:
    """What runs in this context. `executor`: where its plain functions run; None: the loop's own."""

    ctx: ActivityContext
    executor: Executor | None


_current: ContextVar[_Attempt | None] = ContextVar("romancy_stream_attempt", default=None)


def activity_context() -> ActivityContext:
    """The context of the activity that is running here, also in the thread of a plain one.
    ActivityContextError outside."""
    attempt = _current.get()
    if attempt is None or current_scope() is not None:
        raise ActivityContextError("activity_context() is for the code of a running activity; there is none here")
    return attempt.ctx


@contextmanager
def attempt(ctx: ActivityContext, *, executor: Executor | None = None) -> Iterator[ActivityContext]:
    """Activities that are called in here run as parts of this attempt."""
    token = _current.set(_Attempt(ctx, executor))
    try:
        yield ctx
    finally:
        _current.reset(token)


@dataclass(frozen=True, slots=True)
class ActivityOptions:
    """`retry` None: the app's default. Timeouts in seconds; None: none."""

    retry: RetryPolicy | None = None
    timeout_s: float | None = None
    total_timeout_s: float | None = None
    queue: str = DEFAULT_QUEUE
    activity_id: str | None = None
    heartbeat_timeout_s: float | None = None
    priority: int | None = None


class Activity(Generic[P, R]):
    """An activity definition. `name` is its identity in the log and on the wire."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
        total_timeout: float | timedelta | None = None,
        transactional: bool = True,
        queue: str = DEFAULT_QUEUE,
        heartbeat_timeout: float | timedelta | None = None,
        priority: int | None = None,
        compensate: Activity[..., Any] | None = None,
    ) -> None:
        if not inspect.isroutine(function) or _is_generator(function):
            raise TypeError(f"an activity must be an `async def` or `def` function, not {function!r}")
        self.name = checked_name(function.__name__ if name is None else name)
        what = f"activity {self.name!r}"
        leading = list(signature(function).parameters.values())[:1]
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.takes_context = bool(leading) and is_context_parameter(function, leading[0], ActivityContext)
        self.transactional = transactional
        self.options = ActivityOptions(
            retry,
            _seconds("timeout", timeout),
            _seconds("total_timeout", total_timeout),
            checked_queue(queue),
            heartbeat_timeout_s=_seconds("heartbeat_timeout", heartbeat_timeout),
            priority=_priority(priority),
        )
        self.parameters = Parameters(function, skip=int(self.takes_context), what=what)
        self.compensate = compensate
        if compensate is not None:
            if not isinstance(compensate, Activity):
                raise TypeError(f"{what}: compensate= takes an activity (decorate it as one), not {compensate!r}")
            self._shared = shared_names(self.parameters, compensate.parameters)
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Nothing happens, and no id is taken, before the coroutine first runs."""
        self.parameters.check_call(args, kwargs)
        scope = current_scope()
        if scope is not None:
            scope.refuse_if_leaving()  # now: else Python reports coroutines that a `finally` could not await any more
        coroutine = cast("CoroutineType[Any, Any, R]", self._call(args, kwargs))
        coroutine.__name__ = self.__name__  # both for Python's report of a forgotten await
        coroutine.__qualname__ = self.__qualname__
        return coroutine

    def __repr__(self) -> str:
        return f"<Activity {self.name}>"

    __name__: str
    __qualname__: str

    @property
    def retry(self) -> RetryPolicy | None:
        return self.options.retry

    @property
    def timeout_s(self) -> float | None:
        return self.options.timeout_s

    @property
    def total_timeout_s(self) -> float | None:
        return self.options.total_timeout_s

    @property
    def queue(self) -> str:
        return self.options.queue

    def with_options(
        self,
        *,
        activity_id: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
        total_timeout: float | timedelta | None = None,
        queue: str | None = None,
        heartbeat_timeout: float | timedelta | None = None,
        priority: int | None = None,
    ) -> Activity[P, R]:
        """The same activity, to be called with these options; None keeps what was set."""
        was = self.options
        changed = copy.copy(self)
        changed.options = ActivityOptions(
            retry=was.retry if retry is None else retry,
            timeout_s=was.timeout_s if timeout is None else _seconds("timeout", timeout),
            total_timeout_s=was.total_timeout_s if total_timeout is None else _seconds("total_timeout", total_timeout),
            queue=was.queue if queue is None else checked_queue(queue),
            activity_id=was.activity_id if activity_id is None else activity_id,
            heartbeat_timeout_s=(
                was.heartbeat_timeout_s
                if heartbeat_timeout is None
                else _seconds("heartbeat_timeout", heartbeat_timeout)
            ),
            priority=was.priority if priority is None else _priority(priority),
        )
        return changed

    # -- calls ---------------------------------------------------------------------------------------------
    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        scope = current_scope()
        if scope is not None:
            return await self._schedule(scope, args, kwargs)
        attempt = _current.get()
        if attempt is None and self.takes_context:
            raise ActivityContextError(
                f"activity {self.name!r} takes a ctx, and nothing is running it here: in a test, call it inside "
                "`with romancy_stream.testing.activity_context(...)`"
            )
        return await self._run(attempt, args, kwargs)

    async def _schedule(self, scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        call = self.call_with(self.parameters.encode_call(args, kwargs), self._undo(args, kwargs))
        raw = await scope.schedule_activity(call)
        result: R = self.parameters.result.decode(b"null" if raw is None else raw)
        return result

    def call_with(self, raw_args: bytes, undo: UndoCall | None = None) -> ActivityCall:
        """For the engine, with this activity's options."""
        options = self.options
        return ActivityCall(
            name=self.name,
            args=raw_args,
            queue=options.queue,
            policy=options.retry,
            timeout_s=options.timeout_s,
            total_timeout_s=options.total_timeout_s,
            activity_id=options.activity_id,
            heartbeat_timeout_s=options.heartbeat_timeout_s,
            priority=options.priority,
            undo=undo,
        )

    def _undo(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UndoCall | None:
        compensate = self.compensate
        if compensate is None:
            return None
        raw_args = named_call(self.parameters.encode_named(args, kwargs, self._shared))
        return UndoCall(compensate.call_with(raw_args), RESULT in compensate.parameters.names)

    async def _run(self, attempt: _Attempt | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """The function itself, in this attempt (None: in none). Its context becomes the current one."""
        ctx = executor = None
        if attempt is not None:
            ctx, executor = attempt.ctx._for(plain=not self.is_async), attempt.executor
            attempt = attempt if ctx is attempt.ctx else _Attempt(ctx, executor)
        if self.takes_context:
            args = (ctx, *args)
        token = _current.set(attempt)
        try:
            if self.is_async:
                result = await self.function(*args, **kwargs)
            else:
                result = await self._run_plain(ctx, executor, functools.partial(self.function, *args, **kwargs))
        finally:
            _current.reset(token)
        typed: R = result
        return typed

    async def _run_plain(self, ctx: ActivityContext | None, executor: Executor | None, call: Callable[[], Any]) -> Any:
        def run() -> Any:
            try:
                return call() if ctx is None else ctx._call_plain(call)
            except StopIteration as error:  # a future would wait for ever
                raise RuntimeError(f"activity {self.name!r} raised StopIteration") from error

        context = contextvars.copy_context()
        result = await asyncio.get_running_loop().run_in_executor(executor, context.run, run)
        return await result if inspect.isawaitable(result) else result  # a wrapper around an `async def`

    # -- for the worker ------------------------------------------------------------------------------------
    def resolve(self) -> None:
        """Raises ConfigurationError for a type hint that cannot be resolved or has no JSON form."""
        self.parameters.resolve()

    async def run_attempt(self, ctx: ActivityContext, raw_args: bytes, *, executor: Executor | None = None) -> bytes:
        """One attempt: raw JSON arguments in, raw JSON result out. Raises what the function raises, and
        InvalidInputError (arguments that no longer fit) and PayloadError (a result without a JSON form)."""
        args, kwargs = self.parameters.decode_call(raw_args)
        result = await self._run(_Attempt(ctx, executor), args, kwargs)
        return self.parameters.result.encode(result)


def _seconds(name: str, value: float | timedelta | None) -> float | None:
    return None if value is None else seconds_above_0(name, value)


_QUEUE: Final = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


def checked_queue(queue: str) -> str:
    """Raises ValueError."""
    if not isinstance(queue, str) or not _QUEUE.fullmatch(queue):
        raise ValueError(
            f"queue must be 1-100 letters, digits, '.', '_' and '-': it becomes part of a topic's name, not {queue!r}"
        )
    return queue


def _priority(priority: int | None) -> int | None:
    if priority is not None and (isinstance(priority, bool) or priority not in PRIORITIES):
        raise ValueError(f"priority must be a whole number from 1 (first) to 9, or None, not {priority!r}")
    return priority


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


# -- decorators ------------------------------------------------------------------------------------------------
class _NoContext:
    """Stands for no type that anybody writes: a first parameter that takes it takes anything (`Any`, `object`),
    and is data and not ctx."""


class ActivityDecorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[Concatenate[_NoContext, P], Coroutine[Any, Any, R]], /
    ) -> Activity[Concatenate[Any, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[ActivityContext, P], Coroutine[Any, Any, R]], /
    ) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[_NoContext, P], R], /) -> Activity[Concatenate[Any, P], R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[ActivityContext, P], R], /) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Activity[P, R]: ...


class ActivityDefiner(Protocol):
    """The type of `activity` and of `app.activity`: with and without parentheses."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[_NoContext, P], Coroutine[Any, Any, R]], /
    ) -> Activity[Concatenate[Any, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[ActivityContext, P], Coroutine[Any, Any, R]], /
    ) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[_NoContext, P], R], /) -> Activity[Concatenate[Any, P], R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[ActivityContext, P], R], /) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Activity[P, R]: ...
    @overload
    def __call__(
        self,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
        total_timeout: float | timedelta | None = None,
        transactional: bool = True,
        queue: str = DEFAULT_QUEUE,
        heartbeat_timeout: float | timedelta | None = None,
        priority: int | None = None,
        compensate: Activity[..., Any] | None = None,
    ) -> ActivityDecorator: ...


def define_activity(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    retry: RetryPolicy | None = None,
    timeout: float | timedelta | None = None,
    total_timeout: float | timedelta | None = None,
    transactional: bool = True,
    queue: str = DEFAULT_QUEUE,
    heartbeat_timeout: float | timedelta | None = None,
    priority: int | None = None,
    compensate: Activity[..., Any] | None = None,
) -> Activity[Any, Any]:
    return Activity(
        function,
        name=name,
        retry=retry,
        timeout=timeout,
        total_timeout=total_timeout,
        transactional=transactional,
        queue=queue,
        heartbeat_timeout=heartbeat_timeout,
        priority=priority,
        compensate=compensate,
    )


if TYPE_CHECKING:
    activity: ActivityDefiner
else:

    def activity(function: Any = None, /, **options: Any) -> Any:
        """Makes an activity of an `async def` or `def`; register it with `app.include(...)`. With and without
        parentheses."""

        def decorate(function: Any) -> Any:
            return define_activity(function, **options)

        return decorate if function is None else decorate(function)
