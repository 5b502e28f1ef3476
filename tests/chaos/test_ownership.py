"""Partitions that somebody else has taken over in the database, and logs that are not the ones that the database knows:
the first is met by starting again, the second by stopping with the way out."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from romancy_stream import App, LogIdentityError
from tests.chaos.checks import check, tables
from tests.chaos.program import PARTITIONS, plan, program
from tests.chaos.scene import start_all
from tests.support import eventually

PATIENCE_S = 120
STEP = 12
LET_GO = "lets go of its partitions"


@pytest.mark.parametrize("database", ["sqlite_db", pytest.param("postgres_db", marks=pytest.mark.postgres)])
async def test_an_owner_that_lost_its_partitions_in_the_database_starts_again(
    database: str,
    namespace: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody raises the epochs by SQL, in the middle of the work, again and again: every commit of the old epoch is
    refused as a whole."""
    work = list(plan(60))
    app = program(namespace, broker=f"embedded://{tmp_path / 'log'}", database=request.getfixturevalue(database))
    async with tables(app) as looking:
        async with app:
            for first in range(0, len(work), STEP):
                *most, last = work[first : first + STEP]
                await start_all(app, most)
                with caplog.at_level(logging.WARNING, "romancy_stream.runtime.service"):
                    caplog.clear()
                    await looking.execute("UPDATE romancy_partitions SET epoch = epoch + 1, owner = 'somebody else'")
                    await start_all(app, [last])  # all the others may have finished by now
                    await eventually(lambda: LET_GO in caplog.text, deadline_s=PATIENCE_S)
            for instance_id, *_ in work:
                await app.handle(instance_id).result(timeout=PATIENCE_S)
        await check(app, looking, work)


# -- the log is another one ------------------------------------------------------------------------------------------


def make_app(name: str, broker: str, folder: Path) -> App:
    return program(name, broker=broker, database=f"sqlite:///{folder / 'state.db'}")


async def run_a_little(app: App) -> None:
    async with app:
        handle = await app.start_by_name("steps", 1)
        await handle.result(timeout=PATIENCE_S)


async def delete_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()


@pytest.mark.kafka
async def test_a_topic_that_was_made_again_on_kafka(namespace: str, kafka_bootstrap: str, tmp_path: Path) -> None:
    app = make_app(namespace, f"kafka://{kafka_bootstrap}", tmp_path)
    await run_a_little(app)
    await delete_topic(kafka_bootstrap, app.topics.results)
    broker = app.make_broker()
    await broker.open()
    try:

        async def gone() -> bool:
            return app.topics.results not in await broker.topics()

        await eventually(gone, deadline_s=PATIENCE_S)
    finally:
        await broker.close()
    await refuses_to_start(app)


async def test_a_topic_that_was_made_again_in_the_embedded_log(namespace: str, tmp_path: Path) -> None:
    app = make_app(namespace, f"embedded://{tmp_path / 'log'}", tmp_path)
    await run_a_little(app)
    shutil.rmtree(tmp_path / "log")
    await refuses_to_start(app)


async def refuses_to_start(app: App) -> None:
    with pytest.raises(LogIdentityError, match=r"romancy doctor .*--accept-topics"):
        await app.__aenter__()


@pytest.mark.parametrize("kind", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_a_position_behind_the_end_of_the_log(
    kind: str, namespace: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same topic, but without its last records: it was restored from a backup, or lost a disk."""
    kafka = kind == "kafka"
    broker = f"kafka://{request.getfixturevalue('kafka_bootstrap')}" if kafka else f"embedded://{tmp_path / 'log'}"
    app = make_app(namespace, broker, tmp_path)
    await run_a_little(app)
    async with tables(app) as looking:
        before = await looking.rows("SELECT part, next_offset FROM romancy_offsets ORDER BY topic, part")
        await looking.execute("UPDATE romancy_offsets SET next_offset = next_offset + 1000000")
        async with app:
            with pytest.raises(LogIdentityError, match=r"ends at offset \d+, .* Restore"):
                async with asyncio.timeout(PATIENCE_S):
                    await app.wait_failed()
        after = await looking.rows("SELECT part, next_offset - 1000000 FROM romancy_offsets ORDER BY topic, part")
        assert after == before
        assert len(await looking.epochs()) == PARTITIONS
