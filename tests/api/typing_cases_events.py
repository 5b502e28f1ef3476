"""As `typing_cases`, for events."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_type

from pydantic import BaseModel

from romancy_stream import App, EventType, ReceivedEvent, WorkflowContext


class Payment(BaseModel):
    order_id: str


app = App("shop", event_ttl=timedelta(hours=2))
paid = app.event("payment.completed", key="order_id", model=Payment)
plain = app.event("order.shipped")


@app.workflow
async def waits(ctx: WorkflowContext, order_id: str) -> str:
    assert_type(paid, EventType[Payment])
    match = {"order_id": order_id, "amount": 5, "gift": None}
    event = await ctx.wait_event(paid, match=match, timeout=timedelta(minutes=5))
    assert_type(event, ReceivedEvent[Payment])
    assert_type(event.data.order_id, str)
    assert_type(event.time, datetime | None)
    assert_type(await ctx.wait_event("payment.completed", match=match, model=Payment), ReceivedEvent[Payment])
    assert_type(await ctx.wait_event("payment.completed", match=match, timeout=1.5), ReceivedEvent[Any])
    assert_type(await ctx.wait_event(plain), ReceivedEvent[Any])
    await ctx.wait_event("x", timeout="1 s")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.wait_event()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    return event.data.order_id
