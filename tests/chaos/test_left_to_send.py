"""Messages that were decided and could not be sent: refused by the broker, or left behind by a worker that died between
its commit and its send."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from romancy_stream import ActivityContext, App, WorkflowContext
from romancy_stream.broker.port import Broker, OutRecord, TopicSpec
from romancy_stream.errors import BrokerUnavailableError
from tests.chaos.checks import Tables, at_least, check, read_events, tables
from tests.chaos.program import PARTITIONS, program
from tests.chaos.scene import SESSION, start_all
from tests.support import eventually

PATIENCE_S = 120
"""A refused row is tried again every half minute."""


def teller(name: str, broker: str, database: str) -> App:
    """With workflows that publish to a topic which is not there, from their code or from an activity."""
    app = program(name, broker=broker, database=database, eager=False)  # a task waits behind what is refused

    @app.activity
    async def tell(ctx: ActivityContext, topic: str) -> str:
        ctx.publish_event(type="told", data="by an activity", topic=topic)
        return topic

    @app.workflow
    async def telling(ctx: WorkflowContext, topic: str) -> str:
        ctx.publish_event(type="told", data="by a workflow", topic=topic)
        await ctx.sleep(6)  # the broker takes its time before it says no
        return await tell(topic)

    @app.workflow
    async def asking(ctx: WorkflowContext, topic: str) -> str:
        return await tell(topic)

    return app


@pytest.mark.kafka
async def test_a_topic_that_is_not_there(namespace: str, kafka_bootstrap: str, sqlite_db: str) -> None:
    """What is refused holds up its own instance, also over a restart, until somebody makes the topic."""
    app = teller(namespace, f"kafka://{kafka_bootstrap}{SESSION}", sqlite_db)
    missing = f"{namespace}.missing"
    async with tables(app) as looking:
        async with app:
            await app.start_by_name("telling", missing, instance_id="held-up")
            await app.start_by_name("asking", missing, instance_id="asks")
            others = [await app.start_by_name("steps", n, instance_id=f"free-{n}") for n in range(3 * PARTITIONS)]
            assert [await each.result(timeout=PATIENCE_S) for each in others] == list(range(3, 3 * PARTITIONS + 3))
            assert await app.handle("asks").result(timeout=PATIENCE_S) == missing
            await eventually(partial(refused, looking, missing), deadline_s=PATIENCE_S)
            await eventually(partial(asked_for_its_step, app), deadline_s=PATIENCE_S)
        async with app:
            await app.wait_assigned()
            assert await refused(looking, missing)
            await app._broker.create_topics([TopicSpec(missing, 1)])
            assert await app.handle("held-up").result(timeout=PATIENCE_S) == missing
            told = [event.data for event in await read_events(app._broker, missing)]
            assert told[0] == b'"by a workflow"'
            assert await looking.rows("SELECT * FROM v_stuck") == []


async def refused(looking: Tables, topic: str) -> bool:
    rows = await looking.rows("SELECT kind, instance_id, detail FROM v_stuck")
    return [(row.kind, row.instance_id) for row in rows] == [("refused", "held-up")] and topic in rows[0].detail


async def asked_for_its_step(app: App) -> bool:
    return [entry.kind for entry in await app.history("held-up")][-1:] == ["activity.scheduled"]


# -- orphans ---------------------------------------------------------------------------------------------------------


class Deaf:
    """A broker that takes nothing more for one topic: what a worker committed stays unsent."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self._topic = topic

    def __getattr__(self, name: str) -> object:
        return getattr(self._broker, name)

    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        if any(record.topic == self._topic for record in records):
            raise BrokerUnavailableError("on purpose")
        return await self._broker.send(records)


class DyingApp(App):
    """Its workers commit and never send."""

    def make_broker(self) -> Broker:
        return Deaf(super().make_broker(), self.topics.results)  # type: ignore[return-value]


@pytest.mark.parametrize("database", ["sqlite_db", pytest.param("postgres_db", marks=pytest.mark.postgres)])
async def test_what_a_dead_worker_left_is_sent_by_the_owner_of_the_partition(
    database: str, namespace: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_stream.runtime.node.DRAIN_S", 0.1)
    place = {"broker": f"embedded://{tmp_path / 'log'}", "database": request.getfixturevalue(database)}
    app, dying = program(namespace, **place), program(namespace, kind=DyingApp, eager=False, **place)
    work = [(f"writing-{number}", "writing", number) for number in range(6)]
    async with tables(app) as looking:
        async with dying:
            await start_all(dying, work)
            unsent = partial(looking.number, "SELECT count(*) FROM romancy_activity_results")
            await eventually(at_least(unsent, 1), deadline_s=PATIENCE_S)  # then it takes no more tasks
        assert await looking.number("SELECT count(*) FROM romancy_history WHERE kind = 'activity.completed'") == 0
        orphans = await unsent()
        await looking.execute("UPDATE romancy_worker_outbox SET at_us = at_us - 60000000")
        async with app.running(roles=["engine"]):  # no worker sees the tasks again
            done = partial(
                looking.number, "SELECT count(*) FROM romancy_history WHERE ref = 'write:1' AND kind LIKE '%completed'"
            )
            await eventually(at_least(done, orphans), deadline_s=PATIENCE_S)
            assert await looking.rows("SELECT * FROM romancy_worker_outbox") == []
        async with app:
            for instance_id, _, number in work:
                assert await app.handle(instance_id).result(timeout=PATIENCE_S) == number + 1
        await check(app, looking, work)


async def test_refused_rows_are_passed_by(namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, what lies behind them is sent."""
    monkeypatch.setattr("romancy_stream.runtime.sweeper.ROWS_AT_ONCE", 2)
    app = teller(namespace, f"embedded://{tmp_path / 'log'}", f"sqlite:///{tmp_path / 'state.db'}")
    missing = f"{namespace}.missing"
    async with tables(app) as looking, app:
        for number in range(7):
            await app.start_by_name("asking", missing, instance_id=f"asks-{number}")
        for number in range(7):
            await app.handle(f"asks-{number}").result(timeout=PATIENCE_S)
        await eventually(partial(rows_left, looking, 7), deadline_s=PATIENCE_S)
        behind = "UPDATE romancy_worker_outbox SET topic = :topic WHERE seq IN (SELECT seq FROM romancy_worker_outbox "
        await looking.execute(behind + "ORDER BY at_us DESC, seq DESC LIMIT 3)", topic=app.topics.events)
        await looking.execute("UPDATE romancy_worker_outbox SET at_us = at_us - 60000000")
        assert app._node is not None
        assert app._node.engine is not None
        assert await app._node.engine._sweeper.sweep() == 3
        assert len(await looking.rows("SELECT * FROM romancy_worker_outbox")) == 4
        await app._broker.create_topics([TopicSpec(missing, 1)])
        assert await app._node.engine._sweeper.sweep() == 4
        assert await looking.rows("SELECT * FROM romancy_worker_outbox") == []


async def rows_left(looking: Tables, count: int) -> bool:
    return len(await looking.rows("SELECT * FROM romancy_worker_outbox")) == count
