"""Schedules: a report every second that must not overlap with itself, one every night at three, and what can be done
with them while the app runs.

    python -m examples.reports
"""

import asyncio
from datetime import UTC, datetime, timedelta

from romancy_stream import App, WorkflowContext

app = App("reports")


@app.workflow
async def report(ctx: WorkflowContext, about: str, seconds: float = 0.0) -> str:
    await ctx.sleep(seconds)
    return f"report about {about}"


app.schedule("often", report, {"about": "orders", "seconds": 1.2}, every=1, overlap="skip")
app.schedule("nightly", report, {"about": "sales"}, cron="0 3 * * *", timezone="Europe/Berlin")


async def main() -> None:
    async with app:
        await asyncio.sleep(3)
        await app.pause_schedule("often", note="seen enough")
        info = await app.get_schedule("often")
        print(f"{info.started} started: {info.note}")
        await app.delete_schedule("often")

        instance_id = await app.trigger_schedule("nightly")
        print(await app.handle(instance_id).result(timeout=30))
        today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
        nights = await app.backfill_schedule("nightly", today - timedelta(days=8), today - timedelta(days=1))
        print(f"{nights} nights made up for")
        for each in await app.schedules():
            print(f"{each.name}: {each.cron} in {each.timezone}, next at {each.next_run:%H:%M}")


if __name__ == "__main__":
    asyncio.run(main())
