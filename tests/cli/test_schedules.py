"""schedule list, pause, resume, trigger, backfill, delete: in this process, on the embedded broker and SQLite."""

from __future__ import annotations

import pytest

from romancy_stream.app import App
from tests.cli.conftest import Project
from tests.support import eventually

SOURCE = """


@app.workflow
async def report(ctx: WorkflowContext, about: str) -> str:
    return about


app.schedule("nightly", report, "sales", cron="0 3 * * *", timezone="Europe/Berlin")
app.schedule("hourly", report, "stock", every=3600, start_paused=True)
"""


@pytest.fixture
def scheduled(project: Project) -> Project:
    with (project.folder / f"{project.module}.py").open("a") as file:
        file.write(SOURCE)

    async def declare(app: App) -> None:
        async def both() -> bool:
            return len(await app.schedules()) == 2

        await eventually(both)

    project.working(declare)
    return project


def test_schedules_are_listed_and_changed(scheduled: Project) -> None:
    lines = scheduled.run("schedule", "list", "@").out.splitlines()
    assert lines[0].split()[:5] == ["SCHEDULE", "WORKFLOW", "WHEN", "NEXT", "LAST"]
    assert lines[1].startswith("hourly")
    assert "paused" in lines[1]
    assert "0 3 * * * (Europe/Berlin)" in lines[2]

    assert scheduled.run("schedule", "pause", "@", "nightly", "--note", "holidays").out == ""
    assert scheduled.run("schedule", "resume", "@", "hourly").out == ""
    hourly, nightly = scheduled.run("schedule", "list", "@", "--json").json
    assert (hourly["paused"], nightly["paused"], nightly["note"], nightly["next_run"]) == (
        False,
        True,
        "holidays",
        None,
    )
    assert hourly["next_run"] is not None

    instance_id = scheduled.run("schedule", "trigger", "@", "nightly").out.strip()
    assert instance_id.startswith("nightly-")
    stretch = ("--from", "2026-03-28", "--to", "2026-03-31T00:00:00+02:00")
    assert scheduled.run("schedule", "backfill", "@", "nightly", *stretch).out == "3\n"
    assert scheduled.run("schedule", "delete", "@", "hourly").out == ""
    # Each command that needs an engine starts the app, which declares its schedules again.
    assert "nightly" in scheduled.run("schedule", "list", "@").out


def test_the_engines_own_workflows_are_not_in_lists(scheduled: Project) -> None:
    assert scheduled.run("list", "@", "--json").json["instances"] == []
    shown = scheduled.run("list", "@", "--system", "--json").json["instances"]
    assert {each["instance_id"] for each in shown} == {"schedule:hourly", "schedule:nightly"}


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["pause", "@", "weekly"], 1, "there is no schedule 'weekly' [instance_not_found]"),
        (["backfill", "@", "nightly", "--from", "now", "--to", "then"], 2, "is not a time"),
        (["backfill", "@", "hourly", "--from", "1999-01-01", "--to", "2026-01-01"], 1, "[update_failed]"),
    ],
)
def test_what_goes_wrong_is_one_line(scheduled: Project, command: list[str], code: int, said: str) -> None:
    answer = scheduled.run("schedule", *command, ok=False)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert "Traceback" not in answer.err
