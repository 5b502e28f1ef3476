"""What a workflow or activity function takes and returns, as codecs. Made when the function is decorated (mistakes
that can be seen then are reported then); hints are resolved later, so that they may name what is defined further
down. Pure: no I/O.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from romancy_stream.engine.payload import (
    TypeCodec,
    checked,
    load_plain,
    make_adapter,
    small_enough,
    summary,
    unfit,
    validate,
)
from romancy_stream.engine.payload_types import portable
from romancy_stream.errors import ConfigurationError, InvalidInputError, PayloadError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_VARIADIC: Final = frozenset({Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD})
_POSITIONAL: Final = frozenset({Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD})


MAX_NAME_CHARS: Final = 190
"""Of a workflow or an activity: names become parts of ids. An instance id takes 255 characters, 33 of them for what
makes it unique; an activity id takes 200, with room here for the number of the call."""
_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Arguments(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Resolved:
    codecs: Mapping[str, TypeCodec]
    result: TypeCodec
    named: TypeAdapter[Any] | None  # the object of names, where there are two parameters or more


class Parameters:
    """`what` names the function for messages, as in "workflow 'checkout'". `skip` leading parameters (ctx) are not
    data. TypeError for `*args` and `**kwargs`."""

    def __init__(self, function: Callable[..., Any], *, skip: int, what: str) -> None:
        self.what = what
        self._function = function
        self._locals = enclosing_locals(function)
        parameters = list(signature(function).parameters.values())[skip:]
        for parameter in parameters:
            if parameter.kind in _VARIADIC:
                raise TypeError(
                    f"{what}: parameter {str(parameter)!r}: *args and **kwargs cannot be recorded; name them"
                )
        self._signature = Signature([p.replace(annotation=Parameter.empty) for p in parameters])
        self._parameters = tuple(parameters)
        self._positional = tuple(p.name for p in parameters if p.kind in _POSITIONAL)
        self._required = frozenset(p.name for p in parameters if p.default is Parameter.empty)
        self._least = len(self._required) if len(self._positional) == len(parameters) else sys.maxsize
        self._resolved: _Resolved | None = None
        self._shapes: dict[tuple[int, frozenset[str]], TypeAdapter[Any]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters that are data."""
        return tuple(p.name for p in self._parameters)

    @property
    def required(self) -> frozenset[str]:
        return self._required

    @property
    def positional_only(self) -> tuple[str, ...]:
        return tuple(p.name for p in self._parameters if p.kind is Parameter.POSITIONAL_ONLY)

    # -- hints ---------------------------------------------------------------------------------------------
    def resolve(self) -> None:
        """Raises ConfigurationError that names the function and the parameter."""
        if self._resolved is not None:
            return
        hints = self._hints()
        codecs = {
            p.name: TypeCodec(hints.get(p.name, Any), f"{self.what}, parameter {p.name!r}") for p in self._parameters
        }
        result = TypeCodec(hints.get("return", Any), f"{self.what}, result")
        for codec in (*codecs.values(), result):
            codec.build()
        named = None
        if len(codecs) > 1:
            named = make_adapter(self._names_type(codecs, self._required), self.what)
        self._resolved = _Resolved(codecs, result, named)

    @property
    def result(self) -> TypeCodec:
        return self._get().result

    def _get(self) -> _Resolved:
        if self._resolved is None:
            self.resolve()
            assert self._resolved is not None
        return self._resolved

    def _hints(self) -> dict[str, Any]:
        raw = raw_annotations(self._function)
        wanted = {*(p.name for p in self._parameters), "return"}
        hints = {}
        for name, annotation in raw.items():
            if name in wanted:
                try:
                    hints[name] = resolve_hint(self._function, annotation, self._locals)
                except Exception as error:
                    where = "return type" if name == "return" else f"parameter {name!r}"
                    raise ConfigurationError(
                        f"{self.what}, {where}: the type hint {annotation!r} cannot be resolved: {error}"
                    ) from error
        return hints

    def _names_type(self, codecs: Mapping[str, TypeCodec], required: Iterable[str]) -> Any:
        import typing_extensions

        must: Any = typing_extensions.Required
        may: Any = typing_extensions.NotRequired
        make: Any = typing_extensions.TypedDict
        hints = {name: _declared(codec) for name, codec in codecs.items()}
        return make("Parameters", {name: (must if name in required else may)[hint] for name, hint in hints.items()})

    # -- input of a workflow -------------------------------------------------------------------------------
    def encode_input(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes | None:
        """Data as `decode_input` takes it; None: no data. TypeError for a wrong call, PayloadError."""
        fit = self._all_positional(args, kwargs)
        arguments = dict(zip(self._positional, args, strict=False)) if fit else self._bind(args, kwargs).arguments
        codecs = self._get().codecs
        if len(codecs) > 1:
            parts = [b'"%s":%s' % (name.encode(), codecs[name].encode(value)) for name, value in arguments.items()]
            return checked(b"{" + b",".join(parts) + b"}", self.what)
        for name, value in arguments.items():
            return codecs[name].encode(value)
        return None

    def decode_input(self, raw: bytes | None) -> Arguments:
        """No parameter: data is ignored. One: data is its value. More: data is an object of their names, of which
        those with a default may be missing. Raises InvalidInputError, for NUL characters and size too."""
        resolved = self._get()
        if not self._parameters:
            return Arguments((), {})
        try:
            if len(self._parameters) == 1:
                if raw is None and not self._required:
                    return Arguments((), {})
                name = self._parameters[0].name
                return self._place({name: resolved.codecs[name].decode(b"null" if raw is None else raw)})
            return self._place(self._decode_names(resolved, b"{}" if raw is None else raw))
        except PayloadError as error:
            self._refuse(error)

    def _refuse(self, error: PayloadError) -> NoReturn:
        errors = error.errors or [{"loc": [], "type": error.code, "msg": str(error)}]
        raise InvalidInputError(f"{self.what}: the input is not valid: {summary(errors)}", errors) from error

    def _decode_names(self, resolved: _Resolved, raw: bytes) -> dict[str, Any]:
        checked(raw, self.what)
        data = load_plain(raw, self.what)
        unknown = [name for name in data if name not in resolved.codecs] if isinstance(data, dict) else []
        errors = [
            {"loc": [name], "type": "unexpected_keyword_argument", "msg": "Unexpected keyword argument"}
            for name in unknown
        ]
        assert resolved.named is not None
        try:
            values = validate(resolved.named, raw, self.what)
        except PayloadError as error:
            raise unfit(self.what, error.errors + errors) from error
        if errors:
            raise unfit(self.what, errors)
        return dict(values)

    def _place(self, values: Mapping[str, Any]) -> Arguments:
        """Positional where the function insists, by name otherwise."""
        args: list[Any] = []
        kwargs = dict(values)
        for parameter in self._parameters:
            if parameter.kind is not Parameter.POSITIONAL_ONLY or parameter.name not in kwargs:
                break
            args.append(kwargs.pop(parameter.name))
        stray = [p.name for p in self._parameters if p.kind is Parameter.POSITIONAL_ONLY and p.name in kwargs]
        if stray:
            missing = self._parameters[len(args)].name
            raise unfit(
                self.what, [{"loc": [missing], "type": "missing", "msg": f"Field required when {stray[0]!r} is given"}]
            )
        return Arguments(tuple(args), kwargs)

    # -- arguments of an activity --------------------------------------------------------------------------
    def encode_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """`{"args": [...], "kwargs": {...}}`, the same text however the caller split the arguments. TypeError for
        a wrong call, PayloadError."""
        codecs = self._get().codecs
        if not self._all_positional(args, kwargs):
            bound = self._bind(args, kwargs)
            args, kwargs = bound.args, bound.kwargs
        by_position = b",".join(
            [codecs[name].encode(value) for name, value in zip(self._positional, args, strict=False)]
        )
        by_name = b",".join([b'"%s":%s' % (name.encode(), codecs[name].encode(v)) for name, v in kwargs.items()])
        return small_enough(b'{"args":[' + by_position + b'],"kwargs":{' + by_name + b"}}", self.what)

    def encode_named(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], names: Iterable[str]
    ) -> list[tuple[str, bytes]]:
        """Some of the arguments of a call, each for itself, defaults too. TypeError, PayloadError."""
        bound = self._bind(args, kwargs)
        bound.apply_defaults()
        codecs = self._get().codecs
        return [(name, codecs[name].encode(bound.arguments[name])) for name in names]

    def decode_call(self, raw: bytes) -> Arguments:
        """Raises InvalidInputError when the arguments do not fit the function, as after a change of its code. `raw` was
        looked at when it was encoded, or where it came from outside."""
        try:
            call = self._usual_call(raw) or validate(self._shape_adapter(*self._shape_of(raw)), raw, self.what)
        except PayloadError as error:
            self._refuse(error)
        return Arguments(tuple(call["args"]), dict(call["kwargs"]))

    def _usual_call(self, raw: bytes) -> dict[str, Any] | None:
        """Arguments for all parameters, by position, as most calls have them: read without a look at their shape
        before. None: they are others, or do not fit."""
        if not raw.endswith(b',"kwargs":{}}') or len(self._positional) != len(self._parameters):
            return None
        try:
            call: dict[str, Any] = self._shape_adapter(len(self._positional), frozenset()).validator.validate_json(raw)
        except Exception:  # whoever reads it anew says what is wrong
            return None
        return call

    def _shape_of(self, raw: bytes) -> tuple[int, frozenset[str]]:
        data = load_plain(raw, self.what)
        args, kwargs = (data.get("args"), data.get("kwargs")) if isinstance(data, dict) else (None, None)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            message = 'arguments are {"args": [...], "kwargs": {...}}'
            raise unfit(self.what, [{"loc": [], "type": "arguments", "msg": message}])
        shape = len(args), frozenset(kwargs)
        if shape not in self._shapes:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise unfit(self.what, [{"loc": [], "type": "arguments", "msg": str(error)}]) from error
        return shape

    def _shape_adapter(self, count: int, names: frozenset[str]) -> TypeAdapter[Any]:
        """One per way of calling that was seen; `_shape_of` let only possible ones through."""
        adapter = self._shapes.get((count, names))
        if adapter is None:
            import typing_extensions

            codecs = self._get().codecs
            make: Any = typing_extensions.TypedDict
            args = GenericAlias(tuple, tuple(_declared(codecs[name]) for name in self._positional[:count]))
            kwargs = self._names_type({name: codecs[name] for name in codecs if name in names}, names)
            adapter = make_adapter(make("Call", {"args": args, "kwargs": kwargs}), self.what)
            self._shapes[count, names] = adapter
        return adapter

    def check_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """TypeError, as Python has it, for a call that does not fit."""
        if not self._all_positional(args, kwargs):
            self._bind(args, kwargs)

    def _all_positional(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """The usual case of a call that fits, which needs no `_bind`."""
        return not kwargs and self._least <= len(args) <= len(self._positional)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.what}: {error}") from None


def _declared(codec: TypeCodec) -> Any:
    return portable(codec.annotation)


# -- names ------------------------------------------------------------------------------------------------------
def checked_name(name: object) -> str:
    """ValueError, TypeError for what cannot be the name of a workflow or an activity."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, not {name!r}")
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise ValueError(f"name must have 1 to {MAX_NAME_CHARS} characters, not {len(name)}")
    if _FORBIDDEN.search(name):
        raise ValueError(f"name must be without control characters, not {name!r}")
    return name


# -- hints of a function ---------------------------------------------------------------------------------------
def signature(function: Callable[..., Any]) -> Signature:
    """Without evaluating annotations: they may name what does not exist yet."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)


def raw_annotations(function: Callable[..., Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return dict(getattr(function, "__annotations__", {}))


class _Holder:
    """What get_type_hints needs of a function, for one annotation."""

    def __init__(self, annotation: Any) -> None:
        self.__annotations__ = {"value": annotation}


def resolve_hint(function: Callable[..., Any], annotation: Any, local_names: Mapping[str, Any]) -> Any:
    """Raises whatever the evaluation raises: NameError, SyntaxError, TypeError..."""
    names = getattr(inspect.unwrap(function), "__globals__", {})
    hints = typing.get_type_hints(_Holder(annotation), names, {**names, **local_names}, include_extras=True)
    return hints["value"]


def enclosing_locals(function: Callable[..., Any]) -> dict[str, Any]:
    """Names of the function that a nested function is defined in, when that is still running (it is while a
    decorator runs). Hints as strings may use them."""
    inner = inspect.unwrap(function)
    qualname = getattr(inner, "__qualname__", "")
    if "<locals>" not in qualname:
        return {}
    outer, _, _ = qualname.rpartition(".<locals>.")
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_qualname == outer and frame.f_globals is inner.__globals__:
            return dict(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def is_context_parameter(
    function: Callable[..., Any], parameter: Parameter, context: type, *, any_name: bool = False
) -> bool:
    """Whether it is annotated with the context class, or not annotated and named ctx (or anything, `any_name`)."""
    if parameter.kind not in _POSITIONAL:
        return False
    annotation = parameter.annotation
    if annotation is Parameter.empty:
        return any_name or parameter.name == "ctx"
    try:
        annotation = resolve_hint(function, annotation, enclosing_locals(function))
    except Exception:  # not defined yet, or only for type checkers: its name has to do
        text = getattr(annotation, "__forward_arg__", annotation)
        return isinstance(text, str) and text.rpartition(".")[2] == context.__name__
    return isinstance(annotation, type) and issubclass(annotation, context)
