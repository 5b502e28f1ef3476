"""Tells a hung consumer from an idle one: its position stands still while records wait behind it. Pure but for
`waiting`, which asks a consumer. There are reports of aiokafka consumers that fall silent after broker failures; the
answer to each is to build the consumer anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.structs import TopicPartition

from romancy_stream.broker.port import TP

# Looks per stall limit: a hang is noticed at most a quarter of the limit late.
LOOKS_PER_LIMIT = 4


class StallDetector:
    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: dict[TP, tuple[int, float]] = {}

    def observe(self, seen: Mapping[TP, tuple[int, int]], now_s: float) -> list[TP]:
        """`seen`: (position, end) of what should be moving. Returns what has stood still for the limit."""
        stalled: list[TP] = []
        since: dict[TP, tuple[int, float]] = {}
        for tp, (position, end) in seen.items():
            if position >= end:
                continue
            before = self._since.get(tp)
            since[tp] = before if before is not None and before[0] == position else (position, now_s)
            if now_s - since[tp][1] >= self._limit_s:
                stalled.append(tp)
        self._since = since
        return stalled

    def forget(self) -> None:
        self._since = {}


async def waiting(consumer: Any, tps: Iterable[TP]) -> dict[TP, tuple[int, int]]:
    """(position, end of the log) of each; raises what aiokafka raises when Kafka is away."""
    wanted = [TopicPartition(*tp) for tp in tps]
    ends = await consumer.end_offsets(wanted) if wanted else {}
    return {TP(tp.topic, tp.partition): (await consumer.position(tp), ends[tp]) for tp in wanted}
