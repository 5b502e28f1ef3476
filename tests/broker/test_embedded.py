"""The embedded log beyond the port: what survives a crash, who may use it, and what goes to the disk when."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.broker.embedded import log as log_module
from romancy_stream.broker.port import TP, OutRecord, Record, TopicSpec
from romancy_stream.errors import (
    BrokerUnavailableError,
    EmbeddedBrokerInUseError,
    RecordRefusedError,
)
from tests.broker.embedded_kit import TOPIC, opened, program, read_all, rows
from tests.broker.recording import DEADLINE_S, Recorder, TaskRecorder, append, numbered, running, settled, started
from tests.support import eventually

# -- crash and restart -----------------------------------------------------------------------------------------
APPEND_FOR_EVER = """
import asyncio, sys
from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.broker.port import OutRecord, TopicSpec

async def sender(broker, name):
    n = 0
    while True:
        records = [OutRecord("t.commands", b"%d" % (n + i), b"%s-%d" % (name, n + i), [("h", b"v")]) for i in range(7)]
        futures = await broker.send(records)
        n += 7
        for record, future in zip(records, futures):
            print(record.key.decode(), await future, record.value.decode())

async def main():
    broker = EmbeddedBroker(sys.argv[1])
    await broker.open()
    await broker.create_topics([TopicSpec("t.commands", 4)])
    await asyncio.gather(*(sender(broker, b"s%d" % n) for n in range(5)))

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged_lines", [1, 400, 3_000])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, acknowledged_lines: int) -> None:
    with program(APPEND_FOR_EVER, str(tmp_path)) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledged_lines)]
        process.kill()
        lines += process.stdout.readlines()
    acknowledged = [line.split() for line in lines if line.endswith("\n")]
    assert len(acknowledged) >= acknowledged_lines
    async with opened(tmp_path) as broker:
        found = {(r.key, r.offset): r.value for r in await read_all(broker, len(acknowledged))}
        for key, offset, value in acknowledged:
            assert found[key.encode(), int(offset)] == value.encode()
        before = max(offset for _, offset in found)
        assert all(offset <= before + 1 for offset in await append(broker, numbered(TOPIC, range(1))))


async def test_a_restart_keeps_topics_offsets_and_commits(tmp_path: Path) -> None:
    async with opened(tmp_path, TopicSpec(TOPIC, 3, {"max.message.bytes": "2000"})) as broker:
        topics = dict(await broker.topics())
        assert await append(broker, numbered(TOPIC, range(5), partition=2)) == list(range(5))
        async with started(broker.tasks([TOPIC], "workers", TaskRecorder())) as source:
            assert len(await source.fetch(10)) == 5
            await source.commit({TP(TOPIC, 2): 3})
    async with opened(tmp_path) as broker:
        assert await broker.topics() == topics
        assert await append(broker, numbered(TOPIC, range(5, 8), partition=2)) == [5, 6, 7]
        with pytest.raises(RecordRefusedError, match="2000"):
            await append(broker, [OutRecord(TOPIC, b"", b"x" * 2_001, [])])
        assert [r.offset for r in await read_all(broker, 8)] == list(range(8))
        recorder = TaskRecorder()
        async with started(broker.tasks([TOPIC], "workers", recorder)) as source:
            assert [r.offset for r in await source.fetch(10)] == [3, 4, 5, 6, 7]
        assert recorder.calls == ["on_assigned", "on_revoked"]


async def test_close_waits_for_what_was_sent(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    await broker.open()
    await broker.create_topics([TopicSpec(TOPIC, 4)])
    futures = await broker.send(numbered(TOPIC, range(100)))
    await broker.close()
    assert all(future.done() and future.exception() is None for future in futures)
    async with opened(tmp_path) as again:
        assert len(await read_all(again, 100)) == 100


async def test_hints_are_written_without_an_append(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        await append(broker, numbered(TOPIC, range(5), 0))
        recorder = Recorder()
        source = broker.batches([TOPIC], "engine", recorder)
        async with running(source):
            await recorder.received(5)
            await source.commit_hint({TP(TOPIC, 0): 4})
            query = "SELECT next_offset FROM positions WHERE group_name = 'engine' AND part = 0"
            await eventually(lambda: rows(tmp_path, query) == [(4,)])


# -- one process, one event loop -------------------------------------------------------------------------------
HOLD = """
import asyncio, sys
from romancy_stream.broker.embedded import EmbeddedBroker

async def main():
    await EmbeddedBroker(sys.argv[1]).open()
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

TRY = """
import asyncio, sys
from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.errors import EmbeddedBrokerInUseError

async def main():
    broker = EmbeddedBroker(sys.argv[1])
    try:
        await broker.open()
    except EmbeddedBrokerInUseError as error:
        print("refused", error)
    else:
        await broker.close()
        print("opened")

asyncio.run(main())
"""


async def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    with program(HOLD, str(tmp_path)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(EmbeddedBrokerInUseError, match=rf"pid {holder.pid}.*kafka://"):
            await EmbeddedBroker(tmp_path).open()
        holder.kill()
        holder.wait()
        async with opened(tmp_path) as broker:
            assert TOPIC in await broker.topics()


async def test_the_lock_is_held_until_the_last_broker_closes(tmp_path: Path) -> None:
    def attempt() -> str:
        with program(TRY, str(tmp_path)) as process:
            return process.communicate(timeout=DEADLINE_S)[0].split()[0]

    first, second = EmbeddedBroker(tmp_path), EmbeddedBroker(tmp_path)
    await first.open()
    await second.open()
    await first.close()
    assert await asyncio.to_thread(attempt) == "refused"
    await second.close()
    assert await asyncio.to_thread(attempt) == "opened"


async def test_brokers_of_one_process_share_the_log(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "log")
    async with opened(tmp_path / "log") as app, opened(link) as client:
        recorder = Recorder()
        async with running(app.batches([TOPIC], "engine", recorder)):
            await append(client, numbered(TOPIC, range(10)))
            await recorder.received(10)
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await client.send([])


async def test_open_during_close_gets_a_new_log(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    await broker.open()
    close = asyncio.create_task(broker.close())
    await asyncio.sleep(0)
    async with opened(tmp_path) as again:
        assert close.done()
        assert await append(again, numbered(TOPIC, range(1))) == [0]


async def test_another_event_loop_is_refused(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def other_loop() -> None:
        try:
            asyncio.run(EmbeddedBroker(tmp_path).open())
        except EmbeddedBrokerInUseError as error:
            errors.append(error)

    async with opened(tmp_path) as broker:
        thread = threading.Thread(target=other_loop)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert [type(error) for error in errors] == [EmbeddedBrokerInUseError]
        assert "another event loop" in str(errors[0])
        await append(broker, numbered(TOPIC, range(1)))


def test_one_loop_after_another(tmp_path: Path) -> None:
    """Also when the first was closed without closing the broker."""
    forgotten: list[EmbeddedBroker] = []

    async def use(close: bool) -> list[int]:
        broker = EmbeddedBroker(tmp_path)
        await broker.open()
        await broker.create_topics([TopicSpec(TOPIC, 1)])
        offsets = await append(broker, numbered(TOPIC, range(2)))
        if close:
            await broker.close()
        else:
            forgotten.append(broker)
        return offsets

    assert [asyncio.run(use(close)) for close in (True, False, False, True)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


async def test_a_cancelled_open_leaves_nothing_behind(tmp_path: Path) -> None:
    opening = asyncio.create_task(EmbeddedBroker(tmp_path).open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    with program(TRY, str(tmp_path)) as process:
        output, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE_S)
    assert output == "opened\n"


async def test_sources_end_when_the_broker_closes(tmp_path: Path) -> None:
    recorder = Recorder()
    broker = EmbeddedBroker(tmp_path)
    await broker.open()
    await broker.create_topics([TopicSpec(TOPIC, 4)])
    run = asyncio.create_task(broker.batches([TOPIC], "engine", recorder).run())
    tasks = broker.tasks([TOPIC], "workers", TaskRecorder())
    await tasks.start()
    fetch = asyncio.create_task(tasks.fetch(1))
    await settled(4, recorder)
    await broker.close()
    for waiting in (run, fetch):
        with pytest.raises(BrokerUnavailableError, match="closed"):
            await asyncio.wait_for(waiting, DEADLINE_S)
    await tasks.stop()


# -- members that die ------------------------------------------------------------------------------------------
async def test_a_cancelled_member_leaves_without_a_call(tmp_path: Path) -> None:
    positions = dict[TP, int]()
    first, second = Recorder(positions), Recorder(positions)
    async with opened(tmp_path) as broker:
        dying = asyncio.create_task(broker.batches([TOPIC], "engine", first).run())
        async with running(broker.batches([TOPIC], "engine", second)):
            await settled(4, first, second)
            calls = list(first.calls)
            dying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dying
            assert first.calls == calls
            await settled(4, second)


async def test_a_member_may_stop_while_another_holds_up_the_rebalance(tmp_path: Path) -> None:
    first, second, entered, gate = Recorder(), Recorder(), asyncio.Event(), asyncio.Event()

    async def wait_for_gate() -> None:
        entered.set()
        await gate.wait()

    first.hooks["on_batch"] = wait_for_gate
    async with opened(tmp_path) as broker:
        await append(broker, numbered(TOPIC, range(4)))
        async with running(broker.batches([TOPIC], "engine", first)):
            await asyncio.wait_for(entered.wait(), DEADLINE_S)
            async with running(broker.batches([TOPIC], "engine", second)):
                await asyncio.sleep(0)
            assert second.calls == []
            gate.set()
            await settled(4, first)


async def test_topics_made_later_are_dealt_and_tailed(tmp_path: Path) -> None:
    recorder, late, seen = Recorder(), "t.late", list[Record]()

    async def on_records(records: object) -> None:
        seen.extend(records)  # type: ignore[arg-type]

    async with opened(tmp_path) as broker:
        tail = broker.tail([late], on_records)
        await tail.start()
        async with running(broker.batches([TOPIC, late], "engine", recorder)):
            await settled(4, recorder)
            await broker.create_topics([TopicSpec(late, 2)])
            await append(broker, numbered(late, range(6)))
            await recorder.received(6)
            await eventually(lambda: len(seen) == 6)
        await tail.stop()


# -- group commit, memory --------------------------------------------------------------------------------------
async def test_what_one_loop_iteration_sends_is_one_transaction(tmp_path: Path) -> None:
    async with opened(tmp_path, TopicSpec(TOPIC, 2)) as broker:
        sends = [broker.send([OutRecord(TOPIC, b"", b"%d" % n, [], n % 2)]) for n in range(500)]
        await asyncio.gather(*[future for futures in await asyncio.gather(*sends) for future in futures])
        assert rows(tmp_path, "SELECT records FROM chunks") == [(250,), (250,)]


async def test_nothing_is_seen_or_acknowledged_before_it_is_on_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path, TopicSpec(TOPIC, 1)) as broker:
        on_disk = "SELECT coalesce(sum(records), 0) FROM chunks"

        class Checking(Recorder):
            async def on_batch(self, batch: object) -> None:
                await super().on_batch(batch)  # type: ignore[arg-type]
                assert rows(tmp_path, on_disk)[0][0] >= len(self.records)

        recorder = Checking()
        async with running(broker.batches([TOPIC], "engine", recorder)):
            for n in range(100):
                (offset,) = await append(broker, numbered(TOPIC, range(n, n + 1)))
                assert rows(tmp_path, on_disk)[0][0] > offset
            await recorder.received(100)


async def test_a_reader_that_lags_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "TAIL_RECORDS_LIMIT", 50)
    async with opened(tmp_path, TopicSpec(TOPIC, 2)) as broker:
        recorder = Recorder()
        async with running(broker.batches([TOPIC], "engine", recorder)):
            entered, gate = asyncio.Event(), asyncio.Event()

            async def wait_for_gate() -> None:
                entered.set()
                await gate.wait()

            recorder.hooks["on_batch"] = wait_for_gate
            for n in range(0, 2_000, 20):
                await append(broker, numbered(TOPIC, range(n, n + 20)))
                if n == 1_000:
                    gate.set()  # from here on it catches up while more arrives
            await recorder.received(2_000)
        assert sorted(int(r.value or b"") for r in recorder.records) == list(range(2_000))
        late, workers = Recorder({TP(TOPIC, 0): 300}), TaskRecorder()
        async with running(broker.batches([TOPIC], "late", late)):
            await late.received(2_000 - 300)
        async with started(broker.tasks([TOPIC], "workers", workers)) as source:
            total = 0
            while total < 2_000:
                fetched = await asyncio.wait_for(source.fetch(7), DEADLINE_S)
                assert 0 < len(fetched) <= 7
                total += len(fetched)


async def test_a_rewind_while_the_file_is_being_read(tmp_path: Path) -> None:
    async with opened(tmp_path, TopicSpec(TOPIC, 1)) as broker:
        await append(broker, numbered(TOPIC, range(20)))
    async with opened(tmp_path) as broker:
        gate, waiting, tp = threading.Event(), asyncio.Event(), TP(TOPIC, 0)
        loop, disk = asyncio.get_running_loop(), broker._log._disk
        recorder = Recorder({tp: 10})
        source = broker.batches([TOPIC], "engine", recorder)
        async with running(source):
            disk.submit(lambda _: (loop.call_soon_threadsafe(waiting.set), gate.wait()), lambda *_: None)
            await asyncio.wait_for(waiting.wait(), DEADLINE_S)
            await settled(1, recorder)
            for _ in range(3):  # it has asked the disk by now
                await asyncio.sleep(0)
            recorder.positions[tp] = 5
            await source.rewind(tp, 5)
            gate.set()
            await recorder.received(15)
        assert [r.offset for r in recorder.records] == list(range(5, 20))


async def test_a_clock_that_goes_back_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, TopicSpec(TOPIC, 1)) as broker:
        await append(broker, numbered(TOPIC, range(1)))
    async with opened(tmp_path) as broker:
        with monkeypatch.context() as patch:
            patch.setattr("time.time_ns", lambda: 0)
            await append(broker, numbered(TOPIC, range(1)))
        await append(broker, numbered(TOPIC, range(1)))
        first, second, third = [r.timestamp_ms for r in await read_all(broker, 3)]
        assert 1_600_000_000_000 < first == second <= third


async def test_send_waits_for_space_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "BUFFER_BYTES_LIMIT", 10_000)
    async with opened(tmp_path, TopicSpec(TOPIC, 1)) as broker:
        sends = [asyncio.create_task(broker.send(numbered(TOPIC, range(n, n + 50)))) for n in range(0, 500, 50)]
        done, waiting = await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        assert done
        assert waiting
        futures = [future for send in sends for future in await send]
        assert await asyncio.gather(*futures) == list(range(500))
        assert [r.value for r in await read_all(broker, 500)] == [b"%d" % n for n in range(500)]


async def test_a_cancelled_sender_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "BUFFER_BYTES_LIMIT", 1_000)
    async with opened(tmp_path, TopicSpec(TOPIC, 1)) as broker:
        sends = [asyncio.create_task(broker.send(numbered(TOPIC, range(n, n + 5)))) for n in range(0, 25, 5)]
        await asyncio.sleep(0)
        sends[1].cancel()
        sends[2].cancel()
        for send in (sends[0], sends[3], sends[4]):
            await asyncio.wait_for(asyncio.gather(*await send), DEADLINE_S)
        values = [int(r.value or b"") for r in await read_all(broker, 15)]
        assert values == [*range(5), *range(15, 25)]
