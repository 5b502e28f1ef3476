"""Values of user code as JSON text, by their type hints, both ways. Everything that crosses the log goes through a
codec, live and on replay alike, so that code sees the same value both times; what could not come back as it was is
refused while the caller is still there to be told. Pydantic does the work and is imported at first use. Pure: no I/O.

Pydantic models follow their own configuration. A model with binary `bytes` fields needs
`ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")`; everywhere else bytes are base64.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from inspect import Parameter
from types import NoneType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from romancy_stream.engine.payload_types import portable, struct_as_json
from romancy_stream.errors import ConfigurationError, PayloadError, PayloadTooLargeError
from romancy_stream.wire.json_text import has_text, has_wild_number, inner, is_deeper, parse_json
from romancy_stream.wire.malformed import MAX_DATA_BYTES, MAX_JSON_DEPTH, Malformed

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

# What every reader of events takes, with room for the envelope of a workflow's result.
MAX_PAYLOAD_BYTES: Final = MAX_DATA_BYTES
# What code may hand over where the app keeps large payloads elsewhere. It is held in memory, several times.
MAX_ENCODED_BYTES: Final = 64 * 2**20
# A list of thousands of mistakes helps nobody and would not fit into an event.
MAX_VALIDATION_ERRORS: Final = 50
# Long enough to find the value in the error message, short enough for a log line.
MAX_SHOWN_CHARS: Final = 200

# Payloads that are this short are checked once, however many steps they go through: 2 MB of them at most.
SHORT_BYTES: Final = 256
KNOWN_SHORT: Final = 4_096

# Classes whose fields are remembered: more than a program has, and a bound for one that makes classes as it runs.
MAX_KNOWN_CLASSES: Final = 1_000

_PLAIN_SCALARS: Final = frozenset({str, int, bool, NoneType})
# JSON restores every value of these but the infinite ones, which `checked` sees.
_EXACT: Final = frozenset({float, UUID, datetime, date, bytes})
_ANYTHING: Final = (Any, object, Parameter.empty)
_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class TypeCodec:
    """JSON text of one declared type. `what` says whose value it is, for error messages. Hints must be resolved
    (no strings). The pydantic adapter is built at first use, or by `build()`."""

    __slots__ = ("_adapter", "_plain", "_scalar", "annotation", "what")

    def __init__(self, annotation: Any, what: str = "value") -> None:
        self.annotation = annotation = NoneType if annotation is None else annotation
        self.what = what
        self._plain = any(self.annotation is each for each in _ANYTHING)
        self._scalar = annotation if isinstance(annotation, type) and annotation in _PLAIN_SCALARS else None
        self._adapter: TypeAdapter[Any] | None = None

    def build(self) -> None:
        """Raises ConfigurationError when the type has no JSON form."""
        if not self._plain:
            self._adapter = make_adapter(self.annotation, self.what)

    def encode(self, value: Any) -> bytes:
        """Raises PayloadError when the declared type could not restore the value, PayloadTooLargeError."""
        if self._plain:
            return _dump_plain(value, self.what)
        if self._scalar is not None and type(value) is self._scalar:
            return _dump_scalar(value, self.what)
        return self._dump_typed(value)

    def decode(self, raw: bytes) -> Any:
        """Raises PayloadError (also for NUL, NaN and Infinity), PayloadTooLargeError."""
        checked(raw, self.what)
        if self._plain:
            return load_plain(raw, self.what)
        return validate(self.adapter, raw, self.what)

    @property
    def adapter(self) -> TypeAdapter[Any]:
        if self._adapter is None:
            self._adapter = make_adapter(Any if self._plain else self.annotation, self.what)
        return self._adapter

    def _dump_typed(self, value: Any) -> bytes:
        raw = checked(_dump_adapted(self.adapter, value, self.what), self.what)
        cls = type(value)
        if cls is self.annotation and (cls in _EXACT or (cls is Decimal and value.is_finite())):
            return raw
        try:
            restored = validate(self.adapter, raw, self.what)
        except PayloadError as error:
            raise PayloadError(f"{self._not_restored(value)}: {error}") from error
        if not restores(value, restored):
            raise PayloadError(f"{self._not_restored(value)}: it would come back as {shown(restored)}")
        return raw

    def _not_restored(self, value: Any) -> str:
        return (
            f"{self.what}: the declared type {type_name(self.annotation)} cannot restore {shown(value)} of type "
            f"{type_name(type(value))}; declare the exact type, or a discriminated union"
        )


def encode_data(value: Any, what: str = "data", limit_bytes: int = MAX_PAYLOAD_BYTES) -> bytes | None:
    """JSON text of a value that only leaves, such as the data of an event: by its runtime type. None: no data.
    `limit_bytes`: more for what is sealed before it leaves."""
    if value is None:
        return None
    raw = _dump_adapted(_outgoing(), value, what)
    if b"null" in raw and has_nan(value):
        raise PayloadError(f"{what}: NaN and Infinity are not JSON")
    if len(raw) > limit_bytes:
        raise PayloadTooLargeError(f"{what}: {len(raw):,} bytes of JSON, the limit is {limit_bytes:,}")
    return checked(raw, what)


# -- limits and rules of every payload -------------------------------------------------------------------------
def checked(raw: bytes, what: str) -> bytes:
    """The same bytes, within the limits and without NUL, NaN and Infinity: no database or JSON reader takes more."""
    if not (_is_fine_short(raw) if len(raw) <= SHORT_BYTES else _is_fine(raw)):
        _refuse(raw, what)
    return raw


def _is_fine(raw: bytes) -> bool:
    """Certainly; where it is not, `_refuse` looks closer."""
    return not (
        len(raw) > MAX_ENCODED_BYTES
        or has_text(raw, b"\\u0000")
        or has_text(raw, b"NaN")
        or has_text(raw, b"Infinity")
        or has_wild_number(raw)
        or (raw.count(b"[") + raw.count(b"{") > MAX_JSON_DEPTH and _is_deep(raw))
    )


def _is_deep(raw: bytes) -> bool:
    try:
        return is_deeper(orjson.loads(raw), MAX_JSON_DEPTH)
    except orjson.JSONDecodeError:  # such as for an integer of many digits
        return True


_is_fine_short: Final = lru_cache(maxsize=KNOWN_SHORT)(_is_fine)


def small_enough(raw: bytes, what: str) -> bytes:
    """The same bytes. Raises PayloadTooLargeError."""
    if len(raw) > MAX_ENCODED_BYTES:
        raise PayloadTooLargeError(
            f"{what}: {len(raw):,} bytes of JSON, the limit is {MAX_ENCODED_BYTES:,}; "
            "keep the data elsewhere and pass a reference to it"
        )
    return raw


def _refuse(raw: bytes, what: str) -> None:
    """Raises PayloadError or PayloadTooLargeError, or finds nothing wrong after all."""
    small_enough(raw, what)
    if b"\\u0000" in raw and _ESCAPED_NUL.search(raw):
        raise PayloadError(f"{what}: NUL characters cannot be stored")
    if b"NaN" in raw or b"Infinity" in raw:
        from pydantic_core import from_json

        try:
            from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            raise PayloadError(f"{what}: NaN and Infinity are not JSON") from error
    if raw.count(b"[") + raw.count(b"{") > MAX_JSON_DEPTH or has_wild_number(raw):
        problem = parse_json(raw)
        if isinstance(problem, Malformed):
            raise PayloadError(f"{what}: {problem.message}")


def has_nan(value: Any) -> bool:
    """Whether a NaN or an infinity is anywhere in a value. (Models with pydantic's default configuration write
    null for it.)"""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(has_nan, value.values()))
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return any(map(has_nan, value))
    fields = record_fields(value)
    return fields is not None and any(has_nan(getattr(value, name, None)) for name in fields)


# -- JSON text -------------------------------------------------------------------------------------------------
def _dump_scalar(value: Any, what: str) -> bytes:
    try:
        raw = orjson.dumps(value)
    except TypeError:  # an int beyond 64 bits, or a lone surrogate
        raw = _dump_adapted(_outgoing(), value, what)
    return checked(raw, what)


def _dump_plain(value: Any, what: str) -> bytes:
    """For values without a declared type: whatever JSON itself can restore."""
    raw = _dump_scalar(value, what)
    if type(value) in _PLAIN_SCALARS:
        return raw
    try:
        faithful = bool(load_plain(raw, what) == value)
    except Exception:
        faithful = False
    if not faithful:
        raise PayloadError(
            f"{what}: plain JSON cannot restore {shown(value)} of type {type_name(type(value))}; declare its type"
        )
    return raw


def load_plain(raw: bytes, what: str) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(raw)  # unlike others, keeps integers of any size
    except ValueError as error:
        raise PayloadError(f"{what}: not JSON: {error}") from error


def _dump_adapted(adapter: TypeAdapter[Any], value: Any, what: str) -> bytes:
    try:
        return adapter.dump_json(
            value,
            by_alias=True,
            polymorphic_serialization=True,
            round_trip=True,
            warnings=False,
            fallback=struct_as_json,
        )
    except Exception as error:  # user code runs in here: properties, serializers
        hint = ""
        if "utf-8 sequence" in str(error):
            hint = ' (bytes in a model: set ser_json_bytes="base64" and val_json_bytes="base64" in its ConfigDict)'
        raise PayloadError(
            f"{what}: {shown(value)} of type {type_name(type(value))} cannot become JSON: {error}{hint}"
        ) from error


def make_adapter(annotation: Any, what: str) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypeAliasType

    # Constants instead of null: `checked` must see them. Through an alias, because pydantic refuses a configuration
    # for a type that could bring its own, and plain dataclasses inherit ours.
    config = ConfigDict(ser_json_inf_nan="constants", ser_json_bytes="base64", val_json_bytes="base64")
    try:
        make_alias: Any = TypeAliasType  # checkers want a static alias
        return TypeAdapter(make_alias("Payload", portable(annotation)), config=config)
    except Exception as error:
        raise ConfigurationError(f"{what}: type {type_name(annotation)} has no JSON form: {error}") from error


_outgoing_adapter: TypeAdapter[Any] | None = None


def _outgoing() -> TypeAdapter[Any]:
    global _outgoing_adapter
    if _outgoing_adapter is None:
        _outgoing_adapter = make_adapter(Any, "data")
    return _outgoing_adapter


def validate(adapter: TypeAdapter[Any], raw: bytes, what: str) -> Any:
    try:
        return adapter.validator.validate_json(raw)
    except Exception as error:
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            raise unfit(what, error_list(error)) from error
        # A validator of the user's that raises something of its own.
        message = f"{type(error).__name__}: {error}"
        raise unfit(what, [{"loc": [], "type": "validator_failed", "msg": message}]) from error


def unfit(what: str, errors: list[dict[str, Any]]) -> PayloadError:
    """JSON that does not fit, with a list of what is wrong."""
    return PayloadError(f"{what}: {summary(errors)}", errors)


def error_list(error: ValidationError) -> list[dict[str, Any]]:
    """JSON-able: loc, type and msg only, so that no input value leaks into logs and events."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [{"loc": list(e["loc"]), "type": e["type"], "msg": e["msg"]} for e in found[:MAX_VALIDATION_ERRORS]]


def summary(errors: Sequence[Mapping[str, Any]]) -> str:
    def line(error: Mapping[str, Any]) -> str:
        where = ".".join(map(str, error["loc"]))
        return f"{where}: {error['msg']}" if where else str(error["msg"])

    return "; ".join(map(line, errors))


# -- did the value come back? ----------------------------------------------------------------------------------
def restores(value: Any, restored: Any) -> bool:
    """Whether `restored` is `value` as its declared type has it. Containers may change into the declared kind, raw
    JSON may stand for a record; a record of another class, or any other value, is a loss."""
    if type(restored) in _PLAIN and _is_plain(restored) and _is_plain(value) and _equal(value, restored):
        return True  # most that is large: Python itself compares it in no time
    return _restores(value, restored)


def _restores(value: Any, restored: Any) -> bool:
    cls = type(restored)
    if value is restored:
        return True
    if cls in _ATOMS:
        return _equal(value, restored)
    fields = record_fields(restored)
    if fields is not None:
        if type(value) is cls:
            return all([_restores(getattr(value, name, None), getattr(restored, name, None)) for name in fields])
        return isinstance(value, Mapping) and _json_stands_for(value, restored, fields)
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 (the second is slow)
        return (
            isinstance(restored, Mapping)
            and len(value) == len(restored)
            and all([key in restored and _restores(item, restored[key]) for key, item in value.items()])
        )
    if isinstance(value, _SEQUENCES):
        if isinstance(restored, Set):
            return all(item in restored for item in value)
        return isinstance(restored, _SEQUENCES) and len(value) == len(restored) and all(map(_restores, value, restored))
    if type(value) is cls and cls.__eq__ is _IDENTITY:
        return True  # an opaque class that pydantic was taught: nothing to compare
    return _equal(value, restored)


_ATOMS: Final = frozenset({str, int, float, bool, NoneType, bytes, Decimal, UUID, datetime, date, time, timedelta})
_PLAIN: Final = frozenset({dict, list})
_PLAIN_OR_ATOMS: Final = _PLAIN | _ATOMS
_SEQUENCES: Final = (list, tuple, deque)
_IDENTITY: Final[Any] = object.__eq__


def _is_plain(value: Any) -> bool:
    """Nothing but dicts, lists and atoms, whose `==` has no surprises."""
    level = [value]
    while (kinds := set(map(type, level))) <= _PLAIN_OR_ATOMS:
        if kinds.isdisjoint(_PLAIN):
            return True
        level = inner(level)
    return False


def _equal(value: Any, restored: Any) -> bool:
    try:
        return bool(value == restored)
    except Exception:  # a user's __eq__
        return False


def _json_stands_for(value: Mapping[Any, Any], restored: Any, fields: Sequence[str]) -> bool:
    names = set(fields)
    for name, field in getattr(type(restored), "__pydantic_fields__", {}).items():
        names.update(alias for alias in (name, field.alias, field.validation_alias) if isinstance(alias, str))
    return all(
        key in names and (isinstance(item, str | int | float) or _restores(item, getattr(restored, key, item)))
        for key, item in value.items()
    )


def record_fields(value: Any) -> Sequence[str] | None:
    """The names of the fields of a model, dataclass or struct; None for anything else."""
    cls: Any = type(value)
    fields = _class_fields(cls)
    extra = getattr(value, "__pydantic_extra__", None) if fields is not None else None
    return (*fields, *extra) if fields is not None and extra else fields


@lru_cache(maxsize=MAX_KNOWN_CLASSES)
def _class_fields(cls: type) -> tuple[str, ...] | None:
    model_fields = getattr(cls, "__pydantic_fields__", None)
    if isinstance(model_fields, dict):
        return tuple(model_fields)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    struct_fields = getattr(cls, "__struct_fields__", None)
    return struct_fields if isinstance(struct_fields, tuple) else None


# -- for messages ----------------------------------------------------------------------------------------------
def shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "<a value without repr>"
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def type_name(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
