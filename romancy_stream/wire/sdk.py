"""Between the hot path's event and the official `cloudevents` SDK's, which is what users see. Not for hot paths."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any, Final

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.v1.event import CloudEvent

from romancy_stream.errors import PayloadError, PayloadTooLargeError
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import JSON_CONTENT_TYPE, SPECVERSION, parse_time, require_sendable
from romancy_stream.wire.content import BYTES, JSON, kind_of, to_json
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import MAX_WRAPPED_BYTES, TOO_LARGE, Malformed

_NAMED: Final = frozenset({"specversion", "id", "source", "type", "subject", "time", "datacontenttype"})


def to_cloudevent(event: WireEvent) -> CloudEvent:
    """Data is parsed JSON: integers keep their value, other numbers are floats. Extensions are strings. An event
    without a time stays without one, although the SDK would invent it. JSON null and no data look the same."""
    attributes: dict[str, Any] = {
        "specversion": SPECVERSION,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": _time_of(event),
        **event.extensions,
    }
    if event.subject is not None:
        attributes["subject"] = event.subject
    if event.data is not None:
        attributes["datacontenttype"] = JSON_CONTENT_TYPE
    made = CloudEvent(attributes, None if event.data is None else json.loads(event.data))
    if event.time is None:
        del made.get_attributes()["time"]
    return made


def _time_of(event: WireEvent) -> datetime:
    if event.time is None:
        return datetime.fromtimestamp(0, UTC)  # a stand-in that is taken away again
    time = parse_time(event.time)
    if time is None:
        raise PayloadError(f"event {event.type!r} has the time {event.time!r}, which is not RFC 3339")
    return time


def from_cloudevent(event: BaseCloudEvent) -> WireEvent:
    """Raises PayloadError or PayloadTooLargeError for what could not be read again.

    bytes are taken as they would be on the wire, by content type; a str under a JSON content type is a JSON string,
    not JSON text; anything else must be JSON-able. The SDK's event is left as it was.
    """
    attributes = dict(event.get_attributes())
    if attributes.get("specversion") != SPECVERSION:
        raise PayloadError(f"specversion is {attributes.get('specversion')!r}: CloudEvents {SPECVERSION} is needed")
    extensions = {
        name: _attribute_text(value) for name, value in attributes.items() if name not in _NAMED and value is not None
    }
    content_type = attributes.get("datacontenttype")
    data = _data_of(event.get_data(), content_type)
    if data is not None and content_type is not None and kind_of(content_type)[0] != JSON:
        extensions[w.X_CONTENT_TYPE] = content_type
    time = attributes.get("time")
    converted = WireEvent(
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        subject=attributes.get("subject"),
        data=data,
        time=None if time is None else _attribute_text(time),
        extensions=extensions,
    )
    require_sendable(converted)
    return converted


def _data_of(data: Any, content_type: str | None) -> bytes | None:
    if data is None:
        return None
    if isinstance(data, (bytes, bytearray, memoryview)):
        raw = bytes(data)
        return _accepted(to_json(raw, content_type, MAX_WRAPPED_BYTES)) if raw else None
    if isinstance(data, str) and kind_of(content_type)[0] == BYTES:
        return _accepted(to_json(data.encode(), content_type, MAX_WRAPPED_BYTES))
    try:
        return json.dumps(
            data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_attribute_text
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"the event's data cannot become JSON: {error}") from error


def _accepted(data: bytes | Malformed) -> bytes:
    if isinstance(data, Malformed):
        raise (PayloadTooLargeError if data.reason == TOO_LARGE else PayloadError)(data.message)
    return data


def _attribute_text(value: object) -> str:
    """The canonical string of a CloudEvents type."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise PayloadError(f"{value!r} has no time zone")
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode()
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON or in an attribute")
