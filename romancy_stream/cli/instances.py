"""`start`, `send`, `get`, `list`, `history`: what there is to do with instances. Those that read open the
database alone; those that send open the broker too."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from romancy_stream.cli import output, timeline
from romancy_stream.cli.running import Refused, explaining, is_embedded, opened_store, reader, refusing, run
from romancy_stream.cli.setup import Json
from romancy_stream.cli.target import Target
from romancy_stream.errors import InstanceNotFoundError, InvalidInputError, PayloadError, UnknownWorkflowError
from romancy_stream.instances import ActivityView, HistoryEntry, Page, WorkflowInstance, microseconds
from romancy_stream.options import START_OPTIONS, StartOptions
from romancy_stream.store.port import InstanceQuery
from romancy_stream.wire.event import RESERVED_PREFIX
from romancy_stream.workflow import Workflow

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.client import BaseClient
    from romancy_stream.handle import Handle

Id = Annotated[str, typer.Argument(metavar="ID", help="The instance id.", show_default=False)]


# -- start and send ------------------------------------------------------------------------------------------------
def start(
    app: Target,
    workflow: Annotated[str, typer.Argument(help="The workflow's name.", show_default=False)],
    input: Annotated[str | None, typer.Option("--input", help="The input, as JSON.")] = None,
    input_file: Annotated[
        str | None, typer.Option("--input-file", metavar="FILE", help="A file with the input; - is standard input.")
    ] = None,
    instance_id: Annotated[str | None, typer.Option("--id", help="The instance id; made up where not given.")] = None,
    on_conflict: Annotated[
        Literal["use_existing", "fail"], typer.Option("--on-conflict", help="What an id that is taken means.")
    ] = "use_existing",
    reuse: Annotated[
        Literal["reject_duplicate", "allow_failed", "allow_finished"] | None,
        typer.Option("--reuse", help="What to do with an instance of this id that has finished."),
    ] = None,
    start_delay: Annotated[
        float | None, typer.Option("--start-delay", min=0, metavar="SECONDS", help="Begin so much later.")
    ] = None,
    start_at: Annotated[
        str | None, typer.Option("--start-at", metavar="TIME", help="Begin at this time (ISO 8601; UTC).")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and print the result as JSON.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long --wait waits.")
    ] = None,
) -> None:
    """Start an instance; prints its id, or with --wait its result.

    On an embedded broker --wait, --reuse and --on-conflict fail run the engine and the activities in this process
    meanwhile.
    """
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout needs --wait")
    raw = _input(input, input_file)
    at_us = time_option("--start-at", start_at)
    at = None if at_us is None else datetime.fromtimestamp(at_us / 1_000_000, UTC)
    if at is not None and start_delay is not None:
        raise typer.BadParameter("--start-delay and --start-at exclude each other")
    options = StartOptions(instance_id, on_conflict, reuse, start_delay, at)
    print(run(_start(app, workflow, raw, options, wait, timeout)))


def _input(given: str | None, file: str | None) -> bytes | None:
    if file is None:
        return None if given is None else given.encode()
    if given is not None:
        raise typer.BadParameter("--input and --input-file exclude each other")
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error


async def _start(
    app: App,
    name: str,
    raw: bytes | None,
    options: StartOptions,
    wait: bool,
    timeout: float | None,
) -> str:
    workflow = app.registry.workflows.get(name)
    if workflow is None:
        known = ", ".join(sorted(n for n in app.registry.workflows if not n.startswith(RESERVED_PREFIX))) or "none"
        raise UnknownWorkflowError(f"the app has no workflow {name!r}; it has {known}")
    args, kwargs = _decoded(workflow, raw)
    optioned = workflow.with_options(**{name: getattr(options, name) for name in START_OPTIONS})
    answered = options.on_conflict == "fail" or options.reuse is not None
    with explaining("app.start(...)"):
        async with sender(app, answers=wait or answered) as client:
            try:
                handle = await client.start(optioned, *args, **kwargs)
            except TimeoutError:
                raise Refused("the start was sent, but no engine answered: does a worker run?") from None
            return await _result(handle, workflow, timeout) if wait else handle.instance_id


def _decoded(workflow: Workflow[Any, Any], raw: bytes | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The engine checks the input as well; here the mistake is seen before anything is sent."""
    workflow.resolve()
    try:
        args, kwargs = workflow.decode(raw)
    except PayloadError as error:
        raise InvalidInputError(str(error), error.errors) from error
    if len(workflow.parameters.names) == 1 and kwargs.keys() & set(START_OPTIONS):
        return tuple(kwargs.values()), {}  # a parameter of that name, not the option
    return args, kwargs


async def _result(handle: Handle[Any], workflow: Workflow[Any, Any], timeout: float | None) -> str:
    try:
        result = await handle.result(timeout)
    except TimeoutError:
        raise Refused(await _unfinished(handle, timeout)) from None
    return workflow.parameters.result.encode(result).decode()


async def _unfinished(handle: Handle[Any], timeout: float | None) -> str:
    told = f"instance {handle.instance_id} has not ended within {timeout:g} s"
    try:
        instance = await handle.get()
    except InstanceNotFoundError:
        return f"{told}: no engine has taken the start yet. Is a `romancy worker` running for this app?"
    if instance.parked is not None:
        return f"{told}: it is parked: {instance.parked}"
    return f"{told}; it goes on, see `romancy get`"


@asynccontextmanager
async def sender(app: App, *, answers: bool) -> AsyncIterator[BaseClient]:
    """`answers`: somebody has to work on what is sent. Nobody else can while we hold an embedded broker."""
    made: AbstractAsyncContextManager[BaseClient] = app if answers and is_embedded(app) else app.client()
    async with made as client:
        yield client


def send(
    app: Target,
    type: Annotated[str, typer.Argument(metavar="TYPE", help="The event's type.", show_default=False)],
    data: Annotated[str | None, typer.Option("--data", help="The event's data, as JSON.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="The instance that it is for.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Who sends it; this app's client by default.")] = None,
    event_id: Annotated[
        str | None, typer.Option("--id", help="The event's id; the same (source, id) again changes nothing.")
    ] = None,
) -> None:
    """Send a CloudEvent to the app; prints its id when it is durable."""
    value = None if data is None else _json_option("--data", data)
    print(run(_send(app, type, value, subject, source, event_id)))
    workflow = app.registry.workflows.get(type)
    if not type.startswith(RESERVED_PREFIX) and (workflow is None or not workflow.event_handler):
        output.note(
            f"no workflow of this app is an event_handler of type {type!r}: the event will be counted and dropped"
        )


async def _send(app: App, type: str, data: Any, subject: str | None, source: str | None, event_id: str | None) -> str:
    with explaining("app.send_event(...)"):
        async with app.client() as client:
            return await client.send_event(type=type, data=data, subject=subject, source=source, id=event_id)


def json_argument(text: str | None) -> bytes | None:
    """As it was written, once it is known to be JSON."""
    if text is not None:
        _json_option("the argument", text)
    return None if text is None else text.encode()


def _json_option(option: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is not JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# -- get and list ----------------------------------------------------------------------------------------------------
def get(app: Target, instance_id: Id, as_json: Json = False) -> None:
    """Show an instance and what its activities are doing; long values are cut, not with --json."""
    instance, activities = run(_get(app, instance_id))
    if as_json:
        output.print_json(plain(instance) | {"activities": [plain(activity) for activity in activities]})
        return
    facts = [(each.name, _fact(each.name, getattr(instance, each.name))) for each in fields(instance)]
    output.print_facts([(name, shown) for name, shown in facts if shown])
    if activities:
        print()
        output.print_table(
            ["activity", "status", "attempt", "scheduled", "finished", "next attempt", "error"],
            [_activity(activity) for activity in activities],
        )


async def _get(app: App, instance_id: str) -> tuple[WorkflowInstance, list[ActivityView]]:
    async with reader(app) as client:
        instance = await client.get_instance(instance_id)
        if instance is None:
            raise InstanceNotFoundError(f"no instance has the id {instance_id!r}")
        return instance, list(await client.activities(instance_id))


def _fact(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return output.moment(value)
    if name == "error":
        return timeline.error_line(value)
    if name in ("input", "output"):
        return output.compact(value)
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _activity(activity: ActivityView) -> list[str]:
    return [
        activity.activity_id,
        activity.status,
        str(activity.attempt),
        output.moment(activity.scheduled_at),
        output.moment(activity.finished_at),
        output.moment(activity.next_attempt_at),
        "" if activity.error is None else timeline.error_line(activity.error),
    ]


def plain(value: WorkflowInstance | ActivityView | HistoryEntry) -> dict[str, Any]:
    """For JSON: times as RFC 3339."""
    members = {each.name: getattr(value, each.name) for each in fields(value)}
    return {name: each.isoformat() if isinstance(each, datetime) else each for name, each in members.items()}


def list_(
    app: Target,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Part of the workflow's name, any case.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="The status, exactly.")] = None,
    instance_id: Annotated[str | None, typer.Option("--id", help="Part of the instance id, any case.")] = None,
    started_after: Annotated[
        str | None, typer.Option("--started-after", metavar="TIME", help="Started then or later (ISO 8601; UTC).")
    ] = None,
    started_before: Annotated[
        str | None, typer.Option("--started-before", metavar="TIME", help="Started before (ISO 8601; UTC).")
    ] = None,
    find: Annotated[
        list[str] | None,
        typer.Option(
            "--find", metavar="PATH=VALUE", help="A value in the input, as in customer.id=7. May be given repeatedly."
        ),
    ] = None,
    system: Annotated[bool, typer.Option("--system", help="The engine's own too: schedules.")] = False,
    limit: Annotated[int, typer.Option("--limit", help="Instances on a page.")] = 50,
    page_token: Annotated[str | None, typer.Option("--page-token", help="Where the page before ended.")] = None,
    as_json: Json = False,
) -> None:
    """List instances, newest first. All filters must match."""
    query = InstanceQuery(
        workflow,
        status,
        instance_id,
        time_option("--started-after", started_after),
        time_option("--started-before", started_before),
        dict(map(_filter, find)) if find else None,
        system=system,
        limit=limit,
        page_token=page_token,
    )
    page = run(_list(app, query))
    if as_json:
        found = [plain(instance) for instance in page.instances]
        output.print_json({"instances": found, "next_page_token": page.next_page_token})
        return
    output.print_table(
        ["instance", "workflow", "status", "started", "lasted", "parked"],
        [_instance(instance) for instance in page.instances],
    )
    if page.next_page_token is not None:
        output.note(f"more: --page-token {page.next_page_token}")


async def _list(app: App, query: InstanceQuery) -> Page:
    async with opened_store(app) as store:
        with refusing():
            page = await store.list_instances(query)
    return Page([WorkflowInstance.of(row) for row in page.rows], page.next_page_token)


def _instance(instance: WorkflowInstance) -> list[str]:
    lasted = "" if instance.finished_at is None else output.duration(instance.finished_at - instance.started_at)
    started = output.moment(instance.started_at)
    parked = output.clean(instance.parked or "", output.CELL_CHARS)
    return [instance.instance_id, instance.workflow_name, instance.status, started, lasted, parked]


def time_option(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is not a time such as 2025-01-31T12:00:00Z") from None
    return microseconds(when if when.utcoffset() is not None else when.replace(tzinfo=UTC))


def _filter(text: str) -> tuple[str, Any]:
    """The value is JSON; what is not JSON is the string itself, so that customer.id=c1 needs no quotes."""
    path, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--find {text!r} is not of the form PATH=VALUE")
    try:
        return path, json.loads(value, parse_float=Decimal, parse_constant=_no_constant)
    except ValueError:
        return path, value


# -- history ---------------------------------------------------------------------------------------------------------
def history(
    app: Target,
    instance_id: Id,
    run_number: Annotated[int | None, typer.Option("--run", help="An earlier run; the current one by default.")] = None,
    as_json: Json = False,
) -> None:
    """Show what happened to an instance, event by event."""
    entries = run(_history(app, instance_id, run_number))
    if as_json:
        output.print_json([plain(entry) for entry in entries])
    else:
        output.print_table(timeline.COLUMNS, timeline.rows(entries))


async def _history(app: App, instance_id: str, run_number: int | None) -> list[HistoryEntry]:
    async with reader(app) as client:
        entries = list(await client.history(instance_id, run=run_number))
    if not entries:
        which = "" if run_number is None else f" with a run {run_number}"
        raise InstanceNotFoundError(f"no instance{which} has the id {instance_id!r}")
    return entries
