"""`Tail` on the embedded log: follows topics from their ends, in a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from romancy_stream.broker.embedded.log import Log
from romancy_stream.broker.embedded.partition import Partition
from romancy_stream.broker.embedded.reader import Reader
from romancy_stream.broker.port import OnGap, OnRecords
from romancy_stream.errors import BrokerUnavailableError

logger = logging.getLogger("romancy_stream.broker")


class EmbeddedTail:
    """What `on_records` raises is logged at once. When the log fails it ends; `stop` raises nothing then."""

    def __init__(self, log: Log, topics: Sequence[str], on_records: OnRecords, on_gap: OnGap) -> None:
        self._log = log
        self._topics = tuple(topics)
        self._on_records = on_records
        self._on_gap = on_gap
        self._reader = Reader(log, self._topics_created, self._retained)
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
        self._task.add_done_callback(self._ended)

    def _topics_created(self, names: Sequence[str]) -> None:
        made = [self._log.topics[name] for name in names if name in self._topics]
        if self._task is not None:
            self._reader.add({p: 0 for topic in made for p in topic.partitions})

    def _retained(self, p: Partition, offset: int) -> int:
        logger.warning("offset %d of %s/%d is no longer in the log, going on at %d", offset, p.topic, p.number, p.start)
        self._on_gap(None)
        return p.start

    async def stop(self) -> None:
        """Lets a running `on_records` end."""
        self._stopping = True
        self._reader.wake()
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])
            if not self._task.cancelled():
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

    def _ended(self, task: asyncio.Task[None]) -> None:
        """However it came: of itself it ends never."""
        error = None if task.cancelled() else task.exception()
        if not self._stopping:
            self._reader.close()
            what = f"a tail of {', '.join(self._topics)} was cancelled"
            self._on_gap(error or self._log.failure or BrokerUnavailableError(what))
