"""Payloads that are not what they look like: encrypted, or kept elsewhere because they are large. A *sealed* payload is
a small JSON object that begins with MARK; it is what the log, the topics and the tables hold, while code sees what it
was. The core seals what workflow code hands over and opens what it gets, with what the app provides; what is kept
elsewhere (`blobs`) the shell has read before, or writes before the commit. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final, Protocol

from romancy_stream.errors import PayloadTooLargeError
from romancy_stream.wire.malformed import MAX_DATA_BYTES

MARK: Final = b'{"$romancy":'

Blobs = Mapping[str, bytes]


class Sealing(Protocol):
    def seal(self, raw: bytes, what: str, blobs: MutableMapping[str, bytes]) -> bytes:
        """What to record instead of `raw`; adds to `blobs` what has to be kept elsewhere before that. Raises
        PayloadTooLargeError, where `what` says whose value it is."""
        ...

    def open(self, raw: bytes, blobs: Blobs) -> bytes:
        """The opposite; what is not sealed comes back as it is. Raises PayloadError: a key or a blob is missing, or
        it was tampered with."""
        ...

    def refs(self, raw: bytes) -> list[str]:
        """Names of blobs that `open` will need."""
        ...


def is_sealed(raw: bytes | None) -> bool:
    return raw is not None and raw.startswith(MARK)


class Plain:
    """Seals nothing: the limit is that of a message."""

    def seal(self, raw: bytes, what: str, blobs: MutableMapping[str, bytes]) -> bytes:
        return within_limit(raw, what)

    def open(self, raw: bytes, blobs: Blobs) -> bytes:
        return raw

    def refs(self, raw: bytes) -> list[str]:
        return []


def within_limit(raw: bytes, what: str) -> bytes:
    if len(raw) > MAX_DATA_BYTES:
        raise PayloadTooLargeError(
            f"{what}: {len(raw):,} bytes of JSON, the limit is {MAX_DATA_BYTES:,}; keep the data elsewhere and pass a "
            "reference to it, or let the app do that: App(payloads=Payloads(store=...))"
        )
    return raw


PLAIN: Final = Plain()
