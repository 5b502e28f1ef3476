"""Signals and updates from outside to an instance: what may be recorded, and what a sender hears of an update. Part of
the core.

An update is looked at before it is recorded: the live instance is made first, and its validator may refuse. Its answer
is a function of the history event that ends it, so that it can be given again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from romancy_stream.engine import history as h
from romancy_stream.engine.answers import DONE, refusal
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.definitions import HandlerDef, HandlerKind, definition_of
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.handlers import handler_of, unknown_handler
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Received
from romancy_stream.errors import (
    InstanceFinishedError,
    InstanceNotFoundError,
    InstanceParkedError,
    InvalidInputError,
    PayloadError,
    ReadOnlyError,
    RomancyError,
    UpdateFailedError,
    UpdateRejectedError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

OK: Final = DONE + b',"result":'
"""How the answer to an update that was completed begins; the result and a brace follow, as in the history."""
UNKNOWN_INSTANCE: Final = "unknown_instance"


def update_ref(source: str, event_id: str) -> str:
    """An update in the history: its command, in short."""
    return hashlib.sha256(f"{source}\0{event_id}".encode()).hexdigest()[:32]


def answer_to(event: HistoryEvent) -> bytes:
    """The data of the answer that an `update.completed` or `update.failed` is."""
    payload = event.payload or b"null"
    if event.kind == h.UPDATE_COMPLETED:
        return OK + payload + b"}"
    cause = orjson.loads(payload)
    name = event.attrs["name"]
    told = f"{cause['type'].rpartition(':')[2]}: {cause['message']}"
    failed = UpdateFailedError(f"update {name!r} of instance {event.instance_id} failed: {told}")
    described: dict[str, Any] = orjson.loads(encode_error(failed, retryable=False))
    return orjson.dumps({"ok": False, "reason": failed.code, "error": {**described, "cause": cause}})


def answer_in(history: Sequence[HistoryEvent], ref: str) -> bytes | None:
    """The answer to an update, as far as a run's history knows it; None: it is open, or was never accepted."""
    ended = (event for event in history if event.kind in (h.UPDATE_COMPLETED, h.UPDATE_FAILED) and event.ref == ref)
    end = next(ended, None)
    if end is not None:
        return answer_to(end)
    accepted = any(event.kind == h.UPDATE_ACCEPTED and event.ref == ref for event in history)
    over = accepted and any(event.kind in h.ENDS or event.kind == h.WORKFLOW_COMPENSATING for event in history)
    return refusal(_gone(history[0].instance_id)) if over else None


# -- commands ----------------------------------------------------------------------------------------------------
def signal(core: EngineCore, batch: Batch, received: Received, event: WireEvent, entry: Entry | None) -> None:
    try:
        entry = _open(core, event, entry)
        _arguments(core, entry, "signal", event)
        payload = _payload(core, batch, event)
    except (RomancyError, _Missing) as error:
        _dead_letter(batch, received, event, error)
        return
    core.deliver(batch, entry, h.SIGNAL_RECEIVED, None, _attrs(event), payload)


def update(core: EngineCore, batch: Batch, received: Received, event: WireEvent, entry: Entry | None) -> None:
    try:
        entry = _open(core, event, entry)
        arguments = _arguments(core, entry, "update", event)
        payload = _payload(core, batch, event)
    except (RomancyError, _Missing) as error:
        _dead_letter(batch, received, event, error)
        if isinstance(error, RomancyError):
            _answer(core, batch, event, refusal(error))
        return
    rejection = _validate(core, batch, event, entry, arguments)
    if rejection is None:
        ref = update_ref(event.source, event.id)
        core.deliver(batch, entry, h.UPDATE_ACCEPTED, ref, _attrs(event), payload)
    else:
        _answer(core, batch, event, refusal(rejection))


def again(core: EngineCore, batch: Batch, received: Received, event: WireEvent, entry: Entry | None) -> None:
    """An update that has come before. What was refused is not looked at a second time."""
    if entry is None or entry.state.finished is not None or entry.state.compensating is not None:
        return
    ref = update_ref(event.source, event.id)
    if ref in entry.state.updates:
        return  # it will be answered
    core.awake(batch, entry)
    known = None if entry.live is None else entry.live.handlers.answers.get(ref)
    if known is not None:
        kind, payload = known
        if kind == h.UPDATE_COMPLETED:
            payload = core.config.sealing.seal(payload, f"the result of update {event.id}", batch.commit.blobs)
        state = entry.state
        ended = HistoryEvent(state.instance_id, state.run, state.seq, batch.now_us, kind, ref, _attrs(event), payload)
        _answer(core, batch, event, answer_to(ended))


class _Missing(Exception):
    """A command without the attribute that names the handler."""


def _open(core: EngineCore, event: WireEvent, entry: Entry | None) -> Entry:
    """Raises InstanceNotFoundError, InstanceFinishedError."""
    instance_id = event.subject or ""
    if entry is None:
        if instance_id in core.loaded.instances:
            raise _gone(instance_id)
        raise InstanceNotFoundError(f"there is no instance {instance_id}")
    if entry.state.finished is not None or entry.state.compensating is not None:
        raise _gone(instance_id)
    return entry


def _gone(instance_id: str) -> InstanceFinishedError:
    return InstanceFinishedError(f"the code of instance {instance_id} has ended")


def _arguments(core: EngineCore, entry: Entry, kind: HandlerKind, event: WireEvent) -> tuple[HandlerDef, Any] | None:
    """None where the code is not in this process: it will be asked when it comes. Raises UnknownHandlerError,
    InvalidInputError, PayloadError."""
    name = event.extensions.get(w.X_NAME)
    if not name:
        raise _Missing(f"{event.type} needs the attribute {w.X_NAME}, the {kind} of the workflow")
    data = core.opened(event.data)
    state = entry.state
    definition = definition_of(core.workflows, state.workflow, state.version)
    if definition is None:
        return None
    handler = handler_of(definition, kind, name)
    if handler is None:
        raise unknown_handler(definition, kind, name)
    return handler, handler.decode(data)


def _payload(core: EngineCore, batch: Batch, event: WireEvent) -> bytes | None:
    what = f"the argument of {event.extensions[w.X_NAME]}"
    return None if event.data is None else core.sealed(batch, event.data, what)


def _attrs(event: WireEvent) -> dict[str, Any]:
    return {"name": event.extensions[w.X_NAME], "event_id": event.id, "event_source": event.source}


def _validate(
    core: EngineCore, batch: Batch, event: WireEvent, entry: Entry, call: tuple[HandlerDef, Any] | None
) -> RomancyError | None:
    """Why an update is refused; None: it may be accepted."""
    if entry.state.parked is None:
        core.awake(batch, entry)
    if entry.live is None or call is None:
        return InstanceParkedError(f"instance {entry.state.instance_id} is parked: {entry.state.parked}")
    handler, arguments = call
    rejection = None
    try:
        entry.live.handlers.check(handler, arguments)
    except Exception as error:
        rejection = UpdateRejectedError(f"update {handler.name!r} was refused: {type(error).__name__}: {error}")
        rejection.__cause__ = error
    if not entry.live.loop.is_idle:
        problem = ReadOnlyError(f"the validator of update {handler.name!r} has woken a task of the workflow")
        core.halt(batch, entry, problem)
        return rejection or InstanceParkedError(f"instance {entry.state.instance_id} is parked: {problem}")
    return rejection


# -- answers -----------------------------------------------------------------------------------------------------
def _answer(core: EngineCore, batch: Batch, command: WireEvent, data: bytes) -> None:
    assert command.subject is not None
    batch.answer_command(core.part_of(command.subject), command, command.subject, data)


def _dead_letter(batch: Batch, received: Received, event: WireEvent, error: Exception) -> None:
    if isinstance(error, _Missing):
        reason = "missing_attribute"
    elif isinstance(error, InstanceNotFoundError):
        reason = UNKNOWN_INSTANCE
    elif isinstance(error, InvalidInputError | PayloadError):
        reason = InvalidInputError.code
    else:
        reason = getattr(error, "code", "refused")
    batch.dead_letter(received, reason, str(error), event.source, event.id)


def _ended(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """An update was completed, or failed: tells who asked for it."""
    state = entry.state
    batch.answer_command(state.part, _command(event.attrs), state.instance_id, answer_to(event))


def _left_open(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """The run ends, or its code has: who waits for an update waits in vain."""
    state = entry.state
    for attrs in state.updates.values():
        batch.answer_command(state.part, _command(attrs), state.instance_id, refusal(_gone(state.instance_id)))


def _command(attrs: dict[str, Any]) -> WireEvent:
    return WireEvent(attrs["event_id"], attrs["event_source"], w.UPDATE)


COMMANDS = {w.SIGNAL: signal, w.UPDATE: update}
AGAIN = {w.UPDATE: again}
TELL = {h.UPDATE_COMPLETED: _ended, h.UPDATE_FAILED: _ended}
LET_GO = (_left_open,)
