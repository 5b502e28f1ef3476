"""Queues whose attempts begin at a rate, wherever they run: an entity on one partition hands out the times, evenly, in
the order in which it is asked. An attempt whose time has not come waits for it in the log, and holds nothing. Part of
the core.

    attempt is due ── "ask" ──► entity of the queue ── "turn" ──► now: its task goes out
                                                               └► later: activity.deferred, a timer, activity.released
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from romancy_stream.engine import history as h
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import SCHEDULED
from romancy_stream.engine.entity import Entity
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import TimerDue
from romancy_stream.engine.loop import LATEST_US
from romancy_stream.engine.mail import Mail
from romancy_stream.engine.projection import TURN_TIMER, ActivityState

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

ASK, TURN = "ask", "turn"


class Rate(Entity):
    """`head`: the last time that it handed out. Evenly: no span, wherever it begins, has more than the limit."""

    kind = "rate"
    lasting = True

    def told(self, batch: Batch, mail: Mail) -> None:
        every_us = mail.meta["every_us"]
        at_us = min(max(batch.now_us, self.head.get("at_us", 0) + every_us), LATEST_US)
        self.head = {"at_us": at_us}
        meta = {"attempt": mail.meta["attempt"], "at_us": at_us}
        batch.to_instance(self.part, Mail(TURN, mail.instance_id, self.name, mail.run, mail.ref, meta))


def _turn(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    activity = None if entry is None or entry.state.run != mail.run else entry.state.activities.get(mail.ref or "")
    if entry is None or activity is None or not _is_expected(entry, activity, mail.meta["attempt"]):
        core.stats["late_turn"] += 1  # it is lost: nobody else comes sooner
    elif mail.meta["at_us"] <= batch.now_us:
        batch.request(entry.state, activity, granted=True)
    else:
        batch.record(entry, h.ACTIVITY_DEFERRED, activity.activity_id, {"due_us": mail.meta["at_us"]})


def _is_expected(entry: Entry, activity: ActivityState, attempt: int) -> bool:
    waits = TURN_TIMER + activity.activity_id in entry.state.timers
    return activity.attempt == attempt and activity.status == SCHEDULED and not waits


def _due(core: EngineCore, batch: Batch, entry: Entry, due: TimerDue) -> None:
    batch.record(entry, h.ACTIVITY_RELEASED, due.timer_id.removeprefix(TURN_TIMER))


def _released(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    assert event.ref is not None
    batch.request(entry.state, entry.state.activities[event.ref], granted=True)


TELL = {h.ACTIVITY_RELEASED: _released}
OPS: dict[str, Any] = {TURN: _turn}
ENTITIES = {Rate.kind: Rate}
TIMERS = {TURN_TIMER: _due}
