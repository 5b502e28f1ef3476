"""The log's SQLite file, `broker.db`. Synchronous; used by the disk thread alone. It knows chunks, topics and group
positions, nothing of records being waited for.

Every write is on the disk when its method returns: WAL with a sync per transaction. Errors are sqlite3.Error.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from romancy_stream.broker.embedded.limits import (
    BATCH_BYTES_LIMIT,
    PARTITION_SPAN,
    ROWS_PER_STATEMENT,
    TRIM_CHUNKS_PER_PASS,
)
from romancy_stream.broker.port import TopicSpec
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError

_FORMAT: Final = 1
_ANY_AGE_MS: Final = 1 << 62

_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS topics (
    topic_no INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL,
    first_part INTEGER NOT NULL, topic_id TEXT NOT NULL, config TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    chunk_no INTEGER PRIMARY KEY, records INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    group_name TEXT NOT NULL, topic TEXT NOT NULL, part INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    PRIMARY KEY (group_name, topic, part)) WITHOUT ROWID;
PRAGMA user_version = 1;
COMMIT;
"""


class ChunkRow(NamedTuple):
    """`chunk_no` is `part_no` * PARTITION_SPAN + the offset of the first record."""

    chunk_no: int
    records: int
    timestamp_ms: int
    data: bytes


class PositionRow(NamedTuple):
    group: str
    topic: str
    partition: int
    next_offset: int


class Extent(NamedTuple):
    """What the log holds of a partition: [start, end)."""

    start: int
    end: int
    last_timestamp_ms: int


@dataclass(frozen=True, slots=True)
class TopicRow:
    """`first_part` is the number of its partition 0; the others follow."""

    name: str
    partitions: int
    first_part: int
    topic_id: str
    config: dict[str, str]


@dataclass(frozen=True, slots=True)
class DiskState:
    topics: list[TopicRow] = field(default_factory=list)
    extents: dict[int, Extent] = field(default_factory=dict)  # part_no -> extent
    positions: list[PositionRow] = field(default_factory=list)


class ReadRequest(NamedTuple):
    """Of a partition the chunks that hold [offset, end)."""

    part_no: int
    offset: int
    end: int


class TrimRequest(NamedTuple):
    """Every group is done with what lies before `low`. `by_size`: it may go before its time when space is short."""

    part_no: int
    low: int
    before_ms: int
    by_size: bool


@lru_cache(maxsize=ROWS_PER_STATEMENT)
def _insert_statement(rows: int) -> str:
    return "INSERT INTO chunks VALUES " + ",".join(["(?,?,?,?)"] * rows)


class Disk:
    """Opens or makes the file. BrokerUnavailableError: it cannot be used."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, cached_statements=2 * ROWS_PER_STATEMENT
            )
        except sqlite3.Error as error:
            raise BrokerUnavailableError(f"the embedded broker cannot open {path}: {error}") from error
        try:
            self._prepare(path)
        except sqlite3.Error as error:
            self._db.close()
            raise BrokerUnavailableError(f"the embedded broker cannot use {path}: {error}") from error
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        run = self._db.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        (version,) = run("PRAGMA user_version").fetchone()
        if version not in (0, _FORMAT):
            raise ConfigurationError(
                f"{path} was written by a newer version of romancy_stream (format {version}, this one reads "
                f"{_FORMAT}): upgrade, or give the app another folder"
            )
        if version == 0:
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def load(self) -> DiskState:
        state = DiskState()
        run = self._db.execute
        rows = run("SELECT name, partitions, first_part, topic_id, config FROM topics ORDER BY topic_no")
        for name, partitions, first_part, topic_id, config in rows.fetchall():
            state.topics.append(TopicRow(name, partitions, first_part, topic_id, json.loads(config)))
            for part_no in range(first_part, first_part + partitions):
                extent = self._extent(part_no)
                if extent is not None:
                    state.extents[part_no] = extent
        state.positions.extend(
            PositionRow(*row) for row in run("SELECT group_name, topic, part, next_offset FROM positions")
        )
        return state

    def _extent(self, part_no: int) -> Extent | None:
        base = part_no * PARTITION_SPAN
        of_part = "FROM chunks WHERE chunk_no >= ? AND chunk_no < ? ORDER BY chunk_no"
        span = (base, base + PARTITION_SPAN)
        first = self._db.execute(f"SELECT chunk_no {of_part} LIMIT 1", span).fetchone()
        if first is None:
            return None
        last_no, records, at = self._db.execute(
            f"SELECT chunk_no, records, timestamp_ms {of_part} DESC LIMIT 1", span
        ).fetchone()
        return Extent(first[0] - base, last_no - base + records, at)

    def write(self, chunks: Sequence[ChunkRow], positions: Sequence[PositionRow]) -> None:
        """All or nothing."""
        if not positions and len(chunks) <= ROWS_PER_STATEMENT:
            self._insert(chunks)
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for at in range(0, len(chunks), ROWS_PER_STATEMENT):
                self._insert(chunks[at : at + ROWS_PER_STATEMENT])
            self._db.executemany("INSERT OR REPLACE INTO positions VALUES (?,?,?,?)", positions)
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _insert(self, chunks: Sequence[ChunkRow]) -> None:
        # One statement, not executemany: each step of a statement gives up the interpreter lock and has to win it
        # back from a busy event loop.
        if chunks:
            self._db.execute(_insert_statement(len(chunks)), [value for row in chunks for value in row])

    def create_topics(self, specs: Sequence[TopicSpec]) -> list[TopicRow]:
        made = []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            (free,) = self._db.execute("SELECT coalesce(max(first_part + partitions), 0) FROM topics").fetchone()
            for spec in specs:
                row = TopicRow(spec.name, spec.partitions, free, str(uuid.uuid4()), dict(spec.config))
                free += spec.partitions
                self._db.execute(
                    "INSERT INTO topics (name, partitions, first_part, topic_id, config) VALUES (?,?,?,?,?)",
                    (row.name, row.partitions, row.first_part, row.topic_id, json.dumps(row.config)),
                )
                made.append(row)
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return made

    def read(self, requests: Sequence[ReadRequest]) -> dict[int, list[ChunkRow]]:
        """By part_no, from the chunk that holds the offset; all of them share the limit of a batch."""
        budget = max(1, BATCH_BYTES_LIMIT // max(1, len(requests)))
        return {request.part_no: self._read(request, budget) for request in requests}

    def _read(self, request: ReadRequest, budget_bytes: int) -> list[ChunkRow]:
        base = request.part_no * PARTITION_SPAN
        rows = self._db.execute(
            "SELECT chunk_no, records, timestamp_ms, data FROM chunks WHERE chunk_no < ? AND chunk_no >= coalesce("
            "(SELECT max(chunk_no) FROM chunks WHERE chunk_no BETWEEN ? AND ?), ?) ORDER BY chunk_no",
            (base + request.end, base, base + request.offset, base + request.offset),
        )
        found = []
        for values in rows:
            row = ChunkRow(*values)
            found.append(row)
            budget_bytes -= len(row.data)
            if budget_bytes <= 0:
                break
        rows.close()
        return found

    def trim(self, requests: Sequence[TrimRequest], limit_bytes: int) -> tuple[dict[int, int], bool]:
        """Deletes chunks that lie before `low` and are older than `before_ms` (any age, where allowed, while the file
        is larger than `limit_bytes`). Returns the new start of each partition that lost some, and whether more waits.
        The newest chunk of a partition always stays: it says where the partition ends.
        """
        over = self._used_bytes() > limit_bytes
        starts: dict[int, int] = {}
        left = TRIM_CHUNKS_PER_PASS
        for request in requests:
            if left <= 0:
                break
            before_ms = _ANY_AGE_MS if over and request.by_size else request.before_ms
            deleted, start = self._trim(request, before_ms, left)
            if deleted:
                left -= deleted
                starts[request.part_no] = start
        return starts, left <= 0

    def _trim(self, request: TrimRequest, before_ms: int, limit: int) -> tuple[int, int]:
        base = request.part_no * PARTITION_SPAN
        rows = self._db.execute(
            "SELECT chunk_no, records, timestamp_ms FROM chunks WHERE chunk_no >= ? AND chunk_no < ? "
            "ORDER BY chunk_no LIMIT ?",
            (base, base + PARTITION_SPAN, limit + 1),
        ).fetchall()
        deleted, start = 0, 0
        for chunk_no, records, at in rows[:-1]:
            if chunk_no + records > base + request.low or at >= before_ms:
                break
            deleted, start = deleted + 1, chunk_no + records - base
        if deleted:
            self._db.execute("DELETE FROM chunks WHERE chunk_no >= ? AND chunk_no < ?", (base, base + start))
        return deleted, start

    def _used_bytes(self) -> int:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = self._db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * page_bytes)
