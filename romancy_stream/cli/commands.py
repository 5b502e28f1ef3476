"""All commands under one name, and what is true for each of them: where errors go and which exit codes there are."""

from __future__ import annotations

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from romancy_stream.cli import (
    audit,
    dlq,
    doctor,
    instances,
    operating,
    output,
    replay,
    schedules,
    searchable,
    setup,
    talking,
    worker,
)

cli = typer.Typer(
    name="romancy",
    help="Durable workflows on an event log: run workers, start and inspect instances, check what is stored.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.command()(worker.worker)
for command in (setup.init, setup.migrate):
    cli.command()(command)
cli.add_typer(setup.topics, name="topics")
cli.add_typer(searchable.searchable, name="searchable")
for function in (instances.start, instances.send, instances.get, instances.history):
    cli.command()(function)
cli.command("list")(instances.list_)
for talk in (talking.signal, talking.update, talking.query, talking.versions):
    cli.command()(talk)
for operation in (operating.cancel, operating.retry, operating.reset, operating.fork, operating.delete):
    cli.command()(operation)
cli.add_typer(schedules.schedule, name="schedule")
cli.add_typer(dlq.dlq, name="dlq")
for check in (audit.verify, audit.rebuild, replay.replay_check, doctor.doctor):
    cli.command()(check)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("romancy-stream"))
        raise typer.Exit


@cli.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ROMANCY_DEBUG", help="Tracebacks instead of one line for an error.")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    output.set_debug(debug)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter is no reason to fail
    cli()
