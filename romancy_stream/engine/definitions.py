"""What the core needs to know of user code, as protocols: the public `Workflow` and `Activity` objects implement
them, so that the core never imports the public API. And the other way: what a running workflow offers to the code
inside it (`Scope`), found through `current_scope()`.

The core steps one workflow at a time, in one thread, without awaiting anything else, so the current scope is a
thread-local set around each step and not a context variable.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from romancy_stream.retry import RetryPolicy

if TYPE_CHECKING:
    from romancy_stream.engine.children import Children
    from romancy_stream.engine.handlers import Handlers
    from romancy_stream.engine.subscriptions import Subscriptions
    from romancy_stream.engine.waits import Waits


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Publication:
    """A CloudEvent published by workflow code. `data` is raw JSON; `source`, `topic` None: the defaults."""

    type: str
    data: bytes | None
    source: str | None
    subject: str | None
    topic: str | None


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

    def schedule_activity(self, call: ActivityCall) -> asyncio.Future[bytes | None]:
        """Result: raw JSON. Raises DuplicateActivityIdError at once; the future raises the activity's error."""
        ...

    def start_timer(self, due_us: int) -> asyncio.Future[None]: ...
    def publish(self, publication: Publication) -> None: ...


class WorkflowDef(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def event_handler(self) -> bool: ...

    def decode(self, payload: bytes | None) -> Any:
        """The arguments, typed. Raises InvalidInputError."""
        ...

    def invoke(self, scope: Scope, arguments: Any) -> Coroutine[Any, Any, bytes]:
        """Runs the function and encodes what it returns. Raises PayloadError when that cannot be encoded."""
        ...


Registry = Mapping[str, WorkflowDef]

_local = threading.local()


def current_scope() -> Scope | None:
    """The workflow whose code is running right now in this thread, or None."""
    return getattr(_local, "scope", None)


def set_current_scope(scope: Scope | None) -> None:
    _local.scope = scope
