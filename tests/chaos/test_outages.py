"""Servers that are killed and come back while processes work on them, or that fall silent: nobody ends, nobody runs in
circles, everything is done once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from romancy_stream import Client, Handle
from tests.chaos.processes import PrivateServers, Process
from tests.chaos.program import PARTITIONS, output, plan
from tests.chaos.scene import SESSION, scene, start_all
from tests.support import eventually, fresh_mariadb, fresh_postgres

pytestmark = pytest.mark.timeout(600)

LET_GO = "lets go of its partitions"
OUTAGE_S = 120.0  # by then a process has noticed
LINES_LIMIT = 1_500  # of one process, in all outages of a test; running in circles makes thousands


@pytest.fixture
def private_kafka(private_servers: PrivateServers) -> str:
    return f"kafka://{private_servers.start('kafka')}{SESSION}"


@pytest.fixture
def private_postgres(private_servers: PrivateServers) -> Iterator[str]:
    with fresh_postgres(private_servers.start("postgres")) as url:
        yield url


@pytest.fixture
def private_mariadb(private_servers: PrivateServers) -> Iterator[str]:
    with fresh_mariadb(private_servers.start("mariadb")) as url:
        yield url


def check_log(process: Process) -> None:
    assert len(process.lines) < LINES_LIMIT, "\n".join(process.lines[-50:])


@asynccontextmanager
async def they_let_go(*processes: Process) -> AsyncIterator[None]:
    """Of what happens in the block: they may notice before the one that kills a server has returned."""
    before = {process: process.count(LET_GO) for process in processes}
    yield
    await eventually(lambda: all(process.count(LET_GO) > before[process] for process in processes), deadline_s=OUTAGE_S)


@pytest.mark.kafka
@pytest.mark.postgres
async def test_postgres_is_killed_and_stays_away_for_a_while(
    namespace: str, kafka_bootstrap: str, private_postgres: str, private_servers: PrivateServers, tmp_path: Path
) -> None:
    work = list(plan(100))
    async with scene(namespace, f"kafka://{kafka_bootstrap}{SESSION}", private_postgres, tmp_path) as stage:
        first, second = stage.processes.worker("first"), stage.processes.worker("second")
        await stage.share(first, second)
        async with stage.app.client() as client, asyncio.TaskGroup() as starting:
            starting.create_task(start_all(client, work[:50]))
            await stage.completed(20)
            private_servers.kill("postgres")
            await private_servers.restart("postgres")
            await stage.completed(30)
            starting.create_task(start_all(client, work[50:]))
            async with they_let_go(first, second):
                private_servers.kill("postgres")
            await private_servers.restart("postgres")
        await stage.finish(work)
        check_log(first)
        check_log(second)


@pytest.mark.mariadb
async def test_mariadb_is_killed_and_stays_away_for_a_while(
    namespace: str, private_mariadb: str, private_servers: PrivateServers, tmp_path: Path
) -> None:
    """One process with everything in it, also those who wait for the results."""
    work = list(plan(80))
    async with scene(namespace, f"embedded://{tmp_path / 'log'}", private_mariadb, tmp_path) as stage:
        process = stage.processes.alone("alone", len(work))
        await stage.completed(10)
        private_servers.kill("mariadb")
        await private_servers.restart("mariadb")
        await stage.completed(20)
        async with they_let_go(process):
            private_servers.kill("mariadb")
        await private_servers.restart("mariadb")
        assert await process.ended() == 0
        await stage.finish(work, tidy=False)
        check_log(process)


@pytest.mark.kafka
@pytest.mark.postgres
async def test_kafka_is_killed(
    namespace: str, private_kafka: str, postgres_db: str, private_servers: PrivateServers, tmp_path: Path
) -> None:
    """Who waits for a result waits on, and who begins to wait meanwhile does not hear of the outage."""
    work = list(plan(60))
    async with scene(namespace, private_kafka, postgres_db, tmp_path) as stage:
        first, second = stage.processes.worker("first"), stage.processes.worker("second")
        await stage.share(first, second)
        async with (
            stage.app.client() as client,
            stage.app.client() as late,
            asyncio.TaskGroup() as working,
        ):
            working.create_task(start_all(client, work))
            waiting = [working.create_task(result(client, each)) for each in work]
            await stage.completed(20)
            private_servers.kill("kafka")
            waiting += [working.create_task(result(late, each)) for each in work[-10:]]
            await eventually(lambda: first.count("NodeNotReadyError"), deadline_s=OUTAGE_S)
            await private_servers.restart("kafka")
            assert [await each for each in waiting] == [output(*each[1:]) for each in work + work[-10:]]
        await stage.finish(work)
        check_log(first)
        check_log(second)


async def result(client: Client, each: tuple[str, str, int]) -> int:
    handle: Handle[int] = client.handle(each[0])
    return await handle.result(timeout=OUTAGE_S)


@pytest.mark.kafka
@pytest.mark.postgres
async def test_leaving_while_a_server_does_not_answer(
    namespace: str, private_kafka: str, private_postgres: str, private_servers: PrivateServers, tmp_path: Path
) -> None:
    """It accepts connections and says nothing, as behind a broken network."""
    work = list(plan(80))
    async with scene(namespace, private_kafka, private_postgres, tmp_path) as stage:
        for frozen, some in ("postgres", work[:40]), ("kafka", work[40:]):
            leaving = stage.processes.worker(f"without-{frozen}")
            await stage.owns(leaving, PARTITIONS)
            async with stage.app.client() as client, asyncio.TaskGroup() as starting:
                before = await stage.tables.completed()
                starting.create_task(start_all(client, some))
                await stage.completed(before + 10)
                private_servers.pause(frozen)
                try:
                    leaving.send(signal.SIGTERM)
                    assert await leaving.ended() == 0
                finally:
                    private_servers.resume(frozen)
        stage.processes.worker("successor")
        await stage.finish(work)
