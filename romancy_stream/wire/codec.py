"""Records to CloudEvents and back, as the Kafka protocol binding says. Reading is tolerant of what the SDKs of other
languages really write, and answers bad bytes with a value, never with an exception. Writing is strict: binary mode,
one order of headers, raw UTF-8. The hot path: no SDK objects here; `sdk` converts at the edges. Pure functions."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from romancy_stream.errors import PayloadError, PayloadTooLargeError
from romancy_stream.wire import event as w
from romancy_stream.wire import malformed as m
from romancy_stream.wire.content import BOM, JSON, explain, kind_of, to_json
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.json_text import is_deeper, parse_json, raw_members
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.record import Record

__all__ = [
    "Headers",
    "Malformed",
    "decode",
    "encode",
    "encode_text",
    "header_bytes",
    "new_event_time",
    "parse_time",
    "require_sendable",
]

Headers = tuple[tuple[str, str], ...]

SPECVERSION: Final = "1.0"
CONTENT_TYPE: Final = "content-type"
JSON_CONTENT_TYPE: Final = "application/json"
_STRUCTURED: Final = "application/cloudevents"
_BATCHED: Final = "application/cloudevents-batch"

# Header names come from outside and few are in use at a time; none is longer than MAX_NAME_CHARS.
_HEADERS_CACHE_LIMIT: Final = 1_024

# Of the names of all headers of a record together: our programs write a dozen, others some more. 6 KB each at the most.
_LAYOUTS_LIMIT: Final = 256
# Which extensions there are together: a kind of message has always the same. Some 10 KB each at the most.
_NAMES_CACHE_LIMIT: Final = 256

# Written by the engine and its workers: their ids are derived from others, their data may wrap what a user gave.
_INTERNAL: Final = frozenset({w.TO_INSTANCE, w.TO_ENTITY})
_ENGINE_TYPES: Final = frozenset({w.TASK, w.ACTIVITY_COMPLETED, w.ACTIVITY_FAILED, w.DEAD_LETTER}) | _INTERNAL
_ENGINE_EVENTS: Final = frozenset({w.STARTED, w.COMPLETED, w.FAILED, w.CANCELLED, w.REJECTED, w.RECURRED, w.ANSWERED})
_DERIVED_IDS: Final = _ENGINE_TYPES | _ENGINE_EVENTS
_WRAPPED: Final = frozenset({w.TASK, w.DEAD_LETTER}) | _INTERNAL | _ENGINE_EVENTS

_REQUIRED: Final = frozenset({"specversion", "id", "source", "type"})
_NAMED: Final = frozenset({"specversion", "id", "source", "type", "subject", "time", "datacontenttype"})
_KEYS: Final = (w.X_WORKFLOW, w.X_INSTANCE, w.X_ACTIVITY, w.X_ACTIVITY_ID, w.X_NAME)
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d{1,30})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
# Where `_CONTROL` finds nothing there is no 0 in the translated UTF-8, and no byte that C1 controls begin with.
_CONTROL_TO_0: Final = bytes(0 if byte < 0x20 or byte == 0x7F else 1 for byte in range(256))
_C1_LEAD: Final = b"\xc2"
# Naive, because the offset is appended by hand: formatting an aware one takes three times as long.
_EPOCH: Final = datetime(1970, 1, 1)
_SECONDS_CACHE_LIMIT: Final = 16  # messages are of now


# -- reading -----------------------------------------------------------------------------------------------------
def decode(record: Record) -> WireEvent | Malformed:
    """Any record at all. Data of other content types becomes a JSON string, and the content type an extension."""
    return _decode_usual(record) or _decode_any(record)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the attributes stand among the headers of a record in binary mode that has each of them once. `pick` takes
    the extensions, called `names`, out of the values."""

    specversion: int
    content_type: int | None
    id: int
    source: int
    type: int
    subject: int | None
    time: int | None
    names: tuple[str, ...]
    pick: Callable[[Sequence[str]], tuple[str, ...]]


_layouts: Final[dict[tuple[str, ...], _Layout]] = {}


def _layout_of(headers: tuple[str, ...]) -> _Layout | None:
    """None: it is not that simple."""
    layout = _layouts.get(headers)
    if layout is None and len(headers) <= m.MAX_ATTRIBUTES and all(len(each) <= m.MAX_NAME_CHARS for each in headers):
        layout = _new_layout([_attribute_of(header) for header in headers])
        if layout is not None:  # others are not remembered: anybody can make them up
            if len(_layouts) >= _LAYOUTS_LIMIT:
                _layouts.clear()
            _layouts[headers] = layout
    return layout


def _new_layout(names: Sequence[str]) -> _Layout | None:
    places = {name: at for at, name in enumerate(names)}
    if len(places) < len(names) or "" in places or "datacontenttype" in places or not places.keys() >= _REQUIRED:
        return None
    extensions = {name: at for name, at in places.items() if name not in _NAMED and name != CONTENT_TYPE}
    return _Layout(
        specversion=places["specversion"],
        content_type=places.get(CONTENT_TYPE),
        id=places["id"],
        source=places["source"],
        type=places["type"],
        subject=places.get("subject"),
        time=places.get("time"),
        names=tuple(extensions),
        pick=_picker(list(extensions.values())),
    )


def _picker(places: Sequence[int]) -> Callable[[Sequence[str]], tuple[str, ...]]:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple([values[at] for at in places])  # an `itemgetter` of one makes no tuple


def _decode_usual(record: Record) -> WireEvent | None:
    """JSON in binary mode, as our own programs write it, read without a detour. None: it is something else, or there is
    something about it that has to be looked at closely."""
    layout = _layout_of(tuple([name for name, _ in record.headers]))
    if layout is None:
        return None
    raw_values = [raw for _, raw in record.headers]
    try:
        together: bytes = b"".join(raw_values)  # type: ignore[arg-type]
        values = [raw.decode() for raw in raw_values]  # type: ignore[union-attr]
    except (TypeError, UnicodeDecodeError):
        return None
    if len(together) > m.MAX_ATTRIBUTE_CHARS or 0 in together.translate(_CONTROL_TO_0) or together.find(_C1_LEAD) >= 0:
        return None
    event_id, source, event_type = values[layout.id], values[layout.source], values[layout.type]
    subject = None if layout.subject is None else values[layout.subject]
    time = None if layout.time is None else values[layout.time]
    if (
        values[layout.specversion] != SPECVERSION
        or (layout.content_type is not None and values[layout.content_type] != JSON_CONTENT_TYPE)
        or not (event_id and source and event_type)
        or max(map(len, values)) > m.MAX_ID_CHARS
        or (time and parse_time(time) is None)
    ):
        return None
    data = record.value or None
    if data is not None:
        max_bytes, max_depth = _data_limits(event_type)
        if len(data) > max_bytes or isinstance(parse_json(data, max_depth), Malformed):
            return None
    extensions = dict(zip(layout.names, layout.pick(values), strict=True))
    return WireEvent(event_id, source, event_type, subject or None, data, time or None, extensions)


def _decode_any(record: Record) -> WireEvent | Malformed:
    attributes: dict[str, str] = {}
    for header, raw in record.headers:
        name = _attribute_of(header) if len(header) <= m.MAX_NAME_CHARS else ""
        if name and raw is not None:
            try:
                attributes[name] = raw.decode()
            except UnicodeDecodeError:
                return Malformed(m.INVALID_UTF8, f"the header {header!a} is not UTF-8")
        elif not header.isascii() and _check_unicode((header,)) is not None:
            return Malformed(m.INVALID_UTF8, f"the name of a header is not UTF-8: {header[:80]!a}")
    content_type = attributes.pop(CONTENT_TYPE, None)
    media = content_type.lower().lstrip() if content_type else ""
    if media.startswith(_STRUCTURED):
        return _decode_declared(media, record.value)
    if not attributes:
        return _decode_undeclared(record.value)
    declared = attributes.pop("datacontenttype", None)
    return _decode_binary(attributes, record.value, content_type or declared or None)


@lru_cache(maxsize=_HEADERS_CACHE_LIMIT)
def _attribute_of(header: str) -> str:
    """The attribute that a header holds, CONTENT_TYPE, or "" for a header that is none of CloudEvents' business."""
    name = header.lower()
    if name == CONTENT_TYPE:
        return name
    attribute = name.removeprefix("ce_")
    return attribute if attribute != name and (attribute in _NAMED or _is_extension_name(attribute)) else ""


def _decode_binary(attributes: dict[str, str], value: bytes | None, content_type: str | None) -> WireEvent | Malformed:
    problem = _check(attributes, content_type)
    if problem is not None:
        return problem
    data: bytes | None = None
    if value:
        converted = to_json(value, content_type, *_data_limits(attributes["type"]))
        if isinstance(converted, Malformed):
            return converted.of(attributes["source"], attributes["id"])
        data = converted
    return _event(attributes, data, content_type)


def _decode_declared(media: str, value: bytes | None) -> WireEvent | Malformed:
    if media.startswith(_BATCHED):
        return Malformed(
            m.UNSUPPORTED_FORMAT, "a batch of events in one record is not part of CloudEvents over Kafka: send one each"
        )
    event_format = media.partition(";")[0].strip()
    if event_format not in (_STRUCTURED, f"{_STRUCTURED}+json"):
        return Malformed(m.UNSUPPORTED_FORMAT, f"the event format {event_format[:80]!a} is not read here, only JSON is")
    if not value:
        return Malformed(m.NOT_A_CLOUDEVENT, "the record says that it holds a structured event, but it is empty")
    return _decode_structured(value)


def _decode_undeclared(value: bytes | None) -> WireEvent | Malformed:
    """No header says what this is. Some producers write structured events like that."""
    if value and len(value) <= m.MAX_STRUCTURED_BYTES and value.removeprefix(BOM).lstrip()[:1] == b"{":
        envelope = parse_json(value.removeprefix(BOM), m.MAX_JSON_DEPTH + m.WRAPPED_LEVELS + 1)
        if isinstance(envelope, dict) and any(name.lower() == "specversion" for name in envelope):
            return _decode_structured(value)
    return Malformed(
        m.NOT_A_CLOUDEVENT,
        "the record has no ce_ headers, no content type application/cloudevents+json, and is no JSON object with a"
        " specversion",
    )


def _decode_structured(value: bytes) -> WireEvent | Malformed:
    if len(value) > m.MAX_STRUCTURED_BYTES:
        return Malformed(m.TOO_LARGE, f"the event has {len(value):,} bytes, the limit is {m.MAX_STRUCTURED_BYTES:,}")
    value = value.removeprefix(BOM)
    envelope = parse_json(value, m.MAX_JSON_DEPTH + m.WRAPPED_LEVELS + 1)
    if isinstance(envelope, Malformed):
        return explain(value, envelope)
    if not isinstance(envelope, dict):
        return Malformed(m.NOT_A_CLOUDEVENT, "a structured event is a JSON object, this is another JSON value")
    envelope = {name.lower(): member for name, member in envelope.items()}
    texts = {name.lower(): text for name, text in raw_members(value.decode()).items()}
    attributes = _structured_attributes(envelope, texts)
    if isinstance(attributes, Malformed):
        return attributes.of(_text_or_none(envelope.get("source")), _text_or_none(envelope.get("id")))
    content_type = attributes.pop("datacontenttype", None) or None
    problem = _check(attributes, content_type)
    if problem is not None:
        return problem
    data = _structured_data(envelope, texts, content_type, *_data_limits(attributes["type"]))
    if isinstance(data, Malformed):
        return data.of(attributes["source"], attributes["id"])
    return _event(attributes, data, content_type)


def _structured_attributes(envelope: dict[str, Any], texts: dict[str, str]) -> dict[str, str] | Malformed:
    attributes: dict[str, str] = {}
    for name, value in envelope.items():
        if value is None or not (name in _NAMED or _is_extension_name(name)):
            continue
        if isinstance(value, str):
            attributes[name] = value
        elif isinstance(value, (bool, int, float)) and name not in _NAMED:
            attributes[name] = texts[name]
        elif name == "specversion":
            return Malformed(m.BAD_SPECVERSION, 'specversion is no string; this reads "1.0"')
        else:
            return Malformed(m.BAD_ATTRIBUTE, f"the attribute {name} has the wrong type")
    return attributes


def _structured_data(
    envelope: dict[str, Any], texts: dict[str, str], content_type: str | None, max_bytes: int, max_depth: int
) -> bytes | Malformed | None:
    data, base64 = envelope.get("data"), envelope.get("data_base64")
    if base64 is not None:
        if data is not None:
            return Malformed(m.BAD_ATTRIBUTE, "the event has both data and data_base64")
        return _base64_data(base64, content_type, max_bytes, max_depth)
    if data is None:
        return None
    text = texts["data"].encode()
    if len(text) > max_bytes:
        return Malformed(m.TOO_LARGE, f"the data has {len(text):,} bytes, the limit is {max_bytes:,}")
    if is_deeper(data, max_depth):
        return Malformed(m.TOO_DEEP, f"the data is nested deeper than {max_depth} levels")
    return text


def _base64_data(base64: Any, content_type: str | None, max_bytes: int, max_depth: int) -> bytes | Malformed | None:
    try:
        raw = b64decode(base64, validate=True)
    except (ValueError, TypeError):
        return Malformed(m.BAD_ATTRIBUTE, "data_base64 is not base64")
    if not raw:
        return None
    data = to_json(raw, content_type, max_bytes, max_depth)
    if isinstance(data, Malformed) and content_type is None:
        return to_json(raw, "application/octet-stream", max_bytes)  # declared to be bytes, and they are
    return data


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _data_limits(event_type: str) -> tuple[int, int]:
    """(bytes, levels)."""
    if event_type in _WRAPPED:
        return m.MAX_WRAPPED_BYTES, m.MAX_JSON_DEPTH + m.WRAPPED_LEVELS
    return m.MAX_DATA_BYTES, m.MAX_JSON_DEPTH


def _event(attributes: dict[str, str], data: bytes | None, content_type: str | None) -> WireEvent:
    """Takes the checked `attributes` apart; what is left of them are the extensions."""
    del attributes["specversion"]
    event_id, source, event_type = attributes.pop("id"), attributes.pop("source"), attributes.pop("type")
    subject, time = attributes.pop("subject", None), attributes.pop("time", None)
    if data is not None and content_type is not None and kind_of(content_type)[0] != JSON:
        attributes[w.X_CONTENT_TYPE] = content_type
    return WireEvent(event_id, source, event_type, subject or None, data, time or None, attributes)


def _is_extension_name(name: str) -> bool:
    plain = name.isalnum() and name.isascii() and name == name.lower() and len(name) <= m.MAX_NAME_CHARS
    return plain and name != "data" and name not in _NAMED


# -- the rules for attributes, both ways ---------------------------------------------------------------------------
def _check(attributes: dict[str, str], content_type: str | None) -> Malformed | None:
    all_texts = "".join(attributes.values())
    problem = (
        _check_required(attributes) or _check_lengths(attributes, all_texts) or _check_texts(attributes, all_texts)
    )
    if problem is None and content_type is not None:
        problem = _check_content_type(content_type)
    return problem.of(attributes.get("source"), attributes.get("id")) if problem is not None else None


def _check_content_type(content_type: str) -> Malformed | None:
    if len(content_type) > m.MAX_ID_CHARS or _CONTROL.search(content_type):
        return Malformed(m.BAD_ATTRIBUTE, "the content type contains control characters or is too long")
    return None


def _check_required(attributes: dict[str, str]) -> Malformed | None:
    version = attributes.get("specversion")
    if version and version != SPECVERSION:
        return Malformed(m.BAD_SPECVERSION, f"specversion is {version[:20]!a}; this reads {SPECVERSION!a}")
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            return Malformed(m.MISSING_ATTRIBUTE, f"the required attribute {name} is missing")
    return None


def _check_lengths(attributes: dict[str, str], all_texts: str) -> Malformed | None:
    max_id_chars = m.MAX_DERIVED_ID_CHARS if attributes["type"] in _DERIVED_IDS else m.MAX_ID_CHARS
    if max(map(len, attributes.values())) > m.MAX_ID_CHARS:
        if len(attributes["id"]) > max_id_chars:
            return Malformed(m.TOO_LARGE, f"id has more than {max_id_chars} characters")
        for name in ("source", "type", "subject", "time", *_KEYS):
            if len(attributes.get(name, "")) > m.MAX_ID_CHARS:
                return Malformed(m.TOO_LARGE, f"{name} has more than {m.MAX_ID_CHARS} characters")
    if len(attributes) > m.MAX_ATTRIBUTES or len(all_texts) > m.MAX_ATTRIBUTE_CHARS:
        return Malformed(
            m.TOO_LARGE,
            f"the event has more than {m.MAX_ATTRIBUTES} attributes, or more than {m.MAX_ATTRIBUTE_CHARS:,} characters"
            " in them",
        )
    return None


def _check_texts(attributes: dict[str, str], all_texts: str) -> Malformed | None:
    if "\0" in all_texts:
        return Malformed(m.NUL_CHARACTER, "an attribute contains the character NUL, which databases refuse")
    names = attributes["id"] + attributes["source"] + attributes["type"] + attributes.get("subject", "")
    if not names.isprintable() and _CONTROL.search(names):
        return Malformed(m.BAD_ATTRIBUTE, "id, source, type or subject contains a control character")
    time = attributes.get("time")
    if time and parse_time(time) is None:
        return Malformed(m.BAD_ATTRIBUTE, f"time is {time[:40]!a}, which is no RFC 3339 date and time with an offset")
    return None


def require_sendable(event: WireEvent) -> None:
    """What the edges of the API ask before they take an event: would we read it again, as it is?

    Raises PayloadTooLargeError or PayloadError, which say what is wrong.
    """
    named = {"subject": event.subject, "time": event.time}
    attributes = {"specversion": SPECVERSION, "id": event.id, "source": event.source, "type": event.type}
    attributes.update({name: text for name, text in named.items() if text is not None})
    for name in event.extensions:
        if not _is_extension_name(name):
            raise PayloadError(f"{name!r} is no name for an extension: lower-case letters and digits, not too many")
    attributes.update(event.extensions)
    for name, text in attributes.items():
        if not isinstance(text, str):
            raise PayloadError(f"event {event.type!r} cannot be sent: {name} must be a text, not {text!r}")
    problem = _check(attributes, None) or _check_unicode(attributes.values())
    if problem is None and event.data is not None:
        checked = to_json(event.data, None, *_data_limits(event.type)) if event.data else _EMPTY
        problem = checked if isinstance(checked, Malformed) else None
    if problem is not None:
        error = PayloadTooLargeError if problem.reason == m.TOO_LARGE else PayloadError
        raise error(f"event {event.type!r} cannot be sent: {problem.message}")


def _check_unicode(texts: Iterable[str]) -> Malformed | None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return Malformed(m.BAD_ATTRIBUTE, "an attribute contains half a surrogate pair, which is no character")
    return None


_EMPTY: Final = Malformed(m.INVALID_JSON, "the data is empty: use None for no data")


# -- writing -----------------------------------------------------------------------------------------------------
def encode(event: WireEvent) -> tuple[list[tuple[str, bytes]], bytes | None]:
    """(headers, value) of a record in binary mode. The event has passed `require_sendable`, or comes from `decode`
    or the engine. Raises PayloadError when it has no time."""
    headers, value = encode_text(event)
    return header_bytes(headers), value


def encode_text(event: WireEvent) -> tuple[Headers, bytes | None]:
    """As `encode`, with the headers as text: the form in which they wait in an outbox row."""
    if event.time is None:
        raise PayloadError(f"event {event.type!r} has no time: the sender of an event gives it one")
    headers = [
        ("ce_specversion", SPECVERSION),
        ("ce_id", event.id),
        ("ce_source", event.source),
        ("ce_type", event.type),
        ("ce_time", event.time),
    ]
    if event.subject is not None:
        headers.append(("ce_subject", event.subject))
    if event.data is not None:
        headers.append((CONTENT_TYPE, JSON_CONTENT_TYPE))
    extensions = event.extensions
    headers.extend([(header, extensions[name]) for header, name in _extension_headers(tuple(extensions))])
    return tuple(headers), event.data


@lru_cache(maxsize=_NAMES_CACHE_LIMIT)
def _extension_headers(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(header, name) of each, in their order."""
    return [("ce_" + name, name) for name in sorted(names)]


def header_bytes(headers: Iterable[Sequence[str]]) -> list[tuple[str, bytes]]:
    """Headers as they go into a record. Takes what came back from JSON, too."""
    return [(name, text.encode()) for name, text in headers]


def new_event_time(us: int) -> str:
    """RFC 3339 in UTC with six digits: "2026-01-31T12:00:00.000001Z". `us`: microseconds since 1970 UTC."""
    second, fraction = divmod(us, 1_000_000)
    return f"{_second(second)}.{fraction:06d}Z"


@lru_cache(maxsize=_SECONDS_CACHE_LIMIT)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def parse_time(text: str) -> datetime | None:
    """Any RFC 3339 form, with its offset, or None. Digits behind microseconds are dropped; a leap second is
    the second before it."""
    if not _RFC3339.fullmatch(text):
        return None
    upper = text.upper()
    if upper[17:19] == "60":
        upper = f"{upper[:17]}59{upper[19:]}"
    try:
        return datetime.fromisoformat(upper)
    except ValueError:
        return None
