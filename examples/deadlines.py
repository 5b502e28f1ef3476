"""Timers: a deadline over several steps, and two thousand parking tickets that run out at one moment, while nobody is
there. The next process finds them due.

    python -m examples.deadlines
"""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

from romancy_stream import App, WorkflowContext

app = App("deadlines")
TICKETS = 2_000


@app.activity
async def look_up_rate(customer: str) -> float:
    return 3.5


@app.workflow
async def offer(ctx: WorkflowContext, customer: str, valid: timedelta) -> str:
    try:
        async with asyncio.timeout(valid.total_seconds()):  # a durable timer, over all that is in the block
            rate = await look_up_rate(customer)
            await ctx.wait_event("offer.accepted", match={"customer": customer})
    except TimeoutError:
        return f"{customer} has not answered in time"
    return f"{customer} pays {rate} %"


@app.workflow
async def ticket(ctx: WorkflowContext, ends: datetime) -> bool:
    await ctx.sleep_until(datetime(2001, 1, 1, tzinfo=UTC))  # has passed: goes on at once
    await ctx.sleep_until(ends)
    return ctx.now() >= ends


async def main() -> None:
    async with app:
        slow = await app.start(offer, "Ben", timedelta(seconds=1))
        quick = await app.start(offer, "Ada", timedelta(days=14))
        await app.send_event(type="offer.accepted", data={"customer": "Ada"})
        print(await quick.result(timeout=30))
        print(await slow.result(timeout=30))

        ends = datetime.now(UTC) + timedelta(seconds=5)
        handles = await app.start_many(ticket, [ends] * TICKETS)
        while app.stats().timers < TICKETS and datetime.now(UTC) < ends:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)  # until all of them sleep

    # No process has the app now: nobody is there when they are due.
    await asyncio.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))

    async with app:
        in_time = Counter(await asyncio.gather(*[handle.result(timeout=120) for handle in handles]))
        print(f"{in_time[True]:,} tickets have run out, {in_time[False]} of them too early")
        timers = [entry.kind for entry in await app.history(handles[-1].instance_id) if "timer" in entry.kind]
        print(f"the last one: {' '.join(timers)}")


if __name__ == "__main__":
    asyncio.run(main())
