"""Defining workflows: the `workflow` decorator and the `Workflow` object it makes. A definition knows how to turn data
into the function's arguments and to run it; where and when it runs is the engine's business.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from romancy_stream.context import WorkflowContext
from romancy_stream.engine.definitions import Scope
from romancy_stream.engine.parameters import Arguments, Parameters, checked_name, is_context_parameter, signature
from romancy_stream.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
I = TypeVar("I")  # noqa: E741

OnConflict = Literal["use_existing", "fail"]


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
