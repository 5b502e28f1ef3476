"""replay-check: real histories against code that has changed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from romancy_stream.app import App
from tests.cli.conftest import Project


def change(project: Project, old: str, new: str) -> None:
    """The code of the project, as a deployment would."""
    path = project.folder / f"{project.module}.py"
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))
    del sys.modules[project.module]


@pytest.fixture
def lived(project: Project) -> Project:
    """Two naps under way, and a checkout that has completed."""

    async def live(app: App) -> None:
        for name in ("one", "two"):
            await app.start_by_name("nap", 86_400, instance_id=f"nap-{name}", on_conflict="fail")
        await (await app.start_by_name("checkout", {"id": "o1"}, instance_id="checkout-1")).result(30)

    project.working(live)
    return project


def test_code_that_agrees(lived: Project) -> None:
    assert lived.run("replay-check", "@", "--from-db").out == "2 histories checked, 0 diverged\n"
    assert lived.run("replay-check", "@", "--from-db", "--status", "all").out == "3 histories checked, 0 diverged\n"
    assert lived.run("replay-check", "@", "--from-db", "--limit", "1").out == "1 histories checked, 0 diverged\n"
    assert lived.run("replay-check", "@", "--from-db", "--workflow", "check").out == "0 histories checked, 0 diverged\n"


def test_code_that_has_changed(lived: Project) -> None:
    change(lived, "    await ctx.sleep(seconds)\n", "    await charge('o1', 0)\n    await ctx.sleep(seconds)\n")
    answer = lived.run("replay-check", "@", "--from-db", ok=False)
    assert answer.code == 1
    assert [line.split("  ")[0] for line in answer.out.splitlines()[1:3]] == ["nap-two", "nap-one"]
    assert "timer.started timer:1" in answer.out
    assert "activity.scheduled charge:1 (charge)" in answer.out
    assert answer.out.splitlines()[-1] == "2 histories checked, 2 diverged"
    told = lived.run("replay-check", "@", "--from-db", "--status", "all", "--json", ok=False).json
    assert (told["checked"], told["diverged"], told["skipped"]) == (3, 2, 0)
    assert told["findings"][0] == {
        "history": "nap-two",
        "workflow": "nap",
        "diverged": True,
        "recorded": "timer.started timer:1",
        "code": "activity.scheduled charge:1 (charge)",
    }


def test_code_that_is_not_here_is_skipped_and_input_that_does_not_fit_is_not(lived: Project) -> None:
    change(lived, "async def nap(", "async def doze(")
    answer = lived.run("replay-check", "@", "--from-db")
    assert answer.out.splitlines()[-1] == "0 histories checked, 0 diverged, 2 skipped for want of code"
    change(
        lived, "async def doze(ctx: WorkflowContext, seconds: float)", "async def nap(ctx: WorkflowContext, s: Order)"
    )
    answer = lived.run("replay-check", "@", "--from-db", ok=False)
    assert answer.code == 1
    assert "InvalidInputError" in answer.out


def test_histories_as_files(lived: Project) -> None:
    lived.run("replay-check", "@", "--from-db", "--status", "all", "--save", "kept/histories")
    files = sorted((lived.folder / "kept/histories").iterdir())
    assert [file.name for file in files] == ["checkout-1.1.json", "nap-one.1.json", "nap-two.1.json"]
    (lived.folder / "shown.json").write_text(lived.run("history", "@", "checkout-1", "--json").out)
    arguments = [each for file in (*files, "shown.json") for each in ("--file", str(file))]
    assert lived.run("replay-check", "@", *arguments).out == "4 histories checked, 0 diverged\n"
    change(lived, 'return {"receipt": receipt}', 'await ctx.sleep(1)\n    return {"receipt": receipt}')
    answer = lived.run("replay-check", "@", *arguments, ok=False)
    assert answer.out.splitlines()[-1] == "4 histories checked, 2 diverged"
    assert "shown.json" in answer.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (lambda _: [], "either --from-db or --file"),
        (lambda _: ["--from-db", "--file", "x.json"], "either --from-db or --file"),
        (lambda _: ["--file", "x.json", "--limit", "3"], "go with --from-db"),
        (lambda _: ["--file", "missing.json"], "missing.json"),
        (lambda project: ["--file", f"{project.module}.py"], "this is no history"),
        (lambda _: ["--from-db"], "there is no database"),
    ],
)
def test_what_it_refuses(project: Project, arguments: Callable[[Project], list[str]], told: str) -> None:
    answer = project.run("replay-check", "@", *arguments(project), ok=False)
    assert answer.code in (1, 2)
    assert told in answer.err
