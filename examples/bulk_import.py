"""A long activity tells how far it is, and a later attempt goes on from there. The first attempt hangs in the middle:
its heartbeats cease, so the engine gives it up and begins another one.

    python -m examples.bulk_import
"""

import asyncio

from pydantic import BaseModel

from romancy_stream import ActivityContext, App, RetryPolicy, WorkflowContext

app = App("import")

ROWS = 10


class Cursor(BaseModel):
    row: int


@app.activity(heartbeat_timeout=1.0, retry=RetryPolicy.fixed(3, 0.1))
async def copy_rows(ctx: ActivityContext, rows: int) -> str:
    cursor = ctx.heartbeat_details_as(Cursor) or Cursor(row=0)
    print(f"attempt {ctx.attempt} begins behind row {cursor.row}")
    for row in range(cursor.row + 1, rows + 1):
        await ctx.heartbeat(Cursor(row=row))  # as often as you like: the database hears of it now and then
        if row == 4 and ctx.attempt == 1:
            await asyncio.Event().wait()  # a connection that hangs, say
    return f"{rows} rows, {ctx.attempt} attempts"


@app.workflow
async def bulk_import(ctx: WorkflowContext, rows: int) -> str:
    return await copy_rows(rows)


async def main() -> None:
    async with app:
        handle = await app.start(bulk_import, ROWS)
        print(await handle.result(timeout=60))


if __name__ == "__main__":
    asyncio.run(main())
