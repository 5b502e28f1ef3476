"""Retry, reset, fork, delete and retention, on every broker and every database."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from romancy_stream import (
    App,
    InstanceExistsError,
    InstanceNotFoundError,
    InvalidResetPointError,
    NotDeletableError,
    NotRetryableError,
    RetryPolicy,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.runtime import expiry
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 30
DONE = ["charged o", "shipped o"]


class Vans:
    there = False
    charged = 0


def with_orders(app: App) -> App:
    Vans.there, Vans.charged = False, 0

    @app.activity
    async def charge(order_id: str) -> str:
        Vans.charged += 1
        return f"charged {order_id}"

    @app.activity(retry=RetryPolicy.none())
    async def ship(order_id: str) -> str:
        if not Vans.there:
            raise LookupError("no van")
        return f"shipped {order_id}"

    @app.workflow(name="order")
    async def order(ctx: WorkflowContext, order_id: str) -> list[str]:
        return [await charge(order_id), await ship(order_id)]

    @app.workflow(name="patient")
    async def patient(ctx: WorkflowContext, order_id: str) -> list[str]:
        first = await charge(order_id)
        await ctx.wait_event("van.there")
        return [first, await ship(order_id)]

    return app


async def test_retry_reset_fork_and_delete(make_app: MakeApp) -> None:
    app = with_orders(make_app())
    order = app.registry.workflows["order"]
    async with app, app.client() as client:
        failed = await client.start(order, "o", instance_id="failed")
        with pytest.raises(WorkflowFailedError, match="no van"):
            await failed.result(timeout=PATIENCE_S)
        with pytest.raises(InvalidResetPointError):
            await client.reset("failed", to_event=99)
        with pytest.raises(InstanceNotFoundError):
            await app.retry("nobody")
        Vans.there = True
        assert await failed.retry() == 2
        assert await failed.result(timeout=PATIENCE_S) == DONE
        with pytest.raises(NotRetryableError):
            await app.retry("failed")
        assert Vans.charged == 1

        assert await app.reset("failed", to_event=1) == 3
        assert await failed.result(timeout=PATIENCE_S) == DONE
        assert Vans.charged == 2
        copy = await client.fork("failed", at=3, new_id="copy")
        assert await copy.result(timeout=PATIENCE_S) == DONE
        assert Vans.charged == 2
        with pytest.raises(InstanceExistsError):
            await app.fork("failed", new_id="copy")
        assert [event.kind for event in await app.history("failed", run=1)][-1] == "workflow.failed"

        await copy.delete()
        assert await client.get_instance("copy") is None
        assert not await client.history("copy")
        again = await client.start(order, "o", instance_id="copy")
        assert await again.result(timeout=PATIENCE_S) == DONE
        assert (await again.get()).run == 2


async def test_what_is_open_goes_on_in_the_next_run(make_app: MakeApp) -> None:
    app = with_orders(make_app())
    patient = app.registry.workflows["patient"]
    Vans.there = True
    async with app:
        handles = [await app.start(patient, "o", instance_id=f"w-{number}") for number in range(4)]

        async def all_wait() -> bool:
            found = (await app.list_instances(status="waiting_for_event")).instances
            return len(found) == len(handles) and all(each.updated_at for each in found)

        await eventually(all_wait, PATIENCE_S)
        with pytest.raises(NotDeletableError):
            await app.delete("w-0")
        for handle in handles:
            assert await handle.reset() == 2
        await eventually(all_wait, PATIENCE_S)
        for handle in handles:
            await app.send_event(type="van.there", subject=handle.instance_id)
        assert [await handle.result(timeout=PATIENCE_S) for handle in handles] == [DONE] * 4
        done = await app.delete_all(workflow_name="patient")
        assert (done.done, done.refused) == (4, {})


async def test_finished_instances_are_kept_for_a_while(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "LOOK_EVERY_S", 0.05)
    app = with_orders(make_app(retention=0))
    order = app.registry.workflows["order"]
    Vans.there = True
    async with app:
        waits = await app.start(app.registry.workflows["patient"], "o", instance_id="waits")
        for number in range(5):
            await app.start(order, "o", instance_id=f"done-{number}")

        async def one_is_left() -> bool:
            found = (await app.list_instances()).instances
            return [each.instance_id for each in found] == ["waits"] and Vans.charged == 6

        await eventually(one_is_left, PATIENCE_S)
        store = app.make_store()
        await store.open()
        try:
            async with store.db.reading("count") as connection:
                for table in ("history", "activities", "activity_results", "timers", "heartbeats", "detached"):
                    counted = text(f"SELECT COUNT(*) FROM romancy_{table} WHERE instance_id <> 'waits'")
                    assert (await connection.execute(counted)).scalar_one() == 0, table
        finally:
            await store.close()
        assert (await waits.get()).status == "waiting_for_event"
