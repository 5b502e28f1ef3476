"""Ends that have to come by are not asked for, and those that may not have come by are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from romancy_stream import App, InvalidInputError, WorkflowContext
from romancy_stream.client import BaseClient
from romancy_stream.runtime import hub
from romancy_stream.wire.record import OutRecord
from tests.support import eventually

PATIENCE_S = 60
NEVER_S = 3_600.0


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App("expected", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}")

    @app.workflow
    async def double(ctx: WorkflowContext, number: int) -> int:
        return 2 * number

    @app.workflow
    async def countdown(ctx: WorkflowContext, number: int) -> str:
        if number:
            await ctx.recur(number - 1)
        return "done"

    @app.workflow
    async def waits_for_go(ctx: WorkflowContext) -> str:
        event = await ctx.wait_event("go")
        return str(event.data)

    return app


@pytest.fixture(autouse=True)
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LATE_AFTER_S", NEVER_S)


def questions(client: BaseClient, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the ids that are looked for from now on."""
    asked: list[str] = []
    look = client._hub._look

    async def counted(ids: Sequence[str]) -> None:
        asked.extend(ids)
        await look(ids)

    monkeypatch.setattr(client._hub, "_look", counted)
    return asked


async def listening(client: BaseClient) -> BaseClient:
    await client._hub._listen()
    return client


async def owning(app: App) -> None:
    await eventually(lambda: app._hub._is_local("any"), deadline_s=PATIENCE_S)


async def completed(client: BaseClient, instance_id: str) -> None:
    async def has() -> bool:
        instance = await client.get_instance(instance_id)
        return instance is not None and instance.status == "completed"

    await eventually(has, deadline_s=PATIENCE_S)


@pytest.mark.parametrize("remote", [True, False], ids=["client", "app"])
async def test_who_listens_is_told(app: App, monkeypatch: pytest.MonkeyPatch, remote: bool) -> None:
    async with app, app.client() as other:
        client: BaseClient = await listening(other) if remote else app
        await owning(app)
        asked = questions(client, monkeypatch)
        waiting = await client.start_by_name("waits_for_go")
        ended = asyncio.create_task(waiting.result(timeout=PATIENCE_S))
        async with asyncio.timeout(PATIENCE_S):
            await client.send_event(type="go", data="went", subject=waiting.instance_id)
            assert await ended == "went"
        assert asked == []
        assert not client._hub._late


async def test_who_did_not_listen_before_the_start_asks(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app, app.client() as client:
        asked = questions(client, monkeypatch)
        handle = await client.start_by_name("double", 4)
        assert await handle.result(timeout=PATIENCE_S) == 8
        assert asked == [handle.instance_id]


async def test_an_end_that_came_before_the_wait_is_asked_for(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app, app.client() as client:
        asked = questions(await listening(client), monkeypatch)
        handle = await client.start_by_name("countdown", 3)
        await eventually(lambda: not client._hub._expected, deadline_s=PATIENCE_S)
        assert asked == []
        assert await handle.result(timeout=PATIENCE_S) == "done"
        assert await handle.result(timeout=PATIENCE_S) == "done"
        assert asked == 2 * [handle.instance_id]


async def test_an_id_that_was_given_is_asked_for(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app, app.client() as client:
        asked = questions(await listening(client), monkeypatch)
        for _ in range(2):
            handle = await client.start_by_name("double", 4, instance_id="d")
            assert await handle.result(timeout=PATIENCE_S) == 8
        assert asked == ["d", "d"]


async def test_many_starts_are_expected_where_their_ids_are_new(app: App) -> None:
    @app.workflow
    async def waits(ctx: WorkflowContext, number: int) -> None:
        await ctx.wait_event("go")

    async with app, app.client() as client:
        await listening(client)
        await client.start_many(waits, [], instance_ids=[])
        await client.start_many(waits, [1, 2], instance_ids=["a", "b"])
        assert not client._hub._expected
        sent = await client.start_many(waits, [3, 4])
        assert list(client._hub._expected) == [each.instance_id for each in sent]


async def test_a_refusal_is_told(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app, app.client() as client:
        await listening(client)
        refused = await client.start_by_name("double", "many")
        with pytest.raises(InvalidInputError):
            await refused.result(timeout=PATIENCE_S)


async def test_what_was_lost_is_found_when_it_is_late(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LATE_AFTER_S", 0.05)
    async with app, app.client() as client:
        await listening(client)
        asked = questions(client, monkeypatch)
        await client._hub._tail.stop()
        handles = [await client.start_by_name("double", n) for n in range(3)]
        for each in handles:
            await completed(client, each.instance_id)
        results = await asyncio.gather(*(each.result(timeout=PATIENCE_S) for each in handles))
        assert results == [0, 2, 4]
        assert sorted(asked) == sorted(each.instance_id for each in handles)
        await eventually(lambda: client._hub._late_timer is None, deadline_s=PATIENCE_S)


async def test_who_comes_back_asks_at_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app, app.client() as client:
        await listening(client)
        await client._hub._tail.stop()
        handle = await client.start_by_name("double", 4)
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.01)
        assert not client._hub._late
        await completed(client, handle.instance_id)
        assert await handle.result(timeout=PATIENCE_S) == 8


async def test_a_change_of_owners_ends_expectations(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app:
        await owning(app)
        asked = questions(app, monkeypatch)
        handle = await app.start_by_name("waits_for_go")
        assert handle.instance_id in app._hub._expected
        app._hub.on_ownership()
        await app.send_event(type="go", data="went", subject=handle.instance_id)
        assert await handle.result(timeout=PATIENCE_S) == "went"
        assert asked == [handle.instance_id]


async def test_few_are_remembered_and_the_others_asked_for(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "EXPECTED_LIMIT", 3)
    async with app, app.client() as client:
        asked = questions(await listening(client), monkeypatch)
        handles = [await client.start_by_name("waits_for_go") for _ in range(5)]
        assert list(client._hub._expected) == [each.instance_id for each in handles[2:]]
        results = asyncio.gather(*(each.result(timeout=PATIENCE_S) for each in handles))
        for each in handles:
            await client.send_event(type="go", data="went", subject=each.instance_id)
        assert await results == 5 * ["went"]
        assert asked == [each.instance_id for each in handles[:2]]


async def test_what_cannot_be_read_makes_all_ask_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app, app.client() as client:
        await listening(client)
        asked = questions(client, monkeypatch)
        handle = await client.start_by_name("waits_for_go")
        result = asyncio.create_task(handle.result(timeout=PATIENCE_S))
        await eventually(lambda: handle.instance_id in client._hub._late, deadline_s=PATIENCE_S)
        key = handle.instance_id.encode()
        [sent] = await client._broker.send([OutRecord(client.topics.events, key, b"{}", [("ce_id", b"\xff")])])
        await sent
        await eventually(lambda: asked == [handle.instance_id], deadline_s=PATIENCE_S)
        await client.send_event(type="go", data="went", subject=handle.instance_id)
        assert await result == "went"
