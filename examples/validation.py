"""Errors that no retry can mend: `TerminalError`.

python -m examples.validation
"""

import asyncio

from pydantic import BaseModel

from romancy_stream import App, TerminalError, WorkflowContext, WorkflowFailedError

app = App("validation")

ORDERS = {"o-1": "open", "o-2": "cancelled"}


class Valid(BaseModel):
    order_id: str
    valid: bool


@app.activity
async def validate_order(order_id: str) -> Valid:
    status = ORDERS.get(order_id)
    if status is None:
        raise TerminalError(f"order {order_id} not found")
    if status == "cancelled":
        raise TerminalError(f"order {order_id} is cancelled")
    return Valid(order_id=order_id, valid=True)


@app.workflow
async def validation(ctx: WorkflowContext, order_id: str) -> Valid:
    return await validate_order(order_id)


async def main() -> None:
    async with app:
        for order_id in ("o-1", "o-2", "o-3"):
            handle = await app.start(validation, order_id)
            try:
                print(await handle.result(timeout=30))
            except WorkflowFailedError as error:
                print(f"{order_id}: {error.error_type}: {error.message}")


if __name__ == "__main__":
    asyncio.run(main())
