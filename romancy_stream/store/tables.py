"""SQLAlchemy Core tables, the same on every database. `storage/` holds the DDL that makes them; a test compares
the two. Times are whole microseconds since 1970 UTC in BIGINTs (exact and equal everywhere; the views show
timestamps). JSON of the log is text, so that it stays what was written; JSON of the projection is the database's
own type, so that it can be searched: read it with `json_text`, which gives it as text and loses no digit.

Text compares byte by byte everywhere. On MariaDB and MySQL the DDL says so once, as the collation of each table, on
PostgreSQL with every id and name."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TextClause,
    cast,
    text,
    type_coerce,
)
from sqlalchemy.dialects.mysql import LONGBLOB, LONGTEXT
from sqlalchemy.dialects.postgresql import JSONB

from romancy_stream.engine.commit import ENTITY_CHARS

ID_CHARS = 255  # instance ids, activity ids, names: fits MariaDB's index key limit twice in utf8mb4
VERSION_CHARS = 64  # of a workflow's code
DIGEST_CHARS = 64  # 256 bits in hexadecimal
INCARNATION_CHARS = 64

metadata = MetaData()
_Id = String(ID_CHARS)
_Long = Text().with_variant(LONGTEXT(), "mysql", "mariadb")
_Bytes = LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
# SQLite gives a column of the type JSON numeric affinity: it would store the text 5.0 as the integer 5.
_Json = JSON().with_variant(JSONB(), "postgresql").with_variant(Text(), "sqlite")
_PARKED = text("parked IS NOT NULL")
_FINISHED = text("finished_us IS NOT NULL")
_OPEN = text("finished_us IS NULL")
_CHILD = text("parent_id IS NOT NULL")
_EXPIRES = text("expires_us IS NOT NULL")


def _partial(name: str, *columns: str, where: TextClause) -> tuple[Index, Index, Index]:
    """An index over the rows that matter; over all on MySQL, which has no partial ones."""
    return (
        Index(name, *columns, postgresql_where=where).ddl_if(dialect="postgresql"),
        Index(name, *columns, sqlite_where=where).ddl_if(dialect="sqlite"),
        Index(name, *columns).ddl_if(dialect="mysql"),
    )


meta = Table("romancy_meta", metadata, Column("name", _Id, primary_key=True), Column("value", _Long))

partitions = Table(
    "romancy_partitions",
    metadata,
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("commit_no", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("owner", String(ID_CHARS)),
    Column("taken_at", BigInteger, nullable=False),  # commit_no at the last takeover
    Column("stalls", Integer, nullable=False),  # takeovers in a row without a commit between them
    Column("suspect", _Long),  # the input that its owner was about to process, alone, when it was last heard of
)
offsets = Table(
    "romancy_offsets",
    metadata,
    Column("topic", _Id),
    Column("part", Integer),
    Column("next_offset", BigInteger, nullable=False),
    PrimaryKeyConstraint("topic", "part"),
)
watermarks = Table(
    "romancy_watermarks",
    metadata,
    Column("part", Integer),
    Column("origin", Integer),
    Column("position", BigInteger, nullable=False),
    PrimaryKeyConstraint("part", "origin"),
)
history = Table(
    "romancy_history",
    metadata,
    Column("instance_id", _Id),
    Column("run", Integer),
    Column("seq", Integer),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("ref", _Id),
    Column("attrs", _Long, nullable=False),
    Column("payload", _Long),
    PrimaryKeyConstraint("instance_id", "run", "seq"),
)
instances = Table(
    "romancy_instances",
    metadata,
    Column("instance_id", _Id, primary_key=True),
    Column("run", Integer, nullable=False),
    Column("part", Integer, nullable=False),
    Column("workflow", _Id, nullable=False),
    Column("status", String(32), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("input", _Json),
    Column("output", _Json),
    Column("error", _Json),
    Column("started_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("finished_us", BigInteger),
    Column("parked", _Long),
    Column("event_source", _Long, nullable=False),
    Column("event_id", _Long, nullable=False),
    Column("parent_id", _Id),
    Column("waiting_for", _Json),
    Column("version", String(VERSION_CHARS)),
    *_partial("romancy_instances_finished", "part", "finished_us", where=_FINISHED),
    # MySQL's index above has them too.
    Index("romancy_instances_open", "part", postgresql_where=_OPEN).ddl_if(dialect="postgresql"),
    Index("romancy_instances_open", "part", sqlite_where=_OPEN).ddl_if(dialect="sqlite"),
    *_partial("romancy_instances_parent", "parent_id", where=_CHILD),
    # For searches by input. SQLite and MySQL have nothing like it, but `input_values`.
    Index(
        "romancy_instances_input",
        "input",
        postgresql_using="gin",
        postgresql_ops={"input": "jsonb_path_ops"},
        postgresql_with={"gin_pending_list_limit": 256},
    ).ddl_if(dialect="postgresql"),
    Index("romancy_instances_started", "started_us", "instance_id"),
    Index("romancy_instances_status", "status", "workflow", "started_us"),
    # For a new owner, who asks for the parked ones of its partitions. MySQL has no partial index.
    Index("romancy_instances_parked", "part", postgresql_where=_PARKED).ddl_if(dialect="postgresql"),
    Index("romancy_instances_parked", "part", sqlite_where=_PARKED).ddl_if(dialect="sqlite"),
    Index("romancy_instances_parked", "part", "parked", mysql_length={"parked": 1}).ddl_if(dialect="mysql"),
)
searchable = Table(
    "romancy_searchable", metadata, Column("path", _Id, primary_key=True), Column("filled_us", BigInteger)
)
input_values = Table(
    "romancy_input_values",
    metadata,
    Column("instance_id", _Id),
    Column("value", BigInteger),
    Column("started_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("instance_id", "value"),
    Index("romancy_input_values_value", "value", "started_us", "instance_id"),
)
activities = Table(
    "romancy_activities",
    metadata,
    Column("instance_id", _Id),
    Column("run", Integer),
    Column("activity_id", _Id),
    Column("name", _Id, nullable=False),
    Column("queue", _Id, nullable=False),
    Column("status", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("scheduled_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("finished_us", BigInteger),
    Column("next_attempt_us", BigInteger),
    Column("error", _Json),
    Column("eager", String(INCARNATION_CHARS)),
    PrimaryKeyConstraint("instance_id", "run", "activity_id"),
)
activity_results = Table(
    "romancy_activity_results",
    metadata,
    Column("instance_id", _Id),
    Column("run", Integer),
    Column("activity_id", _Id),
    Column("attempt", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("result", _Long),
    Column("worker", String(ID_CHARS)),
    Column("at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("instance_id", "run", "activity_id"),
)
timers = Table(
    "romancy_timers",
    metadata,
    Column("instance_id", _Id),
    Column("run", Integer),
    Column("timer_id", _Id),
    Column("part", Integer, nullable=False),
    Column("due_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("instance_id", "run", "timer_id"),
    Index("romancy_timers_part", "part"),
)
outbox = Table(
    "romancy_outbox",
    metadata,
    Column("part", Integer),
    Column("position", BigInteger),
    Column("topic", _Id, nullable=False),
    Column("key", _Id, nullable=False),
    Column("to_partition", Integer),
    Column("headers", _Long, nullable=False),  # JSON list of [name, value]
    Column("value", _Bytes),
    Column("refused", _Long),  # why the broker will never take it
    PrimaryKeyConstraint("part", "position"),
)
worker_outbox = Table(
    "romancy_worker_outbox",
    metadata,
    Column("incarnation", String(INCARNATION_CHARS)),
    Column("seq", BigInteger),
    Column("part", Integer, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("topic", _Id, nullable=False),
    Column("key", _Id, nullable=False),
    Column("headers", _Long, nullable=False),
    Column("value", _Bytes),
    PrimaryKeyConstraint("incarnation", "seq"),
    Index("romancy_worker_outbox_part", "part", "at_us"),
)
dead_letters = Table(
    "romancy_dead_letters",
    metadata,
    Column("topic", _Id),
    Column("part", Integer),
    Column("record_offset", BigInteger),
    Column("at_us", BigInteger, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("message", _Long, nullable=False),
    Column("record_key", _Bytes),
    Column("headers", _Long, nullable=False),  # JSON list of [name, base64 or null]
    Column("raw", _Bytes),
    Column("event_source", _Long),
    Column("event_id", _Long),
    Column("replayed_us", BigInteger),
    PrimaryKeyConstraint("topic", "part", "record_offset"),
    Index("romancy_dead_letters_at", "at_us"),
)
rejections = Table(
    "romancy_rejections",
    metadata,
    Column("instance_id", _Id, primary_key=True),
    Column("part", Integer, nullable=False),
    Column("workflow", _Id, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("message", _Long, nullable=False),
    Column("errors", _Long, nullable=False),
    Column("event_source", _Long, nullable=False),
    Column("event_id", _Long, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
entities = Table(
    "romancy_entities",
    metadata,
    Column("entity", String(ENTITY_CHARS), primary_key=True),
    Column("part", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("head", _Long, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
)
members = Table(
    "romancy_members",
    metadata,
    Column("entity", String(ENTITY_CHARS)),
    Column("instance_id", _Id),
    Column("ref", _Id),
    Column("run", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("attrs", _Long, nullable=False),
    PrimaryKeyConstraint("entity", "instance_id", "ref"),
    Index("romancy_members_instance", "instance_id"),
)
items = Table(
    "romancy_items",
    metadata,
    Column("entity", String(ENTITY_CHARS)),
    Column("seq", BigInteger),
    Column("part", Integer, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
    Column("attrs", _Long, nullable=False),
    Column("payload", _Long),
    PrimaryKeyConstraint("entity", "seq"),
    *_partial("romancy_items_expires", "part", "expires_us", where=_EXPIRES),
)
intake = Table(
    "romancy_intake",
    metadata,
    Column("part", Integer),
    Column("digest", String(DIGEST_CHARS)),
    Column("at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("part", "digest"),
    Index("romancy_intake_at", "part", "at_us"),
)
tombstones = Table(
    "romancy_tombstones",
    metadata,
    Column("instance_id", _Id, primary_key=True),
    Column("part", Integer, nullable=False),
    Column("run", Integer, nullable=False),
    Column("event_source", _Long, nullable=False),
    Column("event_id", _Long, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Index("romancy_tombstones_at", "part", "at_us"),
)
heartbeats = Table(
    "romancy_heartbeats",
    metadata,
    Column("instance_id", _Id),
    Column("run", Integer),
    Column("activity_id", _Id),
    Column("attempt", Integer, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("details", _Long),
    PrimaryKeyConstraint("instance_id", "run", "activity_id"),
)
detached = Table(
    "romancy_detached",
    metadata,
    Column("instance_id", _Id),
    Column("run", Integer),
    Column("activity_id", _Id),
    Column("part", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("incarnation", String(INCARNATION_CHARS), nullable=False),
    PrimaryKeyConstraint("instance_id", "run", "activity_id"),
    Index("romancy_detached_part", "part"),
)
leases = Table(
    "romancy_leases",
    metadata,
    Column("incarnation", String(INCARNATION_CHARS), primary_key=True),
    Column("expires_us", BigInteger, nullable=False),
)


def json_text(column: ColumnElement[Any], dialect: str) -> ColumnElement[str]:
    """A JSON column of the projection as the text of its value; SQL NULL stays NULL. `dialect`: SQLAlchemy's name."""
    return cast(column, Text()) if dialect == "postgresql" else type_coerce(column, Text())
