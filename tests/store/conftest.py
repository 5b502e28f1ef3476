"""The store under test: migrated and prepared, on each database, with as many owners as a test wants."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest

from romancy_stream.store.sql import SqlStore

PARTITIONS = 4

Another: TypeAlias = Callable[[], Awaitable[SqlStore]]

ON_EVERY_DATABASE = [
    pytest.param("sqlite_db", id="sqlite"),
    pytest.param("postgres_db", id="postgresql", marks=pytest.mark.postgres),
    pytest.param("mariadb_db", id="mariadb", marks=pytest.mark.mariadb),
]


@pytest.fixture(params=ON_EVERY_DATABASE)
def url(request: pytest.FixtureRequest) -> str:
    """An empty database."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def another(url: str) -> AsyncIterator[Another]:
    """Opens one more store on the same database; all are closed when the test is over."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened() -> SqlStore:
            store = SqlStore(url)
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield opened


@pytest.fixture
async def store(another: Another) -> SqlStore:
    store = await another()
    await store.migrate()
    await store.prepare("shop", PARTITIONS)
    return store
