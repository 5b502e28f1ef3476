"""Defining signals, queries and updates: what callers may say to a running workflow, and ask it. The decorators stand
on a workflow that is a function (`@order.signal`) and, imported from the package, on methods of one that is a class.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, overload

from romancy_stream.context import WorkflowContext
from romancy_stream.engine.definitions import HandlerKind, Scope
from romancy_stream.engine.parameters import Arguments, Parameters, checked_name, is_context_parameter, signature
from romancy_stream.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., object])


class Handler(Generic[P, R_co]):
    """A signal, query or update. `name` is its identity on the wire. Implements `engine.definitions.HandlerDef`."""

    kind: HandlerKind

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, method: bool) -> None:
        if not inspect.isroutine(function) or _is_generator(function):
            raise TypeError(f"a {self.kind} must be a `def` or `async def` function, not {function!r}")
        self.name = checked_name(function.__name__ if name is None else name)
        self.function = function
        self._method = method
        self._takes_context = _takes_context(function, skip=int(method))
        self.parameters = Parameters(function, skip=method + self._takes_context, what=f"{self.kind} {self.name!r}")
        functools.update_wrapper(self, function)

    __name__: str
    __qualname__: str

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> Callable[..., Any]: ...
    def __get__(self, instance: object | None, owner: Any) -> Any:
        """On an object of the class it is the method itself, for other methods to call."""
        return self if instance is None or not self._method else functools.partial(self.function, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function itself, as in a unit test."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # -- for callers ---------------------------------------------------------------------------------------------
    def encode(self, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
        """TypeError for a wrong call, PayloadError."""
        return self.parameters.encode_input(args, kwargs)

    def decode_result(self, raw: bytes) -> R_co:
        result: R_co = self.parameters.result.decode(raw)
        return result

    # -- for the engine ------------------------------------------------------------------------------------------
    def resolve(self) -> None:
        """Raises ConfigurationError for a type hint that cannot be resolved or has no JSON form."""
        self.parameters.resolve()

    def decode(self, payload: bytes | None) -> Arguments:
        return self.parameters.decode_input(payload)

    def _run(self, function: Callable[..., Any], takes_context: bool, scope: Scope, arguments: Arguments) -> Any:
        leading: list[Any] = [scope.handlers.target] if self._method else []
        if takes_context:
            leading.append(WorkflowContext(scope))
        return function(*leading, *arguments.args, **arguments.kwargs)

    async def invoke(self, scope: Scope, arguments: Any) -> bytes:
        result = self._run(self.function, self._takes_context, scope, arguments)
        if inspect.isawaitable(result):
            result = await result
        return self.parameters.result.encode(result)

    def validate(self, scope: Scope, arguments: Any) -> None:
        raise NotImplementedError

    def answer(self, scope: Scope, arguments: Any) -> bytes:
        raise NotImplementedError


class Signal(Handler[P, None]):
    """Says something; nobody is answered. `def` or `async def`."""

    kind: Literal["signal"] = "signal"

    async def invoke(self, scope: Scope, arguments: Any) -> bytes:
        result = self._run(self.function, self._takes_context, scope, arguments)
        if inspect.isawaitable(result):
            await result
        return b"null"


class Query(Handler[P, R_co]):
    """Asks, and changes nothing. A plain `def`."""

    kind: Literal["query"] = "query"

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, method: bool) -> None:
        _refuse_async(function, "a query")
        super().__init__(function, name=name, method=method)

    def answer(self, scope: Scope, arguments: Any) -> bytes:
        result = self._run(self.function, self._takes_context, scope, arguments)
        return self.parameters.result.encode(result)


class Update(Handler[P, R_co]):
    """Changes something and is answered. `def` or `async def`."""

    kind: Literal["update"] = "update"

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, method: bool) -> None:
        super().__init__(function, name=name, method=method)
        self._validator: Callable[..., Any] | None = None
        self._validator_takes_context = False

    def validator(self, function: F) -> F:
        """Looks at the arguments before the update is accepted, and refuses it by raising. A plain `def` that takes
        what the update takes, with or without ctx, and changes nothing."""
        _refuse_async(function, "a validator")
        takes_context = _takes_context(function, skip=int(self._method))
        names = Parameters(function, skip=self._method + takes_context, what=f"validator of update {self.name!r}").names
        if names != self.parameters.names:
            raise TypeError(
                f"the validator of update {self.name!r} takes ({', '.join(names)}), "
                f"the update ({', '.join(self.parameters.names)})"
            )
        self._validator, self._validator_takes_context = function, takes_context
        return function

    def validate(self, scope: Scope, arguments: Any) -> None:
        if self._validator is not None:
            self._run(self._validator, self._validator_takes_context, scope, arguments)


AnyHandler = Signal[Any] | Query[Any, Any] | Update[Any, Any]


def add_handler(handlers: dict[str, AnyHandler], handler: AnyHandler, what: str) -> None:
    """ConfigurationError for two of one name."""
    if handlers.setdefault(handler.name, handler) is not handler:
        raise ConfigurationError(
            f"{what} has two handlers called {handler.name!r}; signals, queries and updates share their names: "
            "give one of them another name="
        )


def methods_of(cls: type) -> dict[str, AnyHandler]:
    """The handlers among the attributes of a class, inherited ones too."""
    found: dict[str, AnyHandler] = {}
    for name in dir(cls):
        each = inspect.getattr_static(cls, name)
        if isinstance(each, Signal | Query | Update) and each not in found.values():
            add_handler(found, each, f"class {cls.__name__}")
    return found


def resolve_all(handlers: Mapping[str, AnyHandler]) -> None:
    for handler in handlers.values():
        handler.resolve()


def _takes_context(function: Callable[..., Any], skip: int) -> bool:
    leading = list(signature(function).parameters.values())[skip : skip + 1]
    return bool(leading) and is_context_parameter(function, leading[0], WorkflowContext)


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _refuse_async(function: Any, what: str) -> None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{what} must be a plain `def`, it cannot await anything: {function!r}")


# -- decorators --------------------------------------------------------------------------------------------------
class SignalDecorator(Protocol):
    """On a function: `@order.signal`."""

    @overload
    def __call__(self, function: Callable[Concatenate[WorkflowContext, P], object], /) -> Signal[P]: ...
    @overload
    def __call__(self, function: Callable[P, object], /) -> Signal[P]: ...
    @overload
    def __call__(self, *, name: str | None = None) -> SignalDecorator: ...


class QueryDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[WorkflowContext, P], R], /) -> Query[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Query[P, R]: ...
    @overload
    def __call__(self, *, name: str | None = None) -> QueryDecorator: ...


class UpdateDecorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> Update[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Update[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[WorkflowContext, P], R], /) -> Update[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Update[P, R]: ...
    @overload
    def __call__(self, *, name: str | None = None) -> UpdateDecorator: ...


class SignalMethod(Protocol):
    """On a method: `@signal`."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, WorkflowContext, P], object], /) -> Signal[P]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], object], /) -> Signal[P]: ...
    @overload
    def __call__(self, *, name: str | None = None) -> SignalMethod: ...


class QueryMethod(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[Any, WorkflowContext, P], R], /) -> Query[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Query[P, R]: ...
    @overload
    def __call__(self, *, name: str | None = None) -> QueryMethod: ...


class UpdateMethod(Protocol):
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> Update[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Update[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, WorkflowContext, P], R], /) -> Update[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Update[P, R]: ...
    @overload
    def __call__(self, *, name: str | None = None) -> UpdateMethod: ...


if TYPE_CHECKING:
    signal: SignalMethod
    query: QueryMethod
    update: UpdateMethod
else:

    def _on_methods(kind: type[AnyHandler]) -> Any:
        def decorator(function: Any = None, /, **options: Any) -> Any:
            def decorate(function: Any) -> Any:
                return kind(function, method=True, **options)

            return decorate if function is None else decorate(function)

        decorator.__name__ = decorator.__qualname__ = kind.kind
        decorator.__doc__ = f"Makes a {kind.kind} of a method of a workflow class. With and without parentheses."
        return decorator

    signal = _on_methods(Signal)
    query = _on_methods(Query)
    update = _on_methods(Update)
