"""How a worker's messages reach the broker: in order, for as long as it takes, with events acknowledged before the
result that follows them; and how the outbox rows that held them go. Knows records and rows, no activities.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Final

from romancy_stream.broker.port import Broker, acknowledged
from romancy_stream.errors import BrokerUnavailableError, StoreUnavailableError
from romancy_stream.runtime.worker_messages import Message, records
from romancy_stream.store.database import seen
from romancy_stream.store.port import Store

log = logging.getLogger(__name__)

PAUSE_S: Final = (0.1, 5.0)
"""First and longest pause before a record that was not acknowledged is sent again."""
ROWS_LIMIT: Final = 10_000
"""Keys of sent rows that wait for their deletion while the database is away. Beyond that the rows are left to the
partition's owner, who sends them once more: receivers know them by their ids."""
ROWS_AT_ONCE: Final = 500
DELETE_LIMIT_S: Final = 5.0
"""How long anybody waits for a deletion. Nothing depends on it."""


class Sender:
    """`ready` is cleared while something cannot be sent."""

    def __init__(self, broker: Broker, store: Store) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.refused = 0
        self._broker = broker
        self._store = store
        self._stuck = 0
        self._cannot_delete = False  # has been logged
        self._posted: list[tuple[Message, Callable[[asyncio.Future[int]], None]]] = []
        self._unsent = 0  # of those that were posted, until the broker takes them
        self.unanswered: set[asyncio.Future[int]] = set()  # and from then on
        self._hangs: asyncio.Future[None] | None = None
        self.sent_rows: dict[tuple[str, int], None] = {}  # acknowledged, and still in the database

    @property
    def unreported(self) -> int:
        """Messages that were posted, and that the broker has not answered for."""
        return self._unsent + len(self.unanswered)

    # -- results ---------------------------------------------------------------------------------------------------
    async def post(self, message: Message, answered: Callable[[asyncio.Future[int]], None]) -> None:
        """Together with what others post in this turn of the loop, in any order: the first of them waits until the
        broker takes them all, the others return at once. `answered` gets what the broker says of the message; it is
        cancelled when the first is, or whoever finds it in `unanswered` cancels it. Raises nothing."""
        self._posted.append((message, answered))
        self._unsent += 1
        if len(self._posted) > 1:
            return
        posted = self._posted
        try:
            try:
                await asyncio.sleep(0)
            finally:
                self._posted = []
            answers = await self._broker.send(records([message for message, _ in posted]))
        except (BrokerUnavailableError, asyncio.CancelledError) as error:
            answers = [_answer(error) for _ in posted]
        finally:
            self._unsent -= len(posted)
        for answer, (_, answered) in zip(answers, posted, strict=True):
            self.unanswered.add(answer)
            answer.add_done_callback(self.unanswered.discard)
            answer.add_done_callback(answered)

    async def deliver(self, messages: Sequence[Message], failed: Exception | None = None) -> list[str | None]:
        """Returns when each is acknowledged (None) or refused for good (why). `failed`: why a first try has."""
        answers: list[str | None] = []
        pause_s = 0.0
        try:
            while True:
                error, failed = failed or await self._try(messages[len(answers) :], answers), None
                if error is None:
                    return answers
                log.warning("results wait for the broker: %s", error)
                if not pause_s:
                    self._stuck += 1
                    self.ready.clear()
                pause_s = min(2 * pause_s or PAUSE_S[0], PAUSE_S[1])
                await asyncio.sleep(pause_s)
        finally:
            if pause_s:
                self._stuck -= 1
                if not self._stuck:
                    self.ready.set()

    async def _try(self, messages: Sequence[Message], answers: list[str | None]) -> Exception | None:
        """Extends `answers` up to the first message that the broker did not answer for: what is behind it goes again
        with it, so that the order stays."""
        try:
            sent = await self._broker.send(records(messages))
        except BrokerUnavailableError as error:
            return error
        for found in await acknowledged(sent):
            if isinstance(found, BrokerUnavailableError):
                return found
            self.refused += found is not None
            answers.append(None if found is None else str(found))
        return None

    # -- outbox rows that were sent ----------------------------------------------------------------------------------
    def sent(self, rows: Sequence[tuple[str, int]]) -> None:
        room = ROWS_LIMIT - len(self.sent_rows)
        if room < len(rows):
            log.error(
                "%d sent outbox rows are left to the engine: the database has been away for long", len(rows) - room
            )
        self.sent_rows.update(dict.fromkeys(rows[: max(0, room)]))

    async def delete_sent(self) -> None:
        """Those that cannot be deleted now wait for a later call."""
        while self.sent_rows:
            batch = list(itertools.islice(self.sent_rows, ROWS_AT_ONCE))
            try:
                await self._delete(batch)
            except StoreUnavailableError as error:
                if not self._cannot_delete:
                    log.warning("sent outbox rows cannot be deleted for now: %s", error)
                self._cannot_delete = True
                return
            self._cannot_delete = False
            for row in batch:
                del self.sent_rows[row]

    async def _delete(self, batch: Sequence[tuple[str, int]]) -> None:
        """One at a time: those that hang would hold all connections."""
        if self._hangs is not None and not self._hangs.done():
            raise StoreUnavailableError("the call before hangs still")
        self._hangs = asyncio.ensure_future(self._store.delete_worker_outbox(batch))
        self._hangs.add_done_callback(seen)
        await asyncio.wait({self._hangs}, timeout=DELETE_LIMIT_S)
        if not self._hangs.done():
            raise StoreUnavailableError(f"the database did not answer within {DELETE_LIMIT_S:g} s")
        self._hangs.result()


def _answer(error: BrokerUnavailableError | asyncio.CancelledError) -> asyncio.Future[int]:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    if isinstance(error, BrokerUnavailableError):
        answer.set_exception(error.with_traceback(None))  # whose frames have all these answers
    else:
        answer.cancel()
    return answer
