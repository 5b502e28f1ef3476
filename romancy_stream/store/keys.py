"""Rows by key: in which portions, and for keys of several columns in the one form that every database looks up in the
key's index (SQLite reads the whole table for `(a, b) IN (...)`). Makes conditions; runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Column, ColumnElement, Table, and_, or_

T = TypeVar("T")

IDS_PER_STATEMENT: Final = 1000  # SQLite allows some 32,000 parameters; longer texts gain nothing
KEYS_PER_STATEMENT: Final = 200  # ORs: MySQL's optimizer must keep to the index, SQLite's parser to its depth


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def any_of(columns: Sequence[Column[Any]], keys: Iterable[Sequence[Any]]) -> ColumnElement[bool]:
    """A row with one of these keys, of which there is at least one."""
    return or_(*(and_(*(column == value for column, value in zip(columns, key, strict=True))) for key in keys))


def activity_columns(table: Table) -> tuple[Column[Any], ...]:
    """Those of an `ActivityKey`, which is also the order in which rows are locked everywhere."""
    return table.c.instance_id, table.c.run, table.c.activity_id
