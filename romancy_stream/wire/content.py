"""Data of any content type, as JSON: JSON stays the text it is, other text becomes a JSON string, bytes become a
base64 JSON string. Also says what a producer did who meant JSON and sent something else. Pure functions."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import lru_cache
from typing import Final

import orjson

from romancy_stream.wire.json_text import parse_json
from romancy_stream.wire.malformed import (
    BAD_ATTRIBUTE,
    INVALID_JSON,
    INVALID_UTF8,
    MAX_JSON_DEPTH,
    NUL_CHARACTER,
    PYTHON_REPR,
    TOO_LARGE,
    UNQUOTED_STRING,
    Malformed,
)

JSON: Final = "json"
TEXT: Final = "text"
BYTES: Final = "bytes"

# Content types come from outside and few are in use at a time; a line holds about 200 bytes.
_KINDS_CACHE_LIMIT: Final = 256
# As far as the text around a mistake has to be seen to recognise it.
_LOOK_AT_BYTES: Final = 4_096
BOM: Final = b"\xef\xbb\xbf"

_CHARSET: Final = re.compile(r""";\s*charset\s*=\s*"?([^";\s]+)""", re.IGNORECASE)
_CODECS: Final = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "utf-8",
    "ascii": "utf-8",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "windows-1252": "cp1252",
    "utf-16": "utf-16",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
}
_JSON_TYPES: Final = frozenset({"application/json", "text/json", "application/x-json"})
_TEXT_TYPES: Final = frozenset(
    {
        "application/xml",
        "application/yaml",
        "application/x-yaml",
        "application/toml",
        "application/javascript",
        "application/graphql",
        "application/sql",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",
    }
)

_PYTHON_REPR: Final = re.compile(
    rb"""\s*(?:
        (?:True|False|None)\s*\Z
      | b?'.*'\s*\Z
      | b".*"\s*\Z
      | \(.*,.*\)\s*\Z
      | (?=[\[{]).*?[\[{(,:]\s*(?:b?'|True\b|False\b|None\b)
    )""",
    re.DOTALL | re.VERBOSE,
)
_NOT_A_NUMBER: Final = re.compile(rb"(?:\A|[\[,:])\s*[+-]?(?:NaN|nan|Infinity|inf)\s*(?:\Z|[\],}])")

_NUMBER: Final = re.compile(rb"\s*-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?\s*\Z")


@lru_cache(maxsize=_KINDS_CACHE_LIMIT)
def kind_of(content_type: str | None) -> tuple[str, str]:
    """(JSON | TEXT | BYTES, charset). No content type: JSON, as most SDKs leave it out."""
    if content_type is None:
        return JSON, "utf-8"
    media = content_type.partition(";")[0].strip().lower()
    charset = _CHARSET.search(content_type)
    if media in _JSON_TYPES or media.endswith("+json"):
        kind = JSON
    elif media.startswith("text/") or media in _TEXT_TYPES or media.endswith(("+xml", "+yaml")):
        kind = TEXT
    else:
        kind = BYTES
    return kind, charset.group(1).lower() if charset else "utf-8"


def to_json(
    data: bytes, content_type: str | None, max_bytes: int, max_depth: int = MAX_JSON_DEPTH
) -> bytes | Malformed:
    if len(data) > max_bytes:
        return _too_large(len(data), max_bytes)
    kind, charset = kind_of(content_type)
    if kind == BYTES:
        encoded = b'"' + b64encode(data) + b'"'
        return encoded if len(encoded) <= max_bytes else _too_large(len(encoded), max_bytes)
    if charset != "utf-8":
        recoded = _to_utf8(data, charset)
        if isinstance(recoded, Malformed):
            return recoded
        data = recoded
    if data.startswith(BOM):
        data = data[len(BOM) :]
    if kind == JSON:
        problem = parse_json(data, max_depth)
        if isinstance(problem, Malformed):
            return explain(data, problem)
    else:
        quoted = _quote(data)
        if isinstance(quoted, Malformed):
            return quoted
        data = quoted
    return data if len(data) <= max_bytes else _too_large(len(data), max_bytes)


def explain(data: bytes, problem: Malformed) -> Malformed:
    """The same problem, or the mistake behind it where it can be recognised."""
    if problem.reason != INVALID_JSON:
        return problem
    head = data[:_LOOK_AT_BYTES]
    if _NOT_A_NUMBER.search(head):
        return Malformed(INVALID_JSON, "NaN and Infinity are not JSON: send null or a string")
    if _PYTHON_REPR.match(head):
        return Malformed(
            PYTHON_REPR,
            "the data is not JSON; it looks like a Python repr, which the Python SDK writes for data that is no dict:"
            " serialise it with json.dumps(...).encode() before it becomes the event's data",
        )
    start = head.lstrip()[:1]
    if start and start not in b'{["' and not _NUMBER.match(head):
        return Malformed(
            UNQUOTED_STRING,
            "the data is not JSON; it looks like a string without its quotes, which the JavaScript and Python SDKs"
            " write in binary mode: send it as a JSON string, or with the content type text/plain",
        )
    return problem


def _to_utf8(data: bytes, charset: str) -> bytes | Malformed:
    codec = _CODECS.get(charset)
    if codec is None:
        return Malformed(BAD_ATTRIBUTE, f"the content type names the charset {charset[:40]!a}, which is not read here")
    try:
        return data.decode(codec).encode()
    except UnicodeDecodeError as broken:
        return Malformed(INVALID_UTF8, f"the data is not {charset}: byte {broken.start} cannot be read")


def _quote(data: bytes) -> bytes | Malformed:
    if b"\0" in data:
        return Malformed(NUL_CHARACTER, "the data contains the character NUL, which databases refuse")
    try:
        return orjson.dumps(data.decode())
    except UnicodeDecodeError as broken:
        return Malformed(INVALID_UTF8, f"the data is not UTF-8: byte {broken.start} cannot be read")


def _too_large(size: int, max_bytes: int) -> Malformed:
    return Malformed(TOO_LARGE, f"the data has {size:,} bytes, the limit is {max_bytes:,}: send a reference instead")
