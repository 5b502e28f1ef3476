"""Promises that no single part can show: nothing leaves the process before the commit that decided it; where to read on
stands in the database and nowhere else; and state is loaded by members of the group only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from romancy_stream import FencedError, RetryPolicy
from romancy_stream.engine.commit import Mark
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.runtime.processor import Processor
from romancy_stream.runtime.relay import Relay
from romancy_stream.store.port import PartitionSnapshot
from romancy_stream.wire.record import TP, OutRecord, Record
from tests.support import eventually
from tests.support.gated import GatedStore, gated_app

PATIENCE_S = 120
MARKER = b"a marker"


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
async def test_nothing_leaves_the_process_before_the_commit_that_decided_it(
    tmp_path: Path, breaks: bool, eager: bool
) -> None:
    """Nor does a task that stays in the process begin. Also not when the first try of the commit ended with an unknown
    outcome."""
    ran: list[str] = []
    seen: list[bytes | None] = []

    async def collect(records: Sequence[Record]) -> None:
        seen.extend(record.value for record in records)

    def markers(count: int) -> bool:
        return seen.count(MARKER) == count

    app = gated_app(tmp_path, ran, eager=eager)
    async with app:
        await app.wait_assigned()
        topics = [app.topics.events, app.topics.tasks("default")]
        tail = app._broker.tail(topics, collect)
        await tail.start()
        app.store.gate.clear()
        app.store.breaks = breaks
        handle = await app.start_by_name("hello", "Ada")
        result = asyncio.create_task(handle.result(timeout=PATIENCE_S))
        await app.store.waiting.wait()
        for round_ in (1, 2, 3):  # whatever was sent before these is seen with the last of them at the latest
            for topic in topics:
                [sent] = await app._broker.send([OutRecord(topic, b"k", MARKER, [])])
                await sent
            await eventually(partial(markers, round_ * len(topics)))
        assert set(seen) == {MARKER}
        assert not ran
        assert not result.done()
        app.store.gate.set()
        assert await result == "hello Ada"
        # Asked, started, completed; and a task.
        await eventually(lambda: len(seen) == 6 + (3 if eager else 4))
        await tail.stop()


async def test_where_to_read_on_commits_with_what_was_read(tmp_path: Path) -> None:
    """A second life reads nothing that the first one took in, and misses nothing that came in between."""
    ran: list[str] = []
    async with gated_app(tmp_path, ran):
        pass  # makes topics and tables
    for name in ("Ada", "Bob"):
        app = gated_app(tmp_path, ran)
        async with app.client() as client:
            await client.start_by_name("hello", name, instance_id=name)
        async with app:
            assert await app.handle(name).result(timeout=PATIENCE_S) == f"hello {name}"
            assert app._node is not None
            assert app._node.engine is not None
            assert app._node.engine.core.stats["duplicate_start"] == 0
    assert ran == ["Ada", "Bob"]


async def test_who_is_no_member_any_more_loads_nothing(tmp_path: Path) -> None:
    """Between the assignment and the new epoch the group may have moved on."""
    app = gated_app(tmp_path, [])
    async with app:
        pass  # makes topics and tables
    store, broker = app.make_store(), app.make_broker()
    await store.open()
    await broker.open()
    core = EngineCore(CoreConfig(app.namespace, app.partitions, RetryPolicy()), app.registry.workflows)
    relay = Relay(broker)
    processor = Processor(core, store, relay, "latecomer", lambda commit: None, lambda owned: None)
    topics = [app.topics.commands, app.topics.results]
    processor.source = broker.batches(topics, f"{app.namespace}.engine", processor)  # never joined
    with pytest.raises(FencedError, match="moved on"):
        await processor.on_assigned({TP(topic, 0) for topic in topics})
    assert core.owned == frozenset()
    await relay.close()
    await broker.close()
    await store.close()


class OvertakenStore(GatedStore):
    """While `overtaken`, somebody else takes over, and commits once, just before the snapshot is read,
    or before anybody finds out about a commit."""

    overtaken = False

    async def snapshot(self, parts: Sequence[int]) -> Sequence[PartitionSnapshot]:
        await self._overtake(parts)
        return await super().snapshot(parts)

    async def find_out(self, marks: Sequence[Mark], owner: str) -> bool:
        await self._overtake([mark.part for mark in marks])
        return await super().find_out(marks, owner)

    async def _overtake(self, parts: Sequence[int]) -> None:
        if self.overtaken:
            self.overtaken = False
            await super().take_over(parts, "somebody else")
            async with self.db.writing("commit as somebody else") as connection:
                await connection.execute(text("UPDATE romancy_partitions SET commit_no = commit_no + 1"))


async def test_who_was_overtaken_while_loading_does_not_share_the_new_owners_epoch(tmp_path: Path) -> None:
    app = gated_app(tmp_path, [])
    async with app:
        pass  # makes topics and tables
    store, broker = OvertakenStore(app.database_url), app.make_broker()
    await store.open()
    await broker.open()
    store.overtaken = True
    core = EngineCore(CoreConfig(app.namespace, app.partitions, RetryPolicy()), app.registry.workflows)
    relay = Relay(broker)
    processor = Processor(core, store, relay, "latecomer", lambda commit: None, lambda owned: None)
    with pytest.raises(FencedError, match="while it was loaded"):
        await processor.on_assigned({TP(topic, 0) for topic in (app.topics.commands, app.topics.results)})
    assert core.owned == frozenset()
    await relay.close()
    await broker.close()
    await store.close()


async def test_a_lost_commit_is_not_taken_for_that_of_another_owner(tmp_path: Path) -> None:
    """The commit number has moved on by one, as it would have with ours."""
    app = gated_app(tmp_path, [])
    app.store_class = OvertakenStore
    async with app:
        await app.wait_assigned()
        assert isinstance(app.store, OvertakenStore)
        app.store.breaks = app.store.overtaken = True
        handle = await app.start_by_name("hello", "Ada")
        assert await handle.result(timeout=PATIENCE_S) == "hello Ada"
        assert not app.store.breaks
        assert not app.store.overtaken
