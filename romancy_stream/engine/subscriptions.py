"""A part of a live instance: the channels that its code listens to, the groups it is in, and the messages it has not
received yet. What code does here becomes commands; what comes in answer is delivered by the tables at the end.

A message comes for a receive that is open, or for the mailbox, from where the next receive takes it without a command:
replay does the same. Code that a message comes for is the first to run in that step, so nothing can cancel it before it
has the message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from romancy_stream.engine import history as h
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.messages import BROADCAST, Message
from romancy_stream.errors import (
    ChannelFullError,
    ChannelModeConflictError,
    NotSubscribedError,
    RomancyError,
)

if TYPE_CHECKING:
    from romancy_stream.engine.instance import LiveInstance

T = TypeVar("T")

_REFUSALS: Final[dict[str, type[RomancyError]]] = {
    each.code: each for each in (ChannelModeConflictError, ChannelFullError)
}
_UNDO: Final = {h.CHANNEL_SUBSCRIBED: h.CHANNEL_UNSUBSCRIBED, h.GROUP_JOINING: h.GROUP_LEFT}
_REF: Final = {h.CHANNEL_SUBSCRIBED: "sub:", h.GROUP_JOINING: "join:"}


@dataclass(slots=True)
class _Receive:
    """Open: a `receive.started` that nothing has answered."""

    channel: str
    future: asyncio.Future[Message]


@dataclass(slots=True)
class _Joining:
    """A subscription or a membership that is asked for, and the code that waits for it."""

    kind: str
    attrs: dict[str, Any]
    futures: list[asyncio.Future[None]] = field(default_factory=list)


RESTORED: Final = frozenset({"subscriptions", "groups", "mailbox"})


class Subscriptions:
    def __init__(self, live: LiveInstance) -> None:
        self._live = live
        self._modes: dict[str, str] = {}
        self._groups: dict[str, None] = {}  # a set in the order of joining
        self._joining: dict[str, _Joining] = {}
        self._open: dict[str, _Receive] = {}  # the oldest first
        self._mailbox: dict[str, deque[Message]] = {}

    # -- channels ------------------------------------------------------------------------------------------------
    def subscribe(self, channel: str, mode: str) -> asyncio.Future[None]:
        """Raises ChannelModeConflictError; so does the future, or ChannelFullError."""
        agreed = self._modes.get(channel)
        if agreed is None:
            return self._join(h.CHANNEL_SUBSCRIBED, {"channel": channel, "mode": mode})
        if agreed != mode:
            raise ChannelModeConflictError(f"channel {channel!r} is {agreed}, not {mode}")
        return self._done(None)

    def unsubscribe(self, channel: str) -> None:
        """Receives that wait raise NotSubscribedError. Nothing happens where there is no subscription."""
        mode = self._modes.get(channel)
        if mode is None:
            return
        self._live.loop.create_future()  # first: it refuses where code may only look
        del self._modes[channel]
        if mode == BROADCAST:
            self._mailbox.pop(channel, None)
        for ref in [ref for ref, receive in self._open.items() if receive.channel == channel]:
            future = self._withdraw(ref)
            if not future.done():  # cancelled in this very step
                future.set_exception(NotSubscribedError(f"channel {channel!r} was unsubscribed from"))
        self._live.emit(h.CHANNEL_UNSUBSCRIBED, None, {"channel": channel, "mode": mode})

    def receive(self, channel: str) -> asyncio.Future[Message]:
        """Raises NotSubscribedError; so does the future, when the subscription ends."""
        if channel not in self._modes:
            raise NotSubscribedError(f"no subscription to channel {channel!r}: `await ctx.subscribe(...)` comes first")
        box = self._mailbox.get(channel)
        future: asyncio.Future[Message] = self._live.loop.create_future()
        if box:
            future.set_result(box.popleft())
            return future
        ref = f"receive:{self._live.count('receive:')}"
        self._open[ref] = _Receive(channel, future)
        self._live.emit(h.RECEIVE_STARTED, ref, {"channel": channel})
        future.add_done_callback(partial(self._left, ref))
        return future

    def _left(self, ref: str, future: asyncio.Future[Message]) -> None:
        """Its future is done. When the code has cancelled it: nobody waits any more."""
        if future.cancelled() and ref in self._open:
            self._withdraw(ref)

    def _done(self, result: T) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._live.loop.create_future()
        future.set_result(result)
        return future

    def _withdraw(self, ref: str) -> asyncio.Future[Message]:
        """The receive is answered by code, not by an input."""
        receive = self._open.pop(ref)
        if not self._live.take_back(h.RECEIVE_STARTED, ref):
            self._live.emit(h.RECEIVE_CANCELLED, ref, {"channel": receive.channel})
        return receive.future

    def _keep(self, message: Message) -> None:
        """For the oldest receive, or for the mailbox: one of the two is always empty."""
        for ref, receive in self._open.items():
            if receive.channel == message.channel:
                self._withdraw(ref).set_result(message)
                return
        self._mailbox.setdefault(message.channel, deque()).append(message)

    # -- groups --------------------------------------------------------------------------------------------------
    def join(self, group: str) -> asyncio.Future[None]:
        """The future raises ChannelFullError."""
        return self._done(None) if group in self._groups else self._join(h.GROUP_JOINING, {"group": group})

    def leave(self, group: str) -> None:
        if group in self._groups:
            self._live.emit(h.GROUP_LEFT, None, {"group": group})
            del self._groups[group]

    def _join(self, kind: str, attrs: dict[str, Any]) -> asyncio.Future[None]:
        """Until it is answered. Code that asks for the same while one waits waits with it."""
        future: asyncio.Future[None] = self._live.loop.create_future()
        ref = next((ref for ref, each in self._joining.items() if _same(each, kind, attrs)), None)
        if ref is None:
            ref = f"{_REF[kind]}{self._live.count(_REF[kind])}"
            self._joining[ref] = _Joining(kind, attrs)
            self._live.emit(kind, ref, attrs)
        joining = self._joining[ref]
        if joining.attrs != attrs:
            raise ChannelModeConflictError(f"channel {attrs['channel']!r} is subscribed to as {joining.attrs['mode']}")
        joining.futures.append(future)
        future.add_done_callback(partial(self._gave_up, ref))
        return future

    def _gave_up(self, ref: str, future: asyncio.Future[None]) -> None:
        """Its future is done. When the code has cancelled it, and nobody else waits: the answer is not wanted."""
        joining = self._joining.get(ref)
        if joining is None or not future.cancelled():
            return
        joining.futures.remove(future)
        if not joining.futures:
            del self._joining[ref]
            if not self._live.take_back(joining.kind, ref):
                self._live.emit(_UNDO[joining.kind], None, joining.attrs)

    # -- sending -------------------------------------------------------------------------------------------------
    def send(
        self, channel: str, data: bytes | None, metadata: str | None, *, to: str | None = None, group: str | None = None
    ) -> None:
        """To the channel, or to one instance's mailbox, or to those of a group. `data` is raw JSON."""
        attrs = {"channel": channel}
        for name, text in (("to", to), ("group", group), ("metadata", metadata)):
            if text is not None:
                attrs[name] = text
        self._live.emit(h.MESSAGE_SENT, f"message:{self._live.count('message:')}", attrs, data or b"null")

    # -- from run to run -----------------------------------------------------------------------------------------
    def carried(self) -> dict[str, Any]:
        """What the next run begins with, as attributes of its `workflow.started`: see `restore`."""
        attrs: dict[str, Any] = {}
        if self._modes:
            attrs["subscriptions"] = dict(self._modes)
        if self._groups:
            attrs["groups"] = list(self._groups)
        return attrs

    def unread(self) -> list[dict[str, Any]]:
        """Messages that no code has received, for `attrs["mailbox"]["messages"]` of the next run."""
        kept = (message for box in self._mailbox.values() for message in box)
        return [
            {**each.attrs(), "data": self._live.sealed(each.payload, "an unread message").decode()} for each in kept
        ]

    def restore(self, attrs: Mapping[str, Any]) -> None:
        """`attrs` of `workflow.started`, where any of RESTORED is among them. Before the code runs."""
        self._modes = dict(attrs.get("subscriptions", {}))
        self._groups = dict.fromkeys(attrs.get("groups", ()))
        for each in attrs.get("mailbox", {}).get("messages", ()):
            self._keep(Message.of(each, self._live.opened(each["data"].encode())))

    # -- inputs --------------------------------------------------------------------------------------------------
    def received(self, event: HistoryEvent) -> None:
        message = Message.of(event.attrs, event.payload)
        receive = self._open.pop(event.ref or "", None)
        if receive is None:
            self._keep(message)  # it came for the mailbox, or its receive ended while the instance was parked
        else:
            receive.future.set_result(message)

    def joined(self, event: HistoryEvent) -> None:
        for future in self._answered(event):
            future.set_result(None)

    def refused(self, event: HistoryEvent) -> None:
        for future in self._answered(event):
            future.set_exception(_REFUSALS[event.attrs["code"]](event.attrs["message"]))

    def _answered(self, event: HistoryEvent) -> Iterable[asyncio.Future[None]]:
        assert event.ref is not None
        joining = self._joining.pop(event.ref, None)
        if joining is None:
            return ()  # given up while the instance was parked
        if event.kind == h.CHANNEL_JOINED:
            self._modes[event.attrs["channel"]] = event.attrs["mode"]
        elif event.kind == h.GROUP_JOINED:
            self._groups[event.attrs["group"]] = None
        return joining.futures


def _same(joining: _Joining, kind: str, attrs: Mapping[str, Any]) -> bool:
    name = "channel" if kind == h.CHANNEL_SUBSCRIBED else "group"
    return joining.kind == kind and joining.attrs[name] == attrs[name]


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {
    h.MESSAGE_RECEIVED: lambda live, event: live.subscriptions.received(event),
    h.CHANNEL_JOINED: lambda live, event: live.subscriptions.joined(event),
    h.CHANNEL_REFUSED: lambda live, event: live.subscriptions.refused(event),
    h.GROUP_JOINED: lambda live, event: live.subscriptions.joined(event),
    h.GROUP_REFUSED: lambda live, event: live.subscriptions.refused(event),
}
