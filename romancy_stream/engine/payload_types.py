"""Types that pydantic does not take as they are, rewritten into ones that it does: `typing.TypedDict` before
Python 3.12, and msgspec structs (msgspec is optional; a struct in a hint proves that it is installed). Pure.
"""

from __future__ import annotations

import sys
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typing_extensions


def portable(annotation: Any, within: tuple[Any, ...] = ()) -> Any:
    """The annotation with every such type in it replaced; the same object when there is none. Fields of models
    and dataclasses are not looked into: those classes are the user's. `within`: the TypedDicts around it."""
    if is_struct(annotation):
        return _struct(annotation)
    if typing_extensions.is_typeddict(annotation):
        return _typed_dict(annotation, within)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal or not args:
        return annotation
    if origin is Annotated:
        inner = portable(args[0], within)
        return annotation if inner is args[0] else Annotated[(inner, *args[1:])]
    replaced = tuple(portable(arg, within) for arg in args)
    if all(new is old for new, old in zip(replaced, args, strict=True)):
        return annotation
    if origin is Union or origin is types.UnionType:
        return Union[replaced]  # noqa: UP007 (built at runtime)
    if hasattr(annotation, "copy_with"):
        return annotation.copy_with(replaced)
    return origin[replaced]


# -- TypedDict -------------------------------------------------------------------------------------------------
def _typed_dict(annotation: Any, within: tuple[Any, ...]) -> Any:
    too_old = sys.version_info < (3, 12) and type(annotation).__module__ == "typing"
    if annotation in within:
        if too_old:
            raise TypeError(f"{annotation.__name__} contains itself: use typing_extensions.TypedDict for it")
        return annotation
    wrappers: Any = (typing_extensions.Required, typing_extensions.NotRequired)
    fields: dict[str, Any] = {}
    changed = too_old
    for name, hint in typing_extensions.get_type_hints(annotation, include_extras=True).items():
        bare = get_args(hint)[0] if get_origin(hint) in wrappers else hint
        new = portable(bare, (*within, annotation))
        changed = changed or new is not bare
        fields[name] = wrappers[0 if name in annotation.__required_keys__ else 1][new]
    if not changed:
        return annotation
    make: Any = typing_extensions.TypedDict
    made = make(annotation.__name__, fields)
    made.__module__ = annotation.__module__
    if hasattr(annotation, "__pydantic_config__"):
        made.__pydantic_config__ = annotation.__pydantic_config__
    return made


# -- msgspec ---------------------------------------------------------------------------------------------------
def is_struct(annotation: Any) -> bool:
    cls = get_origin(annotation) or annotation
    return isinstance(cls, type) and hasattr(cls, "__struct_config__")


def _struct(annotation: Any) -> Any:
    import msgspec
    from pydantic import PlainSerializer, PlainValidator

    cls = get_origin(annotation) or annotation
    msgspec.json.Decoder(annotation)  # refuses fields without a JSON form now, not at the first value

    def read(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        try:
            return msgspec.convert(value, annotation)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error

    return Annotated[Any, PlainValidator(read), PlainSerializer(msgspec.to_builtins)]


def struct_as_json(value: Any) -> Any:
    """For structs that stand where no type was declared."""
    if not is_struct(type(value)):
        raise TypeError(f"{type(value).__qualname__} has no JSON form")
    import msgspec

    return msgspec.to_builtins(value)
