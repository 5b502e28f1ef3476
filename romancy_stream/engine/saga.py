"""Cancelling, and undoing what was done: compensations run in reverse order, each recorded before the next. Part of
the core.

An instance that fails or is cancelled with something to undo is `compensating` first: `workflow.compensating` says how
it will end, and its code is over. What is left to undo stands in the state (`undo`), the last one to be undone first;
one compensation at a time is an activity like any other, with attempts and a retry policy, under the id `undo:` + that
of the activity it undoes. A crash resumes with what is left, for the state is the fold of what was recorded.

A worker may have completed an activity that nobody waits for any more, when the news of it is still on the way
(`unheard`). So their keys are claimed before the first compensation, by a timer that is due at once: what turns out to
be completed is undone too, and what does not can no longer commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from romancy_stream.engine import history as h
from romancy_stream.engine.answers import Answer
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import CANCELLED, FAILED, ActivityKey
from romancy_stream.engine.failure import clean, encode_error, shortened
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, Received, TimerDue
from romancy_stream.engine.instance import BY_ENGINE, Command, cancellation
from romancy_stream.engine.loop import LATEST_US
from romancy_stream.engine.projection import CLAIMS_TIMER, UNDO, InstanceState, Undo
from romancy_stream.engine.undoing import with_result
from romancy_stream.errors import (
    InstanceNotCancellableError,
    InstanceNotFoundError,
    InvalidInputError,
    PayloadTooLargeError,
    RomancyError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import MAX_WRAPPED_BYTES

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

REASON_CHARS: Final = 2_000
"""Of why an instance is cancelled: it stands in its history, its row and its event."""
FAILED_SHOWN: Final = 100
"""Ids of failed compensations in the instance's error, which is a column and a message; history has them all."""
_OUTCOMES: Final = {h.WORKFLOW_FAILED: FAILED, h.WORKFLOW_CANCELLED: CANCELLED}


# -- cancelling -------------------------------------------------------------------------------------------------------
def _cancel_command(core: EngineCore, batch: Batch, received: Received, event: WireEvent, entry: Entry | None) -> None:
    with Answer(batch, received, event):
        try:
            reason = _reason(event.data)
            if _is_cancellable(core, event, entry):
                assert entry is not None
                cancel(core, batch, entry, reason, event.source, event.id)
        except RomancyError as error:
            batch.dead_letter(received, _REFUSALS.get(error.code, error.code), str(error), event.source, event.id)
            raise


_REFUSALS: Final = {InstanceNotFoundError.code: "unknown_instance", InstanceNotCancellableError.code: "not_cancellable"}


def _reason(data: bytes | None) -> str | None:
    told = orjson.loads(data or b"null")
    reason = told.get("reason") if isinstance(told, dict) else told
    if not (told is None or isinstance(told, dict)) or not (reason is None or isinstance(reason, str)):
        raise InvalidInputError(f'data of {w.CANCEL} is {{"reason": "..."}}, or nothing')
    return None if reason is None else shortened(clean(reason), REASON_CHARS)


def _is_cancellable(core: EngineCore, event: WireEvent, entry: Entry | None) -> bool:
    """False: there is nothing left to do. InstanceNotFoundError, InstanceNotCancellableError."""
    if entry is not None:
        status = entry.state.finished
    else:
        row = core.loaded.instances.get(event.subject or "")
        if row is None:
            raise InstanceNotFoundError(f"there is no instance {event.subject!r}")
        status = row.status
    if status is not None and status != CANCELLED:
        raise InstanceNotCancellableError(f"instance {event.subject} has finished: it is {status}")
    return status is None


def cancel(
    core: EngineCore, batch: Batch, entry: Entry, reason: str | None, by: str, event_id: str | None = None
) -> None:
    """Of an instance that is open. Its code hears of it once; where that cannot run, it ends without it. `by` is who
    asks: the source of the command `event_id`, where it is one."""
    state = entry.state
    if state.compensating is not None:
        return
    if state.cancel is None:
        attrs = {"reason": reason, "by": by, "event_id": event_id}
        core.deliver(batch, entry, h.WORKFLOW_CANCEL_REQUESTED, None, attrs, None)
    if state.parked is not None and state.finished is None:
        assert state.cancel is not None
        ended = cancellation(state.cancel)
        end(core, batch, entry, Command(ended.kind, None, {BY_ENGINE: True}, ended.payload))


def _close(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """The transaction of a worker that still does it is refused from now on, unless it was first."""
    assert event.ref is not None
    batch.commit.closed.append(ActivityKey(event.instance_id, event.run, event.ref))


def _close_open(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """Of a cancelled instance: what its code did not cancel itself."""
    if h.WORKFLOW_CANCELLED in (event.kind, f"workflow.{event.attrs.get('outcome')}"):
        state = entry.state
        keys = [ActivityKey(state.instance_id, state.run, each) for each in state.activities]
        batch.commit.closed.extend(keys)


# -- the end, and what comes before it --------------------------------------------------------------------------------
def end(core: EngineCore, batch: Batch, entry: Entry, command: Command) -> None:
    """A run that fails or is cancelled: at once when there is nothing to undo."""
    state = entry.state
    if not (state.undo or state.unheard or any("compensate" in each.attrs for each in state.activities.values())):
        batch.record(entry, command.kind, None, command.attrs, command.payload)
        return
    attrs = {"outcome": _OUTCOMES[command.kind], **command.attrs}
    batch.record(entry, h.WORKFLOW_COMPENSATING, None, attrs, command.payload)
    core.evict(entry)
    if CLAIMS_TIMER not in state.timers:
        _next(batch, entry)


def closings(core: EngineCore, inputs: Sequence[Input]) -> Iterable[ActivityKey]:
    """Activities that an instance may have completed unheard: see `Attempts.closings`."""
    for each in inputs:
        if isinstance(each, TimerDue) and each.timer_id == CLAIMS_TIMER:
            entry = core.entry(each.instance_id)
            if entry is not None and entry.state.run == each.run:
                yield from (ActivityKey(each.instance_id, each.run, ref) for ref in entry.state.unheard)


def _claimed(core: EngineCore, batch: Batch, entry: Entry, due: TimerDue) -> None:
    """The keys are claimed: what stands there decides."""
    state = entry.state
    for ref in list(state.unheard):
        claimed = core.loaded.closed.get(ActivityKey(state.instance_id, state.run, ref))
        if claimed is not None and claimed.outcome == "completed":
            attrs = {"attempt": claimed.attempt, "worker": claimed.worker}
            batch.record(entry, h.COMPENSATION_FOUND, ref, attrs, claimed.result)
    _next(batch, entry)


def found(batch: Batch, entry: Entry, run: int, ref: str, attrs: dict[str, Any], result: bytes | None) -> bool:
    """A result that nobody waits for. False: nor is it of a cancelled activity that would have to be undone."""
    state = entry.state
    if state.finished is not None or run != state.run or ref not in state.unheard:
        return False
    batch.record(entry, h.COMPENSATION_FOUND, ref, attrs, result if result is not None else b"null")
    return True


def undone(batch: Batch, entry: Entry, kind: str, ref: str, attrs: dict[str, Any], payload: bytes | None) -> None:
    """A compensation has come to its end."""
    done = h.COMPENSATION_COMPLETED if kind == h.ACTIVITY_COMPLETED else h.COMPENSATION_FAILED
    batch.record(entry, done, ref, attrs, payload)
    _next(batch, entry)


def _next(batch: Batch, entry: Entry) -> None:
    state = entry.state
    while state.undo:
        undo = state.undo[-1]
        args = _arguments(undo)
        batch.record(entry, h.COMPENSATION_SCHEDULED, undo.ref, _scheduled(undo, batch.now_us), args)
        if args is None or len(args) <= MAX_WRAPPED_BYTES:
            batch.request(state, state.activities[UNDO + undo.ref])
            return
        error = PayloadTooLargeError(
            f"arguments and result together are {len(args):,} bytes of JSON, the limit is {MAX_WRAPPED_BYTES:,}"
        )
        failed = {"attempt": 0, "reason": "terminal"}
        batch.record(entry, h.COMPENSATION_FAILED, undo.ref, failed, encode_error(error, retryable=False))
    _finish(batch, entry)


def _arguments(undo: Undo) -> bytes | None:
    if undo.args is None or not undo.attrs.get("wants_result"):
        return undo.args
    return with_result(undo.args, undo.result if undo.result is not None else b"null")


def _scheduled(undo: Undo, now_us: int) -> dict[str, Any]:
    attrs = {name: value for name, value in undo.attrs.items() if name != "wants_result"}
    if "total_timeout_s" in attrs:
        attrs["deadline_us"] = min(now_us + round(attrs["total_timeout_s"] * 1_000_000), LATEST_US)
    return attrs


def _finish(batch: Batch, entry: Entry) -> None:
    """As it would have ended, with what could not be undone."""
    state = entry.state
    assert state.compensating is not None
    kind = f"workflow.{state.compensating.attrs['outcome']}"
    attrs, payload = {}, state.compensating.payload
    if state.undo_failed:
        attrs["compensation_failed"] = list(state.undo_failed)
        payload = _blamed(state, payload)
    batch.record(entry, kind, None, attrs, payload)


def _blamed(state: InstanceState, payload: bytes | None) -> bytes:
    """The payload is an object that the engine has written, and is not empty."""
    assert payload is not None
    failed = orjson.dumps(state.undo_failed[:FAILED_SHOWN])
    return payload[:-1] + b',"compensation_failed":' + failed + b"}"


COMMANDS = {w.CANCEL: _cancel_command}
ENDINGS = {h.WORKFLOW_FAILED: end, h.WORKFLOW_CANCELLED: end}
TIMERS = {CLAIMS_TIMER: _claimed}
TELL = {h.ACTIVITY_CANCELLED: _close}
LET_GO = (_close_open,)
