"""Who looks into the database once in a while rests where nothing can have come, and wakes for whatever does: each test
puts an event at a moment at which it could be slept through."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import ActivityContext, App, WorkflowContext
from romancy_stream.engine.commit import ActivityKey, Mark, RecordedResult
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import Input, ItemExpired, LeaseLapsed, Loaded, Outlived, PartitionStart
from romancy_stream.engine.projection import ActivityState, InstanceState
from romancy_stream.errors import StoreUnavailableError
from romancy_stream.retry import RetryPolicy
from romancy_stream.runtime import expiry, lapses, sweeper
from romancy_stream.runtime.expiry import Expiry
from romancy_stream.runtime.lapses import Lapses
from romancy_stream.runtime.rest import Rest
from romancy_stream.runtime.sweeper import Sweeper
from romancy_stream.store import clocks, tables
from romancy_stream.store.attempts import WITH_ATTEMPTS
from romancy_stream.store.port import Detached, Oldest, WorkerOutboxRow
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.partition import partition_for
from tests.store.writing import activity, committed, entity, event, instance, item, owned, recorded, rows, tombstone
from tests.support import eventually

PARTITIONS = 4
DAY_US = 86_400 * 1_000_000
SOON_US = 300_000
KEY = ActivityKey("o-1", 1, "charge:1")
MINE = Detached(KEY, 1, 0, "dead")


def name_in(part: int, prefix: str) -> str:
    names = (f"{prefix}{number}" for number in range(1_000))
    return next(name for name in names if partition_for(name.encode(), PARTITIONS) == part)


@pytest.fixture
async def store(sqlite_db: str) -> AsyncIterator[SqlStore]:
    store = SqlStore(sqlite_db)
    await store.open()
    await store.migrate()
    await store.prepare("shop", PARTITIONS)
    yield store
    await store.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(lapses, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(lapses, "LOOK_AGAIN_S", 0.01)


class Engine:
    """Owns partition 0; commits what it is fed and tells those who rest of it, as the service does."""

    def __init__(self, store: SqlStore, **options: Any) -> None:
        self.core = EngineCore(CoreConfig("shop", PARTITIONS, RetryPolicy()), {})
        self.store = store
        self.expiry = Expiry(self.core, store, **options)
        self.lapses = Lapses(self.core, store)
        self.fed: list[Input] = []
        self.reads = 0
        self._marks: list[Mark] = []

    async def own(self, part: int) -> None:
        (mark,) = await owned(self.store, part)
        self.core.adopt(PartitionStart(mark.part, mark.epoch, mark.commit_no, mark.position))
        self._marks.append(mark)

    def stir(self) -> None:
        self.expiry.rest.stir()
        self.lapses.rest.stir()

    async def commit(self, **parts: Any) -> None:
        """Beside the core, which is not asked afterwards."""
        self._marks = await committed(self.store, self._marks, **parts)
        self.stir()

    async def feed(self, inputs: Sequence[Input]) -> Sequence[Input]:
        self.fed += inputs
        known = await self.store.known(self.core.missing(inputs))
        entities = await self.store.entities(self.core.missing_entities(inputs))
        self.core.load(Loaded(known.instances, entities=entities))
        await self.store.commit(self.core.handle(inputs, await self.store.now_us()))
        self.stir()
        return inputs

    async def hear(self, inputs: Sequence[Input]) -> Sequence[Input]:
        self.fed += inputs
        return inputs

    def count_reads(self) -> None:
        """From now on, those of this engine."""
        reading = self.store.db.reading

        def counted(doing: str) -> Any:
            self.reads += 1
            return reading(doing)

        self.store.db.reading = counted  # type: ignore[method-assign]


@contextlib.asynccontextmanager
async def looking(run: Callable[[Any], Awaitable[None]], feed: Any) -> AsyncIterator[None]:
    task = asyncio.ensure_future(run(feed))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def a_while() -> None:
    """As long as one that does not rest needs for five looks."""
    rest, looks = Rest(), 0
    while looks < 5:
        await rest.pause(0.02)
        looks += 1


def left(store: SqlStore, table: Any, count: int) -> Callable[[], Awaitable[bool]]:
    async def found() -> bool:
        return len(await rows(store, table)) == count

    return found


# -- the rest itself ---------------------------------------------------------------------------------------------------
async def test_what_comes_during_a_look_wakes_the_sleeper_after_it() -> None:
    rest = Rest()
    assert not await rest.pause(0.0)
    rest.stir()
    assert rest.stirred
    await rest.sleep()
    assert rest.stirred, "sleep takes nothing away: the next pause does"
    assert not await rest.pause(0.0)
    assert not rest.stirred
    rest.hurry()
    await rest.sleep()
    assert await rest.pause(3_600.0), "who hurries does not wait for the interval"
    await rest.sleep(0.0)


# -- what grows old ----------------------------------------------------------------------------------------------------
async def young(engine: Engine, in_us: int = DAY_US) -> None:
    """Something of each sort that will be too old in so many microseconds, and only that."""
    now_us = await engine.store.now_us()
    here, gone = name_in(0, "event:"), name_in(0, "old-")
    ended = {"status": "completed", "started_us": 5, "finished_us": now_us + in_us - DAY_US}
    await engine.commit(
        entities=[entity(here)],
        items=[item(1, here, expires_us=now_us + in_us), item(2, here)],
        intake=[(0, "d", now_us + in_us - DAY_US)],
        deleted=[tombstone(name_in(0, "deleted-"), at_us=now_us + in_us - DAY_US)],
        instances=[instance(gone, **ended), instance(name_in(0, "open-"), status="waiting_for_timer")],
        history=[event(gone)],
    )


async def test_while_nothing_becomes_too_old_nothing_is_asked(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "TOMBSTONES_S", 86_400.0)
    engine = Engine(store, dedup_window_s=86_400.0, retention_s=86_400.0)
    await engine.own(0)
    await young(engine)
    async with looking(engine.expiry.run, engine.feed), looking(engine.lapses.run, engine.feed):
        await eventually(lambda: engine.expiry.rest.asleep and engine.lapses.rest.asleep)
        engine.count_reads()
        await a_while()
        assert (engine.reads, engine.fed) == (0, [])
        engine.stir()
        await eventually(lambda: engine.reads >= 3)
    assert engine.fed == []


async def test_each_sort_is_taken_when_it_is_due_though_nothing_happens(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "TOMBSTONES_S", 86_400.0)
    ahead_us = 5 * DAY_US  # the database's clock, which is the one that counts
    monkeypatch.setattr(clocks, "clock_us", lambda here=clocks.clock_us: here() + ahead_us)
    monkeypatch.setattr("romancy_stream.store.ownership.clock_us", clocks.clock_us)
    engine = Engine(store, dedup_window_s=86_400.0, retention_s=86_400.0)
    await engine.own(0)
    await young(engine, SOON_US)
    async with looking(engine.expiry.run, engine.hear):
        await eventually(lambda: {type(each) for each in engine.fed} == {ItemExpired, Outlived})
        await eventually(left(store, tables.intake, 0))
        await eventually(left(store, tables.tombstones, 0))


@pytest.mark.parametrize("sort", ["expires_us", "intake_us", "tombstone_us", "finished_us"])
async def test_the_sleep_ends_with_the_first_sort_that_is_due(
    store: SqlStore, sort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone: the next look comes, whatever it finds."""
    oldest, times = store.oldest, 0

    async def only(parts: Sequence[int]) -> Oldest:
        nonlocal times
        times += 1
        found = await oldest(parts)
        for_s = {"expires_us": 0.0, "intake_us": 60.0, "finished_us": 90.0, "tombstone_us": expiry.TOMBSTONES_S}[sort]
        values = dict.fromkeys(("expires_us", "intake_us", "tombstone_us", "finished_us"))
        return Oldest(found.now_us, **{**values, sort: found.now_us + SOON_US - round(for_s * 1_000_000)})

    monkeypatch.setattr(store, "oldest", only)
    engine = Engine(store, dedup_window_s=60.0, retention_s=90.0)
    await engine.own(0)
    async with looking(engine.expiry.run, engine.feed):
        await eventually(lambda: times >= 2)


async def test_a_commit_and_another_partition_wake_the_sleeper(store: SqlStore) -> None:
    engine = Engine(store)
    await engine.own(0)
    here, elsewhere = name_in(0, "event:"), name_in(1, "event:")
    async with looking(engine.expiry.run, engine.hear):
        await eventually(lambda: engine.expiry.rest.asleep)
        await engine.commit(entities=[entity(here)], items=[item(1, here, expires_us=1)])
        await eventually(lambda: ItemExpired(0, here, 1) in engine.fed)
        marks = await owned(store, 1)
        await committed(
            store, marks, entities=[entity(elsewhere, part=1)], items=[item(1, elsewhere, part=1, expires_us=1)]
        )
        await engine.own(1)
        engine.expiry.rest.stir()
        await eventually(lambda: ItemExpired(1, elsewhere, 1) in engine.fed)


@pytest.mark.parametrize("before", [True, False], ids=["before the question", "behind the question"])
async def test_a_commit_between_the_look_and_the_sleep_is_seen(
    store: SqlStore, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, oldest, times = Engine(store), store.oldest, 0
    await engine.own(0)
    here = name_in(0, "event:")

    async def and_a_commit(parts: Sequence[int]) -> Oldest:
        nonlocal times
        times += 1
        if times > 1:
            return await oldest(parts)
        due = {"entities": [entity(here)], "items": [item(1, here, expires_us=1)]}
        if before:  # and nobody was told of it yet
            await committed(store, await owned(store, 0), **due)
            return await oldest(parts)
        found = await oldest(parts)
        await engine.commit(**due)
        return found

    monkeypatch.setattr(store, "oldest", and_a_commit)
    async with looking(engine.expiry.run, engine.hear):
        await eventually(lambda: engine.fed)


async def test_a_database_that_was_away_is_asked_again(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    away = {"oldest": 2, "open_attempts": 2}

    def sometimes(name: str) -> Any:
        method = getattr(store, name)

        async def call(parts: Sequence[int]) -> Any:
            if away[name]:
                away[name] -= 1
                raise StoreUnavailableError("away")
            return await method(parts)

        return call

    for name in away:
        monkeypatch.setattr(store, name, sometimes(name))
    engine = Engine(store)
    await engine.own(0)
    async with looking(engine.expiry.run, engine.feed), looking(engine.lapses.run, engine.feed):
        await eventually(lambda: engine.expiry.rest.asleep and engine.lapses.rest.asleep)
    assert away == {"oldest": 0, "open_attempts": 0}


# -- long attempts -----------------------------------------------------------------------------------------------------
async def test_while_an_attempt_is_open_its_worker_may_detach_it_at_any_time(store: SqlStore) -> None:
    """No instance is in memory: the tables tell."""
    engine = Engine(store)
    await engine.own(0)
    await engine.commit(instances=[instance("o-1")], activities=[activity("o-1")])
    async with looking(engine.lapses.run, engine.hear):
        engine.count_reads()
        await eventually(lambda: engine.reads >= 6)
        await store.detach([MINE], -1)
        await eventually(lambda: engine.fed)
    assert engine.fed == [LeaseLapsed(0, "o-1", 1, "charge:1", 1, "dead")]


async def test_a_worker_that_detaches_just_after_the_look_is_found(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, lapsed = Engine(store), store.lapsed
    await engine.own(0)
    await engine.commit(instances=[instance("o-1", status="compensating")], activities=[activity("o-1")])
    looks = 0

    async def and_then_it_detaches(parts: Sequence[int], limit: int) -> Sequence[Detached]:
        nonlocal looks
        found, looks = await lapsed(parts, limit), looks + 1
        if looks == 1:
            await store.detach([MINE], -1)
        return found

    monkeypatch.setattr(store, "lapsed", and_then_it_detaches)
    async with looking(engine.lapses.run, engine.hear):
        await eventually(lambda: engine.fed)


async def test_as_long_as_one_is_detached_its_lease_is_watched(store: SqlStore) -> None:
    """Also where its activity is over: what is left of it goes when the worker is gone."""
    engine = Engine(store)
    await engine.own(0)
    await store.detach([MINE], 0.2)
    async with looking(engine.lapses.run, engine.hear):
        await eventually(lambda: engine.fed)
        await eventually(left(store, tables.detached, 0))
        await eventually(lambda: engine.lapses.rest.asleep)


async def test_an_attempt_that_begins_wakes_the_sleeper(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = Engine(store), store.open_attempts
    await engine.own(0)
    begun = {"instances": [instance("o-1")], "activities": [activity("o-1")]}
    times = 0

    async def and_then_it_begins(parts: Sequence[int]) -> bool:
        nonlocal times
        found, times = await asked(parts), times + 1
        if times == 1:
            await engine.commit(**begun)
            await store.detach([MINE], -1)
        return found

    monkeypatch.setattr(store, "open_attempts", and_then_it_begins)
    async with looking(engine.lapses.run, engine.hear):
        await eventually(lambda: engine.fed)


def test_an_instance_with_an_open_activity_shows_it_in_its_status() -> None:
    """Whatever else it waits for: `open_attempts` looks for those only."""
    state = InstanceState("o-1", 1, 0, "order", None, 1, "/shop", "e-1", waits={"wait:1": {}}, timers={"timer:1": 9})
    assert state.status not in WITH_ATTEMPTS
    state.activities["charge:1"] = ActivityState("charge:1", "charge", "default", 1, None, {})
    for receives, parked in itertools.product((False, True), (None, "halted")):
        state.receives, state.parked = {"inbox": {}} if receives else {}, parked
        assert state.status in WITH_ATTEMPTS
    state.compensating = event()
    assert state.status in WITH_ATTEMPTS


# -- an app ------------------------------------------------------------------------------------------------------------
async def test_an_app_rests_between_what_it_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an engine commits stirs all who look; its waiting instances do not."""
    monkeypatch.setattr(sweeper, "SWEEP_EVERY_S", 0.02)
    database, broker = f"sqlite:///{tmp_path / 'state.db'}", f"embedded://{tmp_path / 'log'}"
    app = App("rests", partitions=2, event_ttl=1, broker=broker, database=database)

    @app.activity
    async def work(ctx: ActivityContext) -> str:
        return "done"

    @app.workflow
    async def flow(ctx: WorkflowContext) -> str:
        await work()
        await ctx.wait_event("go")
        return await work()

    async with app.running(roles=["engine", "worker"]):
        assert app._node is not None
        assert app._node.engine is not None
        engine, store = app._node.engine, app._node.store
        rests = (engine._expiry.rest, engine._lapses.rest, engine._sweeper.rest)

        async def at_rest() -> None:
            await eventually(lambda: all(rest.asleep for rest in rests), deadline_s=60)

        await at_rest()
        handle = await app.start(flow)

        async def waits() -> bool:
            row = await store.get_instance(handle.instance_id)
            return row is not None and row.status == "waiting_for_event"

        await eventually(waits, deadline_s=60)
        await at_rest()
        expired, seen = store.expired_items, list[Any]()

        async def noted(parts: Sequence[int], limit: int) -> Sequence[tuple[int, str, int]]:
            found = await expired(parts, limit)
            seen.extend(found)
            return found

        monkeypatch.setattr(store, "expired_items", noted)
        await app.send_event(type="nobody.waits", data=1)
        await eventually(lambda: seen, message="it expires though nothing else happens", deadline_s=60)
        await eventually(left(store, tables.items, 0), deadline_s=60)
        await at_rest()
        await app.send_event(type="go")
        assert await handle.result(timeout=60) == "done"


async def test_a_sweeper_rests_while_no_attempt_is_open(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "SWEEP_EVERY_S", 0.02)
    engine = Engine(store)
    await engine.own(0)
    looks = Sweeper(engine.core, store, None)  # type: ignore[arg-type]  # sends nothing here
    monkeypatch.setattr(looks, "_send", _nothing)
    async with looking(lambda _: looks.run(), None):
        await eventually(lambda: looks.rest.asleep)
        await engine.commit(instances=[instance("o-1")], activities=[activity("o-1")])
        looks.rest.stir()
        engine.count_reads()
        await eventually(lambda: engine.reads >= 6)
        assert not looks.rest.asleep


async def test_what_was_too_young_for_a_look_is_sent_though_no_attempt_is_open(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has given up on its attempt, found that it had ended, and nothing happens any more."""
    monkeypatch.setattr(sweeper, "SWEEP_EVERY_S", 0.02)
    monkeypatch.setattr(sweeper, "OWN_TIME_S", SOON_US / 1_000_000)
    engine = Engine(store)
    await engine.own(0)
    looks = Sweeper(engine.core, store, None)  # type: ignore[arg-type]  # sends nothing here
    refused, sent = WorkerOutboxRow("dead", 1, 0, 1, "shop.events", "o-1", (), b"1"), list[Any]()
    late = replace(refused, seq=2, at_us=await store.now_us())
    done = RecordedResult(ActivityKey("o-1", 1, "a:1"), 1, "completed", None, "dead", 1)

    async def send(rows: Sequence[WorkerOutboxRow], left: set[Any]) -> list[Any]:
        left.update(("dead", row.seq) for row in rows if row.seq == refused.seq)
        sent.extend(row for row in rows if row.seq != refused.seq)
        return [("dead", row.seq) for row in rows if row.seq != refused.seq]

    monkeypatch.setattr(looks, "_send", send)
    async with store.db.writing("leave rows") as connection:
        assert await recorded(connection, done, [refused, late])
    async with looking(lambda _: looks.run(), None):
        await eventually(lambda: sent)
        await eventually(lambda: looks.rest.asleep, message="what is refused keeps nobody awake")
    assert sent == [late]
    assert len(await rows(store, tables.worker_outbox)) == 1


async def test_nobody_rests_because_of_a_look_in_the_middle_of_a_takeover(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that reads its state anew owns nothing for a moment, and need not commit anything afterwards."""
    monkeypatch.setattr(sweeper, "SWEEP_EVERY_S", 0.02)
    engine = Engine(store)
    looks = Sweeper(engine.core, store, None)  # type: ignore[arg-type]  # sends nothing here
    monkeypatch.setattr(looks, "_send", _nothing)
    rests = (looks.rest, engine.lapses.rest, engine.expiry.rest)
    async with (
        looking(lambda _: looks.run(), None),
        looking(engine.lapses.run, engine.hear),
        looking(engine.expiry.run, engine.hear),
    ):
        await a_while()
        await engine.own(0)
        engine.count_reads()
        await eventually(lambda: engine.reads >= 6, message="each has looked")
        await eventually(lambda: all(rest.asleep for rest in rests))


async def _nothing(*_: Any) -> list[Any]:
    return []
