"""Errors through the log: the same class, args and attributes come out, and nothing raises on the way."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.error import HTTPError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from romancy_stream import (
    ActivityError,
    ActivityTimeoutError,
    InvalidInputError,
    RetryExhaustedError,
    RetryPolicy,
    TerminalError,
)
from romancy_stream.engine import failure
from romancy_stream.engine.failure import decode_error, encode_error, exhausted, timed_out, workflow_failed


class ShopError(Exception):
    pass


class CardDeclined(ShopError):
    """Takes what it does not pass on, as users' errors do."""

    def __init__(self, order_id: str, *, code: int) -> None:
        super().__init__(f"card declined for {order_id}")
        self.order_id = order_id
        self.code = code


class FullDisk(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(28, "No space left", path)
        self.path = path


@dataclass(frozen=True)
class Frozen(Exception):
    a: int


class Slotted(Exception):
    __slots__ = ("limit", "never_set")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class NeedsItsState(Exception):
    def __init__(self, order: object) -> None:
        super().__init__()
        self.order = order

    def __str__(self) -> str:
        return f"about {self.order}"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Refuses(Exception):
    def __new__(cls, *args: Any) -> Refuses:
        if args != (1, 2):
            raise ValueError("two numbers")
        return super().__new__(cls, *args)


def through(error: BaseException) -> Exception:
    return decode_error(encode_error(error, retryable=True))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 5, None, ["a", {"b": 1.5}]),
        ShopError(),
        KeyError("k"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        FullDisk("/tmp/x"),
        FileNotFoundError(2, "No such file", "/tmp/x"),
        ModuleNotFoundError("no module", name="x", path="y"),
        CardDeclined("o-1", code=5),
        Slotted(7),
        Frozen(3),
        TerminalError("it is final"),
        InvalidInputError("bad", [{"loc": ["a"], "type": "missing", "msg": "m"}]),
        json.JSONDecodeError("Expecting value", "doc", 2),
        ZeroDivisionError("division by zero"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_class_args_and_attributes_come_back(error: Exception) -> None:
    restored = through(error)
    assert type(restored) is type(error)
    assert restored.args == error.args
    assert vars(restored) == {**vars(error), **{k: v for k, v in vars(restored).items() if getattr(error, k) == v}}
    assert str(restored) == str(error)
    for name in ("errno", "filename", "limit", "name", "path"):
        assert getattr(restored, name, None) == getattr(error, name, None)
    again = through(restored)
    assert (type(again), again.args, vars(again)) == (type(restored), restored.args, vars(restored))


def test_causes_come_back() -> None:
    error = TerminalError(CardDeclined("o-1", code=5))
    restored = through(error)
    assert str(restored) == "card declined for o-1"
    assert isinstance(restored.__cause__, CardDeclined)
    assert restored.__cause__.code == 5


def test_notes_come_back() -> None:
    error = ValueError("no")
    error.add_note("while packing")
    assert through(error).__notes__ == ["while packing"]


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    restored: BaseException | None = through(first)
    seen = []
    while restored is not None:
        seen.append(str(restored))
        restored = restored.__cause__
    assert seen == ["first", "second", "first", "second", "first", "second"]


def test_classes_that_cannot_be_imported_become_activity_errors() -> None:
    class Local(Exception):
        pass

    error = Local("no")
    error.order_id = "o-1"  # type: ignore[attr-defined]
    error.handle = object()  # type: ignore[attr-defined]
    restored = through(error)
    assert type(restored) is ActivityError
    assert restored.error_type.endswith("<locals>.Local")
    assert str(restored) == "no"
    assert restored.details["order_id"] == "o-1"
    assert restored.details["handle"].startswith("<object object")


@pytest.mark.parametrize(
    "type_",
    [
        "nowhere.at.all:Error",
        "tests.api.test_failure:Gone",
        "builtins:KeyboardInterrupt",
        "builtins:SystemExit",
        "builtins:StopIteration",
        "asyncio.exceptions:CancelledError",
        "builtins:print",
        "builtins:int",
        "os:system",
        "json:decoder.JSONDecodeError.nothing",
        "../etc/passwd",
        "no colon",
        "",
    ],
)
def test_only_exceptions_are_made(type_: str) -> None:
    restored = decode_error(json.dumps({"type": type_, "message": "m"}).encode())
    assert type(restored) is ActivityError
    assert (restored.error_type, str(restored)) == (type_, "m")


def test_classes_of_the_main_script(monkeypatch: pytest.MonkeyPatch) -> None:
    FromScript = type("FromScript", (Exception,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "FromScript", FromScript, raising=False)
    assert type(through(FromScript("no"))) is FromScript
    assert RetryPolicy.from_json(RetryPolicy(retry_on=FromScript).to_json()).is_retryable(FromScript())


def test_state_that_json_cannot_keep_is_told_and_not_guessed() -> None:
    class Model(BaseModel):
        a: int

    error = CardDeclined("o-1", code=5)
    error.raw = b"x"  # type: ignore[attr-defined]
    error.pair = (1, 2)  # type: ignore[attr-defined]
    error.model = Model(a=1)  # type: ignore[attr-defined]
    error.text = "\x00"  # type: ignore[attr-defined]
    described = json.loads(encode_error(error, retryable=True))
    assert described["details"] == {"raw": "b'x'", "pair": "(1, 2)", "model": "Model(a=1)", "text": "'\\x00'"}
    restored = through(error)
    assert isinstance(restored, CardDeclined)
    assert vars(restored) == {"order_id": "o-1", "code": 5}
    with_pair = through(ValueError((1, 2)))
    assert with_pair.args == ("(1, 2)",)


@pytest.mark.parametrize(
    "error", [NeedsItsState(object()), Refuses(1, 2), Unprintable(), UnicodeDecodeError("utf-8", b"x", 0, 1, "r")]
)
def test_classes_that_do_not_come_to_life_become_activity_errors(error: Exception) -> None:
    if isinstance(error, Refuses):
        error.args = ("something else",)
    restored = through(error)
    assert type(restored) is ActivityError
    assert restored.error_type.endswith(type(error).__name__)


def test_errors_of_pydantic_and_groups_become_activity_errors() -> None:
    class Model(BaseModel):
        a: int

    with pytest.raises(ValidationError) as caught:
        Model.model_validate({})
    assert type(through(caught.value)) is ActivityError
    group = through(ExceptionGroup("several", [ValueError("a")]))
    assert type(group) is ActivityError
    assert "several" in str(group)


def test_weird_exceptions_never_raise() -> None:
    class Meta(type):
        @property
        def __module__(cls) -> str:  # type: ignore[override]
            return "\ud800"

    class Odd(Exception, metaclass=Meta):
        def __getattribute__(self, name: str) -> Any:
            if name in ("__dict__", "args"):
                raise RuntimeError(name)
            return super().__getattribute__(name)

    for error in (Odd(), Unprintable(), ValueError("\x00\ud800"), ValueError("a" * 10_000_000), RecursionError()):
        raw = encode_error(error, retryable=False)
        assert len(raw) < 100_000
        assert b"\\u0000" not in raw
        assert isinstance(decode_error(raw), Exception)


def test_everything_is_bounded() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise ValueError("x" * 1_000_000)

    with pytest.raises(ValueError, match="xxx") as caught:
        deep(500)
    error = caught.value
    for n in range(200):
        setattr(error, f"attribute_{n}", "y" * 1_000)
    described = json.loads(encode_error(error, retryable=True))
    assert len(described["message"]) == failure.MAX_MESSAGE_CHARS
    assert len(described["stack"]) < failure.MAX_STACK_CHARS + failure.MAX_REPR_CHARS + 100
    assert len(json.dumps(described["attributes"])) < failure.MAX_VALUES_BYTES * 2
    assert len(described["attributes"]) + len(described["details"]) <= failure.MAX_ATTRIBUTES + 1


def test_stack_names_the_place() -> None:
    try:
        raise ShopError("no")
    except ShopError as error:
        stack = json.loads(encode_error(error, retryable=True))["stack"]
    assert stack.startswith("Traceback (most recent call last):\n")
    assert "test_stack_names_the_place" in stack
    assert stack.endswith("tests.api.test_failure:ShopError: no")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("type", "message", "args", "attributes", "details", "cause", "retryable", "bases", "stack")
TYPES = st.sampled_from(["builtins:ValueError", "builtins:ExceptionGroup", "builtins:OSError", "x", ":"])


@given(JSON | st.dictionaries(st.sampled_from(FIELDS), JSON | TYPES))
def test_whatever_is_read_becomes_an_error(data: Any) -> None:
    try:
        raw = json.dumps(data).encode()
    except ValueError:
        return
    assert isinstance(decode_error(raw), Exception)
    assert isinstance(decode_error(exhausted(raw, 3)).__cause__, Exception)
    assert isinstance(failure.is_retryable(raw), bool)
    assert all(isinstance(name, str) for name in failure.error_classes(raw))
    assert str(workflow_failed("i", raw))


@given(st.binary() | st.none())
def test_bytes_that_are_no_json_become_an_error(raw: bytes | None) -> None:
    assert isinstance(decode_error(raw), Exception)


def test_what_a_foreign_worker_sends_is_kept() -> None:
    raw = b'{"type": "com.shop.CardDeclined", "message": "no", "details": {"code": 5}, "retryable": false}'
    restored = decode_error(raw)
    assert isinstance(restored, ActivityError)
    assert (restored.error_type, str(restored), restored.details) == ("com.shop.CardDeclined", "no", {"code": 5})
    assert not failure.is_retryable(raw)
    assert failure.is_retryable(b'{"type": "x", "message": "m"}')


def test_exhausted_carries_the_last_error() -> None:
    restored = decode_error(exhausted(encode_error(CardDeclined("o-1", code=5), retryable=True), 5))
    assert type(restored) is RetryExhaustedError
    assert restored.attempts == 5
    assert str(restored) == "5 attempts failed; the last with CardDeclined: card declined for o-1"
    assert isinstance(restored.__cause__, CardDeclined)
    assert restored.__cause__.code == 5


@pytest.mark.parametrize("details", ["[" * 500 + "]" * 500, '"' + "a" * 900_000 + '"'])
def test_exhausted_cuts_what_is_too_much(details: str) -> None:
    raw = exhausted(b'{"type": "x", "message": "m", "details": %s}' % details.encode(), 2)
    assert len(raw) < failure.MAX_CAUSE_BYTES
    cause = decode_error(raw).__cause__
    assert isinstance(cause, ActivityError)
    assert (cause.error_type, str(cause), cause.details) == ("x", "m", None)


def test_timed_out() -> None:
    raw = timed_out("charge:1", 2.5)
    restored = decode_error(raw)
    assert type(restored) is ActivityTimeoutError
    assert str(restored) == "activity charge:1 did not finish within its timeout of 2.5 s"
    assert failure.is_retryable(raw)
    assert not failure.is_retryable(timed_out("charge:1", 60, total=True))


def test_the_policy_can_judge_from_the_log() -> None:
    raw = encode_error(CardDeclined("o-1", code=5), retryable=True)
    assert not RetryPolicy(do_not_retry_on=ShopError).allows(failure.error_classes(raw))
    assert RetryPolicy().allows(failure.error_classes(raw))
    assert not RetryPolicy().allows(failure.error_classes(encode_error(TerminalError("x"), retryable=False)))
    assert RetryPolicy().allows(failure.error_classes(b'{"type": "com.shop.X", "message": ""}'))


def test_workflow_failed_tells_what_it_was() -> None:
    failed = workflow_failed("i-1", encode_error(CardDeclined("o-1", code=5), retryable=False))
    assert failed.error_type == "tests.api.test_failure:CardDeclined"
    assert failed.message == "card declined for o-1"
    assert failed.stack is not None
    assert isinstance(failed.__cause__, CardDeclined)


def test_an_error_with_a_wrapped_file_can_be_printed() -> None:
    error = HTTPError("http://example.org", 404, "nothing here", Message(), None)
    restored = decode_error(encode_error(error, retryable=True))
    assert isinstance(restored, HTTPError)
    assert (restored.code, restored.msg) == (404, "nothing here")
    assert "nothing here" in "".join(traceback.format_exception(restored))
