"""`Listener`: what a program may want to hear of the engine and the workers in its own process, for metrics, traces and
alarms. Definitions alone; who calls them is in `runtime.listeners`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from romancy_stream.activity import ActivityInfo


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that is committed. `kind`, `ref` (an activity, for instance) and `at` are those of the event in the
    instance's history. `details` is small and depends on the kind; inputs and results are never in it."""

    kind: str
    instance_id: str
    run: int
    workflow_name: str
    at: datetime
    ref: str | None
    details: Mapping[str, Any]


class Listener:
    """Override what you want to hear of, with `def` or `async def`; add it by `app.add_listener(...)`.

    Each `Happening` is told after its commit, in the process whose engine made the commit, at most once: what a process
    has not told when it ends, nobody tells. For what must not be missed there is the topic of events. The engine never
    waits: a listener that is slower than the engine misses some, which is counted and logged. What a listener raises is
    logged. Methods of `def` run in a thread of the listener's own, those of `async def` in the app's event loop, one
    after the other.

    `on_activity_started` and `on_activity_finished` are of attempts that this process's worker runs. They run where the
    attempt does, before it and after it, whatever they take: context variables that they set are seen by the activity.
    """

    # -- what engines commit -------------------------------------------------------------------------------------
    def on_workflow_started(self, happening: Happening) -> Awaitable[None] | None:
        """details: source and id of what started it; parent_id, version, recurred where there is any. Not of runs that
        an operator has begun (see on_workflow_reset), but for those that begin anew."""
        return None

    def on_workflow_completed(self, happening: Happening) -> Awaitable[None] | None:
        return None

    def on_workflow_failed(self, happening: Happening) -> Awaitable[None] | None:
        """details: error {type, message}; compensation_failed where something could not be undone."""
        return None

    def on_workflow_cancelled(self, happening: Happening) -> Awaitable[None] | None:
        """details: reason, by; compensation_failed."""
        return None

    def on_workflow_recurred(self, happening: Happening) -> Awaitable[None] | None:
        return None

    def on_workflow_reset(self, happening: Happening) -> Awaitable[None] | None:
        """A run that was open is over, another one takes its place. details: by."""
        return None

    def on_workflow_parked(self, happening: Happening) -> Awaitable[None] | None:
        """details: code, message."""
        return None

    def on_workflow_resumed(self, happening: Happening) -> Awaitable[None] | None:
        return None

    def on_activity_scheduled(self, happening: Happening) -> Awaitable[None] | None:
        """Of all of activities: details has name and queue."""
        return None

    def on_activity_completed(self, happening: Happening) -> Awaitable[None] | None:
        """details: attempt; duration_s and worker where they are known."""
        return None

    def on_activity_attempt_failed(self, happening: Happening) -> Awaitable[None] | None:
        """It will be tried again. details: attempt, duration_s, error {type, message}."""
        return None

    def on_activity_retried(self, happening: Happening) -> Awaitable[None] | None:
        """Another attempt is asked for. details: attempt."""
        return None

    def on_activity_failed(self, happening: Happening) -> Awaitable[None] | None:
        """For good. details: attempt, reason, error {type, message}."""
        return None

    def on_event_published(self, happening: Happening) -> Awaitable[None] | None:
        """By workflow code. details: type; source, subject, topic where they were given."""
        return None

    # -- what workers do -----------------------------------------------------------------------------------------
    def on_activity_started(self, activity: ActivityInfo) -> Awaitable[None] | None:
        return None

    def on_activity_finished(
        self, activity: ActivityInfo, outcome: str, error: BaseException | None
    ) -> Awaitable[None] | None:
        """`outcome`: "completed"; "failed" by `error`; "resent": another execution of the attempt was first; "closed":
        nobody wants to know; "cut_off": the worker leaves."""
        return None
