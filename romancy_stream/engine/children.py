"""A part of a live instance: the workflows that its code has started as children."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from romancy_stream.engine import history as h
from romancy_stream.engine.failure import decode_error
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.errors import ChildCancelledError, ChildWorkflowError
from romancy_stream.wire.malformed import MAX_ID_CHARS

if TYPE_CHECKING:
    from romancy_stream.engine.instance import LiveInstance

CHILD: Final = "child:"
"""How the refs of children begin."""
ParentClose = Literal["cancel", "abandon"]
TAKEN_BACK: Final = "cancelled before it was started"


@dataclass(frozen=True, slots=True)
class ChildCall:
    """One start of a child. `input` is raw JSON; `instance_id` None: one is derived; `begin_us` None: at once."""

    workflow: str
    input: bytes
    instance_id: str | None
    close: ParentClose
    begin_us: int | None


@dataclass(frozen=True, slots=True)
class Child:
    """`future`: the result, raw JSON; raises ChildWorkflowError."""

    ref: str
    instance_id: str
    workflow: str
    future: asyncio.Future[bytes]


class Children:
    def __init__(self, live: LiveInstance) -> None:
        self._live = live
        self._open: dict[str, Child] = {}
        self._cancelling: set[str] = set()

    def start(self, call: ChildCall) -> Child:
        live = self._live
        future: asyncio.Future[bytes] = live.loop.create_future()  # first: it refuses an eviction
        ref = f"{CHILD}{live.count(CHILD)}"
        attrs: dict[str, Any] = {"workflow": call.workflow, "close": call.close}
        if call.instance_id is None:
            attrs |= {"id": derived_child_id(live.instance_id, live.run, ref), "derived": True}
        else:
            attrs["id"] = call.instance_id
        if call.begin_us is not None:
            attrs["begin_us"] = call.begin_us
        child = Child(ref, attrs["id"], call.workflow, future)
        live.emit(h.CHILD_STARTED, ref, attrs, call.input)
        self._open[ref] = child
        return child

    def cancel(self, child: Child, reason: str | None) -> None:
        """Asks; the result will tell. Nothing happens where the child has ended, or was asked before."""
        live = self._live
        live.loop.create_future()  # it refuses an eviction
        if child.ref not in self._open or child.ref in self._cancelling:
            return
        if live.take_back(h.CHILD_STARTED, child.ref):
            del self._open[child.ref]
            _fail(child, _cancelled(child, reason or TAKEN_BACK))
            return
        self._cancelling.add(child.ref)
        live.emit(h.CHILD_CANCEL_REQUESTED, child.ref, {"id": child.instance_id, "reason": reason})

    # -- inputs --------------------------------------------------------------------------------------------------
    def completed(self, event: HistoryEvent) -> None:
        child = self._closed(event)
        if child is not None and not child.future.done():
            child.future.set_result(event.payload or b"null")

    def failed(self, event: HistoryEvent) -> None:
        child = self._closed(event)
        if child is not None:
            cause = decode_error(event.payload)
            message = f"child {child.instance_id} ({child.workflow}) failed: {type(cause).__name__}: {cause}"
            error = ChildWorkflowError(message, child_id=child.instance_id, workflow=child.workflow)
            error.__cause__ = cause
            _fail(child, error)

    def cancelled(self, event: HistoryEvent) -> None:
        child = self._closed(event)
        if child is not None:
            told = orjson.loads(event.payload or b"null")
            _fail(child, _cancelled(child, told.get("reason") if isinstance(told, dict) else None))

    def _closed(self, event: HistoryEvent) -> Child | None:
        self._cancelling.discard(event.ref or "")
        return self._open.pop(event.ref or "", None)


def _cancelled(child: Child, reason: str | None) -> ChildCancelledError:
    message = f"child {child.instance_id} ({child.workflow}) was cancelled" + (f": {reason}" if reason else "")
    return ChildCancelledError(message, child_id=child.instance_id, workflow=child.workflow, reason=reason)


def _fail(child: Child, error: ChildWorkflowError) -> None:
    if not child.future.done():
        child.future.set_exception(error)
        child.future.exception()  # seen: nobody has to wait for a child


def derived_child_id(parent_id: str, run: int, ref: str) -> str:
    """Always the same one for the child of a run, and another one for that of another run."""
    child_id = f"{parent_id}:{run}:{ref.removeprefix(CHILD)}"
    if len(child_id) <= MAX_ID_CHARS:
        return child_id
    digest = hashlib.sha256(child_id.encode()).hexdigest()[:32]
    return f"{parent_id[: MAX_ID_CHARS - 33]}:{digest}"


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {
    h.CHILD_COMPLETED: lambda live, event: live.children.completed(event),
    h.CHILD_FAILED: lambda live, event: live.children.failed(event),
    h.CHILD_CANCELLED: lambda live, event: live.children.cancelled(event),
}
