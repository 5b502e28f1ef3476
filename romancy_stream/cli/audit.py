"""`verify` and `rebuild`: the tables against the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from romancy_stream.cli import output
from romancy_stream.cli.running import opened_store, run
from romancy_stream.cli.setup import Json
from romancy_stream.cli.target import Target
from romancy_stream.errors import InstanceNotFoundError

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.audit import Report

Ids = Annotated[
    list[str] | None,
    typer.Option("--instance", metavar="ID", help="This instance only. May be given repeatedly.", show_default=False),
]


def verify(app: Target, instance: Ids = None, as_json: Json = False) -> None:
    """Fold the log again and compare every row of instances, activities and timers. Exit code 1 when some differ.

    Changes nothing and may run beside working engines.
    """
    report = run(_verify(app, instance))
    if as_json:
        output.print_json(plain(report))
    else:
        _print(report)
    if not report.clean:
        raise typer.Exit(1)


async def _verify(app: App, ids: list[str] | None) -> Report:
    from romancy_stream import audit

    async with opened_store(app) as store:
        report = await audit.verify(store, ids)
    if ids and not report.instances and report.clean:
        raise InstanceNotFoundError(f"no instance has the id {', '.join(map(repr, ids))}")
    return report


def _print(report: Report) -> None:
    from romancy_stream.audit import DIFFERENCES_LIMIT

    if report.differences:
        output.print_table(["table", "row", "what", "column", "from the log", "in the table"], _rows(report))
    for instance_id in report.unsettled:
        output.note(f"{instance_id} moved at every reading and could not be compared: look again")
    if not report.complete:
        output.note(f"stopped at {DIFFERENCES_LIMIT:,} differences; there may be more")
    verdict = f"{len(report.differences)} differences" if report.differences else "no differences"
    print(f"{report.instances} instances, {report.rows} rows compared: {verdict}")


def _rows(report: Report) -> list[list[str]]:
    rows = []
    for difference in report.differences:
        head = [difference.table, "/".join(map(str, difference.key)), difference.kind]
        for column in difference.columns:
            rows.append([*head, column.column, _cell(column.expected), _cell(column.actual)])
        if not difference.columns:
            rows.append([*head, "", difference.detail or "", ""])
    return rows


def _cell(value: Any) -> str:
    text = value.decode() if isinstance(value, bytes) else "NULL" if value is None else str(value)
    return output.clean(text, output.CELL_CHARS)


def plain(report: Report) -> dict[str, Any]:
    """For JSON. JSON columns stand as their text, so that no digit is lost."""
    return {
        "clean": report.clean,
        "complete": report.complete,
        "instances": report.instances,
        "rows": report.rows,
        "unsettled": list(report.unsettled),
        "differences": [
            {
                "table": difference.table,
                "key": list(difference.key),
                "kind": difference.kind,
                "detail": difference.detail,
                "columns": [
                    {"column": each.column, "expected": _text(each.expected), "actual": _text(each.actual)}
                    for each in difference.columns
                ],
            }
            for difference in report.differences
        ],
    }


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def rebuild(app: Target, instance: Ids = None) -> None:
    """Make the rows of instances, activities and timers anew from the log.

    Takes the partitions over first: an engine that runs is fenced, drops what it has in memory and comes back by
    itself. Nothing that it committed is lost.
    """
    count = run(_rebuild(app, instance))
    print(f"{count} instances made anew from the log")


async def _rebuild(app: App, ids: list[str] | None) -> int:
    from romancy_stream import audit

    async with opened_store(app) as store:
        count = await audit.rebuild(store, ids)
    if ids and not count:
        raise InstanceNotFoundError(f"there is no log of {', '.join(map(repr, ids))}")
    return count
