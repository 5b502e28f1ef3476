"""Runs of a workflow that take turns: at most so many at a time with the same value in their input. Who is at work and
who waits stands at an entity, in the order in which they asked. Part of the core.

    run begins ── slot.asked ──► "acquire" ──► entity ── "slot" ──► slot.granted: the code begins
    run ends ───────────────────► "release" ──┘   (also when it was waiting still)

A run that recurs, or that an operator sends back, passes its slot on to the run that follows, and is let go of after
that: nobody comes between the two.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import EntityRow, ItemRow, MemberRow
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.definitions import WorkflowDef
from romancy_stream.engine.entity import Entity, Member, MemberKey
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.mail import Mail
from romancy_stream.engine.matching import DIGEST_CHARS, Document
from romancy_stream.engine.projection import InstanceState
from romancy_stream.engine.sealing import PLAIN
from romancy_stream.engine.turns import SLOT

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

SHOWN_CHARS: Final = 200
"""Of the value that runs share, for people to read."""
ACQUIRE, HOLD, RELEASE, GRANTED = "acquire", "hold", "release", "slot"
HELD: Final = "held"


def begun(core: EngineCore, definition: WorkflowDef, data: bytes | None) -> dict[str, Any]:
    """Attributes of `workflow.started`: the slot that a run with this input needs. Nothing where the input lacks the
    value."""
    slot = definition.slot
    if slot is None:
        return {}
    key, limit = slot
    identity, of = definition.name, definition.name
    if key is not None:
        value = _value(key, data)
        if value is None:
            return {}
        identity = f"{definition.name}\0{value}"
        shown = value.removeprefix('"')[:SHOWN_CHARS]
        of = f"{key}={shown}" if core.config.sealing is PLAIN else key  # else it is not for everybody's eyes
    digest = hashlib.sha256(identity.encode()).hexdigest()[:DIGEST_CHARS]
    return {"slot": {"entity": f"{Slots.kind}:{digest}", "limit": limit, "of": of}}


def _value(key: str, data: bytes | None) -> str | None:
    """Of a field of the input, or of the input where that is a scalar."""
    found = Document(data).value(key)
    return found if found is not None or data is None else Document(b'{"input":' + data + b"}").value("input")


# -- the entity ------------------------------------------------------------------------------------------------------
class Slots(Entity):
    """Members are instances, in the order in which they asked; those at work are `held`. The limit is that of whoever
    asked last: it comes from the code."""

    kind = "slots"

    def __init__(self, name: str, part: int, config: CoreConfig) -> None:
        super().__init__(name, part, config)
        self._waiting: dict[MemberKey, None] = {}

    def load(self, row: EntityRow, members: list[MemberRow], items: list[ItemRow]) -> None:
        super().load(row, members, items)
        self._waiting = {key: None for key, member in self.members.items() if not member.attrs[HELD]}

    def told(self, batch: Batch, mail: Mail) -> None:
        key = (mail.instance_id, SLOT)
        member = self.members.get(key)
        if mail.op == RELEASE:
            if member is not None and member.run == mail.run:
                self.leave(*key)
                self._waiting.pop(key, None)
        else:
            self.head = {"limit": mail.meta["limit"], "of": mail.meta["of"]}
            if member is None:
                member = self.join(*key, mail.run, {HELD: False})
                self._waiting[key] = None
            member.run = mail.run  # one that follows another has its place, at work or in the line
            self.changed_member(member)
            if mail.op == HOLD:
                self._begin(member)
            elif member.attrs[HELD]:
                self._grant(batch, member)
        while self._waiting and len(self.members) - len(self._waiting) < self.head["limit"]:
            first = self.members[next(iter(self._waiting))]
            self._begin(first)
            self._grant(batch, first)

    def _begin(self, member: Member) -> None:
        self._waiting.pop((member.instance_id, member.ref), None)
        member.attrs[HELD] = True
        self.changed_member(member)

    def _grant(self, batch: Batch, member: Member) -> None:
        batch.to_instance(self.part, Mail(GRANTED, member.instance_id, self.name, member.run, member.ref))


# -- the instance's side ---------------------------------------------------------------------------------------------
def _asked(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    _mail(batch, entry.state, ACQUIRE, event.attrs)


def _granted(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    """A run that is over has released it, or will be."""
    if entry is None or entry.state.run != mail.run or entry.state.slot is None or entry.state.slot_granted:
        core.stats["late_slot"] += 1
    elif entry.state.compensating is None:
        core.deliver(batch, entry, h.SLOT_GRANTED, SLOT, {}, None)


def _let_go(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """Compensations are still its work; and one who is followed by another run passes it on, see `pass_on`."""
    if event.kind not in (h.WORKFLOW_COMPENSATING, h.WORKFLOW_RECURRED, h.WORKFLOW_RESET):
        _release(batch, entry.state)


def pass_on(batch: Batch, before: InstanceState) -> None:
    """Another run has followed. Where they share a slot, that has changed hands already."""
    _release(batch, before)


def rejoin(batch: Batch, entry: Entry) -> None:
    """Of a run that goes on from the history of another, behind the place where it had been granted its slot. It goes
    on at once, over the limit if need be: its code cannot wait for it there."""
    state = entry.state
    if state.slot is not None and state.slot_granted:
        _mail(batch, state, HOLD, state.slot)


def _release(batch: Batch, state: InstanceState) -> None:
    if state.slot is not None:
        batch.to_entity(state.part, Mail(RELEASE, state.slot["entity"], state.instance_id, state.run, SLOT))


def _mail(batch: Batch, state: InstanceState, op: str, slot: dict[str, Any]) -> None:
    meta = {"limit": slot["limit"], "of": slot["of"]}
    batch.to_entity(state.part, Mail(op, slot["entity"], state.instance_id, state.run, SLOT, meta))


TELL = {h.SLOT_ASKED: _asked}
OPS = {GRANTED: _granted}
ENTITIES = {Slots.kind: Slots}
LET_GO = (_let_go,)
