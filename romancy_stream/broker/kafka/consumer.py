"""`Consumer`: aiokafka's, which can be started and stopped while Kafka is away. aiokafka's own `stop` waits for
whatever is under way, for half a minute when nobody answers, and where a fetch was waiting to be tried again it ends
with the CancelledError that was meant for that fetch, its connections still open. And it reads what aiokafka does not,
see `reading`, and sooner, see `fetching`. It uses private names of aiokafka.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Set
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from romancy_stream.broker.kafka.faults import describe, translated
from romancy_stream.broker.kafka.fetching import fetch_quickly
from romancy_stream.broker.kafka.reading import read_all
from romancy_stream.broker.kafka.settings import CONNECT_LIMIT_S

log = logging.getLogger(__name__)

STOP_LIMIT_S: Final = 4.0
"""For what is under way, and to leave the group. Who leaves without a word is missed after a session timeout."""
CANCEL_AGAIN_S: Final = 0.1


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    _committing: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Stops it again when it fails. Not wait_for: in Python 3.11 it can swallow a cancellation."""
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await super().start()
            read_all(self._fetcher)  # nothing is assigned yet
            fetch_quickly(self._fetcher)
        except BaseException:
            await self.stop()
            raise

    async def commit_within(
        self, limit_s: float, offsets: Mapping[TopicPartition, OffsetAndMetadata], what: str
    ) -> None:
        """Raises BrokerUnavailableError: it may still happen. What somebody else has by now is theirs to commit."""
        try:
            await self._commit_within(limit_s, offsets)
        except (kafka.CommitFailedError, kafka.IllegalStateError) as error:
            log.info("%s: somebody else has the partitions now: %s", what, describe(error))
        except (kafka.KafkaError, TimeoutError) as error:
            raise translated(error, what) from error

    async def _commit_within(self, limit_s: float, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Not cancelled, for aiokafka would leave a part of it alone; and nobody queues behind one that hangs."""
        if self._committing is not None and not self._committing.done():
            raise TimeoutError("the commit before hangs still")
        self._committing = asyncio.ensure_future(self.commit(offsets))
        self._committing.add_done_callback(_seen)
        await asyncio.wait({self._committing}, timeout=limit_s)
        if not self._committing.done():
            raise TimeoutError(f"no answer within {limit_s:g} s")
        self._committing.result()

    async def stop(self) -> None:
        stopping = asyncio.ensure_future(super().stop())
        try:
            await asyncio.wait({stopping}, timeout=STOP_LIMIT_S)
        finally:
            if not stopping.done() or stopping.cancelled() or stopping.exception() is not None:
                await self._stop_anyway(stopping)

    async def _stop_anyway(self, stopping: asyncio.Future[None]) -> None:
        stopping.cancel()
        results: list[object] = []
        if self._fetcher is not None:  # first: once the connections are gone, a request would open another
            results += await _ended({self._fetcher._fetch_task})
            results += await _ended(set(self._fetcher._pending_tasks))
        results += await asyncio.gather(stopping, self._client.close(), return_exceptions=True)
        if self._committing is not None:
            results += await _ended({self._committing})
        problem = next((each for each in results if isinstance(each, Exception)), None)
        log.info("a consumer was stopped without a word to Kafka%s", f": {describe(problem)}" if problem else "")


async def _ended(tasks: Set[asyncio.Future[Any]]) -> list[object]:
    """What they came to. One that awaits another can lose a cancellation."""
    waiting = tasks
    while waiting:
        for each in waiting:
            each.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=CANCEL_AGAIN_S)
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def _seen(task: asyncio.Future[None]) -> None:
    """Perhaps nobody else looks at how it ended, and asyncio would complain."""
    if not task.cancelled():
        task.exception()
