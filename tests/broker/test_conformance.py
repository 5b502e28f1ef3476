"""What the `Broker` port promises, on every implementation of it: writing, batches and their rebalances."""

from __future__ import annotations

import asyncio
import time

import pytest

from romancy_stream.broker.port import TP, Broker, OutRecord, TopicSpec
from romancy_stream.errors import LogIdentityError, RecordRefusedError
from romancy_stream.wire.partition import partition_for
from tests.broker.recording import DEADLINE_S, Recorder, append, numbered, running, settled
from tests.support import eventually

PARTITIONS = 4
OVER_THE_LIMIT_BYTES = 1_100_000


@pytest.fixture
async def topic(broker: Broker, namespace: str) -> str:
    name = f"{namespace}.commands"
    assert await broker.create_topics([TopicSpec(name, PARTITIONS)]) == [name]
    return name


@pytest.fixture
async def other_topic(broker: Broker, namespace: str) -> str:
    name = f"{namespace}.results"
    await broker.create_topics([TopicSpec(name, PARTITIONS)])
    return name


# -- topics ----------------------------------------------------------------------------------------------------
async def test_topics_are_made_once_by_concurrent_starters(
    broker: Broker, second_broker: Broker, namespace: str
) -> None:
    specs = [TopicSpec(f"{namespace}.{n}", 2) for n in range(3)]
    made = await asyncio.gather(*(each.create_topics(specs) for each in (broker, second_broker, broker, second_broker)))
    assert sorted(name for names in made for name in names) == [spec.name for spec in specs]
    for each in (broker, second_broker):
        have = await each.topics()
        assert [have[spec.name].partitions for spec in specs] == [2, 2, 2]
        assert len({have[spec.name].topic_id for spec in specs}) == 3


async def test_a_topic_that_exists_is_never_altered(broker: Broker, topic: str) -> None:
    before = (await broker.topics())[topic]
    assert await broker.create_topics([TopicSpec(topic, PARTITIONS + 3)]) == []
    assert (await broker.topics())[topic] == before


# -- writing ---------------------------------------------------------------------------------------------------
async def test_order_keys_and_offsets(broker: Broker, topic: str, namespace: str) -> None:
    records = [OutRecord(topic, b"key-%d" % (n % 40), b"%d" % n, []) for n in range(2_000)]
    offsets = await append(broker, records)
    recorder = Recorder()
    async with running(broker.batches([topic], namespace, recorder)):
        await recorder.received(len(records))
    expected = {
        (partition_for(out.key, PARTITIONS), offset): out.value for out, offset in zip(records, offsets, strict=True)
    }
    assert {(r.partition, r.offset): r.value for r in recorder.records} == expected
    for n in range(40):
        values = [int(r.value or b"") for r in recorder.records if r.key == b"key-%d" % n]
        assert values == list(range(n, 2_000, 40))


async def test_concurrent_senders_keep_their_order(broker: Broker, topic: str, namespace: str) -> None:
    sends = [broker.send([OutRecord(topic, b"k", b"%d" % n, [])]) for n in range(200)]
    futures = [future for each in await asyncio.gather(*sends) for future in each]
    assert await asyncio.gather(*futures) == list(range(200))
    recorder = Recorder()
    async with running(broker.batches([topic], namespace, recorder)):
        await recorder.received(200)
    assert recorder.values() == [b"%d" % n for n in range(200)]


async def test_everything_of_a_record_survives(broker: Broker, topic: str, namespace: str) -> None:
    headers = (("ce_type", b"a"), ("ce_type", b"b"), ("Größe", "äöü".encode()), ("empty", b""), ("bytes", b"\x00\xff"))
    before_ms = int(time.time() * 1000)
    await append(broker, [OutRecord(topic, b"k\x00", None, headers, 3), OutRecord(topic, b"k", b"", (), 3)])
    recorder = Recorder()
    async with running(broker.batches([topic], namespace, recorder)):
        await recorder.received(2)
    first, second = recorder.records
    assert (first.topic, first.partition, first.offset) == (topic, 3, 0)
    assert (first.key, first.value) == (b"k\x00", None)
    assert [tuple(header) for header in first.headers] == list(headers)
    assert (second.offset, second.value, list(second.headers)) == (1, b"", [])
    clock_slack_ms = 1_000
    now_ms = int(time.time() * 1000)
    assert before_ms - clock_slack_ms <= first.timestamp_ms <= second.timestamp_ms <= now_ms + clock_slack_ms


async def test_refused_records_fail_alone(broker: Broker, topic: str, namespace: str) -> None:
    records = [
        OutRecord(topic, b"a", b"1", []),
        OutRecord(f"{namespace}.nowhere", b"a", b"2", []),
        OutRecord(topic, b"a", b"3", [], PARTITIONS),
        OutRecord(topic, b"a", b"4" * OVER_THE_LIMIT_BYTES, []),
        OutRecord(topic, b"a", b"5", []),
    ]
    results = await asyncio.wait_for(asyncio.gather(*await broker.send(records), return_exceptions=True), DEADLINE_S)
    assert [isinstance(result, RecordRefusedError) for result in results] == [False, True, True, True, False]
    assert (results[0], results[4]) == (0, 1)


# -- batches: positions ----------------------------------------------------------------------------------------
async def test_positions_are_the_handlers(broker: Broker, topic: str, namespace: str) -> None:
    await append(broker, numbered(topic, range(10), partition=1))
    first = Recorder({TP(topic, 1): 4})
    source = broker.batches([topic], namespace, first)
    async with running(source):
        await first.received(6)
        await source.commit_hint({TP(topic, 1): 10})
    assert first.values() == [b"%d" % n for n in range(4, 10)]
    again = Recorder({TP(topic, 1): 7})  # whatever the hint said
    async with running(broker.batches([topic], namespace, again)):
        await again.received(3)
    assert again.values() == [b"7", b"8", b"9"]


@pytest.mark.parametrize("position", [4, -1])
async def test_a_position_outside_the_log_is_fatal(broker: Broker, topic: str, namespace: str, position: int) -> None:
    await append(broker, numbered(topic, range(3), partition=0))
    recorder = Recorder({TP(topic, 0): position})
    with pytest.raises(LogIdentityError, match=str(position)):
        await asyncio.wait_for(broker.batches([topic], namespace, recorder).run(), DEADLINE_S)
    assert recorder.records == []


async def test_nothing_is_delivered_before_on_assigned_returned(broker: Broker, topic: str, namespace: str) -> None:
    recorder, entered, gate = Recorder(), asyncio.Event(), asyncio.Event()

    async def wait_for_gate() -> None:
        entered.set()
        await gate.wait()

    recorder.hooks["on_assigned"] = wait_for_gate
    seen: list[bytes | None] = []

    async def on_records(records: object) -> None:
        seen.append(b"")

    async with running(broker.batches([topic], namespace, recorder)):
        await asyncio.wait_for(entered.wait(), DEADLINE_S)
        tail = broker.tail([topic], on_records)
        await tail.start()
        await append(broker, numbered(topic, range(5), partition=0))
        await eventually(lambda: seen, DEADLINE_S)  # others see the records
        await tail.stop()
        assert recorder.calls == []
        gate.set()
        await recorder.received(5)
    assert recorder.calls[0] == "on_assigned"


async def test_records_sent_later_arrive(broker: Broker, topic: str, other_topic: str, namespace: str) -> None:
    recorder = Recorder()
    async with running(broker.batches([topic, other_topic], namespace, recorder)):
        await settled(2 * PARTITIONS, recorder)
        for n in range(5):
            await append(broker, numbered(topic if n % 2 else other_topic, range(n, n + 1)))
            await recorder.received(n + 1)
    assert recorder.values() == [b"%d" % n for n in range(5)]


# -- batches: rewind, hold, release ----------------------------------------------------------------------------
async def test_rewind(broker: Broker, topic: str, namespace: str) -> None:
    recorder, tp = Recorder(), TP(topic, 2)
    source = broker.batches([topic], namespace, recorder)
    async with running(source):
        await append(broker, numbered(topic, range(6), partition=2))
        await recorder.received(6)
        recorder.positions[tp] = 3
        await source.rewind(tp, 3)
        await recorder.received(9)
        await append(broker, numbered(topic, range(6, 7), partition=2))
        await recorder.received(10)
    assert recorder.values() == [b"%d" % n for n in [*range(6), 3, 4, 5, 6]]


async def test_rewind_inside_a_batch(broker: Broker, topic: str, namespace: str) -> None:
    """As the engine does when the commit of an earlier batch fails while it handles the next."""
    tp, batches = TP(topic, 2), []

    class Rewinding(Recorder):
        async def on_batch(self, batch: object) -> None:
            batches.append(batch)
            if len(batches) == 1:
                await source.rewind(tp, 0)
            else:
                await super().on_batch(batch)  # type: ignore[arg-type]

    recorder = Rewinding()
    source = broker.batches([topic], namespace, recorder)
    await append(broker, numbered(topic, range(4), partition=2))
    async with running(source):
        await recorder.received(4)
    assert recorder.values() == [b"0", b"1", b"2", b"3"]


async def test_hold_and_release(broker: Broker, topic: str, namespace: str) -> None:
    recorder = Recorder()
    source = broker.batches([topic], namespace, recorder)
    async with running(source):
        await settled(PARTITIONS, recorder)
        source.hold(TP(topic, 0), TP(topic, 1))
        await append(broker, [*numbered(topic, range(10), 0), *numbered(topic, range(10, 20), 1)])
        for n in range(20, 25):  # several rounds, in which a held one would have had its turn
            await append(broker, numbered(topic, range(n, n + 1), 2))
            await recorder.received(n - 19)
        assert {r.partition for r in recorder.records} == {2}
        source.release(TP(topic, 1))
        await recorder.received(15)
        assert {r.partition for r in recorder.records} == {1, 2}
        source.release(TP(topic, 0))
        await recorder.received(25)


async def test_hold_during_on_assigned_counts(broker: Broker, topic: str, namespace: str) -> None:
    recorder = Recorder()
    source = broker.batches([topic], namespace, recorder)

    async def hold() -> None:
        source.hold(TP(topic, 0))

    recorder.hooks["on_assigned"] = hold
    await append(broker, [*numbered(topic, range(5), 0), *numbered(topic, range(5, 10), 1)])
    async with running(source):
        await recorder.received(5)
        await append(broker, numbered(topic, range(10, 11), 1))
        await recorder.received(6)
        assert {r.partition for r in recorder.records} == {1}
        source.release(TP(topic, 0))
        await recorder.received(11)


# -- batches: members ------------------------------------------------------------------------------------------
async def test_members_split_and_split_again(
    broker: Broker, second_broker: Broker, topic: str, other_topic: str, namespace: str
) -> None:
    topics, positions = [topic, other_topic], dict[TP, int]()
    first, second = Recorder(positions), Recorder(positions)
    await append(broker, [*numbered(topic, range(100)), *numbered(other_topic, range(100))])
    async with running(broker.batches(topics, namespace, first)):
        await first.received(200)
        async with running(second_broker.batches(topics, namespace, second)):
            for have in await settled(2 * PARTITIONS, first, second):
                mine = {tp.partition for tp in have if tp.topic == topic}
                assert mine == {tp.partition for tp in have if tp.topic == other_topic}, "co-partitioned"
                assert len(mine) == PARTITIONS // 2
            await append(broker, [*numbered(topic, range(100, 200)), *numbered(other_topic, range(100, 200))])
            await eventually(lambda: sum(positions.values()) == 400, DEADLINE_S)
            assert second.records
        await settled(2 * PARTITIONS, first)
        await append(broker, numbered(topic, range(200, 300)))
        await eventually(lambda: sum(positions.values()) == 500, DEADLINE_S)
    got = sorted((r.topic, int(r.value or b"")) for r in [*first.records, *second.records])
    assert got == sorted([*((topic, n) for n in range(300)), *((other_topic, n) for n in range(200))])


async def test_a_hold_outlives_a_rebalance(broker: Broker, second_broker: Broker, topic: str, namespace: str) -> None:
    positions = dict[TP, int]()
    first, second = Recorder(positions), Recorder(positions)
    source = broker.batches([topic], namespace, first)
    held = [TP(topic, n) for n in range(PARTITIONS)]
    async with running(source):
        await settled(PARTITIONS, first)
        source.hold(*held)
        async with running(second_broker.batches([topic], namespace, second)):
            mine, theirs = await settled(PARTITIONS, first, second)
            await append(broker, [out for tp in held for out in numbered(topic, range(3), tp.partition)])
            await second.received(3 * len(theirs))
            assert first.records == []
            source.release(*mine)
            await first.received(3 * len(mine))


async def test_a_running_batch_ends_before_the_revocation(
    broker: Broker, second_broker: Broker, topic: str, namespace: str
) -> None:
    positions = dict[TP, int]()
    first, second = Recorder(positions), Recorder(positions)
    entered, gate = asyncio.Event(), asyncio.Event()

    async def wait_for_gate() -> None:
        entered.set()
        await gate.wait()

    first.hooks["on_batch"] = wait_for_gate
    await append(broker, numbered(topic, range(50)))
    async with running(broker.batches([topic], namespace, first)):
        await asyncio.wait_for(entered.wait(), DEADLINE_S)
        async with running(second_broker.batches([topic], namespace, second)):
            for _ in range(20):  # what is wrong would happen now; Recorder checks that nothing overlaps
                await append(broker, numbered(topic, range(50, 51)))
            assert first.calls == ["on_assigned"]
            assert second.calls == []
            gate.set()
            await settled(PARTITIONS, first, second)
            await eventually(lambda: sum(positions.values()) == 70, DEADLINE_S)
    assert first.calls[:3].count("on_batch") >= 1
    assert first.calls.index("on_batch") < first.calls.index("on_revoked")


async def test_stop_lets_the_batch_end_and_revokes(broker: Broker, topic: str, namespace: str) -> None:
    recorder, entered, gate = Recorder(), asyncio.Event(), asyncio.Event()

    async def wait_for_gate() -> None:
        entered.set()
        await gate.wait()

    recorder.hooks["on_batch"] = wait_for_gate
    await append(broker, numbered(topic, range(5), 0))
    source = broker.batches([topic], namespace, recorder)
    run = asyncio.create_task(source.run())
    await asyncio.wait_for(entered.wait(), DEADLINE_S)
    stop = asyncio.create_task(source.stop())
    await append(broker, numbered(topic, range(5, 6), 0))
    assert not stop.done()
    gate.set()
    await asyncio.wait_for(stop, DEADLINE_S)
    await asyncio.wait_for(run, DEADLINE_S)
    assert recorder.calls[:2] == ["on_assigned", "on_batch"]
    assert recorder.calls[-1] == "on_revoked"
    assert recorder.assigned == set()


async def test_stop_from_inside_the_handler(broker: Broker, topic: str, namespace: str) -> None:
    recorder = Recorder()
    source = broker.batches([topic], namespace, recorder)
    recorder.hooks["on_batch"] = source.stop
    await append(broker, numbered(topic, range(5), 0))
    await asyncio.wait_for(source.run(), DEADLINE_S)
    assert recorder.calls == ["on_assigned", "on_batch", "on_revoked"]


@pytest.mark.parametrize("call", ["on_assigned", "on_batch", "on_revoked"])
async def test_what_the_handler_raises_comes_out_of_run(broker: Broker, topic: str, namespace: str, call: str) -> None:
    recorder = Recorder()

    async def fail() -> None:
        raise ArithmeticError("in the handler")

    recorder.hooks[call] = fail
    await append(broker, numbered(topic, range(5), 0))
    source = broker.batches([topic], namespace, recorder)
    run = asyncio.create_task(source.run())
    if call == "on_revoked":
        await recorder.received(5)
        await source.stop()
    with pytest.raises(ArithmeticError, match="in the handler"):
        await asyncio.wait_for(run, DEADLINE_S)


async def test_membership_is_confirmed_while_it_lasts(broker: Broker, topic: str, namespace: str) -> None:
    recorder = Recorder()
    source = broker.batches([topic], namespace, recorder)
    inside: list[bool] = []

    async def ask() -> None:
        inside.append(await source.confirm_membership())

    recorder.hooks["on_assigned"] = ask
    assert not await source.confirm_membership()
    async with running(source):
        await settled(PARTITIONS, recorder)
        assert await source.confirm_membership()
    assert inside == [True]
    assert not await source.confirm_membership()
