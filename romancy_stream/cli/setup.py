"""`init`, `migrate`, `topics`: what an app needs in its database and its broker before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from romancy_stream.cli import output
from romancy_stream.cli.kafka import topic_configs
from romancy_stream.cli.running import opened_store, run
from romancy_stream.cli.target import Target
from romancy_stream.wire.manifest import topic_specs

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.broker.port import Broker

topics = typer.Typer(
    help="The topics of the app: make them, compare them with what the app needs.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


def init(app: Target) -> None:
    """Apply migrations that are missing and create topics that are missing."""
    run(_init(app))


async def _init(app: App) -> None:
    migrations, topics = await make_ready(app)
    _report("migration", migrations)
    _report("topic", topics)


async def make_ready(app: App) -> tuple[list[str], list[str]]:
    """Names of the migrations and the topics that were missing; of all the app's queues."""
    from romancy_stream.runtime.node import initialise

    broker = app.make_broker()
    async with opened_store(app, tables=False) as store:
        await broker.open()
        try:
            migrations, topics = await initialise(app.node_config(), broker, store)
        finally:
            await broker.close()
    return list(migrations), list(topics)


def migrate(app: Target) -> None:
    """Apply migrations that are missing. Touches the database only."""
    run(_migrate(app))


async def _migrate(app: App) -> None:
    async with opened_store(app, tables=False) as store:
        applied = await store.migrate()
        await store.prepare(app.namespace, app.partitions)
        await store.make_searchable(app.searchable)
    _report("migration", applied)


def _report(what: str, names: list[str]) -> None:
    for name in names:
        print(f"{what} {output.clean(name)}")
    if not names:
        print(f"{what}s: nothing was missing")


# -- topics --------------------------------------------------------------------------------------------------------
@topics.command("create")
def create(app: Target) -> None:
    """Create topics that are missing. Never alters one that is there."""
    run(_create(app))


async def _create(app: App) -> None:
    broker = app.make_broker()
    await broker.open()
    try:
        made = await broker.create_topics(topic_specs(app.namespace, app.partitions, app.queues))
    finally:
        await broker.close()
    _report("topic", made)


@topics.command("list")
def list_(app: Target, as_json: Json = False) -> None:
    """Compare the topics that the app needs with those of the broker. Exit code 1 when they differ."""
    compared = run(_compare(app))
    if as_json:
        output.print_json([topic.as_json() for topic in compared])
    else:
        rows = [[t.name, str(t.wanted), "" if t.found is None else str(t.found), t.state, t.about] for t in compared]
        output.print_table(["topic", "partitions wanted", "found", "state", "differences"], rows)
    if any(topic.state != "ok" for topic in compared):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class TopicState:
    """`wanted` and `found` count partitions; `found` None: no such topic. `config`: name -> (wanted, found), those
    that differ."""

    name: str
    wanted: int
    found: int | None
    config: dict[str, tuple[str, str]]

    @property
    def state(self) -> str:
        if self.found is None:
            return "missing"
        return "ok" if self.found == self.wanted and not self.config else "differs"

    @property
    def about(self) -> str:
        told = [] if self.found in (None, self.wanted) else ["number of partitions"]
        return "; ".join(
            told + [f"{name} is {found}, wanted {wanted}" for name, (wanted, found) in sorted(self.config.items())]
        )

    def as_json(self) -> dict[str, Any]:
        config = {name: {"wanted": wanted, "found": found} for name, (wanted, found) in sorted(self.config.items())}
        return {
            "topic": self.name,
            "state": self.state,
            "partitions": {"wanted": self.wanted, "found": self.found},
            "config": config,
        }


async def _compare(app: App) -> list[TopicState]:
    broker = app.make_broker()
    await broker.open()
    try:
        return await compare_topics(app, broker)
    finally:
        await broker.close()


async def compare_topics(app: App, broker: Broker) -> list[TopicState]:
    """The embedded log takes the manifest's configuration when it makes a topic; only Kafka's can differ."""
    found = await broker.topics()
    specs = topic_specs(app.namespace, app.partitions, app.queues)
    configs = await topic_configs(broker, [spec.name for spec in specs if spec.name in found])
    states = []
    for spec in specs:
        there = configs.get(spec.name, {})
        differing = {
            name: (value, there[name]) for name, value in spec.config.items() if there.get(name, value) != value
        }
        topic = found.get(spec.name)
        states.append(TopicState(spec.name, spec.partitions, None if topic is None else topic.partitions, differing))
    return states
