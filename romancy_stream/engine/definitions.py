"""What the core needs to know of user code, as protocols: the public `Workflow` and `Activity` objects implement
them, so that the core never imports the public API. And the other way: what a running workflow offers to the code
inside it (`Scope`), found through `current_scope()`.

The core steps one workflow at a time, in one thread, without awaiting anything else, so the current scope is a
thread-local set around each step and not a context variable.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar
from uuid import UUID

from romancy_stream.retry import RetryPolicy
from romancy_stream.wire.value import value

if TYPE_CHECKING:
    from romancy_stream.engine.children import Children
    from romancy_stream.engine.handlers import Handlers
    from romancy_stream.engine.subscriptions import Subscriptions
    from romancy_stream.engine.waits import Waits


HandlerKind = Literal["signal", "query", "update"]


@value
class ActivityCall:
    """One call of an activity in workflow code. `args` is raw JSON `{"args": [...], "kwargs": {...}}`;
    `policy` None: the app's default. `activity_id` None: automatic."""

    name: str
    args: bytes
    queue: str
    policy: RetryPolicy | None
    timeout_s: float | None
    total_timeout_s: float | None
    activity_id: str | None
    heartbeat_timeout_s: float | None = None
    priority: int | None = None
    undo: UndoCall | None = None


@dataclass(frozen=True, slots=True)
class UndoCall:
    """The compensation of a call. `wants_result`: the activity's result becomes its keyword argument `result`."""

    call: ActivityCall
    wants_result: bool


@dataclass(frozen=True, slots=True)
class Publication:
    """A CloudEvent that user code publishes. `data` is raw JSON; `source`, `topic` None: the defaults. `channel`: it is
    a message to that channel, with `metadata`, the text of a JSON object."""

    type: str
    data: bytes | None
    source: str | None
    subject: str | None
    topic: str | None
    channel: str | None = None
    metadata: str | None = None


class Scope(Protocol):
    """One running workflow instance, as seen from inside."""

    @property
    def instance_id(self) -> str: ...
    @property
    def run(self) -> int: ...
    @property
    def workflow_name(self) -> str: ...
    @property
    def replaying(self) -> bool: ...
    @property
    def random(self) -> Random: ...
    @property
    def waits(self) -> Waits: ...
    @property
    def subscriptions(self) -> Subscriptions: ...
    @property
    def handlers(self) -> Handlers: ...
    @property
    def children(self) -> Children: ...

    def now_us(self) -> int: ...
    def uuid(self) -> UUID: ...
    def refuse_if_leaving(self) -> None:
        """Raises what ends the code of an instance that leaves the cache."""
        ...

    def schedule_activity(self, call: ActivityCall) -> asyncio.Future[bytes | None]:
        """Result: raw JSON. Raises DuplicateActivityIdError at once; the future raises the activity's error."""
        ...

    def register_compensation(self, call: ActivityCall) -> None: ...
    def start_timer(self, due_us: int) -> asyncio.Future[None]: ...
    def publish(self, publication: Publication) -> None: ...
    def recur(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NoReturn:
        """Ends the run; another one begins with this input. RuntimeError outside of the workflow's own task, TypeError
        for a wrong call, PayloadError, InvalidInputError."""
        ...


class HandlerDef(Protocol):
    """A signal, query or update of a workflow."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> HandlerKind: ...

    def decode(self, payload: bytes | None) -> Any:
        """The arguments, typed. Raises InvalidInputError."""
        ...

    def invoke(self, scope: Scope, arguments: Any) -> Coroutine[Any, Any, bytes]:
        """Of a signal or an update: runs the function and encodes what it returns. Raises PayloadError."""
        ...

    def validate(self, scope: Scope, arguments: Any) -> None:
        """Of an update: raises what its validator raises."""
        ...

    def answer(self, scope: Scope, arguments: Any) -> bytes:
        """Of a query. Raises what the function raises, PayloadError."""
        ...


class WorkflowDef(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str | None: ...
    @property
    def event_handler(self) -> bool: ...
    @property
    def slot(self) -> tuple[str | None, int] | None:
        """The field of the input that runs share which take turns (None: all of them), and how many are at work at a
        time. None: they do not take turns."""
        ...

    @property
    def handlers(self) -> Mapping[str, HandlerDef]: ...

    def make(self, scope: Scope) -> Any:
        """The object that a run's code and its handlers share, where the workflow is a class."""
        ...

    def encode(self, *args: Any, **kwargs: Any) -> bytes | None:
        """The input as `decode` takes it. TypeError for a wrong call, PayloadError."""
        ...

    def decode(self, payload: bytes | None) -> Any:
        """The arguments, typed. Raises InvalidInputError."""
        ...

    def invoke(self, scope: Scope, arguments: Any) -> Coroutine[Any, Any, bytes]:
        """Runs the function and encodes what it returns. Raises PayloadError when that cannot be encoded."""
        ...


D_co = TypeVar("D_co", bound=WorkflowDef, covariant=True)
Registry = Mapping[str, WorkflowDef]
"""By name, the version that new runs get."""


class Versions(Mapping[str, D_co]):
    """A `Registry` that knows further versions."""

    def at(self, name: str, version: str | None) -> D_co | None:
        raise NotImplementedError


def definition_of(workflows: Registry, name: str, version: str | None) -> WorkflowDef | None:
    """The code of an instance that was started with this version of it; None: it is not here."""
    if isinstance(workflows, Versions):
        return workflows.at(name, version)
    newest = workflows.get(name)
    return newest if newest is not None and newest.version == version else None


def begun_as(workflows: Registry, started: Mapping[str, Any]) -> WorkflowDef | None:
    """As `definition_of`, by the attributes of a `workflow.started`."""
    return definition_of(workflows, started["workflow"], started.get("version"))


def no_code(workflows: Registry, name: str, version: str | None) -> LookupError:
    """Says what is missing where `definition_of` finds nothing."""
    if name not in workflows:
        return LookupError(f"no workflow named {name!r} is registered in this process")
    which = "without a version" if version is None else f"of version {version!r}"
    return LookupError(f"this process has a workflow named {name!r}, but none {which}")


_local = threading.local()


def current_scope() -> Scope | None:
    """The workflow whose code is running right now in this thread, or None."""
    return getattr(_local, "scope", None)


def set_current_scope(scope: Scope | None) -> None:
    _local.scope = scope
