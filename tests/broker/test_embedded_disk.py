"""The embedded log's file: disks that fail, files that are damaged, and what retention may take."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.broker.embedded import log as log_module
from romancy_stream.broker.embedded.disk import Disk
from romancy_stream.broker.port import TP, AssignedRange, OutRecord, Record, TopicSpec
from romancy_stream.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    LogIdentityError,
)
from tests.broker.embedded_kit import TOPIC, opened, read_all, rows
from tests.broker.recording import DEADLINE_S, Recorder, TaskRecorder, append, numbered, running, started
from tests.support import eventually


# -- a disk that fails -----------------------------------------------------------------------------------------
@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file of this process may grow further than broker.db and its log have."""
    size = max(file.stat().st_size for file in path.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_fails_everything_and_loses_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    broker = EmbeddedBroker(tmp_path)
    await broker.open()
    await broker.create_topics([TopicSpec(TOPIC, 1)])
    await append(broker, numbered(TOPIC, range(10)))
    run = asyncio.create_task(broker.batches([TOPIC], "engine", recorder).run())
    workers = broker.tasks([TOPIC], "workers", TaskRecorder())
    await workers.start()
    assert len(await workers.fetch(100)) == 10
    await recorder.received(10)
    with full_disk(tmp_path):
        futures = await broker.send([OutRecord(TOPIC, b"", b"x" * 1_000_000, []) for _ in range(20)])
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert {type(result) for result in results} == {BrokerUnavailableError}
        with pytest.raises(BrokerUnavailableError, match="cannot be written"):
            await asyncio.wait_for(run, DEADLINE_S)
    for call in (
        broker.send(numbered(TOPIC, range(1))),
        broker.create_topics([TopicSpec("t.more", 1)]),
        workers.fetch(1),
        workers.commit({TP(TOPIC, 0): 10}),
    ):
        with pytest.raises(BrokerUnavailableError, match="cannot be written"):
            await call
    await workers.stop()
    await broker.close()
    async with opened(tmp_path) as again:
        assert await append(again, numbered(TOPIC, range(10, 11))) == [10]
        assert [r.value for r in await read_all(again, 11)] == [b"%d" % n for n in range(11)]


async def test_a_disk_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "DELIVERY_LIMIT_S", 0.1)
    monkeypatch.setattr(log_module, "CLOSE_LIMIT_S", 0.1)
    gate = threading.Event()
    broker = EmbeddedBroker(tmp_path)
    await broker.open()
    await broker.create_topics([TopicSpec(TOPIC, 1)])
    disk = broker._log._disk
    disk.submit(lambda _: gate.wait(), lambda *_: None)
    try:
        for future in await broker.send(numbered(TOPIC, range(3))):
            with pytest.raises(BrokerUnavailableError, match="has not synced"):
                await asyncio.wait_for(future, DEADLINE_S)
        with pytest.raises(BrokerUnavailableError, match="did not answer"):
            await broker.close()
    finally:
        gate.set()
    await disk.stop()  # what the operating system does when the process ends
    async with opened(tmp_path) as again:
        assert (await append(again, numbered(TOPIC, range(1))))[0] in (0, 3)  # "it may still arrive"


async def test_every_transaction_is_synced(tmp_path: Path) -> None:
    """A kill cannot show it: what the kernel has survives the process."""

    def ask(disk: Disk) -> list[object]:
        return [disk._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]

    async with opened(tmp_path) as broker:
        assert await broker._log._disk.call(ask) == [2, "wal"]  # 2 is FULL


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broker.db").write_bytes(b"what is this?" * 1_000)
    with pytest.raises(BrokerUnavailableError, match=r"broker\.db"):
        await EmbeddedBroker(tmp_path).open()
    (tmp_path / "broker.db").unlink()
    async with opened(tmp_path) as broker:  # and the lock is free
        await append(broker, numbered(TOPIC, range(1)))


async def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    rows(tmp_path, "PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="format 99"):
        await EmbeddedBroker(tmp_path).open()


async def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerUnavailableError, match="cannot use the folder"):
        await EmbeddedBroker(tmp_path / "file" / "log").open()


@pytest.mark.parametrize("damage", ["DELETE FROM chunks WHERE chunk_no = 10", "UPDATE chunks SET data = x'0102'"])
async def test_a_damaged_log_is_fatal_to_its_readers(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path, TopicSpec(TOPIC, 1)) as broker:
        for n in range(3):
            await append(broker, numbered(TOPIC, range(n * 10, n * 10 + 10)))
    with closing(sqlite3.connect(tmp_path / "broker.db")) as db:
        db.execute(damage)
        db.commit()
    async with opened(tmp_path) as broker:
        source = broker.batches([TOPIC], "reader", Recorder({TP(TOPIC, 0): 10}))
        with pytest.raises(BrokerUnavailableError, match=r"t\.commands/0 cannot be read at offset 10"):
            await asyncio.wait_for(source.run(), DEADLINE_S)


# -- retention -------------------------------------------------------------------------------------------------
async def _three_chunks(broker: EmbeddedBroker, engine_at: int) -> None:
    """Of ten records each in partition 0; the engine's group has read up to there."""
    for n in range(3):
        await append(broker, numbered(TOPIC, range(n * 10, n * 10 + 10), 0))
    recorder = Recorder()
    source = broker.batches([TOPIC], "engine", recorder)
    async with running(source):
        await recorder.received(30)
        await source.commit_hint({TP(TOPIC, 0): engine_at})


async def _is_trimmed(path: Path, chunks: list[int]) -> None:
    await eventually(lambda: rows(path, "SELECT chunk_no FROM chunks") == [(each,) for each in chunks])


async def test_retention_keeps_what_a_group_still_needs(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await _three_chunks(broker, engine_at=15)
    async with opened(tmp_path, retention_s=0) as broker:
        await _is_trimmed(tmp_path, [10, 20])
        with pytest.raises(LogIdentityError, match="begins at offset 10"):
            await broker.batches([TOPIC], "engine", Recorder({TP(TOPIC, 0): 5})).run()
        assert len(await read_all(broker, 20, {TP(TOPIC, 0): 10})) == 20


async def test_retention_that_is_under_way_when_somebody_begins_to_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await _three_chunks(broker, engine_at=15)
    async with opened(tmp_path, retention_s=0) as broker:
        with pytest.raises(LogIdentityError, match="begins at offset 10"):
            await broker.batches([TOPIC], "engine", Recorder({TP(TOPIC, 0): 5})).run()
        assert len(await read_all(broker, 20, {TP(TOPIC, 0): 10})) == 20


async def test_retention_that_is_under_way_when_a_worker_begins_to_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await _three_chunks(broker, engine_at=15)
    async with (
        opened(tmp_path, retention_s=0) as broker,
        started(broker.tasks([TOPIC], "workers", TaskRecorder())) as source,
    ):
        assert (await source.fetch(1))[0].offset == 10


async def test_retention_that_overtakes_a_tail_is_a_gap(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await _three_chunks(broker, engine_at=15)
    seen, gaps = list[int](), list[BaseException | None]()

    async def on_records(records: Sequence[Record]) -> None:
        seen.extend(r.offset for r in records)

    async with opened(tmp_path, retention_s=0) as broker:
        await _is_trimmed(tmp_path, [10, 20])
        tail = broker.tail([TOPIC], on_records, gaps.append)
        await tail.start()
        tail._reader.seek(broker._log.topics[TOPIC].partitions[0], 5)  # type: ignore[attr-defined]
        await eventually(lambda: seen == list(range(10, 30)))
        await append(broker, numbered(TOPIC, range(1), 0))
        await eventually(lambda: seen == list(range(10, 31)))
        await tail.stop()
    assert gaps == [None]


async def test_a_tail_of_a_log_that_fails_says_so(tmp_path: Path) -> None:
    gaps: list[BaseException | None] = []

    async def on_records(records: Sequence[Record]) -> None:
        raise AssertionError(records)

    async with opened(tmp_path) as broker:
        tail = broker.tail([TOPIC], on_records, gaps.append)
        await tail.start()
        broker._log.fail(BrokerUnavailableError("the disk is gone"))
        await eventually(lambda: gaps)
        late = broker.tail([TOPIC], on_records, gaps.append)
        await late.start()
        await eventually(lambda: len(gaps) == 2)
        await tail.stop()
        await late.stop()
    assert [str(each) for each in gaps] == 2 * ["the disk is gone"]


async def test_retention_keeps_what_is_young(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await _three_chunks(broker, engine_at=30)
    async with opened(tmp_path, retention_s=3_600) as broker:
        assert len(await read_all(broker, 30)) == 30


async def test_the_newest_chunk_stays_so_that_offsets_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await _three_chunks(broker, engine_at=30)
    for _ in range(2):
        async with opened(tmp_path, retention_s=0):
            await _is_trimmed(tmp_path, [20])
    async with opened(tmp_path) as broker:
        assert await append(broker, numbered(TOPIC, range(1), 0)) == [30]
        recorder = TaskRecorder()
        async with started(broker.tasks([TOPIC], "workers", recorder)) as source:
            assert [r.offset for r in await source.fetch(5)] == [20, 21, 22, 23, 24]
            assert recorder.ranges[TP(TOPIC, 0)] == AssignedRange(20, 31)


async def test_a_large_file_loses_only_what_groups_have_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await _three_chunks(broker, engine_at=20)
        await append(broker, numbered(TOPIC, range(5), 0))
        await broker.create_topics([TopicSpec("t.unread", 1)])
        for n in range(3):
            await append(broker, numbered("t.unread", range(n, n + 1)))
    async with opened(tmp_path, retention_bytes=0):
        unread = [4 * (1 << 40) + n for n in range(3)]
        await _is_trimmed(tmp_path, [20, 30, *unread])


async def test_a_topics_own_retention_goes_first(tmp_path: Path) -> None:
    async with opened(tmp_path, TopicSpec(TOPIC, 4, {"retention.ms": "0"})) as broker:
        await _three_chunks(broker, engine_at=30)
    async with opened(tmp_path):
        await _is_trimmed(tmp_path, [20])


async def test_retention_also_runs_while_the_log_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "TRIM_EVERY_CHUNKS", 10)
    async with opened(tmp_path, TopicSpec(TOPIC, 1), retention_s=0) as broker:
        recorder = Recorder()
        source = broker.batches([TOPIC], "engine", recorder)
        async with running(source):
            for n in range(100):
                await append(broker, numbered(TOPIC, range(n, n + 1)))
                await recorder.received(n + 1)
                await source.commit_hint({TP(TOPIC, 0): n + 1})
            await eventually(lambda: rows(tmp_path, "SELECT count(*) FROM chunks")[0][0] <= 20)
