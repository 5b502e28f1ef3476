"""Whatever arrives: an event or a Malformed, never another exception, and nothing that a database would refuse."""

from __future__ import annotations

import json
from dataclasses import replace

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from romancy_stream.wire import codec
from romancy_stream.wire.codec import decode, encode, require_sendable
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.json_text import parse_json, raw_members
from romancy_stream.wire.malformed import REASONS, Malformed
from romancy_stream.wire.record import Record
from tests.wire.making import CE, ENVELOPE, STRUCTURED, record
from tests.wire.values import json_values, texts

names = st.one_of(
    st.sampled_from([name for name, _ in CE]),
    st.sampled_from(["content-type", "ce_time", "ce_subject", "ce_datacontenttype", "ce_data", "ce_dataschema", "ce_"]),
    st.text(max_size=8),
    st.text(max_size=8).map(lambda text: "ce_" + text),
).flatmap(lambda name: st.sampled_from([name, name.upper(), name.title()]))
plausible = st.sampled_from(
    [
        b"1.0",
        b"application/json",
        b"application/cloudevents+json",
        b"application/cloudevents-batch+json",
        b"text/plain; charset=utf-16",
        b"text/plain; charset=idna",
        b"2026-01-31T12:00:00Z",
        b"9999-12-31T23:59:59-14:00",
    ]
)
headers = st.lists(st.tuples(names, st.none() | plausible | st.binary(max_size=20) | texts.map(str.encode)), max_size=8)
full_headers = headers.map(lambda more: [*CE, *more])

json_bytes = json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode())
attribute_values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)
)
envelopes = st.dictionaries(
    st.sampled_from([*ENVELOPE, "data", "data_base64", "time", "subject", "datacontenttype", "Data", "tenant"]),
    attribute_values | json_values,
).map(lambda members: json.dumps({**ENVELOPE, **members}).encode())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """JSON with a few bytes put in, taken out or changed."""
    raw = bytearray(draw(json_bytes | envelopes))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 2))] = draw(
            st.binary(max_size=2) | st.sampled_from([b"\\u0000", b"\\", b"e99999"])
        )
    return bytes(raw)


values = st.none() | st.binary(max_size=40) | json_bytes | envelopes | damaged()


def check(given_record: Record) -> None:
    result = decode(given_record)
    if isinstance(result, Malformed):
        assert result.reason in REASONS
        texts_of = (result.message, result.event_source or "", result.event_id or "")
        assert not any("\0" in text for text in texts_of)
        orjson.dumps(texts_of)
        return
    assert isinstance(result, WireEvent)
    sent = replace(result, time=result.time or "2026-01-31T12:00:00Z")
    require_sendable(sent)
    again, value = encode(sent)
    assert decode(record(*again, value=value)) == sent
    if sent.data is not None:
        strict_json(sent.data)


def strict_json(data: bytes) -> None:
    """What PostgreSQL's JSONB asks for."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} came through")

    for text in strings_in(json.loads(data.decode(), parse_constant=refuse)):
        assert "\0" not in text
        text.encode()


def strings_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for each in inner for text in strings_in(each)]


@settings(max_examples=400)
@given(headers, values)
@example([], None)
@example([("content-type", b"application/cloudevents+json")], b"")
def test_any_headers_and_any_value(some: list[tuple[str, bytes | None]], value: bytes | None) -> None:
    check(record(*some, value=value))


@settings(max_examples=400)
@given(full_headers, values)
def test_an_event_with_anything_beside_and_in_it(some: list[tuple[str, bytes | None]], value: bytes | None) -> None:
    check(record(*some, value=value))


OWN = [
    *CE,
    ("content-type", b"application/json"),
    ("ce_time", b"2026-01-31T12:00:00.000001Z"),
    ("ce_subject", b"i1"),
    ("ce_partitionkey", b"i1"),
    ("ce_romancyrun", b"1"),
]
own_values = (
    st.none()
    | plausible
    | st.binary(max_size=3)
    | texts.map(str.encode)
    | st.sampled_from([b"", b"\x7f", "\x85".encode(), "\xa0".encode(), b"i" * 255, b"i" * 256, b"i" * 9_300, b"2.0"])
)


@st.composite
def own_headers(draw: st.DrawFn) -> list[tuple[str, bytes | None]]:
    """As our programs write them, but for one or two."""
    drawn: list[tuple[str, bytes | None]] = [*OWN]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(drawn) - 1))
        was, other = drawn[at], (draw(names), draw(own_values))
        drawn[at : at + 1] = draw(st.sampled_from([[], [(was[0], other[1])], [other], [was, other]]))
    return drawn


@settings(max_examples=600)
@given(own_headers(), values)
@example(OWN, b'"' + b"x" * 983_039 + b'"')
@example(OWN, b"[" * 31 + b"]" * 31)
@example(OWN, b"\xef\xbb\xbf1")
@example([*CE], b"1")
@example([*CE, ("ce_tenant", b"t")], None)
@example([(name.upper(), raw) for name, raw in OWN], b"1")
def test_the_usual_is_read_as_all_else_is(some: list[tuple[str, bytes | None]], value: bytes | None) -> None:
    asked = record(*some, value=value)
    assert decode(asked) == codec._decode_any(asked)
    assert decode(asked) == codec._decode_any(asked)  # from memory


def test_what_our_programs_write_is_the_usual() -> None:
    asked = record(*OWN, value=b"1")
    assert codec._decode_usual(asked) == codec._decode_any(asked)
    bare = record(*CE, value=b"1")
    assert codec._decode_usual(bare) == codec._decode_any(bare)


def test_what_is_remembered_of_headers_has_its_limit() -> None:
    for n in range(codec._LAYOUTS_LIMIT + 10):
        decode(record(*OWN, (f"ce_made{n}up", b"1"), value=b"1"))
    assert 0 < len(codec._layouts) <= codec._LAYOUTS_LIMIT
    remembered = dict(codec._layouts)
    decode(record(*OWN, ("x" * 100_000, b"1"), value=b"1"))
    decode(record(*OWN, ("made up", b"1"), value=b"1"))
    assert codec._layouts == remembered


@settings(max_examples=400)
@given(envelopes | damaged())
@example(b'{"specversion":"1.0","id":"a","source":"b","type":"c","data":1e99999}')
@example(b'{"specversion":"1.0","id":"a","source":"b","type":"c","data":"\\\\u0000"}')
def test_structured_events_with_anything_in_them(value: bytes) -> None:
    check(record(STRUCTURED, value=value))


@given(st.dictionaries(texts, json_values, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_members_keep_their_text(value: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    if isinstance(parse_json(text.encode()), Malformed):
        return
    members = raw_members(text)
    assert list(members) == list(value)
    for name, raw in members.items():
        assert raw in text
        assert json.loads(raw) == value[name]
