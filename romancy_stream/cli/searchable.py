"""`searchable list|drop`: the paths of inputs that rows are kept for, on databases without an index of all inputs. Uses
the database alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from romancy_stream.cli import output
from romancy_stream.cli.running import Refused, opened_store, run
from romancy_stream.cli.setup import Json
from romancy_stream.cli.target import Target

if TYPE_CHECKING:
    from romancy_stream.app import App

searchable = typer.Typer(help="The paths of inputs that searches find by an index.", no_args_is_help=True)

HAS_ALL: Final = "PostgreSQL has an index of all inputs: nothing is kept for single paths"


@searchable.command("list")
def list_(app: Target, as_json: Json = False) -> None:
    """List the paths that rows are kept for, and those that the app names."""
    paths = run(_list(app))
    if as_json:
        output.print_json(paths)
        return
    rows = [[output.clean(each["path"]), each["state"], "yes" if each["named"] else "no"] for each in paths]
    output.print_table(["path", "state", "named by the app"], rows)
    if left := [each["path"] for each in paths if not each["named"]]:
        output.note(f"kept, but not named by this app: {output.clean(', '.join(left))}")


async def _list(app: App) -> list[dict[str, Any]]:
    async with opened_store(app) as store:
        if store.db.dialect == "postgresql":
            return [{"path": path, "state": "indexed", "named": True} for path in sorted(app.searchable)]
        kept = {each.path: "unfinished" if each.filled_us is None else "kept" for each in await store.kept_paths()}
    named = dict.fromkeys(app.searchable, "missing")
    return [{"path": path, "state": state, "named": path in named} for path, state in sorted((named | kept).items())]


@searchable.command("drop")
def drop(
    app: Target,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="As listed.", show_default=False)],
) -> None:
    """Stop keeping rows for paths that the app does not name any more, and remove them."""
    print(f"rows removed: {run(_drop(app, paths))}")


async def _drop(app: App, paths: list[str]) -> int:
    if named := [path for path in paths if path in app.searchable]:
        raise Refused(
            f"the app names {output.clean(', '.join(named))}: take it out of App(searchable=), start all processes "
            "anew, and drop it then"
        )
    async with opened_store(app) as store:
        if store.db.dialect == "postgresql":
            raise Refused(HAS_ALL)
        kept = {each.path for each in await store.kept_paths()}
        if unknown := [path for path in paths if path not in kept]:
            output.note(f"not kept: {output.clean(', '.join(unknown))}; looking for rows that are left of it")
        return await store.drop_searchable(paths)
