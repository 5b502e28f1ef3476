"""Sealed payloads on their way into the core: which blobs a batch needs, and what of that came from people who may have
sent anything. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from romancy_stream.engine.commit import RecordedResult
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, Received, Reported
from romancy_stream.engine.mail import read
from romancy_stream.engine.payload import MAX_ENCODED_BYTES
from romancy_stream.engine.sealing import MARK, PLAIN, Blobs, Sealing, is_sealed, sealed_in
from romancy_stream.errors import PayloadError
from romancy_stream.wire import event as w
from romancy_stream.wire.content import to_json
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.record import Record

NO_BLOBS: Final[Blobs] = {}


def needed(
    sealing: Sealing,
    results_topic: str,
    inputs: Sequence[Input],
    histories: Iterable[Sequence[HistoryEvent]],
    results: Iterable[RecordedResult],
) -> list[str]:
    """Names of blobs, each once."""
    if sealing is PLAIN:
        return []
    payloads = [raw for events in histories for event in events for raw in sealed_in(event)]
    payloads += [each.result for each in results if each.result is not None]
    for each in inputs:
        if isinstance(each, Received) and isinstance(each.event, WireEvent) and each.event.data is not None:
            payloads.append(_payload(results_topic, each.record, each.event, each.event.data))
        elif isinstance(each, Reported) and each.report.data is not None:
            payloads.append(each.report.data)
    return list(dict.fromkeys(name for raw in payloads for name in sealing.refs(raw)))


def _payload(results_topic: str, record: Record, event: WireEvent, data: bytes) -> bytes:
    if event.type != w.TO_INSTANCE or record.topic != results_topic or MARK not in data:
        return data
    return read(event).payload or b""


def kept(sealing: Sealing, events: Iterable[HistoryEvent], blobs: Blobs) -> Blobs:
    """Those of a history, for a replay that may come when the others are gone. What is not there, replay misses."""
    if not blobs:
        return NO_BLOBS
    names = {name for event in events for raw in sealed_in(event) for name in sealing.refs(raw)}
    return {name: blobs[name] for name in names & blobs.keys()}


def opened(sealing: Sealing, raw: bytes | None, blobs: Blobs) -> bytes | None:
    """Of what anybody may have sent. PayloadError: see `Sealing.open`; also for what is no JSON inside."""
    if not is_sealed(raw):
        return raw
    found = sealing.open(raw, blobs)
    usable = to_json(found, None, MAX_ENCODED_BYTES)
    if usable != found or is_sealed(found):
        told = usable.message if isinstance(usable, Malformed) else "it is sealed twice, or begins with a mark"
        raise PayloadError(f"what was encoded is not usable: {told}")
    return found
