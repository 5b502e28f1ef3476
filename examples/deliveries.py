"""Children: an order sends each of its parcels as a workflow of its own, in parallel, and copes with one that fails.
And recurring: a courier who drives for ever begins another run each day, so that no history gets long.

    python -m examples.deliveries
"""

import asyncio

from romancy_stream import App, ChildWorkflowError, TerminalError, WorkflowContext

app = App("deliveries")


@app.activity
async def drive(parcel: str) -> str:
    if "glass" in parcel:
        raise TerminalError("it broke")
    return f"{parcel} delivered"


@app.workflow
async def deliver(ctx: WorkflowContext, parcel: str) -> str:
    return await drive(parcel)


@app.workflow
async def order(ctx: WorkflowContext, parcels: list[str]) -> list[str]:
    children = [await ctx.start_child(deliver, parcel) for parcel in parcels]
    told = []
    for child in children:
        try:
            told.append(await child.result())
        except ChildWorkflowError as error:
            told.append(f"{child.instance_id} failed: {error.__cause__}")
    return told


@app.workflow
async def courier(ctx: WorkflowContext, days: int, tours: int = 0) -> str:
    tours += 2
    await ctx.sleep(0.1)
    if days > 1:
        await ctx.recur(days - 1, tours=tours)
    return f"{tours} tours in {ctx.run} runs"


async def main() -> None:
    async with app:
        handle = await app.start(order, ["a book", "a glass", "a lamp"], instance_id="o-1")
        for line in await handle.result(timeout=30):
            print(line)
        employed = await app.start(courier, 3)
        print(await employed.result(timeout=30))
        print(f"{len(await app.history(employed.instance_id, run=1))} events in the first of them")


if __name__ == "__main__":
    asyncio.run(main())
