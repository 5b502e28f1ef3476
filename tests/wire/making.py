"""Records as producers write them. Helpers of this folder, no assertions."""

from __future__ import annotations

import json
from typing import Any

from romancy_stream.wire.record import Record

JSON_TYPE = ("content-type", b"application/json")
STRUCTURED = ("content-type", b"application/cloudevents+json")

# The least that an event has, as headers and as a JSON object.
CE: tuple[tuple[str, bytes | None], ...] = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e-1"),
    ("ce_source", b"/bank"),
    ("ce_type", b"payment.completed"),
)
ENVELOPE: dict[str, Any] = {"specversion": "1.0", "id": "e-1", "source": "/bank", "type": "payment.completed"}


def record(*headers: tuple[str, bytes | None], value: bytes | None = None, key: bytes | None = None) -> Record:
    return Record("shop.commands", 3, 17, key, value, headers, 1_700_000_000_000)


def binary(value: bytes | None, *more: tuple[str, bytes | None]) -> Record:
    return record(*CE, *more, value=value)


def structured(*headers: tuple[str, bytes | None], **members: Any) -> Record:
    value = json.dumps({**ENVELOPE, **members}, ensure_ascii=False).encode()
    return record(*(headers or (STRUCTURED,)), value=value)


def raw_structured(members: str, content_type: bytes = b"application/cloudevents+json") -> Record:
    """`members`: JSON text of further members, taken as it is."""
    text = json.dumps(ENVELOPE)[:-1] + ", " + members + "}"
    return record(("content-type", content_type), value=text.encode())
