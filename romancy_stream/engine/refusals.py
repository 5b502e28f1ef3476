"""A message that cannot be dealt with, for a reason that is not its own: the database refuses what comes of it, or it
kills whoever takes it. It is kept, and who would wait for it for ever is told: the sender of a command by an answer, of
a start by a rejection; an instance that loses something is halted until somebody has looked at it. Part of the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from romancy_stream.engine import answers, features, offspring
from romancy_stream.engine.batch import Batch
from romancy_stream.engine.inputs import Refused
from romancy_stream.engine.mail import read
from romancy_stream.errors import CommandRefusedError
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore


def refused(core: EngineCore, batch: Batch, each: Refused) -> None:
    received, event = each.received, each.received.event
    if not isinstance(event, WireEvent):
        batch.dead_letter(received, each.reason, each.message, event.event_source, event.event_id)
    elif event.type in (w.ACTIVITY_COMPLETED, w.ACTIVITY_FAILED):
        batch.dead_letter(received, each.reason, each.message, event.source, event.id)
        _halt(core, batch, event.subject or "", each)
    elif event.type == w.TO_INSTANCE:
        batch.dead_letter(received, each.reason, each.message, event.source, event.id)
        mail = read(event)
        if not offspring.refused(core, batch, mail, each.reason, each.message):
            _halt(core, batch, mail.to, each)
    elif event.type in features.COMMANDS:
        batch.dead_letter(received, each.reason, each.message, event.source, event.id)
        if event.type != w.SIGNAL and event.subject:
            error = CommandRefusedError(f"{each.reason}: {each.message}; the command is a dead letter")
            answers.refused(batch, received.record.partition, event, error)
    else:
        core.starts.refuse(batch, received, event, each.reason, each.message)


def _halt(core: EngineCore, batch: Batch, instance_id: str, each: Refused) -> None:
    """What it has lost is in the dead letters."""
    entry = core.entry(instance_id)
    if entry is not None and entry.state.parked is None and entry.state.finished is None:
        core.halt(batch, entry, RuntimeError(f"{each.reason}: {each.message}"))
