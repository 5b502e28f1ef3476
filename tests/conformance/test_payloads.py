"""Payloads that are encrypted and kept in files, on every broker and every database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from sqlalchemy import text

from romancy_stream import (
    ActivityContext,
    App,
    Encryption,
    Payloads,
    StartRefusedError,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import encode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import OutRecord
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 120
KEYS = {"k1": b"1" * 32, "k2": b"2" * 32}
SECRET = "the-secret"
LARGE = SECRET * 200_000  # two messages full


def payloads(folder: Path, *keys: str, threshold_bytes: int = 1_000) -> Payloads:
    return Payloads(
        codec=Encryption({name: KEYS[name] for name in keys}), store=str(folder), threshold_bytes=threshold_bytes
    )


async def test_large_and_secret_values_go_through_everything(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(payloads=payloads(tmp_path / "blobs", "k1"))
    undone: list[tuple[int, str]] = []

    @app.activity
    async def release(said: str, result: str) -> None:
        undone.append((len(said), result))

    @app.activity(compensate=release)
    async def reserve(ctx: ActivityContext, said: str) -> str:
        await ctx.session.execute(text("SELECT 1"))
        ctx.publish("news", said)
        return f"{SECRET} reserved"

    @app.workflow
    async def part(ctx: WorkflowContext, said: str) -> str:
        return said + said

    @app.workflow
    async def whole(ctx: WorkflowContext, said: str, run: int) -> int:
        await ctx.subscribe("news")
        await reserve(said)
        if run == 1:
            await ctx.recur(said, 2)  # with the message unread
        sizes = [len((await ctx.receive("news")).data) for _ in range(2)]
        joined: str = await ctx.child(part, said)
        return sum(sizes) + len(joined)

    @app.workflow
    async def doomed(ctx: WorkflowContext, said: str) -> None:
        await reserve(said)
        raise TerminalError("no")

    async with app:
        handle = await app.start(whole, LARGE, 1)
        assert await handle.result(PATIENCE_S) == 4 * len(LARGE)
        failed = await app.start(doomed, LARGE)
        with pytest.raises(WorkflowFailedError):
            await failed.result(PATIENCE_S)
        assert undone == [(len(LARGE), f"{SECRET} reserved")]
        instance = await failed.get()
        assert instance.input == LARGE
        assert not await app.dead_letters()
        store = app._store
        events = [*await store.history(handle.instance_id, 1), *await store.history(handle.instance_id, 2)]
        raw = b"".join((event.payload or b"") + orjson.dumps(event.attrs) for event in events)
        assert SECRET.encode() not in raw
        assert len(raw) < 20_000
    async with app.client() as client:
        assert await client.handle(handle.instance_id, whole).result(PATIENCE_S) == 4 * len(LARGE)


def with_keys(make_app: MakeApp, folder: Path, keys: Sequence[str]) -> App:
    app = make_app(payloads=payloads(folder, *keys) if keys else None)

    @app.activity
    async def shout(said: str) -> str:
        return said.upper()

    @app.workflow
    async def patient(ctx: WorkflowContext, said: str) -> str:
        heard = await shout(said)
        event = await ctx.wait_event("go", match={"id": ctx.instance_id})
        return f"{heard} {event.data['id']}"

    return app


async def test_a_process_without_the_key_halts_instances_and_one_that_has_it_goes_on(
    make_app: MakeApp, tmp_path: Path
) -> None:
    async def waits(app: App, instance_id: str) -> None:
        async def waiting() -> bool:
            instance = await app.get_instance(instance_id)
            return instance is not None and instance.status == "waiting_for_event"

        await eventually(waiting)

    async with with_keys(make_app, tmp_path, []) as app:  # before there was any encryption
        plain = await app.start_by_name("patient", "plain", instance_id="plain")
        await waits(app, plain.instance_id)
    async with with_keys(make_app, tmp_path, ["k1"]) as app:
        first = await app.start_by_name("patient", SECRET, instance_id="first")
        await waits(app, first.instance_id)
    async with with_keys(make_app, tmp_path, ["k2"]) as app:
        await app.send_event(type="go", data={"id": "first"})

        async def parked() -> str | None:
            instance = await app.get_instance("first")
            return None if instance is None else instance.parked

        assert "'k1'" in str(await eventually(parked))
    async with with_keys(make_app, tmp_path, ["k1", "k2"]) as app:
        assert await app.handle("first").result(PATIENCE_S) == f"{SECRET.upper()} first"
        second = await app.start_by_name("patient", SECRET, instance_id="second")
        for instance_id in ("plain", "second"):
            await app.send_event(type="go", data={"id": instance_id})
        assert await app.handle("plain").result(PATIENCE_S) == "PLAIN plain"
        assert await second.result(PATIENCE_S) == f"{SECRET.upper()} second"


async def test_junk_that_looks_sealed_is_refused_and_nothing_stops(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(payloads=payloads(tmp_path, "k1"))

    @app.workflow
    async def echo(ctx: WorkflowContext, said: str) -> str:
        return said

    junk = b'{"$romancy":"blob","name":"' + b"0" * 64 + b'"}'
    async with app:
        records = []
        for type_, subject in ((w.START, "bad"), (w.SIGNAL, "bad"), ("an.event", None), (w.TO_INSTANCE, "bad")):
            extensions = {w.X_WORKFLOW: "echo", w.X_NAME: "note"}
            event = WireEvent(f"bad-{type_}", "/bad", type_, subject, junk, "2026-01-01T00:00:00Z", extensions)
            headers, value = encode(event)
            records.append(OutRecord(app.topics.commands, b"bad", value, headers))
        for sent in await app._broker.send(records):
            await sent
        with pytest.raises(StartRefusedError, match="is not in the store"):
            await app.handle("bad").result(PATIENCE_S)

        async def all_refused() -> bool:
            return len(await app.dead_letters()) == len(records)

        await eventually(all_refused)
        assert await (await app.start(echo, SECRET)).result(PATIENCE_S) == SECRET
