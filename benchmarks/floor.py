"""The program without an engine: three steps per workflow, written by hand for exactly this. The messages over Kafka
and the rows in PostgreSQL are those of the engine, in one statement per batch, in the same three processes. What it
does not do is what an engine is for: run code, replay, time out, retry, refuse bad input, survive a takeover.
The eager one does the steps in the engine's process: each after the commit that scheduled it, as the engine does.

    python -m benchmarks.floor client|engine|worker     one role; ROMANCY_* say where
    python -m benchmarks.floor engine --eager           that does the work of a worker too
    python -m benchmarks.floor [--eager]                all of them, and one line of JSON
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol
from uuid import uuid4

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from benchmarks.driving import obey
from benchmarks.loops import loop_factory
from benchmarks.settings import PARTITIONS, STARTS_AT_ONCE, STEPS
from romancy_stream.wire.partition import partition_for

BATCH_RECORDS: Final = 2_000
BATCH_BYTES: Final = 262_144
COMMIT_OFFSETS_EVERY_S: Final = 0.5

Headers = list[tuple[str, bytes]]
# topic, partition, key, value, headers
Message = tuple[str, int, bytes, bytes, Headers]


class Bus(Protocol):
    """What the messages go over."""

    namespace: str

    def topic(self, name: str) -> str: ...

    async def send(self, messages: Iterable[Message]) -> None:
        """Returns when all are acknowledged."""
        ...


class Kafka:
    """One producer and one consumer; sending is by whole batches per partition, as the engine's broker does it."""

    def __init__(self) -> None:
        self.namespace = os.environ["ROMANCY_NAMESPACE"]
        self.bootstrap = os.environ["ROMANCY_BROKER"].removeprefix("kafka://")
        self.producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES
        )

    async def consumer(self, *topics: str, group: str | None = None) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=BATCH_RECORDS,
        )
        await consumer.start()
        consumer.assign([TopicPartition(self.topic(topic), n) for topic in topics for n in range(PARTITIONS)])
        return consumer

    def topic(self, name: str) -> str:
        return f"{self.namespace}.{name}"

    async def send(self, messages: Iterable[Message]) -> None:
        """Returns when all are acknowledged."""
        by_partition: dict[tuple[str, int], list[Message]] = defaultdict(list)
        for message in messages:
            by_partition[message[0], message[1]].append(message)
        await asyncio.gather(*(self._send(*place, some) for place, some in by_partition.items()))

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        sent = []
        batch = self.producer.create_batch()
        for _, _, key, value, headers in messages:
            if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                sent.append(await self.producer.send_batch(batch, topic, partition=partition))
                batch = self.producer.create_batch()
                batch.append(timestamp=None, key=key, value=value, headers=headers)
        sent.append(await self.producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*sent)


def cloudevent(
    id_: str, source: bytes, type_: bytes, subject: bytes, at: bytes, *extensions: tuple[str, bytes]
) -> Headers:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", id_.encode()),
        ("ce_source", source),
        ("ce_type", type_),
        ("ce_time", at),
        ("ce_subject", subject),
        ("content-type", b"application/json"),
        ("ce_partitionkey", subject),
        *extensions,
    ]


def time_text(us: int) -> bytes:
    return (
        datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z").encode()
    )


# -- client --------------------------------------------------------------------------------------------------------
class FloorDriver:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._source = f"/romancy/{bus.namespace}/client".encode()
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}

    async def listen(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    if dict(record.headers)["ce_type"] == b"romancy.workflow.completed":
                        self._waiting.pop(record.key).set_result(record.value)

    def _start(self, number: int) -> tuple[Message, asyncio.Future[bytes]]:
        instance_id = f"three_steps-{uuid4().hex}"
        key = instance_id.encode()
        headers = cloudevent(
            uuid4().hex,
            self._source,
            b"romancy.workflow.start",
            key,
            time_text(time.time_ns() // 1_000),
            ("ce_romancyworkflow", b"three_steps"),
        )
        completed = self._waiting[key] = asyncio.get_running_loop().create_future()
        partition = partition_for(key, PARTITIONS)
        return (self._bus.topic("commands"), partition, key, b"%d" % number, headers), completed

    async def one(self) -> None:
        message, completed = self._start(7)
        await self._bus.send([message])
        assert await completed == b'{"output":7}'

    async def burst(self, count: int) -> None:
        waiting: list[asyncio.Future[bytes]] = []
        for first in range(0, count, STARTS_AT_ONCE):
            started = [self._start(number) for number in range(first, min(count, first + STARTS_AT_ONCE))]
            await self._bus.send([message for message, _ in started])
            waiting += [completed for _, completed in started]
        assert await asyncio.gather(*waiting) == [b'{"output":%d}' % number for number in range(count)]


async def run_client(kafka: Kafka) -> None:
    driver = FloorDriver(kafka)
    listening = asyncio.create_task(driver.listen(await kafka.consumer("events")))
    await obey(driver)
    listening.cancel()


# -- worker --------------------------------------------------------------------------------------------------------
async def run_worker(kafka: Kafka) -> None:
    consumer = await kafka.consumer("tasks.default", group=f"{kafka.namespace}.workers.default")
    committed_s = time.monotonic()
    while True:
        fetched = await consumer.getmany(timeout_ms=1000, max_records=BATCH_RECORDS)
        await kafka.send([_done(kafka, record) for records in fetched.values() for record in records])
        if time.monotonic() > committed_s + COMMIT_OFFSETS_EVERY_S:
            await consumer.commit()
            committed_s = time.monotonic()


def performed(arguments: bytes) -> tuple[bytes, int]:
    """What the step returns, and what it took in microseconds."""
    begun_ns = time.perf_counter_ns()
    result = orjson.dumps(orjson.loads(arguments)["args"][0])  # the step
    return result, (time.perf_counter_ns() - begun_ns) // 1_000


def _done(kafka: Kafka, task: Any) -> Message:
    about = dict(task.headers)
    result, duration_us = performed(task.value)
    instance_id, activity_id = about["ce_subject"], about["ce_romancyactivityid"]
    headers = cloudevent(
        f"{about['ce_id'].decode()}/{uuid4().hex}",
        about["ce_source"],
        b"romancy.activity.completed",
        instance_id,
        time_text(time.time_ns() // 1_000),
        ("ce_correlationid", about["ce_id"]),
        ("ce_romancyactivity", about["ce_romancyactivity"]),
        ("ce_romancyactivityid", activity_id),
        ("ce_romancyattempt", about["ce_romancyattempt"]),
        ("ce_romancyduration", b"%d" % duration_us),
        ("ce_romancyidempotencykey", about["ce_romancyidempotencykey"]),
        ("ce_romancyrun", about["ce_romancyrun"]),
        ("ce_romancyworker", b"floor:1"),
    )
    return kafka.topic("results"), partition_for(instance_id, PARTITIONS), instance_id, result, headers


# -- engine --------------------------------------------------------------------------------------------------------
COMMIT: Final = """
WITH fence AS (
    UPDATE romancy_partitions p SET commit_no = p.commit_no + 1, position = v.position
    FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::int8[]) AS v(part, epoch, commit_no, position)
    WHERE p.part = v.part AND p.epoch = v.epoch AND p.commit_no = v.commit_no RETURNING 1),
offsets AS (
    INSERT INTO romancy_offsets SELECT * FROM unnest($5::text[], $6::int4[], $7::int8[])
    ON CONFLICT (topic, part) DO UPDATE SET next_offset = EXCLUDED.next_offset),
sent AS (
    DELETE FROM romancy_outbox t USING unnest($8::int4[], $9::int8[], $10::int8[]) AS v(part, first, last)
    WHERE t.part = v.part AND t.position BETWEEN v.first AND v.last),
history AS (
    INSERT INTO romancy_history
    SELECT * FROM unnest($11::text[], $12::int4[], $13::int4[], $14::int8[], $15::text[], $16::text[], $17::text[],
                         $18::text[])),
instances AS (
    INSERT INTO romancy_instances (instance_id, run, part, workflow, status, seq, input, started_us, updated_us,
                                   event_source, event_id)
    SELECT id, 1, part, 'three_steps', 'running', seq, input::jsonb, at, at, source, event
    FROM unnest($19::text[], $20::int4[], $21::int4[], $22::text[], $23::int8[], $24::text[], $25::text[])
         AS v(id, part, seq, input, at, source, event)),
updates AS (
    UPDATE romancy_instances t
    SET status = v.status, seq = v.seq, output = v.output::jsonb, updated_us = v.at, finished_us = v.finished
    FROM unnest($26::text[], $27::text[], $28::int4[], $29::text[], $30::int8[], $31::int8[])
         AS v(id, status, seq, output, at, finished) WHERE t.instance_id = v.id),
activities AS (
    INSERT INTO romancy_activities (instance_id, run, activity_id, name, queue, status, attempt, scheduled_us,
                                    updated_us, finished_us, eager)
    SELECT id, 1, activity, 'step', 'default', status, 1, scheduled, updated, finished, eager
    FROM unnest($32::text[], $33::text[], $34::text[], $35::int8[], $36::int8[], $37::int8[], $38::text[])
         AS v(id, activity, status, scheduled, updated, finished, eager)
    ON CONFLICT (instance_id, run, activity_id) DO UPDATE
    SET status = EXCLUDED.status, updated_us = EXCLUDED.updated_us, finished_us = EXCLUDED.finished_us,
        eager = EXCLUDED.eager),
outbox AS (
    INSERT INTO romancy_outbox (part, position, topic, key, to_partition, headers, value)
    SELECT * FROM unnest($39::int4[], $40::int8[], $41::text[], $42::text[], $43::int4[], $44::text[], $45::bytea[]))
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
       / (CASE WHEN (SELECT count(*) FROM fence) = cardinality($1::int4[]) THEN 1 ELSE 0 END)
"""
WIDTHS: Final = (("fence", 4), ("offsets", 3), ("sent", 3), ("history", 8), ("instances", 7), ("updates", 6))
MORE_WIDTHS: Final = (("activities", 7), ("outbox", 7))
# As the engine's own connections: the tables grow under a plan that is made once.
SERVER_SETTINGS: Final = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


@dataclass(slots=True)
class Instance:
    part: int
    seq: int = 0
    step: int = 1
    scheduled_us: int = 0
    cause: bytes = b""
    cause_source: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """A step that has ended."""

    instance_id: str
    activity_id: str
    attempt: int
    duration_us: int
    worker: str
    result: bytes

    @classmethod
    def of(cls, record: Any, about: dict[str, bytes]) -> Done:
        return cls(
            about["ce_subject"].decode(),
            about["ce_romancyactivityid"].decode(),
            int(about["ce_romancyattempt"]),
            int(about["ce_romancyduration"]),
            about["ce_romancyworker"].decode(),
            record.value,
        )


@dataclass(slots=True)
class Batch:
    """Rows by table, and what goes out after the commit."""

    at_us: int
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))
    new: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    updates: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    activities: dict[tuple[str, str], tuple[Any, ...]] = field(default_factory=dict)
    parts: set[int] = field(default_factory=set)
    out: list[Message] = field(default_factory=list)


class FloorEngine:
    def __init__(self, bus: Bus, eager: bool) -> None:
        self._bus = bus
        self._eager = uuid4().hex if eager else None  # what names this process in the rows of its steps
        self._tasks: list[tuple[str, str, bytes]] = []  # steps to do here: instance, activity, arguments
        self._source = f"/romancy/{bus.namespace}".encode()
        self._topics = {name: bus.topic(name) for name in ("commands", "results", "events", "tasks.default")}
        self._instances: dict[str, Instance] = {}
        self._commit_no = [0] * PARTITIONS
        self._position = [0] * PARTITIONS
        self._sent: list[tuple[int, int, int]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def _publish(self, out: list[Message], ranges: list[tuple[int, int, int]]) -> None:
        await self._bus.send(out)
        self._sent += ranges

    def _do_tasks(self) -> list[Done]:
        """Those of the batch that is durable."""
        tasks, self._tasks = self._tasks, []
        done = []
        for instance_id, activity_id, arguments in tasks:
            result, duration_us = performed(arguments)
            done.append(Done(instance_id, activity_id, 1, duration_us, "floor:1", result))
        return done

    def _decide(self, fetched: Any, done: Sequence[Done]) -> Batch:
        batch = Batch(time.time_ns() // 1_000)
        at = time_text(batch.at_us)
        for place, records in fetched.items():
            batch.parts.add(place.partition)
            batch.rows["offsets"].append((place.topic, place.partition, records[-1].offset + 1))
            for record in records:
                about = dict(record.headers)
                if about["ce_type"] == b"romancy.workflow.start":
                    self._started(batch, record, about, at)
                else:
                    self._completed(batch, Done.of(record, about), at)
        for each in done:
            self._completed(batch, each, at)
        return batch

    def _started(self, batch: Batch, record: Any, about: dict[str, bytes], at: bytes) -> None:
        instance_id, payload = about["ce_subject"].decode(), record.value.decode()
        source, event_id = about["ce_source"], about["ce_id"]
        instance = self._instances[instance_id] = Instance(record.partition, cause=event_id, cause_source=source)
        attrs = {"workflow": "three_steps", "event_source": source.decode(), "event_id": event_id.decode()}
        self._record(batch, instance_id, instance, "workflow.started", None, attrs, payload)
        self._tell(batch, instance_id, instance, b"romancy.workflow.started", b'{"input":%s}' % record.value, at)
        self._schedule(batch, instance_id, instance, record.value, at)
        batch.new[instance_id] = (
            instance_id,
            record.partition,
            instance.seq,
            payload,
            batch.at_us,
            source.decode(),
            event_id.decode(),
        )

    def _completed(self, batch: Batch, done: Done, at: bytes) -> None:
        instance_id, activity_id = done.instance_id, done.activity_id
        instance = self._instances[instance_id]
        if activity_id != f"step:{instance.step}":
            return
        batch.parts.add(instance.part)
        payload = done.result.decode()
        attrs = {"attempt": done.attempt, "duration_us": done.duration_us, "worker": done.worker}
        self._record(batch, instance_id, instance, "activity.completed", activity_id, attrs, payload)
        row = (instance_id, activity_id, "completed", instance.scheduled_us, batch.at_us, batch.at_us, None)
        batch.activities[instance_id, activity_id] = row
        if instance.step < STEPS:
            instance.step += 1
            self._schedule(batch, instance_id, instance, done.result, at)
            batch.updates[instance_id] = (instance_id, "running", instance.seq, None, batch.at_us, None)
        else:
            self._record(batch, instance_id, instance, "workflow.completed", None, {}, payload)
            self._tell(batch, instance_id, instance, b"romancy.workflow.completed", b'{"output":%s}' % done.result, at)
            batch.updates[instance_id] = (
                instance_id,
                "completed",
                instance.seq,
                payload,
                batch.at_us,
                batch.at_us,
            )
            del self._instances[instance_id]

    def _record(
        self, batch: Batch, id_: str, instance: Instance, kind: str, ref: str | None, attrs: Any, payload: str
    ) -> None:
        instance.seq += 1
        text = orjson.dumps(attrs).decode()
        batch.rows["history"].append((id_, 1, instance.seq, batch.at_us, kind, ref, text, payload))

    def _schedule(self, batch: Batch, id_: str, instance: Instance, argument: bytes, at: bytes) -> None:
        activity_id = f"step:{instance.step}"
        value = b'{"args":[%s],"kwargs":{}}' % argument
        instance.scheduled_us = batch.at_us
        attrs = {"name": "step", "queue": "default"} | ({"eager": self._eager} if self._eager else {})
        self._record(batch, id_, instance, "activity.scheduled", activity_id, attrs, value.decode())
        row = (id_, activity_id, "scheduled", batch.at_us, batch.at_us, None, self._eager)
        batch.activities[id_, activity_id] = row
        if self._eager:
            self._tasks.append((id_, activity_id, value))
        else:
            self._request(batch, id_, instance, activity_id, value, at)

    def _request(self, batch: Batch, id_: str, instance: Instance, activity_id: str, value: bytes, at: bytes) -> None:
        key = f"{id_}/1/{activity_id}"
        headers = cloudevent(
            f"{key}/1",
            self._source,
            b"romancy.activity.requested",
            id_.encode(),
            at,
            ("ce_romancyactivity", b"step"),
            ("ce_romancyactivityid", activity_id.encode()),
            ("ce_romancyattempt", b"1"),
            ("ce_romancyidempotencykey", key.encode()),
            ("ce_romancyrun", b"1"),
            ("ce_romancyworkflow", b"three_steps"),
        )
        spread = partition_for(f"{id_}/{activity_id}".encode(), PARTITIONS)
        self._send(batch, instance.part, id_, (self._topics["tasks.default"], spread, id_.encode(), value, headers))

    def _tell(self, batch: Batch, id_: str, instance: Instance, type_: bytes, value: bytes, at: bytes) -> None:
        headers = cloudevent(
            f"{id_}/1/{instance.seq}",
            self._source,
            type_,
            id_.encode(),
            at,
            ("ce_causationid", instance.cause),
            ("ce_causationsource", instance.cause_source),
            ("ce_romancyinstance", id_.encode()),
            ("ce_romancyrun", b"1"),
            ("ce_romancyworkflow", b"three_steps"),
            ("ce_sequence", b"%d" % instance.seq),
        )
        self._send(batch, instance.part, id_, (self._topics["events"], instance.part, id_.encode(), value, headers))

    def _send(self, batch: Batch, part: int, id_: str, message: Message) -> None:
        topic, partition, _, value, headers = message
        self._position[part] += 1
        text = orjson.dumps([(name, raw.decode()) for name, raw in headers]).decode()
        batch.rows["outbox"].append((part, self._position[part], topic, id_, partition, text, value))
        batch.out.append(message)

    def _rows(self, batch: Batch) -> dict[str, list[tuple[Any, ...]]]:
        rows = batch.rows
        rows["fence"] = [(part, 1, self._commit_no[part], self._position[part]) for part in batch.parts]
        for part in batch.parts:
            self._commit_no[part] += 1
        rows["sent"], self._sent = self._sent, []
        for instance_id in batch.new.keys() & batch.updates.keys():  # a row that is new in this statement is not there
            raise AssertionError(f"{instance_id} was started and continued in one batch")
        rows["instances"], rows["updates"] = list(batch.new.values()), list(batch.updates.values())
        rows["activities"] = list(batch.activities.values())
        return rows


class KafkaFloorEngine(FloorEngine):
    def __init__(self, kafka: Kafka, connection: Any, eager: bool) -> None:
        super().__init__(kafka, eager)
        self._kafka = kafka
        self._connection = connection

    async def run(self) -> None:
        await self._connection.execute("UPDATE romancy_partitions SET epoch = 1, commit_no = 0, position = 0")
        commit = await self._connection.prepare(COMMIT)
        consumer = await self._kafka.consumer(*(("commands",) if self._eager else ("commands", "results")))
        while True:
            done = self._do_tasks()
            fetched = await consumer.getmany(timeout_ms=0 if done else 1000, max_records=BATCH_RECORDS)
            if not fetched and not done:
                continue
            before = list(self._position)
            batch = self._decide(fetched, done)
            await commit.fetchval(*self._arguments(batch))
            grown = (part for part in batch.parts if self._position[part] > before[part])
            ranges = [(part, before[part] + 1, self._position[part]) for part in grown]
            task = asyncio.create_task(self._publish(batch.out, ranges))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def _arguments(self, batch: Batch) -> list[list[Any]]:
        rows = self._rows(batch)
        columns: list[list[Any]] = []
        for name, width in WIDTHS + MORE_WIDTHS:
            columns += [list(each) for each in zip(*rows[name], strict=True)] if rows[name] else [[]] * width
        return columns


async def run_engine(kafka: Kafka, eager: bool = False) -> None:
    connection = await asyncpg.connect(os.environ["ROMANCY_DATABASE"], server_settings=SERVER_SETTINGS)
    try:
        await KafkaFloorEngine(kafka, connection, eager).run()
    finally:
        await connection.close()


# -- processes -----------------------------------------------------------------------------------------------------
Role = Callable[[Kafka], Awaitable[None]]


async def run(role: str, eager: bool) -> None:
    kafka = Kafka()
    roles: dict[str, Role] = {"client": run_client, "engine": partial(run_engine, eager=eager), "worker": run_worker}
    await kafka.producer.start()
    try:
        await roles[role](kafka)
    finally:
        await kafka.producer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="?", choices=["client", "engine", "worker"])
    parser.add_argument("--eager", action="store_true", help="steps are done in the engine's process")
    options = parser.parse_args()
    if options.role is None:
        from benchmarks import throughput

        throughput.main(["--floor-only", *(["--eager"] if options.eager else [])])
        return
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run(options.role, options.eager))


if __name__ == "__main__":
    main()
