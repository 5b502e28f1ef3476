"""`cancel`, `retry`, `reset`, `fork`, `delete`: what operators do to instances, by id or to all that filters find. Each
is a command to an engine, whose answer is waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from romancy_stream.cli import output
from romancy_stream.cli.instances import Id, sender, time_option
from romancy_stream.cli.running import Refused, described, explaining, opened_store, refusing, run
from romancy_stream.cli.target import Target
from romancy_stream.errors import RomancyError
from romancy_stream.store.port import InstanceQuery

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.client import BaseClient
    from romancy_stream.operating import BulkResult

COUNTED: Final = 1_000
"""Instances that a filter finds are counted so far, before anything is done to them."""

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Instance ids.", show_default=False)]
WorkflowPart = Annotated[
    str | None, typer.Option("--workflow", help="All of workflows with this in their name, any case.")
]
Status = Annotated[str | None, typer.Option("--status", help="All of this status.")]
IdPart = Annotated[str | None, typer.Option("--id", help="All with this in their id, any case.")]
StartedAfter = Annotated[
    str | None, typer.Option("--started-after", metavar="TIME", help="All that started then or later (ISO 8601; UTC).")
]
StartedBefore = Annotated[
    str | None, typer.Option("--started-before", metavar="TIME", help="All that started before (ISO 8601; UTC).")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it to all that the filters find, without asking.")]
NO_ANSWER: Final = "the command was sent, but no engine answered: does a worker run?"


@dataclass(frozen=True, slots=True)
class Operation:
    """`one` does it to an id and says what came of it; `all` to whatever filters find; `done` is what to call that."""

    call: str
    done: str
    one: Callable[[BaseClient, str], Awaitable[str]]
    all: Callable[[BaseClient, dict[str, Any]], Awaitable[BulkResult]]
    finished: bool


def cancel(
    app: Target,
    ids: Ids = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why: kept with the instances.")] = None,
    workflow: WorkflowPart = None,
    status: Status = None,
    id_part: IdPart = None,
    started_after: StartedAfter = None,
    started_before: StartedBefore = None,
    yes: Yes = False,
) -> None:
    """Cancel instances: their code may clean up, and what they completed is undone.

    On an embedded broker this process runs the engine and the activities until the request is taken.
    """

    async def one(client: BaseClient, instance_id: str) -> str:
        await client.cancel(instance_id, reason)
        return f"cancelling {instance_id}"

    operation = Operation(
        "app.cancel(...)", "cancelling", one, lambda client, by: client.cancel_all(reason, **by), False
    )
    _operate(app, operation, ids, _filters(workflow, status, id_part, started_after, started_before), yes)


def retry(
    app: Target,
    ids: Ids = None,
    workflow: WorkflowPart = None,
    status: Status = None,
    id_part: IdPart = None,
    started_after: StartedAfter = None,
    started_before: StartedBefore = None,
    yes: Yes = False,
) -> None:
    """Run failed instances again, from where they were last well.

    On an embedded broker this process runs the engine and the activities until the command is answered.
    """

    async def one(client: BaseClient, instance_id: str) -> str:
        return f"{instance_id}: run {await client.retry(instance_id)}"

    operation = Operation("app.retry(...)", "retried", one, lambda client, by: client.retry_all(**by), True)
    by = _filters(workflow, status, id_part, started_after, started_before)
    _operate(app, operation, ids, by and {"status": "failed", **by}, yes)


def delete(
    app: Target,
    ids: Ids = None,
    workflow: WorkflowPart = None,
    status: Status = None,
    id_part: IdPart = None,
    started_after: StartedAfter = None,
    started_before: StartedBefore = None,
    finished_before: Annotated[
        str | None, typer.Option("--finished-before", metavar="TIME", help="All that ended before (ISO 8601; UTC).")
    ] = None,
    yes: Yes = False,
) -> None:
    """Delete finished instances, with everything that is known of them.

    On an embedded broker this process runs the engine and the activities until the command is answered.
    """

    async def one(client: BaseClient, instance_id: str) -> str:
        await client.delete(instance_id)
        return f"deleted {instance_id}"

    operation = Operation("app.delete(...)", "deleted", one, lambda client, by: client.delete_all(**by), True)
    by = _filters(workflow, status, id_part, started_after, started_before)
    ended = time_option("--finished-before", finished_before)
    _operate(app, operation, ids, by if ended is None else {**by, "finished_before": _moment(ended)}, yes)


def reset(
    app: Target,
    instance_id: Id,
    to_event: Annotated[
        int | None, typer.Option("--to-event", min=1, help="A number in its history; the last event by default.")
    ] = None,
) -> None:
    """Run an instance again from an event of its history.

    On an embedded broker this process runs the engine and the activities until the command is answered.
    """

    async def one(client: BaseClient) -> str:
        return f"{instance_id}: run {await client.reset(instance_id, to_event=to_event)}"

    print(output.clean(run(_alone(app, "app.reset(...)", one))))


def fork(
    app: Target,
    instance_id: Id,
    at: Annotated[
        int | None, typer.Option("--at", min=1, help="A number in its history; the last event by default.")
    ] = None,
    new_id: Annotated[str | None, typer.Option("--new-id", help="The id of the other one; made up by default.")] = None,
    run_number: Annotated[int | None, typer.Option("--run", help="An earlier run; the current one by default.")] = None,
) -> None:
    """Begin another instance with the history of this one up to an event; prints its id.

    On an embedded broker this process runs the engine and the activities until the command is answered.
    """

    async def one(client: BaseClient) -> str:
        return (await client.fork(instance_id, at=at, new_id=new_id, run=run_number)).instance_id

    print(output.clean(run(_alone(app, "app.fork(...)", one))))


async def _alone(app: App, call: str, do: Callable[[BaseClient], Awaitable[str]]) -> str:
    with explaining(call):
        async with sender(app, answers=True) as client:
            try:
                with refusing():
                    return await do(client)
            except TimeoutError:
                raise Refused(NO_ANSWER) from None


# -- by id, or by filters ----------------------------------------------------------------------------------------------
def _filters(
    workflow: str | None, status: str | None, id_part: str | None, started_after: str | None, started_before: str | None
) -> dict[str, Any]:
    """As the bulk forms of the client take them; those that were given."""
    after, before = time_option("--started-after", started_after), time_option("--started-before", started_before)
    given = {
        "workflow_name": workflow,
        "status": status,
        "instance_id": id_part,
        "started_after": None if after is None else _moment(after),
        "started_before": None if before is None else _moment(before),
    }
    return {name: value for name, value in given.items() if value is not None}


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1_000_000, UTC)


def _operate(app: App, operation: Operation, ids: list[str] | None, by: dict[str, Any], yes: bool) -> None:
    if ids and by:
        raise typer.BadParameter("ids and filters exclude each other")
    if ids:
        refused = run(_each(app, operation, ids))
    elif not by:
        raise typer.BadParameter("give ids, or filters with --yes")
    elif yes:
        refused = run(_all(app, operation, by))
    else:
        raise typer.BadParameter(f"this is {run(_count(app, operation, by))}: add --yes to do it")
    if refused:
        raise typer.Exit(1)


async def _each(app: App, operation: Operation, ids: list[str]) -> int:
    """How many refused. One that is alone is an error like any other."""
    refused = 0
    with explaining(operation.call):
        async with sender(app, answers=True) as client:
            for instance_id in ids:
                try:
                    with refusing():
                        print(output.clean(await operation.one(client, instance_id)))
                except TimeoutError:
                    raise Refused(NO_ANSWER) from None
                except (RomancyError, Refused) as error:
                    if len(ids) == 1:
                        raise
                    refused += 1
                    output.note(f"{instance_id}: {described(error)}")
    return refused


async def _all(app: App, operation: Operation, by: dict[str, Any]) -> int:
    with explaining(operation.call):
        async with sender(app, answers=True) as client:
            try:
                with refusing():
                    result = await operation.all(client, by)
            except TimeoutError:
                raise Refused(NO_ANSWER) from None
    for instance_id, error in result.refused.items():
        output.note(f"{instance_id}: {described(error)}")
    print(f"{operation.done} {result.done}, refused {result.refused_count}")
    return result.refused_count


async def _count(app: App, operation: Operation, by: dict[str, Any]) -> str:
    names = ("started_after", "started_before", "finished_before")
    times = {f"{name}_us": round(by[name].timestamp() * 1_000_000) for name in names if name in by}
    texts = {name: value for name, value in by.items() if name not in names}
    query = InstanceQuery(**texts, **times, finished=operation.finished, limit=COUNTED)
    async with opened_store(app) as store:
        with refusing():
            page = await store.list_instances(query)
    more = "more than " if page.next_page_token is not None else ""
    return f"{more}{len(page.rows):,} instance{'' if len(page.rows) == 1 else 's'}"
