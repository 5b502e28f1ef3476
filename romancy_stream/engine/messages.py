"""Messages, channels and groups as values: what is recorded of a message, what code gets of it, how channels may be
named and which modes they have. No I/O, no engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Literal, TypeVar

import orjson

from romancy_stream.engine.payload import checked, encode_data, load_plain
from romancy_stream.errors import PayloadError, PayloadTooLargeError
from romancy_stream.wire.value import value

T = TypeVar("T")

Mode = Literal["broadcast", "competing", "direct"]
BROADCAST: Final = "broadcast"
COMPETING: Final = "competing"
DIRECT: Final = "direct"
MODES: Final = frozenset({BROADCAST, COMPETING, DIRECT})

NAME_CHARS: Final = 200
"""Of a channel or a group: its entity's name has a few more."""
METADATA_BYTES: Final = 4_096
"""Travels as an attribute of an event, where all of them together have about twice that."""
_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ReceivedMessage(Generic[T]):
    """What `ctx.receive` returns. `sender`: the instance that sent it, None for a message from outside. `id` is that
    of the event it came as, or the engine's own. `sent_at` is aware: the log time of the step that sent it, or the time
    of the event."""

    channel: str
    data: T
    id: str
    sender: str | None
    metadata: Mapping[str, Any]
    sent_at: datetime


@value
class Message:
    """As it is recorded and travels. `metadata` is the text of a JSON object; `payload` raw JSON, maybe sealed."""

    channel: str
    id: str
    sender: str | None
    metadata: str | None
    sent_us: int
    payload: bytes

    @classmethod
    def of(cls, attrs: Mapping[str, Any], payload: bytes | None) -> Message:
        return cls(
            attrs["channel"],
            attrs["id"],
            attrs.get("sender"),
            attrs.get("metadata"),
            attrs["sent_us"],
            b"null" if payload is None else payload,
        )

    def attrs(self) -> dict[str, Any]:
        """What `of` reads, beside the payload."""
        attrs: dict[str, Any] = {"channel": self.channel, "id": self.id, "sent_us": self.sent_us}
        if self.sender is not None:
            attrs["sender"] = self.sender
        if self.metadata is not None:
            attrs["metadata"] = self.metadata
        return attrs

    def received(self, data: T) -> ReceivedMessage[T]:
        metadata = {} if self.metadata is None else load_plain(self.metadata.encode(), "metadata")
        sent_at = _EPOCH + timedelta(microseconds=self.sent_us)
        return ReceivedMessage(self.channel, data, self.id, self.sender, metadata, sent_at)


def channel_entity(channel: str) -> str:
    return f"channel:{channel}"


def group_entity(group: str) -> str:
    return f"group:{group}"


def checked_channel(name: object) -> str:
    """TypeError, ValueError."""
    return _checked("a channel", name)


def checked_group(name: object) -> str:
    """TypeError, ValueError."""
    return _checked("a group", name)


def _checked(what: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of {what} must be a text, not {name!r}")
    if not 0 < len(name) <= NAME_CHARS:
        raise ValueError(f"the name of {what} must have 1 to {NAME_CHARS} characters, not {len(name)}")
    if _FORBIDDEN.search(name):
        raise ValueError(f"the name of {what} must be without control characters, not {name!r}")
    return name


def checked_mode(mode: object) -> Mode:
    """ValueError."""
    if mode not in MODES:
        raise ValueError(f'mode must be "broadcast", "competing" or "direct", not {mode!r}')
    return mode  # type: ignore[return-value]


def encode_metadata(metadata: Mapping[str, Any] | None) -> str | None:
    """TypeError, PayloadError, PayloadTooLargeError."""
    if not metadata:
        return None
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, not {metadata!r}")
    raw = encode_data(dict(metadata), "metadata") or b"null"
    return checked_metadata(raw.decode())


def checked_metadata(text: str) -> str:
    """Of a message from anybody: a JSON object, not too large. PayloadError, PayloadTooLargeError."""
    raw = text.encode()
    if len(raw) > METADATA_BYTES:
        raise PayloadTooLargeError(f"metadata: {len(raw):,} bytes of JSON, the limit is {METADATA_BYTES:,}")
    try:
        found = orjson.loads(checked(raw, "metadata"))
    except orjson.JSONDecodeError as error:
        raise PayloadError(f"metadata is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise PayloadError("metadata must be a JSON object")
    return text
