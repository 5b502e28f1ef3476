"""doctor: what it looks at, what it says, and --accept-topics."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from typing import Any

import pytest

from romancy_stream.app import App
from romancy_stream.cli import checks
from romancy_stream.store.migrate import migrations
from tests.cli.conftest import Project
from tests.cli.test_dlq import spoil


def change(project: Project, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(project.folder / ".romancy/shop/state.db")) as database, database:
        database.execute(statement, values)


def findings(project: Project, code: int = 0) -> dict[str, tuple[str, str, str]]:
    """Subject -> status, what was found, what to do."""
    answer = project.run("doctor", "@", "--json", ok=False)
    told = {each["subject"]: (each["status"], each["told"], each["todo"]) for each in answer.json}
    assert answer.code == code, told
    assert (code == 1) == any(status == "fail" for status, *_ in told.values())
    return told


def test_before_and_after_init(project: Project) -> None:
    told = findings(project, 1)
    assert told["database"] == ("fail", ".romancy/shop/state.db does not exist yet", "romancy init MODULE:APP")
    assert told["shop.commands"] == ("fail", "does not exist", "romancy topics create MODULE:APP")
    project.run("init", "@")
    told = findings(project)
    assert {status for status, *_ in told.values()} == {"ok"}
    assert set(told) >= {"python", "libraries", "faust", "app", "clock", "migrations", "partitions", "identity", "lag"}
    assert told["database"][1].startswith("SQLite 3.")
    assert told["app"][1] == "shop: 5 workflows, 3 activities, queues: default, slow"  # not the engine's own
    assert told["identity"][1].startswith("not recorded yet")
    lines = project.run("doctor", "@").out.splitlines()
    assert all(line.startswith("ok ") for line in lines[1:])


def test_what_waits_for_a_human(project: Project) -> None:
    spoil(project, 2)
    told = findings(project)
    assert told["dead letters"] == ("warn", "2", "romancy dlq list MODULE:APP")
    assert told["identity"][0] == "ok"
    assert told["partitions"][1].startswith("4, last taken over by ")


def test_records_that_wait(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("init", "@")
    for number in range(3):
        project.run("start", "@", "nap", "--input", "0", "--id", f"n{number}")
    assert findings(project)["lag"] == ("ok", "3 records of commands and results wait for the engine", "")
    monkeypatch.setattr(checks, "LAG_LIMIT", 3)
    assert findings(project)["lag"][0] == "warn"

    async def nothing(app: App) -> None:
        for number in range(3):
            await app.handle(f"n{number}").result(30)

    project.working(nothing)
    assert findings(project)["lag"] == ("ok", "0 records of commands and results wait for the engine", "")


def test_a_database_that_does_not_fit(project: Project) -> None:
    project.run("init", "@")
    project.app.partitions = 5
    told = findings(project, 1)
    assert told["partitions"] == (
        "fail",
        "the database has 4, the app asks for 5",
        "App(partitions=4), or start with a new database",
    )
    assert told["shop.results"][0] == "fail"
    project.app.partitions = 4
    change(project, "UPDATE romancy_meta SET value = 'other' WHERE name = 'namespace'")
    assert "belongs to the app 'other'" in findings(project, 1)["partitions"][1]
    change(project, "UPDATE romancy_migrations SET checksum = 'x'")
    assert "applied with another content" in findings(project, 1)["migrations"][1]
    change(project, "INSERT INTO romancy_migrations VALUES ('9999_future', 'x', 0)")
    change(project, "DELETE FROM romancy_migrations WHERE name <> '9999_future'")
    missing = ", ".join(migration.name for migration in migrations("sqlite"))
    assert findings(project, 1)["migrations"] == ("fail", f"missing: {missing}", "romancy migrate MODULE:APP")


def test_libraries_and_hints(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("init", "@")
    real = checks._version
    monkeypatch.setattr(checks, "_version", lambda name: "0.1" if name == "faust-streaming" else real(name))
    assert findings(project)["faust"][0] == "warn", "an embedded broker does not need it"
    with (project.folder / f"{project.module}.py").open("a") as file:
        file.write("\n\n@app.workflow\nasync def odd(ctx: WorkflowContext, x: 'Nowhere') -> None: ...\n")
    answer = project.spawn("doctor", "@")
    out, _ = answer.communicate()
    assert answer.returncode == 1
    assert "Nowhere" in out


def test_away(project: Project) -> None:
    project.app.database_url = "postgresql://nobody@127.0.0.1:1/none"
    project.app.broker_url = "kafka://127.0.0.1:1"
    told = findings(project, 1)
    assert told["database"][0] == told["broker"][0] == "fail"
    assert "[store_unavailable]" in told["database"][1]
    assert "[broker_unavailable]" in told["broker"][1]


def forget_log(project: Project) -> None:
    for path in (project.folder / ".romancy/shop").glob("broker*"):
        path.unlink()


def test_accept_topics(project: Project) -> None:
    """The log is lost and made again: nothing runs until somebody says so, then all that is new is read."""

    async def finish(app: App) -> None:
        await (await app.start_by_name("nap", 0, instance_id="before")).result(30)

    project.working(finish)
    nothing = project.run("doctor", "@", "--accept-topics")
    assert nothing.err == "nothing to accept: the topics are the known ones\n"
    epochs = "SELECT sum(epoch) FROM romancy_partitions"
    with closing(sqlite3.connect(project.folder / ".romancy/shop/state.db")) as database:
        before = database.execute(epochs).fetchone()[0]

    forget_log(project)
    incomplete = project.run("doctor", "@", "--accept-topics", ok=False)
    assert incomplete.code == 1
    project.run("topics", "create", "@")
    project.run("start", "@", "nap", "--input", "0", "--id", "after")
    told = findings(project, 1)
    assert told["identity"][0] == "fail"
    assert "--accept-topics" in told["identity"][2]
    refused = project.run("start", "@", "nap", "--wait", "--input", "0", ok=False)
    assert (refused.code, "[log_identity]" in refused.err) == (1, True)

    accepted = project.run("doctor", "@", "--accept-topics")
    assert "read" in accepted.err
    assert accepted.err.count("shop.commands") == 1
    assert "is gone" in accepted.err
    with closing(sqlite3.connect(project.folder / ".romancy/shop/state.db")) as database:
        assert database.execute(epochs).fetchone()[0] == before + 4, "engines that run are not fenced"
        assert set(database.execute("SELECT next_offset FROM romancy_offsets")) == {(0,)}

    async def goes_on(app: App) -> list[str]:
        return [await app.handle(each).result(30) for each in ("before", "after")]

    assert project.working(goes_on) == ["slept", "slept"]


def test_an_offset_behind_the_end_of_the_log(project: Project) -> None:
    project.run("init", "@")
    change(project, "INSERT INTO romancy_offsets VALUES ('shop.commands', 1, 99)")
    told = findings(project, 1)
    assert told["lag"][0] == "fail"
    assert "shop.commands/1" in told["lag"][1]


@pytest.mark.kafka
@pytest.mark.postgres
def test_on_kafka_and_postgresql(project: Project, kafka_bootstrap: str, postgres_db: str) -> None:
    app = project.app
    app.namespace = f"t{uuid.uuid4().hex[:12]}"
    app.broker_url, app.database_url = f"kafka://{kafka_bootstrap}", postgres_db
    told = findings(project, 1)
    assert told["migrations"] == ("fail", "none was applied", "romancy migrate MODULE:APP")
    assert told[f"{app.namespace}.events"][0] == "fail"
    project.run("init", "@")
    project.run("start", "@", "nap", "--input", "0")
    told = findings(project)
    assert {status for status, *_ in told.values()} == {"ok"}
    assert told["database"][1].startswith("PostgreSQL ")
    assert "broker(s), cluster" in told["broker"][1]
    assert told["lag"][1].startswith("1 records")


@pytest.mark.mariadb
def test_on_mariadb(project: Project, mariadb_db: str) -> None:
    project.app.database_url = mariadb_db
    project.run("init", "@")
    told = findings(project)
    assert told["database"][1].startswith("MariaDB ")
    assert {status for status, *_ in told.values()} == {"ok"}


def test_a_password_is_not_shown(project: Project) -> None:
    store = App("shop", database="postgresql://me:secret@127.0.0.1:1/x").make_store()
    assert "secret" not in store.db.url.render_as_string(hide_password=True)
    project.app.database_url = "postgresql://me:secret@127.0.0.1:1/x"
    assert "secret" not in project.run("doctor", "@", ok=False).out


@pytest.mark.parametrize(
    ("number", "parts"),
    [("16.4 (Debian 16.4-1)", (16, 4)), ("10.11.6-MariaDB-0+deb12u1", (10, 11)), ("8.0.36", (8, 0))],
)
def test_version_numbers(number: str, parts: tuple[int, ...]) -> None:
    assert checks._numbers(number) == parts
