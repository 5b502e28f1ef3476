"""One live workflow: its coroutine on a `WorkflowLoop`, fed with inputs, asked for commands. It records nothing and
decides nothing; `deliver` turns one input event into the commands that the code answered with, and `replay` does
the same for a whole history, checking that the code still gives the answers that were recorded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import field, replace
from functools import cached_property, partial
from random import Random
from typing import Any, Final, NoReturn
from uuid import UUID

import orjson

from romancy_stream.engine import children, handlers, subscriptions, turns, waits
from romancy_stream.engine import history as h
from romancy_stream.engine.children import Children
from romancy_stream.engine.definitions import ActivityCall, Publication, WorkflowDef, set_current_scope
from romancy_stream.engine.failure import decode_error, encode_error
from romancy_stream.engine.handlers import Handlers
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.loop import LATEST_US, WorkflowLoop, WorkflowTimer
from romancy_stream.engine.projection import USER_TIMER
from romancy_stream.engine.retries import FRAMEWORK_DEFAULT
from romancy_stream.engine.sealing import PLAIN, Blobs, Sealing, is_sealed
from romancy_stream.engine.subscriptions import RESTORED, Subscriptions
from romancy_stream.engine.turns import Code, Turns
from romancy_stream.engine.waits import Waits
from romancy_stream.errors import DuplicateActivityIdError, NonDeterminismError, PayloadError, ReadOnlyError
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire.value import value

ACTIVITY_ID_CHARS: Final = 200
"""Leaves room in a 255 character database key for the prefixes of the engine's own timers."""
ROLLBACK: Final = "rollback:"
"""How the ids of compensations begin that were registered by hand."""
CANCELLED_ACTIVITIES: Final = 2
"""The first of `history.RULES` by which a cancelled activity is recorded."""
PATIENT_HANDLERS: Final = 3
"""The first of them by which handlers wait for code that has not begun."""

SEALED: Final = frozenset(
    {
        h.ACTIVITY_SCHEDULED,
        h.COMPENSATION_REGISTERED,
        h.MESSAGE_SENT,
        h.UPDATE_COMPLETED,
        h.CHILD_STARTED,
        h.WORKFLOW_COMPLETED,
        h.WORKFLOW_RECURRED,
    }
)
"""Commands whose payload is sealed. Published events are for others to read, and errors for people."""


_PARTS: Final = ("waits", "subscriptions", "handlers", "children", "turns")

BY_ENGINE: Final = "by_engine"
"""Attribute of an end that the code did not ask for."""


class Recurred(BaseException):
    """Ends the coroutine of a run that another one follows. Not an Exception: user code must not catch it."""


@value
class Command:
    """What the code asked for; it becomes a history event as it stands."""

    kind: str
    ref: str | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    payload: bytes | None = None

    def __str__(self) -> str:
        what = self.attrs.get("name") or self.attrs.get("type") or self.attrs.get("workflow")
        return " ".join(part for part in (self.kind, self.ref, f"({what})" if what else None) if part)


class LiveInstance:
    """Implements `definitions.Scope`. `default_policy` is used where an activity has none of its own."""

    def __init__(
        self,
        definition: WorkflowDef,
        instance_id: str,
        run: int,
        default_policy: RetryPolicy,
        sealing: Sealing = PLAIN,
    ) -> None:
        self.instance_id = instance_id
        self.run = run
        self.replaying = False
        self._definition = definition
        self._default_policy = default_policy
        self._sealing = sealing
        self.blobs: dict[str, bytes] = {}  # to be kept elsewhere, for commands that nobody has taken yet
        self.known: Blobs = {}  # kept elsewhere, read for the inputs that are delivered now
        self._loop = WorkflowLoop(self, f"{instance_id}/{run}")  # type: ignore[abstract]  # the other methods refuse
        self._main: asyncio.Task[bytes] | None = None
        self._commands: list[Command] = []
        self._fresh: set[tuple[str, str]] = set()  # kind and ref of those
        self._rules = 1
        self._cancel: dict[str, Any] | None = None
        self._waiting: dict[str, asyncio.Future[bytes | None]] = {}
        self._timers: dict[str, WorkflowTimer] = {}
        self._ids: set[str] = set()
        self._counters: dict[str, int] = {}
        self._random: Random | None = None
        self._seed = f"{instance_id}/{run}"
        self.arguments: Any = None  # decoded already, by who accepted the start
        self.following: Any = None  # arguments of the run that follows this one
        self.following_input: bytes | None = None
        self._ended = False
        self.event_keys: Mapping[str, str | None] = {}  # see `Waits`
        self.event_models: Mapping[str, Any] = {}

    # -- Scope: what workflow code sees --------------------------------------------------------------------------
    @property
    def workflow_name(self) -> str:
        return self._definition.name

    # The parts are made when they are first needed: most code needs none of them, and many instances are live at once.
    @cached_property
    def waits(self) -> Waits:
        return Waits(self, self.event_keys, self.event_models)

    @cached_property
    def subscriptions(self) -> Subscriptions:
        return Subscriptions(self)

    @cached_property
    def handlers(self) -> Handlers:
        return Handlers(self)

    @cached_property
    def children(self) -> Children:
        return Children(self)

    @cached_property
    def turns(self) -> Turns:
        return Turns(self)

    def _has(self, part: str) -> bool:
        return part in self.__dict__

    @property
    def random(self) -> Random:
        if self._random is None:
            self._random = Random(self._seed)
        return self._random

    def now_us(self) -> int:
        return self._loop.now_us

    def refuse_if_leaving(self) -> None:
        self._loop.refuse_if_evicting()

    def uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def schedule_activity(self, call: ActivityCall) -> asyncio.Future[bytes | None]:
        future = self._loop.create_future()  # first: it refuses an eviction
        activity_id = self._take_id(call)
        attrs = self._attrs(call)
        if call.total_timeout_s is not None:
            attrs["deadline_us"] = min(self._loop.now_us + round(call.total_timeout_s * 1_000_000), LATEST_US)
        if call.undo is not None:
            what = f"{self.workflow_name}: compensation of {activity_id}"
            args = self.sealed(call.undo.call.args, what).decode()
            undo = {**self._attrs(call.undo.call), "wants_result": call.undo.wants_result}
            attrs["compensate"] = {"args": args, "attrs": undo}
        self._waiting[activity_id] = future
        self.emit(h.ACTIVITY_SCHEDULED, activity_id, attrs, call.args)
        if self._rules >= CANCELLED_ACTIVITIES:
            future.add_done_callback(partial(self._activity_left, activity_id))
        return future

    def register_compensation(self, call: ActivityCall) -> None:
        self._loop.create_future()  # it refuses an eviction
        ref = self._free_id(ROLLBACK, ROLLBACK)
        self._ids.add(ref)
        self.emit(h.COMPENSATION_REGISTERED, ref, {**self._attrs(call), "wants_result": False}, call.args)

    def _attrs(self, call: ActivityCall) -> dict[str, Any]:
        """What history keeps of how an activity is to be run."""
        policy = call.policy or self._default_policy
        attrs: dict[str, Any] = {"name": call.name, "queue": call.queue}
        if policy != FRAMEWORK_DEFAULT:
            attrs["policy"] = policy.to_json()
        if call.timeout_s is not None:
            attrs["timeout_s"] = call.timeout_s
        if call.total_timeout_s is not None:
            attrs["total_timeout_s"] = call.total_timeout_s
        if call.heartbeat_timeout_s is not None:
            attrs["heartbeat_timeout_s"] = call.heartbeat_timeout_s
        if call.priority is not None:
            attrs["priority"] = call.priority
        return attrs

    def _free_id(self, prefix: str, counter: str) -> str:
        """The next one that no manual id has taken."""
        while (found := f"{prefix}{self.count(counter)}") in self._ids:
            pass
        return found

    def _take_id(self, call: ActivityCall) -> str:
        activity_id = call.activity_id
        if activity_id is None:
            activity_id = self._free_id(f"{call.name}:", call.name)
        elif activity_id in self._ids:
            raise DuplicateActivityIdError(
                f"activity id {activity_id!r} is taken in instance {self.instance_id}; "
                "leave activity_id out to have one made, or give each call its own"
            )
        if not 0 < len(activity_id) <= ACTIVITY_ID_CHARS:
            raise ValueError(f"activity_id must have 1 to {ACTIVITY_ID_CHARS} characters, not {len(activity_id)}")
        self._ids.add(activity_id)
        return activity_id

    # -- for the parts: waits, subscriptions, handlers, children -------------------------------------------------
    def emit(
        self, kind: str, ref: str | None = None, attrs: dict[str, Any] | None = None, payload: bytes | None = None
    ) -> None:
        """A command. Raises PayloadError, PayloadTooLargeError, ReadOnlyError."""
        if self._loop.read_only:
            raise ReadOnlyError(f"{kind} {ref or ''}: queries, validators and conditions may only look at a workflow")
        if payload is not None and kind in SEALED:
            payload = self.sealed(payload, f"{self.workflow_name}: {kind} {ref or ''}")
        self._commands.append(Command(kind, ref, attrs or {}, payload))
        if ref is not None:
            self._fresh.add((kind, ref))

    def take_back(self, kind: str, ref: str) -> bool:
        """Removes a command of this step that nobody has seen yet, and says whether there was one."""
        if (kind, ref) not in self._fresh:
            return False
        self._fresh.remove((kind, ref))
        index = next(i for i, command in enumerate(self._commands) if command.kind == kind and command.ref == ref)
        del self._commands[index]
        return True

    def count(self, name: str) -> int:
        """1, 2, 3 ... for each name. Names of the engine's own end with a colon."""
        number = self._counters[name] = self._counters.get(name, 0) + 1
        return number

    def sealed(self, payload: bytes, what: str) -> bytes:
        """What to record of a value. On replay for the errors alone: what belongs to it was kept when it happened.
        PayloadError, PayloadTooLargeError."""
        return self._sealing.seal(payload, what, {} if self.replaying else self.blobs)

    def opened(self, payload: bytes) -> bytes:
        """PayloadError."""
        return self._sealing.open(payload, self.known)

    @property
    def loop(self) -> WorkflowLoop:
        return self._loop

    @property
    def definition(self) -> WorkflowDef:
        return self._definition

    def start_timer(self, due_us: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        handle = self._loop.call_at_us(due_us, _resolve, future)
        future.add_done_callback(lambda _: handle.cancel())
        return future

    def publish(self, publication: Publication) -> None:
        attrs = {"type": publication.type}
        for name in ("source", "subject", "topic"):
            if (value := getattr(publication, name)) is not None:
                attrs[name] = value
        self.emit(h.EVENT_PUBLISHED, f"event:{self.count('event:')}", attrs, publication.data)

    def recur(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NoReturn:
        self._loop.create_future()  # it refuses an eviction
        if self._main is None or asyncio.current_task() is not self._main:
            raise RuntimeError("recur ends the workflow: call it in the workflow's own task, not in one it has made")
        self.following_input = self._definition.encode(*args, **kwargs)
        self.following = self._definition.decode(self.following_input)
        raise Recurred

    # -- TimerHost -----------------------------------------------------------------------------------------------
    def timer_started(self, handle: WorkflowTimer) -> None:
        handle.timer_id = timer_id = f"{USER_TIMER}{self.count(USER_TIMER)}"
        self._timers[timer_id] = handle
        self.emit(h.TIMER_STARTED, timer_id, {"due_us": handle.due_us})

    def timer_cancelled(self, handle: WorkflowTimer) -> None:
        timer_id, handle.timer_id = handle.timer_id, None
        if timer_id is None or self._timers.pop(timer_id, None) is None:
            return
        if not self.take_back(h.TIMER_STARTED, timer_id):  # else: within one step, which nobody needs to know
            self.emit(h.TIMER_CANCELLED, timer_id)

    # -- for the engine: call inside `stepping_aside` ------------------------------------------------------------
    def deliver(self, event: HistoryEvent) -> list[Command]:
        """Runs the code on one input until it waits again. InvalidInputError: the input of `workflow.started` no
        longer fits the code. StepTooLong: the code does not come to rest."""
        if self._ended:
            return []  # one of several inputs that waited for a parked instance, behind the one that it ended with
        self._loop.now_us = event.at_us
        if event.payload is not None and is_sealed(event.payload):
            event = replace(event, payload=self._sealing.open(event.payload, self.known))
        DELIVER[event.kind](self, event)
        set_current_scope(self)
        try:
            self._loop.run_until_idle()
            if self._has("handlers"):
                self.handlers.settle()
        finally:
            set_current_scope(None)
        if self._main is not None and self._main.done():
            self._ended = True
            self._end(self._outcome(self._main))
        elif self._has("handlers") and self.handlers.failure is not None:
            self._ended = True
            self._end(Command(h.WORKFLOW_FAILED, payload=encode_error(self.handlers.failure, retryable=False)))
        commands, self._commands = self._commands, []
        self._fresh.clear()
        return commands

    def _end(self, command: Command) -> None:
        try:
            self.emit(command.kind, command.ref, command.attrs, command.payload)
        except PayloadError as error:
            self.emit(h.WORKFLOW_FAILED, payload=encode_error(error, retryable=False))

    def evict(self) -> None:
        """Ends the coroutines; the instance goes on from its history another time."""
        set_current_scope(self)
        try:
            self._loop.evict()
        finally:
            set_current_scope(None)
            self._main = None  # an error in it has frames that lead back here
            for part in _PARTS:  # they hold this one: neither needs a garbage collector to go
                self.__dict__.pop(part, None)

    def _started(self, event: HistoryEvent) -> None:
        self._rules = event.attrs.get("rules", 1)
        self._seed = event.attrs.get("follows", {}).get("seed", self._seed)
        arguments, self.arguments = self.arguments, None
        if arguments is None:
            arguments = self._definition.decode(event.payload)
        if "mailbox" in event.attrs:
            self.waits.begin(event.attrs["mailbox"].get("events", []))
        if not RESTORED.isdisjoint(event.attrs):
            self.subscriptions.restore(event.attrs)
        set_current_scope(self)
        code: Code = partial(self._definition.invoke, self, arguments)
        begin_us, slot = event.attrs.get("begin_us", 0), event.attrs.get("slot")
        if slot is not None and "recurred" not in event.attrs:
            code = partial(self.turns.in_turn, slot, code)
        if begin_us > event.at_us:
            code = partial(self._later, begin_us, code)
        if slot is not None and "recurred" in event.attrs:  # at once: it has that of the run before
            code = partial(self.turns.in_turn, slot, code)
        if self._rules >= PATIENT_HANDLERS and (ahead := (begin_us > event.at_us) + (slot is not None)):
            self.turns.hold_back(ahead)
        self._main = self._loop.create_task(code(), name=self.instance_id, context=Context())

    async def _later(self, begin_us: int, code: Code) -> bytes:
        await self.start_timer(begin_us)
        self.turns.let_go()
        return await code()

    def _activity_completed(self, event: HistoryEvent) -> None:
        assert event.ref is not None
        future = self._waiting.pop(event.ref, None)
        if future is not None and not future.done():
            future.set_result(event.payload)

    def _activity_left(self, activity_id: str, future: asyncio.Future[bytes | None]) -> None:
        """Its future is done. When the code has cancelled it: nobody waits for the activity any more."""
        if not future.cancelled() or self._waiting.pop(activity_id, None) is None:
            return
        if not self.take_back(h.ACTIVITY_SCHEDULED, activity_id):  # else: nobody has seen it
            self.emit(h.ACTIVITY_CANCELLED, activity_id)

    def _cancel_requested(self, event: HistoryEvent) -> None:
        assert self._main is not None
        self._cancel = event.attrs
        self._main.cancel(event.attrs["reason"])

    def _activity_failed(self, event: HistoryEvent) -> None:
        assert event.ref is not None
        assert event.payload is not None
        future = self._waiting.pop(event.ref, None)
        if future is not None and not future.done():
            future.set_exception(decode_error(event.payload))

    def _timer_fired(self, event: HistoryEvent) -> None:
        assert event.ref is not None
        handle = self._timers.pop(event.ref, None)
        if handle is not None:
            handle.timer_id = None
            self._loop.fire(handle)

    def _carried(self) -> dict[str, Any]:
        """What the next run gets of this one, beside its input."""
        unread = (("events", self.waits.left()), ("messages", self.subscriptions.unread()))
        mailbox = {name: left for name, left in unread if left}
        return self.subscriptions.carried() | ({"mailbox": mailbox} if mailbox else {})

    def _outcome(self, main: asyncio.Task[bytes]) -> Command:
        if main.cancelled():
            if self._cancel is not None:
                return cancellation(self._cancel)
            error: BaseException | None = asyncio.CancelledError("the workflow's own code cancelled it")
        else:
            error = main.exception()
        if error is None:
            return Command(h.WORKFLOW_COMPLETED, payload=main.result())
        if _is_recurring(error):
            return Command(h.WORKFLOW_RECURRED, None, self._carried(), self.following_input)
        return Command(h.WORKFLOW_FAILED, payload=encode_error(error, retryable=False))


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {
    h.WORKFLOW_STARTED: LiveInstance._started,
    h.ACTIVITY_COMPLETED: LiveInstance._activity_completed,
    h.ACTIVITY_FAILED: LiveInstance._activity_failed,
    h.TIMER_FIRED: LiveInstance._timer_fired,
    h.WORKFLOW_CANCEL_REQUESTED: LiveInstance._cancel_requested,
    **waits.DELIVER,
    **subscriptions.DELIVER,
    **handlers.DELIVER,
    **children.DELIVER,
    **turns.DELIVER,
}
"""What an input does to a live instance, by kind."""


def _is_recurring(error: BaseException) -> bool:
    """Also out of a task group, which wraps it; but a group that holds anything else has failed."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_recurring(each) for each in error.exceptions)
    return isinstance(error, Recurred)


def cancellation(request: dict[str, Any]) -> Command:
    """The end of an instance that was asked to end. `request`: attrs of `workflow.cancel_requested`."""
    return Command(h.WORKFLOW_CANCELLED, payload=orjson.dumps({name: request[name] for name in ("reason", "by")}))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def replay(live: LiveInstance, events: Iterable[HistoryEvent]) -> list[HistoryEvent]:
    """Feeds a history to fresh code. Raises NonDeterminismError where the code asks for other things than it did.

    Returns the inputs that the code has not seen, because the instance was parked when they came: empty for an
    instance that is not parked. While parked, inputs are recorded and kept; `workflow.resumed` delivers them, and
    the commands that follow it are the answers to all of them.
    """
    events = list(events)
    undelivered = {seq for event in events if event.kind == h.WORKFLOW_PARKED for seq in event.attrs["undelivered"]}
    outstanding: deque[Command] = deque()
    kept: list[HistoryEvent] = []
    parked = False
    live.replaying = True
    live.handlers.learn(events)
    for event in events:
        if event.kind == h.WORKFLOW_PARKED:
            parked = True
        elif event.kind == h.WORKFLOW_RESUMED:
            parked = False
            for late in kept:
                outstanding.extend(live.deliver(_at(late, event.at_us)))
            kept = []
        elif event.kind in h.INPUTS:
            _expect_none(live, outstanding, event)
            if parked or event.seq in undelivered:
                kept.append(event)
            else:
                outstanding.extend(live.deliver(event))
        elif event.kind in h.COMMANDS and BY_ENGINE not in event.attrs:
            _check(live, outstanding, event)
        elif event.kind == h.WORKFLOW_COMPENSATING:
            if BY_ENGINE not in event.attrs:
                _check(live, outstanding, replace(event, kind=f"workflow.{event.attrs['outcome']}"))
            break  # the code has ended; what follows is the engine's
    _expect_none(live, outstanding, None)
    live.replaying = False
    return kept


def deliver_late(live: LiveInstance, kept: Iterable[HistoryEvent], at_us: int) -> list[Command]:
    """What a resumed instance answers to the inputs that waited for it."""
    return [command for event in kept for command in live.deliver(_at(event, at_us))]


def _at(event: HistoryEvent, at_us: int) -> HistoryEvent:
    return replace(event, at_us=at_us)


def _check(live: LiveInstance, outstanding: deque[Command], event: HistoryEvent) -> None:
    if live.handlers.passes_over(event):
        return
    recorded = Command(event.kind, event.ref, event.attrs)
    if not outstanding:
        raise NonDeterminismError(live.instance_id, str(recorded), "nothing")
    actual = outstanding.popleft()
    same = actual.kind == event.kind and actual.ref == event.ref
    if not same or any(actual.attrs.get(name) != event.attrs.get(name) for name in ("name", "type", "workflow")):
        raise NonDeterminismError(live.instance_id, str(recorded), str(actual))


def _expect_none(live: LiveInstance, outstanding: deque[Command], event: HistoryEvent | None) -> None:
    if outstanding:
        expected = "nothing more" if event is None else f"to wait for {Command(event.kind, event.ref)}"
        raise NonDeterminismError(live.instance_id, expected, str(outstanding[0]))
