"""As `typing_cases`: children, recurring, options of starts, schedules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import assert_type

from pydantic import BaseModel

from romancy_stream import App, ChildHandle, Handle, WorkflowContext


class Order(BaseModel):
    id: str


class Summary(BaseModel):
    total: int


app = App("shop")


@app.workflow
async def one(ctx: WorkflowContext, order: Order) -> Summary:
    return Summary(total=1)


@app.workflow
async def two(ctx: WorkflowContext, left: int, right: int = 1) -> int:
    return left + right


@app.workflow
async def none(ctx: WorkflowContext) -> str:
    return ""


@app.workflow
class Counting:
    async def run(self, ctx: WorkflowContext, order: Order) -> bool:
        return True


@app.workflow
async def parent(ctx: WorkflowContext, order: Order) -> None:
    assert_type(await ctx.child(one, order), Summary)
    assert_type(await ctx.child(one, order, instance_id="a", parent_close="abandon", start_delay=5), Summary)
    assert_type(await ctx.child(two, 1, right=2), int)
    assert_type(await ctx.child(two.with_options(instance_id="b", parent_close="cancel"), 1), int)
    assert_type(await ctx.child(none), str)
    assert_type(await ctx.child(Counting, order), bool)
    child = await ctx.start_child(one, order, start_delay=timedelta(hours=1))
    assert_type(child, ChildHandle[Summary])
    assert_type(await child.result(), Summary)
    child.cancel("enough")
    await ctx.child(one, "a")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.child(two, "a")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.child(two)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue]
    await ctx.recur(order)


async def starts() -> None:
    assert_type(await app.start(one, Order(id="a"), reuse="allow_failed"), Handle[Summary])
    assert_type(await app.start(one, Order(id="a"), start_at=datetime.now(UTC)), Handle[Summary])
    assert_type(await app.start(none, start_delay=5), Handle[str])
    assert_type(
        await app.start(two.with_options(start_delay=timedelta(days=1), reuse="allow_finished"), 1), Handle[int]
    )
    assert_type(await app.start_many(one, [Order(id="a")], instance_ids=["a"]), list[Handle[Summary]])
    assert_type(await app.start_many(two, [{"left": 1}, {"left": 2, "right": 3}]), list[Handle[int]])


app.schedule("nightly", one, Order(id="a"), cron="0 3 * * *", timezone="Europe/Berlin", overlap="buffer")
app.schedule("often", none, every=timedelta(minutes=5), catch_up=3_600)
app.schedule("both", two, {"left": 1}, every=60, start_paused=True)
app.schedule("never", one, 7, every=1)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
