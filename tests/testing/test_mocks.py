"""Mocks of activities: what they answer, when, and what is known of the calls."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from romancy_stream import ConfigurationError, TerminalError, WorkflowFailedError
from romancy_stream.testing import NEVER, StuckError, UnmockedActivityError, WorkflowEnvironment
from tests.testing import shop
from tests.testing.shop import Order, Receipt, app

ORDER = Order(id="o1", total=Decimal(3))
RECEIPT = Receipt(number="R-mock", amount=Decimal(3))


async def test_a_mock_returns_what_the_activity_would() -> None:
    async with WorkflowEnvironment(app) as env:
        mock = env.mock(shop.charge, returns=RECEIPT)
        assert await env.execute(shop.order, ORDER) == RECEIPT
        [call] = mock.calls
        assert call.arguments == {"order_id": "o1", "amount": Decimal(3)}
        assert (call.activity, call.attempt, call.activity_id) == ("charge", 1, "charge:1")
        assert (call.instance_id, call.at) == ("order-1", datetime(2026, 1, 1, tzinfo=UTC))
        mock.remove()
        mock.remove()
        assert (await env.execute(shop.order, ORDER)).number == "R-o1"
        assert len(env.calls(shop.charge)) == 2
        assert len(mock.calls) == 1


async def test_outcomes_are_one_an_attempt_and_retries_wait_by_the_clock() -> None:
    async with WorkflowEnvironment(app) as env:
        mock = env.mock("charge", outcomes=[ConnectionError("down"), TimeoutError, RECEIPT])
        assert await env.execute(shop.order, ORDER) == RECEIPT
        assert [call.attempt for call in mock.calls] == [1, 2, 3]
        assert [call.at - mock.calls[0].at for call in mock.calls] == [
            timedelta(0),
            timedelta(minutes=1),
            timedelta(minutes=2),
        ]


async def test_outcomes_that_run_out_are_a_mistake_of_the_test() -> None:
    async with WorkflowEnvironment(app) as env:
        env.mock(shop.charge, outcomes=[RECEIPT])
        await env.execute(shop.order, ORDER)
        with pytest.raises(ConfigurationError, match="call 2, and there are 1 outcomes"):
            await env.execute(shop.order, ORDER)
        with pytest.raises(ConfigurationError, match="call 2"):  # nothing goes on after that
            await env.start(shop.order, ORDER)


async def test_an_error_is_tried_again_and_a_terminal_one_is_not() -> None:
    async with WorkflowEnvironment(app) as env:
        env.mock(shop.charge, raises=ConnectionError("down"))
        with pytest.raises(WorkflowFailedError, match="RetryExhaustedError"):
            await env.execute(shop.order, ORDER)
        assert len(env.calls(shop.charge)) == 4
        env.mock(shop.charge, raises=TerminalError("card refused"))
        with pytest.raises(WorkflowFailedError, match="card refused"):
            await env.execute(shop.order, ORDER)
        assert len(env.calls(shop.charge)) == 5


async def test_a_side_effect_sees_the_arguments_in_their_types() -> None:
    seen: list[object] = []

    async def bank(order_id: str, amount: Decimal) -> Receipt:
        await asyncio.sleep(0)
        seen.append(amount)
        return Receipt(number=f"bank-{order_id}", amount=amount)

    async with WorkflowEnvironment(app) as env:
        env.mock(shop.charge, side_effect=bank)
        assert (await env.execute(shop.order, ORDER)).number == "bank-o1"
        env.mock(shop.charge, side_effect=lambda order_id, amount: RECEIPT)
        assert await env.execute(shop.order, ORDER) == RECEIPT
    assert seen == [Decimal(3)]


async def test_a_result_of_the_wrong_type_is_refused_as_the_activitys_own_would_be() -> None:
    async with WorkflowEnvironment(app) as env:
        env.mock(shop.charge, returns="no receipt")
        with pytest.raises(WorkflowFailedError, match="Receipt"):
            await env.execute(shop.order, ORDER)


async def test_a_mock_takes_its_time_and_a_timeout_ends_it() -> None:
    async with WorkflowEnvironment(app) as env:
        env.mock(shop.slow, returns="done", takes=timedelta(seconds=4))
        assert await env.execute(shop.patient) == "done"
        assert env.now() == datetime(2026, 1, 1, 0, 0, 4, tzinfo=UTC)
        env.mock(shop.slow, returns="done", takes=3600)
        assert "did not finish within its timeout of 5 s" in await env.execute(shop.patient)
        env.mock(shop.slow, takes=NEVER)
        assert "did not finish within its timeout" in await env.execute(shop.patient)
        assert env.now() == datetime(2026, 1, 1, 0, 0, 14, tzinfo=UTC)


async def test_what_is_never_heard_of_again_is_told() -> None:
    async with WorkflowEnvironment(app) as env:
        env.mock(shop.charge, takes=NEVER)
        with pytest.raises(StuckError, match=r"activity charge:1 \(charge, attempt 1\)"):
            await env.execute(shop.order, ORDER)


async def test_an_activity_without_a_mock_can_be_forbidden() -> None:
    async with WorkflowEnvironment(app, mocks_only=True) as env:
        env.mock(shop.charge)
        with pytest.raises(UnmockedActivityError, match="'label' was called"):
            await env.execute(shop.labels, ["a"])


async def test_mocks_that_make_no_sense() -> None:
    async with WorkflowEnvironment(app) as env:
        with pytest.raises(TypeError, match="no activity"):
            env.mock("nothing")
        with pytest.raises(TypeError, match="one of returns, raises"):
            env.mock(shop.charge, returns=1, raises=ValueError)
        with pytest.raises(ValueError, match="takes is a timedelta"):
            env.mock(shop.charge, takes=-1)
        with pytest.raises(TypeError, match="an activity or its name"):
            env.calls(shop.order)  # type: ignore[arg-type]
