"""One test's stage: an app under a name of its own, the processes that run it, and its tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from romancy_stream import App
from romancy_stream.client import BaseClient
from tests.chaos.checks import Plan, Tables, at_least, check, nothing_left_to_send, tables
from tests.chaos.processes import Process, Processes
from tests.chaos.program import PACE_S, PARTITIONS, program
from tests.support import eventually

TAKEOVER_S = 120
"""A session of 4 s, a rebalance, processes that start, on a busy machine."""
FINISH_S = 180.0
SESSION = "?session_timeout_ms=4000&heartbeat_interval_ms=500"


@dataclass
class Scene:
    app: App
    processes: Processes
    tables: Tables

    async def owns(self, process: Process, count: int) -> None:
        async def all_of_them() -> bool:
            assert process.alive, f"{process.name} has ended"
            owned = await self.tables.owned_by(process.pid)
            assert owned == count, f"{owned} of {count} partitions"
            return True

        await eventually(all_of_them, deadline_s=TAKEOVER_S, message=f"{process.name} owns {count} partitions")

    async def share(self, *processes: Process) -> None:
        """Until they own all partitions between them."""
        for process in processes:
            await self.owns(process, PARTITIONS // len(processes))

    async def completed(self, count: int) -> None:
        await eventually(at_least(self.tables.completed, count), deadline_s=FINISH_S, every_s=0.1)

    async def finish(self, plan: Plan, *, tidy: bool = True) -> None:
        """Everything completes; the processes end; and all is as it should be. `tidy`: a process still runs, that is
        to clean up behind the dead."""
        await self.completed(len(plan))
        if tidy:
            await nothing_left_to_send(self.tables)
        await self.processes.stop()
        await check(self.app, self.tables, plan)


@asynccontextmanager
async def scene(name: str, broker: str, database: str, folder: Path) -> AsyncIterator[Scene]:
    app = program(name, broker=broker, database=database)
    environment = {"ROMANCY_NAMESPACE": name, "ROMANCY_BROKER": broker, "ROMANCY_DATABASE": database}
    processes = Processes(environment, folder)
    try:
        async with tables(app) as looking:
            yield Scene(app, processes, looking)
    except BaseException:
        print(processes.report())
        raise
    finally:
        processes.end_anyway()


async def start_all(client: BaseClient, plan: Plan) -> None:
    for instance_id, kind, number in plan:
        await client.start_by_name(kind, number, instance_id=instance_id)
        await asyncio.sleep(PACE_S)
