"""Whether an event is the one that somebody waits for: values of its data, found by paths, against wanted ones. Values
are compared as texts that are equal where the values are: a string is itself, 5 is 5.0 and never "5", true is not 1,
null is there. Also the name of the entity at which an event and those who wait for it meet. Pure.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import orjson

from romancy_stream.engine.fields import MISSING, follow, storable

Scalar = str | int | float | bool | None
Paths = tuple[str, ...]
Values = tuple[str, ...]
K = TypeVar("K", bound=Hashable)

MATCH_FIELDS: Final = 20
MATCH_BYTES: Final = 4_096
"""Of all wanted values as JSON: they lie in the history and beside every wait in the database."""
PATH_CHARS: Final = 255
SEGMENTS: Final = 30
"""No data is nested deeper."""
VIEWS: Final = 100
"""Sets of paths by which the kept events of one entity are indexed; code has a few of them."""
ENTITY_PREFIX: Final = "event:"
DIGEST_CHARS: Final = 40
"""160 bits: nobody finds two values of one name."""

_INT64: Final = range(-(2**63), 2**63)


# -- wanted values ---------------------------------------------------------------------------------------------------
def checked_match(match: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """As it goes into the history. ValueError for what no JSON scalar is, or is no path."""
    wanted = {checked_path(path): _scalar(path, value) for path, value in (match or {}).items()}
    if len(wanted) > MATCH_FIELDS:
        raise ValueError(f"match names {len(wanted)} fields, at most {MATCH_FIELDS} are possible")
    size_bytes = len(orjson.dumps(wanted))
    if size_bytes > MATCH_BYTES:
        raise ValueError(f"match has {size_bytes:,} bytes as JSON, the limit is {MATCH_BYTES:,}")
    return wanted


def checked_path(path: Any) -> str:
    """A field of the data such as "order_id", "customer.id", "lines.0.sku". ValueError."""
    if not isinstance(path, str) or not 0 < len(path) <= PATH_CHARS or not storable(path):
        raise ValueError(f"a field is a text such as 'order_id' or 'customer.id', not {path!r}")
    segments = path.split(".")
    if "" in segments or len(segments) > SEGMENTS:
        raise ValueError(f"field {path!r}: names between dots, at most {SEGMENTS} of them")
    return path


def _scalar(path: str, value: Any) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str.__str__(value)  # of an enum: its text, not its name
        if storable(text):
            return text
        raise ValueError(f"match[{path!r}]: the text contains a NUL or half a surrogate pair")
    if isinstance(value, int) and int(value) in _INT64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise ValueError(
        f"match[{path!r}]: {value!r} of type {type(value).__name__} is no string, boolean, None, or number of 64 bits; "
        "write it as it stands in the JSON of the event, such as str(value)"
    )


def wanted(match: Mapping[str, Scalar]) -> tuple[Paths, Values]:
    """Of a match that was checked."""
    paths = tuple(sorted(match))
    return paths, tuple(_canonical_scalar(match[path]) for path in paths)


def _canonical_scalar(value: Scalar) -> str:
    text = canonical(Decimal(repr(value)) if isinstance(value, float) else value)
    assert text is not None
    return text


def canonical(value: Any) -> str | None:
    """The same text for equal values, None for arrays and objects. Floats only as Decimal: digits count."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return '"' + value
    if isinstance(value, int):
        return _number(value < 0, str(abs(value)), 0)
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        return _number(sign == 1, "".join(map(str, digits)), int(exponent))
    return None


def _number(negative: bool, digits: str, exponent: int) -> str:
    short = digits.lstrip("0").rstrip("0")
    if not short:
        return "0"
    exponent += len(digits) - len(digits.rstrip("0"))
    return f"{'-' if negative else ''}{short}e{exponent}"


# -- documents -------------------------------------------------------------------------------------------------------
class Document:
    """Data of an event, parsed when it is first looked at."""

    __slots__ = ("_exact", "_raw", "_value")

    def __init__(self, raw: bytes | None) -> None:
        self._raw = raw
        self._value: Any = None
        self._exact: Any = None

    def values(self, paths: Paths) -> Values | None:
        """Of these fields, as canonical texts; None when one of them is not there or is no scalar."""
        found = []
        for path in paths:
            text = self.value(path)
            if text is None:
                return None
            found.append(text)
        return tuple(found)

    def value(self, path: str) -> str | None:
        if self._raw is None:
            return None
        if self._value is None:
            self._value = (_parsed(self._raw),)
        segments = _segments(path)
        leaf = follow(self._value[0], segments)
        if isinstance(leaf, float):  # or an integer that has more than 64 bits
            if self._exact is None:
                self._exact = (json.loads(self._raw, parse_int=Decimal, parse_float=Decimal),)
            leaf = follow(self._exact[0], segments)
        return canonical(leaf)


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except ValueError:  # sealed by somebody else, or kept elsewhere: it matches nothing
        return MISSING


@lru_cache(maxsize=1_024)
def _segments(path: str) -> Sequence[str]:
    return tuple(path.split("."))


# -- where they meet -------------------------------------------------------------------------------------------------
def entity_name(type_: str, value: str | None) -> str:
    """`value`: canonical, of the field that the type is routed by; None for a type without one."""
    identity = type_ if value is None else f"{type_}\0{value}"
    return ENTITY_PREFIX + hashlib.sha256(identity.encode()).hexdigest()[:DIGEST_CHARS]


def entity_of_event(keys: Mapping[str, str | None], type_: str, document: Document) -> str | None:
    """None: the data lacks the field that the type is routed by."""
    key = keys.get(type_)
    if key is None:
        return entity_name(type_, None)
    value = document.value(key)
    return None if value is None else entity_name(type_, value)


def entity_of_wait(keys: Mapping[str, str | None], type_: str, match: Mapping[str, Scalar]) -> str:
    """ValueError when the match lacks the field that the type is routed by."""
    key = keys.get(type_)
    if key is None:
        return entity_name(type_, None)
    if key not in match:
        raise ValueError(
            f"events of type {type_!r} are routed by {key!r} (app.event): a wait for them needs match={{{key!r}: ...}}"
        )
    return entity_name(type_, _canonical_scalar(match[key]))


# -- many at once ----------------------------------------------------------------------------------------------------
class Waiting(Generic[K]):
    """Who waits for what, so that an event finds those whom it matches without a look at the others."""

    def __init__(self) -> None:
        self._by_paths: dict[Paths, dict[Values, dict[K, None]]] = {}
        self._wanted: dict[K, tuple[Paths, Values]] = {}

    def add(self, key: K, paths: Paths, values: Values) -> None:
        self.remove(key)
        self._wanted[key] = (paths, values)
        self._by_paths.setdefault(paths, {}).setdefault(values, {})[key] = None

    def remove(self, key: K) -> None:
        found = self._wanted.pop(key, None)
        if found is None:
            return
        paths, values = found
        by_values = self._by_paths[paths]
        del by_values[values][key]
        if not by_values[values]:
            del by_values[values]
        if not by_values:
            del self._by_paths[paths]

    def matching(self, document: Document) -> list[K]:
        found: list[K] = []
        for paths, by_values in self._by_paths.items():
            values = document.values(paths)
            if values is not None and values in by_values:
                found += by_values[values]
        return found


class Kept:
    """Data by number, so that who comes to wait finds the oldest that matches without a look at the others."""

    def __init__(self) -> None:
        self._data: dict[int, bytes | None] = {}
        self._views: dict[Paths, _View] = {}

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, number: int) -> bool:
        return number in self._data

    def add(self, number: int, data: bytes | None) -> None:
        self._data[number] = data
        document = Document(data)
        for paths, view in self._views.items():
            view.add(number, document.values(paths))

    def remove(self, number: int) -> None:
        if number in self._data:
            del self._data[number]
            for view in self._views.values():
                view.remove(number)

    def oldest(self, paths: Paths = (), values: Values = ()) -> int | None:
        if not self._data:
            return None
        view = self._views.get(paths)
        if view is None:
            view = self._new_view(paths)
        return view.oldest(values)

    def _new_view(self, paths: Paths) -> _View:
        if len(self._views) >= VIEWS:
            self._views.clear()
        view = self._views[paths] = _View()
        for number, data in self._data.items():
            view.add(number, Document(data).values(paths))
        return view


class _View:
    """Numbers by the values of some fields."""

    def __init__(self) -> None:
        self._numbers: dict[Values, list[int]] = {}  # each in order
        self._values: dict[int, Values] = {}

    def add(self, number: int, values: Values | None) -> None:
        if values is not None:
            self._values[number] = values
            insort(self._numbers.setdefault(values, []), number)

    def remove(self, number: int) -> None:
        values = self._values.pop(number, None)
        if values is None:
            return
        numbers = self._numbers[values]
        del numbers[bisect_left(numbers, number)]
        if not numbers:
            del self._numbers[values]

    def oldest(self, values: Values) -> int | None:
        numbers = self._numbers.get(values)
        return numbers[0] if numbers else None


def matches(match: Mapping[str, Scalar], document: Document) -> bool:
    """Of a match that was checked."""
    if not match:
        return True
    paths, values = wanted(match)
    return document.values(paths) == values


def first_match(waits: Iterable[tuple[str, Mapping[str, Any]]], type_: str, document: Document) -> str | None:
    """The first of open waits (ref, attrs of its `wait.started`) that an event fits."""
    for ref, attrs in waits:
        if attrs["type"] == type_ and matches(attrs.get("match", {}), document):
            return ref
    return None
