"""Schedules, on every broker and every database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from romancy_stream import App, InstanceNotFoundError, WorkflowContext
from romancy_stream.schedule import ScheduleInfo
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 30


def with_jobs(app: App, **options: Any) -> App:
    @app.workflow(name="job")
    async def job(ctx: WorkflowContext, who: str, seconds: float = 0.0) -> str:
        await ctx.sleep(seconds)
        return who

    app.schedule("often", job, {"who": "me", "seconds": 1.5}, every=1, overlap="skip")
    app.schedule("nightly", job, {"who": "you"}, cron="0 3 * * *", timezone="Europe/Berlin", **options)
    return app


async def described(app: App, name: str) -> ScheduleInfo:
    async def there() -> bool:
        return await app.get_schedule(name) is not None

    await eventually(there, PATIENCE_S)
    found = await app.get_schedule(name)
    assert found is not None
    return found


async def test_a_schedule_starts_jobs_that_do_not_overlap(make_app: MakeApp) -> None:
    app = with_jobs(make_app())
    async with app:

        async def three() -> bool:
            return len((await app.list_instances(instance_id="often-", status="completed")).instances) >= 3

        await eventually(three, PATIENCE_S)
        await app.pause_schedule("often", note="enough")
        info = await described(app, "often")
        assert (info.paused, info.note, info.next_run) == (True, "enough", None)
        assert info.skipped >= 2
        page = await app.list_instances(limit=1_000)
        jobs = sorted(page.instances, key=lambda each: each.started_at)
        assert {each.workflow_name for each in page.instances} == {"job"}  # no schedules among them
        for before, after in pairwise(jobs):
            assert before.finished_at is not None
            assert before.finished_at <= after.started_at
        assert info.last_instance_id == jobs[-1].instance_id
        assert await app.handle(jobs[0].instance_id).result(PATIENCE_S) == "me"
        assert len((await app.list_instances(system=True, limit=1_000)).instances) == len(jobs) + 2


async def test_schedules_are_managed_and_outlive_their_process(make_app: MakeApp) -> None:
    async with with_jobs(make_app(), start_paused=True) as app:
        assert (await described(app, "nightly")).paused
        await app.pause_schedule("often")
    async with with_jobs(make_app(), overlap="allow") as app:

        async def told() -> bool:
            return (await described(app, "nightly")).overlap == "allow"

        await eventually(told, PATIENCE_S)
        async with app.client() as client:
            listed = [(each.name, each.paused) for each in await client.schedules()]
            assert listed == [("nightly", True), ("often", True)]
            await client.resume_schedule("nightly")
            info = await described(app, "nightly")
            assert info.next_run is not None
            assert info.next_run.hour == 3
            assert info.next_run.utcoffset() in (timedelta(hours=1), timedelta(hours=2))
            assert await app.handle(await client.trigger_schedule("nightly")).result(PATIENCE_S) == "you"
            begin = datetime(2026, 3, 28, tzinfo=UTC)
            assert await client.backfill_schedule("nightly", begin, begin + timedelta(days=3)) == 3
            for day in ("28T02", "29T01", "30T01"):
                assert await client.handle(f"nightly-2026-03-{day}:00Z").result(PATIENCE_S) == "you"
            await client.delete_schedule("nightly")
            assert [each.name for each in await client.schedules()] == ["often"]
            with pytest.raises(InstanceNotFoundError, match="no schedule 'never'"):
                await client.pause_schedule("never")
