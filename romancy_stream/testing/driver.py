"""What keeps an environment going: a task that feeds the shell with what there is to do, and when there is nothing left
moves the clock to the next thing that is due, if somebody waits for something. Who sends or reads waits until the
world has settled, so that a test sees what follows from what it did.

Beside that: the broker and the waiters that clients talk to, which are real but for the way there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from romancy_stream.broker.port import OnGap, OnRecords, OutRecord, Tail, TopicInfo, nobody_asked
from romancy_stream.errors import StuckError
from romancy_stream.runtime.hub import Lookup, Outcome, ResultHub
from romancy_stream.testing.crew import Crew, in_attempt
from romancy_stream.testing.shell import Shell
from romancy_stream.wire.event import Topics

SETTLE_LIMIT_S: Final = 1.0
"""How long, in real time, a sender or reader waits for activities that are under way. One that waits for the test
itself would make it wait for ever."""
GRACE_S: Final = 0.1
"""How long, in real time, a wait that nothing can end any more is left to the rest of the test, which may be about to
send something."""
BUSY_LIMIT_S: Final = 60.0
"""How long, in real time, no activity that is under way may come to an end while somebody waits for a workflow."""
YIELDS: Final = 5
"""Turns of the event loop for somebody who was let go, to send what comes next before time moves on."""
SKIPS_LIMIT: Final = 20_000
"""Jumps of the clock for one wait: a workflow that looks for something every minute does so for two weeks."""
LATEST_US: Final = 250_000_000_000_000_000
"""Where time ends: the year 9892, which a datetime still holds."""
STEPS_LIMIT: Final = 100_000
"""Steps without rest at one moment: workflows that send to each other for ever."""

Explain = Callable[[str, str], BaseException]
"""Of an instance that is waited for, and why nothing moves: what to raise."""


@dataclass(eq=False, slots=True)
class _Sleeper:
    """Somebody who waits for a time: of the clock (`moves` it) or of a wait that is to end then."""

    due_us: int
    moves: bool
    future: asyncio.Future[None]


class Driver:
    """`auto_skip`: whether waiting for an instance moves the clock. `explain` words a StuckError."""

    def __init__(self, shell: Shell, crew: Crew, explain: Explain, auto_skip: bool) -> None:
        self.failure: BaseException | None = None
        self.told = False  # somebody has been given the failure
        self._shell = shell
        self._crew = crew
        self._explain = explain
        self._auto_skip = auto_skip
        self._news = asyncio.Event()
        self._settling: list[asyncio.Future[None]] = []
        self._sleepers: list[_Sleeper] = []
        self._skips = 0
        self.hub: WatchedHub | None = None
        self._task = asyncio.create_task(self._run(), name="romancy-test-driver")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for future in (*self._settling, *(each.future for each in self._sleepers)):
            future.cancel()

    # -- for everybody -------------------------------------------------------------------------------------------
    def wake(self) -> None:
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """The environment cannot go on: whoever waits for anything hears of it."""
        if self.failure is None:
            self.failure = error
        self.wake()

    def check(self) -> None:
        if self.failure is not None:
            self.told = True
            raise self.failure

    async def settled(self) -> None:
        """Until nothing but time, or the test, can move anything on."""
        self.check()
        if in_attempt.get():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settling.append(future)
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_LIMIT_S):
                await future
        self.check()

    def due_us(self, seconds: float) -> int:
        return self._shell.now_us + round(seconds * 1_000_000)

    async def sleep_until(self, due_us: int, *, moves: bool) -> None:
        self.check()
        sleeper = _Sleeper(due_us, moves, asyncio.get_running_loop().create_future())
        self._sleepers.append(sleeper)
        self.wake()
        try:
            await sleeper.future
        finally:
            self._sleepers = [each for each in self._sleepers if each is not sleeper]
        self.check()

    # -- the task ------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                if self.failure is None:
                    await self._until_settled()
                if self.failure is None and (await self._answers_settled() or await self._move_on()):
                    continue
            except Exception as error:
                self.fail(error)
            if self.failure is not None:
                self._tell(self.failure)
            await self._news.wait()

    async def _until_settled(self) -> None:
        steps = 0
        while self.failure is None:
            self._crew.say_what_is_due()
            if self._shell.has_work:
                await self._shell.step()
                steps += 1
                if steps > STEPS_LIMIT:
                    raise StuckError(f"the environment does not come to rest: {steps:,} steps at one moment")
            elif self._crew.busy:
                self._news.clear()
                if not await self._hears_something(BUSY_LIMIT_S):
                    self._give_up(
                        self._waited_for(), f"an activity has been running for {BUSY_LIMIT_S:g} s of real time"
                    )
            elif self.hub is not None and self.hub.is_looking:
                await asyncio.sleep(0)
            else:
                return

    async def _answers_settled(self) -> bool:
        """Whether somebody has waited for this, and may now do something."""
        settling, self._settling = self._settling, []
        return await self._let_go(settling)

    async def _let_go(self, futures: Sequence[asyncio.Future[None]]) -> bool:
        waiting = [future for future in futures if not future.done()]
        for future in waiting:
            future.set_result(None)
        for _ in range(YIELDS if waiting else 0):
            await asyncio.sleep(0)
        return bool(waiting)

    async def _move_on(self) -> bool:
        """Whether there is more to do now."""
        if await self._let_go([each.future for each in self._sleepers if each.due_us <= self._shell.now_us]):
            return True
        waited = self._waited_for()
        moving = [each for each in self._sleepers if each.moves]
        if not waited:
            self._skips = 0
            if not moving:
                return False
        halted = [each for each in waited if self.hub is not None and self.hub.is_halted(each)]
        if halted:
            self._give_up(halted, "it is halted")
            return True
        due_us = self._next_due_us(bool(waited) and self._auto_skip, moving)
        if due_us is not None and due_us <= LATEST_US and (moving or self._skips < SKIPS_LIMIT):
            self._skips += 1
            self._shell.now_us = max(self._shell.now_us, due_us)
        elif not await self._hears_something(GRACE_S):
            self._give_up(waited, self._why(due_us))
        return True

    def _waited_for(self) -> list[str]:
        return [] if self.hub is None else self.hub.waited_for()

    def _next_due_us(self, skip: bool, moving: Sequence[_Sleeper]) -> int | None:
        if not skip and not moving:
            return None
        due = [self._shell.core.timers.next_due_us(), self._crew.next_due_us()]
        due += [each.due_us for each in (self._sleepers if skip else moving)]
        return min((each for each in due if each is not None), default=None)

    def _why(self, due_us: int | None) -> str:
        if due_us is not None:
            return f"the clock was moved on {self._skips:,} times, and it has not ended"
        if not self._auto_skip and self._shell.core.timers.next_due_us() is not None:
            return "only time could move it on, and auto_skip is off: use env.sleep(...)"
        return "nothing is due that could move it on"

    async def _hears_something(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _give_up(self, instance_ids: Sequence[str], why: str) -> None:
        assert self.hub is not None
        for instance_id in instance_ids:
            self.hub.fail(instance_id, self._explain(instance_id, why))
        self._skips = 0

    def _tell(self, error: BaseException) -> None:
        settling, self._settling = self._settling, []
        for future in (*settling, *(each.future for each in self._sleepers)):
            if not future.done():
                future.set_result(None)  # it looks for the failure then
        if self.hub is not None:
            for instance_id in self.hub.waited_for():
                self.told = True
                self.hub.fail(instance_id, error)


class WatchedHub(ResultHub):
    """Waiters by the clock of the environment: it can be said who waits, and a wait that nothing can end is ended."""

    def __init__(
        self, store: Any, broker: Any, topics: Topics, driver: Driver, is_halted: Callable[[str], bool]
    ) -> None:
        super().__init__(store, broker, topics, lambda _: True)
        self.is_halted = is_halted
        self._driver = driver
        driver.hub = self

    @property
    def is_looking(self) -> bool:
        return self._looking is not None or bool(self._to_look_for)

    def waited_for(self) -> list[str]:
        """Ids of instances whose end, or whose answer, has not come yet."""
        ids = [i for i, waiters in self._waiters.items() if any(not each.future.done() for each in waiters)]
        return list(dict.fromkeys([*ids, *(q.instance_id for q in self._questions.values() if not q.future.done())]))

    def fail(self, instance_id: str, error: BaseException) -> None:
        waiting: list[asyncio.Future[Any]] = [each.future for each in self._waiters.get(instance_id, ())]
        waiting += [each.future for each in self._questions.values() if each.instance_id == instance_id]
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def expect(self, instance_ids: Iterable[str]) -> None:
        """Everybody looks: the clock stands still for so long."""

    async def wait(self, instance_id: str, *, timeout_s: float | None = None, **options: Any) -> Outcome:
        self._driver.check()
        waiting = asyncio.ensure_future(super().wait(instance_id, **options))
        await asyncio.sleep(0)  # it is one of the waiters now
        self._driver.wake()
        if timeout_s is None:
            return await waiting
        due_us = self._driver.due_us(timeout_s)
        limit = asyncio.ensure_future(self._driver.sleep_until(due_us, moves=False))
        try:
            await asyncio.wait({waiting, limit}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise TimeoutError(f"instance {instance_id} has not ended within {timeout_s:g} s of the test's time")
            return await waiting
        finally:
            for each in (waiting, limit):
                each.cancel()
            await asyncio.gather(waiting, limit, return_exceptions=True)

    @asynccontextmanager
    async def answer(
        self, instance_id: str, command_id: str, lookup: Lookup | None = None, poll_interval_s: float | None = None
    ) -> AsyncIterator[asyncio.Future[bytes]]:
        self._driver.check()
        async with super().answer(instance_id, command_id, lookup) as future:
            self._driver.wake()
            yield future


class MemoryBroker:
    """The sending half of the `Broker` port."""

    def __init__(self, shell: Shell, driver: Driver) -> None:
        self._shell = shell
        self._driver = driver

    async def send(self, records: Sequence[OutRecord]) -> list[asyncio.Future[int]]:
        """The futures are done when the environment has settled."""
        self._driver.check()
        offsets = [self._shell.send(record, "client") for record in records]
        self._driver.wake()
        settled = asyncio.ensure_future(self._driver.settled())
        return [asyncio.ensure_future(_after(settled, offset)) for offset in offsets]

    async def topics(self) -> Mapping[str, TopicInfo]:
        return {}

    def tail(self, topics: Sequence[str], on_records: OnRecords, on_gap: OnGap = nobody_asked) -> Tail:
        return _Silence()


async def _after(settled: asyncio.Future[None], offset: int) -> int:
    await asyncio.shield(settled)
    return offset


class _Silence:
    """Nothing is heard through the broker: waiters hear of commits."""

    async def start(self) -> None:
        raise AssertionError("waiters of a test environment listen to no broker")

    async def stop(self) -> None:
        return
