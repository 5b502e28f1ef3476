"""The worker on a real Kafka: what the embedded broker cannot show."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from romancy_stream import ActivityContext, activity
from romancy_stream.wire import event as w
from tests.runtime.worker_kit import Bench, OrderRow, bench_on
from tests.support import eventually

pytestmark = pytest.mark.kafka


@activity
async def save(ctx: ActivityContext, n: int) -> int:
    ctx.session.add(OrderRow(order_id=f"o{n}", amount=n))
    ctx.publish_event(type="order.saved", data=n)
    return n


@activity
async def double(n: int) -> int:
    return 2 * n


@pytest.fixture
async def kafka_bench(kafka_bootstrap: str, sqlite_db: str) -> AsyncIterator[Bench]:
    from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings

    settings = KafkaSettings(session_timeout_ms=6_000, heartbeat_interval_ms=300)
    broker = KafkaBroker(kafka_bootstrap, client_id="worker-test", settings=settings)
    async with bench_on(broker, sqlite_db, f"w{uuid.uuid4().hex[:12]}") as made:
        yield made


async def test_tasks_run_once_over_a_change_of_workers(kafka_bench: Bench) -> None:
    bench = kafka_bench
    first = await bench.worker(save, double)
    for n in range(20):
        await bench.request("save", n, instance=f"s{n}")
        await bench.request("double", n, instance=f"d{n}")
    results = await bench.results_of(40, deadline_s=120)
    assert {each.type for each in results} == {w.ACTIVITY_COMPLETED}
    assert len(await bench.orders()) == 20
    assert sorted(each.data for each in bench.events) == list(range(20))
    await bench.no_outbox()
    await bench.stop(first)
    second = await bench.worker(save, double)
    await bench.request("double", 100, instance="a", partition=0)
    await bench.request("double", 100, instance="b", partition=1)
    await bench.results_of(42, deadline_s=120)
    statistics = second.statistics()
    assert (statistics.completed, statistics.resent) == (2, 0)


async def test_a_worker_that_joins_takes_over_and_leaves_the_work_under_way_where_it_is(kafka_bench: Bench) -> None:
    bench, go, entered = kafka_bench, asyncio.Event(), []

    @activity
    async def slow(ctx: ActivityContext, n: int) -> int:
        entered.append(n)
        await go.wait()
        ctx.session.add(OrderRow(order_id=f"o{n}", amount=n))
        return n

    first = await bench.worker(slow)
    for n in range(4):
        await bench.request("slow", n, instance=f"i{n}", partition=n % 2)
    await eventually(lambda: len(entered) == 4, deadline_s=120)
    second = await bench.worker(slow)
    await eventually(lambda: len(first._queues[0].progress) == len(second._queues[0].progress) == 1, deadline_s=120)
    for n in range(4, 6):
        await bench.request("slow", n, instance=f"i{n}", partition=n % 2)
    await eventually(lambda: len(entered) == 6, deadline_s=120)
    assert (first.statistics().detached, second.statistics().running) == (4, 1)
    go.set()
    results = await bench.results_of(6, deadline_s=120)
    assert len({each.event.id for each in results}) == 6
    assert [amount for _, amount in await bench.orders()] == [0, 1, 2, 3, 4, 5]
    assert sorted(entered) == [0, 1, 2, 3, 4, 5]


async def test_a_message_for_a_topic_that_does_not_exist_stays_and_stops_nobody(kafka_bench: Bench) -> None:
    @activity
    async def tell(ctx: ActivityContext) -> str:
        ctx.publish_event(type="told", topic=f"{kafka_bench.namespace}.nowhere")
        return "told"

    await kafka_bench.worker(tell)
    await kafka_bench.request("tell")
    assert (await kafka_bench.results_of(1, deadline_s=120))[0].data == "told"
    assert len([row for row in await kafka_bench.outbox() if row.topic.endswith(".nowhere")]) == 1
