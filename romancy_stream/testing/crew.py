"""The workers of the environment: every task that a commit sends is an attempt here, of the activity's own function or
of a mock, with the same rules for arguments, results, errors and transactions as in a worker process. Attempts run in
the event loop beside the test; a mock may take its time by the environment's clock.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from heapq import heappop, heappush
from typing import Any, Final

from romancy_stream.activity import Activity, ActivityContext, ActivityInfo
from romancy_stream.engine.commit import ActivityKey, OutboxRow
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.tasks import Task
from romancy_stream.errors import ActivityTimeoutError, ConfigurationError, InvalidInputError, UnmockedActivityError
from romancy_stream.instances import moment
from romancy_stream.runtime.attempt import Attempt, Bench
from romancy_stream.runtime.clock import DatabaseClock
from romancy_stream.runtime.sealer import OPEN, Sealer
from romancy_stream.runtime.sync_session import DaemonThreads
from romancy_stream.runtime.worker_messages import Message, Messages, read_task
from romancy_stream.testing.activities import TestedAttempt, backend_of
from romancy_stream.testing.mocks import NEVER, Call, Mock, arguments_of
from romancy_stream.testing.sessions import AttemptStore
from romancy_stream.wire.codec import header_bytes
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.record import Record

THREADS: Final = 20
"""Plain functions at a time."""
WORKER: Final = "test"
LEAVE_S: Final = 5.0
"""How long attempts that are cut off at the end may take to clean up."""

in_attempt: ContextVar[bool] = ContextVar("romancy_stream_in_attempt", default=False)
"""Whether the code that runs is an activity of the environment: nobody waits for itself."""


class SetClock(DatabaseClock):
    def __init__(self, now_us: Callable[[], int]) -> None:
        super().__init__()
        self._read = now_us

    def now_us(self) -> int:
        return self._read()


@dataclass(frozen=True, slots=True)
class _Due:
    """What a mock answers when its time has come."""

    due_us: int
    number: int
    key: ActivityKey
    message: Message

    def __lt__(self, other: _Due) -> bool:
        return (self.due_us, self.number) < (other.due_us, other.number)


class Crew:
    """`send` takes what attempts have to say; `changed` is called when one has ended, `failed` with what is wrong with
    the test and no matter of the workflow. `mocks_only`: no activity's own function may run."""

    def __init__(
        self,
        messages: Messages,
        activities: Mapping[str, Activity[Any, Any]],
        store: AttemptStore,
        now_us: Callable[[], int],
        *,
        send: Callable[[Message], None],
        changed: Callable[[], None],
        failed: Callable[[BaseException], None],
        mocks_only: bool,
        sealer: Sealer = OPEN,
    ) -> None:
        self.calls: list[Call] = []
        self.mocks: dict[str, Mock] = {}
        self._messages = messages
        self._activities = activities
        self._now_us = now_us
        self._send = send
        self._changed = changed
        self._failed = failed
        self._mocks_only = mocks_only
        self._numbers = itertools.count()
        self._running: dict[asyncio.Task[None], Attempt | None] = {}
        self._leftovers: set[asyncio.Task[None]] = set()
        self._later: list[_Due] = []
        self._threads = DaemonThreads(THREADS, "romancy-test")
        self._store = store
        clock = SetClock(now_us)
        self._bench = Bench(store, messages, clock, self._threads, itertools.count(1), set(), self._spawn, sealer)

    # -- state ---------------------------------------------------------------------------------------------------
    @property
    def busy(self) -> bool:
        """Attempts are under way that take real time."""
        return bool(self._running)

    def next_due_us(self) -> int | None:
        return self._later[0].due_us if self._later else None

    def say_what_is_due(self) -> None:
        while self._later and self._later[0].due_us <= self._now_us():
            self._send(heappop(self._later).message)

    # -- attempts ------------------------------------------------------------------------------------------------
    def take(self, row: OutboxRow, queue: str) -> None:
        """A task that a commit sends."""
        task = read_task(Record(row.topic, 0, row.position, row.key.encode(), row.value, header_bytes(row.headers), 0))
        assert not isinstance(task, Malformed), task
        mock = self.mocks.get(task.name)
        activity = mock.activity if mock is not None else self._activities.get(task.name)
        if activity is None:
            self._failed(
                ConfigurationError(
                    f"the workflow calls activity {task.name!r}, which is not registered here: add it to the app or "
                    "the registry, or mock it"
                )
            )
        elif mock is None and self._mocks_only:
            self._failed(UnmockedActivityError(f"activity {task.name!r} was called, and there is no mock of it"))
        else:
            self._start(self._work(task, activity, mock, queue))

    async def _work(self, task: Task, activity: Activity[Any, Any], mock: Mock | None, queue: str) -> None:
        args = await self._bench.sealer.open(task.args)
        self._note(task, args, activity, mock)
        await (self._mocked(task, args, mock) if mock is not None else self._real(task, activity, queue))

    def _note(self, task: Task, raw: bytes, activity: Activity[Any, Any], mock: Mock | None) -> None:
        try:
            args, kwargs = activity.parameters.decode_call(raw)
            arguments = arguments_of(activity, args, kwargs)
        except InvalidInputError:
            return  # the attempt says so
        key = task.key
        at = moment(self._now_us())
        call = Call(task.name, arguments, task.attempt, key.activity_id, key.instance_id, at)
        self.calls.append(call)
        if mock is not None:
            mock.calls.append(call)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="romancy-test-attempt")
        self._running[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)
        self._changed()

    async def _real(self, task: Task, activity: Activity[Any, Any], queue: str) -> None:
        in_attempt.set(True)
        [heartbeat] = (await self._store.heartbeats([task.key])).values() or [None]
        attempt = Attempt(self._bench, task, activity, queue, None if heartbeat is None else heartbeat.details)
        current = asyncio.current_task()
        assert current is not None
        self._running[current] = attempt
        outcome = await attempt.run()
        for message in outcome.events:
            self._send(message)
        if outcome.report is not None:
            self._send(self._messages.to_engine(outcome.report))

    async def _mocked(self, task: Task, args: bytes, mock: Mock) -> None:
        in_attempt.set(True)
        messages, now_us = self._messages, self._now_us()
        key = task.key
        info = ActivityInfo(
            key.instance_id, key.run, key.activity_id, task.name, task.attempt, workflow_name=task.workflow
        )
        tested = TestedAttempt()
        try:
            what = f"mock of {task.name!r}, result"
            result = await mock.instead_of().run_attempt(ActivityContext(info, backend_of(tested)), args)
            sealed = await self._bench.sealer.seal(result, what)
            assert sealed is not None
            message = messages.to_engine(messages.completed(task, sealed, 0, now_us))
        except ConfigurationError as error:
            self._failed(error)
            return
        except Exception as error:
            message = self._failure(task, error)
        takes = mock.takes
        if task.options.timeout_s is not None and takes > timedelta(seconds=task.options.timeout_s):
            takes = timedelta(seconds=task.options.timeout_s)
            told = f"activity {key.activity_id} did not finish within its timeout of {task.options.timeout_s:g} s"
            message = self._failure(task, ActivityTimeoutError(told))
        due_us = now_us if takes == NEVER else now_us + takes // timedelta(microseconds=1)
        if takes and task.options.heartbeat_timeout_s is not None:
            await self._store.beat(key, task.attempt, None, due_us)  # one that comes to an end was heard of until then
        if takes == NEVER:
            return
        if takes:
            heappush(self._later, _Due(due_us, next(self._numbers), key, message))
        else:
            self._send(message)

    def _failure(self, task: Task, error: BaseException) -> Message:
        retryable = isinstance(error, ActivityTimeoutError) or task.options.policy.is_retryable(error)
        messages = self._messages
        return messages.to_engine(messages.failed(task, encode_error(error, retryable=retryable), 0, self._now_us()))

    def give_up(self, keys: Iterable[ActivityKey]) -> None:
        """The engine has: nobody wants to know what comes of these."""
        gone = set(keys)
        for attempt in self._running.values():
            if attempt is not None and attempt.task.key in gone:
                attempt.not_wanted()

    # -- the end -------------------------------------------------------------------------------------------------
    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="romancy-test-leftover")
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    async def close(self) -> None:
        for task, attempt in self._running.items():
            if attempt is not None:
                attempt.leaving = True
            task.cancel()
        for task in self._leftovers:
            task.cancel()
        ending = {*self._running, *self._leftovers}
        if ending:
            await asyncio.wait(ending, timeout=LEAVE_S)
        self._threads.shutdown()
