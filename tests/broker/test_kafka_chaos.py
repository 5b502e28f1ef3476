"""Members of a group as real processes: killed, frozen past their session, restarted, on a broker that is killed and
started again. Positions live behind a fence in a SQLite file; afterwards every record was seen exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.port import TP, AssignedRange, Broker, OnRecords, Record, TaskSource
from romancy_stream.errors import BrokerUnavailableError
from tests.broker.kafka_kit import FAST, Handler, make_topic, produce, record, running
from tests.broker.kafka_member import Ledger
from tests.support import eventually
from tests.support.servers import COMMAND_TIMEOUT_S, EXIT_UNAVAILABLE, TOOL

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4
TAKEOVER_S = 120  # a session of 2 s, a rebalance, and a busy machine


class Group:
    """The members of one test and the ledger they share."""

    def __init__(self, bootstrap: str, topic: str, path: Path) -> None:
        self.bootstrap = bootstrap
        self.topic = topic
        self.path = path
        Ledger.create(path, PARTITIONS)
        self.ledger = Ledger(path, "test")
        self.members: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        arguments = [self.bootstrap, self.topic, f"{self.topic}-group", str(self.path), name]
        command = [sys.executable, "-W", "error", "-m", "tests.broker.kafka_member", *arguments]
        self.members[name] = subprocess.Popen(command, cwd=ROOT)

    def signal(self, name: str, number: int) -> None:
        self.members[name].send_signal(number)

    def owned(self, name: str) -> list[int]:
        rows = self.ledger.rows("SELECT part FROM positions WHERE owner = ? ORDER BY part", name)
        return [int(str(part)) for (part,) in rows]

    def works(self, name: str, partitions: int) -> bool:
        """It owns so many, and has ended what it does before the first batch."""
        last = ([""] + [each for each in self.events(name, "") if each.startswith(("assigned", "revoked"))])[-1]
        return len(self.owned(name)) == partitions and last == f"assigned {self.owned(name)}"

    def events(self, name: str, begin: str) -> list[str]:
        rows = self.ledger.rows(
            "SELECT what FROM events WHERE member = ? AND what LIKE ? || '%' ORDER BY id", name, begin
        )
        return [str(what) for (what,) in rows]

    def count(self) -> int:
        return int(str(self.ledger.rows("SELECT count(*) FROM seen")[0][0]))

    def by_member(self) -> dict[str, int]:
        return {str(m): int(str(n)) for m, n in self.ledger.rows("SELECT member, count(*) FROM seen GROUP BY member")}

    def assert_complete(self, count: int) -> None:
        """Primary key and fence exclude duplicates; this excludes holes."""
        rows = self.ledger.rows("SELECT part, count(*), min(offset), max(offset) FROM seen GROUP BY part ORDER BY part")
        each = count // PARTITIONS
        assert rows == [(part, each, 0, each - 1) for part in range(PARTITIONS)]

    async def close(self) -> None:
        for process in self.members.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        codes = {name: await asyncio.to_thread(process.wait, 90) for name, process in self.members.items()}
        self.ledger.close()
        assert {code for code in codes.values() if code != -signal.SIGKILL} <= {0}, codes


@pytest.fixture
async def group(kafka: Broker, kafka_bootstrap: str, name: str, tmp_path: Path) -> AsyncIterator[Group]:
    await make_topic(kafka, name, partitions=PARTITIONS)
    group = Group(kafka_bootstrap, name, tmp_path / "ledger.db")
    yield group
    await group.close()


async def both_own_two(group: Group) -> None:
    group.start("a")
    group.start("b")
    await eventually(lambda: group.works("a", 2) and group.works("b", 2), deadline_s=TAKEOVER_S)


async def test_a_killed_member_is_replaced_without_hole_or_duplicate(kafka: Broker, group: Group) -> None:
    await both_own_two(group)
    sent = 0
    stop = asyncio.Event()

    async def load() -> None:
        nonlocal sent
        while not stop.is_set():
            await produce(kafka, group.topic, 40, PARTITIONS, start=sent)
            sent += 40
            await asyncio.sleep(0.005)

    loading = asyncio.create_task(load())
    await eventually(lambda: set(group.by_member()) == {"a", "b"})
    group.signal("a", signal.SIGKILL)
    await eventually(lambda: len(group.owned("b")) == PARTITIONS, deadline_s=TAKEOVER_S)
    group.start("c")
    await eventually(lambda: group.by_member().get("c", 0) > 100, deadline_s=TAKEOVER_S)
    stop.set()
    await loading
    await eventually(lambda: group.count() == sent, deadline_s=TAKEOVER_S)
    group.assert_complete(sent)


async def test_a_zombies_late_batch_is_refused_by_the_fence(kafka: Broker, group: Group) -> None:
    """It is frozen inside a batch, for longer than its session, while another takes over and does the same records."""
    await both_own_two(group)
    await produce(kafka, group.topic, 40, PARTITIONS)
    await eventually(lambda: group.count() == 40)
    zombie = Ledger(group.path, "a")
    zombie.gate.touch()
    await produce(kafka, group.topic, 40, PARTITIONS, start=40)
    await eventually(lambda: group.events("a", "waiting inside"))
    group.signal("a", signal.SIGSTOP)
    await eventually(lambda: len(group.owned("b")) == PARTITIONS, deadline_s=TAKEOVER_S)
    await eventually(lambda: group.count() == 80)
    zombie.gate.unlink()
    zombie.close()
    group.signal("a", signal.SIGCONT)
    await eventually(lambda: group.events("a", "fenced"), deadline_s=TAKEOVER_S)
    group.assert_complete(80)
    # it starts over, joins again and does its share
    await eventually(lambda: len(group.owned("a")) == len(group.owned("b")) == 2, deadline_s=TAKEOVER_S)
    await produce(kafka, group.topic, 40, PARTITIONS, start=80)
    await eventually(lambda: group.count() == 120, deadline_s=TAKEOVER_S)
    group.assert_complete(120)
    assert group.by_member()["a"] == 20 + 20


async def test_a_member_that_was_frozen_between_batches(kafka: Broker, group: Group) -> None:
    await both_own_two(group)
    group.signal("a", signal.SIGSTOP)
    await produce(kafka, group.topic, 40, PARTITIONS)
    await eventually(lambda: len(group.owned("b")) == PARTITIONS, deadline_s=TAKEOVER_S)
    await eventually(lambda: group.count() == 40)
    group.signal("a", signal.SIGCONT)
    await eventually(lambda: len(group.owned("a")) == 2, deadline_s=TAKEOVER_S)
    await produce(kafka, group.topic, 40, PARTITIONS, start=40)
    await eventually(lambda: group.count() == 80, deadline_s=TAKEOVER_S)
    group.assert_complete(80)


# -- a broker of our own, to kill ----------------------------------------------------------------------------


class PrivateKafka:
    def __init__(self, directory: Path) -> None:
        self._env = {**os.environ, "ROMANCY_SERVICES_DIR": str(directory), "ROMANCY_SERVICES_FOR_PID": str(os.getpid())}
        self.bootstrap = ""

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, str(TOOL), *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=self._env,
        )
        if done.returncode == EXIT_UNAVAILABLE:
            pytest.skip("kafka cannot be had on this machine")
        assert done.returncode == 0, done.stderr
        return done

    def start(self) -> None:
        self.command("start", "kafka")
        lines = dict(line.split("=", 1) for line in self.command("env").stdout.splitlines())
        self.bootstrap = lines["KAFKA_BOOTSTRAP"]


@pytest.fixture
def private_kafka(kafka_bootstrap: str, tmp_path: Path) -> Iterator[PrivateKafka]:
    private = PrivateKafka(tmp_path / "services")
    private.start()
    yield private
    private.command("stop", "kafka", "--clean")


class Tasks:
    def __init__(self) -> None:
        self.ranges: dict[TP, AssignedRange] = {}

    async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
        self.ranges = dict(ranges)

    async def on_revoked(self, partitions: set[TP]) -> None:
        self.ranges = {}


async def test_everything_goes_on_after_the_broker_was_killed(private_kafka: PrivateKafka, name: str) -> None:
    """Batches, tasks, a tail and the producer of one process, through a kill -9 of the only broker."""
    settings = KafkaSettings(session_timeout_ms=6_000, heartbeat_interval_ms=500, delivery_limit_ms=60_000)
    async with contextlib.AsyncExitStack() as stack:
        broker = KafkaBroker(private_kafka.bootstrap, client_id="test", settings=settings)
        await broker.open()
        stack.push_async_callback(broker.close)
        await make_topic(broker, name, partitions=2)
        handler = Handler()
        await stack.enter_async_context(running(broker.batches([name], f"{name}-batches", handler)))
        tailed, gaps = list[bytes | None](), list[BaseException | None]()
        tail = broker.tail([name], _collector(tailed), gaps.append)
        await tail.start()
        stack.push_async_callback(tail.stop)
        source = broker.tasks([name], f"{name}-tasks", Tasks())
        await source.start()
        stack.push_async_callback(source.stop)
        fetched: list[Record] = []
        fetching = asyncio.create_task(_fetch_into(source, fetched))
        stack.callback(fetching.cancel)

        await produce(broker, name, 20, 2)
        await eventually(lambda: handler.book.count == len(tailed) == len(fetched) == 20, deadline_s=TAKEOVER_S)
        await asyncio.to_thread(private_kafka.command, "kill", "kafka")
        during = [f for n in range(20, 40) for f in await broker.send([record(name, b"%d" % n, n % 2)])]
        await asyncio.to_thread(private_kafka.start)
        assert await asyncio.wait_for(asyncio.gather(*during), 120) == [10 + n // 2 for n in range(20)]
        await produce(broker, name, 20, 2, start=40)
        expected = sorted(b"%d" % n for n in range(60))
        await eventually(lambda: handler.book.count == 60, deadline_s=120)
        await eventually(lambda: sorted(v or b"" for v in tailed) == expected, deadline_s=120)
        await eventually(lambda: set(gaps) == {None}, deadline_s=120)  # the log might have lost its end
        await eventually(lambda: {r.value for r in fetched} == set(expected), deadline_s=120)
        await asyncio.wait_for(source.commit({TP(name, 0): 30, TP(name, 1): 30}), 30)
        assert not fetching.done()


def _collector(values: list[bytes | None]) -> OnRecords:
    async def collect(records: Sequence[Record]) -> None:
        values.extend(r.value for r in records)

    return collect


async def _fetch_into(source: TaskSource, records: list[Record]) -> None:
    while True:
        records += await source.fetch(100)


# -- the other supported line of Kafka -----------------------------------------------------------------------


async def test_kafka_3_9(kafka39_bootstrap: str, name: str) -> None:
    broker = KafkaBroker(kafka39_bootstrap, client_id="test", settings=FAST)
    await broker.open()
    try:
        await make_topic(broker, name, partitions=2)
        assert (await broker.topics())[name].topic_id.count("-") == 4
        handler = Handler()
        source = broker.batches([name], name, handler)
        tailed: list[bytes | None] = []
        tail = broker.tail([name], _collector(tailed))
        await tail.start()
        async with running(source):
            await produce(broker, name, 100, 2)
            await eventually(lambda: handler.book.count == len(tailed) == 100, deadline_s=TAKEOVER_S)
            assert await source.confirm_membership()
        await tail.stop()
        tasks = broker.tasks([name], f"{name}-tasks", Tasks())
        await tasks.start()
        assert len(await asyncio.wait_for(tasks.fetch(10), TAKEOVER_S)) == 10
        await tasks.stop()
        with pytest.raises(BrokerUnavailableError):
            await KafkaBroker("kafka://127.0.0.1:1", client_id="test").open()
    finally:
        await broker.close()
