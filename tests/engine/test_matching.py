"""Which data fits which match, and the indexes that answer it for thousands at once."""

from __future__ import annotations

import json
from decimal import Decimal
from enum import IntEnum, StrEnum
from random import Random
from typing import Any

import orjson
import pytest

from romancy_stream.engine.matching import (
    MATCH_BYTES,
    MATCH_FIELDS,
    VIEWS,
    Document,
    Kept,
    Waiting,
    checked_match,
    entity_of_event,
    entity_of_wait,
    matches,
    wanted,
)


def fits(match: dict[str, Any], data: Any) -> bool:
    raw = data if isinstance(data, bytes) else orjson.dumps(data)
    return matches(checked_match(match), Document(raw))


VALUES: list[tuple[Any, bytes]] = [
    ("5", b'"5"'),
    (5, b"5"),
    (5.5, b"5.5"),
    (True, b"true"),
    (False, b"false"),
    (None, b"null"),
    ("true", b'"true"'),
    ("null", b'"null"'),
    ("", b'""'),
    (0, b"0"),
    (1, b"1"),
    (-5, b"-5"),
    (2**53 + 1, b"9007199254740993"),
    (2**53, b"9007199254740992"),
    (0.1, b"0.1"),
    (1e300, b"1e300"),
    ("5e0", b'"5e0"'),
]


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_a_value_fits_itself_and_no_other(value: Any, text: bytes) -> None:
    for _, other in VALUES:
        assert fits({"a": value}, b'{"a":%s}' % other) == (other == text)


@pytest.mark.parametrize("text", ["5", "5.0", "5e0", "50e-1", "0.5E1", "5.000"])
def test_a_number_is_what_it_amounts_to(text: str) -> None:
    for value in (5, 5.0):
        assert fits({"a": value}, f'{{"a":{text}}}'.encode())
    assert not fits({"a": 5}, f'{{"a":"{text}"}}'.encode())


def test_digits_that_a_double_loses_count() -> None:
    assert not fits({"a": 0.1}, b'{"a":0.1000000000000000000000001}')
    assert not fits({"a": 1e20}, b'{"a":100000000000000000001}')
    assert fits({"a": 1e20}, b'{"a":100000000000000000000}')
    assert fits({"a": 0}, b'{"a":-0.0}')


def test_paths_lead_into_objects_and_lists() -> None:
    data = {"customer": {"id": "c1", "0": "zero"}, "lines": [{"sku": "a"}, {"sku": "b"}], "none": None}
    assert fits({"customer.id": "c1", "lines.1.sku": "b"}, data)
    assert fits({"customer.0": "zero"}, data)
    assert fits({"none": None}, data)
    assert fits({}, data)
    for missing in ("customer.name", "lines.2.sku", "lines.01.sku", "lines.-1.sku", "customer.id.x", "nowhere"):
        assert not fits({missing: None}, data)
    assert not fits({"customer": None}, data)
    for no_object in (b"null", b"[]", b'"text"', b"5"):
        assert not fits({"a": None}, no_object)
    assert not matches({"a": None}, Document(None))
    assert matches({}, Document(None))


def test_what_a_match_may_be() -> None:
    class Colour(StrEnum):
        RED = "red"

    class Size(IntEnum):
        BIG = 3

    assert checked_match(None) == {}
    checked = checked_match({"a": Colour.RED, "b": Size.BIG, "c": None, "d": True})
    assert orjson.dumps(checked) == b'{"a":"red","b":3,"c":null,"d":true}'
    for value in (Decimal(1), b"x", [1], {"a": 1}, 2**63, float("nan"), float("inf"), "\0", "\ud800", object()):
        with pytest.raises(ValueError, match="match"):
            checked_match({"a": value})
    for path in ("", ".", "a..b", "a.", 5, "\0", ".".join("a" * 31), "a" * 256):
        with pytest.raises(ValueError, match="field"):
            checked_match({path: 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="at most"):
        checked_match({f"a{n}": n for n in range(MATCH_FIELDS + 1)})
    with pytest.raises(ValueError, match="limit"):
        checked_match({"a": "x" * MATCH_BYTES})


def test_an_event_and_a_wait_meet_where_their_keys_are_equal() -> None:
    keys = {"paid": "order.number"}
    here = entity_of_event(keys, "paid", Document(b'{"order":{"number":5.0}}'))
    assert here == entity_of_wait(keys, "paid", checked_match({"order.number": 5, "x": 1}))
    assert here != entity_of_wait(keys, "paid", checked_match({"order.number": "5"}))
    assert here != entity_of_wait({"shipped": "order.number"}, "shipped", checked_match({"order.number": 5}))
    assert entity_of_event(keys, "paid", Document(b'{"order":{"number":[5]}}')) is None
    assert entity_of_event(keys, "paid", Document(None)) is None
    assert entity_of_event({}, "paid", Document(None)) == entity_of_wait({}, "paid", {"order": 1})
    with pytest.raises(ValueError, match=r"order\.number"):
        entity_of_wait(keys, "paid", checked_match({"order": 5}))


def test_the_indexes_answer_as_a_look_at_each_does() -> None:
    dice = Random(7)
    fields = ("a", "b", "c.d")
    waits: dict[int, dict[str, Any]] = {}
    documents: dict[int, Any] = {}
    waiting: Waiting[int] = Waiting()
    kept = Kept()

    def value() -> Any:
        return dice.choice([1, 1.0, "1", True, None])

    for number in range(3_000):
        if dice.random() < 0.5:
            data = {"a": value(), "b": value(), "c": {"d": value()} if dice.random() < 0.5 else []}
            raw = orjson.dumps(data)
            expected = {n for n, match in waits.items() if fits(match, raw)}
            assert set(waiting.matching(Document(raw))) == expected
            documents[number] = raw
            kept.add(number, raw)
        else:
            match = {field: value() for field in fields if dice.random() < 0.4}
            found = [n for n, raw in documents.items() if fits(match, raw)]
            assert kept.oldest(*wanted(checked_match(match))) == (found[0] if found else None)
            waits[number] = match
            waiting.add(number, *wanted(checked_match(match)))
        for table, index in ((documents, kept), (waits, waiting)):
            if len(table) > 20:
                gone = dice.choice(list(table))
                del table[gone]
                index.remove(gone)
                index.remove(gone)
    assert len(kept) == len(documents)


def test_the_views_of_what_is_kept_are_bounded() -> None:
    kept = Kept()
    kept.add(1, json.dumps({f"f{n}": n for n in range(2 * VIEWS)}).encode())
    for n in range(2 * VIEWS):
        assert kept.oldest(*wanted({f"f{n}": n})) == 1
    assert len(kept._views) <= VIEWS
