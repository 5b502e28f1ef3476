"""An order as a saga: each step says how it is undone. When a step fails, or the customer cancels, what was done before
is undone, the last step first.

    python -m examples.order_saga
"""

import asyncio
from decimal import Decimal

from romancy_stream import (
    App,
    InstanceNotCancellableError,
    TerminalError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
)

app = App("shop")


@app.activity
async def release_items(sku: str, count: int) -> None:
    print(f"  released {count} x {sku}")


@app.activity(compensate=release_items)  # gets the arguments of the same names: sku, count
async def reserve_items(order_id: str, sku: str, count: int) -> None:
    print(f"  reserved {count} x {sku}")


@app.activity
async def refund(order_id: str, result: str) -> None:
    print(f"  refunded {result}")


@app.activity(compensate=refund)  # `result` is what the activity has returned
async def charge(order_id: str, amount: Decimal) -> str:
    print(f"  charged {amount}")
    return f"payment-of-{order_id}"


@app.activity
async def notify(message: str) -> None:
    print(f"  told the customer: {message}")


@app.activity
async def ship(order_id: str) -> str:
    if order_id == "o-2":
        raise TerminalError("the truck broke down")
    return f"TRACK-{order_id}"


@app.workflow
async def order_saga(ctx: WorkflowContext, order_id: str, patience_s: float = 0.0) -> str:
    ctx.on_rollback(notify, f"{order_id} is off")
    await reserve_items(order_id, "book", 2)
    await charge(order_id, Decimal("19.80"))
    await ctx.sleep(patience_s)
    return await ship(order_id)


async def until_it_waits(instance_id: str) -> None:
    status = None
    while status != "waiting_for_timer":
        await asyncio.sleep(0.05)
        instance = await app.get_instance(instance_id)
        status = instance.status if instance is not None else None


async def main() -> None:
    async with app:
        print("o-1, all goes well")
        first = await app.start(order_saga.with_options(instance_id="o-1"), "o-1")
        print("  shipped as", await first.result(timeout=30))
        try:
            await first.cancel(reason="too late")
        except InstanceNotCancellableError as error:
            print(" ", error)

        print("o-2, a step fails")
        second = await app.start(order_saga.with_options(instance_id="o-2"), "o-2")
        try:
            await second.result(timeout=30)
        except WorkflowFailedError as error:
            print("  failed:", error.message)

        print("o-3, the customer cancels")
        third = await app.start(order_saga.with_options(instance_id="o-3"), "o-3", patience_s=3_600)
        await until_it_waits("o-3")
        await third.cancel(reason="changed my mind")
        try:
            await third.result(timeout=30)
        except WorkflowCancelledError as cancelled:
            print("  cancelled:", cancelled.reason)


if __name__ == "__main__":
    asyncio.run(main())
