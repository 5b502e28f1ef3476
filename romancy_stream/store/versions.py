"""Which versions of workflows still have instances that run: what has to stay deployed. Part of the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select

from romancy_stream.engine.commit import (
    COMPENSATING,
    RUNNING,
    WAITING_FOR_EVENT,
    WAITING_FOR_MESSAGE,
    WAITING_FOR_TIMER,
)
from romancy_stream.store.database import Database
from romancy_stream.store.port import OpenVersion
from romancy_stream.store.tables import instances

OPEN: Final = (COMPENSATING, RUNNING, WAITING_FOR_EVENT, WAITING_FOR_MESSAGE, WAITING_FOR_TIMER)
"""An index finds these; what has ended, which is most, is not looked at."""


class Versions:
    db: Database

    async def open_versions(self) -> Sequence[OpenVersion]:
        workflow, version = instances.c.workflow, instances.c.version
        counted = (
            select(workflow, version, func.count().label("open"), func.count(instances.c.parked).label("parked"))
            .where(instances.c.status.in_(OPEN))
            .group_by(workflow, version)
        )
        async with self.db.reading("count instances by version") as connection:
            found = [
                OpenVersion(row.workflow, row.version, row.open, row.parked)
                for row in await connection.execute(counted)
            ]
        return sorted(found, key=lambda each: (each.workflow, each.version or ""))
