"""`romancy worker tests.chaos.longing:app`: an app with an activity that takes as long as the test says, and a worker
that takes it for long after a moment. What runs writes a line into a file; it goes on until another file is there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from romancy_stream import ActivityContext, App, WorkflowContext
from romancy_stream.runtime import worker_watch
from tests.support import eventually

FOLDER = "ROMANCY_TEST_FOLDER"
LOOK_EVERY_S = 0.05
PATIENCE_S = 300

worker_watch.TIMES = worker_watch.Times(detach_after_s=0.3, lease_s=2.0, check_every_s=0.5)


def folder() -> Path:
    return Path(os.environ[FOLDER])


def note(what: str) -> None:
    with (folder() / "notes").open("a") as notes:
        notes.write(f"{what} {os.getpid()}\n")


def longing(name: str | None = None, *, broker: str | None = None, database: str | None = None) -> App:
    app = App(name, broker=broker, database=database, partitions=2)

    @app.activity
    async def crunch(ctx: ActivityContext) -> Any:
        found = ctx.heartbeat_details
        await ctx.heartbeat({"by": os.getpid()})
        note("began")
        try:
            await eventually((folder() / "go").exists, deadline_s=PATIENCE_S, every_s=LOOK_EVERY_S)
        except asyncio.CancelledError:
            note("cancelled")
            raise
        note("ended")
        return {"by": os.getpid(), "after": found}

    @app.activity
    async def quick() -> int:
        return os.getpid()

    @app.workflow
    async def crunching(ctx: WorkflowContext) -> Any:
        return await crunch()

    @app.workflow
    async def quickly(ctx: WorkflowContext) -> int:
        return await quick()

    return app


if os.environ.get(FOLDER):
    app = longing()
