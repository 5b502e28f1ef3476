"""What `romancy doctor` looks at, one function a subject. Each yields findings and changes nothing. A subject that
cannot be asked is a finding as well, never an exception."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, Final, Literal

from sqlalchemy import func, select, text

from romancy_stream.app import App
from romancy_stream.broker.kafka import KafkaBroker
from romancy_stream.broker.port import TP, Broker
from romancy_stream.cli import kafka
from romancy_stream.cli.running import described, is_embedded
from romancy_stream.cli.setup import compare_topics
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError, RomancyError
from romancy_stream.store import tables
from romancy_stream.store.database import MYSQL, POSTGRESQL, SQLITE
from romancy_stream.store.migrate import applied_migrations, migrations
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.event import RESERVED_PREFIX, Topics

Status = Literal["ok", "warn", "fail"]

CLOCK_LIMIT_S: Final = 2.0
"""The engine goes by the database's clock alone. Beyond this, log lines and histories are hard to lay side by side."""
LAG_LIMIT: Final = 10_000
"""Records that wait for the engine: several seconds of work, so nobody keeps up, or nobody runs."""
LEAST_VERSIONS: Final = {
    "PostgreSQL": (14, 0),
    "MariaDB": (10, 6),
    "MySQL": (8, 0),
    "SQLite": (3, 38),
}
LIBRARIES: Final = (
    "faust-streaming",
    "aiokafka",
    "sqlalchemy",
    "asyncpg",
    "aiosqlite",
    "asyncmy",
    "pydantic",
    "orjson",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """`todo`: what to do about it, where there is something to do."""

    status: Status
    subject: str
    told: str
    todo: str = ""


# -- this installation ------------------------------------------------------------------------------------------------
def installation(app: App) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {sys.platform}")
    found = {name: _version(name) for name in ("romancy-stream", *LIBRARIES)}
    told = ", ".join(f"{name} {number}" for name, number in found.items() if number is not None)
    yield Finding("ok", "libraries", told)
    yield _faust_pin(found["faust-streaming"], needed=not is_embedded(app))
    try:
        app.registry.resolve()
    except ConfigurationError as error:
        yield Finding("fail", "app", described(error), "correct the type hint")
    else:
        workflows = [name for name in app.registry.workflows if not name.startswith(RESERVED_PREFIX)]
        counts = f"{len(workflows)} workflows, {len(app.registry.activities)} activities"
        yield Finding("ok", "app", f"{app.namespace}: {counts}, queues: {', '.join(app.queues)}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _faust_pin(found: str | None, *, needed: bool) -> Finding:
    pins = [re.match(r"faust-streaming==([\w.]+)", each) for each in requires("romancy-stream") or ()]
    wanted = next((pin[1] for pin in pins if pin is not None), None)
    if found == wanted:
        return Finding("ok", "faust", f"{found}, the version that the engine was made for")
    told = f"faust-streaming {found or 'is not installed'}, the engine was made for {wanted}"
    return Finding("fail" if needed else "warn", "faust", told, f"pip install faust-streaming=={wanted}")


# -- the database ------------------------------------------------------------------------------------------------------
async def database(app: App, store: SqlStore) -> AsyncIterator[Finding]:
    """Ends early where the rest would only repeat the first failure."""
    shown = store.db.url.set(drivername=store.db.dialect).render_as_string(hide_password=True)
    try:
        product, number = await _server_version(store)
    except RomancyError as error:
        yield Finding("fail", "database", described(error), "start it, or correct the URL")
        return
    least = LEAST_VERSIONS[product]
    if _numbers(number) < least:
        yield Finding("fail", "database", f"{product} {number}", f"use {product} {least[0]}.{least[1]} or newer")
    else:
        yield Finding("ok", "database", f"{product} {number} at {shown}")
    yield await _clock(store)
    applied = await applied_migrations(store.db)
    finding = _migrations(applied, store.db.dialect)
    yield finding
    if finding.status != "fail":
        yield await _facts(app, store)
        async for each in _attention(store):
            yield each


async def _server_version(store: SqlStore) -> tuple[str, str]:
    statement = {
        POSTGRESQL: "SHOW server_version",
        MYSQL: "SELECT VERSION()",
        SQLITE: "SELECT sqlite_version()",
    }[store.db.dialect]
    async with store.db.reading("ask for the version") as connection:
        number = str((await connection.execute(text(statement))).scalar_one())
    product = {POSTGRESQL: "PostgreSQL", MYSQL: "MySQL", SQLITE: "SQLite"}[store.db.dialect]
    return ("MariaDB", number) if "mariadb" in number.lower() else (product, number)


def _numbers(number: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", number)[:2])


async def _clock(store: SqlStore) -> Finding:
    before = time.time_ns() // 1_000
    theirs = await store.now_us()
    after = time.time_ns() // 1_000
    ahead_s = (theirs - (before + after) // 2) / 1_000_000
    told = f"the database's is {abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    if abs(ahead_s) <= CLOCK_LIMIT_S:
        return Finding("ok", "clock", told)
    return Finding("warn", "clock", told, "synchronise both; the engine itself goes by the database's clock")


def _migrations(applied: dict[str, str] | None, dialect: str) -> Finding:
    wanted = {migration.name: migration.checksum for migration in migrations(dialect)}
    if applied is None:
        return Finding("fail", "migrations", "none was applied", "romancy migrate MODULE:APP")
    if changed := [name for name in wanted.keys() & applied.keys() if wanted[name] != applied[name]]:
        told = f"applied with another content: {', '.join(sorted(changed))}"
        return Finding("fail", "migrations", told, "restore the files that were released")
    if missing := sorted(wanted.keys() - applied.keys()):
        return Finding("fail", "migrations", f"missing: {', '.join(missing)}", "romancy migrate MODULE:APP")
    if ahead := sorted(applied.keys() - wanted.keys()):
        return Finding("fail", "migrations", f"of a newer version: {', '.join(ahead)}", "upgrade romancy-stream")
    return Finding("ok", "migrations", f"{len(wanted)} applied, none missing")


async def _facts(app: App, store: SqlStore) -> Finding:
    """The database belongs to this app, with as many partitions."""
    parts = tables.partitions.c
    async with store.db.reading("read what the database was made for") as connection:
        facts = {row.name: row.value for row in await connection.execute(select(tables.meta))}
        count = (await connection.execute(select(func.count()).select_from(tables.partitions))).scalar_one()
        owners = (await connection.execute(select(parts.owner).distinct().where(parts.owner.is_not(None)))).scalars()
        names = sorted(owner.rpartition("/")[0] for owner in owners)
    if not count:
        return Finding("fail", "partitions", "the database was never prepared for an app", "romancy init MODULE:APP")
    if facts.get("namespace") != app.namespace:
        told = f"the database belongs to the app {facts.get('namespace')!r}, not to {app.namespace!r}"
        return Finding("fail", "partitions", told, "give each app a database of its own, or correct the name")
    if count != app.partitions:
        told = f"the database has {count}, the app asks for {app.partitions}"
        return Finding("fail", "partitions", told, f"App(partitions={count}), or start with a new database")
    return Finding("ok", "partitions", f"{count}, last taken over by {', '.join(names) or 'nobody yet'}")


async def _attention(store: SqlStore) -> AsyncIterator[Finding]:
    """What waits for a human."""
    statement = text("SELECT kind, COUNT(*) FROM v_stuck GROUP BY kind")
    async with store.db.reading("count what is stuck") as connection:
        counts = {str(kind): int(count) for kind, count in await connection.execute(statement)}
        unsent = (await connection.execute(select(func.count()).select_from(tables.outbox))).scalar_one()
    todos = {
        "dead_letter": "romancy dlq list MODULE:APP",
        "parked": "romancy list MODULE:APP shows why; deploy code that agrees with the history",
        "backing_off": "see the view v_stuck: these activities fail again and again",
        "refused": "see the view v_stuck: the broker takes neither these nor what follows under the same key",
    }
    names = {"dead_letter": "dead letters", "backing_off": "backing off", "refused": "refused messages"}
    for kind, todo in todos.items():
        count = counts.get(kind, 0)
        yield Finding("warn" if count else "ok", names.get(kind, kind), str(count), todo if count else "")
    yield Finding("ok", "outbox", f"{unsent} messages whose arrival is not recorded yet")


# -- the broker --------------------------------------------------------------------------------------------------------
async def broker(app: App, broker: Broker) -> AsyncIterator[Finding]:
    """The broker is open."""
    if isinstance(broker, KafkaBroker):
        try:
            yield Finding("ok", "broker", f"Kafka at {broker.bootstrap}: {await kafka.cluster(broker)}")
        except RomancyError as error:
            yield Finding("warn", "broker", f"it answers, but does not describe itself: {described(error)}")
    else:
        yield Finding("ok", "broker", f"embedded, {app.broker_url}")
    for topic in await compare_topics(app, broker):
        if topic.found is None:
            yield Finding("fail", topic.name, "does not exist", "romancy topics create MODULE:APP")
        elif topic.found != topic.wanted:
            told = f"{topic.found} partitions, the app asks for {topic.wanted}"
            yield Finding("fail", topic.name, told, f"App(partitions={topic.found}), or start with a new name")
        elif topic.config:
            yield Finding("warn", topic.name, topic.about, "set what the manifest asks for, unless you mean it")
        else:
            yield Finding("ok", topic.name, f"{topic.found} partitions")


@dataclass(frozen=True, slots=True)
class Identity:
    """Topic -> id, of the topics that the engine reads: as the broker has them, and as the database knows them."""

    found: dict[str, str]
    recorded: dict[str, str]

    @property
    def changed(self) -> list[str]:
        return [name for name, topic_id in self.found.items() if self.recorded.get(name, topic_id) != topic_id]


async def identity(app: App, broker: Broker, store: SqlStore) -> Identity:
    topics = Topics(app.namespace)
    found = await broker.topics()
    ids = {name: found[name].topic_id for name in (topics.commands, topics.results) if name in found}
    return Identity(ids, dict(await store.topic_ids()))


def identity_finding(known: Identity) -> Finding:
    if known.changed:
        told = f"{', '.join(known.changed)}: not the one that the database was filled from"
        return Finding("fail", "identity", told, "bring the topic back, or romancy doctor MODULE:APP --accept-topics")
    if len(known.found) < 2:
        return Finding("warn", "identity", "not every topic that the engine reads is there to be compared")
    if not known.recorded:
        return Finding("ok", "identity", "not recorded yet: the first engine does it")
    return Finding("ok", "identity", "the topics are the ones that the database was filled from")


async def lag(app: App, broker: Broker, store: SqlStore) -> Finding:
    """How far the engine is behind, by the offsets in the database."""
    extents = await engine_extents(app, broker)
    statement = select(tables.offsets)
    async with store.db.reading("read offsets") as connection:
        offsets = {TP(row.topic, row.part): row.next_offset for row in await connection.execute(statement)}
    behind = {tp: end - offsets.get(tp, first) for tp, (first, end) in extents.items()}
    outside = [tp for tp, (first, end) in extents.items() if tp in offsets and not first <= offsets[tp] <= end]
    if outside:
        told = (
            f"the offset in the database lies outside {', '.join(f'{tp.topic}/{tp.partition}' for tp in outside[:5])}"
        )
        todo = "the topic lost records that were not read; restore it, or romancy doctor MODULE:APP --accept-topics"
        return Finding("fail", "lag", told, todo)
    total = sum(behind.values())
    told = f"{total} records of commands and results wait for the engine"
    return Finding("ok", "lag", told) if total < LAG_LIMIT else Finding("warn", "lag", told, "run more workers")


async def engine_extents(app: App, broker: Broker) -> Any:
    """First and next offset of every partition that the engine reads."""
    topics, found = Topics(app.namespace), await broker.topics()
    names = [name for name in (topics.commands, topics.results) if name in found]
    return await kafka.extents(broker, [TP(name, part) for name in names for part in range(found[name].partitions)])


async def queues(app: App, broker: Broker) -> AsyncIterator[Finding]:
    """Tasks that wait, and whether anybody serves their queue."""
    topics, found = Topics(app.namespace), await broker.topics()
    groups = {queue: f"{app.namespace}.workers.{queue}" for queue in app.queues if topics.tasks(queue) in found}
    members = await kafka.readers(broker, list(groups.values()))
    for queue, group in groups.items():
        topic = topics.tasks(queue)
        there = await kafka.extents(broker, [TP(topic, part) for part in range(found[topic].partitions)])
        offsets = await kafka.committed(broker, group)
        tasks = sum(end - max(first, offsets.get(tp, first)) for tp, (first, end) in there.items())
        workers = members.get(group)
        told = f"{tasks} tasks wait or are under way"
        if workers is None:
            yield Finding("ok", f"queue {queue}", told)
        elif workers or not tasks:
            yield Finding("ok", f"queue {queue}", f"{told}, {workers} worker processes")
        else:
            todo = f"romancy worker MODULE:APP --roles worker --queues {queue}"
            yield Finding("warn", f"queue {queue}", f"{told}, and no worker process serves it", todo)


def broker_failure(error: RomancyError) -> Finding:
    if error.code == "embedded_broker_in_use":
        todo = "nothing, if that is your worker; stop it to have the topics checked"
        return Finding("warn", "broker", f"not checked: {error}", todo)
    todo = "start it, or correct the URL" if isinstance(error, BrokerUnavailableError) else ""
    return Finding("fail", "broker", described(error), todo)
