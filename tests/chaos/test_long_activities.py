"""Worker processes that hold a long attempt and are killed, or frozen: another one gets it, once, and goes on where the
first had come to; and a worker that is alive keeps it, whatever the group does meanwhile.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import App
from romancy_stream.engine.commit import ActivityKey
from romancy_stream.store.port import Detached
from romancy_stream.store.sql import SqlStore
from tests.chaos.longing import FOLDER, longing
from tests.chaos.processes import ROMANCY, Process, Processes
from tests.chaos.scene import SESSION, TAKEOVER_S
from tests.support import eventually

LONG = ActivityKey("long", 1, "crunch:1")

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]


class Workers(Processes):
    def only(self, name: str) -> Process:
        return self._start(name, ["-c", ROMANCY, "worker", "tests.chaos.longing:app", "--roles", "worker"])

    def by_pid(self, pid: int) -> Process:
        return next(process for process in self.all if process.pid == pid)


@dataclass
class Stage:
    app: App
    store: SqlStore
    workers: Workers
    folder: Path

    def notes(self, what: str) -> list[int]:
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(what)]

    async def noted(self, what: str, count: int) -> list[int]:
        await eventually(lambda: len(self.notes(what)) >= count, deadline_s=TAKEOVER_S, message=f"{count} x {what}")
        assert len(self.notes(what)) == count
        return self.notes(what)

    async def detached(self) -> list[Detached]:
        """Whether their leases have lapsed or not."""
        return list((await self.store.detached([LONG])).values())

    async def long_one(self) -> Process:
        """Under way in this process, and detached."""
        await self.app.start_by_name("crunching", instance_id="long")
        (pid,) = await self.noted("began", 1)
        await eventually(self.detached, deadline_s=TAKEOVER_S, message="the worker has committed past it")
        return self.workers.by_pid(pid)

    async def serves(self, process: Process) -> None:
        """Until it has a part of the queue."""

        async def asked() -> bool:
            handle = await self.app.start_by_name("quickly")
            return bool(await handle.result(timeout=TAKEOVER_S) == process.pid)

        await eventually(asked, deadline_s=TAKEOVER_S, every_s=0.2, message=f"{process.name} gets tasks")

    def go(self) -> None:
        (self.folder / "go").touch()

    @property
    def dispatched_again(self) -> int:
        assert self.app._node is not None
        assert self.app._node.engine is not None
        return self.app._node.engine.core.stats["dispatched_again"]


@pytest.fixture
async def stage(
    namespace: str,
    kafka_bootstrap: str,
    postgres_db: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    """An engine in this process, and workers in others."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr("romancy_stream.runtime.lapses.LOOK_EVERY_S", 0.5)
    monkeypatch.setattr("romancy_stream.runtime.lapses.LOOK_AGAIN_S", 1.0)
    broker = f"kafka://{kafka_bootstrap}{SESSION}"
    async with _stage(longing(namespace, broker=broker, database=postgres_db), tmp_path) as made:
        yield made


@asynccontextmanager
async def _stage(app: App, folder: Path) -> AsyncIterator[Stage]:
    environment = {
        "ROMANCY_NAMESPACE": app.namespace,
        "ROMANCY_BROKER": app.broker_url,
        "ROMANCY_DATABASE": app.database_url,
        FOLDER: str(folder),
    }
    workers, store = Workers(environment, folder), app.make_store()
    await store.open()
    try:
        async with app.running(roles=["engine"]):
            yield Stage(app, store, workers, folder)
    except BaseException:
        print(workers.report())
        raise
    finally:
        workers.end_anyway()
        await store.close()


async def test_a_killed_workers_long_attempt_is_anothers(stage: Stage) -> None:
    for name in ("a", "b"):
        stage.workers.only(name)
    holder = await stage.long_one()
    await holder.kill()
    first, second = await stage.noted("began", 2)
    assert first != second
    stage.go()
    result: Any = await stage.app.handle("long").result(timeout=TAKEOVER_S)
    assert result == {"by": second, "after": {"by": first}}
    assert stage.dispatched_again == 1
    await stage.workers.stop()
    assert (stage.notes("began"), stage.notes("ended")) == ([first, second], [second])


async def test_a_frozen_workers_long_attempt_is_anothers_and_it_hears_of_that(stage: Stage) -> None:
    for name in ("a", "b"):
        stage.workers.only(name)
    holder = await stage.long_one()
    holder.send(signal.SIGSTOP)
    first, second = await stage.noted("began", 2)
    assert (first, first != second) == (holder.pid, True)
    holder.send(signal.SIGCONT)
    assert await stage.noted("cancelled", 1) == [first]
    stage.go()
    result: Any = await stage.app.handle("long").result(timeout=TAKEOVER_S)
    assert result == {"by": second, "after": {"by": first}}
    assert stage.dispatched_again == 1
    await stage.workers.stop()


async def test_a_long_attempt_stays_where_it_is_while_workers_come_and_go(stage: Stage) -> None:
    stage.workers.only("a")
    holder = await stage.long_one()
    for name in ("b", "c"):
        process = stage.workers.only(name)
        await stage.serves(process)
        if name == "b":
            await process.kill()
    stage.go()
    assert await stage.app.handle("long").result(timeout=TAKEOVER_S) == {"by": holder.pid, "after": None}
    assert stage.dispatched_again == 0
    await stage.workers.stop()
    assert stage.notes("began") == stage.notes("ended") == [holder.pid]
