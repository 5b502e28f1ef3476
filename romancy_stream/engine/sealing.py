"""Payloads that are not what they look like: encrypted, or kept elsewhere because they are large. A *sealed* payload is
a small JSON object that begins with MARK; it is what the log, the topics and the tables hold, while code sees what it
was. The core seals what workflow code hands over and opens what it gets, with what the app provides; what is kept
elsewhere (`blobs`) the shell has read before, or writes before the commit. Pure.

A value of the user's own that begins with MARK is refused where it is made, so that what looks sealed is sealed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Final, Protocol, TypeGuard

import orjson

from romancy_stream.engine.history import WORKFLOW_STARTED, HistoryEvent
from romancy_stream.errors import PayloadError, PayloadTooLargeError
from romancy_stream.wire.malformed import MAX_DATA_BYTES

MARK: Final = b'{"$romancy":'
_FIRST_KEY: Final = b'"$romancy"'

Blobs = Mapping[str, bytes]


class Sealing(Protocol):
    def seal(self, raw: bytes, what: str, blobs: MutableMapping[str, bytes]) -> bytes:
        """What to record instead of `raw`, which is open; adds to `blobs` what has to be kept elsewhere before that.
        Raises PayloadTooLargeError, where `what` says whose value it is, and PayloadError for what looks sealed."""
        ...

    def open(self, raw: bytes, blobs: Blobs) -> bytes:
        """The opposite; what is not sealed comes back as it is. Raises PayloadError: a key or a blob is missing, or
        it was tampered with."""
        ...

    def refs(self, raw: bytes) -> list[str]:
        """Names of blobs that `open` will need. Raises nothing, whatever somebody has sent."""
        ...


def is_sealed(raw: bytes | None) -> TypeGuard[bytes]:
    return raw is not None and raw.startswith(MARK)


def put_back(raw: bytes | None) -> bytes | None:
    """A sealed payload out of a column of a database's own JSON type, which has its own order of keys. What is not
    sealed stays as it is."""
    if raw is None or raw.startswith(MARK) or _FIRST_KEY not in raw:
        return raw
    found = orjson.loads(raw)
    if not isinstance(found, dict) or not isinstance(found.get("$romancy"), str):
        return raw
    return orjson.dumps({"$romancy": found.pop("$romancy"), **found})


def sealed_in(event: HistoryEvent) -> Iterable[bytes]:
    """All that replay of the event opens."""
    if is_sealed(event.payload):
        yield event.payload
    if event.kind == WORKFLOW_STARTED:
        for message in event.attrs.get("mailbox", {}).get("messages", ()):
            if is_sealed(data := message["data"].encode()):
                yield data


class Plain:
    """Seals nothing: the limit is that of a message."""

    def seal(self, raw: bytes, what: str, blobs: MutableMapping[str, bytes]) -> bytes:
        return within_limit(unmarked(raw, what), what)

    def open(self, raw: bytes, blobs: Blobs) -> bytes:
        if is_sealed(raw):
            raise PayloadError("a payload is encoded or kept elsewhere, and this app has no payloads=Payloads(...)")
        return raw

    def refs(self, raw: bytes) -> list[str]:
        return []


def unmarked(raw: bytes, what: str) -> bytes:
    if is_sealed(raw):
        raise PayloadError(f'{what}: an object whose first key is "$romancy" is taken for a payload that was encoded')
    return raw


def within_limit(raw: bytes, what: str) -> bytes:
    if len(raw) > MAX_DATA_BYTES:
        raise PayloadTooLargeError(
            f"{what}: {len(raw):,} bytes of JSON, the limit is {MAX_DATA_BYTES:,}; keep the data elsewhere and pass a "
            "reference to it, or let the app do that: App(payloads=Payloads(store=...))"
        )
    return raw


PLAIN: Final = Plain()
