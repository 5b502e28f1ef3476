"""What must be true after everything, whatever was killed: each started instance completed once with the right output,
and nothing is left over anywhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import text

from romancy_stream import App
from romancy_stream.audit import verify
from romancy_stream.broker.port import TP, AssignedRange, Broker
from romancy_stream.engine import history as h
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from tests.chaos.program import CREATE_NOTES, activities, output
from tests.support import eventually

Plan = Sequence[tuple[str, str, int]]
READ_LIMIT_S = 120.0
TIDY_LIMIT_S = 120.0
"""A row that a dead worker left is an orphan after 10 s and swept every 15 s."""


class Tables:
    """Looks into the database of an app, beside the app."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store

    async def rows(self, query: str, **values: Any) -> list[Any]:
        """AssertionError while the database is away: not yet, for `eventually`."""
        try:
            async with self.store.db.reading("look") as connection:
                return list(await connection.execute(text(query), values))
        except StoreUnavailableError as error:
            raise AssertionError(str(error)) from error

    async def number(self, query: str, **values: Any) -> int:
        return int((await self.rows(query, **values))[0][0] or 0)

    async def execute(self, statement: str, **values: Any) -> None:
        async with self.store.db.writing("change") as connection:
            await connection.execute(text(statement), values)

    async def completed(self) -> int:
        return await self.number("SELECT count(*) FROM romancy_instances WHERE status = 'completed'")

    async def epochs(self) -> list[int]:
        return [row.epoch for row in await self.rows("SELECT epoch FROM romancy_partitions ORDER BY part")]

    async def owned_by(self, pid: int) -> int:
        """How many partitions a process took over last."""
        return await self.number("SELECT count(*) FROM romancy_partitions WHERE owner LIKE :owner", owner=f"%:{pid}/%")


@asynccontextmanager
async def tables(app: App) -> AsyncIterator[Tables]:
    """With the users' table in it."""
    store = app.make_store()
    await store.open()
    try:
        await store.migrate()
        found = Tables(store)
        await found.execute(CREATE_NOTES.replace("TABLE", "TABLE IF NOT EXISTS"))
        yield found
    finally:
        await store.close()


async def check(app: App, looking: Tables, plan: Plan) -> None:
    """With no engine running any more it also finds that nothing is left to send."""
    await check_rows(looking, plan)
    broker = app.make_broker()
    await broker.open()
    try:
        check_events(await read_events(broker, app.topics.events), plan)
    finally:
        await broker.close()


async def check_rows(looking: Tables, plan: Plan) -> None:
    store = looking.store
    found = await looking.rows("SELECT instance_id, status, run FROM romancy_instances")
    assert sorted(map(tuple, found)) == sorted((instance_id, "completed", 1) for instance_id, _, _ in plan)
    report = await verify(store)
    assert report.clean, report
    assert report.instances == len(plan)
    for instance_id, kind, number in plan:
        row = await store.get_instance(instance_id)
        assert row is not None
        assert row.output == b"%d" % output(kind, number)
        check_history(await store.history(instance_id), kind)
    notes = Counter(row.instance for row in await looking.rows("SELECT instance FROM notes"))
    assert notes == {instance_id: 1 for instance_id, kind, _ in plan if kind == "writing"}
    assert await looking.rows("SELECT * FROM v_stuck") == []
    assert await looking.rows("SELECT * FROM romancy_dead_letters") == []


def check_history(events: Sequence[h.HistoryEvent], kind: str) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.ref for event in events if event.kind == h.ACTIVITY_COMPLETED] == activities(kind)
    assert [event.ref for event in events if event.kind == h.ACTIVITY_SCHEDULED] == activities(kind)
    kinds = Counter(event.kind for event in events)
    assert kinds[h.WORKFLOW_STARTED] == kinds[h.WORKFLOW_COMPLETED] == 1
    assert events[-1].kind == h.WORKFLOW_COMPLETED
    assert kinds[h.TIMER_FIRED] == kinds[h.TIMER_STARTED] == (kind == "sleeping")


def check_events(events: Sequence[WireEvent], plan: Plan) -> None:
    """A message may come twice, an event may not: whatever comes again has the same id and says the same."""
    said: dict[tuple[str, str | None], dict[str, bytes | None]] = defaultdict(dict)
    for event in events:
        same = said[event.type, event.subject or event.extensions.get(w.X_INSTANCE)]
        assert same.setdefault(event.id, event.data) == event.data
    wanted = {}
    for instance_id, kind, number in plan:
        wanted[w.STARTED, instance_id] = b'{"input":%d}' % number
        wanted[w.COMPLETED, instance_id] = b'{"output":%d}' % output(kind, number)
        if kind == "writing":
            wanted["note.written", instance_id] = b'"%s"' % instance_id.encode()
    assert {key: list(same.values()) for key, same in said.items()} == {key: [data] for key, data in wanted.items()}


async def nothing_left_to_send(looking: Tables) -> None:
    """While engines run."""

    async def empty() -> bool:
        left = await looking.rows(
            "SELECT topic, key_ FROM (SELECT topic, part AS key_ FROM romancy_outbox UNION ALL "
            "SELECT topic, part FROM romancy_worker_outbox) AS both_outboxes"
        )
        assert not left, left
        return True

    await eventually(empty, deadline_s=TIDY_LIMIT_S, message="all outboxes are empty")


class _Everything:
    def __init__(self) -> None:
        self.ranges: Mapping[TP, AssignedRange] = {}

    async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
        self.ranges = dict(ranges)

    async def on_revoked(self, partitions: set[TP]) -> None:
        """Nobody else reads in this group."""


async def read_events(broker: Broker, topic: str) -> list[WireEvent]:
    """All of a topic, from its beginning."""
    handler = _Everything()
    source = broker.tasks([topic], f"check-{topic}", handler)
    await source.start()
    events: list[WireEvent] = []
    try:
        await eventually(lambda: handler.ranges, deadline_s=READ_LIMIT_S)
        left = sum(each.end - each.committed for each in handler.ranges.values())
        async with asyncio.timeout(READ_LIMIT_S):
            while left > 0:
                for record in await source.fetch(1_000):
                    left -= 1
                    event = decode(record)
                    assert isinstance(event, WireEvent), event
                    events.append(event)
    finally:
        await source.stop()
    return events


def at_least(call: Callable[[], Coroutine[Any, Any, int]], wanted: int) -> Callable[[], Coroutine[Any, Any, bool]]:
    """A condition for `eventually`."""

    async def reached() -> bool:
        value = await call()
        assert value >= wanted, f"{value} of {wanted}"
        return True

    return reached
