"""Channels and groups as workflow code sees them: the part of `ctx`, and what activities publish."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, TypeVar, overload

from romancy_stream.engine.definitions import Publication, Scope
from romancy_stream.engine.messages import (
    Message,
    Mode,
    ReceivedMessage,
    checked_channel,
    checked_group,
    checked_mode,
    encode_metadata,
)
from romancy_stream.engine.payload import MAX_ENCODED_BYTES, TypeCodec, encode_data, load_plain
from romancy_stream.errors import MessageTimeoutError
from romancy_stream.options import checked_instance_id
from romancy_stream.spans import in_seconds
from romancy_stream.wire import event as w

__all__ = ["ChannelContext", "ReceivedMessage", "described", "encoded_message", "message_publication"]

M = TypeVar("M")

CODECS: Final = 1_000
"""Types of messages whose codec is kept: more than a program has."""


class ChannelContext:
    """Part of `WorkflowContext`. What sends is not awaited: it is a recorded step, which leaves when this step of the
    workflow is durable, and never again on replay. What needs an answer is awaited."""

    __slots__ = ()
    _scope: Scope

    async def subscribe(self, channel: str, mode: Mode = "broadcast") -> None:
        """Messages that are published from here on come to this workflow: each of them in "broadcast", in "competing"
        those that no other subscriber gets, in "direct" those that are sent to this instance. The first subscriber
        decides on the mode of a channel for good: ChannelModeConflictError. Again: nothing happens."""
        await self._scope.subscriptions.subscribe(checked_channel(channel), checked_mode(mode))

    def unsubscribe(self, channel: str) -> None:
        """Unread messages of a broadcast channel are dropped; receives that wait raise NotSubscribedError."""
        self._scope.subscriptions.unsubscribe(checked_channel(channel))

    @overload
    async def receive(
        self, channel: str, *, timeout: float | timedelta | None = None, model: None = None
    ) -> ReceivedMessage[Any]: ...
    @overload
    async def receive(
        self, channel: str, *, timeout: float | timedelta | None = None, model: type[M]
    ) -> ReceivedMessage[M]: ...
    @overload
    async def receive(
        self, channel: str, *, timeout: float | timedelta | None = None, model: Any
    ) -> ReceivedMessage[Any]: ...
    async def receive(
        self, channel: str, *, timeout: float | timedelta | None = None, model: Any = None
    ) -> ReceivedMessage[Any]:
        """The next message, oldest first. `timeout` in seconds, or a timedelta: MessageTimeoutError. `model`: the type
        of the data; PayloadError when it does not fit, and the message is used up. NotSubscribedError."""
        timeout_s = None if timeout is None else _seconds(timeout)
        coming = self._scope.subscriptions.receive(checked_channel(channel))
        message = coming.result() if coming.done() else await _within(coming, timeout_s, channel)
        return message.received(_decoded(message.channel, message.payload, model))

    def publish(self, channel: str, data: Any = None, metadata: Mapping[str, Any] | None = None) -> None:
        """To the subscribers of a channel. PayloadError."""
        self._send_message(channel, data, metadata)

    def send_to(
        self, instance_id: str, channel: str, data: Any = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """To the mailbox of one instance, which `receive` of that channel reads. PayloadError. An instance that is not
        there, or has ended, gets nothing, and nobody is told."""
        self._send_message(channel, data, metadata, to=checked_instance_id(instance_id))

    def send_to_group(
        self, group: str, channel: str, data: Any = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """As `send_to`, to each member of a group; to this instance, too, if it is one. PayloadError."""
        self._send_message(channel, data, metadata, group=checked_group(group))

    async def join(self, group: str) -> None:
        """From here on this instance gets what is sent to the group. Again: nothing happens."""
        await self._scope.subscriptions.join(checked_group(group))

    def leave(self, group: str) -> None:
        self._scope.subscriptions.leave(checked_group(group))

    def _send_message(self, channel: str, data: Any, metadata: Mapping[str, Any] | None, **to: str) -> None:
        raw = encoded_message(channel, data)
        self._scope.subscriptions.send(checked_channel(channel), raw, encode_metadata(metadata), **to)


def message_publication(channel: str, data: Any, metadata: Mapping[str, Any] | None) -> Publication:
    """Of an activity. ValueError, PayloadError."""
    raw = encoded_message(channel, data)
    return Publication(w.CHANNEL_PUBLISH, raw, None, None, None, checked_channel(channel), encode_metadata(metadata))


def described(channel: str) -> str:
    return f"a message on channel {channel!r}"


def encoded_message(channel: str, data: Any) -> bytes | None:
    """For what is sealed before it leaves."""
    return encode_data(data, described(channel), MAX_ENCODED_BYTES)


async def _within(coming: asyncio.Future[Message], timeout_s: float | None, channel: str) -> Message:
    if timeout_s is None:
        return await coming
    try:
        async with asyncio.timeout(timeout_s):
            return await coming
    except TimeoutError:
        raise MessageTimeoutError(f"no message on channel {channel!r} within {timeout_s:g} s") from None


def _seconds(timeout: float | timedelta) -> float:
    seconds = in_seconds(timeout)
    if not math.isfinite(seconds):
        raise ValueError(f"timeout must be finite, not {timeout!r}")
    return max(0.0, seconds)


def _decoded(channel: str, data: bytes, model: Any) -> Any:
    what = described(channel)
    if model is None:
        return load_plain(data, what)
    try:
        codec = _codec(model)
    except TypeError:  # a hint that cannot be hashed
        codec = TypeCodec(model, what)
    return codec.decode(data)


@lru_cache(maxsize=CODECS)
def _codec(model: Any) -> TypeCodec:
    return TypeCodec(model, "a message")
