"""How data becomes the arguments of a function, and back."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from romancy_stream import ConfigurationError, InvalidInputError, PayloadError, PayloadTooLargeError
from romancy_stream.engine.parameters import Parameters
from romancy_stream.engine.payload import MAX_ENCODED_BYTES

if TYPE_CHECKING:
    from nowhere import OnlyForCheckers  # type: ignore[import-not-found]


@dataclass
class Line:
    sku: str
    price: Decimal


def parameters(function: Callable[..., Any], skip: int = 0) -> Parameters:
    return Parameters(function, skip=skip, what=f"workflow {function.__name__!r}")


def none(ctx: Any) -> None: ...
def one(ctx: Any, applicant_id: str) -> None: ...
def one_default(ctx: Any, limit: int = 7) -> None: ...
def one_model(ctx: Any, order: Later) -> None: ...
def many(ctx: Any, name: str, line: Line, note: str | None = None, *, urgent: bool = False) -> None: ...
def unannotated(ctx, a, b=2): ...  # type: ignore[no-untyped-def]
def positional(ctx: Any, a: int, /, b: int) -> None: ...
def optional_positional(ctx: Any, a: int = 1, b: int = 2, /, *, c: int = 3) -> None: ...


class Later(BaseModel):
    """Defined after the function that names it."""

    id: str


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "raw"),
    [
        (none, (), {}, None),
        (one, ("a1",), {}, b'"a1"'),
        (one, (), {"applicant_id": "a1"}, b'"a1"'),
        (one_default, (), {}, None),
        (one_default, (5,), {}, b"5"),
        (one_model, (Later(id="x"),), {}, b'{"id":"x"}'),
        (
            many,
            ("a", Line("s", Decimal("1.5"))),
            {"urgent": True},
            b'{"name":"a","line":{"sku":"s","price":"1.5"},"urgent":true}',
        ),
        (unannotated, ([1],), {"b": {"c": None}}, b'{"a":[1],"b":{"c":null}}'),
        (positional, (1, 2), {}, b'{"a":1,"b":2}'),
    ],
)
def test_input_goes_both_ways(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], raw: bytes | None
) -> None:
    codec = parameters(function, skip=1)
    assert codec.encode_input(args, kwargs) == raw
    decoded = codec.decode_input(raw)
    bound = inspect.signature(function).bind(None, *args, **kwargs)
    restored = inspect.signature(function).bind(None, *decoded.args, **decoded.kwargs)
    assert restored.arguments == bound.arguments


def test_names_are_those_of_the_data() -> None:
    assert parameters(none, skip=1).names == ()
    assert parameters(many, skip=1).names == ("name", "line", "note", "urgent")


def test_no_parameter_ignores_whatever_comes() -> None:
    codec = parameters(none, skip=1)
    for raw in (None, b"5", b'{"a": 1}', b"not json"):
        assert codec.decode_input(raw) == ((), {})


def test_absent_data() -> None:
    def maybe(ctx: Any, value: int | None) -> None: ...

    assert parameters(one_default, skip=1).decode_input(None) == ((), {})
    assert parameters(maybe, skip=1).decode_input(None) == ((), {"value": None})
    assert parameters(optional_positional, skip=1).decode_input(None) == ((), {})
    for function in (one, one_model, many):
        with pytest.raises(InvalidInputError):
            parameters(function, skip=1).decode_input(None)


def test_positional_only_parameters_are_given_by_position() -> None:
    codec = parameters(optional_positional, skip=1)
    assert codec.decode_input(b'{"a": 5, "c": 6}') == ((5,), {"c": 6})
    with pytest.raises(InvalidInputError, match="required when 'b' is given"):
        codec.decode_input(b'{"b": 5}')


def test_invalid_input_says_what_is_wrong_with_each_name() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parameters(many, skip=1).decode_input(b'{"line": {"sku": "s", "price": "x"}, "nmae": "a"}')
    errors = {tuple(error["loc"]): error["type"] for error in caught.value.errors}
    assert errors == {
        ("name",): "missing",
        ("line", "price"): "decimal_parsing",
        ("nmae",): "unexpected_keyword_argument",
    }
    assert str(caught.value).startswith("workflow 'many': the input is not valid: name: Field required")


def test_unknown_names_of_nested_records_are_their_own_business() -> None:
    raw = b'{"name": "a", "line": {"sku": "s", "price": "1", "more": 1}}'
    assert parameters(many, skip=1).decode_input(raw).kwargs["line"] == Line("s", Decimal(1))


@pytest.mark.parametrize("raw", [b"[1]", b"5", b"null", b"{", b"", b'{"name": "\\u0000"}', b'{"a": NaN}', b"\xff"])
def test_bad_bytes_are_invalid_input(raw: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parameters(many, skip=1).decode_input(raw)
    assert caught.value.errors


def test_input_over_the_limit_is_invalid() -> None:
    raw = b'"' + b"a" * MAX_ENCODED_BYTES + b'"'
    with pytest.raises(InvalidInputError) as caught:
        parameters(one, skip=1).decode_input(raw)
    assert [error["type"] for error in caught.value.errors] == ["payload_too_large"]
    half = "a" * (MAX_ENCODED_BYTES // 2)
    with pytest.raises(PayloadTooLargeError):
        parameters(unannotated, skip=1).encode_call((half, half), {})


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("a", "b"), {}), (("a",), {"applicant_id": "b"}), (("a",), {"other": 1})]
)
def test_a_wrong_call_is_a_type_error(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    codec = parameters(one, skip=1)
    for call in (codec.encode_input, codec.encode_call, codec.check_call):
        with pytest.raises(TypeError, match="workflow 'one'"):
            call(args, kwargs)


# -- calls of activities ---------------------------------------------------------------------------------------
LINE = Line("s", Decimal("1.5"))
LINE_JSON = b'{"sku":"s","price":"1.5"}'


@pytest.mark.parametrize(
    ("args", "kwargs", "raw"),
    [
        (("a", LINE), {}, b'{"args":["a",%s],"kwargs":{}}' % LINE_JSON),
        (("a",), {"line": LINE}, b'{"args":["a",%s],"kwargs":{}}' % LINE_JSON),
        ((), {"line": LINE, "name": "a"}, b'{"args":["a",%s],"kwargs":{}}' % LINE_JSON),
        (("a", LINE, "n"), {"urgent": True}, b'{"args":["a",%s,"n"],"kwargs":{"urgent":true}}' % LINE_JSON),
    ],
)
def test_one_call_has_one_text_however_it_is_written(args: Any, kwargs: Any, raw: bytes) -> None:
    codec = parameters(many, skip=1)
    assert codec.encode_call(args, kwargs) == raw
    decoded = codec.decode_call(raw)
    assert decoded.args[:2] == ("a", LINE)
    assert codec.encode_call(decoded.args, decoded.kwargs) == raw


def test_calls_of_others_may_use_names() -> None:
    codec = parameters(many, skip=1)
    decoded = codec.decode_call(b'{"args": [], "kwargs": {"line": %s, "name": "a"}}' % LINE_JSON)
    assert decoded.kwargs == {"name": "a", "line": LINE}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"args": ["a"], "kwargs": {}}',
        b'{"args": ["a", 5], "kwargs": {}}',
        b'{"args": [], "kwargs": {"name": "a", "nmae": "b"}}',
        b'{"args": [1, 2, 3, 4, 5], "kwargs": {}}',
        b'{"args": {}, "kwargs": {}}',
        b'["a"]',
        b"null",
        b"{",
    ],
)
def test_arguments_that_do_not_fit_are_invalid_input(raw: bytes) -> None:
    with pytest.raises(InvalidInputError, match="workflow 'many'"):
        parameters(many, skip=1).decode_call(raw)


def test_no_parameters() -> None:
    codec = parameters(none, skip=1)
    assert codec.encode_call((), {}) == b'{"args":[],"kwargs":{}}'
    assert codec.decode_call(b'{"args":[],"kwargs":{}}') == ((), {})


def test_an_argument_that_cannot_come_back_is_named() -> None:
    with pytest.raises(PayloadError, match="workflow 'one', parameter 'applicant_id'"):
        parameters(one, skip=1).encode_call((5,), {})


# -- hints -----------------------------------------------------------------------------------------------------
def test_variadic_parameters_are_refused_at_definition() -> None:
    def star(ctx: Any, *args: int) -> None: ...
    def stars(ctx: Any, **kwargs: int) -> None: ...

    for function in (star, stars):
        with pytest.raises(TypeError, match="args"):
            parameters(function, skip=1)


def test_a_hint_that_cannot_be_resolved_names_function_and_parameter() -> None:
    def broken(ctx: Any, order: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def checked(ctx: Any) -> OnlyForCheckers: ...

    codec = parameters(broken, skip=1)
    with pytest.raises(ConfigurationError, match=r"workflow 'broken', parameter 'order'.*Missing"):
        codec.resolve()
    with pytest.raises(ConfigurationError, match=r"workflow 'checked', return type.*OnlyForCheckers"):
        parameters(checked, skip=1).resolve()


def test_a_type_without_json_form_names_function_and_parameter() -> None:
    class Opaque: ...

    def broken(ctx: Any, order: Opaque) -> None: ...

    with pytest.raises(ConfigurationError, match=r"workflow 'broken', parameter 'order'.*Opaque"):
        parameters(broken, skip=1).resolve()


def test_hints_may_name_classes_of_the_enclosing_function() -> None:
    class Local(BaseModel):
        a: int

    def uses_local(ctx: Any, value: Local) -> list[Local]:
        return [value]

    codec = parameters(uses_local, skip=1)
    assert codec.decode_input(b'{"a": 1}').kwargs == {"value": Local(a=1)}
    assert codec.result.decode(b'[{"a": 1}]') == [Local(a=1)]


def test_functions_of_another_module_resolve_there(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somewhere_else")
    monkeypatch.setitem(sys.modules, "somewhere_else", module)
    source = "from decimal import Decimal as D\ndef f(ctx, price: 'D') -> 'list[D]': ..."
    exec(source, module.__dict__)
    codec = parameters(module.f, skip=1)
    assert codec.decode_input(b'"1.5"').kwargs == {"price": Decimal("1.5")}
    assert codec.result.decode(b'["1"]') == [Decimal(1)]
