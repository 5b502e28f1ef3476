"""A workflow that waits for events: a payment that is found by the order's number, a signature that names the instance,
and a reminder when neither comes in time.

    python -m examples.wait_for_payment
"""

import asyncio
from decimal import Decimal

from pydantic import BaseModel

from romancy_stream import App, EventTimeoutError, WorkflowContext


class Payment(BaseModel):
    order_id: str
    amount: Decimal


app = App("payment_events")
paid = app.event("payment.completed", key="order_id", model=Payment)


@app.workflow
async def order(ctx: WorkflowContext, order_id: str, total: Decimal) -> str:
    received = Decimal(0)
    while received < total:  # in parts, perhaps
        event = await ctx.wait_event(paid, match={"order_id": order_id}, timeout=60)
        received += event.data.amount
    try:
        signed = await ctx.wait_event("order.signed", timeout=0.5)
    except EventTimeoutError:
        return f"{order_id}: {received} paid, nobody has signed"
    return f"{order_id}: {received} paid, signed by {signed.data['by']}"


async def main() -> None:
    async with app:
        first = await app.start(order.with_options(instance_id="order-1"), "o-1", Decimal("20.00"))
        second = await app.start(order.with_options(instance_id="order-2"), "o-2", Decimal("5.00"))
        # Any producer can send these, in any language: they are CloudEvents on a topic.
        await app.send_event(type="order.signed", data={"by": "Ada"}, subject="order-1")  # before anybody waits for it
        for number, (order_id, amount) in enumerate([("o-1", "12.50"), ("o-2", "5.00"), ("o-1", "7.50")]):
            payment = Payment(order_id=order_id, amount=Decimal(amount))
            for _ in range(2):  # sent twice by accident: one id, one event
                await app.send_event(type="payment.completed", data=payment, source="/bank", id=f"payment-{number}")
        print(await first.result(timeout=30))
        print(await second.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
