"""The official SDK as oracle: it reads what we write, we read what it writes, and nothing changes on the way."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from cloudevents.core.bindings import kafka
from cloudevents.core.bindings.kafka import KafkaMessage
from cloudevents.core.v03.event import CloudEvent as OldCloudEvent
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given

from romancy_stream.errors import PayloadError, PayloadTooLargeError
from romancy_stream.wire.codec import (
    decode,
    encode,
    encode_text,
    header_bytes,
    new_event_time,
    parse_time,
    require_sendable,
)
from romancy_stream.wire.event import X_CONTENT_TYPE, WireEvent
from romancy_stream.wire.malformed import MAX_DATA_BYTES
from romancy_stream.wire.record import Record
from romancy_stream.wire.sdk import from_cloudevent, to_cloudevent
from tests.wire.making import record
from tests.wire.values import events, extensions, json_values, printable, times

EVENT = WireEvent("e-1", "/s", "t", "sub", b'{"a":1}', "2026-01-31T12:00:00.000001Z", {"zz": "1", "aa": "ü"})


def from_sdk(message: KafkaMessage) -> Record:
    key = message.key.encode() if isinstance(message.key, str) else message.key
    return record(*message.headers.items(), value=message.value, key=key)


def same(ours: WireEvent, theirs: CloudEvent) -> None:
    attributes = dict(theirs.get_attributes())
    assert attributes.pop("specversion") == "1.0"
    assert (attributes.pop("id"), attributes.pop("source"), attributes.pop("type")) == (ours.id, ours.source, ours.type)
    assert attributes.pop("subject", None) == ours.subject
    assert attributes.pop("time") == parse_time(ours.time or "")
    assert attributes.pop("datacontenttype", None) == (None if ours.data is None else "application/json")
    assert attributes == ours.extensions
    assert theirs.get_data() == (None if ours.data is None else json.loads(ours.data))


@given(events)
def test_the_sdk_reads_what_we_write(event: WireEvent) -> None:
    headers, value = encode(event)
    assert len(dict(headers)) == len(headers)
    read = kafka.from_kafka_event(KafkaMessage(dict(headers), None, value or b""))
    assert isinstance(read, CloudEvent)
    same(event, read)


@given(events)
def test_we_read_what_we_write(event: WireEvent) -> None:
    headers, value = encode(event)
    assert decode(record(*headers, value=value)) == event


@given(events)
def test_to_the_sdk_and_back(event: WireEvent) -> None:
    """All but JSON null, which the SDK cannot tell from no data."""
    converted = to_cloudevent(event)
    same(event, converted)
    back = from_cloudevent(converted)
    assert replace(back, data=None, time=None) == replace(event, data=None, time=None)
    assert parse_time(back.time or "") == parse_time(event.time or "")
    assert (back.data is None) == (event.data in (None, b"null"))
    assert back.data is None or json.loads(back.data) == json.loads(event.data or b"")


@given(printable, printable, times, extensions, json_values)
def test_we_read_what_the_sdk_writes(
    id: str, source: str, time: datetime, extra: dict[str, str], data: dict[str, Any] | list[Any]
) -> None:
    """Any JSON in structured mode; objects in binary mode, where the SDK writes anything else as a Python repr."""
    attributes = {"id": id, "source": source, "type": "t", "time": time, **extra}
    event = CloudEvent(attributes, data)  # type: ignore[arg-type]
    expected = from_cloudevent(event)
    messages = [kafka.to_structured_event(event)]
    if data is None or isinstance(data, dict):
        messages.append(kafka.to_binary_event(event))
    for message in messages:
        read = decode(from_sdk(message))
        assert isinstance(read, WireEvent), read
        assert replace(read, data=None) == replace(expected, data=None)
        assert (read.data is None) == (data is None)
        assert data is None or json.loads(read.data or b"") == data == json.loads(expected.data or b"")


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("text/plain", "true"),
        ("application/xml", "<a/>"),
        ("text/plain", b"bytes of text"),
        ("application/octet-stream", b"\x00\xff"),
        ("application/json", b'{"a": 123456789012345678901234567890}'),
        ("application/json", {"a": 123456789012345678901234567890}),
        (None, b'{"a": 1.50}'),
        ("application/json", b""),
        (None, None),
    ],
)
def test_content_types_come_out_alike_on_every_way(content_type: str | None, data: Any) -> None:
    attributes = {"id": "e-1", "source": "/s", "type": "t", "time": datetime(2026, 1, 31, tzinfo=UTC)}
    if content_type is not None:
        attributes["datacontenttype"] = content_type
    event = CloudEvent(attributes, data)
    before = copy.deepcopy(event.get_attributes())
    expected = from_cloudevent(event)
    assert event.get_attributes() == before
    for message in (kafka.to_binary_event(event), kafka.to_structured_event(event)):
        read = decode(from_sdk(message))
        assert isinstance(read, WireEvent), read
        assert replace(read, data=None) == replace(expected, data=None)
        assert (json.loads(read.data) if read.data else None) == (json.loads(expected.data) if expected.data else None)


def test_binary_data_of_the_api() -> None:
    def data_of(content_type: str | None, data: Any) -> tuple[bytes | None, str | None]:
        attributes = {"id": "e", "source": "/s", "type": "t"}
        if content_type is not None:
            attributes["datacontenttype"] = content_type
        event = from_cloudevent(CloudEvent(attributes, data))
        return event.data, event.extensions.get(X_CONTENT_TYPE)

    assert data_of(None, "1") == (b'"1"', None)
    assert data_of("application/json", ["a", False]) == (b'["a",false]', None)
    assert data_of("application/octet-stream", "ab") == (b'"YWI="', "application/octet-stream")
    assert data_of(None, {"at": datetime(2026, 1, 31, tzinfo=UTC)}) == (b'{"at":"2026-01-31T00:00:00Z"}', None)


@pytest.mark.parametrize(
    "data",
    [
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": "\ud800"},
        {"a": "\0"},
        {"a": Decimal("1.5")},
        {"a": ...},
        {"a": datetime(2026, 1, 31)},
        b"{'a': 1}",
        b"\xff",
    ],
    ids=repr,
)
def test_the_api_refuses_what_it_could_not_read_again(data: Any) -> None:
    with pytest.raises(PayloadError):
        from_cloudevent(CloudEvent({"id": "e", "source": "/s", "type": "t"}, data))


def test_the_api_refuses_what_is_too_large_or_too_deep() -> None:
    nested: Any = []
    for _ in range(5_000):
        nested = [nested]
    with pytest.raises(PayloadError):
        from_cloudevent(CloudEvent({"id": "e", "source": "/s", "type": "t"}, {"a": nested}))
    with pytest.raises(PayloadTooLargeError):
        from_cloudevent(CloudEvent({"id": "e", "source": "/s", "type": "t"}, {"a": "x" * MAX_DATA_BYTES}))
    with pytest.raises(PayloadTooLargeError):
        from_cloudevent(CloudEvent({"id": "e" * 256, "source": "/s", "type": "t"}))


def test_the_api_refuses_an_old_cloudevent() -> None:
    with pytest.raises(PayloadError, match=r"0\.3"):
        from_cloudevent(OldCloudEvent({"id": "e", "source": "/s", "type": "t", "specversion": "0.3"}))


def test_extensions_become_canonical_strings() -> None:
    values = {"yes": True, "no": False, "n": 7, "raw": b"\xff", "at": datetime(2026, 1, 31, tzinfo=UTC), "none": None}
    event = from_cloudevent(CloudEvent({"id": "e", "source": "/s", "type": "t", **values}))
    assert event.extensions == {"yes": "true", "no": "false", "n": "7", "raw": "/w==", "at": "2026-01-31T00:00:00Z"}


def test_no_time_stays_no_time() -> None:
    converted = to_cloudevent(replace(EVENT, time=None))
    assert converted.get_time() is None
    assert from_cloudevent(converted).time is None


def test_what_we_write_in_full() -> None:
    text, value = encode_text(EVENT)
    assert text == (
        ("ce_specversion", "1.0"),
        ("ce_id", "e-1"),
        ("ce_source", "/s"),
        ("ce_type", "t"),
        ("ce_time", "2026-01-31T12:00:00.000001Z"),
        ("ce_subject", "sub"),
        ("content-type", "application/json"),
        ("ce_aa", "ü"),
        ("ce_zz", "1"),
    )
    assert encode(EVENT) == ([(name, part.encode()) for name, part in text], b'{"a":1}')
    assert header_bytes(json.loads(json.dumps(text))) == header_bytes(text) == encode(EVENT)[0]
    assert value == b'{"a":1}'


def test_without_data_there_is_no_content_type_and_no_value() -> None:
    headers, value = encode(replace(EVENT, data=None, subject=None))
    assert value is None
    assert {name for name, _ in headers}.isdisjoint({"content-type", "ce_subject"})


def test_an_event_without_time_is_not_written() -> None:
    with pytest.raises(PayloadError, match="time"):
        encode(replace(EVENT, time=None))


@pytest.mark.parametrize(
    "broken",
    [
        replace(EVENT, id=""),
        replace(EVENT, type="a\0"),
        replace(EVENT, source="\ud800"),
        replace(EVENT, subject="a\n"),
        replace(EVENT, time="now"),
        replace(EVENT, data=b""),
        replace(EVENT, data=b"{"),
        replace(EVENT, extensions={"Upper": "x"}),
        replace(EVENT, extensions={"a-b": "x"}),
        replace(EVENT, extensions={"id": "x"}),
        replace(EVENT, extensions={"data": "x"}),
        replace(EVENT, extensions={"tenant": "\ud800"}),
        replace(EVENT, extensions={"tenant": "\0"}),
    ],
)
def test_require_sendable_refuses(broken: WireEvent) -> None:
    require_sendable(EVENT)
    with pytest.raises(PayloadError):
        require_sendable(broken)


def test_event_times() -> None:
    assert new_event_time(0) == "1970-01-01T00:00:00.000000Z"
    assert new_event_time(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"
    assert new_event_time(-1) == "1969-12-31T23:59:59.999999Z"
    assert parse_time(new_event_time(1_700_000_000_000_001)) == datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC)
    assert parse_time("2016-12-31T23:59:60.5z") == datetime(2016, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC)
    assert parse_time("2026-01-31T12:00:00.1234567Z") == datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)
    for text in (
        "",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "20260131T120000Z",
        "2026-01-31T24:00:00Z",
        "٢٠٢٦-01-31T12:00:00Z",
    ):
        assert parse_time(text) is None
