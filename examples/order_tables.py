"""An order written to tables of your own, in the same transaction as the engine's record of the activity and as the
event that announces it: all of it happens, or nothing does.

    python -m examples.order_tables
"""

import asyncio
from decimal import Decimal

from pydantic import BaseModel
from sqlalchemy import Numeric, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from romancy_stream import ActivityContext, App, WorkflowContext

app = App("shop")


class Base(DeclarativeBase):
    pass


class OrderRow(Base):
    __tablename__ = "shop_orders"

    order_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))


class Order(BaseModel):
    order_id: str
    amount: Decimal


@app.activity
async def create_tables(ctx: ActivityContext) -> None:
    connection = await ctx.session.connection()
    await connection.run_sync(Base.metadata.create_all)


@app.activity
async def create_order(ctx: ActivityContext, order: Order) -> str:
    ctx.session.add(OrderRow(order_id=order.order_id, amount=order.amount))
    ctx.publish_event(type="order.created", data=order)
    return order.order_id


@app.activity
def total_of_orders(ctx: ActivityContext) -> Decimal:
    """A plain function runs in a thread; its session is a synchronous one, on the same transaction."""
    rows = ctx.sync_session.scalars(select(OrderRow)).all()
    return sum((row.amount for row in rows), Decimal(0))


@app.workflow
async def order_with_tables(ctx: WorkflowContext, order: Order) -> Decimal:
    await create_tables()
    await create_order(order)
    return await total_of_orders()


async def main() -> None:
    async with app:
        handle = await app.start(order_with_tables, Order(order_id="o-7", amount=Decimal("12.50")), instance_id="o-7")
        print("all orders together:", await handle.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
