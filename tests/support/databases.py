"""One database per test, with a name that nobody else has, dropped when the test is over.

Talks to the servers as the administrator `romancy`, in a thread with an event loop of its own, so that plain and async
tests may both use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

CONNECT_TIMEOUT_S = 120  # a shared machine can be slow, not this slow
NO_SUCH_THREAD = 1094  # MariaDB: the connection ended by itself before we could end it


@contextlib.contextmanager
def fresh_postgres(server_url: str) -> Iterator[str]:
    """Yields `postgresql://romancy@127.0.0.1:port/t_…`."""
    name = _new_name()
    _run(_postgres(server_url, f'CREATE DATABASE "{name}"'))
    try:
        yield _with_database(server_url, name)
    finally:
        _run(_postgres(server_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@contextlib.contextmanager
def fresh_mariadb(server_url: str) -> Iterator[str]:
    """Yields `mysql://romancy@127.0.0.1:port/t_…`."""
    name = _new_name()
    _run(_mariadb(server_url, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4"))
    try:
        yield _with_database(server_url, name)
    finally:
        _run(_drop_mariadb(server_url, name))


def _new_name() -> str:
    return f"t_{uuid.uuid4().hex[:16]}"


def _with_database(server_url: str, name: str) -> str:
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def _run(work: Coroutine[Any, Any, object]) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, work).result()


async def _postgres(server_url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(server_url, timeout=CONNECT_TIMEOUT_S)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _mariadb(server_url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Runs them in one session; returns the rows of the last."""
    import asyncmy

    url = urlsplit(server_url)
    connection = await asyncmy.connect(
        host=url.hostname, port=url.port, user=url.username, connect_timeout=CONNECT_TIMEOUT_S, autocommit=True
    )
    try:
        async with connection.cursor() as cursor:
            for statement in statements:
                await cursor.execute(statement)
            return list(await cursor.fetchall())
    finally:
        await connection.ensure_closed()


async def _drop_mariadb(server_url: str, name: str) -> None:
    """A connection that a test left behind may hold a lock on a table: end it first, or the drop would wait for it."""
    left = f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
    for row in await _mariadb(server_url, left):
        await _kill_mariadb(server_url, int(row[0]))
    await _mariadb(server_url, f"DROP DATABASE `{name}`")


async def _kill_mariadb(server_url: str, connection_id: int) -> None:
    from asyncmy.errors import MySQLError

    try:
        await _mariadb(server_url, f"KILL {connection_id}")
    except MySQLError as error:
        if error.args[0] != NO_SUCH_THREAD:
            raise
