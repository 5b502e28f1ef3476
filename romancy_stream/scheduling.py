"""How clients look at schedules and manage them, and how an app sees to those that it declares. A schedule is an
instance of `schedule_workflow`: everything here is a start, an update or a query of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from romancy_stream.engine.payload import MAX_ENCODED_BYTES, encode_data
from romancy_stream.errors import BrokerUnavailableError, InstanceNotFoundError, StoreUnavailableError
from romancy_stream.interaction import Update
from romancy_stream.options import StartOptions
from romancy_stream.schedule import WORKFLOW_NAME, Schedule, ScheduleInfo, ScheduleState, schedule_id
from romancy_stream.schedule_times import as_datetime, as_us, next_after
from romancy_stream.schedule_workflow import ScheduleWorkflow
from romancy_stream.starting import Starting
from romancy_stream.store.database import finished
from romancy_stream.store.port import InstanceQuery
from romancy_stream.talking import Talking
from romancy_stream.workflow import Workflow

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_TIMEOUT_S: Final = 30.0
"""How long the engine may take to answer what is said to a schedule."""
LISTED_AT_ONCE: Final = 100
TRY_AGAIN_S: Final = 5.0
"""Between two attempts to declare schedules while nobody answers."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A schedule of an app. `input` is what the workflow is started with."""

    schedule: Schedule
    workflow: Workflow[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    start_paused: bool

    def ready(self) -> Schedule:
        """With its input, whose types must be there by now. TypeError for a wrong one, PayloadError."""
        raw = self.workflow.encode(*self.args, **self.kwargs)
        names = Schedule.__slots__
        given = {name: getattr(self.schedule, name) for name in names}
        return Schedule(**{**given, "input": None if raw is None else raw.decode()})


class Scheduling(Starting, Talking):
    """A part of every client. An app that is about to declare its schedules does that first."""

    _declaring: asyncio.Task[None] | None = None

    async def schedules(self) -> list[ScheduleInfo]:
        """All that there are, by name."""
        await self._when_declared()
        found, token = [], None
        while True:
            page = await self._store.list_instances(
                InstanceQuery(WORKFLOW_NAME, limit=LISTED_AT_ONCE, page_token=token, system=True)
            )
            for row in page.rows:
                if row.finished_us is None and row.workflow == WORKFLOW_NAME:
                    found.append(await self._described(row.instance_id))
            token = page.next_page_token
            if token is None:
                return sorted(found, key=lambda each: each.name)

    async def get_schedule(self, name: str) -> ScheduleInfo | None:
        """None for an unknown name."""
        await self._when_declared()
        row = await self._store.get_instance(schedule_id(name))
        return None if row is None or row.finished_us is not None else await self._described(row.instance_id)

    async def _described(self, instance_id: str) -> ScheduleInfo:
        state = await self.query(instance_id, ScheduleWorkflow.describe)
        return _info(state, await self._store.now_us())

    async def pause_schedule(self, name: str, note: str | None = None) -> None:
        """What is running goes on, nothing new begins. InstanceNotFoundError for an unknown name; TimeoutError."""
        await self._tell(name, ScheduleWorkflow.pause, note)

    async def resume_schedule(self, name: str) -> None:
        """From now on; the times of the pause are not made up for, see `backfill_schedule`."""
        await self._tell(name, ScheduleWorkflow.resume)

    async def trigger_schedule(self, name: str) -> str:
        """Starts an instance now, whatever is running or paused; returns its id."""
        return await self._tell(name, ScheduleWorkflow.trigger)

    async def backfill_schedule(self, name: str, start: datetime, end: datetime) -> int:
        """Starts an instance for each time in [start, end) that has passed and has none, whatever `overlap` says.
        Returns how many times there are. ValueError for naive datetimes; UpdateFailedError for too many."""
        return await self._tell(name, ScheduleWorkflow.backfill, as_us(start), as_us(end))

    async def delete_schedule(self, name: str) -> None:
        """Ends it; what it has started goes on. One that an app still declares is there again at its next start."""
        await self._tell(name, ScheduleWorkflow.end)
        await self._hub.wait(schedule_id(name), timeout_s=ANSWER_TIMEOUT_S, poll_interval_s=self._poll_interval_s)

    async def _tell(self, name: str, update: Update[..., T], *args: Any) -> T:
        await self._when_declared()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            try:
                return await self.update(schedule_id(name), update, *args)
            except InstanceNotFoundError:
                raise InstanceNotFoundError(f"there is no schedule {name!r}") from None

    async def _when_declared(self) -> None:
        if self._declaring is not None:
            await asyncio.wait({self._declaring}, timeout=ANSWER_TIMEOUT_S)

    # -- declaring -------------------------------------------------------------------------------------------------
    async def _declare_all(self, declared: Sequence[tuple[Schedule, bool]]) -> None:
        """Until all of them are as the app says. `bool`: whether a new one begins paused."""
        left = list(declared)
        while left:
            schedule, paused = left[0]
            try:
                await self._declare(schedule, paused)
            except (TimeoutError, BrokerUnavailableError, StoreUnavailableError) as error:
                log.warning("schedule %r is not declared yet: %r", schedule.name, error)
                await asyncio.sleep(TRY_AGAIN_S)
            else:
                del left[0]

    async def _declare(self, schedule: Schedule, paused: bool) -> None:
        instance_id = schedule_id(schedule.name)
        row = await finished(self._store.get_instance(instance_id))  # leaving the app cancels
        if row is None or row.finished_us is not None:
            data = first_state(schedule, paused)
            await self._start(WORKFLOW_NAME, data, StartOptions(instance_id, reuse="allow_finished"), None)
        elif (await finished(self.query(instance_id, ScheduleWorkflow.describe))).schedule == schedule:
            return
        # Also after a start: somebody else may have been first.
        await self.update(instance_id, ScheduleWorkflow.declare, schedule, timeout=ANSWER_TIMEOUT_S)


def first_state(schedule: Schedule, paused: bool) -> bytes:
    """What the workflow of a new schedule is started with."""
    state = ScheduleState(schedule, paused=paused)
    return encode_data(state, f"schedule {schedule.name!r}", MAX_ENCODED_BYTES) or b"null"


def _info(state: ScheduleState, now_us: int) -> ScheduleInfo:
    schedule = state.schedule
    next_us = None if state.paused else next_after(schedule, max(now_us, state.since_us or 0))
    return ScheduleInfo(
        schedule.name,
        schedule.workflow,
        schedule.cron,
        None if schedule.every_s is None else timedelta(seconds=schedule.every_s),
        schedule.timezone,
        schedule.overlap,
        timedelta(seconds=schedule.catch_up_s),
        state.paused,
        state.note,
        as_datetime(next_us, schedule.timezone),
        as_datetime(state.last_us, schedule.timezone),
        state.last_id,
        tuple(state.running),
        state.started,
        state.skipped,
        state.missed,
    )
