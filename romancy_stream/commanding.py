"""What clients send to the engine: a command about an instance, with the engine's answer or without one. Starting,
cancelling, operating, talking and publishing are made of it. Uses the broker, and the hub for answers; the tables are
asked by those who know what to look for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import orjson

from romancy_stream.broker.port import Broker, acknowledged
from romancy_stream.engine.answers import DONE
from romancy_stream.engine.failure import decode_error
from romancy_stream.errors import ConfigurationError, RecordRefusedError
from romancy_stream.ids import uuid7_hex
from romancy_stream.options import checked_instance_id
from romancy_stream.runtime.hub import Lookup, ResultHub
from romancy_stream.runtime.sealer import OPEN, Sealer
from romancy_stream.store.port import Store
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import encode, new_event_time, require_sendable
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.record import OutRecord


class Commanding:
    """The root of every client."""

    namespace: str
    _broker: Broker
    _store: Store
    _hub: ResultHub
    _poll_interval_s: float | None = None
    _sealer: Sealer = OPEN

    @property
    def topics(self) -> Topics:
        return Topics(self.namespace)

    @property
    def _source(self) -> str:
        return f"/romancy/{self.namespace}/client"

    def _now_us(self) -> int:
        """What messages say about when they were sent."""
        return time.time_ns() // 1_000

    # -- commands ------------------------------------------------------------------------------------------------
    def _command_to(
        self,
        type_: str,
        instance_id: str,
        data: bytes | None = None,
        extensions: Mapping[str, str] | None = None,
        *,
        now_us: int | None = None,
    ) -> WireEvent:
        """About an instance, which is its subject. ValueError for what is no id."""
        given = {w.X_PARTITION_KEY: checked_instance_id(instance_id), **(extensions or {})}
        now = new_event_time(self._now_us() if now_us is None else now_us)
        return WireEvent(uuid7_hex(), self._source, type_, instance_id, data, now, given)

    async def _ask(
        self,
        command: WireEvent,
        look: Lookup,
        timeout_s: float | None = None,
        *,
        answer_timeout_s: float | None = None,
    ) -> bytes:
        """Sends a command and returns the engine's answer, which begins with DONE; why it was refused is raised.
        `look` is for answers that nobody hears. TimeoutError after `timeout_s`, or `answer_timeout_s` after it was
        sent: it may still happen."""
        key = _about(command)
        async with asyncio.timeout(timeout_s):
            async with self._hub.answer(key, command.id, look, self._poll_interval_s) as answer:
                await self._send(command, key)
                async with asyncio.timeout(answer_timeout_s):
                    told = await answer
        if told.startswith(DONE):
            return told
        raise decode_error(orjson.dumps(orjson.loads(told)["error"]))

    # -- sending -------------------------------------------------------------------------------------------------
    async def _send(self, event: WireEvent, key: str) -> None:
        await self._send_records([self._record(event, key)])

    def _record(self, event: WireEvent, key: str) -> OutRecord:
        require_sendable(event)
        headers, value = encode(event)
        return OutRecord(self.topics.commands, key.encode(), value, headers)

    async def _send_records(self, records: Sequence[OutRecord]) -> None:
        """Returns when all are durable; raises for the first that is not."""
        for error in await acknowledged(await self._broker.send(records)):
            if isinstance(error, RecordRefusedError) and self.topics.commands not in await self._broker.topics():
                raise ConfigurationError(
                    f"topic {self.topics.commands!r} does not exist yet: start a worker, or run "
                    "`romancy init MODULE:APP`"
                ) from error
            if error is not None:
                raise error


def _about(command: WireEvent) -> str:
    assert command.subject is not None
    return command.subject
