"""How commands run: one event loop each, errors that users can act on as one line, and the ways to an app's parts:
the database alone for what only reads, the broker as well for what sends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from romancy_stream.cli import output
from romancy_stream.errors import ConfigurationError, EmbeddedBrokerInUseError, RecordRefusedError, RomancyError

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.cli.reading import Reader
    from romancy_stream.store.sql import SqlStore

T = TypeVar("T")


class Refused(Exception):
    """Of this command line: the user asked for what cannot be. The message says all."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """RomancyError and Refused: one line on stderr, exit code 1. Anything else is a bug, with its traceback."""
    try:
        return asyncio.run(work)
    except (RomancyError, Refused) as error:
        if output.debug():
            raise
        output.fail(described(error))


def described(error: BaseException) -> str:
    code = f" [{error.code}]" if isinstance(error, RomancyError) else ""
    return f"{error}{code}"


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Around one call of the API: what it raises for an argument that it does not take."""
    try:
        yield
    except (ValueError, LookupError) as error:
        raise Refused(str(error.args[0])) from error


@contextlib.asynccontextmanager
async def opened_store(app: App, *, tables: bool = True) -> AsyncIterator[SqlStore]:
    """`tables`: ConfigurationError where the database has none yet; a file that is not there is not made."""
    from romancy_stream.store.database import SQLITE
    from romancy_stream.store.migrate import applied_migrations

    store = app.make_store()
    if tables and store.db.dialect == SQLITE and not store.db.sqlite_path.exists():
        raise ConfigurationError(
            f"there is no database {store.db.sqlite_path} yet: run `romancy init MODULE:APP` first"
        )
    await store.open()
    try:
        if tables and await applied_migrations(store.db) is None:
            raise ConfigurationError("the database has no tables yet: run `romancy init MODULE:APP` first")
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def reader(app: App) -> AsyncIterator[Reader]:
    from romancy_stream.cli.reading import Reader

    async with opened_store(app) as store:
        yield Reader(app, store)


def is_embedded(app: App) -> bool:
    return app.broker_url.startswith("embedded:")


@contextlib.contextmanager
def explaining(instead: str) -> Iterator[None]:
    """Around sending: what to do when another process holds the embedded broker (`instead` is the call inside that
    process), or when there is no topic yet."""
    try:
        yield
    except EmbeddedBrokerInUseError as error:
        raise EmbeddedBrokerInUseError(
            f"{error}. While it runs, only code inside that process can do this: call {instead} there"
        ) from error
    except RecordRefusedError as error:
        raise RecordRefusedError(f"{error}. Where a topic is missing, `romancy init MODULE:APP` makes it") from error
