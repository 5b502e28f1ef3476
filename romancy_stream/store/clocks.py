"""The clock of each database as its SQL reads it: times that processes on several machines compare come from there.
Touches nothing."""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import ColumnElement, literal, literal_column

PG_CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
MY_CLOCK: Final = "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"  # NOW would be the statement's start


def clock_us() -> int:
    """SQLite has no clock but this machine's."""
    return time.time_ns() // 1000


def clock(dialect: str) -> ColumnElement[int]:
    """`dialect`: SQLAlchemy's name."""
    if dialect == "sqlite":
        return literal(clock_us())
    return literal_column(PG_CLOCK if dialect == "postgresql" else MY_CLOCK)
