"""What the tests of the embedded broker share."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.broker.port import TP, Record, TopicSpec
from tests.broker.recording import Recorder, running

TOPIC = "t.commands"


@asynccontextmanager
async def opened(path: Path, *specs: TopicSpec, **options: float) -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(path, **options)  # type: ignore[arg-type]
    await broker.open()
    try:
        await broker.create_topics(specs or [TopicSpec(TOPIC, 4)])
        yield broker
    finally:
        await broker.close()


async def read_all(broker: EmbeddedBroker, count: int, positions: dict[TP, int] | None = None) -> list[Record]:
    recorder = Recorder(positions)
    async with running(broker.batches([TOPIC], "reader", recorder)):
        await recorder.received(count)
    return recorder.records


def rows(path: Path, query: str) -> list[tuple[int, ...]]:
    with closing(sqlite3.connect(path / "broker.db")) as db:
        return db.execute(query).fetchall()


@contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Killed at the end, if it has not ended."""
    command = [sys.executable, "-c", source, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
