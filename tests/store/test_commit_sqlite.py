"""The statements of a commit on SQLite: few, however many rows, and none that walks through a table."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from romancy_stream.engine.commit import Commit
from romancy_stream.store.commit_generic import FOLDED_CHARS, ROWS_PER_STATEMENT, statements, text_of_write
from romancy_stream.store.database import SQLITE, connect_sqlite
from romancy_stream.store.sql import SqlStore
from romancy_stream.store.writes import UPDATED_OF_INSTANCE, VALUES_GONE, WRITES, Action
from tests.store.writing import event, instance, timer

FINDING = [write for write in (*WRITES, VALUES_GONE) if write.action not in (Action.INSERT, Action.INSERT_MISSING)]
IN_MEMORY = 2


@pytest.fixture
async def store(sqlite_db: str) -> SqlStore:
    store = SqlStore(sqlite_db)
    await store.open()
    await store.migrate()
    await store.close()
    return store


@pytest.mark.parametrize("rows", [1, 2, ROWS_PER_STATEMENT])
async def test_rows_are_found_by_an_index(store: SqlStore, rows: int) -> None:
    with contextlib.closing(connect_sqlite(store.db.sqlite_path, 1)) as connection:
        for write in FINDING:
            text = text_of_write(write, SQLITE, rows)
            plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", [None] * text.count("?"))
            assert not [step for *_, step in plan if step.startswith(f"SCAN {write.table.name}")], text


def test_a_large_commit_is_a_few_statements() -> None:
    """A step of a statement gives up the interpreter's lock, and beside a thread that computes it waits for it."""
    ids = [f"o-{n}" for n in range(2_000)]
    commit = Commit(
        history=[event(i) for i in ids],
        instances=[instance(i) for i in ids],
        updates=[instance(i) for i in ids],
        timers_gone=[(i, 1, "t") for i in ids],
        timers=[timer("t", i) for i in ids],
    )
    made = [(text, row) for text, rows in statements(commit, SQLITE) for row in rows]
    assert len(made) <= 5 * 10
    assert {text.count("?") == len(row) for text, row in made} == {True}
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        assert max(len(row) for _, row in made) <= connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)


def test_large_rows_are_not_kept_together() -> None:
    rows = [instance(f"o-{n}", output=b'"%s"' % (b"x" * 50_000)) for n in range(8)]
    small = [instance(f"p-{n}") for n in range(8)]
    made = [row for _, some in statements(Commit(updates=[*rows, *small]), SQLITE) for row in some]
    assert sum(len(row) for row in made) == 16 * (len(UPDATED_OF_INSTANCE) + 1)
    assert max(len(str(row)) for row in made) < 1.1 * FOLDED_CHARS


async def test_a_commit_writes_no_temporary_files(store: SqlStore) -> None:
    """Beside the database nothing may be writable."""
    with contextlib.closing(connect_sqlite(store.db.sqlite_path, 1)) as connection:
        assert connection.execute("PRAGMA temp_store").fetchone() == (IN_MEMORY,)
