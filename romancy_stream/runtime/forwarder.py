"""Brings CloudEvents from topics that somebody else owns (`event_topics=`) onto `commands`, where they are routed
like any other. It only forwards: a record counts as read when the broker has its copy, so one may arrive twice and
is then known by (source, id)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from romancy_stream.broker.port import TP, AssignedRange, Broker, Record
from romancy_stream.errors import BrokerUnavailableError, RecordRefusedError
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.record import OutRecord

log = logging.getLogger(__name__)

FETCH_LIMIT: Final = 500
PAUSE_S: Final = 1.0
"""Before it tries again."""


class Forwarder:
    """`stats` counts what was forwarded and what was refused: unreadable records of other people's topics are not
    ours to keep, and `romancy.*` commands may only come over `commands`."""

    def __init__(self, broker: Broker, event_topics: Sequence[str], topics: Topics) -> None:
        self.stats: Counter[str] = Counter()
        self._broker = broker
        self._topics = topics
        self._event_topics = event_topics

    async def on_assigned(self, ranges: Mapping[TP, AssignedRange]) -> None:
        log.info("forwarding from %s", sorted(ranges))

    async def on_revoked(self, partitions: set[TP]) -> None:
        log.info("no longer forwarding from %s", sorted(partitions))

    async def run(self) -> None:
        """For ever; comes back after the broker was away."""
        while True:
            try:
                await self._session()
            except BrokerUnavailableError as error:
                log.warning("forwarding pauses: %s", error)
            await asyncio.sleep(PAUSE_S)

    async def _session(self) -> None:
        source = self._broker.tasks(self._event_topics, f"{self._topics.namespace}.forwarder", self)
        await source.start()
        try:
            while True:
                records = await source.fetch(FETCH_LIMIT)
                await self._forward(records)
                await source.commit({TP(r.topic, r.partition): r.offset + 1 for r in records})
        finally:
            await source.stop()

    async def _forward(self, records: Sequence[Record]) -> None:
        copies = [copy for record in records if (copy := self._copy(record)) is not None]
        for copy, sent in zip(copies, await self._broker.send(copies), strict=True):
            try:
                await sent
                self.stats["forwarded"] += 1
            except RecordRefusedError as error:
                self.stats["refused"] += 1
                log.error("an event with key %r cannot be forwarded: %s", copy.key, error)

    def _copy(self, record: Record) -> OutRecord | None:
        event = decode(record)
        if not isinstance(event, WireEvent):
            self.stats["unreadable"] += 1
            log.warning("%s/%d@%d: %s", record.topic, record.partition, record.offset, event.message)
            return None
        if event.type.startswith(w.RESERVED_PREFIX):
            self.stats["reserved_type"] += 1
            log.warning("%s/%d@%d: %s refused", record.topic, record.partition, record.offset, event.type)
            return None
        headers = [(name, value) for name, value in record.headers if value is not None]
        return OutRecord(self._topics.commands, record.key or event.id.encode(), record.value, headers)
