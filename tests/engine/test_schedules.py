"""The workflow that a schedule is, on the core without I/O: hours pass at once, and every crash is tried."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest

from romancy_stream import WorkflowContext, workflow
from romancy_stream.engine.queries import ask
from romancy_stream.schedule import Overlap, Schedule, schedule_id
from romancy_stream.schedule_workflow import STARTS_PER_RUN, ScheduleWorkflow
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import Workflow
from tests.engine.world import World

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
ID = schedule_id("job")


@workflow
async def job(ctx: WorkflowContext, seconds: float) -> str:
    await ctx.sleep(seconds)
    return ctx.instance_id


class Calendar(World):
    def __init__(self, begin: datetime, **options: Any) -> None:
        super().__init__(job, Workflow.of(ScheduleWorkflow), **options)
        self.now_us = int(begin.timestamp()) * SECOND_US

    def declare(self, seconds: float = 1, **options: Any) -> None:
        schedule = Schedule("job", "job", str(seconds), **options)
        data = {"schedule": {name: getattr(schedule, name) for name in Schedule.__slots__}}
        self.start("romancy.schedule", data, ID)

    def say(self, name: str, data: Any = None) -> Any:
        """An update, and its answer."""
        event = WireEvent(f"{name}-{self.now_us}", "/test", w.UPDATE, ID, orjson.dumps(data), "2026-01-01T00:00:00Z")
        event.extensions[w.X_NAME] = name
        self.send(event, self.part_of(ID))
        for _ in range(4):
            self.step()
        [told] = [each for each in self.events if each.extensions.get(w.X_CAUSATION) == event.id]
        return orjson.loads(told.data or b"")

    def live(self, *, hours: float = 0, seconds: float = 0, restarts: bool = False) -> None:
        until_us = self.now_us + round(hours * HOUR_US + seconds * SECOND_US)
        self.run(restarts=restarts, until_us=until_us, limit=100_000)
        self.now_us = max(self.now_us, until_us)

    @property
    def described(self) -> Any:
        """Of what it has dealt with so far."""
        history = self.run_of(ID, self.instances[ID].run)
        return orjson.loads(ask(Workflow.of(ScheduleWorkflow), history, "describe", None))

    @property
    def jobs(self) -> list[str]:
        return [i.removeprefix("job-") for i in sorted(self.instances) if i != ID]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("partitions", [1, 5])
def test_a_job_is_started_at_each_of_its_times(restarts: bool, partitions: int) -> None:
    world = Calendar(datetime(2026, 5, 1, 12, 30, tzinfo=UTC), partitions=partitions)
    world.declare(cron="0 * * * *")
    world.live(hours=5, restarts=restarts)
    assert world.jobs == [f"2026-05-01T{hour}:00Z" for hour in range(13, 18)]
    begun = [world.instances[f"job-{each}"].started_us for each in world.jobs]
    due = [int(datetime(2026, 5, 1, hour, tzinfo=UTC).timestamp()) * SECOND_US for hour in range(13, 18)]
    assert all(0 <= at - due_us < SECOND_US for at, due_us in zip(begun, due, strict=True))
    assert {row.parent_id for row in world.instances.values()} == {None, ID}
    world.check_projections()


@pytest.mark.parametrize(
    ("zone", "day", "cron", "expected"),
    [
        # 02:00 becomes 03:00: what falls into the gap comes after it
        ("Europe/Berlin", datetime(2026, 3, 28, 12), "30 2 * * *", ["29T03:00+02:00", "30T02:30+02:00"]),
        ("America/New_York", datetime(2026, 3, 7, 12), "30 2 * * *", ["08T03:00-04:00", "09T02:30-04:00"]),
        # 03:00 becomes 02:00, 02:00 becomes 01:00: once
        ("Europe/Berlin", datetime(2026, 10, 24, 12), "30 2 * * *", ["25T02:30+02:00", "26T02:30+01:00"]),
        ("America/New_York", datetime(2026, 10, 31, 12), "30 2 * * *", ["01T02:30-05:00", "02T02:30-05:00"]),
        ("America/New_York", datetime(2026, 10, 31, 12), "30 1 * * *", ["01T01:30-04:00", "02T01:30-05:00"]),
    ],
)
def test_a_daily_job_on_days_of_23_and_25_hours(zone: str, day: datetime, cron: str, expected: list[str]) -> None:
    world = Calendar(day.replace(tzinfo=ZoneInfo(zone)))
    world.declare(cron=cron, timezone=zone)
    world.live(hours=40, restarts=True)
    at = [datetime.fromisoformat(each).astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for each in world.jobs]
    assert [each[8:] for each in at] == expected


@pytest.mark.parametrize(
    ("zone", "midnight", "hours"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29), 23),
        ("Europe/Berlin", datetime(2026, 10, 25), 25),
        ("America/New_York", datetime(2026, 3, 8), 23),
        ("America/New_York", datetime(2026, 11, 1), 25),
    ],
)
def test_an_hourly_job_runs_in_each_real_hour(zone: str, midnight: datetime, hours: int) -> None:
    begin = midnight.replace(tzinfo=ZoneInfo(zone))
    world = Calendar(begin)
    world.declare(cron="30 * * * *", timezone=zone)
    world.live(hours=hours)
    first = begin.astimezone(UTC)
    due = [first + timedelta(hours=n, minutes=30) for n in range(hours)]
    assert world.jobs == [f"{each:%Y-%m-%dT%H:%MZ}" for each in due]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("overlap", "started", "skipped"),
    [
        ("skip", [0, 30, 60, 90], 6),
        ("buffer", [0, 10, 30, 60, 80], 6),  # at the end of one begins the first that came due while it ran
        ("allow", list(range(0, 120, 10)), 0),
    ],
)
def test_jobs_that_last_longer_than_their_interval(
    overlap: Overlap, started: list[int], skipped: int, restarts: bool
) -> None:
    world = Calendar(datetime(2026, 5, 1, 11, 59, 55, tzinfo=UTC), partitions=3)
    world.declare(every_s=10, seconds=25, overlap=overlap)
    world.live(seconds=120, restarts=restarts)
    assert world.jobs == [f"2026-05-01T12:{at // 60:02}:{at % 60:02}Z" for at in started]
    assert world.described["started"] == len(started)
    assert world.described["skipped"] == skipped
    rows = [row for i, row in world.instances.items() if i != ID]
    if overlap != "allow":
        ordered = sorted(rows, key=lambda row: row.started_us)
        assert all((a.finished_us or 0) <= b.started_us for a, b in pairwise(ordered))


@pytest.mark.parametrize(("catch_up_s", "hours"), [(3 * 3_600, [14, 15, 16]), (60, [])])
def test_what_came_due_while_nobody_was_there(catch_up_s: int, hours: list[int]) -> None:
    world = Calendar(datetime(2026, 5, 1, 11, 30, tzinfo=UTC))
    world.declare(cron="0 * * * *", overlap="allow", catch_up_s=catch_up_s)
    world.live(hours=1)
    world.now_us += round(4.4 * HOUR_US)
    world.live(seconds=1, restarts=True)
    assert world.jobs == [f"2026-05-01T{hour}:00Z" for hour in (12, *hours)]
    world.live(hours=1)
    assert world.jobs[-1] == "2026-05-01T17:00Z"


def test_pausing_resuming_and_another_spec() -> None:
    world = Calendar(datetime(2026, 5, 1, 11, 30, tzinfo=UTC))
    world.declare(cron="0 * * * *")
    world.live(hours=1)
    assert world.say("pause", "holidays")["ok"]
    world.live(hours=3)
    assert world.say("resume")["ok"]
    world.live(hours=1, restarts=True)
    assert world.jobs == ["2026-05-01T12:00Z", "2026-05-01T16:00Z"]
    spec = {"name": "job", "workflow": "job", "input": "1", "cron": "15 * * * *"}
    assert world.say("declare", spec)["result"] is True
    world.live(seconds=1)
    assert world.say("declare", spec)["result"] is False
    world.live(hours=1)
    assert world.jobs[-1] == "2026-05-01T17:15Z"
    assert world.say("end")["ok"]
    assert world.instances[ID].status == "completed"
    assert not [timer for timer in world.timers if timer[0] == ID]


def test_a_job_out_of_turn() -> None:
    world = Calendar(datetime(2026, 5, 1, 11, 30, tzinfo=UTC))
    world.declare(cron="0 * * * *", seconds=3_600)
    world.live(seconds=60)
    first = world.say("trigger")["result"]
    second = world.say("trigger")["result"]
    assert first.startswith("job-2026-05-01T11:31:0")
    assert {first, second} <= set(world.instances)
    world.live(hours=1)
    assert len(world.jobs) == 2  # at 12:00 one of them was running
    world.live(hours=1)
    assert world.jobs[-1] == "2026-05-01T13:00Z"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_backfill_starts_what_is_not_there_and_goes_on_in_further_runs(restarts: bool) -> None:
    world = Calendar(datetime(2026, 5, 20, 11, 30, tzinfo=UTC))
    world.declare(cron="0 * * * *", seconds=0)
    world.live(hours=2)
    begin_us = int(datetime(2026, 5, 1, tzinfo=UTC).timestamp()) * SECOND_US
    count = 19 * 24 + 14
    ahead = {"start_us": begin_us, "end_us": begin_us + 30 * 24 * HOUR_US}  # the rest is not due yet
    assert world.say("backfill", ahead)["result"] == count
    world.live(seconds=60, restarts=restarts)
    assert len(world.jobs) == count
    assert world.instances[ID].run == 1 + (2 + count) // STARTS_PER_RUN
    assert world.jobs[0] == "2026-05-01T00:00Z"
    world.live(hours=1)
    assert world.jobs[-1] == "2026-05-20T14:00Z"
    refused = world.say("backfill", {"start_us": 0, "end_us": begin_us})
    assert "more than" in refused["error"]["message"]


def test_a_schedule_begins_another_run_before_its_history_gets_long() -> None:
    world = Calendar(datetime(2026, 5, 1, tzinfo=UTC))
    world.declare(every_s=60, seconds=1)
    world.live(hours=5)
    assert len(world.jobs) == 5 * 60
    assert world.instances[ID].run == 1 + 300 // STARTS_PER_RUN
    assert max(len(world.run_of(ID, run)) for run in (1, 2)) < 6 * STARTS_PER_RUN
    world.check_projections()


@pytest.mark.parametrize(
    "wrong",
    [
        {"cron": "0 3 * *"},
        {"cron": "0 25 * * *"},
        {"cron": "0 0 30 2 *"},
        {"cron": "0 3 * * *", "timezone": "Europe/Atlantis"},
        {"cron": "0 3 * * *", "every_s": 60},
        {},
        {"every_s": 0},
        {"every_s": 10, "overlap": "sometimes"},
        {"every_s": 10, "catch_up_s": 0},
        {"every_s": 10, "name": "a b"},
    ],
)
def test_what_is_no_schedule(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"schedule|cron|timezone"):
        Schedule(**{"name": "job", "workflow": "job", **wrong})
