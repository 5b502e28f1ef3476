"""RetryPolicy: the table of behaviour, and its form in the log."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from romancy_stream import PayloadError, RetryPolicy, TerminalError
from romancy_stream.retry import class_path


class CardError(Exception):
    pass


class Declined(CardError):
    pass


def test_default_waits_1_2_4_8_and_stops_after_five() -> None:
    policy = RetryPolicy.default()
    assert [policy.delay_s(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert [policy.attempts_left(n) for n in range(1, 6)] == [True, True, True, True, False]
    assert policy.delay_s(7) == 60
    assert policy == RetryPolicy() == RetryPolicy(5, 1, 2, 60, None, 0, (Exception,), ())


def test_presets() -> None:
    assert not RetryPolicy.none().attempts_left(1)
    fixed = RetryPolicy.fixed(5, 90.0)
    assert [fixed.delay_s(n) for n in (1, 2, 50)] == [90, 90, 90]
    growing = RetryPolicy.exponential(10, 0.1, 30.0)
    assert growing.delay_s(1) == 0.1
    assert growing.delay_s(9) == pytest.approx(25.6)
    assert growing.delay_s(10) == 30
    assert growing.max_attempts == 10


@pytest.mark.parametrize("unlimited", [0, None])
def test_no_limit(unlimited: int | None) -> None:
    policy = RetryPolicy(unlimited)
    assert policy.attempts_left(10**9)
    assert policy.delay_s(10**9) == 60  # 2 ** 10**9 is no float


def test_timedeltas_are_seconds() -> None:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=500), max_interval=timedelta(minutes=2))
    assert (policy.initial_interval, policy.max_interval) == (0.5, 120.0)
    assert RetryPolicy(max_duration=timedelta(hours=1)).max_duration == 3600.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", -1),
        ("max_attempts", 1.5),
        ("max_attempts", True),
        ("initial_interval", -1),
        ("initial_interval", float("nan")),
        ("initial_interval", "1"),
        ("multiplier", 0.5),
        ("multiplier", float("inf")),
        ("max_interval", -0.1),
        ("max_duration", 0),
        ("jitter", 1.1),
        ("jitter", -0.1),
        ("retry_on", (int,)),
        ("retry_on", ("ValueError",)),
        ("do_not_retry_on", (None,)),
    ],
)
def test_bad_values_name_the_field(field: str, value: Any) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**arguments)


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_jitter_only_shortens_and_by_no_more_than_its_part(attempt: int, jitter: float, random: float) -> None:
    full = RetryPolicy().delay_s(attempt)
    delay = RetryPolicy(jitter=jitter).delay_s(attempt, random)
    assert full * (1 - jitter) <= delay <= full


def test_which_errors_are_retried() -> None:
    policy = RetryPolicy(retry_on=(CardError, OSError), do_not_retry_on=Declined)
    assert policy.is_retryable(CardError())
    assert policy.is_retryable(FileNotFoundError())
    assert not policy.is_retryable(Declined())
    assert not policy.is_retryable(ValueError())
    assert not RetryPolicy(retry_on=BaseException).is_retryable(TerminalError())
    assert not RetryPolicy().is_retryable(PayloadError("a result without JSON form"))
    assert not RetryPolicy().is_retryable(asyncio.CancelledError())
    assert RetryPolicy().is_retryable(TimeoutError())


def test_json_keeps_every_field_and_matches_by_name() -> None:
    policy = RetryPolicy(7, 0.5, 3.0, 9.0, 100.0, 0.25, (CardError,), (Declined,))
    stored = json.loads(json.dumps(policy.to_json()))
    restored = RetryPolicy.from_json(stored)
    assert restored.to_json() == policy.to_json()
    assert restored.do_not_retry_on == (class_path(Declined),) == ("tests.api.test_retry:Declined",)
    assert restored.is_retryable(CardError())
    assert not restored.is_retryable(Declined())
    assert not restored.is_retryable(ValueError())


def test_json_names_classes_that_cannot_be_imported_here() -> None:
    policy = RetryPolicy.from_json({"do_not_retry_on": ["elsewhere.shop:Gone"], "of_a_later_version": 1})
    assert policy.max_attempts == 5
    assert policy.is_retryable(ValueError())
    assert not policy.allows(["elsewhere.shop:Gone", "builtins:Exception"])


def test_a_policy_cannot_change() -> None:
    with pytest.raises(AttributeError):
        RetryPolicy().max_attempts = 3  # type: ignore[misc]


def test_no_wait_stays_no_wait_however_many_attempts() -> None:
    assert RetryPolicy(max_attempts=None, initial_interval=0).delay_s(5_000) == 0.0


def test_more_attempts_than_a_database_counts() -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=10**30)
