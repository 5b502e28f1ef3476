"""A part of a live instance: the events that its code waits for, and those that came before their wait (the mailbox).

An event that names the instance finds its wait, or lies in the mailbox until code waits for it or its time is over;
`wait_event` looks there first, and completes without a trace in the history. All others come for a wait that is open.
Whatever was received is never lost: what comes for a wait that the code has withdrawn goes into the mailbox too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.loop import LATEST_US
from romancy_stream.engine.matching import Document, Scalar, entity_of_wait, matches
from romancy_stream.errors import EventTimeoutError
from romancy_stream.wire.value import value

if TYPE_CHECKING:
    from romancy_stream.engine.instance import LiveInstance

MAILBOX_EVENTS: Final = 10_000
"""Beyond it the oldest is forgotten. All of it is in memory, and every wait looks through it."""


@value
class Arrived:
    """An event as it was received. `attrs` as those of `event.received`, `data` raw JSON or None."""

    attrs: dict[str, Any]
    data: bytes | None


class Waits:
    """`keys`: event type -> the field that it is routed by; `models`: event type -> the type of its data. As the app
    declares them."""

    def __init__(self, live: LiveInstance) -> None:
        self.keys: Mapping[str, str | None] = {}
        self.models: Mapping[str, Any] = {}
        self._live = live
        self._open: dict[str, asyncio.Future[Arrived]] = {}
        self._mailbox: list[Arrived] = []

    async def wait(self, type_: str, match: Mapping[str, Scalar], timeout_us: int | None) -> Arrived:
        """`match` was checked. ValueError where it lacks the field that the type is routed by; EventTimeoutError."""
        loop = self._live.loop
        future: asyncio.Future[Arrived] = loop.create_future()  # first: it refuses an eviction
        entity = entity_of_wait(self.keys, type_, match)
        found = self._take(type_, match)
        if found is not None:
            return found
        ref = f"wait:{self._live.count('wait:')}"
        attrs: dict[str, Any] = {"type": type_, "entity": entity}
        self._live.emit(h.WAIT_STARTED, ref, {**attrs, "match": dict(match)} if match else attrs)
        self._open[ref] = future
        timer = None
        if timeout_us is not None:
            due_us = min(loop.now_us + timeout_us, LATEST_US)
            timer = loop.call_at_us(due_us, self._timed_out, ref, attrs, timeout_us)
        try:
            return await future
        except BaseException:
            self._give_up(ref, attrs, future)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _timed_out(self, ref: str, attrs: dict[str, Any], timeout_us: int) -> None:
        future = self._open.get(ref)
        if future is not None and not future.done():
            self._withdraw(ref, attrs)
            message = f"no event of type {attrs['type']!r} within {timeout_us / 1_000_000:g} s"
            future.set_exception(EventTimeoutError(message))

    def _give_up(self, ref: str, attrs: dict[str, Any], future: asyncio.Future[Arrived]) -> None:
        if ref in self._open:
            self._withdraw(ref, attrs)
        elif not future.cancelled() and future.exception() is None:  # cancelled when it had just been received
            self._mailbox.insert(0, future.result())

    def _withdraw(self, ref: str, attrs: dict[str, Any]) -> None:
        del self._open[ref]
        if not self._live.take_back(h.WAIT_STARTED, ref):
            self._live.emit(h.WAIT_CANCELLED, ref, attrs)

    def received(self, event: HistoryEvent) -> None:
        arrived = Arrived(event.attrs, event.payload)
        future = self._open.pop(event.ref, None) if event.ref is not None else None
        if future is not None and not future.done():
            future.set_result(arrived)
            return
        self._mailbox.append(arrived)
        del self._mailbox[:-MAILBOX_EVENTS]

    # -- the mailbox -----------------------------------------------------------------------------------------------
    def _take(self, type_: str, match: Mapping[str, Scalar]) -> Arrived | None:
        """The oldest that fits."""
        self._forget_old()
        for index, arrived in enumerate(self._mailbox):
            if arrived.attrs["type"] == type_ and matches(match, Document(arrived.data)):
                return self._mailbox.pop(index)
        return None

    def _forget_old(self) -> None:
        now_us = self._live.now_us()
        self._mailbox = [each for each in self._mailbox if each.attrs.get("until_us", now_us + 1) > now_us]

    def left(self) -> list[dict[str, Any]]:
        """The mailbox, for the run that follows: JSON-able."""
        self._forget_old()
        return [
            {"attrs": each.attrs, "data": None if each.data is None else each.data.decode()} for each in self._mailbox
        ]

    def begin(self, left: list[dict[str, Any]]) -> None:
        """With what the run before has `left`."""
        for each in left:
            data = each["data"]
            self._mailbox.append(Arrived(each["attrs"], None if data is None else data.encode()))


def _received(live: LiveInstance, event: HistoryEvent) -> None:
    live.waits.received(event)


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {h.EVENT_RECEIVED: _received}
