"""Sends outbox rows after their commit, in order, and keeps account of what the broker acknowledged, so that a
later commit can delete those rows. It never reads the table: rows come from commits, and from the snapshot of a
takeover what a predecessor left behind.

A row that the broker refuses is reported with its reason, and later rows of the same key wait behind it; other keys
go on. It is tried again now and then: somebody may have made the topic, or raised the limit. Anything else that goes
wrong with a send is fatal here: the owner starts again from the table, which still has everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from romancy_stream.broker.port import Broker
from romancy_stream.engine.commit import OutboxRow
from romancy_stream.errors import RecordRefusedError
from romancy_stream.runtime.rest import wait_at_most
from romancy_stream.wire.codec import header_bytes
from romancy_stream.wire.record import OutRecord

log = logging.getLogger(__name__)

IN_FLIGHT_LIMIT: Final = 20_000
"""Rows sent or waiting to be sent, not acknowledged. Some 20 MB; the processor pauses above it."""
SEND_CHUNK: Final = 1_000
"""Rows handed to the broker at once, so that acknowledgements are dealt with in between."""


REFUSED_AGAIN_S: Final = 30.0
"""Between two attempts at rows that were refused."""


class Relay:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queue: deque[OutboxRow] = deque()
        self._in_flight = 0
        self._sent: dict[int, list[int]] = defaultdict(list)
        self._refused: list[tuple[int, int, str]] = []
        self._held: dict[int, dict[str, list[OutboxRow]]] = {}  # owned partitions -> key -> refused row, those behind
        self._wake = asyncio.Event()
        self._refused_now = asyncio.Event()
        self._room = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._guarded(self._run()), name="romancy-relay"),
            asyncio.create_task(self._guarded(self._retry_refused()), name="romancy-relay-refused"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._failure.done():
            self._failure.cancel()

    @property
    def failure(self) -> asyncio.Future[None]:
        """Fails when sending cannot go on."""
        return self._failure

    def adopt(self, part: int, rows: Sequence[OutboxRow], held: Mapping[str, Sequence[OutboxRow]]) -> None:
        """`held`: by key, a refused row and those behind it."""
        self._held[part] = {key: list(waiting) for key, waiting in held.items()}
        self.post(rows)
        if held:
            self._refused_now.set()

    def drop(self, parts: Iterable[int]) -> None:
        """Forgets partitions: a successor sends what is not acknowledged."""
        gone = set(parts)
        for part in gone:
            self._held.pop(part, None)
            self._sent.pop(part, None)
        self._refused = [refused for refused in self._refused if refused[0] not in gone]
        kept = [row for row in self._queue if row.part not in gone]
        self._in_flight -= len(self._queue) - len(kept)
        self._queue = deque(kept)

    def post(self, rows: Sequence[OutboxRow]) -> None:
        """Rows of a commit that is durable."""
        if rows:
            self._queue.extend(rows)
            self._in_flight += len(rows)
            self._wake.set()

    async def has_room(self) -> None:
        """Raises what has ended the sending: there will be none."""
        while self._in_flight > IN_FLIGHT_LIMIT:
            if self._failure.done():
                self._failure.result()
            self._room.clear()
            await self._room.wait()

    async def settle(self, limit_s: float) -> None:
        """Until everything is acknowledged or refused, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._in_flight:
                    self._room.clear()
                    await self._room.wait()

    @property
    def idle(self) -> bool:
        return self._in_flight == 0

    @property
    def in_flight(self) -> int:
        """Rows that are sent or wait to be sent, and are not acknowledged."""
        return self._in_flight

    @property
    def held(self) -> int:
        """Rows that the broker refuses, and those that wait behind them."""
        return sum(len(rows) for held in self._held.values() for rows in held.values())

    @property
    def has_news(self) -> bool:
        """Acknowledgements that no commit has taken up yet."""
        return bool(self._refused) or any(self._sent.values())

    def take_sent(self) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, str]]]:
        """Acknowledged (part, first, last) ranges and refused (part, position, reason) rows, each once."""
        ranges = [
            (part, first, last) for part, positions in self._sent.items() for first, last in _ranges(sorted(positions))
        ]
        refused, self._refused = self._refused, []
        self._sent.clear()
        return ranges, refused

    # -- sending -------------------------------------------------------------------------------------------------
    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._fail(error)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._send([self._queue.popleft() for _ in range(min(SEND_CHUNK, len(self._queue)))])

    async def _retry_refused(self) -> None:
        while True:
            await wait_at_most(self._refused_now, REFUSED_AGAIN_S)
            self._refused_now.clear()
            for held in list(self._held.values()):
                for key, waiting in list(held.items()):
                    await self._retry(held, key, waiting)

    async def _retry(self, held: dict[str, list[OutboxRow]], key: str, waiting: list[OutboxRow]) -> None:
        row = waiting[0]
        [future] = await self._broker.send([_record(row)])
        try:
            await future
        except RecordRefusedError:
            return
        if self._held.get(row.part) is held:  # still ours
            log.info("the broker takes outbox row %d/%d now", row.part, row.position)
            del held[key]
            self._sent[row.part].append(row.position)
            self.post(waiting[1:])

    def _sendable(self, row: OutboxRow) -> bool:
        held = self._held.get(row.part)
        if held is None:
            return False
        if row.key in held:
            held[row.key].append(row)
            return False
        return True

    async def _send(self, rows: list[OutboxRow]) -> None:
        sendable = [row for row in rows if self._sendable(row)]
        self._in_flight -= len(rows) - len(sendable)
        futures = await self._broker.send([_record(row) for row in sendable])
        for row, future in zip(sendable, futures, strict=True):
            future.add_done_callback(partial(self._done, row))

    def _done(self, row: OutboxRow, future: asyncio.Future[int]) -> None:
        self._in_flight -= 1
        self._room.set()
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        held = self._held.get(row.part)
        if held is None:
            return  # the partition is somebody else's by now
        if error is None:
            self._sent[row.part].append(row.position)
        elif isinstance(error, RecordRefusedError):
            log.error("the broker refuses outbox row %d/%d for %s: %s", row.part, row.position, row.topic, error)
            held.setdefault(row.key, []).append(row)
            self._refused.append((row.part, row.position, str(error)))
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)
            self._room.set()


def _record(row: OutboxRow) -> OutRecord:
    return OutRecord(row.topic, row.key.encode(), row.value, header_bytes(row.headers), row.to_partition)


def _ranges(positions: list[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for position in positions:
        if ranges and ranges[-1][1] == position - 1:
            ranges[-1] = (ranges[-1][0], position)
        else:
            ranges.append((position, position))
    return ranges
