"""verify and rebuild as commands; tests/test_audit.py has what they find."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from romancy_stream.app import App
from tests.cli.conftest import Project


def spoiled(project: Project) -> None:
    async def start(app: App) -> None:
        for instance_id in ("a", "b"):
            order = {"id": instance_id, "total": 1}
            await (await app.start_by_name("checkout", order, instance_id=instance_id)).result(30)

    project.working(start)
    change(project, "UPDATE romancy_instances SET output = '{\"receipt\": \"forged\"}' WHERE instance_id = 'a'")
    change(project, "DELETE FROM romancy_activities WHERE instance_id = 'b'")


def change(project: Project, statement: str) -> None:
    with closing(sqlite3.connect(project.folder / ".romancy/shop/state.db")) as database, database:
        database.execute(statement)


def test_verify_and_rebuild(project: Project) -> None:
    spoiled(project)
    answer = project.run("verify", "@", ok=False)
    assert answer.code == 1
    assert any(line.startswith("romancy_activities  b/1/charge:1  missing") for line in answer.out.splitlines())
    assert '{"receipt": "forged"}' in answer.out
    assert answer.out.splitlines()[-1] == "2 instances, 3 rows compared: 2 differences"
    told = project.run("verify", "@", "--json", ok=False).json
    assert told["clean"] is False
    assert {(d["table"], tuple(d["key"]), d["kind"]) for d in told["differences"]} == {
        ("romancy_instances", ("a",), "differs"),
        ("romancy_activities", ("b", 1, "charge:1"), "missing"),
    }
    assert project.run("verify", "@", "--instance", "a", ok=False).code == 1
    assert project.run("rebuild", "@", "--instance", "a").out == "1 instances made anew from the log\n"
    assert project.run("verify", "@", "--instance", "a").code == 0
    assert project.run("verify", "@", ok=False).code == 1
    assert project.run("rebuild", "@").out == "2 instances made anew from the log\n"
    assert project.run("verify", "@").out == "2 instances, 4 rows compared: no differences\n"


def test_an_unknown_instance(project: Project) -> None:
    project.run("init", "@")
    for command in ("verify", "rebuild"):
        answer = project.run(command, "@", "--instance", "nobody", ok=False)
        assert answer.code == 1
        assert "'nobody'" in answer.err


def test_a_broken_log(project: Project) -> None:
    spoiled(project)
    change(project, "DELETE FROM romancy_history WHERE instance_id = 'a' AND seq = 3")
    assert "event 3 is missing, the next one is 4" in project.run("verify", "@", ok=False).out
    answer = project.run("rebuild", "@", ok=False)
    assert (answer.code, "[broken_log]" in answer.err) == (1, True)
    assert project.run("verify", "@", "--instance", "b").code == 0
