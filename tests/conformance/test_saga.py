"""Cancelling and compensations, on every broker and every database."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from romancy_stream import (
    ActivityContext,
    App,
    InstanceNotCancellableError,
    InstanceNotFoundError,
    RetryPolicy,
    TerminalError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.record import OutRecord
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 30
QUICK = RetryPolicy.fixed(3, 0.05)


async def _status(app: App, instance_id: str, *wanted: str) -> None:
    async def reached() -> bool:
        instance = await app.get_instance(instance_id)
        return instance is not None and instance.status in wanted

    await eventually(reached, deadline_s=PATIENCE_S)


async def test_cancel_waiting_running_and_finished(make_app: MakeApp) -> None:
    app = make_app()
    begun, opened = asyncio.Event(), asyncio.Event()

    @app.activity
    async def long() -> str:
        begun.set()
        await opened.wait()
        return "too late"

    @app.activity
    async def tidy(what: str) -> str:
        return f"tidied {what}"

    @app.workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await ctx.sleep(3_600)

    @app.workflow
    async def works(ctx: WorkflowContext) -> str:
        try:
            return await long()
        finally:
            ctx.publish_event(type="tidied", data=await tidy("up"))

    @app.workflow
    async def quick(ctx: WorkflowContext) -> int:
        return 1

    async with app, app.client() as client:
        waiting = await app.start(sleeps, instance_id="waiting")
        await _status(app, "waiting", "waiting_for_timer")
        await client.cancel("waiting", "customer called")
        with pytest.raises(WorkflowCancelledError, match="customer called") as caught:
            await waiting.result(timeout=PATIENCE_S)
        assert caught.value.by == f"/romancy/{app.namespace}/client"

        running = await client.start(works, instance_id="running")
        await begun.wait()
        await running.cancel(reason="enough")
        await running.cancel(reason="enough, I said")
        with pytest.raises(WorkflowCancelledError) as caught:
            await running.result(timeout=PATIENCE_S)
        assert caught.value.reason == "enough"
        opened.set()
        assert [(a.activity_id, a.status) for a in await app.activities("running")] == [
            ("long:1", "cancelled"),
            ("tidy:1", "completed"),
        ]
        kinds = [entry.kind for entry in await app.history("running")]
        assert kinds[-6:] == [
            "workflow.cancel_requested",
            "activity.cancelled",
            "activity.scheduled",
            "activity.completed",
            "event.published",
            "workflow.cancelled",
        ]

        done = await app.start(quick, instance_id="done")
        assert await done.result(timeout=PATIENCE_S) == 1
        with pytest.raises(InstanceNotCancellableError, match="completed"):
            await client.cancel("done")
        with pytest.raises(InstanceNotFoundError, match="nobody"):
            await app.cancel("nobody")
        await app.cancel("waiting")
        page = await app.list_instances(status="cancelled")
        assert {each.instance_id for each in page.instances} == {"waiting", "running"}
        assert sorted(each.reason for each in await app.dead_letters()) == ["not_cancellable", "unknown_instance"]


async def test_a_plain_cloudevent_cancels(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await ctx.sleep(3_600)

    async with app:
        handle = await app.start(sleeps, instance_id="order-1")
        event = {"specversion": "1.0", "id": "c-1", "source": "/shop/desk", "type": w.CANCEL, "subject": "order-1"}
        for _ in range(2):
            value = orjson.dumps({**event, "data": {"reason": "sold out"}})
            headers = [("content-type", b"application/cloudevents+json")]
            [sent] = await app._broker.send([OutRecord(app.topics.commands, b"any key", value, headers)])
            await sent
        with pytest.raises(WorkflowCancelledError, match="sold out") as caught:
            await handle.result(timeout=PATIENCE_S)
        assert caught.value.by == "/shop/desk"
        assert not await app.dead_letters()


async def test_a_parked_instance_is_cancelled(make_app: MakeApp) -> None:
    old, new = make_app(), make_app()

    @old.activity
    async def never() -> None:
        await asyncio.Event().wait()

    new.registry.add_activity(never)

    @old.workflow(name="changes")
    async def before(ctx: WorkflowContext) -> None:
        await ctx.wait_event("saga.go")
        await never()

    @new.workflow(name="changes")
    async def after(ctx: WorkflowContext) -> None:
        await never()

    async with old:
        await old.start(before, instance_id="i")
        await _status(old, "i", "waiting_for_event")
    async with new:
        await new.send_event(type="saga.go")

        async def parked() -> bool:
            instance = await new.get_instance("i")
            return instance is not None and instance.parked is not None

        await eventually(parked, deadline_s=PATIENCE_S)
        await new.cancel("i", "never mind")
        with pytest.raises(WorkflowCancelledError, match="never mind"):
            await new.handle("i").result(timeout=PATIENCE_S)


class Shop:
    """An app whose activities write to a table, in their own transactions, and can be undone."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.undone: list[str] = []
        self.begun, self.opened = asyncio.Event(), asyncio.Event()

        @app.activity
        async def create_table(ctx: ActivityContext) -> None:
            await ctx.session.execute(text("CREATE TABLE stock (sku VARCHAR(20) PRIMARY KEY, reservation VARCHAR(20))"))

        @app.activity(retry=QUICK)
        async def release(ctx: ActivityContext, sku: str, result: dict[str, Any]) -> None:
            self.undone.append(sku)
            statement = "DELETE FROM stock WHERE sku = :sku AND reservation = :reservation"
            deleted = await ctx.session.execute(text(statement), {"sku": sku, "reservation": result["reservation"]})
            assert deleted.rowcount == 1  # type: ignore[attr-defined]
            ctx.publish_event(type="stock.released", data={"sku": sku})
            if sku == "b" and ctx.attempt == 1:
                raise ConnectionError("after the delete")
            if sku == "broken":
                raise TerminalError("the shelf is gone")

        @app.activity(compensate=release)
        async def reserve(ctx: ActivityContext, order_id: str, sku: str) -> dict[str, Any]:
            row = {"sku": sku, "reservation": f"{order_id}/{sku}"}
            await ctx.session.execute(text("INSERT INTO stock VALUES (:sku, :reservation)"), row)
            return row

        @app.activity
        def notify(message: str) -> None:
            self.undone.append(message)

        @app.activity
        async def ship(order_id: str) -> str:
            if order_id == "fails":
                raise TerminalError("no truck")
            if order_id == "waits":
                self.begun.set()
                await self.opened.wait()
            return "shipped"

        @app.workflow
        async def order(ctx: WorkflowContext, order_id: str, skus: list[str]) -> str:
            await create_table()
            for sku in skus:
                await reserve(order_id, sku=sku)
            ctx.on_rollback(notify, f"{order_id} is off")
            return await ship(order_id)

        self.order = order

    async def stock(self) -> list[str]:
        store = self.app.make_store()
        await store.open()
        try:
            async with store.db.engine.connect() as connection:
                rows = await connection.execute(text("SELECT sku FROM stock ORDER BY sku"))
                return [sku for (sku,) in rows]
        finally:
            await store.close()


async def test_nothing_is_undone_when_all_is_well(make_app: MakeApp) -> None:
    shop = Shop(make_app())
    async with shop.app as app:
        handle = await app.start(shop.order, "good", ["a", "b"])
        assert await handle.result(timeout=PATIENCE_S) == "shipped"
        assert await shop.stock() == ["a", "b"]
        assert shop.undone == []


async def test_a_failure_undoes_in_reverse_order_with_retries_in_transactions(make_app: MakeApp) -> None:
    shop = Shop(make_app())
    async with shop.app as app:
        handle = await app.start(shop.order.with_options(instance_id="o-1"), "fails", ["a", "b", "c"])
        with pytest.raises(WorkflowFailedError, match="no truck") as caught:
            await handle.result(timeout=PATIENCE_S)
        assert caught.value.compensation_failed == []
        assert shop.undone == ["fails is off", "c", "b", "b", "a"]
        assert await shop.stock() == []
        ended = [entry.ref for entry in await app.history("o-1") if entry.kind == "compensation.completed"]
        assert ended == ["rollback:1", "reserve:3", "reserve:2", "reserve:1"]


async def test_one_that_cannot_be_undone_is_named_and_the_others_go_on(make_app: MakeApp) -> None:
    shop = Shop(make_app())
    async with shop.app as app, app.client() as client:
        handle = await client.start(shop.order.with_options(instance_id="o-1"), "waits", ["a", "broken", "c"])
        await shop.begun.wait()
        await handle.cancel(reason="changed their mind")
        shop.opened.set()
        with pytest.raises(WorkflowCancelledError, match="could not be undone: reserve:2") as caught:
            await handle.result(timeout=PATIENCE_S)
        assert caught.value.reason == "changed their mind"
        assert caught.value.compensation_failed == ["reserve:2"]
        assert shop.undone == ["waits is off", "c", "broken", "a"]
        assert await shop.stock() == ["broken"]
        instance = await app.get_instance("o-1")
        assert instance is not None
        assert instance.status == "cancelled"
        assert instance.error == {
            "reason": "changed their mind",
            "by": f"/romancy/{app.namespace}/client",
            "compensation_failed": ["reserve:2"],
        }


async def test_it_is_compensating_until_all_is_undone_also_after_a_restart(make_app: MakeApp) -> None:
    first, second = make_app(), make_app()
    tried = asyncio.Event()
    calls: list[str] = []

    def define(app: App, name: str) -> Any:
        @app.activity(retry=RetryPolicy.fixed(1_000, 0.1))
        async def undo(step: str) -> None:
            calls.append(f"{name} {step}")
            if step == "one" and name == "first":
                tried.set()
                raise ConnectionError("try again")

        @app.activity(compensate=undo)
        async def do(step: str) -> None: ...

        @app.workflow
        async def two_steps(ctx: WorkflowContext) -> None:
            await do("one")
            await do("two")
            raise TerminalError("and back")

        return two_steps

    workflows = [define(first, "first"), define(second, "second")]
    async with first:
        await first.start(workflows[0], instance_id="i")
        await tried.wait()
        page = await first.list_instances(status="compensating")
        assert [each.instance_id for each in page.instances] == ["i"]
        await first.cancel("i")  # nothing that it could still change
    async with second:
        with pytest.raises(WorkflowFailedError, match="and back"):
            await second.handle("i").result(timeout=PATIENCE_S)
    assert list(dict.fromkeys(calls)) == ["first two", "first one", "second one"]
    assert calls.count("second one") == 1


async def test_an_activity_whose_time_is_over_commits_nothing(make_app: MakeApp) -> None:
    app = make_app()
    given_up, refused = asyncio.Event(), asyncio.Event()

    @app.activity
    async def create_table(ctx: ActivityContext) -> None:
        await ctx.session.execute(text("CREATE TABLE notes (id VARCHAR(20) PRIMARY KEY)"))

    @app.activity(retry=RetryPolicy.none())
    async def late(ctx: ActivityContext) -> None:
        await given_up.wait()
        await ctx.session.execute(text("INSERT INTO notes VALUES ('late')"))

    @app.activity
    async def count(ctx: ActivityContext) -> int:
        await refused.wait()
        found: int = (await ctx.session.execute(text("SELECT COUNT(*) FROM notes"))).scalar_one()
        return found

    @app.workflow
    async def hurries(ctx: WorkflowContext) -> int:
        await create_table()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await late()
        return await count()

    async def cancelled() -> bool:
        return ("late:1", "cancelled") in [(a.activity_id, a.status) for a in await app.activities("i")]

    def closed() -> bool:
        assert app._node is not None
        assert app._node.worker is not None
        return app._node.worker.statistics().closed == 1

    async with app:
        handle = await app.start(hurries, instance_id="i")
        await eventually(cancelled, deadline_s=PATIENCE_S)
        given_up.set()
        await eventually(closed, deadline_s=PATIENCE_S)
        refused.set()
        assert await handle.result(timeout=PATIENCE_S) == 0
