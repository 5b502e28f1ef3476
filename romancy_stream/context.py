"""`ctx`: what workflow code may use of the world outside. Everything here is the same again on replay."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar, overload
from uuid import UUID

from romancy_stream.child import ChildHandle, start_child
from romancy_stream.engine.definitions import Publication, Scope
from romancy_stream.engine.matching import checked_match
from romancy_stream.engine.payload import encode_data
from romancy_stream.events import EventType, ReceivedEvent, checked_type, received
from romancy_stream.messaging import ChannelContext
from romancy_stream.options import ParentClose
from romancy_stream.spans import in_seconds, in_us
from romancy_stream.wire.event import RESERVED_PREFIX

if TYPE_CHECKING:
    from romancy_stream.activity import Activity
    from romancy_stream.workflow import Startable

P = ParamSpec("P")
R = TypeVar("R")
I = TypeVar("I")  # noqa: E741
M = TypeVar("M")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# A thousand years: due times stay within what datetime and a BIGINT hold.
LONGEST_SLEEP_US: Final = 1_000 * 366 * 86_400 * 1_000_000
PATCH_CHARS: Final = 200
"""Of a patch's name: it stands in the column of references in the history."""
_US: Final = timedelta(microseconds=1)


class WorkflowContext(ChannelContext):
    """One per run; the first parameter of every workflow."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def instance_id(self) -> str:
        return self._scope.instance_id

    @property
    def run(self) -> int:
        """Generation of the instance, from 1."""
        return self._scope.run

    @property
    def workflow_name(self) -> str:
        return self._scope.workflow_name

    @property
    def is_replaying(self) -> bool:
        """For logging only: what depends on it is not the same on replay."""
        return self._scope.replaying

    @property
    def random(self) -> Random:
        return self._scope.random

    def now(self) -> datetime:
        """Log time, aware, UTC: stands still between two awaits."""
        return EPOCH + timedelta(microseconds=self._scope.now_us())

    def uuid(self) -> UUID:
        return self._scope.uuid()

    async def sleep(self, duration: float | timedelta) -> None:
        """Durable. In seconds, or a timedelta; nothing or less has passed already."""
        await self._scope.start_timer(self._scope.now_us() + _duration_us(duration))

    async def sleep_until(self, moment: datetime) -> None:
        """Durable. ValueError for a naive datetime; a moment in the past has passed already."""
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise ValueError(f"sleep_until needs an aware datetime, {moment!r} has no time zone")
        await self._scope.start_timer((moment - EPOCH) // _US)

    @overload
    async def wait_event(
        self,
        type: EventType[M],
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        model: None = None,
    ) -> ReceivedEvent[M]: ...
    @overload
    async def wait_event(
        self,
        type: str,
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        model: None = None,
    ) -> ReceivedEvent[Any]: ...
    @overload
    async def wait_event(
        self,
        type: str | EventType[Any],
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        model: type[M],
    ) -> ReceivedEvent[M]: ...
    @overload
    async def wait_event(
        self,
        type: str | EventType[Any],
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        model: Any,
    ) -> ReceivedEvent[Any]: ...
    async def wait_event(
        self,
        type: str | EventType[Any],
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        model: Any = None,
    ) -> ReceivedEvent[Any]:
        """An event of this type that names this instance, or whose data has the values of `match`: `{"order_id": "o-1",
        "customer.country": "DE"}`. `timeout` in seconds, or a timedelta: EventTimeoutError. `model`: the type of the
        data, that of `app.event` by default; PayloadError when it does not fit. ValueError for a wrong match."""
        waits, name = self._scope.waits, type.type if isinstance(type, EventType) else checked_type(type)
        timeout_us = None if timeout is None else _duration_us(timeout, "timeout")
        arrived = await waits.wait(name, checked_match(match), timeout_us)
        if model is None:
            model = (type.model if isinstance(type, EventType) else None) or waits.models.get(name)
        return received(arrived.attrs, arrived.data, model)

    @property
    def state(self) -> Any:
        """What the code and its signal, query and update handlers share: set any attributes. One per run."""
        return self._scope.handlers.state

    async def wait_condition(self, condition: Callable[[], object], timeout: float | timedelta | None = None) -> None:
        """Until the condition is true; it is looked at after every step of the code. `timeout` in seconds, or a
        timedelta, durable: TimeoutError. What the condition raises is raised here. TypeError for an `async def`."""
        if not callable(condition) or inspect.iscoroutinefunction(condition):
            raise TypeError(f"a condition is a plain function without parameters, not {condition!r}")
        handlers = self._scope.handlers
        timeout_s = None if timeout is None else _duration_us(timeout, "timeout") / 1_000_000
        if not handlers.holds(condition):
            async with asyncio.timeout(timeout_s):
                await handlers.when(condition)

    def all_handlers_finished(self) -> bool:
        """Whether no signal or update is being worked on: what still is when the run ends is given up. As in
        `await ctx.wait_condition(ctx.all_handlers_finished)`."""
        return self._scope.handlers.all_finished

    def patched(self, patch: str) -> bool:
        """Whether this run has the change of the code that you name so: True for runs that come here for the first time
        now, False for those that were here before the change. ValueError for a name that is none."""
        name = _patch(patch)
        return self._scope.handlers.patched(name)

    def deprecate_patch(self, patch: str) -> None:
        """In place of `patched`, once no run is left that would get False: old runs still replay, new ones know nothing
        of it any more. ValueError for a name that is none."""
        name = _patch(patch)
        self._scope.handlers.deprecate_patch(name)

    # -- children ------------------------------------------------------------------------------------------------
    @overload
    async def child(
        self,
        workflow: Startable[[], R],
        /,
        *,
        instance_id: str | None = None,
        parent_close: ParentClose = "cancel",
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> R: ...
    @overload
    async def child(
        self,
        workflow: Startable[[I], R],
        input: I,
        /,
        *,
        instance_id: str | None = None,
        parent_close: ParentClose = "cancel",
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> R: ...
    @overload
    async def child(self, workflow: Startable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def child(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a workflow of its own, in its own instance, and returns its result. ChildWorkflowError, whose cause is
        the child's error; ChildCancelledError. `parent_close`: when this run ends first, however it does, the child is
        cancelled, or goes on; the same when this call is cancelled. Named parameters take options by
        `workflow.with_options(...)`."""
        return await start_child(self._scope, workflow, args, kwargs)._outcome()

    @overload
    async def start_child(
        self,
        workflow: Startable[[], R],
        /,
        *,
        instance_id: str | None = None,
        parent_close: ParentClose = "cancel",
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> ChildHandle[R]: ...
    @overload
    async def start_child(
        self,
        workflow: Startable[[I], R],
        input: I,
        /,
        *,
        instance_id: str | None = None,
        parent_close: ParentClose = "cancel",
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> ChildHandle[R]: ...
    @overload
    async def start_child(self, workflow: Startable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> ChildHandle[R]: ...
    async def start_child(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `child`, without waiting for the result."""
        return start_child(self._scope, workflow, args, kwargs)

    # -- runs ----------------------------------------------------------------------------------------------------
    async def recur(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Ends this run and begins the next one, under the same id, with this input: the workflow's own parameters.
        Whoever waits for the instance waits on. Call it in the workflow's own task, not in one that it has made:
        RuntimeError. TypeError for a call that does not fit the parameters, PayloadError."""
        self._scope.recur(args, kwargs)

    def on_rollback(self, activity: Activity[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Should this run fail or be cancelled, the activity runs with these arguments: among the compensations of
        activities, the last one first. TypeError for a wrong call, PayloadError."""
        if not hasattr(activity, "call_with"):
            raise TypeError(f"on_rollback takes an activity (decorate it as one), not {activity!r}")
        self._scope.register_compensation(activity.call_with(activity.parameters.encode_call(args, kwargs)))

    def publish_event(
        self,
        *,
        type: str,
        data: Any = None,
        source: str | None = None,
        subject: str | None = None,
        topic: str | None = None,
    ) -> None:
        """A CloudEvent, sent once this step is durable; never again on replay. ValueError, PayloadError."""
        self._scope.publish(publication(type, data, source, subject, topic))


def publication(type: str, data: Any, source: str | None, subject: str | None, topic: str | None) -> Publication:
    """Raises ValueError for what is no CloudEvent of a user, PayloadError."""
    given = {"type": type, "source": source, "subject": subject, "topic": topic}
    for name, value in given.items():
        if value is not None and (not isinstance(value, str) or not value or "\x00" in value):
            raise ValueError(f"{name} must be a text that is not empty, not {value!r}")
    if type.startswith(RESERVED_PREFIX):
        raise ValueError(f"type {type!r}: types that begin with {RESERVED_PREFIX!r} are the engine's own")
    return Publication(type, encode_data(data, f"data of event {type!r}"), source, subject, topic)


def _duration_us(duration: float | timedelta, what: str = "sleep") -> int:
    if not math.isfinite(in_seconds(duration)):
        raise ValueError(f"a {what} must be finite, not {duration!r}")
    us = in_us(duration)
    if us > LONGEST_SLEEP_US:
        raise ValueError(f"a {what} may last {LONGEST_SLEEP_US // 1_000_000:,} s at most, not {duration!r}")
    return max(0, us)


def _patch(patch: str) -> str:
    if not isinstance(patch, str) or not 0 < len(patch) <= PATCH_CHARS or not patch.isprintable():
        raise ValueError(f"a patch has a name of 1 to {PATCH_CHARS} printable characters, not {patch!r}")
    return patch
