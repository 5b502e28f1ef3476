"""The workflows that are measured; their steps do nothing, or write one row. Where they run comes from
ROMANCY_NAMESPACE, ROMANCY_BROKER and ROMANCY_DATABASE, so that the same app is engine, worker and client, each in its
process."""

import asyncio
import os
import time
from typing import Any

from sqlalchemy import String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.settings import PARTITIONS, PARTITIONS_VARIABLE
from romancy_stream import ActivityContext, App, TerminalError, WorkflowContext

app = App(partitions=int(os.environ.get(PARTITIONS_VARIABLE, PARTITIONS)))


@app.activity
async def step(number: int) -> int:
    return number


@app.workflow
async def three_steps(ctx: WorkflowContext, number: int) -> int:
    return await step(await step(await step(number)))


@app.workflow
async def parallel_steps(ctx: WorkflowContext, count: int) -> int:
    return sum(await asyncio.gather(*(step(number) for number in range(count))))


@app.workflow
async def sequential_steps(ctx: WorkflowContext, count: int) -> int:
    number = 0
    for _ in range(count):
        number = await step(number) + 1
    return number


@app.activity
async def carry(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines


@app.workflow
async def carry_thrice(ctx: WorkflowContext, lines: list[dict[str, Any]]) -> int:
    return len(await carry(await carry(await carry(lines))))


@app.activity
def compute(seconds: float) -> int:
    """In a thread, and in Python, so that it keeps the interpreter to itself."""
    end_s = time.monotonic() + seconds
    digits = 0
    while time.monotonic() < end_s:
        digits += sum(len(str(number)) for number in range(10_000))
    return digits


@app.workflow
async def compute_beside(ctx: WorkflowContext, seconds: float) -> int:
    return await compute(seconds)


@app.workflow
async def wait_for_go(ctx: WorkflowContext) -> str:
    return (await ctx.wait_event("bench.go")).id


@app.workflow
async def sleep_until_due(ctx: WorkflowContext, due_s: float) -> float:
    await ctx.sleep(due_s - ctx.now().timestamp())
    return ctx.now().timestamp()


@app.workflow
async def order(ctx: WorkflowContext, placed: dict[str, Any]) -> int:
    """What an application's tables are full of. `fate` is "fulfilled", "refused" or "waiting"."""
    if placed["fate"] == "waiting":
        await ctx.sleep(365 * 86_400)
    number = await step(placed["number"])
    if placed["fate"] == "refused":
        raise TerminalError("out of stock")
    return number


# -- with a transaction each -----------------------------------------------------------------------------------------
class Base(DeclarativeBase):
    pass


class Booking(Base):
    __tablename__ = "bench_bookings"

    number: Mapped[str] = mapped_column(String(80), primary_key=True)
    amount: Mapped[int]


@app.activity
async def make_table(ctx: ActivityContext) -> None:
    connection = await ctx.session.connection()
    await connection.run_sync(Base.metadata.create_all)


@app.activity
async def book(ctx: ActivityContext, number: str, amount: int) -> None:
    ctx.session.add(Booking(number=number, amount=amount))
    ctx.publish_event(type="bench.booked", data={"number": number, "amount": amount})


@app.activity
async def count_bookings(ctx: ActivityContext) -> int:
    return await ctx.session.scalar(select(func.count()).select_from(Booking)) or 0


@app.workflow
async def open_books(ctx: WorkflowContext) -> None:
    await make_table()


@app.workflow
async def book_many(ctx: WorkflowContext, count: int) -> None:
    await asyncio.gather(*(book(f"{ctx.instance_id}/{number}", number) for number in range(count)))


@app.workflow
async def count_books(ctx: WorkflowContext) -> int:
    return await count_bookings()
