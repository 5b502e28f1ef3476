"""`schedule list|pause|resume|trigger|backfill|delete`. Listing opens the database alone; what changes a schedule is
answered by an engine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from romancy_stream.cli import output
from romancy_stream.cli.instances import sender
from romancy_stream.cli.running import Refused, explaining, reader, refusing, run
from romancy_stream.cli.setup import Json
from romancy_stream.cli.target import Target
from romancy_stream.schedule import ScheduleInfo

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.client import BaseClient

T = TypeVar("T")

schedule = typer.Typer(help="Schedules: what is started when, and changing it.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the schedule.", show_default=False)]


@schedule.command("list")
def list_(app: Target, as_json: Json = False) -> None:
    """List schedules by name, with their next and last times."""
    found = run(_list(app))
    if as_json:
        output.print_json([plain(each) for each in found])
        return
    output.print_table(
        ["schedule", "workflow", "when", "next", "last", "overlap", "started", "skipped", "missed"],
        [
            [
                each.name,
                each.workflow_name,
                _when(each),
                "paused" if each.paused else _moment(each.next_run),
                _moment(each.last_run),
                each.overlap,
                *(str(count) for count in (each.started, each.skipped, each.missed)),
            ]
            for each in found
        ],
    )


async def _list(app: App) -> list[ScheduleInfo]:
    async with reader(app) as client:
        return await client.schedules()


def _when(each: ScheduleInfo) -> str:
    return f"{each.cron} ({each.timezone})" if each.every is None else f"every {output.duration(each.every)}"


def _moment(when: datetime | None) -> str:
    return output.moment(None if when is None else when.astimezone(UTC))


@schedule.command("pause")
def pause(
    app: Target,
    name: Name,
    note: Annotated[str | None, typer.Option("--note", help="Why, for who looks at it.")] = None,
) -> None:
    """Start nothing any more until it is resumed."""
    _tell(app, "app.pause_schedule(...)", lambda client: client.pause_schedule(name, note))


@schedule.command("resume")
def resume(app: Target, name: Name) -> None:
    """Go on, from now."""
    _tell(app, "app.resume_schedule(...)", lambda client: client.resume_schedule(name))


@schedule.command("trigger")
def trigger(app: Target, name: Name) -> None:
    """Start an instance now; prints its id."""
    print(_tell(app, "app.trigger_schedule(...)", lambda client: client.trigger_schedule(name)))


@schedule.command("backfill")
def backfill(
    app: Target,
    name: Name,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="The first time: ISO 8601, UTC by default.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Before this time.")],
) -> None:
    """Start an instance for each time of a past stretch that has none; prints how many times there are."""
    begin, until = _time("--from", start), _time("--to", end)
    print(_tell(app, "app.backfill_schedule(...)", lambda client: client.backfill_schedule(name, begin, until)))


@schedule.command("delete")
def delete(app: Target, name: Name) -> None:
    """End a schedule. What it has started goes on; an app that declares it brings it back at its next start."""
    _tell(app, "app.delete_schedule(...)", lambda client: client.delete_schedule(name))


def _tell(app: App, instead: str, call: Callable[[BaseClient], Coroutine[Any, Any, T]]) -> T:
    async def tell() -> T:
        with explaining(instead):
            async with sender(app, answers=True) as client:
                try:
                    with refusing():
                        return await call(client)
                except TimeoutError:
                    raise Refused("no engine answered: it may still happen. Does a worker run?") from None

    return run(tell())


def _time(option: str, text: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is not a time such as 2025-01-31T12:00:00Z") from None
    return when if when.utcoffset() is not None else when.replace(tzinfo=UTC)


def plain(each: ScheduleInfo) -> dict[str, Any]:
    """For JSON."""
    return {
        "name": each.name,
        "workflow_name": each.workflow_name,
        "cron": each.cron,
        "every_s": None if each.every is None else each.every.total_seconds(),
        "timezone": each.timezone,
        "overlap": each.overlap,
        "catch_up_s": each.catch_up.total_seconds(),
        "paused": each.paused,
        "note": each.note,
        "next_run": None if each.next_run is None else each.next_run.isoformat(),
        "last_run": None if each.last_run is None else each.last_run.isoformat(),
        "last_instance_id": each.last_instance_id,
        "running": list(each.running),
        "started": each.started,
        "skipped": each.skipped,
        "missed": each.missed,
    }
