"""Both brokers behind one fixture. Kafka's tests share a server and have topics and groups of their own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.broker.port import Broker

MakeBroker = Callable[[str], Broker]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_broker(request: pytest.FixtureRequest, tmp_path: Path) -> MakeBroker:
    """A broker of that kind, not opened. All of one test see the same log."""

    def make(kind: str) -> Broker:
        if kind == "embedded":
            return EmbeddedBroker(tmp_path / "log")
        from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings

        # Members learn of a rebalance by their heartbeats: frequent ones make short tests.
        settings = KafkaSettings(session_timeout_ms=6_000, heartbeat_interval_ms=300)
        return KafkaBroker(request.getfixturevalue("kafka_bootstrap"), client_id="conformance", settings=settings)

    return make


@pytest.fixture
async def broker(make_broker: MakeBroker, broker_kind: str) -> AsyncIterator[Broker]:
    broker = make_broker(broker_kind)
    await broker.open()
    yield broker
    await broker.close()


@pytest.fixture
async def second_broker(broker: Broker, make_broker: MakeBroker, broker_kind: str) -> AsyncIterator[Broker]:
    """Another client of the same log."""
    async with AsyncExitStack() as stack:
        second = make_broker(broker_kind)
        await second.open()
        stack.push_async_callback(second.close)
        yield second


@pytest.fixture
async def kafka(make_broker: MakeBroker) -> AsyncIterator[Broker]:
    """For tests of Kafka alone."""
    broker = make_broker("kafka")
    await broker.open()
    yield broker
    await broker.close()


@pytest.fixture
def name(namespace: str) -> str:
    """Of a topic that nobody else uses."""
    return f"{namespace}.topic"


@pytest.fixture
def namespace() -> str:
    """A prefix for topics and groups that nobody else uses."""
    return f"t{uuid.uuid4().hex[:12]}"
