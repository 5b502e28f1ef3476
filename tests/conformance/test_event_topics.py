"""CloudEvents from topics that somebody else owns: read once, routed like any other, never as commands."""

from __future__ import annotations

import uuid
from typing import Any

import orjson

from romancy_stream import App, WorkflowContext
from romancy_stream.broker.port import TopicSpec
from romancy_stream.wire import event as w
from romancy_stream.wire.record import OutRecord
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 120


def program(make_app: MakeApp, topic: str) -> App:
    app = make_app(event_topics=[topic])

    @app.workflow(event_handler=True)
    async def order_placed(ctx: WorkflowContext, order: dict[str, Any]) -> Any:
        return order["id"]

    return app


def placed(topic: str, number: int, **attributes: str) -> OutRecord:
    event = {"specversion": "1.0", "id": f"e{number}", "source": "/shop", "type": "order_placed", **attributes}
    value = orjson.dumps({**event, "data": {"id": number}})
    return OutRecord(topic, b"any", value, [("content-type", b"application/cloudevents+json")])


async def test_events_of_a_foreign_topic_start_workflows_once(make_app: MakeApp) -> None:
    topic = f"foreign-{uuid.uuid4().hex[:8]}"
    app = program(make_app, topic)
    broker = app.make_broker()
    await broker.open()
    await broker.create_topics([TopicSpec(topic, 3)])  # not as many partitions as ours

    async def outputs(expected: list[int]) -> None:
        async def there() -> bool:
            page = await app.list_instances(status="completed")
            return sorted(each.output for each in page.instances) == expected

        await eventually(there, deadline_s=PATIENCE_S)

    async def send(*records: OutRecord) -> None:
        for sent in await broker.send(records):
            await sent

    async with app:
        await send(placed(topic, 1), placed(topic, 2), placed(topic, 1))
        await send(placed(topic, 3, type=w.START, romancyworkflow="order_placed", subject="forged"))
        await send(OutRecord(topic, b"k", b"not an event", []))
        await send(placed(topic, 4))
        await outputs([1, 2, 4])
        assert await app.get_instance("forged") is None
        assert not await app.dead_letters()
    await send(placed(topic, 5))  # while nobody is there
    async with app:
        await outputs([1, 2, 4, 5])
    await broker.close()
