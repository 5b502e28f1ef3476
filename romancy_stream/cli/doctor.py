"""`doctor`: is everything there that the app needs, and does it fit together? With --accept-topics, the way out when
topics were made again: the one command here that changes something."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from romancy_stream.cli import output
from romancy_stream.cli.running import Refused, opened_store, run
from romancy_stream.cli.setup import Json, compare_topics
from romancy_stream.cli.target import Target
from romancy_stream.errors import RomancyError

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.broker.port import Broker
    from romancy_stream.cli.checks import Finding, Identity
    from romancy_stream.store.sql import SqlStore

ACCEPTED = """\
The topics that are there now are the app's from here on:
{topics}
The engine reads them from their beginning. What lay in the old topics and had not been read yet is gone: starts, events
and results of activities among it. An instance whose activity's task or result was lost waits until that activity's
timeout, or for ever where it has none. Starts that are in the new topics already begin now; an instance id that exists
is not started twice.
"""


def doctor(
    app: Target,
    accept_topics: Annotated[
        bool,
        typer.Option(
            "--accept-topics",
            help="Go on with topics that were deleted and made again: record them, and read them from their beginning.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check everything that the app needs; each line says what to do. Exit code 1 when something is wrong."""
    if accept_topics:
        accepted = run(_accept(app))
        output.notice(
            ACCEPTED.format(topics=accepted) if accepted else "nothing to accept: the topics are the known ones"
        )
    findings = run(_findings(app))
    if as_json:
        output.print_json([asdict(finding) for finding in findings])
    else:
        rows = [[finding.status, finding.subject, finding.told, finding.todo] for finding in findings]
        output.print_table(["", "what", "found", "what to do"], rows)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


async def _findings(app: App) -> list[Finding]:
    from romancy_stream.cli import checks

    findings = list(checks.installation(app))
    async with contextlib.AsyncExitStack() as stack:
        store = await _store(app, stack, findings)
        try:
            broker = app.make_broker()
            await broker.open()
        except RomancyError as error:
            return [*findings, checks.broker_failure(error)]
        stack.push_async_callback(broker.close)
        findings += [finding async for finding in checks.broker(app, broker)]
        findings += [finding async for finding in checks.queues(app, broker)]
        if store is not None:
            findings.append(checks.identity_finding(await checks.identity(app, broker, store)))
            findings.append(await checks.lag(app, broker, store))
    return findings


async def _store(app: App, stack: contextlib.AsyncExitStack, findings: list[Finding]) -> SqlStore | None:
    """Looks at the database and leaves it open; None where it cannot be asked further."""
    from romancy_stream.cli import checks
    from romancy_stream.cli.checks import Finding
    from romancy_stream.store.database import SQLITE

    try:
        store = app.make_store()
        if store.db.dialect == SQLITE and not store.db.sqlite_path.exists():
            told = f"{store.db.sqlite_path} does not exist yet"
            findings.append(Finding("fail", "database", told, "romancy init MODULE:APP"))
            return None
        store = await stack.enter_async_context(opened_store(app, tables=False))
    except RomancyError as error:
        findings.append(Finding("fail", "database", str(error), "correct the URL"))
        return None
    found = [finding async for finding in checks.database(app, store)]
    findings += found
    unusable = {finding.subject for finding in found if finding.status == "fail"}
    return None if unusable & {"database", "migrations"} else store


# -- accepting topics --------------------------------------------------------------------------------------------------
async def _accept(app: App) -> str:
    """Returns the names and ids of what was accepted, a line each; empty when there was nothing to accept."""
    from romancy_stream.cli import checks

    async with _both(app) as (broker, store):
        known = await checks.identity(app, broker, store)
        found_lag = await checks.lag(app, broker, store)
        if not known.changed and found_lag.status != "fail":
            return ""
        wrong = [topic for topic in await compare_topics(app, broker) if topic.found != topic.wanted]
        if wrong:
            raise Refused(
                f"topic {wrong[0].name} has {wrong[0].found or 'no'} partitions, the app asks for {wrong[0].wanted}: "
                "make it with the right number first (romancy topics create)"
            )
        await _record(app, broker, store, known)
        return "\n".join(f"  {name}  {topic_id}" for name, topic_id in sorted(known.found.items()))


async def _record(app: App, broker: Broker, store: SqlStore, known: Identity) -> None:
    """In one transaction: engines out, offsets to the beginning. The ids last: without them nothing starts."""
    from sqlalchemy import delete, insert, update

    from romancy_stream.cli import checks
    from romancy_stream.store import tables

    extents = await checks.engine_extents(app, broker)
    rows = [{"topic": tp.topic, "part": tp.partition, "next_offset": first} for tp, (first, _) in extents.items()]
    partitions, offsets = tables.partitions, tables.offsets
    async with store.db.writing("accept topics") as connection:
        owner = f"doctor/{uuid.uuid4().hex}"
        fresh = {
            "epoch": partitions.c.epoch + 1,
            "owner": owner,
            "stalls": 0,
            "suspect": None,
        }  # offsets mean others now
        await connection.execute(update(partitions).values(fresh))
        await connection.execute(delete(offsets).where(offsets.c.topic.in_(known.found)))
        await connection.execute(insert(offsets), rows)
    await store.record_topic_ids(known.found)


@contextlib.asynccontextmanager
async def _both(app: App) -> AsyncIterator[tuple[Broker, SqlStore]]:
    async with opened_store(app) as store:
        broker = app.make_broker()
        await broker.open()
        try:
            yield broker, store
        finally:
            await broker.close()
