"""Who waits for the end of an instance, or for the answer to a command. Both are announced on the `events` topic; a
partition's owner knows them a moment earlier, from its own commit. Both ways lead through the same records, so a
waiter cannot tell them apart.

Order matters: register, listen, then look into the database. An end that came before is found there, one that comes
after is heard. For an instance that was expected, under a new id and by a hub that listened already, nothing came
before, and it is looked for only when its end is late.

Whatever was not heard, or cannot be read, the database has it. Where that may have happened, all whom it may concern
are looked for there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from romancy_stream.broker.port import Broker, Record, Tail
from romancy_stream.engine.answers import DONE
from romancy_stream.engine.commit import COMPLETED, FAILED, Commit, InstanceRow, Rejection
from romancy_stream.errors import InstanceExistsError, StoreUnavailableError
from romancy_stream.runtime.patience import as_long_as_it_takes
from romancy_stream.store.database import finished
from romancy_stream.store.port import Store
from romancy_stream.wire import event as w
from romancy_stream.wire.event import Topics

log = logging.getLogger(__name__)

NO_ANSWER: Final = "cannot look for an answer, trying again"
LOOKED_FOR_AT_ONCE: Final = 1_000
"""Ids in one question to the database: one round trip, and an answer of some 500 KB."""
EXPECTED_LIMIT: Final = 20_000
"""Instances whose ends must come by although nobody waits for them yet: some 5 MB of ids. Who waits for one that was
forgotten over others asks the database at once."""
LATE_AFTER_S: Final = 3.0
"""When an end that should have been heard is looked for all the same, at the latest after as long again: it may be lost
with a log that was cut, or the broker is away and the database is not. Most workflows of a burst have ended by then."""


INSTANCE_EXISTS: Final = "instance_exists"
"""The reason of a rejection that says nothing about the instance that is there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`kind`: "started", "completed", "failed", "cancelled" or "rejected". `payload` is raw JSON: None, the
    output, the error, `{"reason": ...}`, or `{"reason", "message", "errors"}`."""

    kind: str
    payload: bytes | None


@dataclass(eq=False, slots=True)
class _Waiter:
    """`command_id`: the id of the start that is waited for; a rejection of another start is not ours. None: any.
    `started`: whether to wake on the start already. `workflow`: whose instance it should be; None: anyone's."""

    future: asyncio.Future[Outcome]
    command_id: str | None
    started: bool
    workflow: str | None


Lookup = Callable[[], Awaitable[bytes | None]]
"""What the database knows of the answer to a command: raw JSON as the event has it, None for nothing yet."""


@dataclass(eq=False, slots=True)
class _Question:
    """A command that was sent, or is about to be."""

    instance_id: str
    future: asyncio.Future[bytes]
    lookup: Lookup | None


class ResultHub:
    """`is_local(instance_id)`: does a processor in this process announce its end through `on_commit`?"""

    def __init__(self, store: Store, broker: Broker, topics: Topics, is_local: Callable[[str], bool]) -> None:
        self._store = store
        self._broker = broker
        self._topics = topics
        self._is_local = is_local
        self._waiters: dict[str, list[_Waiter]] = {}
        self._questions: dict[str, _Question] = {}  # by the command's id
        self._asked: dict[str, int] = {}  # how many questions there are about an instance
        self._expected: OrderedDict[str, None] = OrderedDict()  # nothing but a start has come by since `expect`
        self._late: dict[str, float] = {}  # waited for, not looked for yet: from when on, by the loop's clock
        self._late_timer: asyncio.TimerHandle | None = None
        self._tail = self._new_tail()
        self._listening: asyncio.Task[None] | None = None
        self._rechecks: set[asyncio.Task[None]] = set()
        self._to_look_for: dict[str, None] = {}
        self._looking: asyncio.Task[None] | None = None

    def _new_tail(self) -> Tail:
        return self._broker.tail([self._topics.events], self._on_records, self._on_gap)

    async def close(self) -> None:
        if self._late_timer is not None:
            self._late_timer.cancel()
        if self._listening is not None:
            self._listening.cancel()  # does nothing where it listens already
            await asyncio.gather(self._listening, return_exceptions=True)
            await self._tail.stop()
        ending = [*self._rechecks, *([self._looking] if self._looking is not None else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.future.cancel()
        for question in self._questions.values():
            question.future.cancel()

    @contextlib.asynccontextmanager
    async def answer(
        self, instance_id: str, command_id: str, lookup: Lookup | None = None, poll_interval_s: float | None = None
    ) -> AsyncIterator[asyncio.Future[bytes]]:
        """The data of the `romancy.command.answered` of a command, which is to be sent inside: the hub listens before.
        `lookup` is asked where an answer may have been missed; with `poll_interval_s` nothing else is."""
        question = _Question(instance_id, asyncio.get_running_loop().create_future(), lookup)
        self._questions[command_id] = question
        self._asked[instance_id] = self._asked.get(instance_id, 0) + 1
        polling = None
        try:
            if poll_interval_s is not None:
                polling = asyncio.create_task(self._poll_answer(question, poll_interval_s), name="romancy-answer-poll")
            elif not self._is_local(instance_id):
                await self._listen()
            yield question.future
        finally:
            del self._questions[command_id]
            self._asked[instance_id] -= 1
            if self._asked[instance_id] == 0:
                del self._asked[instance_id]
            question.future.cancel()
            if polling is not None:
                polling.cancel()
                await asyncio.gather(polling, return_exceptions=True)

    async def _poll_answer(self, question: _Question, interval_s: float) -> None:
        while not question.future.done():
            await asyncio.wait([question.future], timeout=interval_s)
            try:
                await self._look_up(question)
            except StoreUnavailableError as error:
                log.warning("%s: %s", NO_ANSWER, error)

    async def _look_up_all(self, questions: Sequence[_Question]) -> None:
        """As long as it takes, as in `_look`."""
        for question in questions:
            await as_long_as_it_takes(partial(self._look_up, question), NO_ANSWER)

    async def _look_up(self, question: _Question) -> None:
        """Raises StoreUnavailableError; any other error is the answer."""
        if question.lookup is None or question.future.done():
            return
        try:
            data = await question.lookup()
        except StoreUnavailableError:
            raise
        except Exception as error:
            if not question.future.done():
                question.future.set_exception(error)
        else:
            if data is not None and not question.future.done():
                question.future.set_result(data)

    def expect(self, instance_ids: Iterable[str]) -> None:
        """Of starts that are about to be sent, under ids that nobody has had before."""
        listens = self._is_listening()
        for instance_id in instance_ids:
            if listens or self._is_local(instance_id):
                self._expected[instance_id] = None
        while len(self._expected) > EXPECTED_LIMIT:
            self._expected.popitem(last=False)

    def wait(
        self,
        instance_id: str,
        *,
        command_id: str | None = None,
        started: bool = False,
        workflow: str | None = None,
        timeout_s: float | None = None,
        poll_interval_s: float | None = None,
    ) -> Coroutine[Any, Any, Outcome]:
        """The end of an instance, or with `started` its beginning. TimeoutError; InstanceExistsError where it is one of
        another workflow."""
        waiting = self._wait(instance_id, command_id, started, workflow, poll_interval_s)
        return waiting if timeout_s is None else _within(timeout_s, waiting)

    async def _wait(
        self,
        instance_id: str,
        command_id: str | None,
        started: bool,
        workflow: str | None,
        poll_interval_s: float | None,
    ) -> Outcome:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), command_id, started, workflow)
        self._waiters.setdefault(instance_id, []).append(waiter)
        try:
            if poll_interval_s is not None:
                return await self._poll(instance_id, waiter, poll_interval_s)
            if not self._is_listening() and not self._is_local(instance_id):
                await self._listen()
            if instance_id in self._expected and not started:
                del self._expected[instance_id]  # who gives up and comes back asks at once
                self._look_if_late(instance_id)
            else:
                self._look_soon(instance_id)
            return await waiter.future
        finally:
            waiters = self._waiters[instance_id]
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[instance_id]
                self._late.pop(instance_id, None)

    async def _poll(self, instance_id: str, waiter: _Waiter, interval_s: float) -> Outcome:
        """For clients that may not read `events`."""
        while not waiter.future.done():
            await self._look([instance_id])
            await asyncio.wait([waiter.future], timeout=interval_s)
        return waiter.future.result()

    # -- hearing -------------------------------------------------------------------------------------------------
    def on_commit(self, commit: Commit) -> None:
        """A commit of this process's processor, durable."""
        if self._waiters or self._asked or self._expected:
            try:
                for row in commit.outbox:
                    if row.topic == self._topics.events and self._concerns(row.key):
                        self._hear(row.key, dict(row.headers), row.value)
            except Exception:
                log.exception("a commit cannot be heard")  # the processor goes on: it is durable
                self._on_gap(None)

    def _concerns(self, instance_id: str) -> bool:
        return instance_id in self._waiters or instance_id in self._asked or instance_id in self._expected

    def on_ownership(self) -> None:
        """Partitions came or went: what was local may not be so any more."""
        self._expected.clear()
        if any(not self._is_local(instance_id) for instance_id in (*self._waiters, *self._asked)):
            self._beside(self._recheck())

    def _on_gap(self, error: BaseException | None) -> None:
        """Who came before it may have missed what was said. With an error nothing is heard any more: they are told, and
        who comes next listens anew."""
        self._expected.clear()
        if error is None:
            self._look_for_everybody()
        else:
            self._listening, self._tail = None, self._new_tail()
            self._fail_all(error)

    def _look_again(self, instance_id: str) -> None:
        """Something was said about it that cannot be read: whatever it is, the database says it too."""
        if instance_id in self._waiters:
            self._look_soon(instance_id)
        if instance_id in self._asked:
            about_it = [each for each in self._questions.values() if each.instance_id == instance_id]
            self._beside(self._look_up_all(about_it))

    def _look_for_everybody(self) -> None:
        for instance_id in self._waiters:
            self._look_soon(instance_id)
        if self._questions:
            self._beside(self._look_up_all(list(self._questions.values())))

    def _beside(self, recheck: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(recheck, name="romancy-results-recheck")
        self._rechecks.add(task)
        task.add_done_callback(self._rechecks.discard)

    async def _recheck(self) -> None:
        try:
            await self._listen()
        except Exception as error:
            self._fail_all(error)
        else:
            self._look_for_everybody()

    def _fail_all(self, error: BaseException) -> None:
        self._fail(list(self._waiters), error)
        for question in self._questions.values():
            if not question.future.done():
                question.future.set_exception(error)

    def _fail(self, ids: Sequence[str], error: BaseException) -> None:
        """The waiters hear of it: nobody else would."""
        for instance_id in ids:
            for waiter in self._waiters.get(instance_id, ()):
                if not waiter.future.done():
                    waiter.future.set_exception(error)

    async def _listen(self) -> None:
        if self._is_listening():
            return
        if self._listening is None:
            self._listening = asyncio.create_task(self._start_tail(), name="romancy-results-tail")
        try:
            await asyncio.shield(self._listening)
        except Exception:
            self._listening = None  # the next waiter tries again
            raise

    def _is_listening(self) -> bool:
        task = self._listening
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    async def _start_tail(self) -> None:
        """As long as it takes: who waits for a result for a minute can wait for the broker too."""
        await as_long_as_it_takes(self._tail.start, "cannot listen for results, trying again")

    async def _on_records(self, records: Sequence[Record]) -> None:
        if self._waiters or self._asked or self._expected:
            try:
                for record in records:
                    instance_id = "" if record.key is None else record.key.decode("utf-8", "replace")
                    if self._concerns(instance_id):
                        heard = [(name, raw) for name, raw in record.headers if name in _HEARD and raw is not None]
                        about = {name: raw.decode("utf-8", "replace") for name, raw in heard}
                        self._hear(instance_id, about, record.value)
            except Exception:
                log.exception("records of %s cannot be heard", self._topics.events)  # it is no reason to hear no others
                self._on_gap(None)

    def _hear(self, instance_id: str, about: Mapping[str, str], data: bytes | None) -> None:
        """A message as the engine writes it. To decode it as if it were anybody's would take three times as long."""
        event_type = about.get(_TYPE)
        if event_type != w.STARTED:
            self._expected.pop(instance_id, None)
        if event_type is None:
            self._look_again(instance_id)
        elif event_type == w.ANSWERED:
            self._answered(instance_id, about.get(_CAUSATION, ""), data)
        elif event_type in _KINDS and instance_id in self._waiters:
            outcome = _outcome(_KINDS[event_type], data)
            workflow = about.get(_WORKFLOW)
            if outcome is None or workflow is None:
                self._look_again(instance_id)
            else:
                self._tell(instance_id, outcome, about.get(_CAUSATION), workflow)

    def _answered(self, instance_id: str, command_id: str, data: bytes | None) -> None:
        question = self._questions.get(command_id)
        if question is not None and question.instance_id == instance_id and not question.future.done():
            if data is not None and (data.startswith(DONE) or isinstance(_told(data).get("error"), dict)):
                question.future.set_result(data)
            else:
                self._look_again(instance_id)

    def _tell(self, instance_id: str, outcome: Outcome, command_id: str | None, workflow: str) -> None:
        for waiter in self._waiters.get(instance_id, ()):
            if outcome.kind != "rejected" and waiter.workflow not in (None, workflow):
                if not waiter.future.done():
                    message = f"instance {instance_id} is one of workflow {workflow!r}, not {waiter.workflow!r}"
                    waiter.future.set_exception(InstanceExistsError(message))
                continue
            wanted = outcome.kind != "started" or waiter.started
            if outcome.kind == "rejected" and waiter.command_id != command_id:
                # Somebody who waits for the id hears that it was not started, but not that it was twice.
                wanted = waiter.command_id is None and _reason(outcome) != INSTANCE_EXISTS
            if wanted and not waiter.future.done():
                waiter.future.set_result(outcome)

    # -- looking -------------------------------------------------------------------------------------------------
    def _look_soon(self, instance_id: str) -> None:
        """Together with whatever else is asked for until the question before this one is answered."""
        self._to_look_for[instance_id] = None
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_for_all(), name="romancy-results-look")

    def _look_if_late(self, instance_id: str) -> None:
        loop = asyncio.get_running_loop()
        self._late[instance_id] = loop.time() + LATE_AFTER_S
        if self._late_timer is None:
            self._late_timer = loop.call_later(LATE_AFTER_S, self._look_for_late)

    def _look_for_late(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for instance_id in [each for each, due_s in self._late.items() if due_s <= now_s]:
            del self._late[instance_id]
            self._look_soon(instance_id)
        self._late_timer = loop.call_later(LATE_AFTER_S, self._look_for_late) if self._late else None

    async def _look_for_all(self) -> None:
        ids: list[str] = []
        try:
            while self._to_look_for:
                ids = list(itertools.islice(self._to_look_for, LOOKED_FOR_AT_ONCE))
                for instance_id in ids:
                    del self._to_look_for[instance_id]
                await self._look(ids)
        except Exception as error:
            self._fail([*ids, *self._to_look_for], error)
            self._to_look_for.clear()
        finally:
            self._looking = None

    async def _look(self, ids: Sequence[str]) -> None:
        """As long as it takes: who waits for a result for a minute can wait for the database too."""
        known = await as_long_as_it_takes(
            lambda: finished(self._store.known(ids)),  # `close` cancels
            "cannot look for results, trying again",
        )
        for row in known.instances.values():
            self._tell(row.instance_id, outcome_of(row), row.event_id, row.workflow)
        for rejection in known.rejections.values():
            self._tell(rejection.instance_id, rejected(rejection), rejection.event_id, rejection.workflow)


async def _within(timeout_s: float, waiting: Coroutine[Any, Any, Outcome]) -> Outcome:
    async with asyncio.timeout(timeout_s):
        return await waiting


def outcome_of(row: InstanceRow) -> Outcome:
    if row.finished_us is None:
        return Outcome("started", None)
    return Outcome(row.status, row.output if row.status == COMPLETED else row.error)


def rejected(rejection: Rejection) -> Outcome:
    head = b'{"reason":"%s","message":' % rejection.reason.encode()
    return Outcome("rejected", head + orjson.dumps(rejection.message) + b',"errors":' + rejection.errors + b"}")


def _reason(outcome: Outcome) -> object:
    return orjson.loads(outcome.payload or b"{}").get("reason")


_TYPE: Final = "ce_type"
_WORKFLOW: Final = "ce_" + w.X_WORKFLOW
_CAUSATION: Final = "ce_" + w.X_CAUSATION
_HEARD: Final = frozenset({_TYPE, _WORKFLOW, _CAUSATION})
_KINDS = {
    w.STARTED: "started",
    w.COMPLETED: COMPLETED,
    w.FAILED: FAILED,
    w.CANCELLED: "cancelled",
    w.REJECTED: "rejected",
}
_WRAPPERS = {COMPLETED: b'{"output":', FAILED: b'{"error":'}


def _outcome(kind: str, data: bytes | None) -> Outcome | None:
    """None: not of the form that the engine gives its own events. The value inside the data is taken as it was written:
    parsing it would cost big numbers their value, and time."""
    if kind == "started":
        return Outcome(kind, None)
    wrapper = _WRAPPERS.get(kind)
    if data is None or (wrapper is None and "reason" not in _told(data)):
        return None
    if wrapper is None:
        return Outcome(kind, data)
    if not (data.startswith(wrapper) and data.endswith(b"}")):
        return None
    return Outcome(kind, data[len(wrapper) : -1])


def _told(data: bytes) -> dict[str, Any]:
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}
