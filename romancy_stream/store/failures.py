"""What a database's error means for its caller: it is away (try again), it is set up wrongly, or the data is bad.
Looks at error codes only; SQLAlchemy's errors and those of the three drivers come in, ours go out."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final

import asyncpg
from sqlalchemy import exc

from romancy_stream.errors import ConfigurationError, RomancyError, StoreUnavailableError

# PostgreSQL: whole classes of SQLSTATE, then single codes. Each says "not now": the statement did nothing.
_PG_AWAY_CLASSES: Final = ("08", "53")  # connection lost or refused; too many connections, disk or memory full
_PG_AWAY: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "57014", "55P03", "25006", "40001", "40P01"})
_PG_LOST: Final = frozenset({"57P01", "57P02", "57P03", "57P05"})  # the session has ended as well
_PG_SETUP: Final = frozenset({"28000", "28P01", "3D000"})  # who you are, which database
PG_RETRY: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock

# MariaDB and MySQL. 2xxx come from the driver.
_MY_LOST: Final = frozenset({1053, 1927, 2006, 2013, 2055, 4031})
_MY_AWAY: Final = _MY_LOST | {1040, 1129, 1203, 1205, 1213, 1226, 1290, 1317, 1836, 1969, 2002, 2003, 3024}
_MY_SETUP: Final = frozenset({1044, 1045, 1049})
MY_RETRY: Final = frozenset({1213})  # deadlock. A lock that was waited for in vain (1205) is no matter of luck

_SQLITE_AWAY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
_PRIMARY_BITS: Final = 0xFF  # an extended SQLite code keeps its primary code in the low byte


def code_of(error: BaseException) -> str | int | None:
    """The SQLSTATE (PostgreSQL) or the number (MariaDB, MySQL, SQLite's primary code) of a driver's error."""
    origin = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    number = getattr(origin, "sqlite_errorcode", None)
    if isinstance(number, int):
        return number & _PRIMARY_BITS
    first = origin.args[0] if origin.args else None
    if isinstance(first, int):  # before the SQLSTATE, which asyncmy gives as well and which says less
        return first
    state = getattr(origin, "sqlstate", None)
    return state if isinstance(state, str) else None


def is_lost(error: BaseException) -> bool:
    """The connection broke while it was in use: what was under way may or may not have happened."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, OSError | EOFError | asyncpg.InternalClientError):
        return True
    code = code_of(error)
    if isinstance(code, str):
        return code.startswith("08") or code in _PG_LOST
    return code in _MY_LOST if not _from_sqlite(error) else False


def is_unavailable(error: BaseException) -> bool:
    """The database cannot be reached, or takes no work for now."""
    if isinstance(error, StoreUnavailableError | exc.TimeoutError) or is_lost(error):
        return True
    code = code_of(error)
    if isinstance(code, str):
        return code.startswith(_PG_AWAY_CLASSES) or code in _PG_AWAY
    if _from_sqlite(error):
        return code in _SQLITE_AWAY
    if _is_closed(error):
        return True
    return code in _MY_AWAY


def _from_sqlite(error: BaseException) -> bool:
    origin = error.orig if isinstance(error, exc.DBAPIError) else error
    return isinstance(origin, sqlite3.Error)


def _is_closed(error: BaseException) -> bool:
    """asyncpg has no code for the use of a connection that was found closed."""
    return isinstance(error, asyncpg.InterfaceError) and "closed" in str(error)


def translated(error: Exception, doing: str) -> Exception:
    """The error to raise in its place. Bad data and bugs stay what they are, as SQLAlchemy's classes."""
    if isinstance(error, RomancyError):
        return error
    if code_of(error) in (_PG_SETUP | _MY_SETUP if not _from_sqlite(error) else ()):
        return ConfigurationError(f"{doing}: the database refuses this URL: {_said(error)}")
    if is_unavailable(error):
        return StoreUnavailableError(f"{doing}: the database is not available: {_said(error)}")
    if isinstance(error, UnicodeError | OverflowError):  # of a driver that could not even encode the value
        return exc.DataError(doing, None, error)
    if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | sqlite3.Error):
        return _as_sqlalchemy(error, doing)
    return error


def translating(doing: str) -> AbstractContextManager[None]:
    """`doing` names the call in the message, as in "take over"."""
    return _Translating(doing)


class _Translating(AbstractContextManager[None]):
    __slots__ = ("_doing",)

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            better = translated(error, self._doing)
            if better is not error:
                raise better from error


def _said(error: BaseException) -> str:
    origin = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    return f"{type(origin).__name__}: {origin}"


def _as_sqlalchemy(error: Exception, doing: str) -> exc.DBAPIError:
    code = code_of(error)
    data = isinstance(error, asyncpg.DataError) or type(error) in (sqlite3.DataError, sqlite3.InterfaceError)
    if data or (isinstance(code, str) and code.startswith("22")):
        return exc.DataError(doing, None, error)
    if isinstance(error, sqlite3.IntegrityError) or (isinstance(code, str) and code.startswith("23")):
        return exc.IntegrityError(doing, None, error)
    return exc.ProgrammingError(doing, None, error)
