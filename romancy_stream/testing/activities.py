"""An attempt of an activity without an engine: its session is the test's own, and what it publishes is kept for the
test to look at. Nothing is committed here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from romancy_stream.activity import ActivityContext, ActivityInfo, AttemptBackend, attempt
from romancy_stream.engine.definitions import Publication
from romancy_stream.engine.payload import encode_data
from romancy_stream.errors import ActivityCancelledError, ActivityContextError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

T = TypeVar("T")


@dataclass
class TestedAttempt:
    """What the code under test did. `published`: (type, data as plain JSON); `messages`: (channel, data);
    `callbacks`: those given to on_commit,
    which the test may call; `heartbeats`: their details as plain JSON. Set `cancelled` for what a plain activity sees
    when it is to stop."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    ctx: ActivityContext = field(init=False)
    published: list[tuple[str, Any]] = field(default_factory=list)
    messages: list[tuple[str, Any]] = field(default_factory=list)
    callbacks: list[Callable[[], Awaitable[None] | None]] = field(default_factory=list)
    heartbeats: list[Any] = field(default_factory=list)
    cancelled: bool = False


class _Backend:
    def __init__(
        self,
        tested: TestedAttempt,
        session: AsyncSession | None,
        sync_session: Session | None,
        heartbeat_details: bytes | None,
    ) -> None:
        self.heartbeat_details = heartbeat_details
        self._tested = tested
        self._session = session
        self._sync_session = sync_session

    def session(self) -> AsyncSession:
        if self._session is None:
            raise ActivityContextError("this test gave no session: activity_context(session=...)")
        return self._session

    def sync_session(self) -> Session:
        if self._sync_session is None:
            raise ActivityContextError("this test gave no session: activity_context(sync_session=...)")
        return self._sync_session

    def publish(self, publication: Publication) -> None:
        data = None if publication.data is None else orjson.loads(publication.data)
        if publication.channel is not None:
            self._tested.messages.append((publication.channel, data))
            return
        self._tested.published.append((publication.type, data))

    def on_commit(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        self._tested.callbacks.append(callback)

    def heartbeat(self, details: bytes | None) -> None:
        self._tested.heartbeats.append(None if details is None else orjson.loads(details))
        if self._tested.cancelled:
            raise ActivityCancelledError("the test cancelled it")

    @property
    def cancelled(self) -> bool:
        return self._tested.cancelled

    def call_plain(self, function: Callable[[], T]) -> T:
        return function()


def backend_of(tested: TestedAttempt) -> AttemptBackend:
    """Of an attempt without a session."""
    return _Backend(tested, None, None, None)


@contextmanager
def activity_context(
    *,
    session: AsyncSession | None = None,
    sync_session: Session | None = None,
    attempt_number: int = 1,
    instance_id: str = "test",
    activity_id: str = "test:1",
    activity_name: str = "test",
    heartbeat_details: Any = None,
) -> Iterator[TestedAttempt]:
    """Inside, activities that take a `ctx` can be called like functions:

    with activity_context(session=session) as tested:
        await save(order)
    assert tested.published == [("order.saved", {...})]
    """
    tested = TestedAttempt()
    info = ActivityInfo(instance_id, 1, activity_id, activity_name, attempt_number)
    details = encode_data(heartbeat_details, "heartbeat_details")
    tested.ctx = ActivityContext(info, _Backend(tested, session, sync_session, details))
    with attempt(tested.ctx):
        yield tested
