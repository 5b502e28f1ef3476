"""retry, reset, fork, delete, and cancel by filters: in this process, on the embedded broker and SQLite."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Project


def fail(project: Project, *ids: str) -> None:
    for instance_id in ids:
        project.run("start", "@", "refused", "--id", instance_id, "--wait", ok=False)


def statuses(project: Project) -> dict[str, str]:
    listed = project.run("list", "@", "--json").json["instances"]
    return {each["instance_id"]: each["status"] for each in listed}


def test_retry_by_id_names_the_run(project: Project) -> None:
    fail(project, "r-1")
    assert project.run("retry", "@", "r-1").out == "r-1: run 2\n"
    answer = project.run("retry", "@", "nobody", ok=False)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.endswith("[instance_not_found]\n")
    assert answer.err.count("\n") == 1


def test_several_ids_are_done_one_after_the_other(project: Project) -> None:
    project.run("start", "@", "echo", "--input", "1", "--id", "a", "--wait")
    project.run("start", "@", "echo", "--input", "1", "--id", "b", "--wait")
    project.run("start", "@", "nap", "--input", "600", "--id", "n")
    answer = project.run("delete", "@", "a", "n", "b", ok=False)
    assert (answer.code, answer.out) == (1, "deleted a\ndeleted b\n")
    assert answer.err.startswith("n: ")
    assert list(statuses(project)) == ["n"]


def test_filters_need_a_yes(project: Project) -> None:
    fail(project, "r-1", "r-2")
    project.run("start", "@", "echo", "--input", "1", "--id", "done", "--wait")
    counted = project.run("delete", "@", "--status", "failed", ok=False)
    assert counted.code == 2
    assert "2 instances: add --yes" in counted.err
    assert len(statuses(project)) == 3
    assert project.run("retry", "@", "--workflow", "refused", "--yes").out == "retried 2, refused 0\n"
    assert project.run("delete", "@", "--id", "done", "--yes").out == "deleted 1, refused 0\n"
    early = project.run("delete", "@", "--finished-before", "2001-01-01", "--yes")
    assert early.out == "deleted 0, refused 0\n"
    assert set(statuses(project)) == {"r-1", "r-2"}


def test_cancel_by_filters(project: Project) -> None:
    project.run("init", "@")
    for number in range(3):
        project.run("start", "@", "nap", "--input", "600", "--id", f"n-{number}")
    answer = project.run("cancel", "@", "n-1", "--reason", "this one first")
    assert answer.out == "cancelling n-1\n"
    answer = project.run(
        "cancel", "@", "--workflow", "nap", "--started-after", "2001-01-01", "--yes", "--reason", "all"
    )
    assert answer.out == "cancelling 2, refused 0\n"
    assert set(statuses(project).values()) == {"cancelled"}


def test_reset_and_fork(project: Project) -> None:
    project.run("start", "@", "echo", "--input", '"x"', "--id", "e", "--wait")
    assert project.run("reset", "@", "e", "--to-event", "1").out == "e: run 2\n"
    assert project.run("fork", "@", "e", "--at", "1", "--new-id", "f", "--run", "1").out == "f\n"
    assert project.run("fork", "@", "e").out.startswith("echo-")
    assert project.run("get", "@", "f", "--json").json["output"] == "x"
    answer = project.run("reset", "@", "e", "--to-event", "9", ok=False)
    assert answer.err.endswith("[invalid_reset_point]\n")
    assert project.run("fork", "@", "e", "--new-id", "f", ok=False).err.endswith("[instance_exists]\n")


@pytest.mark.parametrize("arguments", [(), ("i", "--status", "failed"), ("--yes",)])
def test_wrong_calls(project: Project, arguments: tuple[str, ...]) -> None:
    assert project.run("retry", "@", *arguments, ok=False).code == 2
