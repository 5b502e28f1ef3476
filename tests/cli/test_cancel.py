"""cancel: in this process, on the embedded broker and SQLite."""

from __future__ import annotations

from tests.cli.conftest import Project


def test_cancel_ends_an_instance_and_keeps_the_reason(project: Project) -> None:
    project.run("init", "@")
    project.run("start", "@", "nap", "--input", "600", "--id", "n-1")
    answer = project.run("cancel", "@", "n-1", "--reason", "customer called")
    assert answer.out == "cancelling n-1\n"
    project.run("cancel", "@", "n-1")  # again: nothing happens
    instance = project.run("get", "@", "n-1", "--json").json
    assert instance["status"] == "cancelled"
    assert instance["error"] == {"reason": "customer called", "by": "/romancy/shop/client"}


def test_what_cannot_be_cancelled_is_one_line(project: Project) -> None:
    project.run("start", "@", "echo", "--input", "1", "--id", "done", "--wait")
    for instance_id, code in (("done", "instance_not_cancellable"), ("nobody", "instance_not_found")):
        answer = project.run("cancel", "@", instance_id, ok=False)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.endswith(f"[{code}]\n")
        assert answer.err.count("\n") == 1
