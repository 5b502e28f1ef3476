"""The check of JSON text: what JSONB or json_valid would refuse is refused, and only that."""

from __future__ import annotations

import pytest

from romancy_stream.wire import malformed as m
from romancy_stream.wire.json_text import is_deeper, parse_json, raw_members
from romancy_stream.wire.malformed import Malformed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (rb'"\u0000"', m.NUL_CHARACTER),
        (rb'"a\\\u0000"', m.NUL_CHARACTER),
        (rb'["\\\\","\u0000"]', m.NUL_CHARACTER),
        (rb'"\\u0000"', None),
        (rb'"\\\\u0000"', None),
        (rb'"\u00001"', m.NUL_CHARACTER),
        (rb'"\u0001"', None),
        (rb'"\ud83d\ude00"', None),
        (rb'"\ude00\ud83d"', m.INVALID_JSON),
        (b"1e999", m.INVALID_JSON),
        (b"1e-999", None),
        (b"1e-1000", m.INVALID_JSON),
        (b"[1, 2.5E-12345]", m.INVALID_JSON),
        (b'{"a":0e9999999999}', m.INVALID_JSON),
        (b"0.0E+00001", m.INVALID_JSON),
        (b'"1e-99999"', None),
        (b'"say: 1e-99999, or"', None),
        (b'"\\": 1e-99999"', None),
        (b'{"id":"0e0000aa-1e12-4e34-8e56-7e0000008e99"}', None),
        (b"0." + b"1" * m.MAX_FRACTION_DIGITS, None),
        (b"0." + b"1" * (m.MAX_FRACTION_DIGITS + 1), m.INVALID_JSON),
        (b'"0.' + b"1" * (m.MAX_FRACTION_DIGITS + 1) + b'"', None),
        (b"9" * 300, None),
        (b"9" * 400, m.INVALID_JSON),
        (b'{"a":-' + b"1" * m.MAX_INTEGER_DIGITS + b"}", None),
        (b"[1," + b"1" * (m.MAX_INTEGER_DIGITS + 1) + b"]", m.INVALID_JSON),
        (b'"' + b"1" * 5_000 + b'"', None),
    ],
)
def test_what_databases_refuse(text: bytes, reason: str | None) -> None:
    found = parse_json(text)
    assert (found.reason if isinstance(found, Malformed) else None) == reason


def test_depth() -> None:
    assert not is_deeper(1, 0)
    assert is_deeper([], 0)
    assert not is_deeper([1, {}], 2)
    assert is_deeper([1, {"a": 1}, [[1]]], 2)
    assert not is_deeper([1, {"a": 1}, [[1]]], 3)
    assert is_deeper([{"a": n, "b": [{}]} for n in range(1_000)], 3)
    assert not is_deeper([{"a": n, "b": [{}]} for n in range(1_000)], 4)


def test_members_are_cut_out_as_they_stand() -> None:
    text = ' {\n"a" : 1.50 ,"b":[ 1,\t{"c":"}"} ]\r\n, "\\u0061b":"x", "a" :  -0.0e1}\n'
    assert raw_members(text) == {"a": "-0.0e1", "b": '[ 1,\t{"c":"}"} ]', "ab": '"x"'}
    assert raw_members("{ }") == {}


@pytest.mark.postgres
def test_postgres_takes_what_we_take(postgres_url: str) -> None:
    """The limits are those of the database, asked."""
    import asyncio

    import asyncpg

    taken = [b"1e-999", b"1e308", b"9" * 300, b"0." + b"1" * m.MAX_FRACTION_DIGITS + b"e-999", b"[" * 30 + b"]" * 30]
    refused = [rb'"\u0000"', b"1e-99999", b"0e9999999999", b"0." + b"1" * 20_000, rb'"\ud800"']

    async def ask() -> None:
        connection = await asyncpg.connect(postgres_url)
        try:
            for text in taken:
                assert not isinstance(parse_json(text), Malformed)
                await connection.fetchval("SELECT $1::text::jsonb", text.decode())
            for text in refused:
                assert isinstance(parse_json(text), Malformed)
                with pytest.raises(asyncpg.PostgresError):
                    await connection.fetchval("SELECT $1::text::jsonb", text.decode())
        finally:
            await connection.close()

    asyncio.run(ask())
