"""The program without an engine in one process: what `floor` does, over a log in a file and the tables in SQLite. The
records and the rows are those of the engine on its embedded log. Steps are done here, each after the commit that
scheduled it; every append to the log and every commit is on the disk before anything goes on.

    python -m benchmarks.floor_alone      a client under orders; ROMANCY_* say where
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import orjson

from benchmarks.driving import obey
from benchmarks.floor import BATCH_RECORDS, Batch, FloorDriver, FloorEngine, Headers, Message
from benchmarks.loops import loop_factory
from romancy_stream.broker.port import TP
from romancy_stream.store.database import BUSY_TIMEOUT_S, connect_sqlite

FENCE: Final = """UPDATE romancy_partitions SET commit_no = commit_no + 1, position = ?4
                  WHERE part = ?1 AND epoch = ?2 AND commit_no = ?3"""
WRITES: Final = {
    "offsets": """INSERT INTO romancy_offsets VALUES (?, ?, ?)
                  ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset""",
    "sent": "DELETE FROM romancy_outbox WHERE part = ? AND position BETWEEN ? AND ?",
    "history": "INSERT INTO romancy_history VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "instances": """INSERT INTO romancy_instances (instance_id, run, part, workflow, status, seq, input, started_us,
                                                   updated_us, event_source, event_id)
                    VALUES (?1, 1, ?2, 'three_steps', 'running', ?3, ?4, ?5, ?5, ?6, ?7)""",
    "updates": """UPDATE romancy_instances SET status = ?2, seq = ?3, output = ?4, updated_us = ?5, finished_us = ?6
                  WHERE instance_id = ?1""",
    "activities": """INSERT INTO romancy_activities (instance_id, run, activity_id, name, queue, status, attempt,
                                                     scheduled_us, updated_us, finished_us, eager)
                     VALUES (?1, 1, ?2, 'step', 'default', ?3, 1, ?4, ?5, ?6, ?7)
                     ON CONFLICT DO UPDATE SET status = excluded.status, updated_us = excluded.updated_us,
                                               finished_us = excluded.finished_us, eager = excluded.eager""",
    "outbox": """INSERT INTO romancy_outbox (part, position, topic, key, to_partition, headers, value)
                 VALUES (?, ?, ?, ?, ?, ?, ?)""",
}


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Headers


class Log:
    """What `floor.Kafka` is to the others, in a file."""

    def __init__(self, path: Path) -> None:
        self.namespace = os.environ["ROMANCY_NAMESPACE"]
        self.commands: deque[Record] = deque()
        self.arrived = asyncio.Event()
        self.driver: Driver | None = None
        self._commands = self.topic("commands")
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._ends: dict[tuple[str, int], int] = defaultdict(int)

    def topic(self, name: str) -> str:
        return f"{self.namespace}.{name}"

    async def send(self, messages: Iterable[Message]) -> None:
        records = [self._appended(*message) for message in messages]
        if records:
            os.write(self._file, b"".join(map(_line, records)))
            os.fdatasync(self._file)
        for record in records:
            if record.topic == self._commands:
                self.commands.append(record)
                self.arrived.set()
            else:
                assert self.driver is not None
                self.driver.told(record)

    def _appended(self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers) -> Record:
        offset = self._ends[topic, partition]
        self._ends[topic, partition] = offset + 1
        return Record(topic, partition, offset, key, value, headers)


def _line(record: Record) -> bytes:
    headers = [(name, raw.decode()) for name, raw in record.headers]
    place = (record.topic, record.partition, record.offset)
    return orjson.dumps((*place, record.key.decode(), record.value.decode(), headers)) + b"\n"


class Driver(FloorDriver):
    def told(self, record: Record) -> None:
        if dict(record.headers)["ce_type"] == b"romancy.workflow.completed":
            self._waiting.pop(record.key).set_result(record.value)


class Engine(FloorEngine):
    def __init__(self, log: Log, connection: sqlite3.Connection) -> None:
        super().__init__(log, eager=True)
        self._log = log
        self._connection = connection

    async def run(self) -> None:
        self._connection.execute("UPDATE romancy_partitions SET epoch = 1, commit_no = 0, position = 0")
        while True:
            done = self._do_tasks()
            fetched = self._fetched()
            if not fetched and not done:
                self._log.arrived.clear()
                await self._log.arrived.wait()
                continue
            before = list(self._position)
            batch = self._decide(fetched, done)
            self._commit(batch)
            grown = [part for part in batch.parts if self._position[part] > before[part]]
            await self._publish(batch.out, [(part, before[part] + 1, self._position[part]) for part in grown])
            await asyncio.sleep(0)  # for the client

    def _fetched(self) -> dict[TP, list[Record]]:
        commands = self._log.commands
        fetched: dict[TP, list[Record]] = defaultdict(list)
        for _ in islice(iter(commands.__len__, 0), BATCH_RECORDS):
            record = commands.popleft()
            fetched[TP(record.topic, record.partition)].append(record)
        return fetched

    def _commit(self, batch: Batch) -> None:
        rows = self._rows(batch)
        self._connection.execute("BEGIN IMMEDIATE")
        if self._connection.executemany(FENCE, rows["fence"]).rowcount != len(batch.parts):
            raise AssertionError("another one writes to these tables")
        for name, statement in WRITES.items():
            if rows[name]:
                self._connection.executemany(statement, rows[name])
        self._connection.execute("COMMIT")


async def run() -> None:
    folder = Path(os.environ["ROMANCY_BROKER"].removeprefix("embedded://"))
    path = os.environ["ROMANCY_DATABASE"].removeprefix("sqlite:///")
    log = Log(folder / "floor.log")
    driver = log.driver = Driver(log)
    with contextlib.closing(connect_sqlite(Path(path), BUSY_TIMEOUT_S)) as connection:
        working = asyncio.create_task(Engine(log, connection).run())
        await obey(driver)
        working.cancel()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())
