"""What users do with workflows and activities, on every broker and every database."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
import pytest
from pydantic import BaseModel
from sqlalchemy import text
from typing_extensions import TypedDict

from romancy_stream import (
    ActivityContext,
    App,
    InstanceExistsError,
    InvalidInputError,
    RetryPolicy,
    TerminalError,
    UnknownWorkflowError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.record import OutRecord
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 120


class Colour(Enum):
    RED = "red"


class Line(BaseModel):
    sku: str
    price: Decimal


class Order(BaseModel):
    order_id: str
    lines: list[Line]
    colour: Colour = Colour.RED


@dataclass
class Total:
    amount: Decimal
    reference: UUID


class Summary(TypedDict):
    order_id: str
    total: Decimal


async def test_typed_values_travel_through_every_step(make_app: MakeApp) -> None:
    app = make_app()
    reference = UUID(int=7)

    @app.activity
    async def add_up(lines: list[Line], colour: Colour) -> Total:
        assert colour is Colour.RED
        return Total(sum((line.price for line in lines), Decimal(0)), reference)

    @app.activity
    def summarise(order: Order, total: Total) -> Summary:
        assert threading.current_thread() is not threading.main_thread()
        assert isinstance(total.reference, UUID)
        return {"order_id": order.order_id, "total": total.amount}

    @app.workflow
    async def checkout(ctx: WorkflowContext, order: Order) -> Summary:
        total = await add_up(order.lines, order.colour)
        assert total == Total(Decimal("3.30"), reference)
        return await summarise(order, total)

    async with app:
        order = Order(
            order_id="ö-1", lines=[Line(sku="a", price=Decimal("1.10")), Line(sku="b", price=Decimal("2.20"))]
        )
        handle = await checkout.start(order)
        assert await handle.result(timeout=PATIENCE_S) == {"order_id": "ö-1", "total": Decimal("3.30")}
        instance = await app.get_instance(handle.instance_id)
        assert instance is not None
        assert (instance.status, instance.workflow_name, instance.run) == ("completed", "checkout", 1)
        assert instance.input["lines"][1]["sku"] == "b"
        assert [entry.ref for entry in await app.history(handle.instance_id) if entry.ref] == [
            "add_up:1",
            "add_up:1",
            "summarise:1",
            "summarise:1",
        ]
        assert [(a.activity_id, a.status) for a in await app.activities(handle.instance_id)] == [
            ("add_up:1", "completed"),
            ("summarise:1", "completed"),
        ]
        found = await app.find_instances({"order_id": "ö-1", "lines.0.sku": "a"}, workflow_name="CHECK")
        assert [each.instance_id for each in found.instances] == [handle.instance_id]
        assert not (await app.find_instances({"order_id": "other"})).instances


async def test_parallel_activities_and_many_instances(make_app: MakeApp) -> None:
    app = make_app()

    @app.activity
    async def square(n: int) -> int:
        return n * n

    @app.workflow
    async def squares(ctx: WorkflowContext, count: int) -> list[int]:
        return await asyncio.gather(*(square(n) for n in range(count)))

    async with app:
        handles = [await app.start(squares, count) for count in range(20)]
        for count, handle in enumerate(handles):
            assert await handle.result(timeout=PATIENCE_S) == [n * n for n in range(count)]
        page = await app.list_instances(status="completed", limit=15)
        assert len(page.instances) == 15
        assert page.has_more
        rest = await app.list_instances(status="completed", limit=15, page_token=page.next_page_token)
        ids = [each.instance_id for each in (*page.instances, *rest.instances)]
        assert sorted(ids) == sorted(handle.instance_id for handle in handles)


class PaymentError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


async def test_retries_leave_a_record_and_errors_keep_their_class(make_app: MakeApp) -> None:
    app = make_app(default_retry_policy=RetryPolicy.fixed(3, 0.05))

    @app.activity
    async def flaky(ctx: ActivityContext) -> int:
        if ctx.attempt < 3:
            raise PaymentError(500 + ctx.attempt, "again")
        return ctx.attempt

    @app.activity
    async def refuse() -> None:
        raise TerminalError("never")

    @app.activity(retry=RetryPolicy(do_not_retry_on=(PaymentError,)))
    async def declined() -> None:
        raise PaymentError(402, "declined")

    @app.workflow
    async def pay(ctx: WorkflowContext) -> list[Any]:
        attempts = await flaky()
        try:
            await declined()
        except PaymentError as error:
            code = error.code
        try:
            await refuse()
        except TerminalError as error:
            return [attempts, code, str(error)]
        raise AssertionError("unreachable")

    async with app:
        handle = await app.start(pay)
        assert await handle.result(timeout=PATIENCE_S) == [3, 402, "never"]
        history = await app.history(handle.instance_id)
        failed = [entry for entry in history if entry.kind == "activity.attempt_failed"]
        assert [entry.attrs["attempt"] for entry in failed] == [1, 2]
        assert failed[0].payload["type"].endswith("PaymentError")
        assert len([entry for entry in history if entry.kind == "activity.failed"]) == 2


async def test_a_wait_between_attempts_holds_nothing(make_app: MakeApp) -> None:
    """Neither the transaction with its locks, nor the one place in the worker: another attempt writes the same row."""
    app = make_app(concurrency=1)

    @app.activity
    async def create_table(ctx: ActivityContext) -> None:
        await ctx.session.execute(text("CREATE TABLE stock (sku VARCHAR(20) PRIMARY KEY, pieces INTEGER)"))
        await ctx.session.execute(text("INSERT INTO stock VALUES ('pen', 5)"))

    @app.activity(retry=RetryPolicy(initial_interval=3_600, max_interval=3_600))
    async def take(ctx: ActivityContext, fails: bool) -> int:
        await ctx.session.execute(text("UPDATE stock SET pieces = pieces - 1 WHERE sku = 'pen'"))
        if fails:
            raise ConnectionError("after the update")
        return int((await ctx.session.execute(text("SELECT pieces FROM stock"))).scalar_one())

    @app.workflow
    async def prepare(ctx: WorkflowContext) -> None:
        await create_table()

    @app.workflow
    async def order(ctx: WorkflowContext, fails: bool) -> int:
        return await take(fails)

    async with app:
        await (await app.start(prepare)).result(timeout=PATIENCE_S)
        waiting = await app.start(order, True, instance_id="waits")

        async def waits_for_its_second_attempt() -> bool:
            return "activity.attempt_failed" in [entry.kind for entry in await app.history("waits")]

        await eventually(waits_for_its_second_attempt, deadline_s=PATIENCE_S)
        second = await app.start(order, False)
        assert await second.result(timeout=PATIENCE_S) == 4
        [activity] = await app.activities("waits")
        assert (activity.status, (await waiting.get()).finished_at) == ("backing_off", None)


async def test_a_failed_workflow_says_why_to_everybody(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def breaks(ctx: WorkflowContext) -> None:
        raise PaymentError(418, "teapot")

    async with app, app.client() as client:
        handle = await client.start(breaks, instance_id="broken")
        for waiting in (handle, app.handle("broken", breaks), client.handle("broken")):
            with pytest.raises(WorkflowFailedError, match="teapot") as caught:
                await waiting.result(timeout=PATIENCE_S)
            assert caught.value.error_type.endswith("PaymentError")
            assert isinstance(caught.value.__cause__, PaymentError)
            assert caught.value.__cause__.code == 418


async def test_rejected_starts(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def takes_order(ctx: WorkflowContext, order: Order) -> str:
        return order.order_id

    async with app:
        handle = await app.start_by_name("takes_order", {"order_id": 3}, instance_id="o-1")
        with pytest.raises(InvalidInputError) as caught:
            await handle.result(timeout=PATIENCE_S)
        assert {tuple(error["loc"]) for error in caught.value.errors} >= {("lines",)}
        with pytest.raises(InvalidInputError):
            await app.handle("o-1").result(timeout=PATIENCE_S)
        unknown = await app.start_by_name("nobody", None)
        with pytest.raises(UnknownWorkflowError, match="takes_order"):
            await unknown.result(timeout=PATIENCE_S)
        letters = await app.dead_letters()
        assert sorted(letter.reason for letter in letters) == ["invalid_input", "unknown_workflow"]
        again = await app.start(takes_order, Order(order_id="x", lines=[]), instance_id="o-1")
        assert await again.result(timeout=PATIENCE_S) == "x"


async def test_one_id_is_one_instance(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def echo(ctx: WorkflowContext, value: int) -> int:
        return value

    async with app:
        handles = [await app.start(echo, n, instance_id="same") for n in range(3)]
        assert [await handle.result(timeout=PATIENCE_S) for handle in handles] == [0, 0, 0]
        with pytest.raises(InstanceExistsError):
            await app.start(echo, 9, instance_id="same", on_conflict="fail")
        fresh = await app.start(echo, 9, instance_id="fresh", on_conflict="fail")
        assert await fresh.result(timeout=PATIENCE_S) == 9


async def test_a_refused_second_start_ends_nobodys_waiting(make_app: MakeApp) -> None:
    app = make_app()

    @app.activity
    async def gate() -> str:
        await opened.wait()
        return "through"

    @app.workflow
    async def waits(ctx: WorkflowContext) -> str:
        return await gate()

    opened = asyncio.Event()
    async with app, app.client() as client:
        first = await app.start(waits, instance_id="taken")
        waiting = [
            asyncio.create_task(each.result(timeout=PATIENCE_S))
            for each in (first, app.handle("taken", waits), client.handle("taken", waits))
        ]
        for starter in (app, client):
            with pytest.raises(InstanceExistsError):
                await starter.start(waits, instance_id="taken", on_conflict="fail")
        opened.set()
        assert await asyncio.gather(*waiting) == ["through"] * 3


async def test_plain_cloudevents_start_workflows_that_allow_it(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow(event_handler=True)
    async def order_placed(ctx: WorkflowContext, order: dict[str, Any]) -> Any:
        return order["id"]

    @app.workflow
    async def private(ctx: WorkflowContext) -> None:
        raise AssertionError("nobody may start this by an event")

    async with app:
        for _ in range(2):
            await app.send_event(type="order_placed", data={"id": 5}, source="/shop", id="evt-1")
        await app.send_event(type="private", source="/shop", id="evt-2")
        structured = orjson.dumps(
            {"specversion": "1.0", "id": "evt-3", "source": "/shop", "type": "order_placed", "data": {"id": 6}}
        )
        await _raw(app, structured, ("content-type", b"application/cloudevents+json; charset=UTF-8"))
        command = orjson.dumps(
            {"specversion": "1.0", "id": "c", "source": "/x", "type": w.START, "romancyworkflow": "order_placed",
             "subject": "named", "data": {"id": 7}}
        )  # fmt: skip
        await _raw(app, command, ("Content-Type", b"application/cloudevents+json"))

        async def all_done() -> bool:
            page = await app.list_instances(status="completed")
            return sorted(each.output for each in page.instances) == [5, 6, 7]

        await eventually(all_done, deadline_s=PATIENCE_S)
        assert not await app.dead_letters()


async def _raw(app: App, value: bytes | None, *headers: tuple[str, bytes]) -> None:
    [sent] = await app._broker.send([OutRecord(app.topics.commands, b"some key", value, headers)])
    await sent


async def test_junk_becomes_dead_letters_and_can_be_replayed(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def later(ctx: WorkflowContext) -> str:
        return "done"

    async with app:
        await _raw(app, b"\xff\xfe not an event")
        await _raw(
            app, b'{"a": NaN}', ("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/x"), ("ce_type", b"t")
        )
        handle = await app.start(later, instance_id="good")
        assert await handle.result(timeout=PATIENCE_S) == "done"

        async def both() -> bool:
            return len(await app.dead_letters()) == 2

        await eventually(both, deadline_s=PATIENCE_S)
        letters = await app.dead_letters()
        assert {letter.value for letter in letters} == {b"\xff\xfe not an event", b'{"a": NaN}'}
        assert await app.dead_letter(letters[0].dlq_id) == letters[0]
        await app.replay_dead_letter(letters[0].dlq_id)

        async def three() -> bool:
            return len(await app.dead_letters()) == 3

        await eventually(three, deadline_s=PATIENCE_S)
        replayed = await app.dead_letter(letters[0].dlq_id)
        assert replayed is not None
        assert replayed.replayed_at is not None


async def test_an_activity_writes_records_and_publishes_in_one_transaction(make_app: MakeApp) -> None:
    app = make_app(default_retry_policy=RetryPolicy.fixed(3, 0.05))

    @app.activity
    async def create_table(ctx: ActivityContext) -> None:
        await ctx.session.execute(text("CREATE TABLE orders (id VARCHAR(20) PRIMARY KEY)"))

    @app.activity
    async def save(ctx: ActivityContext, order_id: str) -> int:
        await ctx.session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": f"{order_id}/{ctx.attempt}"})
        ctx.publish_event(type="order.saved", data={"attempt": ctx.attempt}, subject=order_id)
        if ctx.attempt < 3:
            raise ConnectionError("after the insert")
        return ctx.attempt

    @app.activity
    def read(ctx: ActivityContext) -> list[str]:
        return [str(row[0]) for row in ctx.sync_session.execute(text("SELECT id FROM orders"))]

    @app.workflow
    async def order(ctx: WorkflowContext, order_id: str) -> list[str]:
        await create_table()
        await save(order_id)
        return await read()

    seen: list[bytes | None] = []

    async with app:

        async def collect(records: Any) -> None:
            seen.extend(r.value for r in records if ("ce_type", b"order.saved") in [tuple(h) for h in r.headers])

        tail = app._broker.tail([app.topics.events], collect)
        await tail.start()
        handle = await app.start(order, "o-1")
        assert await handle.result(timeout=PATIENCE_S) == ["o-1/3"]
        await eventually(lambda: seen, deadline_s=PATIENCE_S)
        await tail.stop()
    assert seen == [b'{"attempt":3}']


async def test_leaving_in_the_middle_and_coming_back(make_app: MakeApp) -> None:
    ran: list[str] = []

    def program() -> App:
        app = make_app()

        @app.activity
        async def note(what: str) -> None:
            ran.append(what)

        @app.workflow
        async def patient(ctx: WorkflowContext) -> str:
            await note("before")
            await ctx.sleep(1)
            await note("after")
            return ctx.now().isoformat()

        return app

    first = program()
    async with first:
        await first.start(first.registry.workflows["patient"], instance_id="p")
        await eventually(lambda: ran == ["before"], deadline_s=PATIENCE_S)

        async def sleeping() -> bool:
            instance = await first.get_instance("p")
            return instance is not None and instance.status == "waiting_for_timer"

        await eventually(sleeping, deadline_s=PATIENCE_S)
    second = program()
    async with second:
        await second.handle("p").result(timeout=PATIENCE_S)
        assert ran == ["before", "after"]
        assert [entry.kind for entry in await second.history("p")].count("timer.fired") == 1


async def test_an_app_can_be_entered_again(make_app: MakeApp) -> None:
    app = make_app()

    @app.workflow
    async def echo(ctx: WorkflowContext, value: str) -> str:
        return value

    for value in ("one", "two"):
        async with app:
            handle = await app.start(echo, value)
            assert await handle.result(timeout=PATIENCE_S) == value


async def test_a_dead_letter_that_is_replayed_starts_what_it_should_or_becomes_another(make_app: MakeApp) -> None:
    """Also one that was handed on from partition to partition, as those of producers without keys are."""
    first = make_app()

    @first.workflow(name="known", event_handler=True)
    async def wrong(ctx: WorkflowContext, value: int) -> int:
        return value

    async with first:
        for number in range(4):
            await first.send_event(type="known", data="text", source="/shop", id=f"e{number}")

        async def all_dead(count: int) -> bool:
            return len(await first.dead_letters()) == count

        await eventually(lambda: all_dead(4), deadline_s=PATIENCE_S)
        assert {letter.dlq_id.split("/")[0] for letter in await first.dead_letters()} & {first.topics.results}
        for letter in await first.dead_letters():
            await first.replay_dead_letter(letter.dlq_id)
        await eventually(lambda: all_dead(8), deadline_s=PATIENCE_S)

    second = make_app()

    @second.workflow(name="known", event_handler=True)
    async def mended(ctx: WorkflowContext, value: str) -> str:
        return value

    async with second:
        for letter in await second.dead_letters():
            if letter.replayed_at is None:
                await second.replay_dead_letter(letter.dlq_id)

        async def all_done() -> bool:
            page = await second.list_instances(status="completed")
            return [each.output for each in page.instances] == ["text"] * 4

        await eventually(all_done, deadline_s=PATIENCE_S)
