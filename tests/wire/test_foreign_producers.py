"""What the SDKs of other languages, kcat and hand-made producers put on the wire, a line each."""

from __future__ import annotations

import base64

import pytest

from romancy_stream.wire import malformed as m
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import X_CONTENT_TYPE, WireEvent
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.record import Record
from tests.wire.making import CE, ENVELOPE, JSON_TYPE, STRUCTURED, binary, raw_structured, record, structured


def read(given: Record) -> WireEvent:
    event = decode(given)
    assert isinstance(event, WireEvent), event
    return event


def refuse(given: Record) -> Malformed:
    problem = decode(given)
    assert isinstance(problem, Malformed), problem
    assert problem.reason in m.REASONS
    return problem


GO = record(
    ("ce_id", b"order-A-1/start"),
    ("ce_source", b"/shop/web"),
    ("ce_specversion", b"1.0"),
    ("ce_type", b"romancy.workflow.start"),
    JSON_TYPE,
    ("ce_subject", b"order-A-1"),
    ("ce_time", b"2026-11-22T21:16:26.287346204Z"),
    ("ce_romancyworkflow", b"checkout"),
    ("ce_partitionkey", b"order-A-1"),
    key=b"order-A-1",
    value=b'{"id":"A-1","total":"19.90"}',
)
JAVA = record(
    ("ce_specversion", b"1.0"),
    ("ce_id", b"order-A-1/start"),
    ("ce_source", b"/shop/web"),
    ("ce_type", b"romancy.workflow.start"),
    JSON_TYPE,
    ("ce_subject", b"order-A-1"),
    ("ce_time", b"2026-11-22T21:16:27.40678443Z"),
    ("ce_romancyworkflow", b"checkout"),
    value=b'{"id": "A-1", "total": "19.90"}',
)


def test_sdk_go_and_sdk_java_binary() -> None:
    """Bytes as the two SDKs put them into a real Kafka."""
    event = read(GO)
    assert event == WireEvent(
        "order-A-1/start",
        "/shop/web",
        "romancy.workflow.start",
        "order-A-1",
        b'{"id":"A-1","total":"19.90"}',
        "2026-11-22T21:16:26.287346204Z",
        {"romancyworkflow": "checkout", "partitionkey": "order-A-1"},
    )
    assert read(JAVA).extensions == {"romancyworkflow": "checkout"}
    assert read(JAVA).data == b'{"id": "A-1", "total": "19.90"}'


@pytest.mark.parametrize(
    "headers",
    [
        tuple((name.upper(), value) for name, value in CE),
        tuple((name.title(), value) for name, value in CE),
        tuple(reversed(CE)),
    ],
    ids=["upper", "title", "reversed"],
)
def test_header_names_in_any_case_and_order(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    assert read(record(*headers, ("Content-Type", b"application/json"), value=b"1")) == read(binary(b"1", JSON_TYPE))


def test_headers_of_others_are_no_attributes() -> None:
    event = read(binary(b"1", ("traceparent", b"\xff\xfe"), ("__TypeId__", b"x"), ("ce", b"x"), ("ce_", b"x")))
    assert event.extensions == {}


def test_raw_utf8_in_headers() -> None:
    event = read(binary(None, ("ce_subject", "Köln-1 日本".encode()), ("ce_city", "Köln".encode())))
    assert (event.subject, event.extensions) == ("Köln-1 日本", {"city": "Köln"})


def test_header_values_are_taken_as_they_stand() -> None:
    """The Kafka binding has no percent-encoding. Decoding would make two ids one, and would break sources."""
    event = read(binary(None, ("ce_subject", b"K%C3%B6ln%20100%25")))
    assert event.subject == "K%C3%B6ln%20100%25"


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        b"application/json",
        b"application/json; charset=utf-8",
        b"Application/JSON;charset=UTF-8",
        b'application/json; charset="utf-8"',
        b"text/json",
        b"application/vnd.bank.payment+json",
        b"",
    ],
)
def test_json_data_stays_the_text_it_is(content_type: bytes | None) -> None:
    text = b'{ "amount": 123456789012345678901234567890, "rate": 0.10000000000000000000001, "n": 1.50 }'
    event = read(binary(text, ("content-type", content_type)))
    assert event.data == text
    assert event.extensions == {}


def test_ce_datacontenttype_counts_where_content_type_is_absent() -> None:
    assert read(binary(b"<a/>", ("ce_datacontenttype", b"text/xml"))).data == b'"<a/>"'
    both = read(binary(b"{}", JSON_TYPE, ("ce_datacontenttype", b"text/xml")))
    assert (both.data, both.extensions) == (b"{}", {})


@pytest.mark.parametrize("value", [None, b""])
def test_no_data(value: bytes | None) -> None:
    assert read(binary(value)).data is None
    assert read(binary(value, ("content-type", b"text/plain"))) == read(binary(None))


def test_json_null_is_data() -> None:
    assert read(binary(b"null")).data == b"null"


@pytest.mark.parametrize(
    ("content_type", "value", "data"),
    [
        (b"text/plain", b"true", b'"true"'),
        (b"text/plain; charset=iso-8859-1", "Köln".encode("latin-1"), '"Köln"'.encode()),
        (b"text/plain; charset=utf-16", "Köln".encode("utf-16"), '"Köln"'.encode()),
        (b"application/xml", b'<a b="c"/>', rb'"<a b=\"c\"/>"'),
        (b"application/soap+xml", b"<a/>", b'"<a/>"'),
        (b"application/octet-stream", b"\x00\xff", b'"AP8="'),
        (b"application/avro", b"{}", b'"e30="'),
        (b"image/png", b"\x89PNG", b'"iVBORw=="'),
    ],
)
def test_other_content_types_become_json_strings(content_type: bytes, value: bytes, data: bytes) -> None:
    event = read(binary(value, ("content-type", content_type)))
    assert event.data == data
    assert event.extensions == {X_CONTENT_TYPE: content_type.decode()}


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/cloudevents+json",
        b"application/cloudevents+json; charset=utf-8",
        b"application/cloudevents+json;charset=UTF-8",
        b"Application/CloudEvents+JSON",
        b"application/cloudevents",
    ],
)
def test_structured_content_types(content_type: bytes) -> None:
    event = read(structured(("Content-Type", content_type), subject="s", data={"a": 1}))
    assert (event.id, event.source, event.type, event.subject, event.data) == (
        "e-1",
        "/bank",
        "payment.completed",
        "s",
        b'{"a": 1}',
    )


def test_structured_without_any_header() -> None:
    given = structured(data=[1])
    assert read(record(value=given.value)) == read(given)
    assert read(record(JSON_TYPE, value=b"\xef\xbb\xbf " + (given.value or b""))) == read(given)


def test_structured_wins_over_binary_headers() -> None:
    """The binding allows the headers of binary mode beside a structured event."""
    assert read(structured(STRUCTURED, ("ce_id", b"other"), data=1)).id == "e-1"


def test_structured_names_in_any_case() -> None:
    value = b'{"SpecVersion":"1.0","Id":"e-1","Source":"/bank","Type":"payment.completed","Data":{"A":1},"MyExt":"x"}'
    event = read(record(STRUCTURED, value=value))
    assert (event.id, event.data, event.extensions) == ("e-1", b'{"A":1}', {"myext": "x"})


def test_structured_data_keeps_every_digit() -> None:
    text = '{ "amount": 123456789012345678901234567890, "rate": 0.10000000000000000000001,\n "n": [1.50] }'
    assert read(raw_structured(f'"data" :\t{text} , "subject":"s"')).data == text.encode()


@pytest.mark.parametrize(
    ("members", "data", "extensions"),
    [
        ('"data": null', None, {}),
        ('"data": "text"', b'"text"', {}),
        ('"data": "x", "datacontenttype": "text/plain"', b'"x"', {X_CONTENT_TYPE: "text/plain"}),
        ('"data": false', b"false", {}),
        ('"data_base64": "eyJhIjoxLjUwfQ=="', b'{"a":1.50}', {}),
        ('"data_base64": "eyJhIjoxfQ==", "datacontenttype": "application/json"', b'{"a":1}', {}),
        ('"data_base64": "PGEvPg==", "datacontenttype": "text/xml"', b'"<a/>"', {X_CONTENT_TYPE: "text/xml"}),
        ('"data_base64": "/w=="', b'"/w=="', {}),
        ('"data_base64": ""', None, {}),
        ('"data_base64": null, "data": 1', b"1", {}),
        ('"subject": null, "time": null, "dataschema": null', None, {}),
        (
            '"big": 123456789012345678901234567890, "yes": true',
            None,
            {"big": "123456789012345678901234567890", "yes": "true"},
        ),
        ('"rate": 1.50', None, {"rate": "1.50"}),
    ],
)
def test_structured_members(members: str, data: bytes | None, extensions: dict[str, str]) -> None:
    event = read(raw_structured(members))
    assert (event.data, event.extensions) == (data, extensions)


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31t12:00:00z",
        "2026-01-31 12:00:00+01:00",
        "2026-01-31T12:00:00.5-00:00",
        "2026-01-31T12:00:00.123456789+05:30",
        "2016-12-31T23:59:60Z",
        "0001-01-01T00:00:00+02:00",
    ],
)
def test_time_in_any_rfc3339_form_is_kept(time: str) -> None:
    assert read(binary(None, ("ce_time", time.encode()))).time == time


def test_unknown_extensions_are_kept_and_other_names_left_out() -> None:
    headers = (
        ("ce_tenant", b"t-1"),
        ("ce_my-ext", b"x"),
        ("ce_data", b"x"),
        ("ce_dataschema", b"/s"),
        ("ce_empty", b""),
    )
    assert read(binary(None, *headers)).extensions == {"tenant": "t-1", "dataschema": "/s", "empty": ""}
    members = {"tenant": "t-1", "my_ext": "x", "dataschema": "/s", "empty": "", "nested-thing": {}}
    assert read(structured(**members)).extensions == {"tenant": "t-1", "dataschema": "/s", "empty": ""}


def test_the_key_is_no_attribute() -> None:
    assert read(record(*CE, key=b"\xff\x00")) == read(binary(None))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"['a', 'b']", m.PYTHON_REPR),
        (b"{'a': 1}", m.PYTHON_REPR),
        (b"[1, None]", m.PYTHON_REPR),
        (b"[True]", m.PYTHON_REPR),
        (b"('a', 1)", m.PYTHON_REPR),
        (b"False", m.PYTHON_REPR),
        (b"None", m.PYTHON_REPR),
        (b"b'abc'", m.PYTHON_REPR),
        (b"hello", m.UNQUOTED_STRING),
        (b"order-A-1", m.UNQUOTED_STRING),
        ("grüße".encode(), m.UNQUOTED_STRING),
        (b"+49 170 1234", m.UNQUOTED_STRING),
        (b"2026-01-31", m.UNQUOTED_STRING),
        (b"{", m.INVALID_JSON),
        (b'{"a": 1,}', m.INVALID_JSON),
        (b" ", m.INVALID_JSON),
        (b"NaN", m.INVALID_JSON),
        (b'{"a": NaN}', m.INVALID_JSON),
        (b"[1, -Infinity]", m.INVALID_JSON),
        (b"[nan]", m.INVALID_JSON),
    ],
)
@pytest.mark.parametrize("headers", [(), (JSON_TYPE,)], ids=["no type", "json"])
def test_what_is_not_json_says_what_the_producer_did(
    value: bytes, reason: str, headers: tuple[tuple[str, bytes], ...]
) -> None:
    problem = refuse(binary(value, *headers))
    assert (problem.reason, problem.event_source, problem.event_id) == (reason, "/bank", "e-1")
    hint = {m.PYTHON_REPR: "json.dumps", m.UNQUOTED_STRING: "text/plain", m.INVALID_JSON: "JSON"}[reason]
    assert hint in problem.message


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (record(value=b"hello"), m.NOT_A_CLOUDEVENT),
        (record(value=None), m.NOT_A_CLOUDEVENT),
        (record(value=b'{"id": 1}'), m.NOT_A_CLOUDEVENT),
        (record(JSON_TYPE, value=b"[]"), m.NOT_A_CLOUDEVENT),
        (record(STRUCTURED, value=None), m.NOT_A_CLOUDEVENT),
        (record(STRUCTURED, value=b"[]"), m.NOT_A_CLOUDEVENT),
        (record(STRUCTURED, value=b"{"), m.INVALID_JSON),
        (record(STRUCTURED, value=b"{'id': 'a'}"), m.PYTHON_REPR),
        (record(STRUCTURED, value=b"\xff"), m.INVALID_UTF8),
        (record(("content-type", b"application/cloudevents-batch+json"), value=b"[]"), m.UNSUPPORTED_FORMAT),
        (record(("content-type", b"application/cloudevents+avro"), value=b"x"), m.UNSUPPORTED_FORMAT),
        (record(("content-type", b"\xff"), value=b"x"), m.INVALID_UTF8),
        (record(*CE[1:], ("ce_specversion", b"0.3")), m.BAD_SPECVERSION),
        (record(STRUCTURED, value=b'{"specversion": 1.0}'), m.BAD_SPECVERSION),
        (record(*CE[1:]), m.MISSING_ATTRIBUTE),
        (record(*CE[:-1]), m.MISSING_ATTRIBUTE),
        (record(*CE, ("ce_id", b"")), m.MISSING_ATTRIBUTE),
        (record(*CE, ("ce_source", b"\xff")), m.INVALID_UTF8),
        (record(*CE, ("ce_time", b"yesterday")), m.BAD_ATTRIBUTE),
        (record(*CE, ("ce_time", b"2026-01-31T12:00:00")), m.BAD_ATTRIBUTE),
        (record(*CE, ("ce_time", b"2026-02-31T12:00:00Z")), m.BAD_ATTRIBUTE),
        (record(*CE, ("ce_subject", b"a\nb")), m.BAD_ATTRIBUTE),
        (record(*CE, ("ce_subject", b"a\0b")), m.NUL_CHARACTER),
        (record(*CE, ("ce_tenant", b"\0")), m.NUL_CHARACTER),
        (structured(id=17), m.BAD_ATTRIBUTE),
        (structured(tenant={"a": 1}), m.BAD_ATTRIBUTE),
        (structured(data=1, data_base64="eA=="), m.BAD_ATTRIBUTE),
        (structured(data_base64="?"), m.BAD_ATTRIBUTE),
        (structured(data_base64=1), m.BAD_ATTRIBUTE),
        (structured(data="\0"), m.NUL_CHARACTER),
        (raw_structured('"data": "\\ud800"'), m.INVALID_JSON),
        (binary(b"x", ("content-type", b"text/plain; charset=rot13")), m.BAD_ATTRIBUTE),
        (binary(b"x", ("content-type", b"a/b\n")), m.BAD_ATTRIBUTE),
        (binary(b"\xff", ("content-type", b"text/plain")), m.INVALID_UTF8),
        (binary(b"a\0b", ("content-type", b"text/plain")), m.NUL_CHARACTER),
        (binary(b'"\xff"'), m.INVALID_UTF8),
        (binary(b'"\xed\xa0\x80"'), m.INVALID_UTF8),
        (binary(b'{"a": "\\u0000"}'), m.NUL_CHARACTER),
        (binary(b'{"\\u0000": 1}'), m.NUL_CHARACTER),
        (binary(b'"\0"'), m.NUL_CHARACTER),
        (binary(b'"\\ud800"'), m.INVALID_JSON),
        (binary(b"1e400"), m.INVALID_JSON),
    ],
)
def test_refused(given: Record, reason: str) -> None:
    assert refuse(given).reason == reason


def test_a_refused_event_is_named_as_far_as_it_is_known() -> None:
    assert refuse(record(*CE[:-1])).event_id == "e-1"
    assert refuse(record(*CE, ("ce_id", b"a\0"))).event_id is None
    assert refuse(structured(tenant=[])).event_source == ENVELOPE["source"]


def test_limits_of_attributes() -> None:
    longest = b"x" * m.MAX_ID_CHARS
    for name in ("id", "source", "type", "subject", "romancyworkflow", "romancyactivityid"):
        read(binary(None, ("ce_" + name, longest)))
        assert refuse(binary(None, ("ce_" + name, longest + b"x"))).reason == m.TOO_LARGE
    tasks_id = b"x" * m.MAX_DERIVED_ID_CHARS
    task = ("ce_type", b"romancy.activity.requested")
    read(binary(None, task, ("ce_id", tasks_id)))
    assert refuse(binary(None, task, ("ce_id", tasks_id + b"x"))).reason == m.TOO_LARGE
    assert refuse(binary(None, ("ce_tenant", b"x" * m.MAX_ATTRIBUTE_CHARS))).reason == m.TOO_LARGE
    many = [(f"ce_x{n}", b"") for n in range(m.MAX_ATTRIBUTES - len(CE))]
    read(binary(None, *many))
    assert refuse(binary(None, *many, ("ce_onemore", b""))).reason == m.TOO_LARGE
    read(binary(None, ("ce_" + "n" * (m.MAX_NAME_CHARS - 3), b"")))


def test_limits_of_data() -> None:
    largest = b'"' + b"x" * (m.MAX_DATA_BYTES - 2) + b'"'
    assert read(binary(largest)).data == largest
    assert read(raw_structured(f'"data": {largest.decode()}')).data == largest
    for given in (
        binary(largest + b" "),
        binary(largest[1:-1], ("content-type", b"image/png")),
        binary(b'"' * m.MAX_DATA_BYTES, ("content-type", b"text/plain")),
        raw_structured(f'"data": "x{largest.decode()[1:]}'),
        record(STRUCTURED, value=b" " * (m.MAX_STRUCTURED_BYTES + 1)),
    ):
        assert refuse(given).reason == m.TOO_LARGE
    decoded = base64.b64decode(base64.b64encode(largest))
    assert read(structured(data_base64=base64.b64encode(largest).decode())).data == decoded
    task = ("ce_type", b"romancy.activity.requested")
    assert read(binary(b'{"args":[' + largest + b'],"kwargs":{}}', task)).data is not None


def test_limits_of_depth() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * (levels - 1) + b"[]" + b"}" * (levels - 1)

    deepest, deeper = nested(m.MAX_JSON_DEPTH), nested(m.MAX_JSON_DEPTH + 1)
    assert read(binary(deepest)).data == deepest
    assert read(raw_structured(f'"data": {deepest.decode()}')).data == deepest
    assert refuse(binary(deeper)).reason == m.TOO_DEEP
    assert refuse(raw_structured(f'"data": {deeper.decode()}')).reason == m.TOO_DEEP
    assert refuse(binary(b"[" * 100_000)).reason == m.TOO_DEEP
    assert refuse(record(STRUCTURED, value=b"[" * 100_000)).reason == m.TOO_DEEP
    task = ("ce_type", b"romancy.activity.requested")
    assert read(binary(b'{"args":[' + deepest + b"]}", task)).data is not None
    wide = b"[" + b",".join([b'{"a":"["}'] * 100) + b"]"
    assert read(binary(wide)).data == wide


def test_everything_that_fits_the_limits_fits_a_record() -> None:
    """Kafka's clients stop at 1 MiB by default, the topics at max.message.bytes."""
    character, batch_overhead = 4, 512
    names = m.MAX_ATTRIBUTES * m.MAX_NAME_CHARS
    assert m.MAX_WRAPPED_BYTES + m.MAX_ATTRIBUTE_CHARS * character + names + batch_overhead < 1_048_576
