"""Workflows that wait for events, on every broker and every database."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from romancy_stream import App, EventTimeoutError, EventType, WorkflowContext, WorkflowFailedError
from romancy_stream.engine.commit import StoredEntity
from romancy_stream.engine.matching import entity_name
from romancy_stream.runtime import expiry
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 30


class Payment(BaseModel):
    order_id: str
    amount: Decimal


def program(app: App) -> EventType[Payment]:
    paid = app.event("payment.completed", key="order_id", model=Payment)

    @app.workflow
    async def order(ctx: WorkflowContext, order_id: str) -> list[str]:
        got = await ctx.wait_event(paid, match={"order_id": order_id}, timeout=60)
        return [str(got.data.amount), got.id, got.source, str(got.subject)]

    @app.workflow
    async def counting(ctx: WorkflowContext, count: int) -> list[str]:
        return [(await ctx.wait_event("tick")).id for _ in range(count)]

    @app.workflow
    async def impatient(ctx: WorkflowContext) -> None:
        await ctx.wait_event("never", timeout=0.05)

    return paid


async def waiting(app: App, count: int) -> None:
    async def there() -> bool:
        page = await app.list_instances(status="waiting_for_event")
        return len(page.instances) == count

    await eventually(there, deadline_s=PATIENCE_S)


async def send(app: App, order_id: str, amount: str, **attributes: Any) -> None:
    data = {"order_id": order_id, "amount": amount}
    await app.send_event(type="payment.completed", data=data, source="/bank", **attributes)


async def test_events_reach_who_waits_for_them(make_app: MakeApp) -> None:
    app = make_app()
    program(app)
    async with app:
        await send(app, "o0", "1.10", id="early")
        names = [f"o{number}" for number in range(6)]
        handles = {
            name: await app.start_by_name("order", name, instance_id=f"order-{name}") for name in (*names, "aimed")
        }
        assert (await handles["o0"].result(timeout=PATIENCE_S))[:2] == ["1.10", "early"]
        await waiting(app, 6)
        row = await app._store.get_instance("order-o1")
        assert row is not None
        assert row.waiting_for == b'["event payment.completed"]'
        for again in range(2):
            for name in names[1:]:
                await send(app, name, f"{again}.5", id=f"pay-{name}", subject="any subject")
        await send(app, "aimed", "7", id="e7", subject="order-aimed")
        for name in names[1:]:
            got = await handles[name].result(timeout=PATIENCE_S)
            assert got == ["0.5", f"pay-{name}", "/bank", "any subject"]
        assert await handles["aimed"].result(timeout=PATIENCE_S) == ["7", "e7", "/bank", "order-aimed"]
        handle = await app.start_by_name("impatient")
        with pytest.raises(WorkflowFailedError) as failed:
            await handle.result(timeout=PATIENCE_S)
        assert isinstance(failed.value.__cause__, EventTimeoutError)
        assert not await app.dead_letters()


async def test_a_loop_of_waits_gets_every_event_whoever_runs_it(make_app: MakeApp) -> None:
    """The engine is left and entered again in the middle."""
    count, app = 40, make_app()
    program(app)

    async def tick(first: int, end: int) -> None:
        sending = [
            app.send_event(type="tick", source="/clock", id=f"t{n}", subject="c" if n % 3 else None)
            for n in range(first, end)
        ]
        await asyncio.gather(*sending)

    async with app:
        await app.start_by_name("counting", count, instance_id="c")
        await waiting(app, 1)
        await tick(0, count // 2)
    async with app:
        await tick(5, count)
        got: list[str] = await app.handle("c").result(timeout=PATIENCE_S)
        assert sorted(got) == sorted(f"t{n}" for n in range(count))


async def test_what_is_too_old_goes(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "LOOK_EVERY_S", 0.1)
    app = make_app(event_ttl=0.5, dedup_window=1)
    program(app)
    entity = entity_name("payment.completed", '"o1')

    async def stored() -> StoredEntity | None:
        return (await app._store.entities([entity])).get(entity)

    async with app:
        await send(app, "o1", "1")
        kept = await eventually(stored, deadline_s=PATIENCE_S, every_s=0.01)
        assert kept is not None
        assert len(kept.items) == 1

        async def gone() -> bool:
            return await stored() is None

        await eventually(gone, deadline_s=PATIENCE_S)
        handle = await app.start_by_name("order", "o1", instance_id="i")
        await waiting(app, 1)
        await send(app, "o1", "2", id="again")
        assert (await handle.result(timeout=PATIENCE_S))[:2] == ["2", "again"]

        async def forgotten() -> bool:
            await send(app, "o1", "3", id="again")  # known for a second, then it is a new one
            return await stored() is not None

        await eventually(forgotten, deadline_s=PATIENCE_S, every_s=0.2)
