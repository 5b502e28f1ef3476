"""The codec: what goes in comes out as its declared type, or is refused."""

from __future__ import annotations

import math
import typing
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PrivateAttr, SecretStr, computed_field

from romancy_stream import ConfigurationError, PayloadError, PayloadTooLargeError
from romancy_stream.engine.payload import MAX_ENCODED_BYTES, TypeCodec, encode_data

T = TypeVar("T")


class Opaque:
    def __repr__(self) -> str:
        return "Opaque()"  # in the names of tests, which are the same in every process


class Color(Enum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class Mood(StrEnum):
    FINE = "fine"


class Item(BaseModel):
    sku: str
    price: Decimal
    when: datetime | None = None


class Gift(Item):
    note: str


class Order(BaseModel):
    items: list[Item]
    color: Color = Color.RED


class Boxed(BaseModel, Generic[T]):
    value: T


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: str


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Twin(BaseModel):
    name: str


class OtherTwin(BaseModel):
    name: str


@dataclass
class Point:
    x: int
    raw: bytes = b""
    tags: list[str] = field(default_factory=list)


class Row(typing.TypedDict):
    id: int
    at: datetime


class LooseRow(Row, total=False):
    note: str


class NewRow(typing_extensions.TypedDict):
    rows: list[Row]


class Packed(msgspec.Struct):
    a: int
    raw: bytes = b""
    at: datetime | None = None


class Wide(Packed):
    b: str = ""


class Tree(BaseModel):
    children: list[Tree] = []


Epoch = Annotated[
    datetime,
    PlainSerializer(lambda moment: int(moment.timestamp())),
]


class Stamped(BaseModel):
    at: Epoch


NOW = datetime(2026, 3, 1, 12, 30, 5, 123456, tzinfo=UTC)
ID = uuid.UUID(int=5)

RESTORED: list[tuple[Any, Any]] = [
    (str, "naïve ☃ \\u0000 as text"),
    (int, 5),
    (int, 2**53 + 1),
    (int, -(10**40)),
    (float, 0.1),
    (float, 5),
    (bool, True),
    (None, None),
    (bytes, b"\xff\x00\xfe"),
    (list[bytes], [b"\xff"]),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("1e-30")),
    (datetime, NOW),
    (datetime, datetime(2026, 3, 1)),
    (datetime, NOW.astimezone(timezone(timedelta(hours=2)))),
    (date, date(2026, 3, 1)),
    (timedelta, timedelta(days=1, microseconds=1)),
    (uuid.UUID, ID),
    (Color, Color.RED),
    (Size, Size.BIG),
    (Mood, Mood.FINE),
    (Literal["a", "b"], "a"),
    (str | None, None),
    (int | str, "5"),
    (list[int], [1, 2]),
    (dict[str, Decimal], {"a": Decimal(1)}),
    (dict[int, uuid.UUID], {1: ID}),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (Item, Item(sku="a", price=Decimal("9.90"), when=NOW)),
    (Order, Order(items=[Item(sku="a", price=Decimal(1))])),
    (list[Item | None], [None, Item(sku="a", price=Decimal(1))]),
    (Boxed[Item], Boxed[Item](value=Item(sku="a", price=Decimal(1)))),
    (Tree, Tree(children=[Tree(), Tree(children=[Tree()])])),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(name="rex")),
    (Cat | Dog, Dog(name="rex")),
    (Item | Gift, Gift(sku="a", price=Decimal(1), note="n")),
    (Point, Point(1, b"\xff", ["a"])),
    (list[Point], [Point(1, b"\xff")]),
    (Row, {"id": 1, "at": NOW}),
    (list[LooseRow], [{"id": 1, "at": NOW}, {"id": 1, "at": NOW, "note": "n"}]),
    (NewRow, {"rows": [{"id": 1, "at": NOW}]}),
    (Row | None, {"id": 1, "at": NOW}),
    (Annotated[int, {"unhashable": 1}], 5),
    (Epoch, NOW.replace(microsecond=0)),
    (Stamped, Stamped(at=NOW.replace(microsecond=0))),
    (Packed, Packed(1, b"\xff", NOW)),
    (dict[str, list[Packed]], {"a": [Packed(1)]}),
    (Packed | None, Packed(2)),
    (Any, {"a": [1, 2.5, None, True, "x", 2**60, 10**30]}),
    (Any, Mood.FINE),
    (object, ["a"]),
]


@pytest.mark.parametrize(("declared", "value"), RESTORED, ids=lambda each: repr(each)[:50])
def test_values_come_back(declared: Any, value: Any) -> None:
    codec = TypeCodec(declared)
    restored = codec.decode(codec.encode(value))
    assert restored == value
    if not isinstance(value, int | datetime | Mood):
        assert type(restored) is type(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_plain_json_comes_back_or_is_refused_for_nul(value: Any) -> None:
    codec = TypeCodec(Any)
    try:
        raw = codec.encode(value)
    except PayloadError:
        assert "\x00" in repr(value) or "\\x00" in repr(value)
        return
    assert codec.decode(raw) == value
    assert "\\x00" not in repr(value).replace("\\\\", "")


@given(st.text(alphabet=st.sampled_from(["\\", "u", "0", "\x00", "a", '"'])))
def test_nul_is_found_and_its_spelling_is_not_mistaken_for_it(text: str) -> None:
    codec = TypeCodec(str)
    if "\x00" in text:
        with pytest.raises(PayloadError, match="NUL"):
            codec.encode(text)
    else:
        assert codec.decode(codec.encode(text)) == text


class Hashed(BaseModel):
    secret: SecretStr


class Partial(BaseModel):
    kept: int
    dropped: int = Field(default=0, exclude=True)


class Floats(BaseModel):
    value: float | None = None


REFUSED: list[tuple[Any, Any, str]] = [
    (float, math.nan, "NaN"),
    (float, -math.inf, "NaN"),
    (list[float], [1.0, math.inf], "NaN"),
    (Floats, Floats(value=math.nan), "cannot restore"),
    (Decimal, Decimal("NaN"), "cannot restore"),
    (Any, [math.nan], "plain JSON"),
    (Any, (1, 2), "plain JSON"),
    (Any, {1: "a"}, "plain JSON"),
    (Any, NOW, "plain JSON"),
    (Any, Point(1), "plain JSON"),
    (Any, Item(sku="a", price=Decimal(1)), "plain JSON"),
    (Any, {"a": b"x"}, "plain JSON"),
    (Any, Opaque(), "cannot become JSON"),
    (Any, {1, 2}, "plain JSON"),
    (str, "a\x00b", "NUL"),
    (str, "\ud800", "cannot become JSON"),
    (Any, ["\ud800"], "cannot become JSON"),
    (Item, Gift(sku="a", price=Decimal(1), note="n"), "declare the exact type"),
    (list[Item], [Gift(sku="a", price=Decimal(1), note="n")], "declare the exact type"),
    (Packed, Wide(1, b=""), "declare the exact type"),
    (Twin | OtherTwin, OtherTwin(name="x"), "declare the exact type"),
    (Hashed, Hashed(secret=SecretStr("x")), "cannot restore"),
    (Partial, Partial(kept=1, dropped=2), "cannot restore"),
    (int, "5", "cannot restore"),
    (int, None, "cannot restore"),
    (Item, "nonsense", "cannot restore"),
    (None, 5, "cannot restore"),
]


@pytest.mark.parametrize(("declared", "value", "message"), REFUSED, ids=lambda each: repr(each)[:50])
def test_what_cannot_come_back_is_refused(declared: Any, value: Any, message: str) -> None:
    with pytest.raises(PayloadError, match=message) as caught:
        TypeCodec(declared, "activity 'charge', result").encode(value)
    assert str(caught.value).startswith("activity 'charge', result")


def test_excluded_and_private_state_that_loses_nothing_is_fine() -> None:
    class Cached(BaseModel):
        kept: int
        _cache: dict[str, int] = PrivateAttr(default_factory=dict)

        @computed_field  # type: ignore[prop-decorator]
        @property
        def double(self) -> int:
            return self.kept * 2

    value = Cached(kept=2)
    value._cache["a"] = 1
    codec = TypeCodec(Cached)
    assert codec.decode(codec.encode(value)).kept == 2
    assert TypeCodec(Partial).encode(Partial(kept=1)) == b'{"kept":1}'


def test_a_subclass_keeps_its_fields_where_the_type_can_take_them() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        a: int

    assert encode_data([Gift(sku="a", price=Decimal(1), note="n")]) == (
        b'[{"sku":"a","price":"1","when":null,"note":"n"}]'
    )
    codec = TypeCodec(Open)
    value = Open.model_validate({"a": 1, "more": [1]})
    assert codec.decode(codec.encode(value)).model_extra == {"more": [1]}


def test_raw_json_may_stand_for_a_model_but_not_with_unknown_names() -> None:
    codec = TypeCodec(Item)
    assert codec.decode(codec.encode({"sku": "a", "price": "1.5"})) == Item(sku="a", price=Decimal("1.5"))
    with pytest.raises(PayloadError):
        codec.encode({"sku": "a", "price": "1.5", "colour": "red"})


def test_aliases_are_used_both_ways() -> None:
    class Renamed(BaseModel):
        order_id: str = Field(alias="orderId")

    codec = TypeCodec(Renamed)
    raw = codec.encode(Renamed(orderId="a"))
    assert raw == b'{"orderId":"a"}'
    assert codec.decode(raw).order_id == "a"


def test_binary_bytes_in_a_model_say_what_to_configure() -> None:
    class Loose(BaseModel):
        raw: bytes

    class Right(BaseModel):
        model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        raw: bytes

    with pytest.raises(PayloadError, match="ser_json_bytes"):
        TypeCodec(Loose).encode(Loose(raw=b"\xff"))
    codec = TypeCodec(Right)
    assert codec.decode(codec.encode(Right(raw=b"\xff"))) == Right(raw=b"\xff")


@pytest.mark.parametrize(
    ("declared", "raw"),
    [
        (float, b"NaN"),
        (list[float], b"[-Infinity]"),
        (Any, b'{"a": NaN}'),
        (str, b'"\\u0000"'),
        (Any, b'{"\\u0000": 1}'),
        (int, b'"x"'),
        (Any, b"{"),
        (Any, b""),
        (Any, b'"\\ud800"'),
        (str, b'"\\ud800"'),
        (Item, b'{"sku": "a"}'),
        (Packed, b'{"a": "x"}'),
        (Any, b"[" * 100_000),
        (str, b'"\xff"'),
    ],
)
def test_bad_json_is_a_payload_error(declared: Any, raw: bytes) -> None:
    with pytest.raises(PayloadError):
        TypeCodec(declared).decode(raw)


def test_a_validator_that_raises_anything_is_a_payload_error() -> None:
    class Rude(BaseModel):
        a: int

        def model_post_init(self, context: Any) -> None:
            raise KeyError("no")

    with pytest.raises(PayloadError, match="KeyError"):
        TypeCodec(Rude).decode(b'{"a": 1}')


def test_errors_say_where_and_never_show_the_input() -> None:
    with pytest.raises(PayloadError) as caught:
        TypeCodec(Order).decode(b'{"items": [{"sku": 5, "price": "hunter2"}]}')
    assert [e["loc"] for e in caught.value.errors] == [["items", 0, "sku"], ["items", 0, "price"]]
    assert all(set(e) == {"loc", "type", "msg"} for e in caught.value.errors)
    assert "hunter2" not in str(caught.value)


def test_the_limit_is_exact() -> None:
    codec = TypeCodec(str)
    fits = "a" * (MAX_ENCODED_BYTES - 2)
    assert codec.decode(codec.encode(fits)) == fits
    with pytest.raises(PayloadTooLargeError, match=r"67,108,865 bytes"):
        codec.encode(fits + "a")
    with pytest.raises(PayloadTooLargeError):
        codec.decode(b'"' + fits.encode() + b'a"')


def test_a_type_without_json_form_is_a_configuration_error() -> None:
    class Opaque:
        pass

    with pytest.raises(ConfigurationError, match=r"parameter 'x'.*Opaque"):
        TypeCodec(Opaque, "parameter 'x'").build()


def test_data_of_events_is_encoded_by_what_it_is() -> None:
    assert encode_data(None) is None
    assert encode_data({"at": NOW, "raw": b"\xff", "id": ID}) == (
        b'{"at":"2026-03-01T12:30:05.123456Z","raw":"_w==","id":"00000000-0000-0000-0000-000000000005"}'
    )
    assert encode_data(Point(1)) == b'{"x":1,"raw":"","tags":[]}'
    assert encode_data(Packed(1)) == b'{"a":1,"raw":"","at":null}'
    for bad in (math.nan, [Floats(value=math.inf)], {"a": "\x00"}, object()):
        with pytest.raises(PayloadError):
            encode_data(bad)


@pytest.mark.parametrize("declared", [int, Any, list[int], dict[str, int]])
def test_an_integer_that_readers_of_json_refuse(declared: Any) -> None:
    codec = TypeCodec(declared)
    for digits in (308, 309, 5_000):
        value: Any = 10 ** (digits - 1)
        value = {list[int]: [value], dict[str, int]: {"a": value}}.get(declared, value)
        if digits == 308:
            assert codec.decode(codec.encode(value)) == value
        else:
            with pytest.raises(PayloadError):
                codec.encode(value)
