"""How the workflow in `orders.py` is tested, with pytest and pytest-asyncio. Nothing runs beside the test.

python -m pytest examples/test_orders.py
"""

from decimal import Decimal

import pytest

from examples.orders import Order, app, order_workflow, process_payment, reserve_inventory, ship_order
from romancy_stream import InvalidInputError, TerminalError, WorkflowFailedError
from romancy_stream.testing import WorkflowEnvironment

ORDER = Order(order_id="o-1", customer_id="cust_123", amount=Decimal("99.90"))


@pytest.mark.asyncio
async def test_an_order_is_shipped() -> None:
    async with WorkflowEnvironment(app) as env:
        result = await env.execute(order_workflow, ORDER)
        assert (result.status, result.tracking) == ("shipped", "TRACK-o-1")
        assert [call.activity for call in env.calls()] == ["reserve_inventory", "process_payment", "ship_order"]


@pytest.mark.asyncio
async def test_the_bank_is_asked_again_while_it_is_down() -> None:
    async with WorkflowEnvironment(app, crashes="every-step") as env:
        bank = env.mock(process_payment, outcomes=[ConnectionError("down")] * 9 + ["TX-1"])
        began = env.now()
        await env.execute(order_workflow, ORDER)
        assert [call["total"] for call in bank.calls] == [Decimal("99.90")] * 10
        assert (env.now() - began).total_seconds() > 30  # in a few milliseconds


@pytest.mark.asyncio
async def test_nothing_is_shipped_that_was_not_paid() -> None:
    async with WorkflowEnvironment(app, mocks_only=True) as env:
        env.mock(reserve_inventory, side_effect=reserve_inventory.function)
        env.mock(process_payment, raises=TerminalError("card refused"))
        shipping = env.mock(ship_order)
        with pytest.raises(WorkflowFailedError, match="card refused"):
            await env.execute(order_workflow, ORDER)
        assert not shipping.calls


@pytest.mark.asyncio
async def test_an_event_of_any_producer_starts_an_order_once() -> None:
    async with WorkflowEnvironment(app, disorder=True) as env:
        for _ in range(2):
            data = {"order_id": "o-2", "customer_id": "cust_7", "amount": "5.00"}
            await env.send_event(type="order_workflow", data=data, source="/shop", id="event-1")
        [instance] = (await env.find_instances({"customer_id": "cust_7"})).instances
        assert instance.output == {"order_id": "o-2", "status": "shipped", "tracking": "TRACK-o-2"}


def test_an_order_without_an_amount_is_refused() -> None:
    with WorkflowEnvironment(app) as env:
        handle = env.run(env.start_by_name("order_workflow", {"order_id": "o-3", "customer_id": "cust_123"}))
        with pytest.raises(InvalidInputError, match="amount"):
            env.run(handle.result())
