"""What goes wrong while a commit is being written and the next batch waits behind it: no input is passed by, nobody
else is blamed, and who leaves leaves nothing under way."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from romancy_stream import App, BrokerUnavailableError, RetryPolicy, StoreUnavailableError
from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.engine import history as h
from romancy_stream.engine.commit import ActivityKey, Commit, EagerTask, ItemRow, MemberRow, OutboxRow
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import EagerRoom, Outlived
from romancy_stream.engine.tasks import Report
from romancy_stream.runtime.processor import Processor
from romancy_stream.runtime.relay import IN_FLIGHT_LIMIT, Relay
from romancy_stream.runtime.under_way import written
from romancy_stream.store.port import Known
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import encode, new_event_time
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import TP, Record
from tests.support import eventually
from tests.support.gated import GatedStore, concerns, gated_app, refuse
from tests.support.modules import REPO

PATIENCE_S = 90


class Store(GatedStore):
    """After the first takeover, `away` look-ups fail, and with `hangs` they wait for it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.away = 0
        self.hangs: asyncio.Event | None = None
        self.hanging = asyncio.Event()
        self._takeovers = 0

    async def take_over(self, parts: Sequence[int], owner: str) -> Any:
        self._takeovers += 1
        return await super().take_over(parts, owner)

    async def known(self, instance_ids: Sequence[str]) -> Known:
        if self._takeovers > 1 and self.away:
            self.away -= 1
            raise StoreUnavailableError("away for a moment")
        if self._takeovers > 1 and self.hangs is not None:
            self.hanging.set()
            await self.hangs.wait()
        return await super().known(instance_ids)


class Local:
    """A LocalWorker that writes down what it is told."""

    incarnation = "me/1"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.sent: list[Report] = []

    def room(self) -> EagerRoom:
        return EagerRoom(self.incarnation, {"default"}, 100)

    def run(self, tasks: Sequence[EagerTask]) -> None:
        self.told.append("run")

    def is_running(self, key: Any, attempt: int) -> bool:
        return False

    async def leave(self, parts: frozenset[int]) -> None:
        self.told.append("leave")

    def send(self, reports: Sequence[Report]) -> None:
        self.sent += reports
        self.told += ["sent"] * len(reports)


@contextlib.asynccontextmanager
async def engine(folder: Path, local: Any = None, cached: int = 1_000) -> AsyncIterator[tuple[Processor, Store, App]]:
    app = gated_app(folder, [])
    async with app:
        pass
    store, broker = Store(app.database_url), app.make_broker()
    await store.open()
    await broker.open()
    core = EngineCore(CoreConfig(app.namespace, 1, RetryPolicy(), cached), app.registry.workflows)
    relay = Relay(broker)
    processor = Processor(core, store, relay, "me", lambda commit: None, lambda owned: None, local=local)
    await processor.on_assigned({TP(topic, 0) for topic in (app.topics.commands, app.topics.results)})
    try:
        yield processor, store, app
    finally:
        store.gate.set()
        store.bad = lambda commit: None
        with contextlib.suppress(Exception):
            await processor.close()
        core.drop(core.owned)
        await relay.close()
        await broker.close()
        await store.close()


def starts(app: App, first: int, *names: str) -> dict[TP, list[Record]]:
    records = []
    for offset, name in enumerate(names, start=first):
        event = WireEvent(
            f"e{offset}", "test", w.START, name, b'"x"', new_event_time(1_700_000_000_000_000), {w.X_WORKFLOW: "hello"}
        )
        headers, value = encode(event)
        records.append(Record(app.topics.commands, 0, offset, name.encode(), value, headers, 0))
    return {TP(app.topics.commands, 0): records}


def report(instance_id: str, activity_id: str = "none:1") -> Report:
    return Report(ActivityKey(instance_id, 1, activity_id), 1, w.ACTIVITY_COMPLETED, b"1", None, None)


async def there(store: Store) -> tuple[set[str], set[str], int]:
    """Ids of instances, ids of rejections, the next offset of `commands`."""
    async with store.db.engine.connect() as connection:
        ids = {row[0] for row in await connection.execute(text("SELECT instance_id FROM romancy_instances"))}
        refused = {row[0] for row in await connection.execute(text("SELECT instance_id FROM romancy_rejections"))}
        rows = (await connection.execute(text("SELECT * FROM romancy_offsets"))).mappings().all()
    offset = max([row["next_offset"] for row in rows if "commands" in row["topic"]], default=0)
    return ids, refused, offset


def refusing(*names: str) -> Callable[[Commit], Exception | None]:
    return refuse(begins(*names))


begins = partial(concerns, h.WORKFLOW_STARTED)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("romancy_stream.runtime.processor.OVERLAP_FROM", 1)
    monkeypatch.setattr("romancy_stream.runtime.patience.STORE_PATIENCE_S", 0.0)


async def nothing_is_passed_by(store: Store, later: asyncio.Task[None]) -> None:
    """`later` brought offset 2 (cy). Either it was refused, or what stood before it has had its effect."""
    await asyncio.wait({later}, timeout=PATIENCE_S)
    if later.done():
        later.exception()
    ids, refused, offset = await there(store)
    assert offset <= 1 or {"ada", "bob"} <= ids | refused, f"next offset {offset}, but there are only {ids=} {refused=}"


@pytest.mark.parametrize("holder", ["expiry", "timers"])
async def test_inputs_of_a_commit_that_failed_are_not_passed_by(tmp_path: Path, holder: str) -> None:
    """It is found out by others than its own `on_batch`, and the database is away while the bad one is looked for."""
    async with engine(tmp_path) as (processor, store, app):
        store.gate.clear()
        store.bad = refusing("ada")
        await processor.on_batch(starts(app, 0, "ada", "bob"))
        await store.waiting.wait()
        store.away = 1
        if holder == "expiry":
            # Expiry.run goes on after this.
            first: asyncio.Task[Any] = asyncio.create_task(processor.feed([Outlived(0, "nobody", 0)]))
        else:
            first = asyncio.create_task(processor.run_timers())
        store.gate.set()
        await asyncio.wait({processor._under_way.task})  # type: ignore[union-attr]
        await asyncio.sleep(0)
        later = asyncio.create_task(processor.on_batch(starts(app, 2, "cy")))
        await asyncio.wait({first}, timeout=PATIENCE_S)
        assert isinstance(first.exception(), StoreUnavailableError)
        await asyncio.wait({later}, timeout=PATIENCE_S)
        with contextlib.suppress(Exception):
            await processor.close()
        await nothing_is_passed_by(store, later)


async def test_a_cancelled_settling_does_not_lose_inputs(tmp_path: Path) -> None:
    """The membership ends while the bad one is looked for, and a batch waits."""
    async with engine(tmp_path) as (processor, store, app):
        store.gate.clear()
        store.bad = refusing("ada")
        await processor.on_batch(starts(app, 0, "ada", "bob"))
        await store.waiting.wait()
        store.hangs = asyncio.Event()
        timers = asyncio.create_task(processor.run_timers())
        await asyncio.sleep(0)
        store.gate.set()
        await store.hanging.wait()
        later = asyncio.create_task(processor.on_batch(starts(app, 2, "cy")))
        await asyncio.sleep(0)
        timers.cancel()
        store.hangs.set()
        await asyncio.gather(timers, return_exceptions=True)
        await asyncio.wait({later}, timeout=PATIENCE_S)
        with contextlib.suppress(Exception):
            await processor.close()
        await nothing_is_passed_by(store, later)


async def test_an_error_of_the_commit_before_is_not_taken_for_one_of_this_batch(tmp_path: Path) -> None:
    """The first can neither be written nor set aside, and the next batch, which is about the same instance, hears of it
    while it is prepared."""
    async with engine(tmp_path, cached=1) as (processor, store, app):
        store.gate.clear()
        refuses = 3  # ada and bob together; ada alone; ada set aside

        def bad(commit: Commit) -> Exception | None:
            nonlocal refuses
            refuses -= 1
            return RuntimeError("a full disk") if refuses >= 0 else None

        store.bad = bad
        await processor.on_batch(starts(app, 0, "ada", "bob"))
        await store.waiting.wait()
        later = asyncio.create_task(processor.on_batch(starts(app, 2, "ada")))
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.wait({later}, timeout=PATIENCE_S)
        with contextlib.suppress(Exception):
            await processor.close()
        await nothing_is_passed_by(store, later)


async def test_a_report_that_cannot_be_written_goes_by_the_broker_and_holds_back_nothing(tmp_path: Path) -> None:
    """There it is a record, which can be a dead letter."""
    local = Local()
    async with engine(tmp_path, local) as (processor, store, app):
        await processor.on_batch(starts(app, 0, "ada", "bob"))
        store.bad = refuse(concerns(h.ACTIVITY_COMPLETED, "ada"))
        spoils, fine = report("ada", "greet:1"), report("bob", "greet:1")
        timers = asyncio.create_task(processor.run_timers())
        processor.take_report(0, spoils)
        processor.take_report(0, fine)
        await eventually(lambda: local.sent == [spoils])
        await eventually(lambda: processor.core.entry("bob") is None)  # it has finished
        ada = processor.core.entry("ada")
        assert ada is None or ada.state.finished is None
        timers.cancel()
        await asyncio.gather(timers, return_exceptions=True)


async def test_no_task_is_begun_behind_the_farewell(tmp_path: Path) -> None:
    """The worker's farewell gives leases to what runs and drops what waits."""
    local = Local()
    async with engine(tmp_path, local) as (processor, store, app):
        store.gate.clear()
        await processor.on_batch(starts(app, 0, "ada"))
        await store.waiting.wait()
        leaving = asyncio.create_task(processor.on_revoked({TP(app.topics.commands, 0), TP(app.topics.results, 0)}))
        await eventually(processor._turns.lock.locked)
        store.gate.set()
        await leaving
        await processor.close()
        assert local.told == ["run", "leave"], local.told


async def test_a_failure_that_is_swallowed_ends_the_membership_all_the_same(tmp_path: Path) -> None:
    """Sweepers go on after it; the inputs belong to a batch that has returned, and nobody would bring them again."""
    async with engine(tmp_path) as (processor, store, app):
        store.gate.clear()
        beginning = begins("ada")
        store.bad = lambda commit: StoreUnavailableError("away") if beginning(commit) else None
        timers = asyncio.create_task(processor.run_timers())
        await processor.on_batch(starts(app, 0, "ada"))
        await store.waiting.wait()
        feeding = asyncio.create_task(processor.feed([Outlived(0, "nobody", 0)]))
        await asyncio.sleep(0)
        store.gate.set()
        with pytest.raises(StoreUnavailableError):
            await feeding
        try:
            await eventually(timers.done, deadline_s=PATIENCE_S)
        finally:
            timers.cancel()
            await asyncio.gather(timers, return_exceptions=True)


async def test_what_feed_calls_committed_is_committed(tmp_path: Path) -> None:
    """Also of a batch that was halved, whose second half comes last."""
    async with engine(tmp_path) as (processor, store, app):
        store.bad = refusing("ada")
        held = asyncio.Event()
        original = SqlStore.commit

        async def commit(commit_: Commit) -> int:
            if begins("bob")(commit_) and not begins("ada")(commit_):
                store.waiting.set()
                await held.wait()
            error = store.bad(commit_)
            if error is not None:
                raise error
            return await original(store, commit_)

        store.commit = commit  # type: ignore[method-assign,assignment]
        await processor.on_batch(starts(app, 0, "ada", "bob"))
        closing = asyncio.create_task(processor.close())
        await store.waiting.wait()
        await asyncio.wait({closing}, timeout=1)
        early = closing.done()
        held.set()
        await closing
        if processor._under_way is not None:
            await asyncio.wait({processor._under_way.task})
        assert not early, "close() returned while a commit was under way"


SPIN = """
import asyncio, sys
from pathlib import Path
import tests.runtime.test_pipeline_failures as t
from romancy_stream import FencedError

async def main():
    async with t.engine(Path(sys.argv[1]), t.Local()) as (processor, store, app):
        store.bad = lambda commit: RuntimeError("refused") if commit.history else None
        async def take_over(parts, owner):
            raise FencedError("the group moved on")
        store.take_over = take_over
        timers = asyncio.create_task(processor.run_timers())
        await asyncio.sleep(0.1)
        processor.take_report(0, t.report("ada"))
        try:
            await processor.on_batch(t.starts(app, 0, "ada"))
        except FencedError:
            pass
        await asyncio.sleep(0.2)
        timers.cancel()
        await asyncio.gather(timers, return_exceptions=True)
    print("alive")
asyncio.run(main())
"""


def test_the_event_loop_is_not_frozen_by_results_that_nobody_owns(tmp_path: Path) -> None:
    """They were given back when the partitions were lost."""
    done = subprocess.run(
        [sys.executable, "-c", SPIN, str(tmp_path)], cwd=REPO, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "alive" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_cancelling_the_timers_does_not_spoil_a_clean_end(tmp_path: Path, cancelled: bool) -> None:
    """It has decided a batch and waits for the commit before. To throw that away would fence off by ourselves all that
    comes after."""
    local = Local()
    async with engine(tmp_path, local) as (processor, store, app):
        store.gate.clear()
        await processor.on_batch(starts(app, 0, "ada"))
        await store.waiting.wait()
        timers = asyncio.create_task(processor.run_timers())
        processor.take_report(0, report("nobody"))
        core = processor.core
        before = core._owned[0].commit_no
        await eventually(lambda: core._owned[0].commit_no == before + 1)  # decided, and waits in `_settle`
        if cancelled:
            timers.cancel()
            await asyncio.wait({timers}, timeout=1)
        store.gate.set()
        if not cancelled:  # the control: the same, but that run_timers may end what it is at
            await eventually(lambda: not processor._turns.lock.locked())
            timers.cancel()
        await processor.on_revoked({TP(app.topics.commands, 0), TP(app.topics.results, 0)})
        await asyncio.gather(timers, return_exceptions=True)
        await processor.close()
        async with store.db.engine.connect() as connection:
            left = (await connection.execute(text("SELECT count(*) FROM romancy_outbox"))).scalar_one()
        assert left == 0, f"{left} rows that the broker has acknowledged are sent again by the next owner"


async def test_tasks_are_counted_once(tmp_path: Path) -> None:
    """The worker has counted those of a durable commit itself."""
    local = Local()
    async with engine(tmp_path, local) as (processor, _, app):
        await processor.on_batch(starts(app, 0, *(f"i{n}" for n in range(30))))
        assert processor._under_way is not None
        await asyncio.wait({processor._under_way.task})
        assert local.told == ["run"]
        room = processor._room()
        assert room is not None
        assert room.free == 100  # what the worker says, which knows of those thirty


def test_an_entity_whose_head_is_as_before_counts_as_written() -> None:
    commit = Commit(members_gone=[("event:a", "i", "r")], items_gone=[("event:b", 1)])
    commit.members.append(MemberRow("event:c", "i", "r", 1, 1, b"{}"))
    commit.items.append(ItemRow("event:d", 1, 0, 1, None, b"{}", None))
    assert {"event:a", "event:b", "event:c", "event:d"} <= written(commit)


async def test_nobody_waits_for_a_relay_that_has_failed(tmp_path: Path) -> None:
    """The sender is gone, and what is queued stays: who waited for room held the lock for ever."""
    broker = EmbeddedBroker(tmp_path)
    await broker.open()
    await broker.close()
    relay = Relay(broker)
    relay.adopt(0, [OutboxRow(0, n, "t", "k", None, (), b"") for n in range(IN_FLIGHT_LIMIT + 2_000)], {})
    with pytest.raises(BrokerUnavailableError):
        async with asyncio.timeout(PATIENCE_S):
            await relay.has_room()
    await asyncio.wait({relay.failure})
    assert isinstance(relay.failure.exception(), BrokerUnavailableError)
    await relay.close()
