"""One database, reached through SQLAlchemy's async engines: plain URLs in, the settings of each dialect applied, and
connections that translate their errors. It knows no table.

Two pools. `engine` serves readers and the sessions of activities; `writer` serves the engine's own commits and
prefetches, so that activities which hold every connection of the first pool can never keep the engine from committing.
Both belong to the event loop in which `open` ran; after `close` the same object can be opened in another loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from romancy_stream.errors import ConfigurationError, StoreUnavailableError
from romancy_stream.store.failures import translating

log = logging.getLogger(__name__)
T = TypeVar("T")

POSTGRESQL: Final = "postgresql"
MYSQL: Final = "mysql"
SQLITE: Final = "sqlite"

POOL_SIZE: Final = 10  # kept open: what a process on one core can keep busy
POOL_OVERFLOW: Final = 10  # opened in a burst, closed after it; activities hold one for as long as they run
WRITER_POOL_SIZE: Final = 2  # one commit and one prefetch at a time
WRITER_POOL_OVERFLOW: Final = 2  # a takeover, or a retry beside a connection that is being given up
POOL_TIMEOUT_S: Final = 30  # then the caller hears that the database is not available
POOL_RECYCLE_S: Final = 1800  # below the idle limits of usual proxies and of MySQL (8 h)
CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_S: Final = 60  # the server ends a statement; a session may raise it with SET LOCAL
LOCK_TIMEOUT_S: Final = 20  # well below STATEMENT_TIMEOUT_S, so that the message names the lock
CALL_TIMEOUT_S: Final = STATEMENT_TIMEOUT_S + 15  # the network is gone when the server's own limit never arrives
CUT_OFF_S: Final = 3  # a healthy database ends any call of ours within this; nobody who leaves waits longer
CLOSE_TIMEOUT_S: Final = 3  # for goodbyes; a server that hangs does not answer them
MAINTENANCE_TIMEOUT_S: Final = 3600  # an index on a large table takes its time
BUSY_TIMEOUT_S: Final = 30  # SQLite: one writer at a time, and an activity may write for a while
STATEMENTS_LIMIT: Final = 512  # compiled ones of a SQLite connection; a commit has some 20 shapes in 10 sizes
WAL_RETRY_S: Final = 0.01  # the other one needs about a millisecond
KEEPALIVE_IDLE_S: Final = 30  # the server frees the locks of a client whose machine died after about a minute
KEEPALIVE_INTERVAL_S: Final = 10
KEEPALIVE_COUNT: Final = 3

_DRIVERS: Final = {
    "postgresql": (POSTGRESQL, "asyncpg"),
    "postgres": (POSTGRESQL, "asyncpg"),
    "mysql": (MYSQL, "asyncmy"),
    "mariadb": (MYSQL, "asyncmy"),
    "sqlite": (SQLITE, "aiosqlite"),
}
_READ = "romancy_read"
_NOTHING: Final[Mapping[str, str]] = {}


def async_url(url: str) -> URL:
    """The plain URL with the async driver in it. ConfigurationError when it cannot be read or its driver is missing."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigurationError(f"{url!r} is not a database URL such as postgresql://localhost/shop") from None
    name, _, given = parsed.drivername.partition("+")
    if name not in _DRIVERS:
        raise ConfigurationError(f"unknown database {name!r} in the URL: use postgresql, mysql, mariadb or sqlite")
    dialect, driver = _DRIVERS[name]
    if given not in ("", driver):
        raise ConfigurationError(f"the driver {given!r} is not supported: write {name}:// and {driver} is used")
    if importlib.util.find_spec(driver) is None:
        hint = "pip install 'romancy-stream[mysql]'" if dialect == MYSQL else f"pip install {driver}"
        raise ConfigurationError(f"the driver {driver} for {name}:// is not installed: {hint}")
    if dialect == SQLITE and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("SQLite needs a file, as in sqlite:///shop.db: state in memory would not be durable")
    return parsed.set(drivername=f"{dialect}+{driver}")


@dataclass(frozen=True, slots=True)
class _CheckedOut:
    """Of the writers' pool."""

    pool: AsyncEngine
    connection: AsyncConnection
    driver: Any
    since_s: float

    @property
    def is_good(self) -> bool:
        """The pool replaces what is old, where it gets it back."""
        return _is_open(self.driver) and time.monotonic() - self.since_s < POOL_RECYCLE_S


class Database:
    def __init__(self, url: str) -> None:
        self.url = async_url(url)
        self.dialect = self.url.get_backend_name()
        self._engine: AsyncEngine | None = None
        self._writer: AsyncEngine | None = None
        self._at_hand: list[_CheckedOut] = []
        self._connections: list[Any] = []  # of the pools, as the driver has them; some may be closed

    async def open(self) -> None:
        """Makes the pools. Connects only where the first connection has something to set up for all (SQLite)."""
        if self._engine is not None:
            raise RuntimeError("the database is open already")
        if self.dialect == SQLITE:
            with translating("open"):
                await asyncio.to_thread(_prepare_file, self.sqlite_path, self.busy_timeout_s)
        self._engine = self._make(POOL_SIZE, POOL_OVERFLOW)
        self._writer = self._make(WRITER_POOL_SIZE, WRITER_POOL_OVERFLOW, _PG_WRITER)

    async def close(self) -> None:
        """Also from a server that hangs, within seconds."""
        engines, self._engine, self._writer = (self._engine, self._writer), None, None
        for engine in engines:
            if engine is not None:
                event.listen(engine.sync_engine, "checkin", _end_late)
        at_hand, self._at_hand = self._at_hand, []
        goodbyes = [asyncio.ensure_future(_goodbye(engine, at_hand)) for engine in engines if engine is not None]
        if goodbyes:
            _, late = await asyncio.wait(goodbyes, timeout=CLOSE_TIMEOUT_S)
            if late:
                log.warning("the database does not answer to goodbyes: its connections are cut off")
                for connection in self._connections:
                    _cut_off(connection)
            await asyncio.gather(*goodbyes)
        self._connections = []

    @property
    def engine(self) -> AsyncEngine:
        """For sessions and readers. On SQLite every transaction begins as a writer, unless made by `reading`."""
        return _opened(self._engine)

    @property
    def writer(self) -> AsyncEngine:
        return _opened(self._writer)

    @property
    def sqlite_path(self) -> Path:
        return Path(str(self.url.database))

    @property
    def busy_timeout_s(self) -> float:
        """How long SQLite waits for its turn to write; `?timeout=` in the URL says otherwise."""
        return float(str(self.url.query.get("timeout", BUSY_TIMEOUT_S)))

    @contextlib.asynccontextmanager
    async def reading(self, doing: str) -> AsyncIterator[AsyncConnection]:
        """One transaction that writes nothing."""
        with translating(doing):
            async with self.engine.execution_options(**{_READ: True}).connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def writing(self, doing: str) -> AsyncIterator[AsyncConnection]:
        """One transaction of the engine's own; committed when the block ends well."""
        with translating(doing):
            if self.dialect != SQLITE:
                async with self.raw(doing) as (connection, _), connection.begin():
                    yield connection
            else:
                async with self.writer.begin() as connection:
                    yield connection

    @contextlib.asynccontextmanager
    async def maintaining(self, doing: str, *, each_alone: bool = False) -> AsyncIterator[AsyncConnection]:
        """One transaction on a connection of its own that may run for MAINTENANCE_TIMEOUT_S, for DDL and the like.
        `each_alone`: no transaction, each statement is one."""
        limit = f"{MAINTENANCE_TIMEOUT_S}s"
        engine = self._make(1, 0, {"statement_timeout": limit, "lock_timeout": limit}, MAINTENANCE_TIMEOUT_S)
        try:
            with translating(doing):
                if each_alone:
                    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                        yield connection
                else:
                    async with engine.begin() as connection:
                        yield connection
        finally:
            await engine.dispose()

    @contextlib.asynccontextmanager
    async def raw(self, doing: str) -> AsyncIterator[tuple[AsyncConnection, Any]]:
        """A connection of the writers' pool and the driver's own inside it, known to be open a moment ago. Its
        errors are the driver's; failing to get one is StoreUnavailableError."""
        with translating(doing):
            checked_out = await self._checked_out()
        try:
            yield checked_out.connection, checked_out.driver
        except BaseException:
            await checked_out.connection.close()
            raise
        # To check one out and in costs as much of our time as a small commit: it stays at hand for the next who asks.
        if checked_out.pool is self._writer and len(self._at_hand) < WRITER_POOL_SIZE:
            self._at_hand.append(checked_out)
        else:
            await checked_out.connection.close()

    async def _checked_out(self) -> _CheckedOut:
        pool = self.writer
        while self._at_hand:
            checked_out = self._at_hand.pop()
            if checked_out.is_good:
                return checked_out
            await _given_back(checked_out)
        for _ in range(WRITER_POOL_SIZE + WRITER_POOL_OVERFLOW + 1):
            connection = await pool.connect()
            driver = (await connection.get_raw_connection()).driver_connection
            checked_out = _CheckedOut(pool, connection, driver, time.monotonic())
            if checked_out.is_good:
                return checked_out
            await _given_back(checked_out)
        raise StoreUnavailableError("every new connection to the database closes at once")

    def _make(
        self, size: int, overflow: int, settings: Mapping[str, str] = _NOTHING, call_timeout_s: int = CALL_TIMEOUT_S
    ) -> AsyncEngine:
        options: dict[str, Any] = {"pool_size": size, "max_overflow": overflow, "pool_timeout": POOL_TIMEOUT_S}
        options |= {"pool_recycle": POOL_RECYCLE_S, "pool_use_lifo": True}
        if self.dialect == POSTGRESQL:
            url, arguments = _postgres_arguments(self.url, settings, call_timeout_s)
            return self._remembering(create_async_engine(url, connect_args=arguments, **options))
        if self.dialect == MYSQL:
            arguments = _mysql_arguments(call_timeout_s)
            options["isolation_level"] = "READ COMMITTED"
            return self._remembering(create_async_engine(self.url, connect_args=arguments, **options))
        engine = create_async_engine(self.url, connect_args={"timeout": self.busy_timeout_s}, **options)
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    def _remembering(self, engine: AsyncEngine) -> AsyncEngine:
        def remember(connection: Any, _record: Any) -> None:
            self._connections = [each for each in self._connections if _is_open(each)]
            self._connections.append(connection.driver_connection)

        event.listen(engine.sync_engine, "connect", remember)
        return engine


async def finished(work: Coroutine[Any, Any, T] | asyncio.Future[T], limit_s: float | None = None) -> T:
    """Lets a database call run to its end whatever happens to its caller: a call that is cut off in the middle leaves
    its outcome open and its connection unusable. A caller that is cancelled waits for it, but not for a server that
    hangs; one that gives a `limit_s` hears StoreUnavailableError after it. What is left behind goes on until the
    timeouts of server and driver end it: it may still happen."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(seen)
    try:
        await first_done([task], limit_s)
    except asyncio.CancelledError:
        await first_done([task], CUT_OFF_S)
        raise
    try:
        if not task.done():
            raise StoreUnavailableError(f"the database did not answer within {limit_s:g} s")
        return task.result()
    finally:
        del task, work  # they have the error that has this frame


async def first_done(futures: Sequence[asyncio.Future[Any]], limit_s: float | None = None) -> None:
    """Until one of them is done, or the time is up; cancels none. `asyncio.wait` for those who wait for every message:
    that costs three times as much."""
    if any(future.done() for future in futures):
        return
    loop = asyncio.get_running_loop()
    one = loop.create_future()

    def over(_: object = None) -> None:
        if not one.done():
            one.set_result(None)

    timer = None if limit_s is None else loop.call_later(limit_s, over)
    for future in futures:
        future.add_done_callback(over)
    try:
        await one
    finally:
        for future in futures:
            future.remove_done_callback(over)
        if timer is not None:
            timer.cancel()


def seen(task: asyncio.Future[Any]) -> None:
    """Perhaps nobody else looks at how it ended, and asyncio would complain."""
    if not task.cancelled():
        task.exception()


def _opened(engine: AsyncEngine | None) -> AsyncEngine:
    if engine is None:
        raise RuntimeError("the database is not open")
    return engine


def _is_open(connection: Any) -> bool:
    return bool(connection.connected if hasattr(connection, "connected") else not connection.is_closed())


async def _given_back(checked_out: _CheckedOut) -> None:
    if not _is_open(checked_out.driver):
        await checked_out.connection.invalidate()  # nothing was under way on it when it broke
    await checked_out.connection.close()


async def _goodbye(engine: AsyncEngine, at_hand: Sequence[_CheckedOut]) -> None:
    for checked_out in at_hand:
        if checked_out.pool is engine:
            await _given_back(checked_out)
    await engine.dispose()


def _end_late(connection: Any, record: Any) -> None:
    """A call that was left behind returns its connection to a pool that was closed meanwhile: nobody would end it."""
    if connection is not None:
        record.invalidate()


def _cut_off(connection: Any) -> None:
    """Without a word to the server, which rolls back what is under way."""
    if hasattr(connection, "terminate"):  # asyncpg
        connection.terminate()
    else:  # asyncmy
        connection.close()


# -- PostgreSQL

_PG_COMMON: Final = {
    "jit": "off",  # compiling costs more than any of our statements
    "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "tcp_keepalives_idle": str(KEEPALIVE_IDLE_S),
    "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL_S),
    "tcp_keepalives_count": str(KEEPALIVE_COUNT),
    "tcp_user_timeout": f"{(KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_COUNT)}s",
}
# Every statement of the engine names its rows by key. A plan made while a table was still empty would scan it, and
# stays in use until the next ANALYZE: so allow only the plan that is right at every size, and make it once.
_PG_WRITER: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


def _postgres_arguments(url: URL, settings: Mapping[str, str], call_timeout_s: int) -> tuple[URL, dict[str, Any]]:
    """libpq's usual query parameters become what asyncpg calls them."""
    query = dict(url.query)
    server = {"application_name": "romancy_stream", **_PG_COMMON, **settings}
    arguments: dict[str, Any] = {"timeout": CONNECT_TIMEOUT_S, "command_timeout": call_timeout_s}
    if "application_name" in query:
        server["application_name"] = str(query.pop("application_name"))
    if "sslmode" in query:
        arguments["ssl"] = query.pop("sslmode")
    if "connect_timeout" in query:
        arguments["timeout"] = float(str(query.pop("connect_timeout")))
    return url.set(query=query), {**arguments, "server_settings": server}


# -- MariaDB and MySQL


def _mysql_arguments(call_timeout_s: int) -> dict[str, Any]:
    # The clock is read in UTC: UNIX_TIMESTAMP of a local time is ambiguous for an hour a year.
    session = {
        "sql_mode": "'STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
        "time_zone": "'+00:00'",
        "innodb_lock_wait_timeout": LOCK_TIMEOUT_S,
        "sql_notes": 0,  # "already exists" is no warning where the statement says IF NOT EXISTS
    }
    init = "SET SESSION " + ", ".join(f"{name} = {value}" for name, value in session.items())
    return {
        "charset": "utf8mb4",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": call_timeout_s,
        "init_command": init,
    }


# -- SQLite


def connect_sqlite(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A plain connection with the settings that those of the pools have."""
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, cached_statements=STATEMENTS_LIMIT)
    for setting in (*_SQLITE_SETTINGS, "PRAGMA temp_store = MEMORY"):  # beside the file nothing may be writable
        connection.execute(setting)
    return connection


_SQLITE_SETTINGS: Final = (
    "PRAGMA synchronous = FULL",  # a commit survives the loss of power
    "PRAGMA foreign_keys = OFF",
)


def _prepare_file(path: Path, busy_timeout_s: float) -> None:
    """Makes the folder and the file. WAL is a property of the file; setting it needs the file for oneself, and of two
    who try at once SQLite turns one away without waiting, whatever the busy timeout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + busy_timeout_s
    with contextlib.closing(connect_sqlite(path, busy_timeout_s)) as connection:
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(WAL_RETRY_S)


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: `_begin_sqlite` does
    cursor = connection.cursor()
    for setting in _SQLITE_SETTINGS:
        cursor.execute(setting)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that begins as a reader fails at its first write when somebody else wrote meanwhile, whatever
    the busy timeout: so whoever may write says so at once."""
    reads = connection.get_execution_options().get(_READ, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
