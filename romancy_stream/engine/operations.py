"""What operators do to an instance: go back to a point of its history and on from there (`retry`, `reset`), do that as
another instance (`fork`), remove it. Part of the core.

Going back never changes what was: another run begins with a copy of the history up to that point. Results of the run
before are dropped by its number, so what was open at that point is asked for anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from romancy_stream.engine import channels, offspring, slots
from romancy_stream.engine import history as h
from romancy_stream.engine.answers import Answer
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import Tombstone
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, Outlived, Received
from romancy_stream.errors import (
    InstanceExistsError,
    InstanceNotFoundError,
    InvalidResetPointError,
    NotDeletableError,
    NotRetryableError,
)
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent, whole_number

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

Events = Sequence[HistoryEvent]
_GIVEN_UP = frozenset({h.ACTIVITY_FAILED, h.CHILD_FAILED, h.CHILD_CANCELLED})
_ATTEMPTS = frozenset(
    {
        h.ACTIVITY_ATTEMPT_FAILED,
        h.ACTIVITY_RETRIED,
        h.ACTIVITY_PASSED_ON,
        h.ACTIVITY_HEARD,
        h.ACTIVITY_DEFERRED,
        h.ACTIVITY_RELEASED,
    }
)
_LEFT_OUT = frozenset({h.WORKFLOW_PARKED, h.WORKFLOW_RESUMED, h.WORKFLOW_ADOPTED})
"""Of a copy: the new run is awake, and begins with the parent of now."""


def prefixes(core: EngineCore, inputs: Sequence[Input]) -> Iterable[tuple[str, int]]:
    """Whole histories that the operations of a batch begin with."""
    for each in inputs:
        if isinstance(each, Received) and isinstance(each.event, WireEvent) and each.event.type in COMMANDS:
            source = _source(core, each.event)
            if source is not None:
                yield source


def _source(core: EngineCore, command: WireEvent) -> tuple[str, int] | None:
    """(instance id, run) whose history a command is about."""
    if command.type == w.FORK:
        run = whole_number(command.extensions.get(w.X_RUN, ""))
        instance_id = command.extensions.get(w.X_INSTANCE)
        return None if run is None or instance_id is None else (instance_id, run)
    instance_id = command.subject or ""
    entry = core.entry(instance_id)
    if entry is not None:
        return instance_id, entry.state.run
    row = core.loaded.instances.get(instance_id)
    return None if row is None else (instance_id, row.run)


# -- the commands ------------------------------------------------------------------------------------------------------
def _reset(core: EngineCore, batch: Batch, received: Received, command: WireEvent, entry: Entry | None) -> None:
    with Answer(batch, received, command) as answer:
        events = _history(core, batch, command)
        prefix, again = reset_point(events, named_point(command, events))
        run = _go_on(core, batch, received, entry, prefix, again, _following(command, events))
        answer.details["run"] = run
        _signalled_again(core, batch, command.subject or "", run, [event for event in events if event.seq > again.seq])


def _retry(core: EngineCore, batch: Batch, received: Received, command: WireEvent, entry: Entry | None) -> None:
    with Answer(batch, received, command) as answer:
        if entry is not None and entry.state.finished is None:
            raise NotRetryableError(f"instance {command.subject} has not failed: it is {entry.state.status}")
        events = _history(core, batch, command)
        prefix, again = retry_point(events)
        answer.details["run"] = _go_on(core, batch, received, None, prefix, again, _following(command, events))


def _fork(core: EngineCore, batch: Batch, received: Received, command: WireEvent, entry: Entry | None) -> None:
    with Answer(batch, received, command) as answer:
        assert command.subject is not None
        if core.exists(command.subject) is not None:
            raise InstanceExistsError(f"instance {command.subject} exists")
        events = _history(core, batch, command)
        prefix, again = reset_point(events, named_point(command, events))
        answer.details["run"] = _go_on(core, batch, received, None, prefix, again, _following(command, events))


def _delete(core: EngineCore, batch: Batch, received: Received, command: WireEvent, entry: Entry | None) -> None:
    with Answer(batch, received, command):
        assert command.subject is not None
        if entry is not None:
            way_out = "cancel it first" if entry.state.finished is None else "since just now, try again"
            raise NotDeletableError(f"instance {command.subject} is {entry.state.status}: {way_out}")
        if not _deleted(core, batch, command.subject):
            raise InstanceNotFoundError(f"no instance {command.subject!r}")


def outlived(core: EngineCore, batch: Batch, each: Outlived) -> None:
    """Retention. The instance may run again by now."""
    row = core.loaded.instances.get(each.instance_id)
    if row is not None and row.finished_us is not None and row.finished_us <= each.before_us:
        _deleted(core, batch, each.instance_id)


def _deleted(core: EngineCore, batch: Batch, instance_id: str) -> bool:
    row = core.loaded.instances.get(instance_id)
    if row is None or instance_id in batch.touched or batch.deletes(instance_id):
        return False
    batch.mark(row.part)
    batch.commit.deleted.append(Tombstone(instance_id, row.part, row.run, row.event_source, row.event_id, batch.now_us))
    return True


# -- where to begin again --------------------------------------------------------------------------------------------
def reset_point(events: Events, seq: int) -> tuple[list[HistoryEvent], HistoryEvent]:
    """What stays as it is, and the last input at or before event `seq`, which the code gets again.
    InvalidResetPointError: something behind which the code would go on has been undone since."""
    inputs = [event for event in events if event.kind in h.INPUTS and event.seq <= seq]
    parked = next((event for event in events if event.kind == h.WORKFLOW_PARKED and not _resumed(events, event)), None)
    if parked is not None:
        inputs = [event for event in inputs if event.seq <= min(parked.attrs["undelivered"] or [parked.seq])]
    over = next((event.seq for event in events if event.kind in _OVER), None)
    inputs = [event for event in inputs if over is None or event.seq < over]
    last = inputs[-1]
    _refuse_what_is_undone(events, last)
    return _prefix(events, last.seq), last


def _refuse_what_is_undone(events: Events, last: HistoryEvent) -> None:
    """Code that goes on behind a step believes that the step is done."""
    undone = {event.ref for event in events if event.kind == h.COMPENSATION_SCHEDULED}
    believed = [event for event in events if event.seq <= last.seq and event.ref in undone and event.kind in _DONE]
    if believed:
        first = believed[0]
        raise InvalidResetPointError(
            f"what {first.ref} did, event {first.seq} of instance {first.instance_id}, has been undone: "
            f"reset to an event before {first.seq}"
        )


_DONE = frozenset({h.ACTIVITY_COMPLETED, h.COMPENSATION_REGISTERED})


def retry_point(events: Events) -> tuple[list[HistoryEvent], HistoryEvent | None]:
    """Where a failed run was last well: before the activity that failed, which is then tried anew, or before the
    input that its code could not bear. NotRetryableError."""
    end = events[-1]
    if any(event.kind == h.WORKFLOW_COMPENSATING for event in events):
        raise NotRetryableError(f"instance {end.instance_id} was compensated: what it had done is undone; reset it")
    if end.kind != h.WORKFLOW_FAILED:
        raise NotRetryableError(f"instance {end.instance_id} has not failed")
    last = [event for event in events if event.kind in h.INPUTS][-1]
    if last.kind not in _GIVEN_UP:
        return _prefix(events, last.seq), last
    tried = [event for event in _prefix(events, last.seq) if not (event.kind in _ATTEMPTS and event.ref == last.ref)]
    return tried, None


_OVER = h.ENDS | {h.WORKFLOW_COMPENSATING, h.WORKFLOW_RESET}


def _prefix(events: Events, before: int) -> list[HistoryEvent]:
    return [event for event in events if event.seq < before]


def _resumed(events: Events, parked: HistoryEvent) -> bool:
    return any(event.kind == h.WORKFLOW_RESUMED and event.seq > parked.seq for event in events)


def named_point(command: WireEvent, events: Events) -> int:
    """The event that a command names; the last one where it names none. InvalidResetPointError."""
    text = command.extensions.get(w.X_SEQUENCE)
    seq = len(events) if text is None else whole_number(text)
    if seq is None or not 1 <= seq <= len(events):
        raise InvalidResetPointError(f"{w.X_SEQUENCE} must be 1 to {len(events)}, not {text!r}")
    return seq


def _history(core: EngineCore, batch: Batch, command: WireEvent) -> list[HistoryEvent]:
    """With what this batch has added to it."""
    source = _source(core, command)
    events = list(core.loaded.prefixes.get(source, ())) if source is not None else []
    if source is None or not events:
        raise InstanceNotFoundError(f"no history of {command.extensions.get(w.X_INSTANCE, command.subject)!r}")
    new = [event for event in batch.commit.history if (event.instance_id, event.run) == source]
    return events + [event for event in new if event.seq > events[-1].seq]


# -- another run -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Following:
    """What a run follows. `parent`: of the new run; none of a fork, whose parent waits for another one's end."""

    command: WireEvent
    begun: HistoryEvent
    parent: Mapping[str, Any] | None

    def beginning(self, first: HistoryEvent, copied: int) -> HistoryEvent:
        """The beginning of the new run with what it follows, and how much of it is a copy."""
        before = self.begun
        told = before.attrs.get("follows", {})
        same = first.instance_id == before.instance_id
        follows = {
            "command": self.command.type,
            "by": self.command.source,
            "event_id": self.command.id,
            "run": before.run,
            "since": told.get("since", before.run) if same else first.run,
            "copied": copied,
        }
        if copied:  # code that lives through it again must draw the same numbers
            follows["seed"] = told.get("seed", f"{before.instance_id}/{before.run}")
        parent = {} if self.parent is None else {"parent": self.parent}
        return replace(first, attrs={**_without(first.attrs, "parent"), **parent, "follows": follows})


def _following(command: WireEvent, events: Events) -> _Following:
    parents = [event.attrs["parent"] for event in events if "parent" in event.attrs]  # begun by one, adopted by others
    return _Following(command, events[0], parents[-1] if parents and command.type != w.FORK else None)


def _go_on(
    core: EngineCore,
    batch: Batch,
    received: Received,
    entry: Entry | None,
    prefix: Events,
    again: HistoryEvent | None,
    following: _Following,
) -> int:
    """Begins a run with `prefix` and gives its code the input `again`. Returns the run's number."""
    command = following.command
    assert command.subject is not None
    instance_id, part = command.subject, received.record.partition
    if entry is not None and entry.state.finished is not None:
        entry = None  # it ended in this batch
    if entry is not None:
        batch.record(entry, h.WORKFLOW_RESET, None, {"by": command.source, "event_id": command.id})
        core.evict(entry)
    run = core.next_run(batch, instance_id)
    copies = [
        offspring.moved(replace(event, instance_id=instance_id, run=run, seq=seq, attrs=_without(event.attrs, "eager")))
        for seq, event in enumerate((event for event in prefix if event.kind not in _LEFT_OUT), start=1)
    ]
    if not copies:
        assert again is not None
        first = replace(again, instance_id=instance_id, run=run, seq=1, at_us=batch.now_us)
        core.restart(batch, following.beginning(first, 0), part)
        channels.rejoin(batch, batch.touched[instance_id])
        _pass_on(batch, entry)
        return run
    copies[0] = following.beginning(copies[0], len(copies))
    new = core.renew(batch, copies, part)
    if again is not None and again.kind in _ASKED_ANEW:
        again = None
    channels.rejoin(batch, new)  # before the code goes on, which may publish to a channel that it listens to
    slots.rejoin(batch, new)  # before it ends, perhaps at once, and lets go
    _ask_again(batch, new, [event for event in copies if again is None or event.ref != again.ref])
    if again is None:
        core.awake(batch, new)
    else:
        core.deliver(batch, new, again.kind, again.ref, again.attrs, again.payload)
    _pass_on(batch, entry)
    return run


def _signalled_again(core: EngineCore, batch: Batch, instance_id: str, run: int, later: Events) -> None:
    """What people have told the instance since the point, nobody will tell it again."""
    for event in later:
        entry = core.entry(instance_id)
        if entry is None or entry.state.run != run:
            return  # it has ended, or recurred
        if event.kind == h.SIGNAL_RECEIVED:
            core.deliver(batch, entry, event.kind, event.ref, event.attrs, event.payload)


def _pass_on(batch: Batch, before: Entry | None) -> None:
    if before is not None:
        slots.pass_on(batch, before.state)


def _without(attrs: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if key != name} if name in attrs else attrs


def _ask_again(batch: Batch, entry: Entry, copies: Events) -> None:
    """What is open asks its question once more, under the new run."""
    state = entry.state
    for event in copies:
        opened = any(
            event.ref in open_
            for open_ in (state.activities, state.waits, state.receives, state.joining, state.children)
        ) or (event.kind == h.SLOT_ASKED and not state.slot_granted)
        if opened and event.kind in _QUESTIONS and not _backing_off(entry, event):
            batch.tell[event.kind](batch, entry, event)


_QUESTIONS = frozenset(
    {
        h.ACTIVITY_SCHEDULED,
        h.WAIT_STARTED,
        h.RECEIVE_STARTED,
        h.CHANNEL_SUBSCRIBED,
        h.GROUP_JOINING,
        h.CHILD_STARTED,
        h.SLOT_ASKED,
    }
)


_ASKED_ANEW = frozenset(
    {h.CHANNEL_JOINED, h.CHANNEL_REFUSED, h.GROUP_JOINED, h.GROUP_REFUSED, h.SLOT_GRANTED},
)
"""Answers that do not hold for the new run: the run before has left the channel again, or given its slot back."""


def _backing_off(entry: Entry, event: HistoryEvent) -> bool:
    activity = entry.state.activities.get(event.ref or "")
    return activity is not None and activity.next_attempt_us is not None


COMMANDS = {w.RESET: _reset, w.RETRY: _retry, w.FORK: _fork, w.DELETE: _delete}
