"""Heartbeats by hand: to ask the coordinator whether a membership still holds, and to keep one alive while a listener
of aiokafka runs, for aiokafka begins its own heartbeats only after that. It sends requests to the coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka
from aiokafka.protocol.group import HeartbeatRequest

from romancy_stream.broker.kafka.settings import RETRY_BACKOFF_MS
from romancy_stream.errors import BrokerUnavailableError

LOST = (kafka.IllegalGenerationError, kafka.UnknownMemberIdError, kafka.RebalanceInProgressError)
COORDINATOR_MOVED = (kafka.GroupCoordinatorNotAvailableError, kafka.NotCoordinatorForGroupError)
# A process that was frozen finds its time over when it goes on, and the answer unread beside it. Time that passes in
# parts loses one of them.
LOOKS_PER_LIMIT = 10


async def confirmed(consumer: AIOKafkaConsumer, generation: int, limit_s: float) -> bool:
    """Whether `generation` is current. BrokerUnavailableError when the coordinator does not say so in time."""
    asking = asyncio.ensure_future(_ask(consumer._coordinator, generation))
    try:
        for _ in range(LOOKS_PER_LIMIT):
            done, _ = await asyncio.wait([asking], timeout=limit_s / LOOKS_PER_LIMIT)
            if done:
                return asking.result()
    finally:
        asking.cancel()
        await asyncio.wait([asking])
    raise BrokerUnavailableError(f"the group coordinator did not answer within {limit_s:g} s")


async def _ask(coordinator: Any, generation: int) -> bool:
    while generation > 0 and coordinator.generation == generation:
        await coordinator.ensure_coordinator_known()
        error = await _heartbeat(coordinator, generation)
        if error is kafka.NoError:
            return True
        if error in LOST:
            return False
        await asyncio.sleep(RETRY_BACKOFF_MS / 1000)
    return False


@contextlib.asynccontextmanager
async def kept_alive(consumer: AIOKafkaConsumer, interval_s: float) -> AsyncIterator[None]:
    task = asyncio.create_task(_beat(consumer, interval_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _beat(consumer: AIOKafkaConsumer, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        with contextlib.suppress(kafka.KafkaError):  # who lost the membership learns it from aiokafka or the database
            await _heartbeat(consumer._coordinator, consumer._coordinator.generation)


async def _heartbeat(coordinator: Any, generation: int) -> Any:
    """Returns a class of error, NoError when all is well."""
    try:
        response = await coordinator._send_req(
            HeartbeatRequest(coordinator.group_id, generation, coordinator.member_id)
        )
    except kafka.KafkaError as error:
        return type(error)
    error_type = kafka.for_code(response.error_code)
    if error_type in COORDINATOR_MOVED:
        coordinator.coordinator_dead()
    elif error_type is kafka.GroupAuthorizationFailedError:
        raise error_type(coordinator.group_id)
    return error_type
