"""Records of a partitioned log, as values: what a broker delivers and takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from romancy_stream.wire.value import value


class TP(NamedTuple):
    topic: str
    partition: int


@value
class Record:
    """One record read. `timestamp_ms` is the log's append time; header values may be None as Kafka allows, and
    header names have lone surrogates in place of bytes that are no UTF-8."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    timestamp_ms: int


@value
class OutRecord:
    """One record to write. `partition` None: murmur2 of the key, as the Java client does it."""

    topic: str
    key: bytes
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    partition: int | None = None
