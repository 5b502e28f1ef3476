"""The documents do what they say: every block of code that can run is run, every link leads somewhere, and every
number is the one that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from romancy_stream import Listener, RetryPolicy, app
from romancy_stream.activity import HEARTBEAT_LIMIT_BYTES
from romancy_stream.broker.kafka import settings
from romancy_stream.cli import cli
from romancy_stream.engine import config, instance, loop
from romancy_stream.runtime import (
    attempt,
    attempt_heartbeats,
    expiry,
    lapses,
    listeners,
    node,
    patience,
    sweeper,
    worker_queue,
    worker_watch,
)
from romancy_stream.store import database, pages, paths
from romancy_stream.wire import malformed
from tests.support.modules import REPO
from tests.support.snippets import RUN, Session, snippets

PAGES = (
    "guarantees",
    "workflows",
    "activities",
    "timers",
    "long-activities",
    "queues",
    "events",
    "channels",
    "cancel",
    "saga",
    "signals",
    "changing-code",
    "children",
    "recur",
    "schedules",
    "operations",
    "listeners",
    "payloads",
    "testing",
)
DOCUMENTS = ["README.md", *(f"docs/{page}.md" for page in PAGES)]
MARKS = re.compile(r"|file \w+\.py|continues|raises|output|database \w+|services \w+|not here: .+")
PROSE = [*DOCUMENTS, "ARCHITECTURE.md", "CONTRIBUTING.md"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_does_what_the_document_says(document: str, tmp_path: Path) -> None:
    session = Session(tmp_path)
    for snippet in snippets(document):
        session.run(snippet)


@pytest.mark.parametrize("document", PROSE)
def test_marks_are_known_and_no_block_is_left_out_in_silence(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    found = list(snippets(document))
    assert text.count("\n```") == 2 * len(found), "a fence that is not read as a block"
    assert text.count("<!-- test:") == sum(bool(snippet.mark) for snippet in found), "a mark without a block"
    for snippet in found:
        assert MARKS.fullmatch(snippet.mark), snippet
        if snippet.mark.startswith(("file", "continues", "raises")):
            assert snippet.language in RUN, snippet


@pytest.mark.parametrize("document", PROSE)
def test_links_lead_somewhere(document: str) -> None:
    for target in _links(document):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (REPO / document).parent / path if path else REPO / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{document}: {target}"


def _links(document: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", (REPO / document).read_text(encoding="utf-8"))


def _anchors(file: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = {(REPO / target.partition("#")[0]).resolve() for target in _links("README.md") if "://" not in target}
    pages_there = {*(REPO / "docs").glob("*.md"), *(REPO / each for each in ("ARCHITECTURE.md", "CONTRIBUTING.md"))}
    pages_there |= {REPO / "topics" / "README.md", REPO / "storage" / "README.md"}
    assert pages_there <= linked


def test_every_page_leads_to_a_program_and_every_program_is_led_to() -> None:
    led_to: set[Path] = set()
    for page in PAGES:
        here = {(REPO / "docs" / target).resolve() for target in _links(f"docs/{page}.md") if "/examples/" in target}
        assert here, page
        led_to |= here
    assert led_to == {path for path in (REPO / "examples").glob("*.py") if path.stem not in ("__init__", "crash")}


def test_numbers_are_those_of_the_code() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    limits = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", readme.partition("## Limits")[2], re.MULTILINE))
    assert limits["data of an event, input, arguments, result"] == f"{malformed.MAX_DATA_BYTES:,} bytes"
    assert limits["nesting of data"] == f"{malformed.MAX_JSON_DEPTH} levels"
    assert limits["instance ids, names"] == f"{malformed.MAX_ID_CHARS} characters"
    assert limits["activity ids"] == f"{instance.ACTIVITY_ID_CHARS} characters"
    assert limits["events published by one attempt"] == f"{attempt.EVENTS_LIMIT:,}"
    assert limits["partitions of an app"] == f"{app.DEFAULT_PARTITIONS} by default, 1,000 at most, fixed for good"
    assert limits["attempts under way in one process"] == f"{app.DEFAULT_CONCURRENCY}, `App(concurrency=)`"
    assert limits["instances that one process keeps live"] == f"{config.CACHED_INSTANCES:,}; others are replayed"
    assert limits["instances on one page"] == f"50 by default, {pages.PAGE_ROWS_MAX:,} at most"
    assert limits["filters of one `find_instances`"] == str(paths.FILTERS_MAX)
    assert limits["steps of workflow code without waiting"] == f"{loop.STEP_LIMIT:,}"


def test_numbers_in_the_pages_on_long_activities_and_queues_are_those_of_the_code() -> None:
    long = " ".join((REPO / "docs" / "long-activities.md").read_text(encoding="utf-8").split())
    times = worker_watch.Times()
    assert f"up to {HEARTBEAT_LIMIT_BYTES:,} bytes" in long
    assert (attempt_heartbeats.BEAT_EVERY_S, attempt_heartbeats.BEATS_PER_TIMEOUT) == (5, 3)
    assert "every five seconds, or three times within `heartbeat_timeout`" in long
    assert (times.check_every_s, "within ten seconds if it does not beat" in long) == (10, True)
    assert f"after {times.detach_after_s:g} seconds the worker writes down" in long
    assert f"a *lease* of {times.lease_s:g} seconds" in long
    assert (lapses.LOOK_AGAIN_S, "twice within five seconds" in long) == (5, True)
    assert (lapses.LOOK_EVERY_S, "begun elsewhere within half a minute" in long) == (30, True)
    queues = (REPO / "docs" / "queues.md").read_text(encoding="utf-8")
    assert f"fetches up to {worker_queue.LOOK_AHEAD}\ntasks" in queues


def test_numbers_in_the_pages_on_operations_and_listeners_are_those_of_the_code() -> None:
    page = " ".join((REPO / "docs" / "operations.md").read_text(encoding="utf-8").split())
    assert (expiry.TOMBSTONES_S, expiry.LOOK_EVERY_S) == (30 * 86_400, 60)
    assert "known for 30 days" in page
    assert "once a minute, in small commits" in page
    page = " ".join((REPO / "docs" / "listeners.md").read_text(encoding="utf-8").split())
    assert f"a queue of {listeners.QUEUE_LIMIT:,}" in page
    assert f"for {listeners.CALL_LIMIT_S:g} s at most" in page
    assert f"up to {listeners.LEAVE_S:g} s for them" in page
    methods = {name for name in vars(Listener) if name.startswith("on_")}
    assert {name for name in methods if f"`{name}`" in page} == methods


def test_the_command_line_in_the_readme_is_the_one_that_there_is() -> None:
    section = (REPO / "README.md").read_text(encoding="utf-8").partition("## Command line")[2].partition("\n## ")[0]
    told = set()
    for cell in re.findall(r"^\| (`romancy .+?) \| .+ \|$", section, re.MULTILINE):
        first, *others = re.findall(r"`(.+?)`", cell)
        group = first.split()[1]
        told |= {group} | (set() if group == "dlq" else {name for name in others if name.isalpha()})
    commands = [command for command in cli.registered_commands if command.callback]
    there = {each.name or each.callback.__name__.replace("_", "-") for each in commands if each.callback}
    assert told == there | {group.name for group in cli.registered_groups}


def test_the_table_of_retries_is_that_of_the_default_policy() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", readme.partition("## Retries")[2].partition("\n## ")[0], re.MULTILINE)
    policy = RetryPolicy()
    assert policy.max_attempts == len(rows)
    waits = ["at once", *(f"{policy.delay_s(attempt):g} s" for attempt in range(1, len(rows)))]
    assert [(int(number), wait) for number, wait in rows] == list(enumerate(waits, start=1))


def test_times_in_the_operations_page_are_those_of_the_code() -> None:
    page = (REPO / "docs" / "operations.md").read_text(encoding="utf-8")
    times = dict(re.findall(r"^\| (.+?) \| ([\d.]+) s \|", page, re.MULTILINE))
    assert {name: float(seconds) for name, seconds in times.items()} == {
        "session of a member of the group": settings.KafkaSettings().session_timeout_ms / 1_000,
        "a record is sent until it is acknowledged": settings.KafkaSettings().delivery_limit_ms / 1_000,
        "a commit is tried again while the database is away": patience.STORE_PATIENCE_S,
        "leaving waits for activities": node.DRAIN_S,
        "a worker's unsent rows count as orphaned": sweeper.OWN_TIME_S,
        "a look for orphaned rows": sweeper.SWEEP_EVERY_S,
        "a statement of the database": database.STATEMENT_TIMEOUT_S,
    }
