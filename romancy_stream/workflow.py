"""Defining workflows: the `workflow` decorator and the `Workflow` object it makes. A definition knows how to turn data
into the function's arguments and to run it; where and when it runs is the engine's business.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from inspect import Parameter
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from romancy_stream.child import OF_CLASS
from romancy_stream.context import WorkflowContext
from romancy_stream.engine.definitions import Scope
from romancy_stream.engine.parameters import Arguments, Parameters, checked_name, is_context_parameter, signature
from romancy_stream.errors import ConfigurationError
from romancy_stream.interaction import (
    AnyHandler,
    Query,
    QueryDecorator,
    Signal,
    SignalDecorator,
    Update,
    UpdateDecorator,
    add_handler,
    methods_of,
    resolve_all,
)
from romancy_stream.options import CHILD_OPTIONS, START_OPTIONS, OnConflict, ParentClose, Reuse, StartOptions
from romancy_stream.queues import Concurrency

P = ParamSpec("P")
R = TypeVar("R")
Q = ParamSpec("Q")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
I = TypeVar("I")  # noqa: E741

VERSION_CHARS: Final = 64
"""Of a workflow's version: the width of its column."""


class WorkflowHandle(Protocol[R_co]):
    """A started instance."""

    @property
    def instance_id(self) -> str: ...

    async def result(self, timeout: float | None = None) -> R_co:
        """Raises WorkflowFailedError, WorkflowCancelledError, InvalidInputError, UnknownWorkflowError,
        TimeoutError."""
        ...


class Runs(Protocol[P, R_co]):
    """What a class has to have to be a workflow. `__init__` takes ctx or nothing, and may be left out."""

    def run(self, ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...


class Starter(Protocol):
    """What starts instances: the app and the client."""

    @overload
    async def start(
        self,
        workflow: Startable[[], R],
        /,
        *,
        instance_id: str | None = None,
        on_conflict: OnConflict | None = None,
        reuse: Reuse | None = None,
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(
        self,
        workflow: Startable[[I], R],
        input: I,
        /,
        *,
        instance_id: str | None = None,
        on_conflict: OnConflict | None = None,
        reuse: Reuse | None = None,
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(self, workflow: Startable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R]: ...


@dataclass(slots=True)
class _Binding:
    """Shared by a workflow and its copies with options, which may be made before an app comes along."""

    starter: Starter | None = None


class Workflow(Generic[P, R]):
    """A workflow definition. `name` is its identity in the log and on the wire. `code` is the function, or the class
    with its `run`. Implements `engine.definitions.WorkflowDef`."""

    def __init__(
        self,
        code: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]] | type[Runs[P, R]],
        *,
        name: str | None = None,
        event_handler: bool = False,
        version: str | None = None,
        default: bool = False,
        concurrency: Concurrency | None = None,
    ) -> None:
        self.code = code
        self._class = code if isinstance(code, type) else None
        function = _run_of(code) if isinstance(code, type) else code
        if not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"a workflow must be an `async def` function, or a class with an `async def run`, not {code!r}"
            )
        self.name = checked_name(code.__name__ if name is None else name)
        self.version = _checked_version(version)
        self.is_default = default
        self.concurrency = concurrency
        what = f"workflow {self.name!r}"
        methods = int(self._class is not None)  # `self` stands first
        leading = list(signature(function).parameters.values())[methods : methods + 1]
        if not leading or not is_context_parameter(function, leading[0], WorkflowContext, any_name=True):
            where = "the parameter after self" if methods else "the first parameter"
            raise TypeError(f"{what}: {where} must be `ctx: WorkflowContext`")
        self.function = function
        self.event_handler = event_handler
        self.options = StartOptions()
        self.parameters = Parameters(function, skip=methods + 1, what=what)
        self.handlers: dict[str, AnyHandler] = {} if self._class is None else methods_of(self._class)
        self._made_with_ctx = self._class is not None and _takes_ctx(self._class, what)
        self._binding = _Binding()
        # Not the members of a class: they would become attributes of this object.
        functools.update_wrapper(self, code, updated=("__dict__",) if self._class is None else ())

    __name__: str
    __qualname__: str

    @staticmethod
    def of(workflow: Startable[Q, T], /) -> Workflow[Q, T]:
        """Of a class that is a workflow, or of what is one already. TypeError for anything else."""
        found = vars(workflow).get(OF_CLASS) if isinstance(workflow, type) else workflow
        if not isinstance(found, Workflow):
            hint = ": it needs @workflow" if isinstance(workflow, type) else ""
            raise TypeError(f"{workflow!r} is no workflow{hint}")
        return found

    def __call__(self, ctx: WorkflowContext, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Runs the function itself, as in a unit test."""
        function: Callable[..., Coroutine[Any, Any, R]] = self.function
        leading = () if self._class is None else (self._make(ctx),)
        return function(*leading, ctx, *args, **kwargs)

    def _make(self, ctx: WorkflowContext) -> Any:
        make: Callable[..., Any] | None = self._class
        if make is None:
            return None
        return make(ctx) if self._made_with_ctx else make()

    # -- handlers of a workflow that is a function; a class has its own as methods ------------------------------------
    @property
    def signal(self) -> SignalDecorator:
        """Decorator of a function `(ctx, ...)` that takes what callers say. With and without parentheses."""
        return cast(SignalDecorator, functools.partial(self._handler, Signal))

    @property
    def query(self) -> QueryDecorator:
        """Decorator of a plain function `(ctx, ...)` that answers and changes nothing."""
        return cast(QueryDecorator, functools.partial(self._handler, Query))

    @property
    def update(self) -> UpdateDecorator:
        """Decorator of a function `(ctx, ...)` that changes something and answers."""
        return cast(UpdateDecorator, functools.partial(self._handler, Update))

    def _handler(self, kind: type[AnyHandler], function: Any = None, /, *, name: str | None = None) -> Any:
        if function is None:
            return functools.partial(self._handler, kind, name=name)
        handler = kind(function, name=name, method=False)
        add_handler(self.handlers, handler, self.parameters.what)
        return handler

    def __repr__(self) -> str:
        return f"<Workflow {self.name}>"

    def with_options(
        self,
        *,
        instance_id: str | None = None,
        on_conflict: OnConflict | None = None,
        reuse: Reuse | None = None,
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
        parent_close: ParentClose | None = None,
    ) -> Workflow[P, R]:
        """The same workflow, to be started with these options; None keeps what was set. `parent_close` is for children,
        `on_conflict` and `reuse` are for all others."""
        given = {
            "instance_id": instance_id,
            "on_conflict": on_conflict,
            "reuse": reuse,
            "start_delay": start_delay,
            "start_at": start_at,
            "parent_close": parent_close,
        }
        changed = copy.copy(self)
        changed.options = self.options.changed(given)
        return changed

    def of_start(self, kwargs: dict[str, Any]) -> tuple[Workflow[P, R], dict[str, Any]]:
        """Start options stand beside the input where the workflow has at most one parameter; where it has named ones,
        all names are its own and options come by `with_options`."""
        return self._of_call(kwargs, START_OPTIONS)

    def of_child(self, kwargs: dict[str, Any]) -> tuple[Workflow[P, R], dict[str, Any]]:
        return self._of_call(kwargs, CHILD_OPTIONS)

    def _of_call(self, kwargs: dict[str, Any], names: tuple[str, ...]) -> tuple[Workflow[P, R], dict[str, Any]]:
        options = {name: kwargs[name] for name in names if name in kwargs}
        if not options or len(self.parameters.names) > 1:
            return self, kwargs
        return self.with_options(**options), {name: kwargs[name] for name in kwargs if name not in options}

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
    @property
    def slot(self) -> tuple[str | None, int] | None:
        return None if self.concurrency is None else (self.concurrency.key, self.concurrency.limit)

    def resolve(self) -> None:
        """Raises ConfigurationError for a type hint that cannot be resolved or has no JSON form."""
        self.parameters.resolve()
        resolve_all(self.handlers)

    def encode(self, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
        """The data of a start. TypeError for a wrong call, PayloadError."""
        return self.parameters.encode_input(args, kwargs)

    def decode(self, payload: bytes | None) -> Arguments:
        return self.parameters.decode_input(payload)

    def make(self, scope: Scope) -> Any:
        return self._make(WorkflowContext(scope))

    async def invoke(self, scope: Scope, arguments: Any) -> bytes:
        args, kwargs = arguments
        function: Callable[..., Coroutine[Any, Any, R]] = self.function
        leading = () if self._class is None else (scope.handlers.target,)
        result = await function(*leading, WorkflowContext(scope), *args, **kwargs)
        return self.parameters.result.encode(result)

    def decode_result(self, raw: bytes) -> R:
        result: R = self.parameters.result.decode(raw)
        return result


Startable: TypeAlias = Workflow[P, R] | type[Runs[P, R]]
"""What can be started: a workflow, or a class that is one."""
C = TypeVar("C", bound=type[Runs[..., Any]])


def _run_of(cls: type) -> Callable[..., Coroutine[Any, Any, Any]]:
    run = inspect.getattr_static(cls, "run", None)
    if not inspect.iscoroutinefunction(run):
        raise TypeError(f"a workflow class needs a method `async def run(self, ctx, ...)`; {cls!r} has none")
    return cast(Callable[..., Coroutine[Any, Any, Any]], run)


def _takes_ctx(cls: type, what: str) -> bool:
    parameters = list(signature(cls).parameters.values())
    required = [p for p in parameters if p.default is Parameter.empty and p.kind is not Parameter.VAR_POSITIONAL]
    if len(required) > 1 or any(p.kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD) for p in required):
        raise TypeError(f"{what}: __init__ takes `ctx: WorkflowContext`, or nothing; the input goes to `run`")
    init = inspect.getattr_static(cls, "__init__")
    named = [p for p in parameters[:1] if is_context_parameter(init, p, WorkflowContext, any_name=bool(required))]
    if required and not named:
        raise TypeError(f"{what}: __init__ takes `ctx: WorkflowContext`, or nothing; the input goes to `run`")
    return bool(named)


def _checked_version(version: object) -> str | None:
    """ValueError, TypeError for what cannot be a version."""
    if version is None:
        return None
    if not isinstance(version, str):
        raise TypeError(f"version must be a text, not {version!r}")
    if not 0 < len(version) <= VERSION_CHARS or not version.isprintable():
        raise ValueError(f"version must have 1 to {VERSION_CHARS} printable characters, not {version!r}")
    return version


class WorkflowDecorator(Protocol):
    @overload
    def __call__(self, cls: C, /) -> C: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> Workflow[P, R]: ...


class WorkflowDefiner(Protocol):
    """The type of `workflow` and of `app.workflow`: with and without parentheses."""

    @overload
    def __call__(self, cls: C, /) -> C: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> Workflow[P, R]: ...
    @overload
    def __call__(
        self,
        *,
        name: str | None = None,
        event_handler: bool = False,
        version: str | None = None,
        default: bool = False,
        concurrency: Concurrency | None = None,
    ) -> WorkflowDecorator: ...


def define_workflow(code: Any, **options: Any) -> Workflow[Any, Any]:
    made: Workflow[Any, Any] = Workflow(code, **options)
    if isinstance(code, type):
        setattr(code, OF_CLASS, made)
    return made


def is_workflow_class(cls: type) -> bool:
    return OF_CLASS in vars(cls)


def decorated(code: Any, made: Workflow[Any, Any]) -> Any:
    """What the decorated name is bound to: a class stays the class that it is."""
    return code if isinstance(code, type) else made


if TYPE_CHECKING:
    workflow: WorkflowDefiner
else:

    def workflow(code: Any = None, /, **options: Any) -> Any:
        """Makes a workflow of an `async def`, or of a class with an `async def run`; register it with
        `app.include(...)`. With and without parentheses. `version`: of its code, see docs/changing-code.md;
        `default`: new runs get this version, whatever is defined after it."""

        def decorate(code: Any) -> Any:
            return decorated(code, define_workflow(code, **options))

        return decorate if code is None else decorate(code)
