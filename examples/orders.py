"""Orders: reserve, pay, ship. `order_workflow` also answers to plain CloudEvents of type "order_workflow", because it
says so with `event_handler=True`.

    python -m examples.orders
    romancy worker examples.orders:app
"""

import asyncio
from decimal import Decimal

from pydantic import BaseModel, Field

from romancy_stream import App, RetryPolicy, WorkflowContext

app = App("orders")


class Order(BaseModel):
    order_id: str
    customer_id: str
    amount: Decimal = Field(gt=0)


class Reservation(BaseModel):
    reservation_id: str
    total: Decimal


class OrderResult(BaseModel):
    order_id: str
    status: str
    tracking: str


@app.activity
async def reserve_inventory(order_id: str, amount: Decimal) -> Reservation:
    return Reservation(reservation_id=f"RES-{order_id}", total=amount)


@app.activity(retry=RetryPolicy(max_attempts=10, initial_interval=0.5, multiplier=1.5, max_interval=30.0))
async def process_payment(order_id: str, total: Decimal) -> str:
    return f"TX-{order_id}-{total}"


@app.activity
async def ship_order(order_id: str) -> str:
    return f"TRACK-{order_id}"


@app.workflow(event_handler=True)
async def order_workflow(ctx: WorkflowContext, order: Order) -> OrderResult:
    reservation = await reserve_inventory(order.order_id, order.amount)
    await process_payment(order.order_id, reservation.total)
    tracking = await ship_order(order.order_id)
    return OrderResult(order_id=order.order_id, status="shipped", tracking=tracking)


async def main() -> None:
    async with app:
        handle = await app.start(order_workflow, Order(order_id="o-1", customer_id="cust_123", amount=Decimal("99.90")))
        print(await handle.result(timeout=30))
        page = await app.find_instances({"customer_id": "cust_123"})
        print([instance.instance_id for instance in page.instances])


if __name__ == "__main__":
    asyncio.run(main())
