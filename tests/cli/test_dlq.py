"""dlq list, show, replay."""

from __future__ import annotations

import pytest

from romancy_stream.app import App
from romancy_stream.wire.record import OutRecord
from tests.cli.conftest import Project
from tests.support import eventually

BAD = b"\xff\x00 not an event \x1b[31m"


def spoil(project: Project, count: int = 1, total: int | None = None) -> None:
    """Records that nobody can use, in the app's commands; waits until there are `total` dead letters."""

    async def send(app: App) -> None:
        records = [OutRecord("shop.commands", b"k", BAD, [("x-number", str(n).encode())]) for n in range(count)]
        for sent in await app._broker.send(records):
            await sent

        async def all_there() -> bool:
            return len(await app.dead_letters()) == (total or count)

        await eventually(all_there)

    project.working(send)


def test_list_show_and_replay(project: Project) -> None:
    spoil(project)
    [letter] = project.run("dlq", "list", "@", "--json").json
    dlq_id = letter["id"]
    assert dlq_id.startswith("shop.commands/")
    assert (letter["key"]["text"], letter["value"]["text"], letter["value"]["base64"]) == (
        "k",
        None,
        "/wAgbm90IGFuIGV2ZW50IBtbMzFt",
    )
    assert letter["headers"] == [{"name": "x-number", "value": {"text": "0", "base64": "MA=="}}]
    lines = project.run("dlq", "list", "@").out.splitlines()
    assert lines[0].split() == ["ID", "TIME", "REASON", "REPLAYED", "MESSAGE"]
    assert lines[1].startswith(dlq_id)
    shown = project.run("dlq", "show", "@", dlq_id)
    assert "header x-number  0\n" in shown.out
    assert "not an event \\x1b[31m" in shown.out
    assert "\x1b" not in shown.out
    assert project.run("dlq", "show", "@", dlq_id, "--json").json == letter

    assert project.run("dlq", "replay", "@", dlq_id).out == f"replayed {dlq_id}\n"
    again = project.run("dlq", "show", "@", dlq_id, "--json").json
    assert again["replayed_at"] is not None
    spoil(project, 1, total=3)  # the replayed record is read, and refused, again
    assert len(project.run("dlq", "list", "@", "--json").json) == 3


def test_pages(project: Project) -> None:
    spoil(project, 3)
    first = project.run("dlq", "list", "@", "--limit", "2")
    assert len(first.out.splitlines()) == 3
    assert first.err.startswith("more: --before shop.commands/")
    last = first.err.strip().rpartition(" ")[2]
    rest = project.run("dlq", "list", "@", "--limit", "2", "--before", last)
    assert (len(rest.out.splitlines()), rest.err) == (2, "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["list", "@", "--limit", "0"], "limit is a whole number"),
        (["list", "@", "--before", "x/0/0"], "[invalid_page_token]"),
        (["show", "@", "x/0/0"], "there is no dead letter 'x/0/0'"),
        (["replay", "@", "nonsense"], "there is no dead letter 'nonsense'"),
    ],
)
def test_what_goes_wrong_is_one_line(project: Project, command: list[str], said: str) -> None:
    project.run("init", "@")
    answer = project.run("dlq", *command, ok=False)
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert said in answer.err
