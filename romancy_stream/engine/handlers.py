"""A part of a live instance: its signal, update and query handlers, conditions that wait for what they change, and
which patches of its code the run has. Handlers run as tasks beside the workflow's own, in the order in which signals
and updates came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine.definitions import HandlerDef, HandlerKind, WorkflowDef, current_scope, set_current_scope
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.loop import StepTooLong, WorkflowLoop
from romancy_stream.engine.turns import Code
from romancy_stream.errors import NonDeterminismError, PayloadError, ReadOnlyError, UnknownHandlerError

if TYPE_CHECKING:
    from romancy_stream.engine.instance import LiveInstance

Condition = Callable[[], object]

SETTLE_LIMIT: Final = 100_000
"""Conditions that come true in one step. Two tasks that wake each other through conditions would never end."""
ANSWERS_KEPT: Final = 100
"""Outcomes of updates in memory, for senders that repeat an update: they do so soon."""


class State(SimpleNamespace):
    """`ctx.state`: whatever the workflow's code and its handlers share. It is made again on replay."""

    __slots__ = ("_loop_of_run",)  # beside the dict of what users set

    def __init__(self, loop: WorkflowLoop) -> None:
        object.__setattr__(self, "_loop_of_run", loop)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(f"ctx.state.{name} was set")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse(f"ctx.state.{name} was deleted")
        super().__delattr__(name)

    def _refuse(self, what: str) -> None:
        if self._loop_of_run.read_only:
            raise ReadOnlyError(f"{what} by a query, a validator or a condition: they may only look")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"ctx.state has no {name!r} yet: set it before the workflow's first await, or use getattr(..., default)",
            name=name,
            obj=self,
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"ctx.state({shown})"


class Handlers:
    """`failure` is what a signal handler raised. `answers`: update -> how it ended, with the result or the error."""

    def __init__(self, live: LiveInstance) -> None:
        self._live = live
        self._state: State | None = None
        self._made = False
        self._target: Any = None
        self._conditions: list[tuple[Condition, asyncio.Future[None]]] = []
        self._running: set[asyncio.Task[bytes]] = set()
        self._markers: frozenset[str] = frozenset()
        self._patches: dict[str, bool] = {}
        self._deprecated: set[str] = set()
        self.failure: BaseException | None = None
        self.answers: dict[str, tuple[str, bytes]] = {}

    # -- what code sees ------------------------------------------------------------------------------------------
    @property
    def state(self) -> State:
        if self._state is None:
            self._state = State(self._live.loop)
        return self._state

    @property
    def target(self) -> Any:
        """The object of a workflow that is a class, made when it is first needed."""
        if not self._made:
            self._target = self._live.definition.make(self._live)
            self._made = True
        return self._target

    @property
    def all_finished(self) -> bool:
        return not self._running

    def holds(self, condition: Condition) -> bool:
        with self.reading():
            return bool(condition())

    def when(self, condition: Condition) -> asyncio.Future[None]:
        """Done once the condition holds; cancel it to wait no longer."""
        future: asyncio.Future[None] = self._live.loop.create_future()
        self._conditions.append((condition, future))
        return future

    def patched(self, patch: str) -> bool:
        """The same answer for the whole run: on replay that of the history, else yes."""
        known = self._patches.get(patch)
        if known is None:
            if patch in self._deprecated:
                known = True
            elif self._live.replaying:
                known = patch in self._markers
            else:
                known = True
            self._patches[patch] = known
            if known and patch not in self._deprecated:
                self._live.emit(h.PATCH_MARKED, patch)
        return known

    def deprecate_patch(self, patch: str) -> None:
        """From here on a marker of it in the history is passed over."""
        self._deprecated.add(patch)

    # -- for the engine ------------------------------------------------------------------------------------------
    def learn(self, history: Iterable[HistoryEvent]) -> None:
        """Before a replay: what the history says that code asks for at once."""
        self._markers = frozenset(event.ref for event in history if event.kind == h.PATCH_MARKED and event.ref)

    def passes_over(self, event: HistoryEvent) -> bool:
        return event.kind == h.PATCH_MARKED and event.ref in self._deprecated

    def settle(self) -> None:
        """Wakes who waits for a condition, in order and one at a time, until nobody can go on. Raises StepTooLong."""
        loop = self._live.loop
        for _ in range(SETTLE_LIMIT):
            if not self._wake_one() and loop.is_idle:
                return
            loop.run_until_idle()
        raise StepTooLong

    def _wake_one(self) -> bool:
        """One at a time: what it does may make the next one's condition false again."""
        self._conditions = [pair for pair in self._conditions if not pair[1].done()]
        for condition, future in self._conditions:
            try:
                if not self.holds(condition):
                    continue
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(None)
            return True
        return False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around code that may not change anything."""
        loop = self._live.loop
        before, loop.read_only = loop.read_only, True
        scope = current_scope()
        set_current_scope(self._live)
        try:
            yield
        finally:
            set_current_scope(scope)
            loop.read_only = before

    def check(self, handler: HandlerDef, arguments: Any) -> None:
        """Whether an update may be accepted: raises what its validator raises. If the loop is not idle afterwards, the
        validator has woken a task, and this live instance is none any more that a replay could make again."""
        with self.reading():
            handler.validate(self._live, arguments)

    def query(self, handler: HandlerDef, arguments: Any) -> bytes:
        """Raises what the handler raises, ReadOnlyError, PayloadError."""
        with self.reading():
            answer = handler.answer(self._live, arguments)
        if not self._live.loop.is_idle:
            raise ReadOnlyError(f"query {handler.name!r} has woken a task of the workflow")
        return answer

    def find(self, kind: HandlerKind, name: str) -> HandlerDef | None:
        return handler_of(self._live.definition, kind, name)

    def unknown(self, kind: HandlerKind, name: str) -> UnknownHandlerError:
        return unknown_handler(self._live.definition, kind, name)

    # -- inputs --------------------------------------------------------------------------------------------------
    def signal_received(self, event: HistoryEvent) -> None:
        task = self._start("signal", event)
        task.add_done_callback(self._signal_ended, context=Context())

    def update_accepted(self, event: HistoryEvent) -> None:
        task = self._start("update", event)
        task.add_done_callback(lambda task: self._update_ended(event, task), context=Context())

    def _start(self, kind: HandlerKind, event: HistoryEvent) -> asyncio.Task[bytes]:
        """Raises NonDeterminismError where the code has no such handler (any more), InvalidInputError."""
        name = event.attrs["name"]
        handler = self.find(kind, name)
        if handler is None:
            raise NonDeterminismError(self._live.instance_id, f"{kind} {name!r} came", "not know it")
        code: Code = partial(handler.invoke, self._live, handler.decode(event.payload))
        coro = code() if self._live.turns.has_begun else self._live.turns.once_begun(code)
        task = self._live.loop.create_task(coro, name=f"{kind} {name}", context=Context())
        self._running.add(task)
        return task

    def _signal_ended(self, task: asyncio.Task[bytes]) -> None:
        self._running.discard(task)
        if not task.cancelled() and self.failure is None:
            self.failure = task.exception()

    def _update_ended(self, event: HistoryEvent, task: asyncio.Task[bytes]) -> None:
        self._running.discard(task)
        assert event.ref is not None
        error: BaseException | None
        if task.cancelled():
            error = asyncio.CancelledError(f"the workflow's own code cancelled update {event.attrs['name']!r}")
        else:
            error = task.exception()
        if error is None:
            try:
                self._end(h.UPDATE_COMPLETED, event, task.result())
            except PayloadError as unsendable:
                error = unsendable
        if error is not None:
            self._end(h.UPDATE_FAILED, event, encode_error(error, retryable=False))

    def _end(self, kind: str, event: HistoryEvent, payload: bytes) -> None:
        assert event.ref is not None
        self._live.emit(kind, event.ref, event.attrs, payload)
        self.answers[event.ref] = (kind, payload)
        if len(self.answers) > ANSWERS_KEPT:
            del self.answers[next(iter(self.answers))]


def handler_of(definition: WorkflowDef, kind: HandlerKind, name: str) -> HandlerDef | None:
    handler = definition.handlers.get(name)
    return handler if handler is not None and handler.kind == kind else None


def unknown_handler(definition: WorkflowDef, kind: HandlerKind, name: str) -> UnknownHandlerError:
    known = ", ".join(sorted(each.name for each in definition.handlers.values() if each.kind == kind))
    return UnknownHandlerError(f"workflow {definition.name!r} has no {kind} {name!r}; it has {known or 'none'}")


DELIVER: Final[dict[str, Callable[[LiveInstance, HistoryEvent], None]]] = {
    h.SIGNAL_RECEIVED: lambda live, event: live.handlers.signal_received(event),
    h.UPDATE_ACCEPTED: lambda live, event: live.handlers.update_accepted(event),
}
