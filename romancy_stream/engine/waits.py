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
from romancy_stream.engine.matching import Document, Scalar, entity_of_wait, first_match, matches
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


@value
class Wait:
    """One that is open. `attrs` as those of `wait.started`."""

    ref: str
    attrs: dict[str, Any]
    future: asyncio.Future[Arrived]


class Waits:
    """`keys`: event type -> the field that it is routed by; `models`: event type -> the type of its data. As the app
    declares them."""

    def __init__(self, live: LiveInstance, keys: Mapping[str, str | None], models: Mapping[str, Any]) -> None:
        self.keys = keys
        self.models = models
        self._live = live
        self._open: dict[str, Wait] = {}
        self._mailbox: list[Arrived] = []

    async def wait(self, type_: str, match: Mapping[str, Scalar], timeout_us: int | None) -> Arrived:
        """`match` was checked. ValueError where it lacks the field that the type is routed by; EventTimeoutError."""
        loop = self._live.loop
        future: asyncio.Future[Arrived] = loop.create_future()  # first: it refuses an eviction
        entity = entity_of_wait(self.keys, type_, match)
        found = self._take(type_, match)
        if found is not None:
            return found
        attrs: dict[str, Any] = {"type": type_, "entity": entity}
        if match:
            attrs["match"] = dict(match)
        wait = Wait(f"wait:{self._live.count('wait:')}", attrs, future)
        self._open[wait.ref] = wait
        self._live.emit(h.WAIT_STARTED, wait.ref, attrs)
        timer = None
        if timeout_us is not None:
            timer = loop.call_at_us(min(loop.now_us + timeout_us, LATEST_US), self._timed_out, wait, timeout_us)
        try:
            return await future
        except BaseException:
            self._left(wait)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _timed_out(self, wait: Wait, timeout_us: int) -> None:
        if wait.ref in self._open and not wait.future.done():
            self._withdraw(wait)
            message = f"no event of type {wait.attrs['type']!r} within {timeout_us / 1_000_000:g} s"
            wait.future.set_exception(EventTimeoutError(message))

    def _left(self, wait: Wait) -> None:
        """By code that does not get an event from it."""
        if wait.ref in self._open:
            self._withdraw(wait)
        elif not wait.future.cancelled() and wait.future.exception() is None:
            self._mailbox.insert(0, wait.future.result())  # cancelled when it had just been received

    def _withdraw(self, wait: Wait) -> None:
        del self._open[wait.ref]
        if not self._live.take_back(h.WAIT_STARTED, wait.ref):
            attrs = {name: wait.attrs[name] for name in ("type", "entity")}
            self._live.emit(h.WAIT_CANCELLED, wait.ref, attrs)

    def received(self, event: HistoryEvent) -> None:
        arrived = Arrived(event.attrs, event.payload)
        wait = self._open.pop(event.ref, None) if event.ref is not None else None
        if wait is None or wait.future.done():
            # The wait that the core knows of, if any, is not one of the code's. Both are behind one another only in an
            # instance that was parked: what it had not seen comes at once, and its code may wait for it by now.
            wait = self._fitting(arrived)
            if wait is None:
                self._mailbox.append(arrived)
                del self._mailbox[:-MAILBOX_EVENTS]
                return
            self._withdraw(wait)
        wait.future.set_result(arrived)

    def _fitting(self, arrived: Arrived) -> Wait | None:
        open_ = [(wait.ref, wait.attrs) for wait in self._open.values() if not wait.future.done()]
        ref = first_match(open_, arrived.attrs["type"], Document(arrived.data))
        return None if ref is None else self._open[ref]

    # -- the mailbox -----------------------------------------------------------------------------------------------
    def _take(self, type_: str, match: Mapping[str, Scalar]) -> Arrived | None:
        """The oldest that fits."""
        mailbox = self._mailbox
        while mailbox and self._is_over(mailbox[0]):
            del mailbox[0]
        for index, arrived in enumerate(mailbox):
            fits = arrived.attrs["type"] == type_ and matches(match, Document(arrived.data))
            if fits and not self._is_over(arrived):
                return mailbox.pop(index)
        return None

    def _is_over(self, arrived: Arrived) -> bool:
        until_us: int | None = arrived.attrs.get("until_us")
        return until_us is not None and until_us <= self._live.now_us()

    def left(self) -> list[dict[str, Any]]:
        """The mailbox, for the run that follows: JSON-able."""
        return [
            {"attrs": each.attrs, "data": None if each.data is None else each.data.decode()}
            for each in self._mailbox
            if not self._is_over(each)
        ]

    def begin(self, left: list[dict[str, Any]]) -> None:
        """With what the run before has `left`."""
        for each in left:
            data = each["data"]
            self._mailbox.append(Arrived(each["attrs"], None if data is None else data.encode()))


def _received(live: LiveInstance, event: HistoryEvent) -> None:
    live.waits.received(event)


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {h.EVENT_RECEIVED: _received}
