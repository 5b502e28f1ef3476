"""How clients send messages: to the subscribers of a channel, to the mailbox of one instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from romancy_stream.commanding import Commanding
from romancy_stream.engine.messages import channel_entity, checked_channel, encode_metadata
from romancy_stream.ids import uuid7_hex
from romancy_stream.messaging import described, encoded_message
from romancy_stream.options import checked_instance_id
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import new_event_time
from romancy_stream.wire.event import WireEvent


class Publishing(Commanding):
    """A part of every client."""

    async def publish(
        self, channel: str, data: Any = None, metadata: Mapping[str, Any] | None = None, *, id: str | None = None
    ) -> str:
        """A message to the subscribers of a channel; returns its id when it is durable. The same `id` again changes
        nothing. PayloadError."""
        key = channel_entity(checked_channel(channel))
        return await self._send_message(key, channel, None, data, metadata, id)

    async def send_to(
        self,
        instance_id: str,
        channel: str,
        data: Any = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
    ) -> str:
        """A message to the mailbox of one instance, which `ctx.receive` of that channel reads; returns its id when it
        is durable. For an instance that is not there, or has ended, it becomes a dead letter. PayloadError."""
        checked_channel(channel)
        return await self._send_message(checked_instance_id(instance_id), channel, instance_id, data, metadata, id)

    async def _send_message(
        self, key: str, channel: str, to: str | None, data: Any, metadata: Mapping[str, Any] | None, id_: str | None
    ) -> str:
        extensions = {w.X_CHANNEL: channel, w.X_PARTITION_KEY: key}
        if (text := encode_metadata(metadata)) is not None:
            extensions[w.X_METADATA] = text
        raw = await self._sealer.seal(encoded_message(channel, data), described(channel))
        now = new_event_time(self._now_us())
        event = WireEvent(id_ or uuid7_hex(), self._source, w.CHANNEL_PUBLISH, to, raw, now, extensions)
        await self._send(event, key)
        return event.id
