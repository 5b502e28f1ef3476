"""A member of a batch group as a process of its own, with its positions in a SQLite file behind a fence, as the engine
has them in its database. `python -m tests.broker.kafka_member BOOTSTRAP TOPIC GROUP FILE NAME`; SIGTERM ends it.

Every batch moves the position of each of its partitions, if the epoch is still this member's and the position is where
the batch begins, and writes down what it read, all in one transaction. A member that is fenced, or has no answer from
the broker, starts over with a new source, as the engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.port import TP, BatchSource, Record
from romancy_stream.errors import BrokerUnavailableError

SETTINGS = KafkaSettings(session_timeout_ms=2_000, heartbeat_interval_ms=300)
BUSY_TIMEOUT_S = 60.0
BACKOFF_S = (0.1, 2.0)  # first and longest pause of a member that the broker did not answer

SCHEMA = """
CREATE TABLE positions (part INTEGER PRIMARY KEY, next INTEGER NOT NULL, epoch INTEGER NOT NULL, owner TEXT);
CREATE TABLE seen (part INTEGER, offset INTEGER, member TEXT, PRIMARY KEY (part, offset)) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY, member TEXT, what TEXT);
"""


class Fenced(Exception):
    pass


class Ledger:
    """The file. `gate`: while this file exists beside it, a member waits inside its batch."""

    def __init__(self, path: Path, member: str) -> None:
        self.path = path
        self.member = member
        self.gate = path.with_name(f"{member}.gate")
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)

    @staticmethod
    def create(path: Path, partitions: int) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript("PRAGMA journal_mode=WAL;" + SCHEMA)
            connection.executemany("INSERT INTO positions VALUES (?, 0, 0, NULL)", [(p,) for p in range(partitions)])
            connection.commit()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def note(self, what: str) -> None:
        self._connection.execute("INSERT INTO events (member, what) VALUES (?, ?)", (self.member, what))

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        self._connection.close()


class Member:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.source: BatchSource | None = None
        self._epochs: dict[TP, int] = {}

    async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        positions: dict[TP, int] = {}
        with self.ledger.transaction() as connection:
            for tp in partitions:
                connection.execute(
                    "UPDATE positions SET epoch = epoch + 1, owner = ? WHERE part = ?",
                    (self.ledger.member, tp.partition),
                )
        assert self.source is not None
        if not await self.source.confirm_membership():
            self.ledger.note("not a member")
        for tp in partitions:
            query = "SELECT next, epoch FROM positions WHERE part = ? AND owner = ?"
            for position, epoch in self.ledger.rows(query, tp.partition, self.ledger.member):
                positions[tp], self._epochs[tp] = int(str(position)), int(str(epoch))
        self.ledger.note(f"assigned {sorted(tp.partition for tp in partitions)}")
        return {tp: positions.get(tp, 0) for tp in partitions}

    async def on_batch(self, batch: Mapping[TP, Sequence[Record]]) -> None:
        if self.ledger.gate.exists():
            self.ledger.note("waiting inside")
            while self.ledger.gate.exists():  # noqa: ASYNC110 - another process removes it
                await asyncio.sleep(0.01)
        with self.ledger.transaction() as connection:
            for tp, records in batch.items():
                moved = connection.execute(
                    "UPDATE positions SET next = ? WHERE part = ? AND epoch = ? AND next = ?",
                    (records[-1].offset + 1, tp.partition, self._epochs.get(tp), records[0].offset),
                )
                if moved.rowcount != 1:
                    raise Fenced(f"partition {tp.partition} at {records[0].offset}")
                rows = [(tp.partition, r.offset, self.ledger.member) for r in records]
                connection.executemany("INSERT INTO seen VALUES (?, ?, ?)", rows)

    async def on_revoked(self, partitions: set[TP]) -> None:
        self._epochs = {}
        self.ledger.note(f"revoked {sorted(tp.partition for tp in partitions)}")


async def main(bootstrap: str, topic: str, group: str, path: str, name: str) -> None:
    ledger = Ledger(Path(path), name)
    broker = KafkaBroker(bootstrap, client_id=name, settings=SETTINGS)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    end = asyncio.create_task(stopping.wait())
    pause_s = BACKOFF_S[0]
    while not stopping.is_set():
        member = Member(ledger)
        source = member.source = broker.batches([topic], group, member)
        run = asyncio.create_task(source.run())
        await asyncio.wait({run, end}, return_when=asyncio.FIRST_COMPLETED)
        await source.stop()
        try:
            await run
        except Fenced as error:
            ledger.note(f"fenced: {error}")
        except BrokerUnavailableError as error:
            ledger.note(f"no answer: {error}")
            await asyncio.wait({end}, timeout=pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S[1])
    await end
    ledger.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
