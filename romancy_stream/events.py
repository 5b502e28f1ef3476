"""Events as workflows wait for them: what they get of one, and what an app declares of a type of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

from romancy_stream.engine.matching import checked_path
from romancy_stream.engine.payload import TypeCodec, load_plain
from romancy_stream.wire.codec import parse_time
from romancy_stream.wire.event import RESERVED_PREFIX
from romancy_stream.wire.malformed import MAX_ID_CHARS

M = TypeVar("M")

CODECS: Final = 1_000
"""Types of data whose codec is kept: more than a program has."""


@dataclass(frozen=True, slots=True)
class ReceivedEvent(Generic[M]):
    """A CloudEvent. `data` is of the type that the wait named, plain JSON without one. `time` is aware."""

    data: M
    type: str
    source: str
    id: str
    subject: str | None = None
    time: datetime | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventType(Generic[M]):
    """What an app knows of events of a type. `key`: the one field of their data by which they find who waits for them,
    such as "order_id" or "customer.id"; it has to be in the match of every wait. `model`: the type of their data."""

    type: str
    key: str | None = None
    model: Any = None

    def __post_init__(self) -> None:
        checked_type(self.type)
        if self.key is not None:
            checked_path(self.key)

    def resolve(self) -> None:
        """ConfigurationError for a model that has no JSON form."""
        if self.model is not None:
            TypeCodec(self.model, f"data of event {self.type!r}").build()


def checked_type(type_: Any) -> str:
    """ValueError for what is no type of a user's event."""
    if not isinstance(type_, str) or not 0 < len(type_) <= MAX_ID_CHARS:
        raise ValueError(f"the type of an event is a text of 1 to {MAX_ID_CHARS} characters, not {type_!r}")
    if type_.startswith(RESERVED_PREFIX):
        raise ValueError(f"type {type_!r}: types that begin with {RESERVED_PREFIX!r} are the engine's own")
    return type_


def received(attrs: Mapping[str, Any], data: bytes | None, model: Any) -> ReceivedEvent[Any]:
    """Of the attrs of `event.received`. PayloadError when the data does not fit the model."""
    time = attrs.get("time")
    return ReceivedEvent(
        _decoded(attrs["type"], data or b"null", model),
        attrs["type"],
        attrs["source"],
        attrs["id"],
        attrs.get("subject"),
        None if time is None else parse_time(time),
        dict(attrs.get("extensions", {})),
    )


def _decoded(type_: str, data: bytes, model: Any) -> Any:
    what = f"data of event {type_!r}"
    if model is None:
        return load_plain(data, what)
    try:
        codec = _codec(type_, model)
    except TypeError:  # a hint that cannot be hashed
        codec = TypeCodec(model, what)
    return codec.decode(data)


@lru_cache(maxsize=CODECS)
def _codec(type_: str, model: Any) -> TypeCodec:
    return TypeCodec(model, f"data of event {type_!r}")
