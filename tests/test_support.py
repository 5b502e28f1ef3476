"""The waiting helper itself: a helper that never fails would let every test pass."""

from __future__ import annotations

import asyncio

import pytest

from tests.support import eventually


async def test_returns_the_first_true_value() -> None:
    values = iter([0, None, "third", "fourth"])
    assert await eventually(lambda: next(values), every_s=0) == "third"


async def test_accepts_an_async_predicate() -> None:
    values = iter([False, True])

    async def ready() -> bool:
        await asyncio.sleep(0)
        return next(values)

    assert await eventually(ready, every_s=0) is True


async def test_fails_with_the_message_and_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"three rows .*last value: \[\]"):
        await eventually(list, deadline_s=0.01, every_s=0, message="three rows")


async def test_an_assertion_inside_means_not_yet() -> None:
    counts = iter([1, 2, 3])

    def three() -> bool:
        count = next(counts)
        assert count == 3, f"only {count}"
        return True

    assert await eventually(three, every_s=0)


async def test_the_last_assertion_is_quoted() -> None:
    def never() -> bool:
        raise AssertionError("still nothing")

    with pytest.raises(AssertionError, match="still nothing"):
        await eventually(never, deadline_s=0.01, every_s=0)


async def test_a_predicate_that_hangs_is_cut_off_at_the_deadline() -> None:
    with pytest.raises(AssertionError, match="never answered"):
        await eventually(asyncio.Event().wait, deadline_s=0.01)


async def test_other_exceptions_pass_through() -> None:
    def broken() -> bool:
        raise TimeoutError("from inside")

    with pytest.raises(TimeoutError, match="from inside"):
        await eventually(broken)
