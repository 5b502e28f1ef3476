"""Tells listeners what was committed, and of attempts. Commits never wait for them: each listener has a queue of its
own with an end to it, and what it does wrong stays with it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import orjson

from romancy_stream.activity import ActivityInfo
from romancy_stream.engine import history as h
from romancy_stream.engine.commit import Commit
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.listening import Happening, Listener
from romancy_stream.runtime.sync_session import DaemonThreads

log = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 10_000
"""Happenings that one listener has not heard yet: some 5 MB, and a few seconds of a busy engine."""
CALL_LIMIT_S: Final = 30.0
"""For one call of a listener that is a coroutine. A thread cannot be ended; the queue ends instead."""
LEAVE_S: Final = 2.0
"""How long leaving waits for listeners to hear what is left."""
DROPS_TOLD: Final = 1_000
"""One line in the log for so many that were dropped."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_METHODS: Final = {
    h.WORKFLOW_STARTED: "on_workflow_started",
    h.WORKFLOW_COMPLETED: "on_workflow_completed",
    h.WORKFLOW_FAILED: "on_workflow_failed",
    h.WORKFLOW_CANCELLED: "on_workflow_cancelled",
    h.WORKFLOW_RECURRED: "on_workflow_recurred",
    h.WORKFLOW_RESET: "on_workflow_reset",
    h.WORKFLOW_PARKED: "on_workflow_parked",
    h.WORKFLOW_RESUMED: "on_workflow_resumed",
    h.ACTIVITY_SCHEDULED: "on_activity_scheduled",
    h.ACTIVITY_COMPLETED: "on_activity_completed",
    h.ACTIVITY_ATTEMPT_FAILED: "on_activity_attempt_failed",
    h.ACTIVITY_RETRIED: "on_activity_retried",
    h.ACTIVITY_FAILED: "on_activity_failed",
    h.EVENT_PUBLISHED: "on_event_published",
}


class Listeners:
    """Of one process. To be made, and closed, in the event loop that it tells."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._engine = [_Told(each) for each in listeners if _overridden(each, _METHODS.values())]
        of_attempts = ("on_activity_started", "on_activity_finished")
        self._attempts = [each for each in listeners if _overridden(each, of_attempts)]

    @property
    def hears_attempts(self) -> bool:
        return bool(self._attempts)

    @property
    def dropped(self) -> int:
        """Happenings that listeners have missed because they were too slow."""
        return sum(each.dropped for each in self._engine)

    async def close(self) -> None:
        await asyncio.gather(*[each.close() for each in self._engine])

    def on_commit(self, commit: Commit) -> None:
        """A commit of this process's processor, durable."""
        if not self._engine or not commit.history:
            return
        wanted = {kind for each in self._engine for kind in each.kinds}
        for happening in happenings(commit, wanted):
            for told in self._engine:
                told.put(happening)

    async def attempt_started(self, activity: ActivityInfo) -> None:
        for each in self._attempts:
            await _guarded(each, partial(each.on_activity_started, activity))

    async def attempt_finished(self, activity: ActivityInfo, outcome: str, error: BaseException | None) -> None:
        for each in reversed(self._attempts):
            await _guarded(each, partial(each.on_activity_finished, activity, outcome, error))


def _overridden(listener: Listener, names: Any) -> set[str]:
    return {name for name in names if getattr(type(listener), name) is not getattr(Listener, name)}


async def _guarded(listener: Listener, call: Callable[[], Awaitable[None] | None]) -> None:
    try:
        answer = call()
        if inspect.isawaitable(answer):
            async with asyncio.timeout(CALL_LIMIT_S):
                await answer
    except Exception:
        log.exception("listener %r failed; it changes nothing", listener)


class _Told:
    """One listener, its queue, and who empties it."""

    def __init__(self, listener: Listener) -> None:
        methods = _overridden(listener, _METHODS.values())
        self.kinds = frozenset(kind for kind, name in _METHODS.items() if name in methods)
        self.dropped = 0
        self._listener = listener
        self._queue: deque[Happening] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = DaemonThreads(1, f"romancy-{type(listener).__name__}")
        self._task = asyncio.create_task(self._run(), name="romancy-listener")

    def put(self, happening: Happening) -> None:
        if happening.kind not in self.kinds:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            if self.dropped % DROPS_TOLD == 0:
                log.warning("listener %r is too slow: it misses things, %d so far", self._listener, self.dropped + 1)
            self.dropped += 1
            return
        self._queue.append(happening)
        self._idle.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._tell(self._queue.popleft())
            self._idle.set()

    async def _tell(self, happening: Happening) -> None:
        method = getattr(self._listener, _METHODS[happening.kind])
        if inspect.iscoroutinefunction(method):
            await _guarded(self._listener, partial(method, happening))
            return
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._thread)
        await _guarded(self._listener, partial(in_thread, copy_context().run, method, happening))

    async def close(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._idle.wait()
        except TimeoutError:
            log.warning("listener %r has not heard all that was committed: %d left", self._listener, len(self._queue))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False)


# -- what is told ------------------------------------------------------------------------------------------------------
def happenings(commit: Commit, kinds: set[str]) -> list[Happening]:
    """Of a commit, in order."""
    workflows = {row.instance_id: row.workflow for row in (*commit.instances, *commit.updates)}
    names = {(row.instance_id, row.run, row.activity_id): (row.name, row.queue) for row in commit.activities}
    found = []
    for event in commit.happened():
        if event.kind not in kinds:
            continue
        details = _details(event)
        if event.kind.startswith("activity.") and event.ref is not None:
            key = (event.instance_id, event.run, event.ref)
            name, queue = names.get(key, (details.get("name"), details.get("queue")))
            details |= {"name": name, "queue": queue}
        workflow, at = workflows.get(event.instance_id, ""), _EPOCH + timedelta(microseconds=event.at_us)
        found.append(Happening(event.kind, event.instance_id, event.run, workflow, at, event.ref, details))
    return found


_KEPT: Final = {
    h.WORKFLOW_STARTED: ("version", "recurred"),
    h.WORKFLOW_FAILED: ("compensation_failed",),
    h.WORKFLOW_CANCELLED: ("compensation_failed",),
    h.WORKFLOW_RESET: ("by",),
    h.WORKFLOW_PARKED: ("code", "message"),
    h.ACTIVITY_SCHEDULED: ("name", "queue"),
    h.ACTIVITY_COMPLETED: ("attempt", "worker"),
    h.ACTIVITY_ATTEMPT_FAILED: ("attempt",),
    h.ACTIVITY_RETRIED: ("attempt",),
    h.ACTIVITY_FAILED: ("attempt", "reason"),
    h.EVENT_PUBLISHED: ("type", "source", "subject", "topic"),
}
_FAILURES: Final = frozenset({h.WORKFLOW_FAILED, h.ACTIVITY_ATTEMPT_FAILED, h.ACTIVITY_FAILED})


def _details(event: HistoryEvent) -> dict[str, Any]:
    attrs = event.attrs
    details = {name: attrs[name] for name in _KEPT.get(event.kind, ()) if name in attrs}
    if "duration_us" in attrs:
        details["duration_s"] = attrs["duration_us"] / 1_000_000
    if event.kind == h.WORKFLOW_STARTED:
        details |= {"source": attrs["event_source"], "id": attrs["event_id"]}
        if attrs.get("parent") is not None:
            details["parent_id"] = attrs["parent"]["id"]
    if event.kind in _FAILURES and event.payload is not None:
        error = orjson.loads(event.payload)
        details["error"] = {name: error.get(name) for name in ("type", "message")}
    if event.kind == h.WORKFLOW_CANCELLED and event.payload is not None:
        told = orjson.loads(event.payload)
        details |= {name: told.get(name) for name in ("reason", "by")}
    return details
