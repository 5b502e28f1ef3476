"""`WorkflowEnvironment` as a user's test sees it: time, results, activities, what came out, and mistakes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from romancy_stream import (
    App,
    ConfigurationError,
    EventTimeoutError,
    InvalidInputError,
    Registry,
    UnknownWorkflowError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from romancy_stream.testing import StuckError, WorkflowEnvironment
from tests.testing import shop
from tests.testing.shop import Order, Receipt, app

START = datetime(2026, 1, 1, tzinfo=UTC)


async def test_thirty_days_pass_while_somebody_waits() -> None:
    async with WorkflowEnvironment(app) as env:
        handle = await env.start(shop.order, Order(id="o1", total=Decimal("9.90")))
        assert handle.instance_id == "order-1"
        assert (await handle.get()).status == "waiting_for_timer"
        assert env.now() == START
        assert await handle.result() == Receipt(number="R-o1", amount=Decimal("9.90"))
        assert env.now() == START + timedelta(days=30)
        assert [event.subject for event in env.published("order.done")] == ["o1"]
        assert [event.type for event in env.published()] == ["order.done"]


async def test_time_is_that_of_the_workflow_and_can_be_set() -> None:
    now = datetime(2030, 6, 1, 12, tzinfo=UTC)
    async with WorkflowEnvironment(app, now=now) as env:
        assert await env.execute(shop.elapsed) == 1800.0
        assert env.now() == now + timedelta(minutes=30)
    with pytest.raises(ValueError, match="has no time zone"):
        WorkflowEnvironment(app, now=datetime(2030, 6, 1))


async def test_time_can_be_moved_by_hand() -> None:
    async with WorkflowEnvironment(app, auto_skip=False) as env:
        handle = await env.start(shop.order, Order(id="o1", total=Decimal(1)))
        await env.sleep(days=29, hours=23)
        assert (await handle.get()).status == "waiting_for_timer"
        with pytest.raises(StuckError, match="auto_skip is off") as stuck:
            await handle.result()
        assert stuck.value.waits_for == ["timer:1, due at 2026-01-31T00:00:00+00:00"]
        await env.sleep(timedelta(hours=1))
        assert (await handle.get()).status == "completed"
        assert (await handle.result()).number == "R-o1"
        with pytest.raises(ValueError, match="time does not go back"):
            await env.sleep(-1)


async def test_a_timeout_is_by_the_clock_of_the_environment() -> None:
    async with WorkflowEnvironment(app) as env:
        handle = await env.start(shop.order, Order(id="o1", total=Decimal(1)))
        with pytest.raises(TimeoutError, match=r"86400 s of the test's time"):
            await handle.result(timeout=86_400)
        assert env.now() == START + timedelta(days=1)
        assert (await handle.result(timeout=30 * 86_400)).number == "R-o1"


async def test_two_who_wait_and_one_who_sleeps() -> None:
    async with WorkflowEnvironment(app) as env:
        one, two = [await env.start(shop.order, Order(id=name, total=Decimal(1))) for name in ("a", "b")]
        results = await asyncio.gather(one.result(), env.sleep(days=40), two.result())
        assert [each.number for each in results if each is not None] == ["R-a", "R-b"]
        assert env.now() == START + timedelta(days=40)


async def test_an_event_that_never_comes_is_told_and_not_waited_for() -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await ctx.wait_event("payment.completed", match={"id": 7})

    registry = Registry()
    registry.add_workflow(waits)
    async with WorkflowEnvironment(registry) as env:
        handle = await env.start(waits)
        with pytest.raises(StuckError) as stuck:
            await handle.result()
        assert stuck.value.waits_for == ["event 'payment.completed' that matches {\"id\":7}"]
        assert "instance waits-1 (waits) is waiting_for_event" in str(stuck.value)
        with pytest.raises(StuckError, match="no instance 'nobody' was started"):
            await env.handle("nobody").result()


async def test_an_event_ends_a_wait_and_time_does() -> None:
    async with WorkflowEnvironment(app) as env:
        handle = await env.start(shop.approval, "o1")
        await env.send_event(type="order.approved", data={"order_id": "o2", "by": "nobody"})
        await env.send_event(type="order.approved", data={"order_id": "o1", "by": "ada"})
        assert (await handle.get()).status == "completed"
        assert await handle.result() == "ada"
        late = await env.start(shop.approval, "o3")
        with pytest.raises(WorkflowFailedError) as failed:
            await late.result()
        assert isinstance(failed.value.__cause__, EventTimeoutError)
        assert env.now() == START + timedelta(days=7)


async def test_somebody_who_sends_while_another_one_waits() -> None:
    async with WorkflowEnvironment(app, auto_skip=False) as env:
        handle = await env.start(shop.approval, "o1")
        waiting = asyncio.create_task(handle.result())
        await env.send_event(type="order.approved", data={"order_id": "o1", "by": "ada"})
        assert await waiting == "ada"


async def test_plain_functions_run_in_threads_and_publish() -> None:
    async with WorkflowEnvironment(app) as env:
        assert await env.execute(shop.labels, ["a", "b"]) == ["label a #1", "label b #1"]
        assert sorted(event.data["id"] for event in env.published("label.made")) == ["a", "b"]
        assert [call["order_id"] for call in env.calls(shop.label)] == ["a", "b"]


async def test_a_session_is_one_transaction_with_the_result() -> None:
    async with WorkflowEnvironment(app, metadata=shop.Base.metadata) as env:
        async with env.session() as session:
            session.add(shop.Stock(sku="pen", left=3))
        told = await env.execute(shop.reserving, "pen", [2, 2, 1])
        assert told == ["1", "RetryExhaustedError: pen is sold out", "0", "{'pen': 0}"]
        async with env.session() as session:
            assert (await session.get_one(shop.Stock, "pen")).left == 0


async def test_a_database_of_ones_own(sqlite_db: str) -> None:
    async with WorkflowEnvironment(app, metadata=shop.Base.metadata, database=sqlite_db) as env:
        async with env.session() as session:
            session.add(shop.Stock(sku="pen", left=3))
        assert await env.execute(shop.reserving, "pen", [1]) == ["2", "{'pen': 2}"]


async def test_two_environments_share_nothing() -> None:
    metadata = shop.Base.metadata
    for _ in range(2):
        async with WorkflowEnvironment(app, metadata=metadata) as env:
            async with env.session() as session:
                session.add(shop.Stock(sku="pen", left=1))
            assert (await env.start(shop.reserving, "pen", [1])).instance_id == "reserving-1"


async def test_the_app_itself_works_in_it() -> None:
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(shop.order, Order(id="o1", total=Decimal(1)))
        assert handle.instance_id == "order-1"
        assert (await handle.result()).number == "R-o1"
        assert (await (await shop.order.start(Order(id="o2", total=Decimal(1)))).result()).number == "R-o2"
        page = await env.list_instances(limit=1)
        assert [each.instance_id for each in page.instances] == ["order-2"]
        rest = await app.list_instances(limit=1, page_token=page.next_page_token)
        assert [each.instance_id for each in rest.instances] == ["order-1"]
        assert not rest.has_more
        found = await env.find_instances({"id": "o1"}, status="completed")
        assert [each.instance_id for each in found.instances] == ["order-1"]
        with pytest.raises(ConfigurationError, match="in another environment"):
            async with WorkflowEnvironment(app):
                pass
    with pytest.raises(ConfigurationError, match="is not entered"):
        await app.start(shop.order, Order(id="o3", total=Decimal(1)))


async def test_history_and_activities_can_be_read() -> None:
    async with WorkflowEnvironment(app) as env:
        handle = await env.start(shop.order, Order(id="o1", total=Decimal(1)))
        await handle.result()
        history = await env.history(handle)
        assert history.kinds == [
            "workflow.started",
            "activity.scheduled charge:1",
            "activity.completed charge:1",
            "timer.started timer:1",
            "timer.fired timer:1",
            "event.published event:1",
            "workflow.completed",
        ]
        assert history[0].payload == {"id": "o1", "total": "1"}
        assert [entry.seq for entry in history[-2:]] == [6, 7]
        [view] = await env.activities(handle.instance_id)
        assert (view.status, view.attempt) == ("completed", 1)
        assert await env.history("nobody") == await env.history("nobody either")


async def test_bad_starts_are_told_as_by_an_app() -> None:
    async with WorkflowEnvironment(app) as env:
        with pytest.raises(InvalidInputError):
            await (await env.start_by_name("order", {"id": 7})).result()
        with pytest.raises(UnknownWorkflowError):
            await (await env.start_by_name("nothing")).result()
        assert sorted(letter.reason for letter in await env.dead_letters()) == ["invalid_input", "unknown_workflow"]


async def test_an_activity_that_is_not_registered_is_a_mistake_of_the_test() -> None:
    @activity
    async def elsewhere() -> None: ...

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await elsewhere()

    registry = Registry()
    registry.add_workflow(calls)
    async with WorkflowEnvironment(registry) as env:
        with pytest.raises(ConfigurationError, match="calls activity 'elsewhere', which is not registered"):
            await env.execute(calls)


def test_a_test_that_is_no_coroutine() -> None:
    with WorkflowEnvironment(app) as env:
        assert env.run(env.execute(shop.order, Order(id="o1", total=Decimal(1)))).number == "R-o1"
        assert len(env.calls()) == 1
    with pytest.raises(ConfigurationError, match="is not entered"):
        env.calls()


async def test_what_it_takes_is_checked() -> None:
    with pytest.raises(TypeError, match="an App or a Registry"):
        WorkflowEnvironment(shop)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every-step"):
        WorkflowEnvironment(app, crashes="often")  # type: ignore[arg-type]
    env = WorkflowEnvironment(App("unused"))
    async with env:
        work = env.sleep(1)
        with pytest.raises(ConfigurationError, match="use await"):
            env.run(work)
    with pytest.raises(ConfigurationError, match="entered before"):
        await env.__aenter__()


async def test_an_activity_that_waits_for_the_test_does_not_hang_it() -> None:
    gate = asyncio.Event()

    @activity
    async def gated() -> str:
        await gate.wait()
        return "through"

    @workflow
    async def goes(ctx: WorkflowContext) -> str:
        return await gated()

    registry = Registry()
    registry.add_workflow(goes)
    registry.add_activity(gated)
    async with WorkflowEnvironment(registry) as env:
        handle = await env.start(goes)
        assert len(env.calls(gated)) == 1
        gate.set()
        assert await handle.result() == "through"
        gate.clear()
        await env.start(goes)  # what is under way when the block ends is cut off
