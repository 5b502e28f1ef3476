"""`romancy searchable`: what is kept for searches by input, and how it goes."""

from __future__ import annotations

import pytest

from romancy_stream.app import App
from tests.cli.conftest import Project


async def one_order(app: App) -> None:
    await (await app.start_by_name("checkout", {"id": "o-1", "total": 1})).result(30)


def listed(project: Project) -> dict[str, tuple[str, bool]]:
    found = project.run("searchable", "list", "@", "--json").json
    return {each["path"]: (each["state"], each["named"]) for each in found}


def test_a_path_is_kept_until_it_is_dropped(project: Project) -> None:
    project.run("migrate", "@")
    assert listed(project) == {}
    project.app.searchable = ("id", "total")
    assert listed(project) == {"id": ("missing", True), "total": ("missing", True)}
    project.working(one_order)
    assert listed(project) == {"id": ("kept", True), "total": ("kept", True)}
    refused = project.run("searchable", "drop", "@", "id", ok=False)
    assert refused.code == 1
    assert "the app names id: take it out of App(searchable=)" in refused.err
    project.app.searchable = ("total",)
    shown = project.run("searchable", "list", "@")
    assert [line.split() for line in shown.out.splitlines()[1:]] == [["id", "kept", "no"], ["total", "kept", "yes"]]
    assert "not named by this app: id" in shown.err
    assert project.run("searchable", "drop", "@", "id").out == "rows removed: 1\n"
    assert listed(project) == {"total": ("kept", True)}
    again = project.run("searchable", "drop", "@", "id")
    assert (again.out, "not kept: id" in again.err) == ("rows removed: 0\n", True)
    assert len(project.run("list", "@", "--find", "id=o-1", "--json").json["instances"]) == 1


@pytest.mark.postgres
def test_an_index_of_all_inputs_has_nothing_to_drop(
    project: Project, postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_DATABASE", postgres_db)
    project.app.searchable = ("id",)
    project.run("migrate", "@")
    assert listed(project) == {"id": ("indexed", True)}
    refused = project.run("searchable", "drop", "@", "total", ok=False)
    assert refused.code == 1
    assert "an index of all inputs" in refused.err


@pytest.mark.mariadb
def test_a_path_is_dropped_from_mariadb(project: Project, mariadb_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_DATABASE", mariadb_db)
    project.app.searchable = ("id", "total")
    project.working(one_order)
    project.app.searchable = ()
    assert project.run("searchable", "drop", "@", "id", "total").out == "rows removed: 2\n"
    assert listed(project) == {}
