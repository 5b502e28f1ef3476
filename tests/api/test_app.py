"""Calls of the app and the client at the wrong time, or with what they cannot take: said at once, with the remedy."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import App, BrokerUnavailableError, ConfigurationError, PayloadError, WorkflowContext
from romancy_stream.wire.record import OutRecord
from tests.support import eventually


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App("edges", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 's.db'}")


async def check_refuses(app: App) -> None:
    @app.workflow
    async def anything(ctx: WorkflowContext) -> None: ...

    for call in (
        lambda: app.start(anything),
        lambda: app.send_event(type="t"),
        lambda: app.get_instance("i"),
        lambda: app.list_instances(),
        lambda: app.handle("i").result(),
    ):
        with pytest.raises(ConfigurationError, match="async with app"):
            await call()


async def test_an_app_that_is_not_entered_says_so(app: App) -> None:
    await check_refuses(app)


async def test_an_app_that_was_left_says_so(app: App) -> None:
    async with app:
        assert await app.get_instance("i") is None
    await check_refuses(app)
    async with app:
        assert await app.get_instance("i") is None


async def test_a_client_that_is_not_entered_says_so(app: App) -> None:
    async with app, app.client() as client:
        assert await client.get_instance("i") is None
    for outside in (client, app.client()):
        with pytest.raises(ConfigurationError, match="<Client edges> is not entered"):
            await outside.get_instance("i")


async def test_nobody_is_told_of_an_error_that_comes_after_the_caller_has_gone(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.workflow
    async def anything(ctx: WorkflowContext) -> None: ...

    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with app:
        sent: list[asyncio.Future[int]] = []

        async def send(records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
            answers: list[asyncio.Future[int]] = [asyncio.get_running_loop().create_future() for _ in records]
            sent.extend(answers)
            return answers

        with monkeypatch.context() as slow:  # as where it takes a broker long to acknowledge
            slow.setattr(app._broker, "send", send)
            start = asyncio.create_task(app.start(anything))
            await eventually(lambda: sent)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
        if not sent[0].done():
            sent[0].set_exception(BrokerUnavailableError("the broker was closed"))
        sent.clear()
        del start
    gc.collect()  # what nobody has heard of would be told now
    assert not told


def test_an_unknown_attribute_is_still_an_attribute_error(app: App) -> None:
    assert not hasattr(app, "no_such_thing")


@pytest.mark.parametrize("instance_id", ["", 5])
async def test_an_instance_id_is_a_text(app: App, instance_id: str) -> None:
    async with app:
        with pytest.raises(ValueError, match="instance_id must be a text"):
            await app.start_by_name("anything", instance_id=instance_id)


async def test_a_client_of_an_app_that_was_never_set_up_says_what_to_do(tmp_path: Path) -> None:
    app = App("never", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}")
    async with app.client() as client:
        with pytest.raises(ConfigurationError, match="romancy init"):
            await client.start_by_name("any")


@pytest.mark.parametrize("given", [{"extensions": {"a": 5}}, {"subject": 5}, {"id": 5}, {"source": 5}, {"type": 5}])
async def test_attributes_of_an_event_are_texts(app: App, given: dict[str, Any]) -> None:
    async with app:
        with pytest.raises(PayloadError, match="must be a text, not 5"):
            await app.send_event(**{"type": "t", **given})
