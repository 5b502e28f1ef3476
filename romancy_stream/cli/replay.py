"""`replay-check`: does the code that is here still agree with the histories that are there? Reads the database alone,
and runs workflow code without any effect."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from romancy_stream.cli import output
from romancy_stream.cli.running import Refused, opened_store, refusing, run
from romancy_stream.cli.setup import Json
from romancy_stream.cli.target import Target
from romancy_stream.engine.commit import (
    COMPENSATING,
    RUNNING,
    WAITING_FOR_EVENT,
    WAITING_FOR_MESSAGE,
    WAITING_FOR_TIMER,
)
from romancy_stream.errors import BrokenLogError, NonDeterminismError, RomancyError, UnknownWorkflowError
from romancy_stream.store.port import InstanceQuery

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.store.sql import SqlStore
    from romancy_stream.testing.histories import History

OPEN: Final = "open"
ALL: Final = "all"
_OPEN: Final = (RUNNING, WAITING_FOR_EVENT, WAITING_FOR_MESSAGE, WAITING_FOR_TIMER, COMPENSATING)
PAGE_ROWS: Final = 100
"""Instances whose histories are read one after the other before the next are looked for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A history that the code does not agree with (`diverged`), or that there is no code for."""

    place: str
    workflow: str
    expected: str
    actual: str
    diverged: bool


@dataclass(slots=True)
class Report:
    """`checked` counts those that were replayed."""

    checked: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def diverged(self) -> int:
        return sum(finding.diverged for finding in self.findings)

    @property
    def skipped(self) -> int:
        return len(self.findings) - self.diverged


def replay_check(
    app: Target,
    from_db: Annotated[bool, typer.Option("--from-db", help="Replay histories of the app's database.")] = False,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="FILE", help="Replay a history from a file. May be given repeatedly."),
    ] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Part of the workflow's name, any case.")] = None,
    status: Annotated[
        str, typer.Option("--status", help="The status, exactly; or open (all that have not ended), or all.")
    ] = OPEN,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Instances at most, newest first.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="Also write each history into a file there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay recorded histories against the code as it is here. Exit code 1 when the code asks for other things.

    Nothing is written to the database and no activity runs. Run it before a deployment, on a copy or in place.
    """
    if from_db == bool(file):
        raise typer.BadParameter("give either --from-db or --file")
    if not from_db and (save is not None or limit is not None or workflow is not None or status != OPEN):
        raise typer.BadParameter("--workflow, --status, --limit and --save go with --from-db")
    report = _of_files(app, file) if file else run(_of_database(app, workflow, status, limit, save))
    if as_json:
        output.print_json(plain(report))
    else:
        _print(report)
    if report.diverged:
        raise typer.Exit(1)


# -- where histories come from -------------------------------------------------------------------------------------
def _of_files(app: App, files: Sequence[Path]) -> Report:
    from romancy_stream.testing.histories import load_history

    report = Report()
    for file in files:
        try:
            history = load_history(file)
        except (OSError, BrokenLogError) as error:
            output.fail(f"{file}: {error}")
        _check(app, history, str(file), report)
    return report


async def _of_database(app: App, workflow: str | None, status: str, limit: int | None, save: Path | None) -> Report:
    from romancy_stream.testing.histories import History

    app.registry.resolve()
    report, seen = Report(), 0
    async with opened_store(app) as store:
        for each in _OPEN if status == OPEN else (None if status == ALL else status,):
            async for instance_id in _ids(store, InstanceQuery(workflow, each, limit=PAGE_ROWS, system=True)):
                if seen == limit:
                    return report
                seen += 1
                events = await app.node_config().sealer.shown_history(await store.history(instance_id))
                history = History(tuple(events))
                if save is not None:
                    _save(history, save)
                _check(app, history, instance_id, report)
    return report


async def _ids(store: SqlStore, query: InstanceQuery) -> AsyncIterator[str]:
    token = None
    while True:
        with refusing():
            page = await store.list_instances(replace(query, page_token=token))
        for row in page.rows:
            yield row.instance_id
        token = page.next_page_token
        if token is None:
            return


def _save(history: History, folder: Path) -> None:
    from romancy_stream.testing.histories import dump_history

    name = re.sub(r"[^A-Za-z0-9._-]", "_", history.instance_id)[:200]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        dump_history(history, folder / f"{name}.{history.run}.json")
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror}") from error


# -- the check -----------------------------------------------------------------------------------------------------
def _check(app: App, history: History, place: str, report: Report) -> None:
    from romancy_stream.testing.histories import replay

    try:
        replay(history, app)
    except UnknownWorkflowError:
        version = "" if history.version is None else f", version {history.version}"
        report.findings.append(Finding(place, history.workflow_name, "", f"no such workflow here{version}", False))
        return
    except NonDeterminismError as error:
        report.findings.append(Finding(place, history.workflow_name, error.expected, error.actual, True))
    except RomancyError as error:  # the recorded input, or a recorded result, does not fit the code any more
        told = f"{type(error).__name__}: {error}"
        report.findings.append(Finding(place, history.workflow_name, "to take what is recorded", told, True))
    report.checked += 1


# -- what it says --------------------------------------------------------------------------------------------------
def _print(report: Report) -> None:
    rows = [[f.place, f.workflow, f.expected, f.actual] for f in _sorted(report.findings)]
    if rows:
        output.print_table(["history", "workflow", "recorded", "the code now"], rows)
    skipped = f", {report.skipped} skipped for want of code" if report.skipped else ""
    print(f"{report.checked} histories checked, {report.diverged} diverged{skipped}")


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: not finding.diverged)


def plain(report: Report) -> dict[str, object]:
    """For JSON."""
    return {
        "checked": report.checked,
        "diverged": report.diverged,
        "skipped": report.skipped,
        "findings": [
            {
                "history": f.place,
                "workflow": f.workflow,
                "diverged": f.diverged,
                "recorded": f.expected or None,
                "code": f.actual,
            }
            for f in _sorted(report.findings)
        ],
    }
