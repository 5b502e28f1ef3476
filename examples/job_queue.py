"""A channel that hands out jobs, each to one worker. An activity publishes what it has saved, in its own transaction,
and a broadcast tells everybody to go home.

python -m examples.job_queue
"""

import asyncio

from pydantic import BaseModel

from romancy_stream import ActivityContext, App, WorkflowContext

app = App("job_queue")


class Job(BaseModel):
    number: int


@app.activity
async def split(ctx: ActivityContext, jobs: int) -> int:
    for number in range(jobs):
        ctx.publish("jobs", Job(number=number), {"of": jobs})  # with this attempt's commit, or not at all
    return jobs


@app.workflow
async def order(ctx: WorkflowContext, jobs: int) -> int:
    await ctx.subscribe("done", "competing")
    await split(jobs)
    numbers = [(await ctx.receive("done", model=int)).data for _ in range(jobs)]
    ctx.publish("closing", "thank you")
    return sum(numbers)


@app.workflow
async def worker(ctx: WorkflowContext) -> str:
    await ctx.subscribe("closing")
    await ctx.subscribe("jobs", "competing")
    ctx.publish("present", ctx.instance_id)
    closing = asyncio.create_task(ctx.receive("closing"))
    done = 0
    while True:
        job = asyncio.create_task(ctx.receive("jobs", model=Job))
        await asyncio.wait([job, closing], return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            job.cancel()
            return f"{closing.result().data}: {'some' if done else 'no'} jobs"
        done += 1
        ctx.publish("done", job.result().data.number)


@app.workflow
async def attendance(ctx: WorkflowContext, workers: int) -> None:
    await ctx.subscribe("present", "competing")
    for _ in range(workers):
        await ctx.receive("present")


async def main() -> None:
    async with app:
        workers = [await app.start(worker) for _ in range(3)]
        await (await app.start(attendance, 3)).result(timeout=30)
        print("sum of the jobs:", await (await app.start(order, 12)).result(timeout=30))
        for each in workers:
            print(await each.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
