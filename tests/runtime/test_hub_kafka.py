"""Who waits for results on a real Kafka: what cannot be shown on the embedded broker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import App, WorkflowContext
from romancy_stream.broker.kafka import KafkaBroker
from romancy_stream.handle import Handle
from romancy_stream.runtime import hub
from tests.broker.kafka_kit import NO_TEXT, append_raw, raw_batch, raw_record, spoil
from tests.runtime.test_hub_expected import NEVER_S, listening
from tests.support import eventually

pytestmark = pytest.mark.kafka

PATIENCE_S = 90


@pytest.fixture(autouse=True)
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LATE_AFTER_S", NEVER_S)


@pytest.fixture
async def app(kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[App]:
    database = f"sqlite:///{tmp_path / 'state.db'}"
    app = App(f"h{uuid.uuid4().hex[:12]}", broker=f"kafka://{kafka_bootstrap}", database=database, partitions=2)

    @app.workflow
    async def waits_for_go(ctx: WorkflowContext) -> str:
        event = await ctx.wait_event("go")
        return str(event.data)

    async with app:
        yield app


@pytest.mark.parametrize("damage", ["name of a header", "checksum"])
async def test_results_are_found_behind_what_cannot_be_read(app: App, damage: str) -> None:
    async with app.client() as client:
        await listening(client)
        for name in "ab":
            await app.start_by_name("waits_for_go", instance_id=name)
        handles: dict[str, Handle[Any]] = {name: client.handle(name) for name in "ab"}
        await eventually(lambda: app.get_instance("a"))
        ends = [asyncio.create_task(each.result(timeout=PATIENCE_S)) for each in handles.values()]
        await eventually(lambda: len(client._hub._waiters) == 2 and client._hub._looking is None)
        broker, tail = client._broker, client._hub._tail
        assert isinstance(broker, KafkaBroker)
        if damage == "checksum":
            spoil(tail, app.topics.events)
        else:
            await append_raw(broker, app.topics.events, raw_batch(raw_record(b"v", [(NO_TEXT, b"v")])))
        for name in "ab":
            await app.send_event(type="go", data=name, subject=name)
        assert await asyncio.gather(*ends) == ["a", "b"]
        assert client._hub._tail is tail
