"""As `typing_cases`, for cancelling and compensations."""

from __future__ import annotations

from typing import assert_type

from romancy_stream import ActivityContext, App, RetryPolicy, WorkflowContext

app = App("shop")


@app.activity
async def release(ctx: ActivityContext, sku: str, result: int) -> None: ...


@app.activity
def tell(text: str, loud: bool = False) -> None: ...


@app.activity(compensate=release)
async def reserve(sku: str, count: int) -> int:
    return count


@app.activity(compensate=tell.with_options(retry=RetryPolicy.none()), retry=RetryPolicy.none())
def note(text: str) -> None: ...


@app.activity(compensate=print)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def wrong(sku: str) -> None: ...


@app.workflow
async def order(ctx: WorkflowContext, sku: str) -> int:
    assert_type(await reserve(sku, 1), int)
    ctx.on_rollback(tell, "off", loud=True)
    ctx.on_rollback(release, sku, result=1)
    ctx.on_rollback(tell)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ctx.on_rollback(tell, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.on_rollback(print, "off")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return 1


async def cancels() -> None:
    async with app, app.client() as client:
        handle = await app.start(order, "a")
        await handle.cancel()
        await handle.cancel(reason="why", timeout=None)
        await app.cancel("i", "why", timeout=1.5)
        await client.cancel(handle.instance_id, reason=None)
        await app.cancel()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await app.cancel("i", 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
