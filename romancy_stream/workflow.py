"""Defining workflows: the `workflow` decorator, the `Workflow` object it makes, and the `ctx` that workflow code
gets. A definition knows how to turn data into the function's arguments and to run it; where and when it runs is the
engine's business.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)
from uuid import UUID

from romancy_stream.engine.definitions import Publication, Scope
from romancy_stream.engine.parameters import Arguments, Parameters, checked_name, is_context_parameter, signature
from romancy_stream.engine.payload import encode_data
from romancy_stream.errors import ConfigurationError
from romancy_stream.wire.event import RESERVED_PREFIX

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
I = TypeVar("I")  # noqa: E741

OnConflict = Literal["use_existing", "fail"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# A thousand years: due times stay within what datetime and a BIGINT hold.
LONGEST_SLEEP_US: Final = 1_000 * 366 * 86_400 * 1_000_000
_US: Final = timedelta(microseconds=1)


class WorkflowHandle(Protocol[R_co]):
    """A started instance."""

    @property
    def instance_id(self) -> str: ...

    async def result(self, timeout: float | None = None) -> R_co:
        """Raises WorkflowFailedError, WorkflowCancelledError, InvalidInputError, UnknownWorkflowError,
        TimeoutError."""
        ...


@dataclass(frozen=True, slots=True)
class StartOptions:
    instance_id: str | None = None
    on_conflict: OnConflict = "use_existing"


class Starter(Protocol):
    """What starts instances: the app and the client."""

    @overload
    async def start(
        self, workflow: Workflow[[], R], /, *, instance_id: str | None = None, on_conflict: OnConflict | None = None
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(
        self,
        workflow: Workflow[[I], R],
        input: I,
        /,
        *,
        instance_id: str | None = None,
        on_conflict: OnConflict | None = None,
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R]: ...


@dataclass(slots=True)
class _Binding:
    """Shared by a workflow and its copies with options, which may be made before an app comes along."""

    starter: Starter | None = None


class Workflow(Generic[P, R]):
    """A workflow definition. `name` is its identity in the log and on the wire. Implements
    `engine.definitions.WorkflowDef`."""

    def __init__(
        self,
        function: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]],
        *,
        name: str | None = None,
        event_handler: bool = False,
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"a workflow must be an `async def` function, not {function!r}")
        self.name = checked_name(function.__name__ if name is None else name)
        what = f"workflow {self.name!r}"
        leading = list(signature(function).parameters.values())[:1]
        if not leading or not is_context_parameter(function, leading[0], WorkflowContext, any_name=True):
            raise TypeError(f"{what}: the first parameter must be `ctx: WorkflowContext`")
        self.function = function
        self.event_handler = event_handler
        self.options = StartOptions()
        self.parameters = Parameters(function, skip=1, what=what)
        self._binding = _Binding()
        functools.update_wrapper(self, function)

    __name__: str
    __qualname__: str

    def __call__(self, ctx: WorkflowContext, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Runs the function itself, as in a unit test."""
        return self.function(ctx, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<Workflow {self.name}>"

    def with_options(self, *, instance_id: str | None = None, on_conflict: OnConflict | None = None) -> Workflow[P, R]:
        """The same workflow, to be started with these options; None keeps what was set."""
        changed = copy.copy(self)
        changed.options = StartOptions(
            self.options.instance_id if instance_id is None else instance_id,
            self.options.on_conflict if on_conflict is None else on_conflict,
        )
        return changed

    def bind(self, starter: Starter) -> None:
        """Called by the app that the workflow is registered with; the last one starts it."""
        self._binding.starter = starter

    async def start(self, *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R]:
        """Through the app that the workflow is registered with."""
        starter = self._binding.starter
        if starter is None:
            raise ConfigurationError(
                f"workflow {self.name!r} belongs to no app: define it with @app.workflow, or call "
                "app.include(...), or start it with app.start(...)"
            )
        # Checkers cannot choose among its overloads for a ParamSpec that is still open.
        return await cast(Any, starter).start(self, *args, **kwargs)  # type: ignore[no-any-return]

    # -- for the engine ------------------------------------------------------------------------------------
    def resolve(self) -> None:
        """Raises ConfigurationError for a type hint that cannot be resolved or has no JSON form."""
        self.parameters.resolve()

    def encode(self, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
        """The data of a start. TypeError for a wrong call, PayloadError."""
        return self.parameters.encode_input(args, kwargs)

    def decode(self, payload: bytes | None) -> Arguments:
        return self.parameters.decode_input(payload)

    async def invoke(self, scope: Scope, arguments: Any) -> bytes:
        args, kwargs = arguments
        function: Callable[..., Coroutine[Any, Any, R]] = self.function
        result = await function(WorkflowContext(scope), *args, **kwargs)
        return self.parameters.result.encode(result)

    def decode_result(self, raw: bytes) -> R:
        result: R = self.parameters.result.decode(raw)
        return result


class WorkflowDecorator(Protocol):
    def __call__(
        self, function: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> Workflow[P, R]: ...


class WorkflowDefiner(Protocol):
    """The type of `workflow` and of `app.workflow`: with and without parentheses."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> Workflow[P, R]: ...
    @overload
    def __call__(self, *, name: str | None = None, event_handler: bool = False) -> WorkflowDecorator: ...


def define_workflow(
    function: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]],
    *,
    name: str | None = None,
    event_handler: bool = False,
) -> Workflow[P, R]:
    return Workflow(function, name=name, event_handler=event_handler)


if TYPE_CHECKING:
    workflow: WorkflowDefiner
else:

    def workflow(function: Any = None, /, **options: Any) -> Any:
        """Makes a workflow of an `async def`; register it with `app.include(...)`. With and without parentheses."""

        def decorate(function: Any) -> Any:
            return define_workflow(function, **options)

        return decorate if function is None else decorate(function)


class WorkflowContext:
    """What workflow code may use of the world outside: everything here is the same again on replay."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def instance_id(self) -> str:
        return self._scope.instance_id

    @property
    def run(self) -> int:
        """Generation of the instance, from 1."""
        return self._scope.run

    @property
    def workflow_name(self) -> str:
        return self._scope.workflow_name

    @property
    def is_replaying(self) -> bool:
        """For logging only: what depends on it is not the same on replay."""
        return self._scope.replaying

    @property
    def random(self) -> Random:
        return self._scope.random

    def now(self) -> datetime:
        """Log time, aware, UTC: stands still between two awaits."""
        return EPOCH + timedelta(microseconds=self._scope.now_us())

    def uuid(self) -> UUID:
        return self._scope.uuid()

    async def sleep(self, duration: float | timedelta) -> None:
        """Durable. In seconds, or a timedelta; nothing or less has passed already."""
        await self._scope.start_timer(self._scope.now_us() + _duration_us(duration))

    async def sleep_until(self, moment: datetime) -> None:
        """Durable. ValueError for a naive datetime; a moment in the past has passed already."""
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise ValueError(f"sleep_until needs an aware datetime, {moment!r} has no time zone")
        await self._scope.start_timer((moment - EPOCH) // _US)

    def publish_event(
        self,
        *,
        type: str,
        data: Any = None,
        source: str | None = None,
        subject: str | None = None,
        topic: str | None = None,
    ) -> None:
        """A CloudEvent, sent once this step is durable; never again on replay. ValueError, PayloadError."""
        self._scope.publish(publication(type, data, source, subject, topic))


def publication(type: str, data: Any, source: str | None, subject: str | None, topic: str | None) -> Publication:
    """Raises ValueError for what is no CloudEvent of a user, PayloadError."""
    given = {"type": type, "source": source, "subject": subject, "topic": topic}
    for name, value in given.items():
        if value is not None and (not isinstance(value, str) or not value or "\x00" in value):
            raise ValueError(f"{name} must be a text that is not empty, not {value!r}")
    if type.startswith(RESERVED_PREFIX):
        raise ValueError(f"type {type!r}: types that begin with {RESERVED_PREFIX!r} are the engine's own")
    return Publication(type, encode_data(data, f"data of event {type!r}"), source, subject, topic)


def _duration_us(duration: float | timedelta) -> int:
    if isinstance(duration, timedelta):
        us = duration // _US
    elif math.isfinite(duration):
        us = round(duration * 1_000_000)
    else:
        raise ValueError(f"a sleep must be finite, not {duration!r}")
    if us > LONGEST_SLEEP_US:
        raise ValueError(f"a sleep may last {LONGEST_SLEEP_US // 1_000_000:,} s at most, not {duration!r}")
    return max(0, us)
