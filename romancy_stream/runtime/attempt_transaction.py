"""The one database transaction of an attempt: the user's session, and the end that only the engine may put to it.
Opened when it is first needed. Knows SQLAlchemy, no tables and no workflows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NoReturn

from sqlalchemy import Connection, RootTransaction, event
from sqlalchemy.exc import DBAPIError, IllegalStateChangeError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from romancy_stream.errors import ActivityContextError, CommitUnknownError, StoreUnavailableError
from romancy_stream.store.database import BUSY_TIMEOUT_S, POOL_SIZE, POOL_TIMEOUT_S, SQLITE
from romancy_stream.store.failures import code_of, is_lost

log = logging.getLogger(__name__)

_MYSQL: Final = ("mysql", "mariadb")
_NO_SUCH_THREAD: Final = 1094
_ABORTED: Final = "25P02"  # PostgreSQL

BUSY_PAUSE_S: Final = 0.02
BUSY_LIMIT_S: Final = 10.0
"""How long a task that the activity left behind may be in the middle of opening the transaction. Longer than SQLite
and the pool of connections wait for their turn, and then the connection is cut off."""

COMMITS_AT_ONCE: Final = POOL_SIZE
"""Of attempts that need no connection before their end. With more of them the pool would open connections that it does
not keep, each at the price of several commits."""
COMMITS_AT_ONCE_SQLITE: Final = 1
"""It has one writer at a time, and the others would ask again and again, with pauses."""
TURN_LIMIT_S: Final = float(POOL_TIMEOUT_S + BUSY_TIMEOUT_S)
"""How long an attempt waits to be one of them: as long as the pool and SQLite together have one wait."""

_TURNS: Final[weakref.WeakKeyDictionary[AsyncEngine, asyncio.Semaphore]] = weakref.WeakKeyDictionary()


class ActivitySession(Session):
    """A session whose transaction is ended by the engine. Savepoints are the user's."""

    opened_on: Connection | None = None
    opened_root: RootTransaction | None = None
    server_thread: int | None = None  # MariaDB and MySQL
    committed = False

    engine_begin = Session.begin
    engine_commit = Session.commit
    engine_close = Session.close

    def begin(self, nested: bool = False) -> SessionTransaction:
        if not nested:
            _refuse("begin")
        return super().begin(nested=True)

    def commit(self) -> None:
        _refuse("commit")

    def rollback(self) -> None:
        _refuse("rollback")

    def prepare(self) -> None:
        _refuse("prepare")

    def close(self) -> None:
        _refuse("close")

    def reset(self) -> None:
        _refuse("reset")

    def invalidate(self) -> None:
        _refuse("invalidate")

    def engine_abandon(self) -> None:
        """Ends the connection, which frees its place in the pool. Leaves the session and the rest alone: a thread may
        be in the middle of them, and should get no further than to an error."""
        if self.opened_on is not None and not self.opened_on.closed:
            self.opened_on.invalidate()


def _refuse(what: str) -> NoReturn:
    raise ActivityContextError(
        f"session.{what}() is not for activities: the engine commits the session with the activity's result, and rolls "
        "it back when the activity raises; for a part that may fail use session.begin_nested()"
    )


@event.listens_for(ActivitySession, "after_begin")
def _opened(session: ActivitySession, _transaction: SessionTransaction, connection: Connection) -> None:
    if session.opened_on is None:
        root = connection.get_transaction()
        assert root is not None
        session.opened_on = connection
        session.opened_root = root
        if connection.dialect.name in _MYSQL:
            driver: Any = connection.connection.driver_connection
            session.server_thread = driver.thread_id()


def _committed(session: ActivitySession) -> None:
    if not session.in_nested_transaction():
        session.committed = True


# Before those of users, who may listen to all sessions: what they raise must not be taken for the end of the commit.
event.listen(ActivitySession, "after_commit", _committed, insert=True)


class AttemptTransaction:
    """`whose`: for the log."""

    def __init__(self, engine: AsyncEngine, whose: object) -> None:
        self._engine = engine
        self._whose = whose
        self._session: AsyncSession | None = None
        self._root: SessionTransaction | None = None

    @property
    def is_open(self) -> bool:
        return self._session is not None

    @property
    def session(self) -> AsyncSession:
        if self._session is None:
            self._session = AsyncSession(
                self._engine,
                sync_session_class=ActivitySession,
                expire_on_commit=False,
                close_resets_only=False,  # a task that is left behind must not begin another transaction with it
            )
            self._root = _sync(self._session).engine_begin()
        return self._session

    async def commit(self, write: Callable[[Connection], bool]) -> bool:
        """What the session holds and what `write` writes, or nothing: False when `write` says no. Raises what went
        wrong after it was rolled back, and CommitUnknownError when nobody can say. What hooks of the session raise
        after the commit is logged."""
        try:
            async with self._turn():
                # One greenlet for all of it: each costs as much as half a round trip.
                return await self.session.run_sync(self._commit, write)
        finally:
            await self.roll_back()  # when all is committed: so that nobody begins another transaction with the session

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Who has a connection needs none, and may be what those wait for who have one."""
        if _sync(self.session).opened_on is not None:
            yield
            return
        turns = _turns(self._engine)
        try:
            async with asyncio.timeout(TURN_LIMIT_S):
                await turns.acquire()
        except TimeoutError:
            raise StoreUnavailableError(f"no connection to commit with was free within {TURN_LIMIT_S:g} s") from None
        try:
            yield
        finally:
            turns.release()

    def _commit(self, session: Session, write: Callable[[Connection], bool]) -> bool:
        assert isinstance(session, ActivitySession)
        try:
            session.flush()
            connection = session.connection()
            self._require_untouched(session)
            if not write(connection):
                return False
        except DBAPIError as error:
            if code_of(error) != _ABORTED:
                raise
            raise ActivityContextError(
                "a statement of the activity failed and its error was caught, after which PostgreSQL takes nothing "
                "more in this transaction: put what may fail inside `async with ctx.session.begin_nested()`"
            ) from error
        try:
            session.engine_commit()
        except Exception as error:
            if session.committed:
                log.exception(
                    "%s: a hook of its session failed after the commit; what was committed stays", self._whose
                )
                return True
            if is_lost(error):
                raise CommitUnknownError(f"the connection broke during the commit: {error}") from error
            raise
        return True

    def _require_untouched(self, session: ActivitySession) -> None:
        root = session.opened_root
        if session.get_transaction() is self._root and root is not None and root.is_active:
            return
        raise ActivityContextError(
            "the activity ended its transaction by itself (through session.connection() or session.get_transaction()): "
            "the engine commits it with the activity's result"
        )

    async def roll_back(self) -> None:
        session = self._session
        if session is None:
            return
        give_up_at = time.monotonic() + BUSY_LIMIT_S
        while not await self._end(session, _close):
            if time.monotonic() > give_up_at:
                await self._end(session, _abandon)
                return
            await asyncio.sleep(BUSY_PAUSE_S)

    async def abandon(self) -> None:
        """While a thread may still be using the session: the server rolls back, as the connection ends."""
        if self._session is not None:
            await self._end(self._session, _abandon)

    async def _end(self, session: AsyncSession, how: Callable[[Session], None]) -> bool:
        """False: another task of the activity is in the middle of using the session."""
        opened_on = _sync(session).opened_on
        cut_off = how is _abandon or (opened_on is not None and opened_on.invalidated)
        try:
            if session.in_transaction():
                await session.run_sync(how)
            else:  # it was committed: nothing is left to wait for
                how(_sync(session))
            if cut_off:
                await self._kill(_sync(session).server_thread)
        except IllegalStateChangeError:
            return False
        except Exception as error:  # then the connection is broken, and the server rolls back
            log.info("a transaction could not be rolled back in order: %r", error)
        return True

    async def _kill(self, server_thread: int | None) -> None:
        """MariaDB and MySQL go on with a statement, and keep its locks, when the connection ends in the middle."""
        if server_thread is None:
            return
        async with self._engine.connect() as connection:
            try:
                await connection.exec_driver_sql(f"KILL {server_thread}")
            except DBAPIError as error:
                if code_of(error) != _NO_SUCH_THREAD:
                    raise


def _turns(engine: AsyncEngine) -> asyncio.Semaphore:
    turns = _TURNS.get(engine)
    if turns is None:
        limit = COMMITS_AT_ONCE_SQLITE if engine.dialect.name == SQLITE else COMMITS_AT_ONCE
        turns = _TURNS[engine] = asyncio.Semaphore(limit)
    return turns


def _sync(session: AsyncSession) -> ActivitySession:
    sync_session = session.sync_session
    assert isinstance(sync_session, ActivitySession)
    return sync_session


def _close(session: Any) -> None:
    session.engine_close()


def _abandon(session: Any) -> None:
    session.engine_abandon()
