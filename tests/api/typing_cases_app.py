"""As `typing_cases`, through an app."""

from __future__ import annotations

from typing import assert_type

from pydantic import BaseModel

from romancy_stream import ActivityContext, App, Handle, RetryPolicy, WorkflowContext


class Order(BaseModel):
    id: str


class Summary(BaseModel):
    total: int


app = App("shop")


@app.activity(retry=RetryPolicy(max_attempts=10))
async def refund(ctx: ActivityContext, order: Order) -> Order:
    return order


@app.activity
def weigh(order: Order) -> int:
    return 1


@app.workflow
async def give_back(ctx: WorkflowContext, order: Order) -> Summary:
    assert_type(await refund(order), Order)
    assert_type(await weigh(order), int)
    await refund("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return Summary(total=1)


@app.workflow(event_handler=True)
async def given_back(ctx: WorkflowContext, order_id: str, total: int = 1) -> None: ...


async def starts_of_an_app() -> None:
    assert_type(await app.start(give_back, Order(id="a"), instance_id="g-1"), Handle[Summary])
    assert_type(await (await app.start(give_back, Order(id="a"))).result(timeout=30), Summary)
    assert_type(await app.start(given_back.with_options(instance_id="g-2"), "a", total=2), Handle[None])
    await app.start(give_back, "a")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await app.start(give_back)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue]
    await app.start(given_back, 5)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
