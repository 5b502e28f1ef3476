"""`Tail` on the embedded log: follows topics from their ends, in a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from romancy_stream.broker.embedded.log import Log
from romancy_stream.broker.embedded.reader import Reader
from romancy_stream.broker.port import OnRecords
from romancy_stream.errors import BrokerUnavailableError

logger = logging.getLogger("romancy_stream.broker")


class EmbeddedTail:
    """What `on_records` raises ends it, is logged at once, and comes out of `stop`. When the log fails it ends; every
    other user of the log is told."""

    def __init__(self, log: Log, topics: Sequence[str], on_records: OnRecords) -> None:
        self._log = log
        self._topics = tuple(topics)
        self._on_records = on_records
        self._reader = Reader(log, self._topics_created)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """A topic that does not exist yet is read from its beginning when it does."""
        if self._task is not None:
            raise RuntimeError("a tail starts once")
        self._reader.open()
        known = [self._log.topics[name] for name in self._topics if name in self._log.topics]
        self._reader.attach({p: p.end for topic in known for p in topic.partitions})
        self._task = asyncio.create_task(self._follow(), name="romancy tail")

    def _topics_created(self, names: Sequence[str]) -> None:
        made = [self._log.topics[name] for name in names if name in self._topics]
        if self._task is not None:
            self._reader.add({p: 0 for topic in made for p in topic.partitions})

    async def stop(self) -> None:
        """Lets a running `on_records` end."""
        self._stopping = True
        self._reader.wake()
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])
            self._task.result()
        self._reader.close()

    async def _follow(self) -> None:
        try:
            while not self._stopping:
                batch = await self._reader.poll()
                if batch:
                    await self._on_records([record for records in batch.values() for record in records])
                else:
                    await self._reader.wait()
        except BrokerUnavailableError as error:
            if self._log.failure is None:
                raise
            logger.info("a tail of %s ends: %s", ", ".join(self._topics), error)
        except Exception:
            logger.exception("a tail of %s ends: its callback failed", ", ".join(self._topics))
            raise
