"""init, migrate, topics."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from romancy_stream.broker.kafka import KafkaBroker
from romancy_stream.broker.port import TopicSpec
from romancy_stream.store.migrate import migrations
from tests.cli.conftest import Project

TOPICS = ["shop.commands", "shop.results", "shop.events", "shop.tasks.default", "shop.tasks.slow", "shop.dlq"]
MIGRATIONS = [migration.name for migration in migrations("sqlite")]


def test_init_makes_what_is_missing_once(project: Project) -> None:
    assert project.run("init", "@").out.splitlines() == [
        *(f"migration {name}" for name in MIGRATIONS),
        *(f"topic {name}" for name in TOPICS),
    ]
    assert project.run("init", "@").out.splitlines() == [
        "migrations: nothing was missing",
        "topics: nothing was missing",
    ]


def test_migrate_touches_the_database_alone(project: Project) -> None:
    assert project.run("migrate", "@").out.splitlines() == [f"migration {name}" for name in MIGRATIONS]
    assert [path.name for path in project.folder.glob(".romancy/shop/broker*")] == []
    assert project.run("verify", "@").out.startswith("0 instances")
    assert project.run("migrate", "@").out == "migrations: nothing was missing\n"


def test_topics(project: Project) -> None:
    before = project.run("topics", "list", "@", ok=False)
    assert before.code == 1
    assert [line.split() for line in before.out.splitlines()[1:]] == [
        [name, "1" if name == "shop.dlq" else "4", "missing"] for name in TOPICS
    ]
    assert project.run("topics", "create", "@").out.splitlines() == [f"topic {name}" for name in TOPICS]
    assert not (project.folder / ".romancy/shop/state.db").exists()
    told = project.run("topics", "list", "@", "--json").json
    assert [(topic["topic"], topic["state"]) for topic in told] == [(name, "ok") for name in TOPICS]
    assert told[0]["partitions"] == {"wanted": 4, "found": 4}


def test_another_number_of_partitions_is_shown(project: Project) -> None:
    project.run("topics", "create", "@")
    project.app.partitions = 5
    told = project.run("topics", "list", "@", "--json", ok=False)
    assert told.code == 1
    assert {topic["state"] for topic in told.json} == {"differs", "ok"}
    assert told.json[0] == {
        "topic": "shop.commands",
        "state": "differs",
        "partitions": {"wanted": 5, "found": 4},
        "config": {},
    }


@pytest.mark.kafka
def test_topics_on_kafka(project: Project, kafka_bootstrap: str) -> None:
    app = project.app
    app.namespace = f"t{uuid.uuid4().hex[:12]}"
    app.broker_url = f"kafka://{kafka_bootstrap}"
    name = f"{app.namespace}.events"

    async def make_one_differently() -> None:
        broker = KafkaBroker(app.broker_url, client_id="test")
        await broker.open()
        try:
            await broker.create_topics([TopicSpec(name, 3, {"retention.ms": "60000", "cleanup.policy": "delete"})])
        finally:
            await broker.close()

    asyncio.run(make_one_differently())
    made = project.run("topics", "create", "@").out.splitlines()
    assert len(made) == 5
    assert f"topic {name}" not in made
    answer = project.run("topics", "list", "@", "--json", ok=False)
    assert answer.code == 1
    told = {topic["topic"]: topic for topic in answer.json}
    assert {topic["state"] for other, topic in told.items() if other != name} == {"ok"}
    assert told[name]["state"] == "differs"
    assert told[name]["partitions"] == {"wanted": 4, "found": 3}
    assert told[name]["config"]["retention.ms"] == {"wanted": "1209600000", "found": "60000"}
    assert "cleanup.policy" not in told[name]["config"]
    assert "retention.ms is 60000, wanted 1209600000" in project.run("topics", "list", "@", ok=False).out
