"""How a batch source on a real Kafka ends: asked to, cancelled, by an error of the handler, of the
coordinator or of the log; and what it leaves behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.kafka.source import FaustBatchSource
from romancy_stream.broker.port import TP, Broker
from romancy_stream.errors import BrokerUnavailableError, LogIdentityError
from tests.broker.kafka_kit import FAST, Handler, make_topic, produce, record, running
from tests.support import eventually

pytestmark = pytest.mark.kafka


async def test_stop_from_inside_the_handler(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)

    async def stop(_batch: object) -> None:
        await source.stop()

    handler.before_batch = stop
    task = asyncio.create_task(source.run())
    await produce(kafka, name, 1)
    await asyncio.wait_for(task, 90)
    assert handler.book.count == 1
    assert handler.revoked == [{TP(name, 0)}]


async def test_stop_waits_for_the_running_batch(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    handler = Handler()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def linger(_batch: object) -> None:
        inside.set()
        await go_on.wait()

    handler.before_batch = linger
    source = kafka.batches([name], name, handler)
    task = asyncio.create_task(source.run())
    await produce(kafka, name, 1)
    await asyncio.wait_for(inside.wait(), 90)
    stopping = asyncio.create_task(source.stop())
    assert isinstance(source, FaustBatchSource)
    consumer = source._consumer
    assert consumer is not None
    await eventually(lambda: consumer.should_stop)
    assert not task.done()
    go_on.set()
    await asyncio.wait_for(stopping, 90)
    await task
    assert handler.book.count == 1


async def test_a_cancelled_run_cleans_up(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    handler = Handler()
    before = asyncio.all_tasks()
    task = asyncio.create_task(kafka.batches([name], name, handler).run())
    await eventually(lambda: handler.owned)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handler.revoked == [{TP(name, 0)}]
    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


@pytest.mark.parametrize("where", ["before_assigned", "before_batch"])
async def test_what_the_handler_raises_ends_run(kafka: Broker, name: str, where: str) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 1)
    handler = Handler()

    async def fail(*_args: object) -> None:
        raise KeyError("broken on purpose")

    setattr(handler, where, fail)
    source = kafka.batches([name], name, handler)
    with pytest.raises(KeyError, match="broken on purpose"):
        await asyncio.wait_for(source.run(), 90)
    with pytest.raises(RuntimeError, match="runs once"):
        await source.run()
    again = Handler()
    async with running(kafka.batches([name], name, again)):
        await eventually(lambda: again.book.count == 1)


async def test_a_position_behind_the_end_is_refused(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 3)
    handler = Handler()
    handler.book.next[TP(name, 0)] = 4
    with pytest.raises(LogIdentityError, match="ends at offset 3, but offset 4 is the next") as caught:
        await asyncio.wait_for(kafka.batches([name], name, handler).run(), 90)
    assert "Restore it" in str(caught.value)
    assert handler.batches == []


async def test_records_that_retention_deleted_unprocessed_are_reported(kafka: KafkaBroker, name: str) -> None:
    await make_topic(kafka, name)
    await produce(kafka, name, 10)
    await delete_records(kafka.bootstrap, name, 6)
    handler = Handler()
    handler.book.next[TP(name, 0)] = 5
    with pytest.raises(LogIdentityError, match="begins at offset 6, but offset 5 is the next") as caught:
        await asyncio.wait_for(kafka.batches([name], name, handler).run(), 90)
    assert "retention" in str(caught.value)
    assert handler.batches == []


async def test_records_that_retention_deletes_under_a_held_partition(kafka: KafkaBroker, name: str) -> None:
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    task = asyncio.create_task(source.run())
    await produce(kafka, name, 10)
    await eventually(lambda: handler.book.count == 10)
    await delete_records(kafka.bootstrap, name, 8)
    await source.rewind(TP(name, 0), 2)
    with pytest.raises(LogIdentityError, match="begins at offset 8, but offset 2 is the next"):
        await asyncio.wait_for(task, 90)


async def delete_records(bootstrap: str, topic: str, before_offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset)})
    finally:
        await admin.close()


async def test_a_missing_position_is_a_mistake_of_the_handler(kafka: Broker, name: str) -> None:
    class Forgetful(Handler):
        async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
            return {}

    await make_topic(kafka, name)
    with pytest.raises(ValueError, match="no position for"):
        await asyncio.wait_for(kafka.batches([name], name, Forgetful()).run(), 90)


async def test_nobody_answers(name: str) -> None:
    source = FaustBatchSource([name], name, Handler(), bootstrap="127.0.0.1:1", client_id="test", settings=FAST)
    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(source.run(), 90)


async def test_it_leaves_no_files_and_no_logging_behind(
    kafka: Broker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, temporary = tmp_path / "work", tmp_path / "tmp"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("faust").level, os.environ.copy())
    await make_topic(kafka, name)
    handler = Handler()
    async with running(kafka.batches([name], name, handler)):
        await produce(kafka, name, 1)
        await eventually(lambda: handler.book.count == 1)
    assert (root.level, list(root.handlers), logging.getLogger("faust").level, os.environ.copy()) == before
    assert not list(work.iterdir())
    assert not list(temporary.iterdir())


async def test_only_our_topics_exist(kafka: Broker, name: str) -> None:
    await make_topic(kafka, name)
    before = set(await kafka.topics())
    handler = Handler()
    async with running(kafka.batches([name], name, handler)):
        await asyncio.gather(*await kafka.send([record(name, b"1", 0)]))
        await eventually(lambda: handler.book.count == 1)
    assert {each for each in await kafka.topics() if name in each} == {name} <= before


@pytest.mark.parametrize("held", [False, True])
async def test_an_error_of_the_coordinator_ends_run(kafka: Broker, name: str, held: bool) -> None:
    """aiokafka keeps it for whoever asks next, and until then neither beats nor rejoins."""
    await make_topic(kafka, name)
    handler = Handler()
    source = kafka.batches([name], name, handler)
    task = asyncio.create_task(source.run())
    await eventually(lambda: handler.owned)
    assert isinstance(source, FaustBatchSource)
    assert source._consumer is not None
    if held:
        source.hold(*handler.owned)
    coordinator = source._consumer._aio._coordinator
    unanswered = asyncio.ensure_future(coordinator._push_error_to_user(kafka_errors.UnknownError("from the broker")))
    with pytest.raises(BrokerUnavailableError, match="from the broker"):
        await asyncio.wait_for(task, 90)
    await unanswered
    assert handler.revoked == [{TP(name, 0)}]


async def test_a_hung_consumer_is_built_anew(kafka_bootstrap: str, name: str) -> None:
    settings = KafkaSettings(session_timeout_ms=2_000, heartbeat_interval_ms=300, stall_limit_ms=800)
    broker = KafkaBroker(kafka_bootstrap, client_id="test", settings=settings)
    await broker.open()
    try:
        await make_topic(broker, name, partitions=2)
        handler = Handler()
        source = broker.batches([name], name, handler)
        async with running(source):
            await produce(broker, name, 10, partitions=2)
            await eventually(lambda: handler.book.count == 10)
            assert isinstance(source, FaustBatchSource)
            assert source._consumer is not None
            source.hold(TP(name, 1))
            fetcher = source._consumer._aio._fetcher
            fetcher._fetch_task.cancel()  # as the reports describe it: it fetches no more
            await eventually(lambda: all(task.done() for task in fetcher._pending_tasks))
            await produce(broker, name, 10, partitions=2, start=10)
            await eventually(lambda: len(handler.book.values[TP(name, 0)]) == 10, deadline_s=120)
            assert len(handler.book.values[TP(name, 1)]) == 5
            source.release(TP(name, 1))
            await eventually(lambda: handler.book.count == 20)
        assert handler.assigned_count == 2
    finally:
        await broker.close()
