"""Right and wrong uses of the API, for type checkers only: `test_typing` runs mypy and pyright on this file. A right
use has its type asserted; a wrong one is marked, and a mark that silences nothing is itself an error."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from pydantic import BaseModel
from sqlalchemy.orm import Session

from romancy_stream import (
    ActivityContext,
    RetryPolicy,
    Workflow,
    WorkflowContext,
    WorkflowHandle,
    activity,
    activity_context,
    workflow,
)
from romancy_stream.engine.definitions import WorkflowDef
from romancy_stream.workflow import Starter


class Order(BaseModel):
    id: str


class Summary(BaseModel):
    total: int


# -- definitions -----------------------------------------------------------------------------------------------
@workflow
async def nothing(ctx: WorkflowContext) -> int:
    return 1


@workflow(name="one", event_handler=True)
async def checkout(ctx: WorkflowContext, order: Order) -> Summary:
    return Summary(total=1)


@workflow()
async def several(ctx: WorkflowContext, customer: str, amount: int = 3, *, note: str | None = None) -> Order:
    return Order(id=customer)


@workflow  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
def not_async(ctx: WorkflowContext) -> int:
    return 1


@workflow  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
async def without_ctx(order: Order) -> int:
    return 1


assert_type(nothing, Workflow[[], int])
definition: WorkflowDef = nothing


@activity
async def charge(order_id: str, amount: int = 1) -> Order:
    return Order(id=order_id)


@activity(retry=RetryPolicy.fixed(5, 2.0), timeout=5, transactional=False, queue="slow")
async def save(ctx: ActivityContext, order: Order) -> None:
    await ctx.session.flush()
    ctx.publish_event(type="order.saved", data=order)


@activity
def plain(order: Order) -> int:
    return 1


@activity()
def plain_with_ctx(ctx: ActivityContext, order: Order) -> list[str]:
    assert_type(ctx.sync_session, Session)
    return []


@activity
async def anything(value: Any) -> str:
    return ""


@activity
def any_object(value: object, limit: int) -> str:
    return ""


@activity
async def no_parameters() -> bool:
    return activity_context().attempt > 1


@activity(queue=5)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def bad_option() -> None: ...


# -- calls in workflow code ------------------------------------------------------------------------------------
async def calls(ctx: WorkflowContext) -> None:
    assert_type(await charge("a", 5), Order)
    assert_type(await charge("a", amount=5), Order)
    assert_type(await charge(order_id="a"), Order)
    coroutine: Coroutine[Any, Any, Order] = charge("a")
    await coroutine
    assert_type(await plain(Order(id="a")), int)
    assert_type(await plain_with_ctx(Order(id="a")), list[str])
    text: str = await anything(5)  # Any, or str: checkers differ in what an Any in a signature does to overloads
    await anything(text)
    assert_type(await any_object(None, 1), str)
    assert_type(await no_parameters(), bool)
    assert_type(await charge.with_options(activity_id="charge:1", retry=RetryPolicy.none())("a"), Order)
    await save(Order(id="a"))
    await ctx.sleep(5)

    await charge(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await charge()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await charge("a", count=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await save(ctx, Order(id="a"))  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    await save("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain_with_ctx()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await any_object(None, "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await charge.with_options(retry=5)("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    charge("a") + 1  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
    ctx.publish_event("order.saved")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# -- starts ----------------------------------------------------------------------------------------------------
async def starts(app: Starter) -> None:
    assert_type(await app.start(nothing), WorkflowHandle[int])
    assert_type(await app.start(nothing, instance_id="n-1", on_conflict="fail"), WorkflowHandle[int])
    assert_type(await app.start(checkout, Order(id="a")), WorkflowHandle[Summary])
    assert_type(await app.start(checkout, Order(id="a"), instance_id="c-1"), WorkflowHandle[Summary])
    assert_type(await app.start(several, "a"), WorkflowHandle[Order])
    assert_type(await app.start(several, "a", 5, note="n"), WorkflowHandle[Order])
    assert_type(await app.start(several.with_options(instance_id="s-1"), "a", amount=5), WorkflowHandle[Order])
    assert_type(await (await app.start(checkout, Order(id="a"))).result(timeout=30), Summary)
    assert_type(await checkout.start(Order(id="a")), WorkflowHandle[Summary])
    assert_type(await several.with_options(on_conflict="fail").start("a", note="n"), WorkflowHandle[Order])

    await app.start(nothing, 5)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue]
    await app.start(checkout)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue]
    await app.start(checkout, "a")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await app.start(several, "a", amount="b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await app.start(several, 5)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await app.start(charge, "a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await app.start(nothing, on_conflict="maybe")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await checkout.start("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nothing.with_options(on_conflict="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def unit_test(ctx: WorkflowContext) -> None:
    assert_type(await checkout(ctx, Order(id="a")), Summary)
    await checkout(Order(id="a"))  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
