"""Who waits hears of an end whatever else is on the topic, and whatever befalls the tail that reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import App, BrokerUnavailableError, InvalidInputError, StoreUnavailableError, WorkflowContext
from romancy_stream.client import BaseClient
from romancy_stream.engine.commit import Commit, OutboxRow
from romancy_stream.handle import Handle
from romancy_stream.runtime import hub
from romancy_stream.wire import event as w
from romancy_stream.wire.record import OutRecord
from tests.runtime.test_hub_answers import add_counter
from tests.runtime.test_hub_expected import NEVER_S, PATIENCE_S, completed, listening, owning, questions
from tests.support import eventually

Headers = list[tuple[str, bytes]]


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App("trouble", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}")

    @app.workflow
    async def waits_for_go(ctx: WorkflowContext) -> str:
        event = await ctx.wait_event("go")
        return str(event.data)

    @app.workflow
    async def number(ctx: WorkflowContext, number: int) -> int:
        return number

    add_counter(app)
    return app


@pytest.fixture(autouse=True)
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LATE_AFTER_S", NEVER_S)


async def write(client: BaseClient, key: bytes, headers: Headers, value: bytes | None) -> None:
    [sent] = await client._broker.send([OutRecord(client.topics.events, key, value, headers)])
    await sent


async def waiting(client: BaseClient, instance_id: str) -> asyncio.Task[Any]:
    """Somebody who has looked into the database once, and found it running."""
    handle: Handle[Any] = client.handle(instance_id)
    asked = asyncio.create_task(handle.result(timeout=PATIENCE_S))
    await eventually(lambda: instance_id in client._hub._waiters and client._hub._looking is None)
    return asked


def engine(type_: str, workflow: str | None = "waits_for_go") -> Headers:
    """Headers as the engine writes them, as far as anybody looks at them."""
    about = [("ce_type", type_.encode()), ("ce_" + w.X_CAUSATION, b"c")]
    return [*about, *([("ce_" + w.X_WORKFLOW, workflow.encode())] if workflow is not None else [])]


FOREIGN = {
    "no type": ([("ce_id", b"\xff")], b"{}"),
    "type is not utf-8": ([("ce_type", b"\xff\xfe")], b"{}"),
    "a field of the output is missing": (engine(w.COMPLETED), b'{"result":1}'),
    "half of an output": (engine(w.COMPLETED), b'{"output":1'),
    "no json": (engine(w.COMPLETED), b"\xff\x00"),
    "no data": (engine(w.COMPLETED), None),
    "of no workflow": (engine(w.COMPLETED, workflow=None), b'{"output":1}'),
    "failed without an error": (engine(w.FAILED), b"[]"),
    "cancelled without json": (engine(w.CANCELLED), b"{"),
    "cancelled by null": (engine(w.CANCELLED), b"null"),
    "rejected without json": (engine(w.REJECTED), b'{"reason":'),
    "rejected by a list": (engine(w.REJECTED), b'["reason"]'),
    "rejected without data": (engine(w.REJECTED), None),
}


@pytest.mark.parametrize(("headers", "value"), FOREIGN.values(), ids=FOREIGN)
async def test_what_others_write_neither_ends_the_tail_nor_a_wait(
    app: App, monkeypatch: pytest.MonkeyPatch, headers: Headers, value: bytes | None
) -> None:
    async with app, app.client() as client:
        await listening(client)
        for name in "ab":
            await app.start_by_name("waits_for_go", instance_id=name)
        await eventually(lambda: app.get_instance("b"))
        ends = {name: await waiting(client, name) for name in "ab"}
        asked = questions(client, monkeypatch)
        await write(client, b"a", headers, value)
        await write(client, b"\xff", headers, value)
        await write(client, b"", headers, value)
        for name in "ab":
            await app.send_event(type="go", data=name, subject=name)
            assert await ends[name] == name
        assert "b" not in asked
        assert ("a" in asked) == (headers != FOREIGN["type is not utf-8"][0])  # which says nothing of anybody's end


async def test_an_answer_that_cannot_be_read_is_looked_for(app: App) -> None:
    async with app, app.client() as client:
        await app.start_by_name("counter", instance_id="c")
        await app.update("c", "add", 1, timeout=PATIENCE_S)
        found: list[bytes | None] = []

        async def look() -> bytes | None:
            found.append(b'{"ok":true}' if len(found) == 4 else None)
            return found[-1]

        async with asyncio.timeout(PATIENCE_S), client._hub.answer("c", "c", look) as answer:
            for count, value in enumerate([None, b"", b"null", b'{"ok":false}'], 1):
                await write(client, b"c", engine(w.ANSWERED), value)
                await eventually(lambda count=count: len(found) == count)  # type: ignore[misc]
            await write(client, b"c", [("ce_id", b"\xff")], None)
            assert await answer == b'{"ok":true}'


async def test_a_commit_that_cannot_be_heard_does_not_reach_the_processor(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with app:
        await owning(app)
        await app.start_by_name("waits_for_go", instance_id="a")
        await eventually(lambda: app.get_instance("a"))
        end = await waiting(app, "a")
        asked = questions(app, monkeypatch)

        def row(headers: tuple[tuple[str, str], ...], value: bytes | None) -> Commit:
            return Commit(outbox=[OutboxRow(0, 1, app.topics.events, "a", None, headers, value)])

        app._hub.on_commit(row((("ce_type", w.COMPLETED), ("ce_" + w.X_WORKFLOW, "waits_for_go")), b"[]"))
        await eventually(lambda: asked == ["a"])
        app._hub.on_commit(row((("ce_type",),), b""))  # type: ignore[arg-type]  # what nobody has thought of
        await eventually(lambda: asked == ["a", "a"])
        await app.send_event(type="go", data="went", subject="a")
        assert await end == "went"


async def test_records_that_cannot_be_heard_are_a_gap(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is that nobody has thought of."""
    async with app, app.client() as client:
        await listening(client)
        await app.start_by_name("waits_for_go", instance_id="a")
        await eventually(lambda: app.get_instance("a"))
        end = await waiting(client, "a")
        with monkeypatch.context() as patched:
            failed = asyncio.Event()

            def fail(*_: object) -> None:
                failed.set()
                raise ArithmeticError("in the hub")

            patched.setattr(client._hub, "_hear", fail)
            await app.send_event(type="go", data="went", subject="a")
            await asyncio.wait_for(failed.wait(), PATIENCE_S)
            assert await end == "went"
        handle = await client.start_by_name("number", 4)
        assert await handle.result(timeout=PATIENCE_S) == 4


async def lose(client: BaseClient) -> None:
    """From now on nothing is heard, and nothing said of it."""
    await client._hub._tail.stop()


async def test_after_a_gap_everybody_is_looked_for(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app, app.client() as client:
        await listening(client)
        await app.start_by_name("waits_for_go", instance_id="looked for before")
        await eventually(lambda: app.get_instance("looked for before"))
        before = await waiting(client, "looked for before")
        await lose(client)
        expected = await client.start_by_name("number", 4)
        late = asyncio.create_task(expected.result(timeout=PATIENCE_S))
        not_yet = await client.start_by_name("number", 5)
        refused = await client.start_by_name("number", "four")
        rejected = asyncio.create_task(refused.result(timeout=PATIENCE_S))
        await app.send_event(type="go", data="went", subject="looked for before")
        for instance_id in ("looked for before", expected.instance_id, not_yet.instance_id):
            await completed(client, instance_id)
        await eventually(lambda: _is_refused(app, refused.instance_id))
        assert client._hub._late
        client._hub._on_gap(None)
        assert await before == "went"
        assert await late == 4
        assert await not_yet.result(timeout=PATIENCE_S) == 5  # it is not expected any longer
        with pytest.raises(InvalidInputError):
            await rejected


async def _is_refused(app: App, instance_id: str) -> bool:
    return instance_id in (await app._store.known([instance_id])).rejections


async def test_after_a_gap_answers_are_looked_for_until_the_database_is_there(app: App) -> None:
    async with app, app.client() as client:
        found: list[Exception | None] = [StoreUnavailableError("away"), StoreUnavailableError("away"), None]

        async def look() -> bytes:
            if (error := found.pop(0)) is not None:
                raise error
            return b'{"ok":true}'

        async with asyncio.timeout(PATIENCE_S), client._hub.answer("c", "x", look) as answer:
            client._hub._on_gap(None)
            assert await answer == b'{"ok":true}'
        assert not found


async def test_who_waits_is_told_that_the_tail_has_died_and_who_comes_next_listens_anew(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with app, app.client() as client:
        await listening(client)
        await app.start_by_name("waits_for_go", instance_id="a")
        await eventually(lambda: app.get_instance("a"))
        first, second = await waiting(client, "a"), await waiting(client, "a")
        async with client._hub.answer("a", "never sent") as answer:
            expected = await client.start_by_name("number", 4)
            dead = client._hub._tail._task  # type: ignore[attr-defined]
            dead.cancel()
            for future in (first, second, answer):
                with pytest.raises(BrokerUnavailableError, match="was cancelled"):
                    await asyncio.wait_for(future, PATIENCE_S)
        assert await expected.result(timeout=PATIENCE_S) == 4
        asked = questions(client, monkeypatch)
        handle = await client.start_by_name("waits_for_go")
        end = asyncio.create_task(handle.result(timeout=PATIENCE_S))
        await eventually(lambda: handle.instance_id in client._hub._late)
        await app.send_event(type="go", data="heard", subject=handle.instance_id)
        assert await end == "heard"
        assert asked == []


async def test_who_waits_is_told_that_the_log_has_failed(app: App) -> None:
    """It does not come back in this process: nobody waits for that."""
    async with app, app.client() as client:
        await owning(app)
        await app.start_by_name("waits_for_go", instance_id="a")
        await eventually(lambda: app.get_instance("a"))
        remote, local = await waiting(client, "a"), await waiting(app, "a")
        app._broker._log.fail(BrokerUnavailableError("the disk is gone"))  # type: ignore[attr-defined]
        for future in (remote, local):
            with pytest.raises(BrokerUnavailableError, match="the disk is gone"):
                await asyncio.wait_for(future, PATIENCE_S)
        with pytest.raises(BrokerUnavailableError, match="the disk is gone"):
            await client.handle("a").result(timeout=PATIENCE_S)
