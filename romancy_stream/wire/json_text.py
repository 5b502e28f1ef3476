"""JSON text that stays text: checked, never rebuilt, so that every digit of a number survives. Refuses what one of
the databases would refuse, because there it would poison a whole batch. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from json import JSONDecoder
from typing import Any, Final

import orjson

from romancy_stream.wire.malformed import (
    INVALID_JSON,
    INVALID_UTF8,
    MAX_EXPONENT_DIGITS,
    MAX_FRACTION_DIGITS,
    MAX_INTEGER_DIGITS,
    MAX_JSON_DEPTH,
    NUL_CHARACTER,
    TOO_DEEP,
    Malformed,
)

_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_STRINGS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_FAR_EXPONENT: Final = re.compile(rb"[eE][+-]?\d{%d}" % (MAX_EXPONENT_DIGITS + 1))
_LONG_FRACTION: Final = re.compile(rb"\.\d{%d}" % (MAX_FRACTION_DIGITS + 1))
_LONG_INTEGER: Final = re.compile(rb"(?<![.\d])\d{%d}" % (MAX_INTEGER_DIGITS + 1))
# All digits alike and no signs: numbers that could be a problem are then found by plain substring search.
_SQUEEZE: Final = bytes.maketrans(b"123456789E", b"000000000e")
_LONG_INTEGER_SQUEEZED: Final = b"0" * (MAX_INTEGER_DIGITS + 1)
_FAR_EXPONENT_SQUEEZED: Final = b"0e" + b"0" * (MAX_EXPONENT_DIGITS + 1)
_BLANKS: Final = " \t\n\r"
_CONTAINERS: Final = frozenset({dict, list})
_raw_decode: Final = JSONDecoder().raw_decode


def parse_json(text: bytes, max_depth: int = MAX_JSON_DEPTH) -> Any | Malformed:
    """The parsed value, good for looking at (numbers may have lost digits), or why the text is refused.

    `max_depth` counts arrays and objects within each other; a scalar has depth 0.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _explain(text, error)
    if has_text(text, b"\\u0000") and _ESCAPED_NUL.search(text):
        return Malformed(NUL_CHARACTER, "a string of the data contains the character NUL, which databases refuse")
    if text.count(b"[") + text.count(b"{") > max_depth and is_deeper(value, max_depth):
        return Malformed(TOO_DEEP, f"the data is nested deeper than {max_depth} levels")
    if has_wild_number(text):
        return Malformed(
            INVALID_JSON,
            f"a number of the data has more than {MAX_INTEGER_DIGITS} digits, more than {MAX_FRACTION_DIGITS:,} behind"
            f" the point or an exponent of more than {MAX_EXPONENT_DIGITS}, which databases and readers of JSON refuse",
        )
    return value


def is_deeper(value: Any, max_depth: int) -> bool:
    """`value` as a parser of JSON makes it."""
    level = [value]
    for _ in range(max_depth):
        if _CONTAINERS.isdisjoint(map(type, level)):
            return False
        level = inner(level)
    return not _CONTAINERS.isdisjoint(map(type, level))


def inner(values: Iterable[Any]) -> list[Any]:
    """What is in the dicts and lists among these values, one level down. By hand it would take five times as long."""
    insides = [each.values() if type(each) is dict else each for each in values if type(each) in _CONTAINERS]
    return list(chain.from_iterable(insides))


def raw_members(text: str) -> dict[str, str]:
    """The members of a JSON object, each as the text that stood there. `text` has passed `parse_json`."""
    members: dict[str, str] = {}
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        name, at = _raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, at = _raw_decode(text, start)
        members[name] = text[start:at]
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANKS:
        at += 1
    return at


def has_text(text: bytes, part: bytes) -> bool:
    """`part in text`, in a tenth of the time where its first byte is nowhere."""
    # Not `in`, which is slower: it takes the bytes for a number first.
    return text.find(part[:1]) >= 0 and text.find(part) >= 0


def has_wild_number(text: bytes) -> bool:
    """A number that one of the databases refuses, or a reader of JSON, somewhere in JSON text."""
    if len(text) <= MAX_INTEGER_DIGITS and text.find(b"e") < 0 and text.find(b"E") < 0:
        return False  # too short for the others, and none has an exponent
    squeezed = text.translate(_SQUEEZE, b"+-")
    # Longer fractions than those allowed are long enough for the second test too.
    if not (_has_far_exponent(squeezed) or squeezed.find(_LONG_INTEGER_SQUEEZED) >= 0):
        return False
    outside = _STRINGS.sub(b"", text)
    return any(pattern.search(outside) is not None for pattern in (_FAR_EXPONENT, _LONG_FRACTION, _LONG_INTEGER))


def _has_far_exponent(squeezed: bytes) -> bool:
    """May be wrong about what stands in a string; hexadecimal digits, as of a UUID, do not deceive it."""
    at = squeezed.find(_FAR_EXPONENT_SQUEEZED)
    while at >= 0:
        before = at
        while before >= 0 and squeezed[before] in b"0.":
            before -= 1
        if before < 0 or squeezed[before] in b"[:, \t\n\r":
            return True
        at = squeezed.find(_FAR_EXPONENT_SQUEEZED, at + 1)
    return False


def _explain(text: bytes, error: orjson.JSONDecodeError) -> Malformed:
    try:
        text.decode()
    except UnicodeDecodeError as broken:
        return Malformed(INVALID_UTF8, f"the data is not UTF-8: byte {broken.start} cannot be read")
    if b"\0" in text:
        return Malformed(NUL_CHARACTER, "the data contains the character NUL, which neither JSON nor databases take")
    if "depth limit" in error.msg:
        return Malformed(TOO_DEEP, "the data is nested too deeply to be read")
    return Malformed(INVALID_JSON, f"the data is not JSON: {error}")
