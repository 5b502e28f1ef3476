"""The CloudEvent that `{ns}.dlq` carries for a record that could not be used. Raw bytes travel as base64, because the
record may be anything; the dead-letter table holds it whole where this has to cut. Pure functions."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

import orjson

from romancy_stream.wire.codec import new_event_time
from romancy_stream.wire.event import DEAD_LETTER, X_CAUSATION, X_CAUSATION_SOURCE, X_PARTITION_KEY, WireEvent
from romancy_stream.wire.record import Record

# Together these stay below MAX_WRAPPED_BYTES: base64 makes 4 bytes of 3, JSON up to 6 of one control character.
MAX_VALUE_BYTES: Final = 500_000
MAX_HEADERS_BYTES: Final = 48_000
MAX_KEY_BYTES: Final = 1_024
MAX_MESSAGE_CHARS: Final = 2_000


def dead_letter_event(
    source: str,
    record: Record,
    reason: str,
    message: str,
    at_us: int,
    event_source: str | None = None,
    event_id: str | None = None,
) -> WireEvent:
    """`source` is the engine's. The id is the record's place, so one record is one dead letter however often."""
    place = f"{record.topic}/{record.partition}/{record.offset}"
    headers, headers_cut = _headers(record)
    data: dict[str, Any] = {
        "reason": reason,
        "message": message[:MAX_MESSAGE_CHARS],
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "key_base64": _base64(record.key, MAX_KEY_BYTES),
        "value_base64": _base64(record.value, MAX_VALUE_BYTES),
        "headers": headers,
        "cut": headers_cut or len(record.key or b"") > MAX_KEY_BYTES or len(record.value or b"") > MAX_VALUE_BYTES,
    }
    extensions = {X_PARTITION_KEY: place}
    if event_id is not None:
        extensions[X_CAUSATION] = event_id
    if event_source is not None:
        extensions[X_CAUSATION_SOURCE] = event_source
    return WireEvent(place, source, DEAD_LETTER, place, orjson.dumps(data), new_event_time(at_us), extensions)


def _headers(record: Record) -> tuple[list[dict[str, str | None]], bool]:
    kept: list[dict[str, str | None]] = []
    room = MAX_HEADERS_BYTES
    for name, value in record.headers:
        raw_name = name.encode(errors="replace").replace(b"\0", b"?")
        room -= len(raw_name) + len(value or b"") + 64
        if room < 0:
            return kept, True
        kept.append({"name": raw_name.decode(), "value_base64": _base64(value, MAX_HEADERS_BYTES)})
    return kept, False


def _base64(raw: bytes | None, max_bytes: int) -> str | None:
    return None if raw is None else b64encode(raw[:max_bytes]).decode()
