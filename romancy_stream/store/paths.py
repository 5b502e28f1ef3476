"""Finding instances by what stands in their input: dot paths, the values they are compared with, and the SQL that
narrows a search down. Values and SQL fragments only; runs nothing.

The database narrows, Python decides. Three databases disagree on array indexes, repeated keys, escapes in keys,
trailing spaces and numbers beyond a double; so each predicate here may let a row too many through, never one too
few, and `InputFilter.matches` gives the one answer. A predicate's text depends only on the number and the kind of
a path's segments: keys and values are always bound.

A path is segments joined by dots; a key that contains a dot cannot be named. A segment that is an array index (0, 7,
12; not 07 or -1) takes the element where it meets an array and the key of that name where it meets an object.
Repeated keys: the last one counts. A float stands for the decimal that Python prints for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import product
from typing import Any, Final, TypeAlias

from sqlalchemy import ARRAY, Text, TextClause, bindparam, text

from romancy_stream.engine.fields import MISSING, follow, is_index, storable
from romancy_stream.errors import InvalidPathError

FILTERS_MAX: Final = 20  # each is a subquery of its own on SQLite and MariaDB
PATH_CHARS_MAX: Final = 1000
SEGMENTS_MAX: Final = 30  # MariaDB reads JSON down to 31 levels; SQLite joins 64 tables
NUMBER_DIGITS_MAX: Final = 1000  # beyond that nobody searches
NUMBER_EXPONENT_MAX: Final = 10_000  # PostgreSQL's numeric ends at 16,383 digits after the point
FORKS_MAX: Final = 4  # index segments that are followed both as index and as key: at most 2**4 paths

Scalar: TypeAlias = str | Decimal | bool | None

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\Z")  # written in one way only, unless as \uXXXX
_BY_NUMBER: Final = "\\u"
_INT64 = range(-(2**63), 2**63)
_UNREADABLE_NUMBER: Final = object()


@dataclass(frozen=True, slots=True)
class InputFilter:
    """`path` leads to `value`: a string, number, boolean or null."""

    path: str
    segments: tuple[str, ...]
    value: Scalar

    @property
    def impossible(self) -> bool:
        """True where no document can hold the value, since no database stores it."""
        return isinstance(self.value, str) and not storable(self.value)

    @staticmethod
    def can_ask_for(value: object) -> bool:
        """`value`: out of what `read_document` gave."""
        return value is None or isinstance(value, str | Decimal | bool)

    def matches(self, document: object) -> bool:
        """`document`: what `read_document` gave."""
        found = follow(document, self.segments)
        return type(found) is type(self.value) and found == self.value


def parse_filters(filters: Mapping[str, Any]) -> tuple[InputFilter, ...]:
    """Raises InvalidPathError for a path that cannot be read, ValueError for a value that is no JSON scalar or for
    more than FILTERS_MAX filters. Sorted by path, so that equal filters are equal tuples."""
    if len(filters) > FILTERS_MAX:
        raise ValueError(f"{len(filters)} input filters; at most {FILTERS_MAX} are possible")
    parsed = [InputFilter(path, parse_path(path), _scalar(path, value)) for path, value in filters.items()]
    return tuple(sorted(parsed, key=lambda parsed_filter: parsed_filter.path))


def parse_path(path: str) -> tuple[str, ...]:
    if not isinstance(path, str) or not path:
        raise InvalidPathError(f"a path is text like 'customer.id', not {path!r}")
    if len(path) > PATH_CHARS_MAX:
        raise InvalidPathError(f"path {path[:40]!r}… has {len(path)} characters; at most {PATH_CHARS_MAX} are possible")
    if not storable(path):
        raise InvalidPathError(f"path {path!r} contains a NUL or half a surrogate pair")
    segments = tuple(path.split("."))
    if "" in segments:
        raise InvalidPathError(f"path {path!r} has an empty segment")
    if len(segments) > SEGMENTS_MAX:
        raise InvalidPathError(f"path {path!r} is {len(segments)} levels deep; at most {SEGMENTS_MAX} are possible")
    return segments


def tagged(value: Scalar) -> list[str | bool | None]:
    """As JSON that is the same for values that are equal."""
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        text = "".join(map(str, digits)).lstrip("0")
        plain = text.rstrip("0")
        # 5, 5.0 and 50E-1 are one number. Not normalize(): it rounds to the context's precision.
        return ["number", f"{'-' * sign}{plain}E{int(exponent) + len(text) - len(plain)}" if plain else "0"]
    return ["other", value]


def read_document(raw: bytes | None) -> object:
    """The input for `matches`: numbers as Decimal. What is absent or cannot be read matches nothing."""
    if raw is None:
        return MISSING
    try:
        return json.loads(raw, parse_int=_number, parse_float=_number)
    except (ValueError, RecursionError):  # a search must not fail because of one row: get_instance still shows it
        return MISSING


def _number(digits: str) -> object:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent of nineteen digits
        return _UNREADABLE_NUMBER


def _scalar(path: str, value: object) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enum: its text, not its name
    if isinstance(value, int | float | Decimal):
        return _decimal(path, value)
    raise ValueError(f"input filter {path!r}: a value is a string, number, boolean or None, not {type(value).__name__}")


def _decimal(path: str, value: int | float | Decimal) -> Decimal:
    if isinstance(value, int) and value.bit_length() > 4 * NUMBER_DIGITS_MAX:
        raise ValueError(f"input filter {path!r}: the number has more than {NUMBER_DIGITS_MAX} digits")
    number = Decimal(float.__repr__(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise ValueError(f"input filter {path!r}: {value!r} is no JSON number")
    _, digits, exponent = number.as_tuple()
    if len(digits) > NUMBER_DIGITS_MAX or abs(int(exponent)) > NUMBER_EXPONENT_MAX:
        raise ValueError(
            f"input filter {path!r}: a number has at most {NUMBER_DIGITS_MAX} digits and an exponent "
            f"within ±{NUMBER_EXPONENT_MAX}"
        )
    return number


# -- SQL: true at least wherever `matches` is -------------------------------------------------------------------


class _Binds:
    """Collects the values of one fragment under names that no other fragment has."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._params: list[Any] = []

    def add(self, value: object, type_: Any = None) -> str:
        """Returns the placeholder."""
        name = f"{self._prefix}_{len(self._params)}"
        self._params.append(bindparam(name, value, type_=type_))
        return f":{name}"

    def fragment(self, sql: str) -> TextClause:
        return text(sql).bindparams(*self._params)


def predicate(wanted: InputFilter, number: int, dialect: str) -> TextClause:
    """Condition on romancy_instances.input. `number` tells the filters of one query apart."""
    builders = {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}
    binds = _Binds(f"input_{number}")
    condition = builders[dialect](wanted, binds)
    if isinstance(wanted.value, str) and dialect != "postgresql":  # which has an index
        condition = f"{_mentioned(wanted.value, binds)} AND {condition}"
    return binds.fragment(condition)


def _mentioned(value: str, binds: _Binds) -> str:
    """A text stands in a document as it is, unless the document escapes something. Looking for it is several times
    faster than reading the JSON of a document that has nothing of it."""
    there, escaping = binds.add(value, Text()), binds.add("\\", Text())
    return f"(INSTR(romancy_instances.input, {there}) > 0 OR INSTR(romancy_instances.input, {escaping}) > 0)"


def _postgresql(wanted: InputFilter, binds: _Binds) -> str:
    """Containment, which the GIN index serves. Keys alone leave it no room for error; of an array it looks at every
    element."""
    forks = sum(is_index(segment) for segment in wanted.segments)
    contained = ""
    if forks <= FORKS_MAX:
        documents = [_containing(route, wanted.value) for route in _routes(wanted.segments)]
        contained = " OR ".join(f"romancy_instances.input @> CAST({binds.add(d, Text())} AS jsonb)" for d in documents)
        if not forks:
            return contained
    path, value = binds.add(list(wanted.segments), ARRAY(Text())), binds.add(_json(wanted.value), Text())
    exact = f"romancy_instances.input #> {path} = CAST({value} AS jsonb)"
    return f"({contained}) AND {exact}" if contained else exact


def _containing(route: tuple[str | int, ...], value: Scalar) -> str:
    """The smallest document in which the route leads to the value."""
    document = _json(value)
    for step in reversed(route):
        document = (
            f"[{document}]" if isinstance(step, int) else f"{{{json.dumps(step, ensure_ascii=False)}: {document}}}"
        )
    return document


def _json(value: Scalar) -> str:
    return str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)


def _sqlite(wanted: InputFilter, binds: _Binds) -> str:
    """One json_each per segment. It gives unescaped keys, every repeated one, and no row for what is no container."""
    source = "CASE WHEN json_valid(romancy_instances.input) THEN romancy_instances.input ELSE '[]' END"
    tables, conditions = [], []
    for level, segment in enumerate(wanted.segments):
        tables.append(f"json_each({source}) AS e{level}")
        names = binds.add(segment, Text())
        if is_index(segment):
            names += f", {binds.add(int(segment))}"
        conditions.append(f"e{level}.key IN ({names})")
        source = f"CASE WHEN e{level}.type IN ('object', 'array') THEN e{level}.value ELSE '[]' END"
    conditions.append(_sqlite_leaf(wanted.value, f"e{len(wanted.segments) - 1}", binds))
    return f"EXISTS (SELECT 1 FROM {', '.join(tables)} WHERE {' AND '.join(conditions)})"


def _sqlite_leaf(value: Scalar, e: str, binds: _Binds) -> str:
    if value is None or isinstance(value, bool):
        return f"{e}.type = '{_json(value)}'"
    if isinstance(value, str):
        return f"{e}.type = 'text' AND {e}.atom = {binds.add(value, Text())}"
    low, high = _neighbourhood(value)
    near = f"typeof({e}.atom) = 'real' AND {e}.atom BETWEEN {binds.add(low)} AND {binds.add(high)}"
    if value == value.to_integral_value() and int(value) in _INT64:
        near += f" OR typeof({e}.atom) = 'integer' AND {e}.atom = {binds.add(int(value))}"
    return f"{e}.type IN ('integer', 'real') AND ({near})"


def _neighbourhood(value: Decimal) -> tuple[float, float]:
    """Doubles around the number, some roundings wide: parsers of decimals differ in the last bits."""
    near = float(value)
    if abs(near) > 1e300:
        return (1e299, float("inf")) if near > 0 else (float("-inf"), -1e299)
    slack = abs(near) * 1e-15 + 1e-300
    return near - slack, near + slack


def _mysql(wanted: InputFilter, binds: _Binds) -> str:
    """JSON_EXTRACT of two paths or more gives an array of all that it finds, repeated keys included; JSON_TABLE makes
    it rows, as unescaped text `v` and as JSON `j`."""
    if sum(is_index(segment) for segment in wanted.segments) > FORKS_MAX:
        return "romancy_instances.input IS NOT NULL"
    paths = ", ".join(_mysql_path(route, binds) for route in _routes(wanted.segments))
    return (
        f"EXISTS (SELECT 1 FROM JSON_TABLE(JSON_EXTRACT(romancy_instances.input, {paths}, {paths}), '$[*]' COLUMNS "
        "(v LONGTEXT CHARACTER SET utf8mb4 PATH '$', j JSON PATH '$')) AS found WHERE "
        f"{_mysql_leaf(wanted.value, binds)})"
    )


def _routes(segments: tuple[str, ...]) -> list[tuple[str | int, ...]]:
    """Every way to take the index segments: as a key or as an index."""
    return list(product(*((segment, int(segment)) if is_index(segment) else (segment,) for segment in segments)))


def _mysql_path(route: tuple[str | int, ...], binds: _Binds) -> str:
    """MariaDB compares a key with the text that the writer chose for it, and cannot parse some (a leading minus). Keys
    that are not plain become a wildcard, and so does every key of a document that escapes characters by number."""
    loose = "$" + "".join(f"[{step}]" if isinstance(step, int) else ".*" for step in route)
    tight = "$" + "".join(_mysql_step(step) for step in route)
    if tight == loose:
        return binds.add(loose, Text())
    escaped = f"INSTR(romancy_instances.input, {binds.add(_BY_NUMBER, Text())}) > 0"
    return f"CASE WHEN {escaped} THEN {binds.add(loose, Text())} ELSE {binds.add(tight, Text())} END"


def _mysql_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f'."{step}"' if _PLAIN_KEY.match(step) else ".*"


def _mysql_leaf(value: Scalar, binds: _Binds) -> str:
    if value is None:
        return "JSON_TYPE(j) = 'NULL'"
    if isinstance(value, bool):
        return f"JSON_TYPE(j) = 'BOOLEAN' AND v IN ('{_json(value)}', '{int(value)}')"
    if isinstance(value, str):
        return f"JSON_TYPE(j) = 'STRING' AND v COLLATE utf8mb4_bin = {binds.add(value, Text())}"
    low, high = _neighbourhood(value)
    if float("inf") in (high, -low):
        return "JSON_TYPE(j) IN ('INTEGER', 'UNSIGNED INTEGER', 'DOUBLE', 'DECIMAL')"
    # What may not fit a double is left to Python: the cast would write a warning to the client's stderr.
    modest = binds.add(r"^-?[0-9]{1,200}([.][0-9]{1,200})?([eE][+-]?[0-9]{1,2})?$", Text())
    return (
        "JSON_TYPE(j) IN ('INTEGER', 'UNSIGNED INTEGER', 'DOUBLE', 'DECIMAL') AND CASE WHEN v REGEXP "
        f"{modest} THEN CAST(v AS DOUBLE) BETWEEN {binds.add(low)} AND {binds.add(high)} ELSE TRUE END"
    )
