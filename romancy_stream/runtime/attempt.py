"""One attempt of an activity, from the task to what is to be sent. It is the `AttemptBackend` behind the user's `ctx`,
and it alone decides what an attempt's end means: the result and everything that belongs to it in one transaction, or
a failure and nothing else. Sends nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncSession

from romancy_stream.activity import Activity, ActivityContext, ActivityInfo
from romancy_stream.engine.commit import COMPLETED, FAILED, RecordedResult
from romancy_stream.engine.definitions import Publication
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.sealing import is_sealed
from romancy_stream.engine.tasks import Report, Task, result_id
from romancy_stream.errors import (
    ActivityCancelledError,
    ActivityContextError,
    ActivityError,
    ActivityTimeoutError,
    CommitUnknownError,
    PayloadError,
    RetryLaterError,
    StoreUnavailableError,
)
from romancy_stream.retry import RetryPolicy
from romancy_stream.runtime.attempt_deadline import Deadline
from romancy_stream.runtime.attempt_heartbeats import Heartbeats
from romancy_stream.runtime.attempt_transaction import AttemptTransaction
from romancy_stream.runtime.clock import DatabaseClock
from romancy_stream.runtime.sealer import OPEN, Sealer
from romancy_stream.runtime.sync_session import DaemonThreads, LoopBridge, in_bridge, wait_in_thread
from romancy_stream.runtime.worker_messages import Message, Messages
from romancy_stream.store.database import finished
from romancy_stream.store.failures import is_unavailable
from romancy_stream.store.port import WorkerOutboxRow
from romancy_stream.store.results import record_result
from romancy_stream.store.sql import SqlStore
from romancy_stream.wire.value import value

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

log = logging.getLogger(__name__)
T = TypeVar("T")

CLOSED: Final = "closed"
RESENT: Final = "resent"

EVENTS_LIMIT: Final = 10_000
"""Events of one attempt: they wait in memory and become rows of one transaction."""
ON_COMMIT_LIMIT_S: Final = 30.0
"""A callback that hangs must not keep the result from the workflow."""
LOOK_PAUSE_S: Final = (0.1, 5.0)
"""First and longest pause before the database is asked again whether a commit happened."""
VAULT_PATIENCE_S: Final = 30.0
"""How long a result whose transaction is open waits for the store of payloads."""
UNREADABLE_PAUSE_S: Final = 30.0
"""Before another attempt at an activity whose arguments this worker cannot read. With the usual five attempts there are
two minutes to give all workers a new key."""
LEFTOVERS_LIMIT: Final = 1_000
"""Rows of a partition that are looked through for what another worker left to send."""


@value
class Outcome:
    """`kind`: COMPLETED, FAILED, RESENT (somebody's recorded result) or CLOSED (nobody wants to know). `events` go out
    and are acknowledged before `report`. `rows` are the outbox rows that hold both, in that order, or empty."""

    kind: str
    report: Report | None = None
    events: Sequence[Message] = ()
    rows: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class Bench:
    """What all attempts of a worker share. `sent_rows`: outbox rows that are done with though they are still there.
    `spawn` runs what an attempt leaves behind."""

    store: SqlStore
    messages: Messages
    clock: DatabaseClock
    threads: DaemonThreads
    sequence: Iterator[int]
    sent_rows: Container[tuple[str, int]]
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    sealer: Sealer = OPEN


class Attempt:
    """`queue`: where the task came from. `details`: those of the last heartbeat before it."""

    def __init__(
        self, bench: Bench, task: Task, activity: Activity[Any, Any], queue: str, details: bytes | None = None
    ) -> None:
        self.task = task
        self.leaving = False  # set before the worker cancels: then nothing is reported
        self.heartbeat_details = details
        self._bench = bench
        self._activity = activity
        self._queue = queue
        self._bridge = LoopBridge(bench.threads.returned)
        self._transaction = AttemptTransaction(bench.store.db.engine, task)
        self._published: list[Publication] = []
        self._messages: list[Message] = []
        self._blobs: dict[str, bytes] = {}  # of what it has published and returned, not yet kept
        self._on_commit: list[Callable[[], Awaitable[None] | None]] = []
        self._ended = False
        self._unwanted = False  # the engine has given it up: nobody wants to hear of it
        self.error: BaseException | None = None  # why it failed
        self._heartbeats: Heartbeats | None = None
        self._started_ns = 0
        self._deadline: Deadline | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()  # that of the loop

    # -- the backend of ctx ----------------------------------------------------------------------------------------
    def session(self) -> AsyncSession:
        self._require_transaction()
        return self._transaction.session

    def sync_session(self) -> Session:
        self._require_transaction()
        if not in_bridge():
            raise ActivityContextError("ctx.session belongs to the thread of the activity, not to other threads")
        session = self._transaction.session
        # Now, in the loop: the pool of connections belongs to it.
        wait_in_thread(session.connection())
        return session.sync_session

    def publish(self, publication: Publication) -> None:
        self._require_running()
        if len(self._messages) >= EVENTS_LIMIT:
            raise ActivityContextError(f"an attempt may publish {EVENTS_LIMIT:,} events, not more")
        bench, number = self._bench, len(self._messages) + 1
        if publication.channel is not None and publication.data is not None:
            what = f"a message on channel {publication.channel!r}"
            publication = replace(publication, data=bench.sealer.sealing.seal(publication.data, what, self._blobs))
        self._messages.append(bench.messages.published(self.task, number, publication, bench.clock.now_us()))

    def on_commit(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        self._require_running()
        self._on_commit.append(callback)

    def heartbeat(self, details: bytes | None) -> None:
        if threading.get_ident() == self._thread:
            self._require_running()
            self._beating().beat(details)
        else:
            self._require_wanted()
            self._beating().beat_from_thread(details)

    @property
    def cancelled(self) -> bool:
        return self._unwanted or self.leaving or self._ended

    def call_plain(self, function: Callable[[], T]) -> T:
        self._require_wanted()
        if self._deadline is not None and self._deadline.timeout_s is not None and not self._activity.is_async:
            self._loop.call_soon_threadsafe(self._deadline.begin)
        return self._bridge.call(function)

    def _require_wanted(self) -> None:
        if self._unwanted:
            raise ActivityCancelledError(f"the activity was cancelled ({self.task})")
        if self.leaving or self._ended:
            raise ActivityCancelledError(f"the attempt is over, or its worker leaves ({self.task})")

    def _beating(self) -> Heartbeats:
        if self._heartbeats is None:
            bench = self._bench
            self._heartbeats = Heartbeats(
                bench.store, self.task, self.heartbeat_details, self.not_wanted, bench.spawn, self._loop
            )
        return self._heartbeats

    def not_wanted(self) -> None:
        """The engine has given the attempt up: it is cancelled, and nothing is reported. A thread cannot be ended; it
        hears of it when it looks."""
        if self._ended or self._unwanted:
            return
        self._unwanted = True
        log.info("given up by the engine: %s", self.task)
        if self._deadline is not None and self._activity.is_async:
            self._deadline.cancel()

    def _require_transaction(self) -> None:
        self._require_running()
        if not self._activity.transactional:
            raise ActivityContextError(f"activity {self.task.name!r} has no session: it is transactional=False")

    def _require_running(self) -> None:
        if self._ended:
            raise ActivityContextError(f"the attempt has ended ({self.task}): its ctx cannot be used any more")

    # -- the attempt -----------------------------------------------------------------------------------------------
    @property
    def info(self) -> ActivityInfo:
        task = self.task
        return ActivityInfo(
            task.key.instance_id,
            task.key.run,
            task.key.activity_id,
            task.name,
            task.attempt,
            self._queue,
            task.workflow,
        )

    async def run(self) -> Outcome:
        """Raises CancelledError when the worker is `leaving`, and nothing else that is not a bug."""
        self._started_ns = time.perf_counter_ns()
        try:
            result = self._sealed(await self._call())
            if self._blobs:
                await self._keep_blobs()
        except BaseException as error:
            self._ended = True
            await self._discard()
            if isinstance(error, KeyboardInterrupt):
                raise
            if self._heartbeats is not None:
                await self._heartbeats.end(failed=not self._unwanted)
            if self.leaving:
                raise asyncio.CancelledError from error
            if self._unwanted:
                return Outcome(CLOSED)
            self.error = _explained(error)
            return await self._failed(self.error)
        self._ended = True
        if self._heartbeats is not None:
            await self._heartbeats.end(failed=False)
        return await self._succeeded(result)

    def forget_error(self) -> None:
        """When everybody has been told. Its frames hold the attempt, and those of a database driver hold the error: in
        such a circle all that the activity worked with would wait for the garbage collector, which comes seldom."""
        if self.error is None:
            return
        errors: list[BaseException | None] = [self.error]
        seen = set[int]()
        self.error = None
        while errors:
            error = errors.pop()
            if error is not None and id(error) not in seen:
                seen.add(id(error))
                error.__traceback__ = None
                errors += [error.__cause__, error.__context__]

    async def _call(self) -> bytes:
        task, activity = self.task, self._activity
        ctx = ActivityContext(self.info, self)
        deadline = self._deadline = Deadline(task.options.timeout_s)
        try:
            args = await self._opened(task.args) if is_sealed(task.args) else task.args
            if activity.is_async:  # that of a plain function begins when it has a thread
                deadline.begin()
            if task.options.heartbeat_timeout_s is not None:
                self._beating().beat(None)  # the engine waits for heartbeats from here on
            result = await activity.run_attempt(ctx, args, executor=self._bench.threads)
        except BaseException as error:
            if deadline.expired and not self.leaving:
                raise self._timed_out() from error
            raise
        finally:
            deadline.end()
        if deadline.expired:  # the function took no notice
            raise self._timed_out()
        if self._unwanted:
            raise ActivityCancelledError(f"it took no notice of being cancelled ({task})")
        return result

    # -- payloads that are sealed ----------------------------------------------------------------------------------
    async def _opened(self, args: bytes) -> bytes:
        try:
            return await self._patiently(lambda: self._bench.sealer.open(args))
        except PayloadError as error:
            # Another worker may have the key, and this one have it soon: no time to lose attempts quickly.
            raise RetryLaterError(UNREADABLE_PAUSE_S, f"the arguments cannot be read: {error}") from error

    def _sealed(self, result: bytes) -> bytes:
        return self._bench.sealer.sealing.seal(result, f"activity {self.task.name!r}, result", self._blobs)

    async def _keep_blobs(self) -> None:
        """Those that the result refers to, and the messages of the attempt."""
        # A transaction holds locks, and is done again without harm. What leaves no other trace is not done twice.
        limit_s = VAULT_PATIENCE_S if self._transaction.is_open else None
        await self._patiently(lambda: self._bench.sealer.vault.put(self._blobs), limit_s)

    async def _patiently(self, ask: Callable[[], Awaitable[T]], limit_s: float | None = None) -> T:
        """As long as the vault is away, or for `limit_s`: StoreUnavailableError."""
        give_up_s = None if limit_s is None else self._loop.time() + limit_s
        pause_s = LOOK_PAUSE_S[0]
        while True:
            try:
                return await ask()
            except StoreUnavailableError as error:
                if give_up_s is not None and self._loop.time() >= give_up_s:
                    raise
                log.warning("%s waits for the store of payloads: %s", self.task, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_PAUSE_S[1])
            if self._unwanted:
                raise ActivityCancelledError(f"the activity was cancelled ({self.task})")

    def _timed_out(self) -> ActivityTimeoutError:
        activity_id, timeout_s = self.task.key.activity_id, self.task.options.timeout_s
        return ActivityTimeoutError(f"activity {activity_id} did not finish within its timeout of {timeout_s:g} s")

    @property
    def _duration_us(self) -> int:
        return (time.perf_counter_ns() - self._started_ns) // 1_000

    async def _discard(self) -> None:
        """Rolls back. A thread that goes on is left behind, and the transaction with it."""
        running = self._bridge.close()
        if running:
            log.warning("%s: given up, but its thread cannot be ended and goes on", self.task)
            for _ in range(running):
                self._bench.threads.abandon()
            self._bench.spawn(self._abandon())
        elif self._transaction.is_open:
            await finished(self._transaction.roll_back())

    async def _abandon(self) -> None:
        await self._bridge.quiet()
        await self._transaction.abandon()

    # -- failure ---------------------------------------------------------------------------------------------------
    async def _failed(self, error: BaseException) -> Outcome:
        if self._transaction.is_open:
            # It may have failed because another execution of the same task was first.
            try:
                standing = await self._standing()
            except StoreUnavailableError as unavailable:
                log.info("%s: cannot look for another result: %s", self.task, unavailable)
                standing = None
            if standing is not None:
                return standing
        return self._report(error, self._is_retryable(error))

    def _report(self, error: BaseException, retryable: bool) -> Outcome:
        encoded = encode_error(error, retryable=retryable)
        bench = self._bench
        return Outcome(FAILED, bench.messages.failed(self.task, encoded, self._duration_us, bench.clock.now_us()))

    def _is_retryable(self, error: BaseException) -> bool:
        policy = self.task.options.policy
        if isinstance(error, ActivityTimeoutError | RetryLaterError) or _is_infrastructure(error):
            policy = RetryPolicy(do_not_retry_on=policy.do_not_retry_on)
        return policy.is_retryable(error)

    # -- success ---------------------------------------------------------------------------------------------------
    async def _succeeded(self, result: bytes) -> Outcome:
        if self._transaction.is_open or (self._messages and self._activity.transactional):
            outcome = await finished(self._commit(result))
        else:
            self._bridge.close()
            bench = self._bench
            report = bench.messages.completed(self.task, result, self._duration_us, bench.clock.now_us())
            outcome = Outcome(COMPLETED, report, self._messages)
        if outcome.kind == COMPLETED and self._on_commit:
            await self._call_back()
        return outcome

    async def _commit(self, result: bytes) -> Outcome:
        for _ in range(self._bridge.close()):
            self._bench.threads.abandon()
        await self._bridge.quiet()
        bench, task = self._bench, self.task
        now_us = bench.clock.now_us()
        record = RecordedResult(task.key, task.attempt, COMPLETED, result, bench.messages.worker_id, now_us)
        report = bench.messages.recorded(task, record, self._duration_us)
        rows = self._rows([*self._messages, bench.messages.to_engine(report)], now_us)
        committed = Outcome(COMPLETED, report, self._messages, [(row.incarnation, row.seq) for row in rows])
        try:
            if await self._transaction.commit(lambda connection: record_result(connection, record, rows)):
                return committed
            standing = await self._until_it_answers(self._standing)
        except CommitUnknownError as error:
            standing = await self._until_it_answers(lambda: self._standing(record, committed))
            return standing or self._report(error, True)
        except Exception as error:
            return await self._failed(error)
        return standing or self._report(_vanished(task), True)

    def _rows(self, messages: Sequence[Message], now_us: int) -> list[WorkerOutboxRow]:
        bench = self._bench
        part = bench.messages.part_of(self.task.key.instance_id)
        return [
            WorkerOutboxRow(
                bench.messages.incarnation, next(bench.sequence), part, now_us, m.topic, m.key, m.headers, m.value
            )
            for m in messages
        ]

    async def _call_back(self) -> None:
        for callback in self._on_commit:
            try:
                answer = callback()
                if inspect.isawaitable(answer):
                    async with asyncio.timeout(ON_COMMIT_LIMIT_S):
                        await answer
            except Exception:
                log.exception("%s: on_commit callback %r failed; what was committed stays", self.task, callback)

    # -- somebody was first ----------------------------------------------------------------------------------------
    async def _standing(self, mine: RecordedResult | None = None, committed: Outcome | None = None) -> Outcome | None:
        """What follows from the row in activity_results, None when there is none. `committed`: if it is `mine`."""
        found = (await self._bench.store.results([self.task.key])).get(self.task.key)
        if found is None:
            return None
        if mine is not None and (found.attempt, found.worker, found.at_us) == (mine.attempt, mine.worker, mine.at_us):
            return committed
        return await outcome_of(self._bench, self.task, found)

    async def _until_it_answers(self, look: Callable[[], Awaitable[T]]) -> T:
        pause_s = LOOK_PAUSE_S[0]
        while True:
            try:
                return await look()
            except StoreUnavailableError as error:
                log.warning("%s: committed or not? The database does not answer: %s", self.task, error)
            if self.leaving:
                raise asyncio.CancelledError
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_PAUSE_S[1])


async def outcome_of(bench: Bench, task: Task, found: RecordedResult) -> Outcome:
    """Of a task whose activity has a recorded result. What its worker left to send goes first: events of an activity
    are acknowledged before its result."""
    if found.outcome == CLOSED:
        return Outcome(CLOSED)
    report = bench.messages.recorded(task, found, None)
    part = bench.messages.part_of(task.key.instance_id)
    rows = await bench.store.worker_outbox([part], bench.clock.now_us() + 1, LEFTOVERS_LIMIT)
    left = [
        Message(row.topic, row.key, row.headers, row.value, None)
        for row in sorted(rows, key=lambda row: (row.incarnation, row.seq))
        if row.key == task.key.instance_id and (row.incarnation, row.seq) not in bench.sent_rows
    ]
    return Outcome(RESENT, report, [message for message in left if message.id != result_id(task)])


def _explained(error: BaseException) -> BaseException:
    """Nobody but the worker may cancel an attempt or end the process."""
    if isinstance(error, Exception):
        return error
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
    explained = ActivityError(f"the activity raised {type(error).__name__}: {error}")
    explained.__cause__ = error
    return explained


def _vanished(task: Task) -> BaseException:
    return ActivityError(f"another result of {task} was in the way, and is gone")


def _is_infrastructure(error: BaseException) -> bool:
    """Nothing that the activity did: a database that is away, a deadlock, a serialization failure."""
    if isinstance(error, StoreUnavailableError | CommitUnknownError):
        return True
    return isinstance(error, exc.DBAPIError | exc.TimeoutError) and is_unavailable(error)
