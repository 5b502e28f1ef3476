"""`signal`, `update`, `query`, `versions`: talking to running workflows. A query opens the database alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from romancy_stream.cli import output
from romancy_stream.cli.instances import Id, json_argument, sender
from romancy_stream.cli.running import Refused, explaining, opened_store, reader, run
from romancy_stream.cli.setup import Json
from romancy_stream.cli.target import Target
from romancy_stream.engine.handlers import handler_of, unknown_handler

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.talking import WorkflowVersion

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the handler.", show_default=False)]
Argument = Annotated[
    str | None, typer.Argument(metavar="[JSON]", help="Its argument, or an object of its arguments' names, as JSON.")
]


def signal(app: Target, instance_id: Id, name: Name, argument: Argument = None) -> None:
    """Send a signal to a running instance; done when it is durable."""
    raw = json_argument(argument)
    run(_signal(app, instance_id, name, raw))


async def _signal(app: App, instance_id: str, name: str, raw: bytes | None) -> None:
    with explaining("app.signal(...)"):
        async with sender(app, answers=False) as client:
            await _check(app, instance_id, name, raw)
            await client._signal(instance_id, name, raw)


def update(
    app: Target,
    instance_id: Id,
    name: Name,
    argument: Argument = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long to wait for the answer.")
    ] = 30.0,
) -> None:
    """Update a running instance; prints the answer as JSON.

    On an embedded broker this runs the engine and the activities in this process meanwhile.
    """
    raw = json_argument(argument)
    print(run(_update(app, instance_id, name, raw, timeout)).decode())


async def _update(app: App, instance_id: str, name: str, raw: bytes | None, timeout_s: float) -> bytes:
    with explaining("app.update(...)"):
        async with sender(app, answers=True) as client:
            try:
                return await client._update(instance_id, name, raw, timeout_s)
            except TimeoutError:
                raise Refused(
                    f"no answer within {timeout_s:g} s: the update may still happen. Does a worker run?"
                ) from None


def query(app: Target, instance_id: Id, name: Name, argument: Argument = None) -> None:
    """Ask an instance, which may have ended; prints the answer as JSON."""
    raw = json_argument(argument)
    print(run(_query(app, instance_id, name, raw)).decode())


async def _query(app: App, instance_id: str, name: str, raw: bytes | None) -> bytes:
    async with reader(app) as client:
        return await client._answer(instance_id, name, lambda _: raw)


async def _check(app: App, instance_id: str, name: str, raw: bytes | None) -> None:
    """What the engine would only write to the dead letters is said here, as far as it is known already. Raises
    UnknownHandlerError, InvalidInputError."""
    async with opened_store(app) as store:
        row = await store.get_instance(instance_id)
    if row is None:
        output.note(f"no instance has the id {instance_id!r} yet: where its start is not on the way, this is lost")
        return
    workflow = app.registry.workflows.at(row.workflow, row.version)
    if workflow is not None:
        handler = handler_of(workflow, "signal", name)
        if handler is None:
            raise unknown_handler(workflow, "signal", name)
        handler.decode(raw)


def versions(app: Target, as_json: Json = False) -> None:
    """List versions of workflows: what the app has, and how many instances of each are open."""
    found = run(_versions(app))
    if as_json:
        output.print_json([_plain(each) for each in found])
        return
    output.print_table(
        ["workflow", "version", "open", "parked", "here"],
        [
            [
                each.workflow_name,
                each.version or "-",
                str(each.open_instances),
                str(each.parked),
                "default" if each.is_default else "yes" if each.is_here else "no",
            ]
            for each in found
        ],
    )


async def _versions(app: App) -> list[WorkflowVersion]:
    async with reader(app) as client:
        return list(await client.versions())


def _plain(each: WorkflowVersion) -> dict[str, Any]:
    return {
        "workflow_name": each.workflow_name,
        "version": each.version,
        "open_instances": each.open_instances,
        "parked": each.parked,
        "is_here": each.is_here,
        "is_default": each.is_default,
    }
