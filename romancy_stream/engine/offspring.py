"""Children: workflows that a workflow has started, what becomes of them, and of them when it ends. Parent and child
know each other by mail: the parent's `child.start` makes the child, which keeps in its log whose it is, and tells that
one run when it has ended. Part of the core.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine import saga
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.children import derived_child_id
from romancy_stream.engine.commit import COMPLETED
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.mail import Mail
from romancy_stream.engine.outgoing import began_child
from romancy_stream.errors import (
    InstanceExistsError,
    InvalidInputError,
    PayloadError,
    RomancyError,
    StartRefusedError,
    UnknownWorkflowError,
)

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

RUNS_LOOKED_BACK: Final = 100
"""Of a parent that was reset again and again: for a child that an earlier run has started under an id of its own."""

START: Final = "child.start"
ENDED: Final = "child.ended"
CANCEL: Final = "child.cancel"

_TOLD: Final = {
    h.WORKFLOW_COMPLETED: h.CHILD_COMPLETED,
    h.WORKFLOW_FAILED: h.CHILD_FAILED,
    h.WORKFLOW_CANCELLED: h.CHILD_CANCELLED,
}
_HANDED_DOWN: Final = ("correlation_id", "traceparent")


# -- from the parent -------------------------------------------------------------------------------------------------
def _started(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    state, attrs = entry.state, event.attrs
    meta: dict[str, Any] = {"workflow": attrs["workflow"], "close": attrs["close"], "run": state.run}
    if "begin_us" in attrs:
        meta["begin_us"] = attrs["begin_us"]
    meta |= {name: state.begun[name] for name in _HANDED_DOWN if name in state.begun}
    follows = state.begun.get("follows")
    if follows is not None:
        meta |= {"since": follows["since"], "again": event.seq <= follows["copied"]}
    batch.to_instance(state.part, Mail(START, attrs["id"], state.instance_id, 0, event.ref, meta, event.payload))


def _cancel_requested(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    reason = event.attrs["reason"] or f"its parent {entry.state.instance_id} cancelled it"
    _ask_to_cancel(batch, entry, event.ref or "", event.attrs["id"], reason)


def _left_behind(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """The run is over, and with it the children that were to end with it."""
    reason = f"its parent {entry.state.instance_id} has ended ({event.kind})"
    for ref, attrs in entry.state.children.items():
        if attrs["close"] == "cancel":
            _ask_to_cancel(batch, entry, ref, attrs["id"], reason)


def _ask_to_cancel(batch: Batch, entry: Entry, ref: str, child_id: str, reason: str) -> None:
    state = entry.state
    meta = {"run": state.run, "reason": reason}
    batch.to_instance(state.part, Mail(CANCEL, child_id, state.instance_id, 0, ref, meta))


def moved(event: HistoryEvent) -> HistoryEvent:
    """An event that was copied into another run. A child whose id is derived gets that of its new run: the one of the
    run before has it already."""
    if event.kind != h.CHILD_STARTED or not event.attrs.get("derived"):
        return event
    assert event.ref is not None
    return replace(event, attrs={**event.attrs, "id": derived_child_id(event.instance_id, event.run, event.ref)})


# -- at the child ----------------------------------------------------------------------------------------------------
def _begin(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    workflow = mail.meta["workflow"]
    parent = {"id": mail.instance_id, "run": mail.meta["run"], "ref": mail.ref, "close": mail.meta["close"]}
    attrs: dict[str, Any] = {name: mail.meta[name] for name in ("begin_us", *_HANDED_DOWN) if name in mail.meta}
    ours = _is_ours_already(core, batch, entry, mail)
    if ours and entry is not None and entry.state.finished is None:
        batch.record(entry, h.WORKFLOW_ADOPTED, None, {"parent": parent})
        return
    if ours and mail.meta["again"] and _completed_before(core, batch, entry, mail):
        return
    try:
        if not ours and core.exists(mail.to) is not None:
            raise InstanceExistsError(f"instance {mail.to} exists: give the child another id, or none")
        if workflow not in core.workflows:
            raise UnknownWorkflowError(core.starts.nobody_has(workflow))
        core.starts.child(batch, mail, workflow, parent, attrs)
    except (InstanceExistsError, UnknownWorkflowError, InvalidInputError, PayloadError) as error:
        core.stats["child_rejected"] += 1
        rejected(core, batch, mail, error)


def _is_ours_already(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> bool:
    """A child under an id of its own, whose parent was reset or retried: a run before has started it. Not where it is
    open and this run has it already, or where it is of another workflow: the code has given one id to two children."""
    known = core.exists(mail.to)
    if known is None or known[0] != batch.source or "since" not in mail.meta:
        return False
    if entry is not None and entry.state.finished is None:
        parent = entry.state.parent
        taken = parent is not None and (parent["id"], parent["run"]) == (mail.instance_id, mail.meta["run"])
        if taken or entry.state.workflow != mail.meta["workflow"]:
            return False
    runs = range(max(mail.meta["since"], mail.meta["run"] - RUNS_LOOKED_BACK), mail.meta["run"])
    return any(began_child(known[1], mail.instance_id, run, mail.ref) for run in runs)


def _completed_before(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> bool:
    """Its parent waited for it, and it has been put right since: its result counts."""
    row = core.loaded.instances.get(mail.to) if entry is None else entry.state.row()
    if row is None or row.status != COMPLETED:
        return False
    run, meta = mail.meta["run"], {"kind": h.CHILD_COMPLETED}
    told = Mail(ENDED, mail.instance_id, mail.to, run, mail.ref, meta, row.output)
    batch.to_instance(core.part_of(mail.to), told)
    return True


def rejected(core: EngineCore, batch: Batch, mail: Mail, error: RomancyError) -> None:
    """The child of a `child.start` never came to be."""
    run, payload = mail.meta["run"], encode_error(error, retryable=False)
    meta = {"kind": h.CHILD_FAILED}
    batch.to_instance(core.part_of(mail.to), Mail(ENDED, mail.instance_id, mail.to, run, mail.ref, meta, payload))


def refused(core: EngineCore, batch: Batch, mail: Mail, reason: str, message: str) -> bool:
    """A mail that cannot be dealt with, for a reason that is not its own: the parent must not wait for ever. False: it
    is about no child that is to be."""
    if mail.op == START:
        rejected(core, batch, mail, StartRefusedError(f"{reason}: {message}"))
    return mail.op == START


def _cancel(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    """From the parent. The id may be another one's, if the child was never accepted."""
    parent = None if entry is None else entry.state.parent
    whose = (mail.instance_id, mail.meta["run"], mail.ref)
    if entry is None or parent is None or (parent["id"], parent["run"], parent["ref"]) != whose:
        core.stats["late_child"] += 1
        return
    saga.cancel(core, batch, entry, mail.meta["reason"], f"parent {mail.instance_id}")


def _tell_parent(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    state = entry.state
    if state.parent is not None and event.kind in _TOLD:
        parent, meta = state.parent, {"kind": _TOLD[event.kind]}
        mail = Mail(ENDED, parent["id"], state.instance_id, parent["run"], parent["ref"], meta, event.payload)
        batch.to_instance(state.part, mail)


# -- at the parent again ---------------------------------------------------------------------------------------------
def _ended(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    if entry is None or entry.state.run != mail.run or mail.ref not in entry.state.children:
        core.stats["late_child"] += 1  # nobody waits for it any more
        return
    core.deliver(batch, entry, mail.meta["kind"], mail.ref, {"id": mail.instance_id}, mail.payload)


TELL = {h.CHILD_STARTED: _started, h.CHILD_CANCEL_REQUESTED: _cancel_requested}
OPS = {START: _begin, CANCEL: _cancel, ENDED: _ended}
LET_GO = (_left_behind, _tell_parent)
