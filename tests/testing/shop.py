"""The app that the tests of the kit test, as a user's project would have it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

from pydantic import BaseModel
from sqlalchemy import Integer, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from romancy_stream import ActivityContext, App, RetryPolicy, WorkflowContext

app = App("kit-shop")


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "stock"

    sku: Mapped[str] = mapped_column(String(40), primary_key=True)
    left: Mapped[int] = mapped_column(Integer)


class Order(BaseModel):
    id: str
    total: Decimal


class Receipt(BaseModel):
    number: str
    amount: Decimal


@app.activity(retry=RetryPolicy(max_attempts=4, initial_interval=60.0))
async def charge(order_id: str, amount: Decimal = Decimal(1)) -> Receipt:
    return Receipt(number=f"R-{order_id}", amount=amount)


@app.activity
def label(ctx: ActivityContext, order_id: str) -> str:
    ctx.publish_event(type="label.made", data={"id": order_id})
    return f"label {order_id} #{ctx.attempt}"


@app.activity(retry=RetryPolicy.none())
async def reserve(ctx: ActivityContext, sku: str, count: int) -> int:
    stock = await ctx.session.get_one(Stock, sku)
    stock.left -= count
    await ctx.session.flush()
    if stock.left < 0:
        raise ValueError(f"{sku} is sold out")
    return stock.left


@app.activity
def left(ctx: ActivityContext) -> dict[str, int]:
    return {stock.sku: stock.left for stock in ctx.sync_session.scalars(select(Stock))}


@app.activity(timeout=5.0, retry=RetryPolicy.none())
async def slow() -> str:
    return "at once"


@app.workflow
async def order(ctx: WorkflowContext, order: Order) -> Receipt:
    receipt = await charge(order.id, order.total)
    await ctx.sleep(timedelta(days=30))
    ctx.publish_event(type="order.done", data={"id": order.id}, subject=order.id)
    return receipt


@app.workflow
async def labels(ctx: WorkflowContext, names: list[str]) -> list[str]:
    return list(await asyncio.gather(*(label(name) for name in names)))


@app.workflow
async def reserving(ctx: WorkflowContext, sku: str, counts: list[int]) -> list[str]:
    told = []
    for count in counts:
        try:
            told.append(str(await reserve(sku, count)))
        except Exception as error:
            told.append(f"{type(error).__name__}: {error.__cause__ or error}")
    return [*told, str(await left())]


@app.workflow
async def patient(ctx: WorkflowContext) -> str:
    try:
        return await slow()
    except Exception as error:
        return f"{type(error).__name__}: {error.__cause__}"


@app.workflow
async def elapsed(ctx: WorkflowContext) -> float:
    began = ctx.now()
    async with asyncio.timeout(3600):
        await ctx.sleep(1800)
    return (ctx.now() - began).total_seconds()


@app.workflow
async def approval(ctx: WorkflowContext, order_id: str) -> str:
    event = await ctx.wait_event("order.approved", match={"order_id": order_id}, timeout=7 * 86_400)
    return str(event.data["by"])
