"""The workflow that a schedule is. It lives as any other one does: timers wake it, updates change it, what it starts
are its children, and it begins another run before its history gets long. Deterministic: it sees the time of the log."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import islice
from typing import Final

from romancy_stream.context import WorkflowContext
from romancy_stream.engine.children import ChildCall
from romancy_stream.interaction import query, update
from romancy_stream.schedule import WORKFLOW_NAME, Schedule, ScheduleState
from romancy_stream.schedule_times import between, next_after, stamp
from romancy_stream.workflow import workflow

STARTS_PER_RUN: Final = 200
"""After these another run begins: some 1,000 events of history, 10 ms of replay."""
BACKFILL_LIMIT: Final = 10_000
"""Instances of one backfill: a year of hours fits, a year of seconds is a mistake."""
COUNTED: Final = 1_000
"""Of times that were skipped at once: who skips more does not count them one by one."""


@workflow(name=WORKFLOW_NAME)
class ScheduleWorkflow:
    def __init__(self, ctx: WorkflowContext) -> None:
        self._scope = ctx._scope
        self._state: ScheduleState
        self._open: dict[str, None] = {}  # instances that another one must not overlap with
        self._ended: list[str] = []
        self._news = False
        self._over = False
        self._starts = 0  # in this run

    async def run(self, ctx: WorkflowContext, state: ScheduleState) -> None:
        self._state = state
        if state.since_us is None:
            state.since_us = self._scope.now_us()
        while not self._over:
            if self._turn(self._scope.now_us()):
                state.running = []
                await ctx.recur(state)
            self._news = False
            await self._rest(ctx)

    async def _rest(self, ctx: WorkflowContext) -> None:
        """Until something is due, has ended or was said."""
        due_us = None if self._state.paused or self._blocked else next_after(self._schedule, self._since_us)
        wait = None if due_us is None else timedelta(microseconds=due_us - self._scope.now_us())
        try:
            await ctx.wait_condition(lambda: self._news, timeout=wait)
        except TimeoutError:
            return

    # -- what is due -----------------------------------------------------------------------------------------------
    @property
    def _schedule(self) -> Schedule:
        return self._state.schedule

    @property
    def _since_us(self) -> int:
        assert self._state.since_us is not None
        return self._state.since_us

    @property
    def _blocked(self) -> bool:
        return self._schedule.overlap != "allow" and bool(self._open)

    @property
    def _spent(self) -> bool:
        return self._starts >= STARTS_PER_RUN

    def _turn(self, now_us: int) -> bool:
        """Starts what is due; says whether it is time for another run."""
        self._regular(now_us)  # first: what came due before an instance ended had to respect it
        for instance_id in self._ended:
            self._open.pop(instance_id, None)
        self._ended.clear()
        state = self._state
        if not (self._spent or self._open or state.buffered_us is None):
            due_us, state.buffered_us = state.buffered_us, None
            self._start_for(due_us)
        self._backfill()
        return self._spent and not self._open

    def _regular(self, now_us: int) -> None:
        state = self._state
        if state.paused:
            state.since_us = now_us
            return
        while not self._spent or self._blocked:
            if not self._blocked:
                self._miss(now_us)
            due_us = next_after(self._schedule, self._since_us)
            if due_us is None or due_us > now_us:
                return
            if self._blocked:
                self._skip(due_us, now_us)
                return
            state.since_us = due_us
            self._start_for(due_us)

    def _miss(self, now_us: int) -> None:
        """What passed too long ago."""
        horizon_us = now_us - round(self._schedule.catch_up_s * 1_000_000)
        if self._since_us < horizon_us:
            self._state.missed += self._count(horizon_us)
            self._state.since_us = horizon_us - 1

    def _skip(self, due_us: int, now_us: int) -> None:
        """What came due while another instance was running. The first of these may wait for its end."""
        state = self._state
        state.skipped += self._count(now_us + 1)
        if self._schedule.overlap == "buffer" and state.buffered_us is None:
            state.buffered_us = due_us
            state.skipped -= 1
        state.since_us = now_us

    def _count(self, until_us: int) -> int:
        return sum(1 for _ in islice(between(self._schedule, self._since_us, until_us), COUNTED))

    def _backfill(self) -> None:
        backfills = self._state.backfills
        while backfills and not self._spent:
            after_us, until_us = backfills.pop(0)
            for due_us in between(self._schedule, after_us, until_us):
                if self._spent:
                    backfills.insert(0, (after_us, until_us))
                    return
                self._start(self._id_of(due_us), due_us, alone=False)
                after_us = due_us

    # -- starting --------------------------------------------------------------------------------------------------
    def _id_of(self, due_us: int) -> str:
        return f"{self._schedule.name}-{stamp(due_us, seconds=self._schedule.every_s is not None)}"

    def _start_for(self, due_us: int) -> None:
        self._start(self._id_of(due_us), due_us, alone=self._schedule.overlap != "allow")

    def _start(self, instance_id: str, due_us: int, *, alone: bool) -> None:
        """One that exists already, from a backfill for instance, is not started again."""
        schedule, state = self._schedule, self._state
        data = b"null" if schedule.input is None else schedule.input.encode()
        child = self._scope.children.start(ChildCall(schedule.workflow, data, instance_id, "abandon", None))
        state.started += 1
        self._starts += 1
        if state.last_us is None or due_us >= state.last_us:
            state.last_us, state.last_id = due_us, instance_id
        if alone:
            self._open[instance_id] = None
            child.future.add_done_callback(lambda future: self._has_ended(instance_id, future))

    def _has_ended(self, instance_id: str, future: asyncio.Future[bytes]) -> None:
        self._ended.append(instance_id)
        self._news = True

    # -- what can be said to it ------------------------------------------------------------------------------------
    @update
    def declare(self, schedule: Schedule) -> bool:
        """Whether that is another one than before. Times that have passed are the business of the former."""
        if schedule == self._schedule:
            return False
        state = self._state
        state.schedule, state.since_us, state.buffered_us = schedule, self._scope.now_us(), None
        self._news = True
        return True

    @update
    def pause(self, note: str | None = None) -> None:
        self._state.paused, self._state.note, self._state.buffered_us = True, note, None
        self._news = True

    @update
    def resume(self) -> None:
        """From now on: what came due in the pause is not made up for."""
        state = self._state
        if state.paused:
            state.paused, state.note, state.since_us = False, None, self._scope.now_us()
        self._news = True

    @update
    def trigger(self) -> str:
        """An instance now, whatever is running. Returns its id."""
        now_us, state = self._scope.now_us(), self._state
        state.triggered += 1
        instance_id = f"{self._schedule.name}-{stamp(now_us, seconds=True)}-{state.triggered}"
        self._start(instance_id, now_us, alone=self._schedule.overlap != "allow")
        self._news = True
        return instance_id

    @update
    def backfill(self, start_us: int, end_us: int) -> int:
        """One instance for each time in [start, end) that has passed and has none, side by side. Returns how many times
        there are."""
        end_us = min(end_us, self._scope.now_us() + 1)
        count = sum(1 for _ in islice(between(self._schedule, start_us - 1, end_us), BACKFILL_LIMIT + 1))
        if count > BACKFILL_LIMIT:
            raise ValueError(f"schedule {self._schedule.name!r}: more than {BACKFILL_LIMIT:,} times in one backfill")
        if count:
            self._state.backfills.append((start_us - 1, end_us))
            self._news = True
        return count

    @update
    def end(self) -> None:
        """What it has started goes on."""
        self._over = self._news = True

    @query
    def describe(self) -> ScheduleState:
        self_ = self._state
        return ScheduleState(
            self_.schedule,
            self_.paused,
            self_.note,
            self_.since_us,
            self_.buffered_us,
            list(self_.backfills),
            self_.started,
            self_.skipped,
            self_.missed,
            self_.triggered,
            self_.last_us,
            self_.last_id,
            list(self._open),
        )
