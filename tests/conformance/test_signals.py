"""Signals, queries and updates from callers and from plain CloudEvents, on every broker and every database."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from pydantic import BaseModel

from romancy_stream import (
    App,
    InstanceFinishedError,
    InstanceNotFoundError,
    InvalidInputError,
    UnknownHandlerError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowContext,
    query,
    signal,
    update,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.record import OutRecord
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 30


class Address(BaseModel):
    street: str
    fee: Decimal = Decimal(0)


class TooFarError(Exception):
    def __init__(self, km: int) -> None:
        super().__init__(km)
        self.km = km


class Delivery:
    """Of `program`: made into a workflow of each app."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self.notes: list[str] = []
        self.sent = False

    async def run(self, ctx: WorkflowContext, address: Address) -> list[str]:
        self.address = address
        await ctx.wait_condition(lambda: self.sent)
        await ctx.wait_condition(ctx.all_handlers_finished)
        return [self.address.street, *self.notes]

    @signal
    def note(self, text: str) -> None:
        self.notes.append(text)

    @signal
    async def stamp(self) -> None:
        self.notes.append(await stamped(f"{len(self.notes)}"))

    @signal
    def send(self) -> None:
        self.sent = True

    @query
    def where(self, upper: bool = False) -> Address:
        assert self.address is not None
        return Address(street=self.address.street.upper()) if upper else self.address

    @update
    async def redirect(self, address: Address) -> Address:
        checked = Address(street=await stamped(address.street), fee=address.fee)
        self.address = checked
        return checked

    @redirect.validator
    def check(self, address: Address) -> None:
        if self.sent:
            raise ValueError("it is on its way")
        if not address.street:
            raise ValueError("where to?")

    @update
    def drive(self, km: int, fast: bool = False) -> int:
        if km > 100:
            raise TooFarError(km)
        return km * (2 if fast else 1)


async def stamped(text: str) -> str:
    raise AssertionError("replaced by each program")


def program(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> App:
    app = make_app()

    @app.activity(name="stamped")
    async def activity(text: str) -> str:
        return f"<{text}>"

    monkeypatch.setitem(globals(), "stamped", activity)
    app.workflow(name="delivery")(Delivery)
    return app


async def test_everything_that_can_be_said(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = program(make_app, monkeypatch)
    async with app, app.client() as client:
        handle = await app.start(Delivery, Address(street="Main"), instance_id="d-1")
        elsewhere = client.handle("d-1", Delivery)

        async def started() -> bool:
            return await app.get_instance("d-1") is not None

        await eventually(started, deadline_s=PATIENCE_S)
        assert await handle.query(Delivery.where) == Address(street="Main")
        assert await elsewhere.query("where", upper=True) == Address(street="MAIN")
        await handle.signal(Delivery.note, "one")
        await elsewhere.signal("note", "two")
        redirected = await elsewhere.update(Delivery.redirect, Address(street="Oak", fee=Decimal("1.10")), timeout=30)
        assert redirected == Address(street="<Oak>", fee=Decimal("1.10"))
        assert await handle.query(Delivery.where) == redirected
        assert await handle.update("drive", 7, True, timeout=PATIENCE_S) == 14
        assert await client.update("d-1", "drive", km=7, timeout=PATIENCE_S) == 7
        with pytest.raises(UpdateRejectedError, match="where to") as rejected:
            await handle.update(Delivery.redirect, Address(street=""), timeout=PATIENCE_S)
        assert isinstance(rejected.value.__cause__, ValueError)
        with pytest.raises(UpdateFailedError) as failed:
            await elsewhere.update(Delivery.drive, 101)
        assert isinstance(failed.value.__cause__, TooFarError)
        assert failed.value.__cause__.km == 101
        with pytest.raises(InvalidInputError):
            await client.update("d-1", "redirect", {"street": 5}, timeout=PATIENCE_S)
        with pytest.raises(UnknownHandlerError, match="drive, redirect"):
            await client.update("d-1", "fly", timeout=PATIENCE_S)
        with pytest.raises(InstanceNotFoundError):
            await client.update("d-2", "drive", km=1, timeout=PATIENCE_S)
        await handle.signal(Delivery.stamp)
        await handle.signal(Delivery.send)
        assert await elsewhere.result(timeout=PATIENCE_S) == ["<Oak>", "one", "two", "<2>"]
        assert await handle.query(Delivery.where) == redirected
        with pytest.raises(InstanceFinishedError):
            await elsewhere.update(Delivery.drive, 1)
        kinds = [entry.kind for entry in await app.history("d-1")]
        assert (kinds.count("update.accepted"), kinds.count("update.completed")) == (4, 3)


async def test_updates_side_by_side_are_answered_each(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = program(make_app, monkeypatch)
    async with app, app.client() as client:
        await app.start(Delivery, Address(street="Main"), instance_id="d-1")
        handles = [app.handle("d-1", Delivery), client.handle("d-1", Delivery)]
        streets = [f"street {n}" for n in range(20)]
        sent = [handles[n % 2].update(Delivery.redirect, Address(street=s)) for n, s in enumerate(streets)]
        async with asyncio.timeout(PATIENCE_S):
            answers = await asyncio.gather(*sent)
        assert [answer.street for answer in answers] == [f"<{street}>" for street in streets]
        await handles[0].signal("send")
        assert (await handles[0].result(timeout=PATIENCE_S))[0] in {answer.street for answer in answers}


async def test_plain_cloudevents_signal_and_update(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, so that most arrive in a partition that is not the instance's; each of them twice."""
    app = program(make_app, monkeypatch)
    async with app:
        handle = await app.start(Delivery, Address(street="Main"), instance_id="d-1")
        answers: dict[str, list[bytes]] = {}

        async def collect(records: list[OutRecord]) -> None:
            for record in records:
                headers = dict(record.headers)
                if headers.get("ce_type") == w.ANSWERED.encode():
                    answers.setdefault((headers["ce_causationid"] or b"").decode(), []).append(record.value or b"")

        tail = app._broker.tail([app.topics.events], collect)  # type: ignore[arg-type]
        await tail.start()
        for n in range(4):
            for key in ("a", "b"):
                await _raw(app, key, f"s-{n}", w.SIGNAL, "note", f'"note {n}"')
        for key in ("a", "b"):
            await _raw(app, key, "u-1", w.UPDATE, "drive", '{"km": 5}')
            await _raw(app, key, "u-2", w.UPDATE, "drive", '{"km": "far"}')
        await _raw(app, "a", "s-9", w.SIGNAL, "fly", "1")
        await eventually(lambda: {"u-1", "u-2"} <= answers.keys(), deadline_s=PATIENCE_S)
        assert set(answers["u-1"]) == {b'{"ok":true,"result":5}'}
        assert all(b'"reason":"invalid_input"' in answer for answer in answers["u-2"])

        async def two_letters() -> bool:
            return len(await app.dead_letters()) == 2

        await eventually(two_letters, deadline_s=PATIENCE_S)
        assert {each.reason for each in await app.dead_letters()} == {"invalid_input", "unknown_handler"}
        await handle.signal("send")
        result = await handle.result(timeout=PATIENCE_S)
        assert sorted(result[1:]) == [f"note {n}" for n in range(4)]
        await tail.stop()


async def _raw(app: App, key: str, event_id: str, type_: str, name: str, data: str) -> None:
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_source", b"/desk"),
        ("ce_type", type_.encode()),
        ("ce_subject", b"d-1"),
        ("ce_romancyname", name.encode()),
    ]
    [sent] = await app._broker.send([OutRecord(app.topics.commands, key.encode(), data.encode(), headers)])
    await sent


async def test_a_restart_in_between_changes_nothing(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    first = program(make_app, monkeypatch)
    async with first:
        await first.start(Delivery, Address(street="Main"), instance_id="d-1")
        handle = first.handle("d-1", Delivery)
        await handle.signal("note", "before")
        assert await handle.update(Delivery.drive, 5) == 5
    empty = make_app()
    async with empty:  # an engine without the code: what comes meanwhile waits for it
        await empty.signal("d-1", "note", "meanwhile")

        async def parked() -> bool:
            instance = await empty.get_instance("d-1")
            return instance is not None and instance.parked is not None

        await eventually(parked, deadline_s=PATIENCE_S)
    second = program(make_app, monkeypatch)
    async with second:
        handle = second.handle("d-1", Delivery)
        assert await handle.query(Delivery.where) == Address(street="Main")
        assert await handle.update(Delivery.drive, 6) == 6
        await handle.signal(Delivery.send)
        assert await handle.result(timeout=PATIENCE_S) == ["Main", "before", "meanwhile"]


async def test_versions_side_by_side(make_app: MakeApp) -> None:
    def with_versions(*versions: str) -> App:
        app = make_app()
        for version in versions:

            @app.workflow(name="greet", version=version)
            class Greeting:
                told = version

                def __init__(self) -> None:
                    self.go = False

                async def run(self, ctx: WorkflowContext) -> str:
                    await ctx.wait_condition(lambda: self.go)
                    return self.told

                @signal
                def leave(self) -> None:
                    self.go = True

        return app

    old = with_versions("1")
    async with old:
        await old.start_by_name("greet", instance_id="g-1")

        async def there() -> bool:
            return await old.get_instance("g-1") is not None

        await eventually(there, deadline_s=PATIENCE_S)
    new = with_versions("1", "2")
    async with new:
        await new.start_by_name("greet", instance_id="g-2")

        async def both() -> bool:
            return await new.get_instance("g-2") is not None

        await eventually(both, deadline_s=PATIENCE_S)
        found = {(each.version, each.open_instances, each.is_here, each.is_default) for each in await new.versions()}
        assert found == {("1", 1, True, False), ("2", 1, True, True)}
        for instance in ("g-1", "g-2"):
            await new.signal(instance, "leave")
        assert await new.handle("g-1").result(timeout=PATIENCE_S) == "1"
        assert await new.handle("g-2").result(timeout=PATIENCE_S) == "2"
        assert [each.open_instances for each in await new.versions()] == [0, 0]
