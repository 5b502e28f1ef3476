"""Retry, reset, fork, delete and the bulk forms as callers see them: what they return and raise, who answers, clients
that may not listen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import (
    App,
    Client,
    InstanceExistsError,
    InstanceNotFoundError,
    InvalidResetPointError,
    NotDeletableError,
    NotRetryableError,
    RetryPolicy,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.audit import verify
from tests.support import eventually

PATIENCE_S = 30


class Shop:
    """An app whose vans can be there or not."""

    def __init__(self, folder: Path) -> None:
        self.vans = 0
        self.charged: list[str] = []
        self.app = app = App(
            "desk", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'state.db'}", partitions=2
        )

        @app.activity
        async def charge(order_id: str) -> str:
            self.charged.append(order_id)
            return f"charged {order_id}"

        @app.activity(retry=RetryPolicy.none())
        async def ship(order_id: str) -> str:
            if not self.vans:
                raise LookupError("no van")
            return f"shipped {order_id}"

        @app.workflow
        async def order(ctx: WorkflowContext, order_id: str) -> list[str]:
            return [await charge(order_id), await ship(order_id)]

        @app.workflow
        async def sleeps(ctx: WorkflowContext) -> None:
            await ctx.sleep(3_600)

        self.order, self.sleeps = order, sleeps

    async def failed(self, *ids: str) -> None:
        for instance_id in ids:
            handle = await self.app.start(self.order, instance_id, instance_id=instance_id)
            with pytest.raises(WorkflowFailedError, match="no van"):
                await handle.result(timeout=PATIENCE_S)

    async def sleeping(self, *ids: str) -> None:
        for instance_id in ids:
            await self.app.start(self.sleeps, instance_id=instance_id)
        for instance_id in ids:

            async def is_there(instance_id: str = instance_id) -> bool:
                return await self.app.get_instance(instance_id) is not None

            await eventually(is_there, deadline_s=PATIENCE_S)


@asynccontextmanager
async def entered(shop: Shop) -> AsyncIterator[App]:
    async with shop.app as app:
        yield app
    store = shop.app.make_store()
    await store.open()
    try:
        assert (await verify(store)).clean
    finally:
        await store.close()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.mark.parametrize("listens", [True, False])
async def test_what_each_returns_and_raises(shop: Shop, listens: bool) -> None:
    """Also by a client that may not listen and asks the tables, which know an answer as soon as there is one."""
    async with entered(shop) as app, app.client(poll_interval=None if listens else 0.02) as client:
        await shop.failed("o-1")
        await shop.sleeping("s-1")
        await _refused(client)
        shop.vans = 1
        assert await client.retry("o-1") == 2
        handle = client.handle("o-1", shop.order)
        assert await handle.result(timeout=PATIENCE_S) == ["charged o-1", "shipped o-1"]
        assert shop.charged == ["o-1"]
        assert await handle.reset(to_event=1) == 3
        assert await handle.result(timeout=PATIENCE_S) == ["charged o-1", "shipped o-1"]
        assert shop.charged == ["o-1"] * 2
        copy = await client.fork("o-1", at=3, new_id="o-2")
        assert copy.instance_id == "o-2"
        assert await copy.result(timeout=PATIENCE_S) == ["charged o-1", "shipped o-1"]
        assert shop.charged == ["o-1"] * 2
        with pytest.raises(InstanceExistsError):
            await handle.fork(new_id="o-2")
        older = await handle.fork(run=1, at=3)
        assert older.instance_id.startswith("order-")
        assert await older.result(timeout=PATIENCE_S) == ["charged o-1", "shipped o-1"]
        await copy.delete()
        assert await client.get_instance("o-2") is None
        assert await client.history("o-2") == []


async def _refused(client: Client) -> None:
    with pytest.raises(NotRetryableError):
        await client.retry("s-1")
    with pytest.raises(NotDeletableError):
        await client.delete("s-1")
    with pytest.raises(InvalidResetPointError, match="1 to"):
        await client.reset("s-1", to_event=1_000)
    with pytest.raises(InstanceNotFoundError):
        await client.retry("nobody")
    with pytest.raises(InstanceNotFoundError):
        await client.delete("nobody")
    with pytest.raises(InstanceNotFoundError):
        await client.fork("nobody")
    with pytest.raises(InstanceNotFoundError, match="run 7"):
        await client.fork("s-1", run=7)


@pytest.mark.parametrize("instance_id", ["", 5, None])
async def test_wrong_calls_send_nothing(shop: Shop, instance_id: Any) -> None:
    async with shop.app as app:
        for call in (app.retry, app.reset, app.fork, app.delete):
            with pytest.raises(ValueError, match="instance_id"):
                await call(instance_id)
        for number, error in ((0, InvalidResetPointError), ("1", TypeError), (True, TypeError)):
            with pytest.raises(error):
                await app.reset("i", to_event=number)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at_once"):
            await app.retry_all(at_once=0)
        assert not await app.dead_letters()


async def test_without_an_engine_the_command_waits_for_one(shop: Shop) -> None:
    async with shop.app:
        await shop.failed("o-1")
    async with shop.app.client() as client:
        with pytest.raises(TimeoutError):
            await client.retry("o-1", timeout=0.2)
    shop.vans = 1
    async with entered(shop) as app:
        handle = app.handle("o-1", shop.order)

        async def again() -> bool:
            return (await handle.get()).run == 2

        await eventually(again, deadline_s=PATIENCE_S)
        assert await handle.result(timeout=PATIENCE_S) == ["charged o-1", "shipped o-1"]


async def test_bulk_forms_do_what_their_filters_find(shop: Shop) -> None:
    async with entered(shop) as app:
        await shop.failed(*(f"o-{n}" for n in range(7)))
        await shop.sleeping("s-1", "s-2", "s-3")
        nothing = await app.retry_all(instance_id="s-")
        assert (nothing.done, nothing.refused) == (0, {})
        shop.vans = 1
        assert (await app.retry_all(instance_id="o-6")).done == 1
        assert (await app.retry_all(workflow_name="order", at_once=3)).done == 6
        handles = [app.handle(f"o-{n}", shop.order) for n in range(7)]
        results = [await handle.result(timeout=PATIENCE_S) for handle in handles]
        assert results == [[f"charged o-{n}", f"shipped o-{n}"] for n in range(7)]
        assert (await app.retry_all()).done == 0, "it may be repeated"

        assert (await app.delete_all(finished_before=datetime.now(UTC) - timedelta(hours=1))).done == 0
        assert (await app.delete_all(status="completed", instance_id="o-0")).done == 1
        cancelled = await app.cancel_all("enough", status="waiting_for_timer")
        assert (cancelled.done, cancelled.refused) == (3, {})
        assert (await app.cancel_all()).done == 0

        async def all_over() -> bool:
            return not [each for each in (await app.list_instances()).instances if each.finished_at is None]

        await eventually(all_over, deadline_s=PATIENCE_S)
        assert (await app.delete_all(at_once=4)).done == 9
        assert (await app.list_instances()).instances == []


async def test_who_refuses_is_named(shop: Shop) -> None:
    app = shop.app

    @app.activity
    async def release(what: str) -> None: ...

    @app.activity(compensate=release)
    async def reserve(what: str) -> str:
        return what

    @app.workflow
    async def saga(ctx: WorkflowContext, what: str) -> None:
        await reserve(what)
        raise RuntimeError("no")

    async with entered(shop):
        for number in range(3):
            handle = await app.start(saga, "seat", instance_id=f"t-{number}")
            with pytest.raises(WorkflowFailedError):
                await handle.result(timeout=PATIENCE_S)
        await shop.failed("o-1")
        answer = await app.retry_all()
        assert (answer.done, answer.refused_count) == (1, 3)
        assert set(answer.refused) == {"t-0", "t-1", "t-2"}
        assert {type(error) for error in answer.refused.values()} == {NotRetryableError}
        with pytest.raises(WorkflowFailedError):
            await app.handle("o-1").result(timeout=PATIENCE_S)
