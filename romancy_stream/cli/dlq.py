"""`dlq list|show|replay`: records that could not be used. Listing and showing read the database alone."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any

import typer

from romancy_stream.cli import output
from romancy_stream.cli.running import Refused, explaining, reader, refusing, run
from romancy_stream.cli.setup import Json
from romancy_stream.cli.target import Target
from romancy_stream.instances import DeadLetter

if TYPE_CHECKING:
    from romancy_stream.app import App

dlq = typer.Typer(help="Records that could not be used, and what to do with them.", no_args_is_help=True)

DlqId = Annotated[str, typer.Argument(metavar="ID", help="topic/partition/offset, as listed.", show_default=False)]


@dlq.command("list")
def list_(
    app: Target,
    limit: Annotated[int, typer.Option("--limit", help="Dead letters on a page.")] = 50,
    before: Annotated[
        str | None, typer.Option("--before", metavar="ID", help="The last one of the page before.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    letters = run(_list(app, limit, before))
    if as_json:
        output.print_json([plain(letter) for letter in letters])
        return
    output.print_table(
        ["id", "time", "reason", "replayed", "message"],
        [
            [each.dlq_id, output.moment(each.at), each.reason, output.moment(each.replayed_at), _short(each)]
            for each in letters
        ],
    )
    if len(letters) == limit:
        output.note(f"more: --before {letters[-1].dlq_id}")


def _short(letter: DeadLetter) -> str:
    return output.clean(letter.message, output.CELL_CHARS)


async def _list(app: App, limit: int, before: str | None) -> list[DeadLetter]:
    async with reader(app) as client:
        with refusing():
            return list(await client.dead_letters(limit=limit, before=before))


@dlq.command("show")
def show(app: Target, dlq_id: DlqId, as_json: Json = False) -> None:
    """Show a dead letter whole: why, headers, key and value."""
    letter = run(_get(app, dlq_id))
    if as_json:
        output.print_json(plain(letter))
        return
    output.print_facts(
        [
            ("id", letter.dlq_id),
            ("time", output.moment(letter.at)),
            ("reason", letter.reason),
            ("message", letter.message),
            ("event", "" if letter.event_id is None else f"{letter.event_id} of {letter.event_source}"),
            ("replayed", output.moment(letter.replayed_at)),
            ("key", _readable(letter.key)),
            *((f"header {name}", _readable(value)) for name, value in letter.headers),
        ]
    )
    print()
    output.print_lines(_readable(letter.value))


async def _get(app: App, dlq_id: str) -> DeadLetter:
    async with reader(app) as client:
        letter = await client.dead_letter(dlq_id)
    if letter is None:
        raise Refused(f"there is no dead letter {dlq_id!r}")
    return letter


@dlq.command("replay")
def replay(
    app: Target,
    dlq_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="topic/partition/offset, as listed.", show_default=False)
    ],
) -> None:
    """Send dead letters again, as they were, to the topics they came from."""
    run(_replay(app, dlq_ids))


async def _replay(app: App, dlq_ids: list[str]) -> None:
    with explaining("app.replay_dead_letter(...)"):
        async with app.client() as client:
            for dlq_id in dlq_ids:
                with refusing():
                    await client.replay_dead_letter(dlq_id)
                print(f"replayed {output.clean(dlq_id)}")


# -- showing ---------------------------------------------------------------------------------------------------------
def plain(letter: DeadLetter) -> dict[str, Any]:
    """For JSON. Bytes as base64, and beside it as text where they are text."""
    return {
        "id": letter.dlq_id,
        "at": letter.at.isoformat(),
        "reason": letter.reason,
        "message": letter.message,
        "event_source": letter.event_source,
        "event_id": letter.event_id,
        "replayed_at": None if letter.replayed_at is None else letter.replayed_at.isoformat(),
        "key": _bytes(letter.key),
        "headers": [{"name": name, "value": _bytes(value)} for name, value in letter.headers],
        "value": _bytes(letter.value),
    }


def _bytes(raw: bytes | None) -> dict[str, str | None] | None:
    if raw is None:
        return None
    return {"text": _text(raw), "base64": base64.b64encode(raw).decode()}


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _readable(raw: bytes | None) -> str:
    if raw is None:
        return "(none)"
    text = _text(raw)
    return text if text is not None else f"(bytes) {raw!r}"
