"""The app that the chaos tests run, in their own process and in those they kill: short workflows, one for each way in
which a step can be interrupted. `python -m tests.chaos.program COUNT` is a process with everything in it: it starts
COUNT workflows with fixed ids, waits for all and ends; run again it does the rest.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator

from sqlalchemy import text

from romancy_stream import ActivityContext, App, RetryPolicy, WorkflowContext

PARTITIONS = 4
WORK_S = 0.02  # what an activity takes: long enough to be killed in one
PACE_S = 0.02  # between two starts
PATIENCE_S = 150.0

CREATE_NOTES = "CREATE TABLE notes (instance VARCHAR(100) NOT NULL, attempt INTEGER NOT NULL)"
KINDS = ("steps", "writing", "retrying", "sleeping")


def program(
    name: str | None = None,
    *,
    broker: str | None = None,
    database: str | None = None,
    kind: type[App] = App,
    eager: bool = True,
) -> App:
    """Without arguments: what ROMANCY_NAMESPACE, ROMANCY_BROKER and ROMANCY_DATABASE say."""
    app = kind(name, broker=broker, database=database, partitions=PARTITIONS, eager=eager)

    @app.activity
    async def add(number: int) -> int:
        await asyncio.sleep(WORK_S)
        return number + 1

    @app.activity
    async def write(ctx: ActivityContext) -> str:
        note = {"instance": ctx.info.instance_id, "attempt": ctx.attempt}
        await ctx.session.execute(text("INSERT INTO notes VALUES (:instance, :attempt)"), note)
        ctx.publish_event(type="note.written", data=ctx.info.instance_id)
        await asyncio.sleep(WORK_S)
        return ctx.info.instance_id

    @app.activity(retry=RetryPolicy.fixed(5, 0.1))
    async def stumble(ctx: ActivityContext, number: int) -> int:
        if ctx.attempt == 1:
            raise ConnectionError("the first time always")
        return number + 1

    @app.workflow
    async def steps(ctx: WorkflowContext, number: int) -> int:
        return await add(await add(await add(number)))

    @app.workflow
    async def writing(ctx: WorkflowContext, number: int) -> int:
        written = await write()
        return await add(number) if written else -1

    @app.workflow
    async def retrying(ctx: WorkflowContext, number: int) -> int:
        return await stumble(await add(number))

    @app.workflow
    async def sleeping(ctx: WorkflowContext, number: int) -> int:
        before = await add(number)
        await ctx.sleep(0.3)
        return await add(before)

    return app


def plan(count: int, first: int = 0) -> Iterator[tuple[str, str, int]]:
    """(instance id, workflow, input): the kinds in turn."""
    for number in range(first, first + count):
        kind = KINDS[number % len(KINDS)]
        yield f"{kind}-{number}", kind, number


def output(kind: str, number: int) -> int:
    return number + {"steps": 3, "writing": 1, "retrying": 2, "sleeping": 2}[kind]


def activities(kind: str) -> list[str]:
    """Ids of those that each instance completes, in order."""
    return {
        "steps": ["add:1", "add:2", "add:3"],
        "writing": ["write:1", "add:1"],
        "retrying": ["add:1", "stumble:1"],
        "sleeping": ["add:1", "add:2"],
    }[kind]


async def main(count: int) -> None:
    async with program() as app:
        failed = asyncio.create_task(app.wait_failed())
        everything = asyncio.create_task(_run_all(app, count))
        await asyncio.wait([failed, everything], return_when=asyncio.FIRST_COMPLETED)
        failed.cancel()
        if not everything.done():
            everything.cancel()
            failed.result()
        everything.result()


async def _run_all(app: App, count: int) -> None:
    handles = []
    for instance_id, kind, number in plan(count):
        handles.append((await app.start_by_name(kind, number, instance_id=instance_id), output(kind, number)))
        await asyncio.sleep(PACE_S)
    for handle, expected in handles:
        found = await handle.result(timeout=PATIENCE_S)
        if found != expected:
            raise AssertionError(f"{handle.instance_id}: {found} instead of {expected}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(main(int(sys.argv[1])))
