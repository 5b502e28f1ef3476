"""The activity worker: reads tasks from the queues that it serves, runs the attempts side by side, sends what they
came to, and commits how far it is. It decides nothing about an attempt (`attempt` does) and nothing about retries
(the engine does).

A task may come twice, here or elsewhere, and an attempt may be cut off at any point; nothing is lost by that: an offset
is committed when the broker has the result, and what a transaction recorded is found again by its key.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from romancy_stream.activity import Activity
from romancy_stream.broker.port import TP, Broker, Record
from romancy_stream.engine.commit import COMPLETED, FAILED, ActivityKey, EagerTask, RecordedResult
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.tasks import Report, Task
from romancy_stream.errors import (
    ActivityError,
    BrokerUnavailableError,
    ConfigurationError,
    StoreUnavailableError,
)
from romancy_stream.queues import UNLIMITED, QueueOptions
from romancy_stream.runtime.attempt import CLOSED, RESENT, Attempt, Bench, Outcome, outcome_of
from romancy_stream.runtime.attempt_deadline import CANCEL_AGAIN_S
from romancy_stream.runtime.clock import DatabaseClock
from romancy_stream.runtime.listeners import Listeners
from romancy_stream.runtime.patience import as_long_as_it_takes
from romancy_stream.runtime.rest import wait_at_most
from romancy_stream.runtime.sealer import OPEN, Sealer
from romancy_stream.runtime.sync_session import DaemonThreads
from romancy_stream.runtime.worker_eager import ALONE_LIMIT, Eager
from romancy_stream.runtime.worker_lookup import has_past, look_up
from romancy_stream.runtime.worker_messages import Message, Messages, read_task
from romancy_stream.runtime.worker_offsets import Progress
from romancy_stream.runtime.worker_pace import Pace
from romancy_stream.runtime.worker_queue import TaskQueue, Waiting
from romancy_stream.runtime.worker_reports import Reports
from romancy_stream.runtime.worker_sending import Sender
from romancy_stream.runtime.worker_watch import Place, Running, Times, Watch
from romancy_stream.store.database import finished
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.malformed import Malformed

log = logging.getLogger(__name__)

CONCURRENCY: Final = 100
"""Attempts at a time. They mostly wait for other services; what they hold is little."""
THREADS: Final = 20
"""Threads for plain `def` activities: as many as there are connections in the pool of the database."""
UNREPORTED_LIMIT: Final = 1_000
"""Attempts that have ended and whose results the broker has not acknowledged: they need no slot any more, and travel
in larger batches than there are slots."""
FETCH_LIMIT: Final = 500
"""Tasks of one fetch: beyond some hundred the cost of a fetch is spread thin enough."""
TIDY_EVERY_S: Final = 0.5
"""How old an end may be before its offset is committed and its outbox row deleted. Well below the time after which the
engine takes a row for an orphan."""
TIDY_EVERY_TASKS: Final = 1_000
"""Ends after which that is done at once: what a crash would have done again."""
BACKOFF_S: Final = (0.1, 5.0)
"""First and longest pause before broker or database are asked again."""
CLOCK_EVERY_S: Final = 600.0
"""The database's time is asked for again, as this machine's drifts by seconds a day or was asleep."""
LEAVE_S: Final = 5.0
"""After the drain: for transactions to roll back and offsets to be committed."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """A snapshot. The counts are since the start. `completed` and `failed` attempts were reported, `resent` ones had
    a recorded result, `closed` ones were given up by the engine; `doubled` tasks joined one under way, `elsewhere`
    another worker has them; `refused` messages the broker will not take; `cut_off` attempts were under way when the
    worker left. `waiting` tasks are fetched and not begun; `detached` attempts run long."""

    running: int
    waiting: int
    detached: int
    unsent: bool
    rows_to_delete: int
    abandoned_threads: int
    completed: int
    failed: int
    resent: int
    closed: int
    doubled: int
    elsewhere: int
    malformed: int
    unknown: int
    refused: int
    cut_off: int


class ActivityWorker:
    """Serves `queues`, each as a member of the group `{namespace}.workers.{queue}`; `limits` by queue. The broker and
    the store are open and stay open for as long as it runs. An object for one life: `start`, then `stop`."""

    def __init__(
        self,
        broker: Broker,
        store: SqlStore,
        activities: Mapping[str, Activity[Any, Any]],
        *,
        namespace: str,
        queues: Sequence[str],
        partitions: int,
        worker_id: str,
        concurrency: int = CONCURRENCY,
        threads: int = THREADS,
        limits: Mapping[str, QueueOptions] | None = None,
        times: Times | None = None,
        sealer: Sealer = OPEN,
        listeners: Listeners | None = None,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("threads", threads), ("queues", len(queues))):
            if value < 1:
                raise ConfigurationError(f"an activity worker needs {name} of at least 1, not {value}")
        self.incarnation = uuid.uuid4().hex
        self._broker = broker
        self._store = store
        self._activities = activities
        self._concurrency = concurrency
        self._messages = Messages(namespace, partitions, worker_id, self.incarnation)
        self._clock = DatabaseClock()
        self._threads = DaemonThreads(threads, "romancy-activity")
        self._listeners = listeners
        self._sender = Sender(broker, store)
        self._bench = Bench(
            store,
            self._messages,
            self._clock,
            self._threads,
            itertools.count(1),
            self._sender.sent_rows,
            self._spawn_leftover,
            sealer,
        )
        topics, limits = self._messages.topics, limits or {}
        self._queues = [
            TaskQueue(broker, topics, partitions, queue, limits.get(queue, UNLIMITED), self._lost)
            for queue in dict.fromkeys(queues)
        ]
        self._by_name = {queue.name: queue for queue in self._queues}
        self.eager = Eager(self, alone=not broker.is_shared)
        self._reports = Reports(
            self._sender, self._messages, self._clock, self.eager.report, self._start, self._reported
        )
        self._numbers = itertools.count()
        self._looked_up: set[tuple[ActivityKey, int]] = set()  # taken ahead, and not in a queue yet
        self._running: dict[tuple[ActivityKey, int], Running] = {}
        self._watch = Watch(store, self.incarnation, self._messages.part_of, self._running, self._done, times)
        self._waiting: set[asyncio.Task[None]] = set()  # attempts and all else that ends by itself
        self.pace = Pace(concurrency, activities)
        self._executing = 0  # those of them whose attempt has not ended
        self._held_back = False  # not by those: by results that are not sent
        self._leftovers: set[asyncio.Task[None]] = set()
        self._consumers: set[asyncio.Task[None]] = set()
        self._tidier: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        self._ends = 0  # since the last tidying
        self._tidy = asyncio.Event()
        self._tidy_now = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._leaving = False
        self._set_clock_at_s = 0.0

    # -- life cycle ------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Raises StoreUnavailableError, BrokerUnavailableError."""
        self._clock.learn(await self._store.now_us())
        started = []
        try:
            for queue in self._queues:
                started.append(queue)
                await queue.open()
        except BaseException:
            for queue in started:
                await queue.close()
            raise
        self._consumers = {self._guarded(self._consume(each), f"romancy-tasks-{each.name}") for each in self._queues}
        self._tidier = {
            self._guarded(self._tidy_up_for_ever(), "romancy-worker-tidy"),
            self._guarded(self._watch.run(), "romancy-worker-watch"),
        }

    async def run(self) -> None:
        """Between `start` and `stop`: never returns; raises what the worker cannot go on after."""
        await asyncio.shield(self._failure)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Takes no more tasks, gives those under way `drain_s` to end, and cuts off the rest: those are delivered
        again, here or elsewhere. A thread that goes on is left to itself."""
        consumers, tidier = self._consumers, self._tidier
        self._consumers, self._tidier = set(), set()
        self._stopping = True
        await _end(consumers)
        for queue in self._queues:
            queue.clear()
        await self._drain(drain_s)
        self._leaving = True
        for running in self._running.values():
            if running.attempt is not None:
                running.attempt.leaving = True
        await self._cut_off()
        await _end(tidier)
        if tidier:
            await self._tidy_up()
            await self._watch.leave()
        for queue in self._queues:
            await queue.close()
        self._threads.shutdown()
        if not self._failure.done():
            self._failure.cancel()

    @property
    def _under_way(self) -> set[asyncio.Future[Any]]:
        return {*self._waiting, *self._sender.unanswered}

    async def _drain(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        while (under_way := self._under_way) and loop.time() < until_s:
            await asyncio.wait(under_way, timeout=until_s - loop.time())

    async def _cut_off(self) -> None:
        give_up_s = asyncio.get_running_loop().time() + LEAVE_S
        while (under_way := self._under_way) or self._leftovers:
            if asyncio.get_running_loop().time() > give_up_s:
                left = len(under_way | self._leftovers)
                log.error("%d attempts or their transactions did not end within %g s of leaving", left, LEAVE_S)
                return
            for each in under_way:
                each.cancel()
            await asyncio.wait(under_way | self._leftovers, timeout=CANCEL_AGAIN_S)
        for running in list(self._running.values()):  # of tasks that were cancelled before they began
            self._reported(running, None)

    def statistics(self) -> WorkerStatistics:
        counts = self._counts
        return WorkerStatistics(
            running=len(self._running),
            waiting=sum(queue.waiting for queue in self._queues),
            detached=self._watch.detached,
            unsent=not self._sender.ready.is_set(),
            rows_to_delete=len(self._sender.sent_rows),
            abandoned_threads=self._threads.abandoned,
            completed=counts[COMPLETED],
            failed=counts[FAILED],
            resent=counts[RESENT],
            closed=counts[CLOSED],
            doubled=counts["doubled"],
            elsewhere=counts["elsewhere"],
            malformed=counts["malformed"],
            unknown=counts["unknown"],
            refused=self._sender.refused,
            cut_off=counts["cut_off"],
        )

    def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A failure of `work` is one of the worker."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._notice)
        return task

    def _notice(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        log.error("the activity worker fails", exc_info=error)
        if not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # whoever calls `run` hears it; it has been logged

    def _spawn_leftover(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._guarded(work, "romancy-attempt-leftover")
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    # -- taking tasks ------------------------------------------------------------------------------------------------
    async def _consume(self, queue: TaskQueue) -> None:
        pause_s = BACKOFF_S[0]
        while True:
            await self._sender.ready.wait()
            queue.space.clear()
            if not queue.room:
                await queue.space.wait()
                continue
            try:
                records = await queue.fetch(min(queue.room, FETCH_LIMIT))
            except BrokerUnavailableError as error:
                log.warning("queue %r: no tasks for now: %s", queue.name, error)
                await queue.close()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, BACKOFF_S[1])
                continue
            pause_s = BACKOFF_S[0]
            await self._take(queue, records)

    async def _take(self, queue: TaskQueue, records: Sequence[Record]) -> None:
        """Only the question for what is known of them waits."""
        taken: list[tuple[Task, Progress, int]] = []
        for record in records:
            progress = queue.progress.get(TP(record.topic, record.partition))
            if progress is None:
                continue  # it went to somebody else while it was on its way to us
            progress.taken(record.offset)
            task = read_task(record)
            if isinstance(task, Malformed):
                self._start(self._quarantine(record, task, progress))
            elif not self._joined(task, progress, record.offset):
                taken.append((task, progress, record.offset))
        known = await look_up(
            self._store,
            [task for task, progress, offset in taken if offset < progress.end],
            [task for task, progress, offset in taken if offset >= progress.end],
        )
        for task, progress, offset in taken:
            if queue.progress.get(progress.tp) is not progress:
                continue
            if known.elsewhere(task):
                self._counts["elsewhere"] += 1
                self._done([(progress, offset)])
            else:
                waiting = Waiting(task, progress, offset, known.results.get(task.key), known.details(task))
                queue.add(waiting, next(self._numbers))
        self._begin()

    async def _lost(self, lost: Sequence[Progress]) -> None:
        """Who gets these partitions finds what is under way here, and leaves it to us."""
        places = set(lost)
        under_way = [each for each in self._running.values() if any(progress in places for progress, _ in each.places)]
        await self._watch.keep(under_way)

    def _joined(self, task: Task, progress: Progress | None, offset: int) -> bool:
        """Whether it is under way here already."""
        running = self._running.get(task.identity)
        if running is None:
            return False
        self._counts["doubled"] += 1
        if progress is not None:
            running.places.append((progress, offset))
            if running.detached is not None:
                self._done([(progress, offset)])
        return True

    # -- tasks of an engine in this process: see `worker_eager` --------------------------------------------------------
    @property
    def queues(self) -> Sequence[TaskQueue]:
        return self._queues

    @property
    def free(self) -> int:
        """Attempts that could begin at once, less the tasks that wait for it; negative when many wait."""
        if self._stopping or not self._sender.ready.is_set():
            return -ALONE_LIMIT
        waiting = len(self._looked_up) + sum(queue.waiting for queue in self._queues)
        return self._concurrency - self._executing - waiting

    def part_of(self, instance_id: str) -> int:
        return self._messages.part_of(instance_id)

    def take_ahead(self, tasks: Sequence[EagerTask]) -> None:
        for each in tasks:
            queue, waiting = self._by_name[each.queue], Waiting(each.task, None, 0)
            if has_past(each.task):
                self._looked_up.add(each.task.identity)
                self._start(self._take_with_past(queue, waiting))
            else:
                queue.add(waiting, next(self._numbers))
        self._begin()

    async def _take_with_past(self, queue: TaskQueue, waiting: Waiting) -> None:
        known = await look_up(self._store, [], [waiting.task])
        if waiting.task.identity in self._looked_up:  # else it was dropped
            self._looked_up.remove(waiting.task.identity)
            queue.add(replace(waiting, details=known.details(waiting.task)), next(self._numbers))
            self._begin()

    def drop_waiting(self, identities: set[tuple[ActivityKey, int]]) -> set[tuple[ActivityKey, int]]:
        looked_up = identities & self._looked_up
        self._looked_up -= looked_up
        return looked_up | {dropped for queue in self._queues for dropped in queue.drop(identities)}

    async def keep(self, identities: set[tuple[ActivityKey, int]]) -> None:
        """See `Watch.keep`."""
        await self._watch.keep([each for identity, each in self._running.items() if identity in identities])

    def send_reports(self, reports: Sequence[Report]) -> None:
        self._start(self._send_reports(reports))

    async def _send_reports(self, reports: Sequence[Report]) -> None:
        refusals = await self._sender.deliver([self._messages.to_engine(report) for report in reports])
        for report, refusal in zip(reports, refusals, strict=True):
            if refusal is not None:
                log.error("%s: the broker refuses the report for good: %s", report.task, refusal)
                await self._reports.refused(report, refusal)

    # -- beginning them ----------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        """As many as there is room for, the most urgent first."""
        room = self._room
        while room > 0:
            queue = self._next_queue()
            if queue is None:
                self._held_back = False
                return
            waiting = queue.take()
            task = waiting.task
            if self._joined(task, waiting.progress, waiting.offset):
                continue
            now_s = asyncio.get_running_loop().time()
            places = [] if waiting.progress is None else [(waiting.progress, waiting.offset)]
            running = self._running[task.identity] = Running(task, places, now_s)
            self._executing += 1
            self.pace.began(task.name)
            queue.allowance.begin(now_s)
            self._start(self._work(queue, waiting, running))
            room -= 1
        self._held_back = self._executing < self._concurrency

    @property
    def _room(self) -> int:
        """For so many attempts that can be started, and whose results can be sent."""
        if self._stopping or not self._sender.ready.is_set():
            return 0
        unreported = len(self._waiting) + self._sender.unreported - self._executing
        return min(self._concurrency - self._executing, UNREPORTED_LIMIT - unreported)

    def _next_queue(self) -> TaskQueue | None:
        """That of the most urgent task that may begin now."""
        loop = asyncio.get_running_loop()
        found: TaskQueue | None = None
        place = (0, 0)
        for queue in self._queues:
            first = queue.first()
            if first is None or (found is not None and first > place):
                continue
            wait_s = queue.allowance.wait_s(loop.time())
            if wait_s <= 0:
                found, place = queue, first
            elif queue.wake is None or queue.wake.when() <= loop.time():
                queue.wake = loop.call_later(wait_s, self._begin)
        return found

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # Not asyncio.create_task, which in Python 3.11 makes another name first.
        task = asyncio.get_running_loop().create_task(work, name="romancy-attempt")
        self._waiting.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        self._notice(task)
        if self._held_back:  # else `_work` has seen to it
            self._begin()

    # -- one task ------------------------------------------------------------------------------------------------------
    async def _work(self, queue: TaskQueue, waiting: Waiting, running: Running) -> None:
        task = waiting.task
        try:
            try:
                outcome = await self._outcome(queue, waiting, running)
            finally:
                self._executing -= 1
                self.pace.ended(task.name, asyncio.get_running_loop().time() - running.started_s)
                queue.allowance.end()
                self._begin()
            await self._reports.report(running, outcome)
        except asyncio.CancelledError:
            self._reported(running, None)
        except BaseException:
            del self._running[task.identity]
            raise

    def _reported(self, running: Running, outcome: Outcome | None) -> None:
        """None: it was cut off."""
        task = running.task
        del self._running[task.identity]
        if outcome is not None:
            self._counts[outcome.kind] += 1
            self._watch.ended(running)
            self.eager.ended(task)
            self._done(running.places)
        elif self._leaving:
            self._counts["cut_off"] += 1
            self._watch.cut_off(running)
            log.info("cut off, to be delivered again: %s", task)
        else:
            self._fail(RuntimeError(f"somebody cancelled the task of an attempt: {task}"))
        if self._held_back:
            self._begin()

    async def _outcome(self, queue: TaskQueue, waiting: Waiting, running: Running) -> Outcome:
        task = waiting.task
        if waiting.found is not None:
            return await self._known(task, waiting.found)
        activity = self._activities.get(task.name)
        if activity is None:
            return self._unknown(queue, task)
        running.attempt = attempt = Attempt(self._bench, task, activity, queue.name, waiting.details)
        try:
            return await (attempt.run() if self._listeners is None else self._told(attempt))
        finally:
            attempt.forget_error()

    async def _told(self, attempt: Attempt) -> Outcome:
        assert self._listeners is not None
        info, kind = attempt.info, "cut_off"
        await self._listeners.attempt_started(info)
        try:
            outcome = await attempt.run()
            kind = outcome.kind
            return outcome
        finally:
            await self._listeners.attempt_finished(info, kind, attempt.error)

    async def _known(self, task: Task, found: RecordedResult) -> Outcome:
        return await as_long_as_it_takes(
            lambda: finished(outcome_of(self._bench, task, found)), f"{task}: a recorded result waits for the database"
        )

    def _unknown(self, queue: TaskQueue, task: Task) -> Outcome:
        """Another version of the worker may know it."""
        self._counts["unknown"] += 1
        message = (
            f"worker {self._messages.worker_id} serves the queue {queue.name!r} but has no activity {task.name!r}: "
            "register it there, or give it a queue= that only workers serve that have it"
        )
        log.error(message)
        error = encode_error(ActivityError(message), retryable=True)
        return Outcome(FAILED, self._messages.failed(task, error, 0, self._clock.now_us()))

    async def _quarantine(self, record: Record, problem: Malformed, progress: Progress) -> None:
        log.error("%s/%d@%d is no task: %s", record.topic, record.partition, record.offset, problem.message)
        self._counts["malformed"] += 1
        letter: Message = self._messages.dead_letter(record, problem, self._clock.now_us())
        await self._sender.deliver([letter])
        self._done([(progress, record.offset)])

    # -- how far we are ------------------------------------------------------------------------------------------------
    def _done(self, places: Sequence[Place]) -> None:
        for progress, offset in places:
            progress.done(offset)
        self._ends += 1
        self._tidy.set()
        if self._ends >= TIDY_EVERY_TASKS:
            self._tidy_now.set()

    async def _tidy_up_for_ever(self) -> None:
        while True:
            await self._tidy.wait()
            await wait_at_most(self._tidy_now, TIDY_EVERY_S)
            self._tidy.clear()
            self._tidy_now.clear()
            self._ends = 0
            await self._tidy_up()
            await self._set_clock()
            if self._sender.sent_rows:
                self._tidy.set()

    async def _set_clock(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._set_clock_at_s:
            return
        self._set_clock_at_s = now_s + CLOCK_EVERY_S
        try:
            self._clock.learn(await finished(self._store.now_us()))
        except StoreUnavailableError as error:
            log.info("the clock stays as it is: %s", error)

    async def _tidy_up(self) -> None:
        for queue in self._queues:
            await queue.commit(queue.progress.values())
        await self._sender.delete_sent()
        try:
            await self._watch.attach()
        except StoreUnavailableError as error:
            log.info("attempts that have ended stay recorded as detached for now: %s", error)


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancels again and again: a driver may lose a cancellation."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)
