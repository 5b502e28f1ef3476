"""`EmbeddedBroker`, the `Broker` port on the log of this process, and the registry that lets several of them share
one log."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from romancy_stream.broker.embedded.batches import EmbeddedBatchSource
from romancy_stream.broker.embedded.limits import RETENTION_BYTES, RETENTION_S
from romancy_stream.broker.embedded.log import Log
from romancy_stream.broker.embedded.tail import EmbeddedTail
from romancy_stream.broker.embedded.tasks import EmbeddedTaskSource
from romancy_stream.broker.port import (
    BatchHandler,
    BatchSource,
    OnGap,
    OnRecords,
    OutRecord,
    Tail,
    TaskHandler,
    TaskSource,
    TopicInfo,
    TopicSpec,
    nobody_asked,
)
from romancy_stream.errors import BrokerUnavailableError, EmbeddedBrokerInUseError


class _Shared:
    """A log and how many brokers use it. `closing` ends when file and lock are free again."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.pid = os.getpid()
        self.users = 0
        self.opening: asyncio.Task[None] = asyncio.create_task(log.open(), name="romancy log open")
        self.closing: asyncio.Task[None] | None = None


_logs: Final[dict[str, _Shared]] = {}  # by real path
_guard: Final = threading.Lock()


class EmbeddedBroker:
    """A durable log in the folder `path` (`broker.db`; `broker.lock` keeps other processes out).

    All brokers of one process on one folder share one log, in one event loop: opening it from a second loop while
    the first is alive is refused. The first to open decides the retention.

    Retention. A record may be deleted once every group that ever read its partition is past it (batch groups by
    their `commit_hint` and by what `on_assigned` answered, task groups by what they committed), every reader of this
    process is past it, and either it is older than `retention_s` (the topic's `retention.ms` goes first) or the file
    is larger than `retention_bytes`. The size never counts against partitions that no group reads. The file does
    not shrink; its space is used again.
    """

    def __init__(
        self,
        path: str | Path = "./.romancy",
        *,
        retention_s: float = RETENTION_S,
        retention_bytes: int = RETENTION_BYTES,
    ) -> None:
        self._path = Path(path)
        self._retention_s = retention_s
        self._retention_bytes = retention_bytes
        self._shared: _Shared | None = None

    @property
    def is_shared(self) -> bool:
        return False

    async def open(self) -> None:
        """EmbeddedBrokerInUseError: another process, or another event loop of this one, has the folder."""
        if self._shared is not None:
            raise RuntimeError("this broker is open")
        shared = await self._acquire(_real(self._path))
        try:
            await asyncio.shield(shared.opening)
        except BaseException:
            await _release(shared)
            raise
        self._shared = shared

    async def _acquire(self, key: str) -> _Shared:
        while True:
            with _guard:
                shared = _logs.get(key)
                if shared is not None and _is_orphan(shared):
                    del _logs[key]
                    shared = None
                if shared is None:
                    shared = _logs[key] = _Shared(Log(Path(key), self._retention_s, self._retention_bytes))
                if shared.log.loop is not asyncio.get_running_loop():
                    raise EmbeddedBrokerInUseError(
                        f"the embedded broker in {key} is open in another event loop of this process. Use it from one "
                        "loop, close it there first, or give this app a folder of its own"
                    )
                if shared.closing is None:
                    shared.users += 1
                    return shared
            await asyncio.wait([shared.closing])

    async def close(self) -> None:
        """Idempotent. The last one out waits until everything that was sent is on the disk."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await _release(shared)

    @property
    def _log(self) -> Log:
        if self._shared is None:
            raise BrokerUnavailableError("the embedded broker is not open")
        return self._shared.log

    async def topics(self) -> Mapping[str, TopicInfo]:
        return {name: topic.info for name, topic in self._log.topics.items()}

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        return await self._log.create_topics(specs)

    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        return await self._log.send(records)

    def batches(self, topics: Sequence[str], group: str, handler: BatchHandler) -> BatchSource:
        return EmbeddedBatchSource(self._log, topics, group, handler)

    def tasks(self, topics: Sequence[str], group: str, handler: TaskHandler) -> TaskSource:
        return EmbeddedTaskSource(self._log, topics, group, handler)

    def tail(self, topics: Sequence[str], on_records: OnRecords, on_gap: OnGap = nobody_asked) -> Tail:
        return EmbeddedTail(self._log, topics, on_records, on_gap)


def _real(path: Path) -> str:
    return os.path.realpath(path)


async def _release(shared: _Shared) -> None:
    shared.users -= 1
    if shared.users == 0:
        shared.closing = asyncio.create_task(_close(shared), name="romancy log close")
        await asyncio.shield(shared.closing)


async def _close(shared: _Shared) -> None:
    try:
        await asyncio.wait([shared.opening])
        if shared.opening.exception() is None:
            await shared.log.close()
    finally:
        with _guard:
            for key in [key for key, value in _logs.items() if value is shared]:
                del _logs[key]


def _is_orphan(shared: _Shared) -> bool:
    """Its event loop was closed without closing the log, or it belongs to the process that we were forked from."""
    if shared.pid != os.getpid():
        return True
    if shared.log.loop.is_closed():
        shared.log.abandon()
        return True
    return False
