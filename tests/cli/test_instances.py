"""start, send, get, list, history: in this process, on the embedded broker and SQLite."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from romancy_stream.app import App
from romancy_stream.cli import timeline
from romancy_stream.instances import HistoryEntry
from tests.cli.conftest import Project


def test_start_is_durable_before_anybody_works_on_it(project: Project) -> None:
    project.run("init", "@")
    assert project.run("start", "@", "checkout", "--input", '{"id": "o1"}', "--id", "first").out == "first\n"
    made_up = project.run("start", "@", "checkout", "--input", '{"id": "o2"}').out.strip()
    assert made_up.startswith("checkout-")

    async def wait(app: App) -> list[dict[str, str]]:
        return [await app.handle(i, app.registry.workflows["checkout"]).result(30) for i in ("first", made_up)]

    assert project.working(wait) == [{"receipt": "receipt of o1"}, {"receipt": "receipt of o2"}]


def test_wait_prints_the_result_exactly(project: Project) -> None:
    big = '{"n":12345678901234567890123,"text":"é\\u2028","list":[1,null,true]}'
    answer = project.run("start", "@", "echo", "--input", big, "--wait", "--timeout", "30")
    assert answer.out == json.dumps(json.loads(big), ensure_ascii=False, separators=(",", ":")) + "\n"


def test_input_from_a_file_and_from_standard_input(project: Project) -> None:
    (project.folder / "order.json").write_text('{"id": "from a file"}')
    answer = project.run("start", "@", "checkout", "--input-file", "order.json", "--wait")
    assert json.loads(answer.out) == {"receipt": "receipt of from a file"}
    answer = project.run("start", "@", "checkout", "--input-file", "-", "--wait", input='{"id": "piped"}')
    assert json.loads(answer.out) == {"receipt": "receipt of piped"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["checkout", "--input", "{}"], 1, "id: Field required [invalid_input]"),
        (["checkout", "--input", "{"], 1, "[invalid_input]"),
        (["checkuot", "--input", "{}"], 1, "has no workflow 'checkuot'; it has checkout, echo, hangs, nap, refused"),
        (["nap", "--input", "1", "--input-file", "x"], 2, "exclude each other"),
        (["nap", "--input-file", "not there"], 2, "No such file"),
        (["nap", "--input", "1", "--timeout", "1"], 2, "--timeout needs --wait"),
        (["nap", "--input", "1", "--on-conflict", "perhaps"], 2, "perhaps"),
        (["nap", "--input", "600", "--wait", "--timeout", "0.2"], 1, "has not ended within 0.2 s; it goes on"),
        (["refused", "--wait"], 1, "TerminalError: no [bold]money[/bold] [workflow_failed]"),
    ],
)
def test_what_goes_wrong_is_one_line(project: Project, options: list[str], code: int, said: str) -> None:
    answer = project.run("start", "@", *options, ok=False)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert "Traceback" not in answer.err
    if code == 1:
        assert answer.err.count("\n") == 1


def test_a_parameter_may_be_called_like_an_option(project: Project) -> None:
    source = (
        "\n\n@app.workflow\nasync def named(ctx: WorkflowContext, instance_id: str) -> str:\n    return instance_id\n"
    )
    with (project.folder / f"{project.module}.py").open("a") as file:
        file.write(source)
    answer = project.run("start", "@", "named", "--input", '"a value"', "--id", "an-id", "--wait")
    assert json.loads(answer.out) == "a value"
    assert project.run("get", "@", "an-id", "--json").json["output"] == "a value"


def test_on_conflict(project: Project) -> None:
    assert project.run("start", "@", "nap", "--input", "0", "--id", "n", "--on-conflict", "fail").out == "n\n"
    answer = project.run("start", "@", "nap", "--input", "0", "--id", "n", "--on-conflict", "fail", ok=False)
    assert (answer.code, answer.err) == (1, "error: instance n exists [instance_exists]\n")
    assert project.run("start", "@", "nap", "--input", "0", "--id", "n").out == "n\n"


def test_start_before_init_says_what_to_do(project: Project) -> None:
    answer = project.run("start", "@", "nap", "--input", "1", ok=False)
    assert answer.code == 1
    assert "romancy init" in answer.err


def test_debug_shows_the_traceback(project: Project) -> None:
    with pytest.raises(Exception, match="has no workflow 'nope'"):
        project.run("--debug", "start", "@", "nope")


def test_send(project: Project) -> None:
    project.run("init", "@")
    answer = project.run(
        "send", "@", "payment.completed", "--data", '{"n": 1}', "--subject", "o1", "--source", "/bank", "--id", "e1"
    )
    assert answer.out == "e1\n"
    assert project.run("send", "@", "payment.completed").out.strip()
    assert project.run("send", "@", "x", "--data", "{", ok=False).code == 2
    assert project.run("send", "@", "x", "--data", "NaN", ok=False).code == 2
    assert project.run("send", "@", "", ok=False).code == 1


def fill(project: Project) -> None:
    async def start(app: App) -> None:
        for number in range(3):
            order = {"id": f"o{number}", "total": min(number, 1)}
            await (await app.start_by_name("checkout", order, instance_id=f"order-{number}")).result(30)
        bad = await app.start_by_name("refused", instance_id="bad")
        with pytest.raises(Exception, match="TerminalError"):
            await bad.result(30)
        echoed = {"n": 5, "s": "5", "b": True, "none": None, "deep": {"items": [{"sku": "A"}]}}
        await (await app.start_by_name("echo", echoed, instance_id="echoed")).result(30)

    project.working(start)


def test_list_filters(project: Project) -> None:
    fill(project)

    def ids(*options: str) -> list[str]:
        return sorted(each["instance_id"] for each in project.run("list", "@", "--json", *options).json["instances"])

    everything = ["bad", "echoed", "order-0", "order-1", "order-2"]
    assert ids() == everything
    assert ids("--workflow", "CHECK") == ["order-0", "order-1", "order-2"]
    assert ids("--status", "failed") == ["bad"]
    assert ids("--id", "DER-1") == ["order-1"]
    assert ids("--started-after", "2001-01-01") == everything
    assert ids("--started-before", "2001-01-01T00:00:00+02:00") == []
    assert ids("--find", "id=o1") == ["order-1"]
    assert ids("--find", "total=1", "--find", "id=o2") == ["order-2"]
    assert ids("--find", "total=1.0") == ["order-1", "order-2"]
    assert ids("--find", "n=5") == ["echoed"]
    assert ids("--find", 'n="5"') == []
    assert ids("--find", 's="5"') == ["echoed"]
    assert ids("--find", "b=true", "--find", "none=null", "--find", "deep.items.0.sku=A") == ["echoed"]
    assert ids("--workflow", "checkout", "--find", "id=o1", "--id", "order-2") == []


def test_list_pages(project: Project) -> None:
    fill(project)
    first = project.run("list", "@", "--limit", "2", "--json").json
    assert len(first["instances"]) == 2
    rest = project.run("list", "@", "--limit", "2", "--page-token", first["next_page_token"], "--json").json
    last = project.run("list", "@", "--limit", "2", "--page-token", rest["next_page_token"], "--json").json
    assert last["next_page_token"] is None
    seen = [each["instance_id"] for page in (first, rest, last) for each in page["instances"]]
    assert sorted(seen) == ["bad", "echoed", "order-0", "order-1", "order-2"]
    plain = project.run("list", "@", "--limit", "2")
    assert plain.out.splitlines()[0].split() == ["INSTANCE", "WORKFLOW", "STATUS", "STARTED", "LASTED", "PARKED"]
    assert len(plain.out.splitlines()) == 3
    assert plain.err == f"more: --page-token {first['next_page_token']}\n"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--limit", "0"], 1, "limit is a whole number"),
        (["--page-token", "nonsense"], 1, "[invalid_page_token]"),
        (["--find", "a..b=1"], 1, "[invalid_path]"),
        (["--find", "a=[1]"], 1, "a string, number, boolean or None"),
        (["--find", "a"], 2, "PATH=VALUE"),
        (["--started-after", "yesterday"], 2, "is not a time"),
    ],
)
def test_list_refuses(project: Project, options: list[str], code: int, said: str) -> None:
    project.run("init", "@")
    answer = project.run("list", "@", *options, ok=False)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err


def test_get(project: Project) -> None:
    fill(project)
    told = project.run("get", "@", "order-1", "--json").json
    assert (told["instance_id"], told["status"], told["output"]) == (
        "order-1",
        "completed",
        {"receipt": "receipt of o1"},
    )
    assert told["started_at"].endswith("+00:00")
    [charge] = told["activities"]
    assert (charge["activity_id"], charge["attempt"], charge["status"]) == ("charge:1", 2, "completed")
    plain = project.run("get", "@", "bad").out
    assert "status         failed\n" in plain
    assert "refuse:1" in plain
    assert "error          TerminalError: no [bold]money[/bold]\n" in plain
    assert max(map(len, plain.splitlines())) < 300, "the stack is in --json"
    assert "stack" in project.run("get", "@", "bad", "--json").json["error"]
    unknown = project.run("get", "@", "nobody", ok=False)
    assert (unknown.code, unknown.err) == (1, "error: no instance has the id 'nobody' [instance_not_found]\n")


def test_history(project: Project) -> None:
    fill(project)
    entries = project.run("history", "@", "order-1", "--json").json
    kinds = [entry["kind"] for entry in entries]
    assert kinds == [
        "workflow.started",
        "activity.scheduled",
        "activity.attempt_failed",
        "activity.retried",
        "activity.completed",
        "event.published",
        "workflow.completed",
    ]
    assert [entry["seq"] for entry in entries] == list(range(1, 8))
    lines = project.run("history", "@", "order-1").out.splitlines()
    assert lines[0].split() == ["SEQ", "TIME", "+DELTA", "EVENT", "WHAT", "ATTEMPT", "DETAILS"]
    assert len(lines) == 8
    failed = lines[3]
    assert "charge:1" in failed
    assert "#1 " in failed
    assert "RuntimeError: the bank\\x1b[31m is closed; again at " in failed
    assert "\x1b" not in "".join(lines)
    assert "#2 " in lines[5]
    assert "order.done" in lines[6]
    assert project.run("history", "@", "order-1", "--run", "1").out.splitlines() == lines
    assert project.run("history", "@", "order-1", "--run", "2", ok=False).code == 1
    assert project.run("history", "@", "nobody", ok=False).err == (
        "error: no instance has the id 'nobody' [instance_not_found]\n"
    )


@pytest.mark.parametrize(
    "command", [["list", "@"], ["get", "@", "x"], ["history", "@", "x"], ["dlq", "list", "@"], ["verify", "@"]]
)
def test_reading_makes_nothing(project: Project, command: list[str]) -> None:
    answer = project.run(*command, ok=False)
    assert answer.code == 1
    assert "romancy init" in answer.err
    assert not Path(".romancy").exists()


def test_a_history_says_when_timers_are_due() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    due_us = int(at.timestamp()) * 1_000_000
    entries = [
        HistoryEntry(seq, at, "timer.started", f"timer:{seq}", {"due_us": due_us + later_us})
        for seq, later_us in enumerate((250_000, 0, -86_400_000_000), start=1)
    ]
    assert [row[-1] for row in timeline.rows(entries)] == [
        "due 2026-01-01 00:00:00.250Z (in 250 ms)",
        "due 2026-01-01 00:00:00.000Z (in 0 ms)",
        "due 2025-12-31 00:00:00.000Z (past)",
    ]
